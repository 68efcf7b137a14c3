"""CSV and TSV files: quotes as RFC 4180 has them, or as text, whichever makes sense of the file."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sasa.data.tables.table import EITHER, NONE, Bad, Format, Row, Table, repeated
from sasa.data.tables.text import bare, broken, guarded, opened

logger = logging.getLogger(__name__)

csv.field_size_limit(2**31 - 1)  # texts may be longer than its default, 131,072 characters

SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?')
"""A line that Excel may write before the header."""
UNESCAPE = re.compile(r'\\(["\\])')
"""An escaped quote or backslash; any other backslash is text."""


def _named_separator(path: Path, form: Format) -> str | None:
    """The character that a first line such as `sep=;` names."""
    with opened(path, form.encoding, "") as content:
        match = SEPARATOR_LINE.fullmatch(next(iter(content), ""))
    return match[1] if match else None


def csv_table(path: Path, asked: Format | None, name: str) -> Table:
    form = asked or Format()
    separator = (
        form.separator
        or _named_separator(path, form)
        or ("\t" if bare(path).suffix.lower() == ".tsv" else ",")
    )
    scan = _Scan(path, form.encoding, separator, "double" if form.quotes == "auto" else form.quotes)
    scan.run()
    if not scan.header:
        raise ValueError(f"{name} is empty or cannot be read as csv: it has no header")
    if (
        len(scan.header) == 1
        and not form.separator
        and (other := re.search("[;|\t,]", scan.header[0]))
    ):
        remedy = (
            f"say separator={'tab' if other[0] == chr(9) else other[0]}"
            if asked
            else "write it with commas"
        )
        raise ValueError(
            f"{name} has one column, {scan.header[0]!r}: if another character stands between "
            f"cells, {remedy}"
        )
    if form.quotes == "auto" and scan.quoted:
        scan = _settled(scan, name)
    table = Table(
        name,
        tuple(scan.header),
        scan.length,
        guarded(name, "csv", scan.rows),
        asked,
        repeated(scan.header),
    )
    for number, bad in sorted(scan.bad.items()):
        table.note(number, bad)
    table.short = scan.short
    return table


def _settled(scan: _Scan, name: str) -> _Scan:
    """The scan by RFC 4180, or one with quotes as text if only that makes sense of the file.

    Rows of which both make sense, but different sense, are bad ones.
    """
    if any(not bad.encoded for bad in scan.bad.values()):
        plain = _Scan(scan.path, scan.encoding, scan.separator, "none")
        plain.run()
        sound = all(bad.encoded for bad in plain.bad.values()) and not plain.short
        if sound and plain.wrapped <= plain.quoted / 2:
            logger.warning(
                "%s: quotes do not pair up in it, and are read as text (quotes=none)", name
            )
            return plain
    for number, lines in scan.spans:
        scan.judge(number, lines)
    return scan


class _Scan:
    """A CSV read one way.

    Attributes:
        header: the names of its columns.
        length, bad, short: see `Table`.
        quoted, wrapped: cells with a quote in them, and those with one at either end; `wrapped` is
            counted where quotes are text.
        values, numbers: of each column, in rows of one line: its values, None where there are many;
            and whether all of them are numbers.
        spans: rows of several lines, two or more of which would have as many cells as there are
            columns if quotes were text: their numbers, and their lines' cells.
    """

    MOST_SPANS, MOST_VALUES = 1000, 64

    def __init__(self, path: Path, encoding: str | None, separator: str, quotes: str) -> None:
        self.path, self.encoding, self.separator, self.quotes = path, encoding, separator, quotes
        self.header: list[str] = []
        self.length = self.quoted = self.wrapped = 0
        self.bad: dict[int, Bad] = {}
        self.short: dict[int, int] = {}
        self.spans: list[tuple[int, list[list[str]]]] = []
        self.values: list[set[str] | None] = []
        self.numbers: list[bool] = []

    def run(self) -> None:
        """Fills the attributes."""
        for number, (cells, lines) in enumerate(self._cells()):
            self.length = number + 1
            if isinstance(cells, Bad):
                self.bad[number] = cells
                self.quoted += any('"' in line for line in lines)
                continue
            if len(cells) < len(self.header):
                self.short[number] = len(cells)
            if not any('"' in line for line in lines):
                self._learn(cells)
                continue
            self.quoted += 1
            self.wrapped += any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
            if len(lines) == 1:
                self._learn(cells)
            else:
                apart = [
                    row
                    for row in csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE)
                    if row
                ]
                if sum(len(row) == len(self.header) for row in apart) < 2:
                    continue
                if len(self.spans) < self.MOST_SPANS:
                    self.spans.append((number, apart))
                else:  # what columns hold is known by now
                    self.judge(number, apart)

    def rows(self) -> Iterator[Row | Bad]:
        for cells, _ in self._cells():
            if isinstance(cells, Bad):
                yield cells
                continue
            missing = ("", "\\N") if self.quotes == "backslash" else ("",)  # \N is MySQL's NULL
            yield {c: None if v in missing else v for c, v in zip(self.header, cells, strict=False)}

    def judge(self, number: int, lines: list[list[str]]) -> None:
        """Notes a row of several lines as bad if two of them, and half of all, look like rows."""
        rows = sum(map(self._looks_like_a_row, lines))
        if self.quotes == "double" and rows >= max(2, len(lines) / 2):
            reason = (
                f"{len(lines)} lines that look like rows stand between two quotes, and may be one "
                f"cell with line breaks, or as many rows with a quote in their text. {EITHER}"
            )
            self.bad[number] = Bad(reason, len(lines))

    def _looks_like_a_row(self, cells: list[str]) -> bool:
        """Whether a cell has a value, or is a number, as its column has in rows of one line."""
        return len(cells) == len(self.header) and any(
            cell != "" and ((known is not None and cell in known) or (number and _is_number(cell)))
            for cell, known, number in zip(cells, self.values, self.numbers, strict=False)
        )

    def _learn(self, cells: list[str]) -> None:
        if not self.values:
            self.values = [set() for _ in self.header]
            self.numbers = [True] * len(self.header)
        for place, (cell, known) in enumerate(zip(cells, self.values, strict=False)):
            if known is not None:
                known.add(cell)
                if len(known) > self.MOST_VALUES:
                    self.values[place] = None
            if self.numbers[place]:
                self.numbers[place] = _is_number(cell)

    def _cells(self) -> Iterator[tuple[list[str] | Bad, list[str]]]:
        """The cells of each row, and its lines; the header goes to its attribute."""
        header: list[str] | None = None
        unsure = False  # whether the next row may be the rest of one that could not be read
        with opened(self.path, self.encoding, "") as content:
            for record, lines, at in self._records(content):
                cells: list[str] | Bad
                if isinstance(record, csv.Error):
                    cells, unsure = self._unpaired(record, at, len(lines)), True
                else:
                    cells = record
                    if unsure:
                        unsure = len(record) != len(header or record) or any(
                            line.count('"') % 2 for line in lines
                        )
                    if unsure:
                        reason = "it seems to be the rest of a row that cannot be read"
                        cells = Bad(f"(line {at}) {reason}", len(lines))
                for line in lines:
                    if wrong := broken(line):
                        cells = Bad(f"(line {at}) {wrong}", len(lines), isinstance(cells, list))
                        break
                if header is None:
                    if isinstance(cells, Bad):
                        raise ValueError(f"{self.path}: the header cannot be read: {cells.reason}")
                    header = self.header = [cell.strip() for cell in cells]
                    continue
                if not isinstance(cells, Bad) and len(cells) > len(header):
                    separator = "a tab" if self.separator == "\t" else repr(self.separator)
                    cells = Bad(
                        f"(line {at}) it has {len(cells)} cells, and there are {len(header)} "
                        f"columns: is a text with {separator} in it not in quotes?"
                    )
                yield cells, lines

    def _records(
        self, content: Iterable[str]
    ) -> Iterator[tuple[list[str] | csv.Error, list[str], int]]:
        """The rows as the csv module reads them, or its error for a row that it cannot read.

        Each comes with its lines and the number of the last one. Blank lines are left out.
        """
        settings: Any = dict(quoting=csv.QUOTE_NONE) if self.quotes == "none" else dict(strict=True)
        lines: list[str] = []
        at = 0

        def recorded() -> Iterator[str]:
            nonlocal at
            for line in content:
                at += 1
                if at == 1 and SEPARATOR_LINE.fullmatch(line):
                    continue
                lines.append(line)
                yield _doubled(line) if self.quotes == "backslash" else line

        reader = csv.reader(recorded(), delimiter=self.separator, **settings)
        while True:
            lines.clear()
            record: list[str] | csv.Error
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                record = error
            if record != []:
                yield record, list(lines), at

    def _unpaired(self, error: csv.Error, at: int, lines: int) -> Bad:
        """The row whose quotes the csv module does not understand."""
        closed = "expected after" in str(error)  # a separator, after a cell's second quote
        reason = (
            "a cell goes on behind the quote that ends it" if closed else "a quote is never closed"
        )
        hint = f"; if quotes are part of the text, {NONE}" if self.quotes == "double" else ""
        return Bad(f"(line {at}) {reason}{hint}", lines)


def _doubled(line: str) -> str:
    """A line with quotes doubled, as RFC 4180 writes them, that have a backslash before them."""
    return UNESCAPE.sub(lambda match: {'"': '""'}.get(match[1], match[1]), line)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
