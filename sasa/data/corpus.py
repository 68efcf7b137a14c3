"""Labelled sources -> a stream of examples: Hub data sets through `datasets`, files through `sasa.data.tables`.

It knows columns and labels; it knows nothing about models.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sasa.core.embedding_spec import Text
from sasa.data.dialogues import SIDES, Message, Reply, replies
from sasa.data.tables import (
    BAD_ROWS,
    KINDS,
    QUOTES,
    Format,
    Row,
    Table,
    column_names,
    kind_of,
    left_out,
    local,
    open_table,
    outer,
    value_of,
    warn_once,
)

UNREAD = "cannot be read"
"""Why rows are left out that a file with `bad_rows=skip` has."""
HUB: dict[str, tuple[str, str | None]] = {
    "jigsaw": ("google/civil_comments", None),
    "rtp": ("allenai/real-toxicity-prompts", None),
    "hh-rlhf": ("Anthropic/hh-rlhf", "harmless-base"),
    "toxigen": ("toxigen/toxigen-data", "annotated"),
    "diasafety": ("thu-coai/diasafety", None),
}
"""The named sources: data sets of the Hub, each with the part that is meant."""
SEGMENTS = ("prompt", "continuation", "pair")
TRUE, FALSE = {"true", "yes", "toxic"}, {"false", "no", "safe", "non-toxic"}


def parse_rows(rows: str) -> tuple[int, int | None]:
    """START:STOP, either of which may be missing, as numbers.

    Raises:
        ValueError: it is something else.
    """
    match = re.fullmatch(r"(\d*):(\d*)", rows.strip())
    start, stop = match.groups() if match else ("", "")
    if not match or (stop and int(stop) <= int(start or 0)):
        raise ValueError(f"rows must be START:STOP, such as 3000:4000, got {rows!r}")
    return int(start or 0), int(stop) if stop else None


@dataclass(frozen=True)
class Example:
    """A text, how unsafe it is in [0, 1], and the group that must not be split between fitting and testing.

    Attributes:
        prompt_score: of a response, how unsafe its prompt is, where the source says so.
        by: the value of the corpus's column `by`.
    """

    text: Text
    score: float
    group: str
    prompt_score: float | None = None
    by: str | None = None


@dataclass(frozen=True)
class Pair:
    """A prompt, the reply to it that people preferred, and the one that they rejected.

    Attributes:
        turns: the prompt as chat messages; none where nobody asks anything.
    """

    prompt: str
    safe: str
    unsafe: str
    turns: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """A labelled source, and how its labels are read.

    Attributes:
        source: `jigsaw`, `rtp`, `toxigen` or `hh-rlhf` (pairs of dialogues: the reply that people preferred is safe, the other
            one is not; in any of the forms of `sasa.data.dialogues`), from the Hub or, with `path`, from a file in the
            same schema; or a CSV, JSONL or Parquet file; or a Hub data set `owner/name`. The last two need `text` and
            `label`.
        path: the file of a named source.
        text, label: column names, as they stand in the source or, of nested ones, with dots. Of `rtp`, label is the
            attribute: `toxicity`, or `threat`, `insult`, `sexually_explicit`, … as Perspective scored them.
        prompt: the column of prompts, where the text is a response to one.
        by: a column whose values divide the texts, such as the group of people that they are about, for `sasa selectivity`.
        positive: label values that mean unsafe, where labels are names or class numbers; all others mean safe. Spaces
            around them, capitals, and 1.0 for 1 make no difference.
        low, high: the label's range where it is a number: it is mapped onto [0, 1].
        unsafe_from: scores at or above are unsafe.
        safe_below: scores below are safe; between the two lies the grey zone, which is left out. None: no grey zone.
        rows: `START:STOP`, a slice of the source.
        limit: at most so many rows, drawn at random.
        split, config: of a Hub data set; of `hh-rlhf` its folder, `harmless-base`.
        segments: of `rtp`: which texts of a row, of `prompt`, `continuation` and `pair` (the continuation as a response).
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
            columns = {
                "text": "response",
                "label": "label",
                "prompt": "context",
                "positive": ("Unsafe",),
            }
            for name, value in columns.items():
                object.__setattr__(self, name, getattr(self, name) or value)
        for name in ("positive", "segments"):
            value = getattr(self, name)
            object.__setattr__(
                self, name, (value,) if isinstance(value, str) else tuple(str(v) for v in value)
            )
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
        unknown = set(self.segments) - set(SEGMENTS)
        if unknown or not self.segments:
            raise ValueError(
                f"segments must be some of {', '.join(SEGMENTS)}, got {', '.join(self.segments) or 'none'}"
            )
        _ = self._format  # raises for what it does not allow

    @property
    def _format(self) -> Format:
        return Format(self.encoding, self.separator, self.quotes, self.bad_rows)

    @classmethod
    def parse(cls, text: str) -> Corpus:
        """From one argument of the command line: `SOURCE[::name=value,…]`, lists with `+`.

        For example `rtp::path=prompts.jsonl,rows=0:3000` or `tweets.csv::text=tweet,label=class,positive=0+1`. A comma that
        no `name=` follows is part of the value.
        """
        source, _, settings = text.partition("::")
        values: dict[str, Any] = {}
        kinds = {f.name: str(f.type) for f in fields(cls)}
        for setting in filter(
            None,
            re.split(
                r",(?=[a-z_]+=)", settings if settings.endswith("=,") else settings.rstrip(",")
            ),
        ):
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
        own = {k: v for k, v in asdict(self).items() if v is not None}
        return {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in own.items()
            if k == "source" or v != getattr(default, k)
        }

    def label_of(self, score: float) -> int | None:
        """1 for safe, 0 for unsafe, None in the grey zone."""
        if score >= self.unsafe_from:
            return 0
        return (
            1
            if score < (self.unsafe_from if self.safe_below is None else self.safe_below)
            else None
        )

    def examples(self, seed: int = 0, skipped: Counter[str] | None = None) -> Iterator[Example]:
        """The examples in a fixed order; `skipped` counts, by reason, the rows that are left out. Where it is None, a warning has
        them.

        Raises:
            FileNotFoundError, ValueError: no such file, a missing column, or a label that is missing, NaN or out of range;
                the message names the source, the row and what is allowed.
        """
        said, skipped = skipped is not None, Counter() if skipped is None else skipped
        table, numbers = self._open(seed)
        readers = {"rtp": self._rtp, "hh-rlhf": self._dialogues}
        read = readers[self.source] if self.source in readers else self._plain(table)
        if self.source == "hh-rlhf":
            self._require_sides(table)
        if lost := table.lost(numbers):
            skipped[UNREAD] += lost
        for number, row in table.rows(numbers):
            for example in read(row, number):
                if isinstance(example, Example):
                    yield example
                else:
                    skipped[example] += 1
        if skipped and not said:
            warn_once(f"corpus {self.source}: {left_out(skipped)}")

    def pairs(self, skipped: Counter[str], seed: int = 0) -> Iterator[Pair]:
        """Pairs of replies to the same prompt, of a source with columns chosen and rejected; `skipped` counts others by reason.

        Raises:
            FileNotFoundError, ValueError: as `examples`, and for a source of another kind.
        """
        if self.source in HUB and self.source != "hh-rlhf":
            raise ValueError(
                f"corpus {self.source} has no pairs: give hh-rlhf, or another source with two replies a row"
            )
        table, numbers = self._open(seed)
        if missing := [side for side in SIDES if side not in table.columns]:
            raise ValueError(
                f"corpus {self.source} has no pairs: it has no column {' and no '.join(missing)}, but "
                f"{', '.join(table.columns)}; give hh-rlhf, or another source with a preferred and a rejected reply"
            )
        self._require_sides(table)
        if lost := table.lost(numbers):
            skipped[UNREAD] += lost
        for number, row in table.rows(numbers):
            safe, unsafe = self._replies(row, number)
            if not safe.prompt or not unsafe.prompt:
                skipped["without a prompt"] += 1
            elif not safe.text or not unsafe.text:
                skipped["with an empty reply"] += 1
            elif (safe.prompt, safe.turns) != (unsafe.prompt, unsafe.turns):
                skipped["with two prompts"] += 1
            elif safe.text == unsafe.text:
                skipped["with the same reply twice"] += 1
            else:
                yield Pair(safe.prompt, safe.text, unsafe.text, safe.turns)

    # --- readers ---------------------------------------------------------------------------------------------

    def _open(self, seed: int) -> tuple[Table, Sequence[int]]:
        """The source's table, and the numbers of the rows to read."""
        file = self.path if self.source in HUB else self.source
        table: Table
        if file is not None and (kind_of(file) or local(file).exists()):
            if not local(file).exists():
                raise FileNotFoundError(f"corpus {self.source}: no file at {file}")
            if kind_of(file) is None:
                raise ValueError(f"corpus {file}: expected one of {', '.join(KINDS)}")
            table = open_table(file, self._format, f"corpus {self.source}")
        else:
            name, config = HUB.get(self.source, (self.source, None))
            try:
                where = {"data_dir" if self.source == "hh-rlhf" else "name": self.config or config}
                import datasets

                table = _HubTable(
                    datasets.load_dataset(name, split=self.split, **where), f"corpus {self.source}"
                )
            except (
                Exception
            ) as error:  # the Hub's errors are of a dozen types, and none says what to do instead
                raise FileNotFoundError(
                    f"corpus {self.source}: not a file here, and the Hub's {name!r} cannot be had ({error}). "
                    f"Give a file: {self.source}::path=FILE"
                    if self.source in HUB
                    else f"corpus {self.source}: not a file here, and the Hub has no data set of that name ({error})"
                ) from error
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

    def _plain(self, table: Table) -> Callable[[dict[str, Any], int], Iterator[Example | str]]:
        """A reader of one row: examples, or the reason why there is none."""
        text, label, low, high = self.text, self.label, self.low, self.high
        columns = table.columns
        if self.source == "jigsaw":  # Kaggle 2018, Kaggle 2019, Civil Comments
            text = text or next(
                (c for c in ("comment_text", "text") if c in columns), "comment_text"
            )
            label = label or next(
                (c for c in ("toxic", "target", "toxicity") if c in columns), "toxic"
            )
        elif self.source == "toxigen":
            text, label = text or "text", label or "toxicity_human"
            low, high = (1.0, 5.0) if (low, high) == (0.0, 1.0) else (low, high)
        if not text or not label:
            raise ValueError(
                f"corpus {self.source}: name its text and label columns; it has {', '.join(columns)}"
            )
        table.require([column for column in (text, label, self.prompt, self.by) if column])
        unsafe = self._unsafe(table, label)

        def read(row: Row, number: int) -> Iterator[Example | str]:
            content = self._text(value_of(row, text), text, number)
            score = self._score(value_of(row, label), low, high, number, unsafe)
            if not content.strip():
                yield "empty text"
                return
            prompt = (
                self._text(value_of(row, self.prompt), self.prompt, number) if self.prompt else ""
            )
            part = (
                (_name(self._text(value_of(row, self.by), self.by, number)) or None)
                if self.by
                else None
            )
            yield Example(
                (prompt, content) if self.prompt else content, score, prompt or content, by=part
            )

        return read

    def _text(self, value: Any, column: str, number: int) -> str:
        """A text of a row; "" for a missing one."""
        if isinstance(value, bytes):  # what older writers of Parquet make of strings
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"corpus {self.source}, row {number}: the column {column!r} is no UTF-8: {error}"
                ) from None
        if isinstance(value, float) and math.isnan(value):
            return ""
        if isinstance(value, (dict, list)):
            inside = (
                f"; name one inside it, such as {column}.{next(iter(value))}"
                if isinstance(value, dict) and value
                else ""
            )
            raise ValueError(
                f"corpus {self.source}, row {number}: the column {column!r} holds a {type(value).__name__}, not text{inside}"
            )
        return "" if value is None else str(value)

    def _unsafe(self, table: Table, label: str) -> set[str]:
        """The names of the labels that mean unsafe.

        Raises:
            ValueError: some of `positive` never occur: a typo must not make texts safe.
        """
        wanted = {_class(value): value for value in self.positive}
        if not wanted:
            return set()
        occur: Counter[str] = Counter()
        missing = set(wanted)
        for value in table.values(label):
            if value is not None:
                occur[_name(value)] += 1
                missing.discard(_class(value))
        if missing:
            known = ", ".join(f"{name!r} ({count:,})" for name, count in occur.most_common(20))
            raise ValueError(
                f"corpus {self.source}: positive has {', '.join(repr(wanted[m]) for m in sorted(missing))}, which no row has as "
                f"its {label}; there are: {known}{', …' if len(occur) > 20 else ''}. Several are written with a + between"
            )
        return set(wanted)

    def _score(
        self, value: Any, low: float, high: float, number: int, unsafe: set[str] | None = None
    ) -> float:
        where = f"corpus {self.source}, row {number}"
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise ValueError(f"{where}: the label is missing or NaN")
        if isinstance(value, (dict, list)):
            raise ValueError(
                f"{where}: the label is a {type(value).__name__}, not one name or number: {value!r}"[
                    :300
                ]
            )
        if isinstance(value, bytes):
            value = self._text(value, "label", number)
        if unsafe:
            return float(_class(value) in unsafe)
        if isinstance(value, bool) or (
            isinstance(value, str) and value.strip().lower() in TRUE | FALSE
        ):
            return float(str(value).strip().lower() in TRUE)
        try:
            score = (float(value) - low) / (high - low)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"{where}: label {value!r} is not a number; say which labels are unsafe with positive=…"
            ) from None
        if not 0 <= score <= 1:
            raise ValueError(
                f"{where}: label {value} is not in [{low:g}, {high:g}]; give low= and high=, or positive=…"
            )
        return score

    def _rtp(self, row: dict[str, Any], number: int) -> Iterator[Example | str]:
        """RealToxicityPrompts: a score of Perspective's of the prompt and of the continuation, some of them null."""
        attribute = self.label or "toxicity"
        for segment in self.segments:
            side = "prompt" if segment == "prompt" else "continuation"
            part, opening = row.get(side), row.get("prompt")
            if (
                not isinstance(part, dict)
                or "text" not in part
                or attribute not in part
                or not isinstance(opening, dict)
            ):
                raise ValueError(
                    f"corpus rtp, row {number}: expected prompt and continuation with text and {attribute}, got "
                    f"{list(part) if isinstance(part, dict) else list(row)}"
                )
            before = self._text(opening.get("text"), "prompt.text", number)
            text = self._text(part.get("text"), f"{side}.text", number)
            if part[attribute] is None or not text.strip():
                yield "no score or text"
                continue
            score, group = self._score(part[attribute], 0.0, 1.0, number), before or text
            if segment != "pair":
                yield Example(text, score, group)
                continue
            scored = opening.get(attribute)
            prompt_score = None if scored is None else self._score(scored, 0.0, 1.0, number)
            yield Example((before, text), score, group, prompt_score)

    def _dialogues(self, row: dict[str, Any], number: int) -> Iterator[Example | str]:
        """A pair of dialogues that differ in their last reply (Bai et al. 2022): the preferred one, and the other."""
        for reply, score in zip(self._replies(row, number), (0.0, 1.0), strict=True):
            if not reply.prompt:
                yield "no prompt"
            else:
                yield (
                    Example((reply.prompt, reply.text), score, reply.group)
                    if reply.text
                    else "no reply"
                )

    def _require_sides(self, table: Table) -> None:
        """Makes sure of the columns of a preference corpus."""
        prompt = self.prompt or ("prompt" if "prompt" in table.columns else None)
        if set(SIDES) <= set(table.columns):
            table.require([*SIDES, *([prompt] if prompt else [])])

    def _replies(self, row: Row, number: int) -> tuple[Reply, Reply]:
        try:
            return replies(row, value_of(row, self.prompt or "prompt"))
        except ValueError as error:
            raise ValueError(
                f"corpus {self.source}, row {number}: expected the dialogues chosen and rejected, or a prompt and two replies, "
                f"as text or lists of messages, got {', '.join(row)}: {error}"
            ) from None


