"""A file -> a table, by the ending of its name."""

from __future__ import annotations

from pathlib import Path

from sasa.data.tables.delimited import csv_table
from sasa.data.tables.nested import json_table, parquet_table
from sasa.data.tables.table import Format, Table
from sasa.data.tables.text import bare, local, named

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}


def kind_of(file: str | Path) -> str | None:
    """`csv`, `json` or `parquet`, by a file's name; None for any other."""
    return KINDS.get(bare(file).suffix.lower())


def open_table(file: str | Path, form: Format | None = None, name: str | None = None) -> Table:
    """Reads a file through once: its columns, its number of rows, and those that cannot be read.

    Args:
        form: None where the caller has no such settings.
        name: what messages call it; None for its path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, is empty, or cannot be read; the message says what to do.
    """
    path = local(file)
    name = name or str(file)
    if path.is_dir():
        raise ValueError(f"{file} is a folder: name a file in it")
    if not path.is_file():
        raise FileNotFoundError(f"no file at {file}")
    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"{name}: expected one of {', '.join(KINDS)}")
    with named(name, kind):
        if kind == "parquet":
            return parquet_table(path, name)
        return csv_table(path, form, name) if kind == "csv" else json_table(path, form, name)
