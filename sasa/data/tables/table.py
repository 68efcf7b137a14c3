"""A table: rows that can be read repeatedly, and what is known of them from a first reading. It
keeps none of them, and knows no file.
"""

from __future__ import annotations

import codecs
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

QUOTES = ("auto", "double", "backslash", "none")
BAD_ROWS = ("refuse", "skip")
ENCODINGS = "if the file is in another encoding, say which: encoding=cp1252, latin-1, utf-16-le, …"
NONE, EITHER = "say quotes=none", "Say which: quotes=double or quotes=none"
SAVE, REWRITE = "save the file as UTF-8", "write it as JSON lines, or with its quotes doubled"
REMEDY = "; bad_rows=skip leaves out what cannot be read, and counts it"

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """How a file is written, where it does not go without saying.

    Attributes:
        encoding: of text files; None for UTF-8, or what a byte order mark says.
        separator: between the cells of a CSV; None for a comma, in a .tsv a tab.
        quotes: of a CSV: `double`, a cell in quotes has its own quotes doubled (RFC 4180);
            `backslash`, it has a backslash before them; `none`, quotes are text and each line is a
            row; `auto`, `double`, or `none` where that alone makes sense of the file. What could be
            either is refused.
        bad_rows: `refuse`: a row that cannot be read is an error; `skip`: it is left out.

    Raises:
        ValueError: a value that is not allowed.
    """

    encoding: str | None = None
    separator: str | None = None
    quotes: str = "auto"
    bad_rows: str = "refuse"

    def __post_init__(self) -> None:
        if self.encoding is not None:
            try:
                known = codecs.lookup(self.encoding)._is_text_encoding
            except (LookupError, ValueError):
                known = False
            if not known:
                raise ValueError(
                    "encoding must be one that Python knows, such as utf-8, cp1252, latin-1 or "
                    f"utf-16, got {self.encoding!r}"
                )
        if self.separator == "tab":
            object.__setattr__(self, "separator", "\t")
        if self.separator is not None and (
            len(self.separator) != 1 or self.separator in '"\r\n\\ '
        ):
            raise ValueError(
                f"separator must be one character, such as ; or tab, got {self.separator!r}"
            )
        for name, allowed in (("quotes", QUOTES), ("bad_rows", BAD_ROWS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )


class Bad(NamedTuple):
    """A row that cannot be read.

    Attributes:
        reason: for people, with the line.
        lines: how many lines of the file went with it.
        encoded: whether its characters are at fault, and not its cells.
    """

    reason: str
    lines: int = 1
    encoded: bool = False


@dataclass
class Table:
    """Rows that can be read as often as they are wanted.

    Attributes:
        name: for messages.
        columns: their names; those inside others are written with dots.
        length: the number of rows, bad ones included.
        read: yields all rows, each a dictionary or `Bad`.
        form: how it is read; None where nobody is asked, and there is nothing that could be set.
        twice: columns of which there are several.
        needed: the columns that are read, those that hold others among them; None for all.
        bad: rows that cannot be read, by their number.
        short: CSV rows with fewer cells than there are columns: row number -> cells.
    """

    name: str
    columns: tuple[str, ...]
    length: int
    read: Callable[[], Iterable[Row | Bad]]
    form: Format | None = None
    twice: frozenset[str] = frozenset()
    needed: tuple[str, ...] | None = None
    bad: dict[int, Bad] = field(default_factory=dict)
    short: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.length

    def require(self, columns: Sequence[str]) -> None:
        """Makes sure that columns are there, in every row of a CSV. No others are read from now on.

        Raises:
            ValueError: a column is missing, or stands there twice; or a row has no cell for it.
        """
        for column in columns:
            if column not in self.columns:
                raise ValueError(
                    f"{self.name} has no column {column!r}; it has {', '.join(self.columns)}"
                )
            if column in self.twice:
                raise ValueError(f"{self.name} has several columns called {column!r}")
        self.needed = tuple(columns)
        needed = max(map(self.columns.index, columns), default=-1) + 1
        for number, cells in self.short.items():
            if cells < needed:
                self.note(number, Bad(f"it has {cells} of {len(self.columns)} cells"))
        self.say_what_is_bad()

    def rows(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[int, Row]]:
        """Rows with their numbers, bad ones left out; all, or those of some ascending numbers."""
        wanted = iter(range(self.length) if numbers is None else numbers)
        next_wanted = next(wanted, None)
        for number, row in enumerate(self.read()):
            if next_wanted is None:
                return
            if number != next_wanted:
                continue
            next_wanted = next(wanted, None)
            if not isinstance(row, Bad) and number not in self.bad:
                yield number, row

    def values(self, column: str) -> Iterator[Any]:
        """A column's values, of all rows that can be read."""
        return (value_of(row, column) for _, row in self.rows())

    def lost(self, numbers: Sequence[int] | None = None) -> int:
        """How many lines `rows` leaves out because they cannot be read."""
        if not self.bad:
            return 0
        some = self.bad if numbers is None else set(self.bad) & set(numbers)
        return sum(self.bad[number].lines for number in some)

    def note(self, number: int, bad: Bad) -> None:
        if self.form is None:
            reason = (
                bad.reason.replace(ENCODINGS, SAVE)
                .replace(NONE, REWRITE)
                .replace(EITHER, REWRITE.capitalize())
            )
            raise ValueError(f"{self.name}, row {number}: {reason}")
        if self.form.bad_rows == "refuse":
            raise ValueError(f"{self.name}, row {number}: {bad.reason}{REMEDY}")
        self.bad[number] = bad

    def say_what_is_bad(self) -> None:
        """Logs how much is left out, and an example."""
        if self.bad:
            number, bad = next(iter(self.bad.items()))
            warn_once(
                f"{self.name}: {self.lost():,} lines cannot be read and are left out; row "
                f"{number}: {bad.reason}"
            )


@functools.lru_cache(1000)  # a corpus is read several times, and this is said once
def warn_once(message: str) -> None:
    """Logs a warning, once."""
    logger.warning(message)


def left_out(skipped: Mapping[str, int]) -> str:
    """How many rows were left out, by reason, in words."""
    return "left out: " + ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())


def value_of(row: Row, column: str) -> Any:
    """The value of a column in a row, None if there is none. The name as it stands has precedence
    over a nested one.
    """
    if column in row:
        return row[column]
    for dot in (place for place, letter in reversed(list(enumerate(column))) if letter == "."):
        if (
            isinstance(inner := row.get(column[:dot]), dict)
            and (value := value_of(inner, column[dot + 1 :])) is not None
        ):
            return value
    return None


def repeated(names: Sequence[str]) -> frozenset[str]:
    """Names that come more than once."""
    return frozenset(name for name in names if names.count(name) > 1)


def outer(column: str, names: Sequence[str]) -> str:
    """Which of a table's own columns holds a column, be it nested."""
    if column in names:
        return column
    dots = [place for place, letter in enumerate(column) if letter == "."]
    return next((column[:dot] for dot in reversed(dots) if column[:dot] in names), column)


def column_names(row: Mapping[str, Any], before: str = "", depth: int = 8) -> Iterator[str]:
    """A row's column names, those inside others, so many deep, with dots."""
    for name, value in row.items():
        yield before + name
        if isinstance(value, dict) and depth:
            yield from column_names(value, f"{before}{name}.", depth - 1)