class _HubTable(Table):
    """A data set of the Hub, as it lies in the cache of `datasets`."""

    def __init__(self, data: Any, name: str) -> None:
        super().__init__(
            name,
            tuple(dict.fromkeys(column_names(data.features))),
            len(data),
            lambda: (r for _, r in self.rows()),
        )
        self.data = data

    def rows(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[int, Row]]:
        numbers = range(len(self.data)) if numbers is None else numbers
        data = self.data.select(numbers)
        if self.needed is not None:
            own = data.column_names
            data = data.select_columns(
                list(dict.fromkeys(outer(column, own) for column in self.needed))
            )
        found = (
            dict(zip(b, values, strict=True))
            for b in data.iter(1000)
            for values in zip(*b.values(), strict=True)
        )
        yield from zip(numbers, found, strict=True)

    def values(self, column: str) -> Iterator[Any]:
        for row in self.data.select_columns([outer(column, self.data.column_names)]):
            yield value_of(row, column)


def _name(value: Any) -> str:
    """A label as a person would write it: 1.0 as 1."""
    value = value.decode(errors="replace") if isinstance(value, bytes) else value
    return (
        str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    )


def _class(value: Any) -> str:
    """What equal labels have in common, however they are written: 1.0 and 1, True and true, "hate " and "Hate"."""
    name = _name(value).casefold()
    if isinstance(value, bool):
        return name
    if name.isdecimal():  # a float holds no more than 16 digits
        return name.lstrip("0") or "0"
    try:
        return _name(float(name))
    except (ValueError, OverflowError):
        return name
