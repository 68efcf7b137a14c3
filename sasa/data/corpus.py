"""A corpus: a labelled source, and how its rows become examples.

It knows columns and labels; it knows nothing about models.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sasa.data.dialogues import SIDES
from sasa.data.examples import Example, Pair
from sasa.data.readers import (
    Columns,
    ExampleReader,
    column_reader,
    dialogue_reader,
    pair_reader,
    read_rows,
    rtp_reader,
)
from sasa.data.sources import HUB, open_source
from sasa.data.tables import BAD_ROWS, QUOTES, Format, Table, left_out, warn_once

SEGMENTS = ("prompt", "continuation", "pair")
DIASAFETY = {
    "text": "response",
    "label": "label",
    "prompt": "context",
    "positive": ("Unsafe",),
}
"""Settings of the source `diasafety`."""


def parse_rows(rows: str) -> tuple[int, int | None]:
    """The numbers of START:STOP, either of which may be missing.

    Raises:
        ValueError: the text has another form.
    """
    match = re.fullmatch(r"(\d*):(\d*)", rows.strip())
    start, stop = match.groups() if match else ("", "")
    if not match or (stop and int(stop) <= int(start or 0)):
        raise ValueError(f"rows must be START:STOP, such as 3000:4000, got {rows!r}")
    return int(start or 0), int(stop) if stop else None


@dataclass(frozen=True)
class Corpus:
    """A labelled source, and how its labels are read.

    Attributes:
        source: `jigsaw`, `rtp`, `toxigen`, `diasafety` or `hh-rlhf`, from the Hub or, with `path`,
            from a file in the same schema; or a CSV, JSONL or Parquet file; or a Hub data set
            `owner/name`. The last two need `text` and `label`. `hh-rlhf` has pairs of dialogues, in
            any of the forms of `sasa.data.dialogues`: the reply that people preferred is safe, the
            other one is not.
        path: the file of a named source.
        text, label: column names, as they stand in the source or, of nested ones, with dots. Of
            `rtp`, label is the attribute: `toxicity`, or `threat`, `insult`, `sexually_explicit`, …
            as Perspective scored them.
        prompt: the column of prompts, if the text is a response to one.
        by: a column whose values divide the texts, such as the group of people that they are about,
            for `sasa selectivity`.
        positive: label values that mean unsafe, if labels are names or class numbers; all others
            mean safe. Spaces around them, capitals, and 1.0 for 1 make no difference.
        low, high: the range of a label that is a number: it is mapped onto [0, 1].
        unsafe_from: scores at or above are unsafe.
        safe_below: scores below are safe; those between the two are the grey zone, which is left
            out. None: no grey zone.
        rows: `START:STOP`, a slice of the source.
        limit: the most rows, drawn at random.
        split, config: of a Hub data set; of `hh-rlhf` its folder, `harmless-base`.
        segments: of `rtp`: which texts of a row, of `prompt`, `continuation` and `pair` (the
            continuation as a response).
        encoding, separator, quotes, bad_rows: of files, see `sasa.data.tables.Format`.
    """

    source: str
    path: str | None = None
    text: str | None = None
    label: str | None = None
    prompt: str | None = None
    by: str | None = None
    positive: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    unsafe_from: float = 0.5
    safe_below: float | None = None
    rows: str | None = None
    limit: int | None = None
    split: str = "train"
    config: str | None = None
    segments: tuple[str, ...] = ("prompt", "continuation")
    encoding: str | None = None
    separator: str | None = None
    quotes: str = QUOTES[0]
    bad_rows: str = BAD_ROWS[0]

    def __post_init__(self) -> None:
        if self.source == "diasafety":
            for name, default in DIASAFETY.items():
                object.__setattr__(self, name, getattr(self, name) or default)
        for name in ("positive", "segments"):
            value = getattr(self, name)
            values = (value,) if isinstance(value, str) else tuple(str(v) for v in value)
            object.__setattr__(self, name, values)
        if not 0 < self.unsafe_from <= 1:
            raise ValueError(f"unsafe_from must be in (0, 1], got {self.unsafe_from}")
        if self.safe_below is not None and not 0 < self.safe_below <= self.unsafe_from:
            raise ValueError(
                f"safe_below must be in (0, unsafe_from={self.unsafe_from}], got {self.safe_below}"
            )
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1, got {self.limit}")
        if not self.segments or set(self.segments) - set(SEGMENTS):
            raise ValueError(
                f"segments must be some of {', '.join(SEGMENTS)}, got "
                f"{', '.join(self.segments) or 'none'}"
            )
        _ = self._format  # raises for what it does not allow

    @property
    def _format(self) -> Format:
        return Format(self.encoding, self.separator, self.quotes, self.bad_rows)

    @classmethod
    def parse(cls, text: str) -> Corpus:
        """Reads one argument of the command line, `SOURCE[::name=value,…]`, lists with `+`.

        For example `rtp::path=prompts.jsonl,rows=0:3000`, or
        `tweets.csv::text=tweet,label=class,positive=0+1`. A comma that no `name=` follows is part
        of the value.
        """
        source, _, settings = text.partition("::")
        if not settings.endswith("=,"):  # a separator that is a comma
            settings = settings.rstrip(",")
        kinds = {f.name: str(f.type) for f in fields(cls)}
        values: dict[str, Any] = {}
        for setting in filter(None, re.split(r",(?=[a-z_]+=)", settings)):
            name, equals, value = setting.partition("=")
            if not equals or name not in kinds or name == "source":
                allowed = ", ".join(n for n in kinds if n != "source")
                raise ValueError(
                    f"{setting!r} in {text!r}: expected name=value with a name of: {allowed}"
                )
            try:
                if kinds[name].startswith("tuple"):
                    values[name] = tuple(value.split("+"))
                elif kinds[name].startswith("float"):
                    values[name] = float(value)
                else:
                    values[name] = int(value) if kinds[name].startswith("int") else value
            except ValueError as error:
                raise ValueError(f"{name} in {text!r} must be a number, got {value!r}") from error
        return cls(source, **values)

    def to_dict(self) -> dict[str, Any]:
        """The settings that are not defaults, for a recipe."""
        default = Corpus(self.source)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value is not None and (name == "source" or value != getattr(default, name))
        }

    def label_of(self, score: float) -> int | None:
        """1 for safe, 0 for unsafe, None in the grey zone; higher scores are less safe."""
        if score >= self.unsafe_from:
            return 0
        safe_below = self.unsafe_from if self.safe_below is None else self.safe_below
        return 1 if score < safe_below else None

    def examples(self, seed: int = 0, skipped: Counter[str] | None = None) -> Iterator[Example]:
        """The examples in a fixed order.

        Args:
            seed: of the choice of rows with `limit`.
            skipped: counts the rows that are left out, by reason; None for a warning instead.

        Raises:
            FileNotFoundError, ValueError: no such file, a missing column, or a label that is
                missing, NaN or out of range; the message names the source, the row and what is
                allowed.
        """
        counts = Counter() if skipped is None else skipped
        table, numbers = self._open(seed)
        yield from read_rows(table, numbers, self._reader(table), counts)
        if counts and skipped is None:
            warn_once(f"corpus {self.source}: {left_out(counts)}")

    def pairs(self, skipped: Counter[str], seed: int = 0) -> Iterator[Pair]:
        """Pairs of replies to the same prompt, of a source with columns chosen and rejected.

        Args:
            skipped: counts the rows that are left out, by reason.

        Raises:
            FileNotFoundError, ValueError: as `examples`, and for a source of another kind.
        """
        if self.source in HUB and self.source != "hh-rlhf":
            raise ValueError(
                f"corpus {self.source} has no pairs: give hh-rlhf, or another source with two "
                "replies a row"
            )
        table, numbers = self._open(seed)
        if missing := [side for side in SIDES if side not in table.columns]:
            raise ValueError(
                f"corpus {self.source} has no pairs: it has no column {' and no '.join(missing)}, "
                f"but {', '.join(table.columns)}; give hh-rlhf, or another source with a preferred "
                "and a rejected reply"
            )
        yield from read_rows(table, numbers, pair_reader(table, self.prompt), skipped)

    def _open(self, seed: int) -> tuple[Table, Sequence[int]]:
        """The source's table, and the numbers of the rows to read."""
        table = open_source(self.source, self.path, self._format, self.split, self.config)
        numbers: Sequence[int] = range(len(table))
        if self.rows:
            try:
                numbers = numbers[slice(*parse_rows(self.rows))]
            except ValueError as error:
                raise ValueError(f"corpus {self.source}: {error}") from None
            if not len(numbers):
                raise ValueError(
                    f"corpus {self.source}: rows {self.rows} is empty, there are {len(table)} rows"
                )
        if self.limit and self.limit < len(numbers):
            numbers = sorted(random.Random(seed).sample(numbers, self.limit))
        if not len(numbers):
            raise ValueError(f"corpus {self.source} is empty")
        return table, numbers

    def _reader(self, table: Table) -> ExampleReader:
        if self.source == "rtp":
            return rtp_reader(self.label or "toxicity", self.segments)
        if self.source == "hh-rlhf":
            return dialogue_reader(table, self.prompt)
        return column_reader(table, self._columns(table.columns))

    def _columns(self, names: Sequence[str]) -> Columns:
        """The columns of a source with a text and a label a row, given the names that it has."""
        text, label, low, high = self.text, self.label, self.low, self.high
        if self.source == "jigsaw":  # Kaggle 2018, Kaggle 2019, Civil Comments
            text = text or _first(("comment_text", "text"), names)
            label = label or _first(("toxic", "target", "toxicity"), names)
        elif self.source == "toxigen":
            text, label = text or "text", label or "toxicity_human"
            low, high = (1.0, 5.0) if (low, high) == (0.0, 1.0) else (low, high)
        if not text or not label:
            raise ValueError(
                f"corpus {self.source}: name its text and label columns; it has {', '.join(names)}"
            )
        return Columns(text, label, self.prompt, self.by, low, high, self.positive)


def _first(wanted: Sequence[str], names: Sequence[str]) -> str:
    """The first name that is there; the very first one if none is."""
    return next((name for name in wanted if name in names), wanted[0])
