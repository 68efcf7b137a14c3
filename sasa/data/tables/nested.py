"""JSON, JSON lines and Parquet files: rows whose columns may be nested."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sasa.data.tables.table import Bad, Format, Row, Table, column_names, outer, repeated
from sasa.data.tables.text import broken, check_characters, guarded, opened


def json_table(path: Path, form: Format | None, name: str) -> Table:
    def read() -> Iterator[Row | Bad]:
        with opened(path, form.encoding if form else None, "\n") as content:
            lines = iter(content)
            for at, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                if line.lstrip().startswith("["):  # one list of rows
                    whole = line + "".join(lines)
                    if wrong := broken(whole):
                        raise ValueError(f"{name}: {wrong}")
                    try:
                        rows = _load(whole)
                    except ValueError as error:
                        raise ValueError(f"{name}: {error}") from error
                    yield from (_checked(row, "") for row in rows)
                    return
                yield _of_line(line.lstrip("\ufeff"), f"(line {at}) ")

    read = guarded(name, "json", read)
    columns: dict[str, None] = {}
    table = Table(name, (), 0, read, form)
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(read()):
        table.length = number + 1
        if isinstance(row, Bad):
            table.note(number, row)
            continue
        shape = tuple(row)
        if shape not in seen or any(isinstance(value, dict) for value in row.values()):
            seen.add(shape)
            columns |= dict.fromkeys(column_names(row))
    if not table.length:
        raise ValueError(f"{name} is empty or cannot be read as json: it has no rows")
    table.columns = tuple(columns)
    return table


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error


def _of_line(line: str, where: str) -> Row | Bad:
    """The row of a line of JSON."""
    if wrong := broken(line):
        return Bad(where + wrong)
    try:
        row = _load(line)
    except ValueError as error:
        return Bad(where + str(error))
    if isinstance(row, dict) and not re.search(r"\\u[dD][89a-fA-F]", line):
        return row
    return _checked(row, where)


def _checked(row: Any, where: str) -> Row | Bad:
    """A value as a row, if it is an object of valid text."""
    if not isinstance(row, dict):
        return Bad(f"{where}expected an object with the columns as names, got {type(row).__name__}")
    try:
        check_characters(json.dumps(row, ensure_ascii=False))
    except ValueError as error:
        return Bad(where + str(error))
    return row


def parquet_table(path: Path, name: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def names(fields: Iterable[Any], before: str = "") -> Iterator[str]:
        for one in fields:
            yield before + one.name
            if pa.types.is_struct(one.type):
                yield from names(one.type, f"{before}{one.name}.")

    def read() -> Iterator[Row | Bad]:
        some = (
            None
            if table.needed is None
            else list(dict.fromkeys(outer(column, own) for column in table.needed))
        )
        with pq.ParquetFile(path) as content:
            for batch in content.iter_batches(1000, columns=some):
                try:
                    rows = batch.to_pylist()
                # dates beyond Python's range, unknown time zones
                except (OverflowError, KeyError, ValueError) as error:
                    raise ValueError(f"{name}: a column cannot be read: {error!r}") from error
                yield from rows

    with pq.ParquetFile(path) as content:
        own, length = list(content.schema_arrow.names), content.metadata.num_rows
        known = tuple(dict.fromkeys(names(content.schema_arrow)))
    table = Table(name, known, length, guarded(name, "parquet", read), twice=repeated(own))
    return table
