"""JSON files, atomic writes, and the comparison of settings with those of an earlier run."""

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
    """Reads a JSON object. Raises ValueError, which calls the file damaged, if it holds none."""
    try:
        content = json.loads(file.read_bytes(), object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds a {type(content).__name__}, not an object")
    return content


def differences(stored: dict[str, Any], given: dict[str, Any], prefix: str = "") -> list[str]:
    """How the settings that a folder was made with differ from those given now, as text.

    Dictionaries within are compared key by key.
    """
    changes = []
    for key in {**given, **stored}:  # a key that one of them lacks is a setting at its default
        a, b = stored.get(key), given.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changes.append(f"{prefix}{key} was {a}, is {b}")
    return changes


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a temporary file and moves it into place: nobody ever reads half of a file."""
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
