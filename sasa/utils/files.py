"""Files that no crash leaves half-written, and settings compared with those of an earlier run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_json(
    file: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, Any]:
    """An object that was written as JSON. Raises ValueError where the file holds none: it is damaged."""
    try:
        found = json.loads(file.read_bytes(), object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it holds a {type(found).__name__}, not an object")
    return found


def differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """How the settings that a folder was made with differ from those of now, as text.

    Dictionaries within are compared key by key.
    """
    found = []
    for key in {**here, **there}:  # what is missing in one is a setting at its default there
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} was {a}, is {b}")
    return found


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a file beside its place and moves it there: nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
