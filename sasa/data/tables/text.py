"""Text files, plain or compressed, in any encoding -> lines; invalid characters are detected."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sasa.data.tables.table import ENCODINGS, SAVE, Bad, Row


def local(file: str | os.PathLike[str]) -> Path:
    """A path as it stands if it exists, else with ~ expanded to a home folder."""
    path = Path(file)
    try:
        return path if path.exists() else path.expanduser()
    except RuntimeError:  # no user of that name
        return path


def read_lines(file: str | Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file in UTF-8, or as a byte order mark says, with their numbers from 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not in that encoding.
    """
    path = local(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {file}")
    with named(str(file), "text"), opened(path, None, None) as lines:
        for number, line in enumerate(lines, 1):
            line = line.lstrip("\ufeff")  # concatenated files have one in the middle
            if wrong := broken(line):
                raise ValueError(f"{file}, line {number}: {wrong.replace(ENCODINGS, SAVE)}")
            yield number, line.rstrip("\n")


def check_characters(text: str) -> None:
    """Raises ValueError for text that no tokenizer takes: half of a surrogate pair, as in the JSON
    "\\ud83d".
    """
    if match := re.search("[\ud800-\udfff]", text):
        raise ValueError(
            f"it holds \\u{ord(match[0]):x}, half of a surrogate pair, which is no character"
        )


def _zstd(content: Any) -> Any:
    """A file that zstd has compressed, read by Arrow: Python has no reader of it before 3.14."""
    import pyarrow as pa

    return io.BufferedReader(
        _Readable(pa.CompressedInputStream(pa.PythonFile(content, "r"), "zstd")), 1 << 16
    )


PACKED: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".zst": _zstd}


def bare(file: str | Path) -> Path:
    """A path without the suffix of a compressed file."""
    path = Path(file)
    return path.with_suffix("") if path.suffix.lower() in PACKED else path


@contextmanager
def opened(path: Path, encoding: str | None, newline: str | None) -> Iterator[TextIO]:
    """A text file; a byte that is not in its encoding is read as a lone surrogate."""
    with path.open("rb") as plain:
        binary: Any = PACKED.get(path.suffix.lower(), lambda content: content)(plain)
        start = binary.peek(4)[:4]
        if encoding is None:
            wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            widest = start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE))
            encoding = "utf-32" if widest else "utf-16" if wide else "utf-8"
        text = io.TextIOWrapper(
            binary, encoding=encoding, errors="surrogateescape", newline=newline
        )
        mark = text.read(1)
        if mark == "\ufeff":
            yield text
        else:
            yield _Again(mark, text)  # type: ignore[misc]


class _Readable(io.RawIOBase):
    """An Arrow stream as a Python file."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.content.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class _Again:
    """The lines of a text file whose first character has been read already."""

    def __init__(self, start: str, rest: TextIO) -> None:
        self.start, self.rest = start, rest

    def __iter__(self) -> Iterator[str]:
        if self.start in ("\n", "\r", ""):  # a line of its own, or half an end of one
            yield from [self.start] * bool(self.start)
        else:
            yield self.start + self.rest.readline()
        yield from self.rest


def broken(line: str) -> str | None:
    """The reason why a line's characters are invalid, None if they are valid."""
    if match := re.search("[\ud800-\udfff]", line):
        code = ord(match[0])
        if 0xDC80 <= code <= 0xDCFF:
            return f"byte 0x{code - 0xDC00:02x} is no text in this encoding; {ENCODINGS}"
        return f"it holds half of a surrogate pair, \\u{code:x}; {ENCODINGS}"
    if "\0" in line:
        return f"it holds a NUL byte, as UTF-16 without a byte order mark does; {ENCODINGS}"
    return None


def _damage() -> tuple[type[Exception], ...]:
    """The exceptions that damaged files raise; Arrow's as well, if it has been imported."""
    arrow = sys.modules.get("pyarrow")
    return (EOFError, zlib.error, *([arrow.ArrowException] if arrow else []))


@contextmanager
def named(name: str, kind: str) -> Iterator[None]:
    """Turns errors in reading a file into ones that name it."""
    try:
        yield
    except UnicodeError as error:
        raise ValueError(f"{name} cannot be read as {kind}: {error}; {ENCODINGS}") from error
    except _damage() as error:
        raise ValueError(f"{name} is damaged, or cannot be read as {kind}: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{name} is damaged, or cannot be read as {kind}: {error}") from error


def guarded(
    name: str, kind: str, read: Callable[[], Iterable[Row | Bad]]
) -> Callable[[], Iterator[Row | Bad]]:
    def again() -> Iterator[Row | Bad]:
        with named(name, kind):
            yield from read()

    return again
