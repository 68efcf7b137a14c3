"""JSON lines of a process that may be killed: appended in one go, read as far as they are whole."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read(file: Path) -> list[dict[str, Any]]:
    """The records of a file, without a torn last line. Raises ValueError if one is damaged."""
    return parse(file, whole_lines(file)) if file.is_file() else []


def parse(file: Path, lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """The records in a file's first lines. Raises ValueError if one is damaged."""
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number} is damaged: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{file}, line {number} is damaged: "
                f"it holds a {type(record).__name__}, not an object"
            )
        records.append(record)
    return records


def whole_lines(file: Path) -> list[bytes]:
    """The lines of a file that were written to the end, with their line ends."""
    # after the last line end comes nothing, or half a line
    *lines, _ = file.read_bytes().split(b"\n")
    while lines and not _is_record(lines[-1]):
        lines.pop()
    return [line + b"\n" for line in lines]


def keep_lines(file: Path, lines: Sequence[bytes]) -> None:
    """Cuts a file off after its first lines, which are these."""
    keep = sum(map(len, lines))
    if keep < file.stat().st_size:
        with file.open("r+b") as opened:
            opened.truncate(keep)


def append(file: Path, records: Sequence[Any]) -> None:
    """Appends lines in one go, on the disk when it returns; a torn last line is cut off first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        end = opened.seek(0, os.SEEK_END)
        if end:
            opened.seek(-1, os.SEEK_END)
            if opened.read(1) != b"\n":
                opened.seek(0)
                opened.truncate(opened.read().rfind(b"\n") + 1)
        opened.write("".join(f"{line(record)}\n" for record in records).encode())
        opened.flush()
        os.fsync(opened.fileno())


def line(record: Any) -> str:
    """A record as a line of JSON, without a line end."""
    return json.dumps(record, ensure_ascii=False)


def _is_record(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
