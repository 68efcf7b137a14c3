"""Labelled sources -> a stream of examples: Hub data sets and CSV, JSONL or Parquet files, all through `datasets`.

It knows columns and labels; it knows nothing about models.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import datasets

from sasa.boundary import Text

FILE_KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
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
    """A prompt, the reply to it that people preferred, and the one that they rejected."""

    prompt: str
    safe: str
    unsafe: str


@dataclass(frozen=True)
class Corpus:
    """A labelled source, and how its labels are read.

    Attributes:
        source: `jigsaw`, `rtp`, `toxigen` or `hh-rlhf` (pairs of dialogues: the reply that people preferred is safe, the other
            one is not), from the Hub or, with `path`, from a file in the same schema; or a CSV, JSONL or Parquet file; or a
            Hub data set `owner/name`. The last two need `text` and `label`.
        path: the file of a named source.
        text, label: column names, with dots for nested ones. Of `rtp`, label is the attribute: `toxicity`, or `threat`, `insult`,
            `sexually_explicit`, … as Perspective scored them.
        prompt: the column of prompts, where the text is a response to one.
        by: a column whose values divide the texts, such as the group of people that they are about, for `sasa selectivity`.
        positive: label values that mean unsafe, where labels are names or class numbers; all others mean safe.
        low, high: the label's range where it is a number: it is mapped onto [0, 1].
        unsafe_from: scores at or above are unsafe.
        safe_below: scores below are safe; between the two lies the grey zone, which is left out. None: no grey zone.
        rows: `START:STOP`, a slice of the source.
        limit: at most so many rows, drawn at random.
        split, config: of a Hub data set; of `hh-rlhf` its folder, `harmless-base`.
        segments: of `rtp`: which texts of a row, of `prompt`, `continuation` and `pair` (the continuation as a response).
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

    def __post_init__(self) -> None:
        if self.source == "diasafety":
            columns = {"text": "response", "label": "label", "prompt": "context", "positive": ("Unsafe",)}
            for name, value in columns.items():
                object.__setattr__(self, name, getattr(self, name) or value)
        for name in ("positive", "segments"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(str(v) for v in value))
        if not 0 < self.unsafe_from <= 1:
            raise ValueError(f"unsafe_from must be in (0, 1], got {self.unsafe_from}")
        if self.safe_below is not None and not 0 < self.safe_below <= self.unsafe_from:
            raise ValueError(f"safe_below must be in (0, unsafe_from={self.unsafe_from}], got {self.safe_below}")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1, got {self.limit}")
        unknown = set(self.segments) - set(SEGMENTS)
        if unknown or not self.segments:
            raise ValueError(
                f"segments must be some of {', '.join(SEGMENTS)}, got {', '.join(self.segments) or 'none'}"
            )

    @classmethod
    def parse(cls, text: str) -> Corpus:
        """From one argument of the command line: `SOURCE[::name=value,…]`, lists with `+`.

        For example `rtp::path=prompts.jsonl,rows=0:3000` or `tweets.csv::text=tweet,label=class,positive=0+1`.
        """
        source, _, settings = text.partition("::")
        values: dict[str, Any] = {}
        kinds = {f.name: str(f.type) for f in fields(cls)}
        for setting in filter(None, settings.split(",")):
            name, equals, value = setting.partition("=")
            if not equals or name not in kinds or name == "source":
                allowed = ", ".join(n for n in kinds if n != "source")
                raise ValueError(f"{setting!r} in {text!r}: expected name=value with a name of: {allowed}")
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
        return 1 if score < (self.unsafe_from if self.safe_below is None else self.safe_below) else None

    def examples(self, seed: int = 0, skipped: Counter[str] | None = None) -> Iterator[Example]:
        """The examples in a fixed order; `skipped` counts, by reason, the rows that a source is known to leave empty.

        Raises:
            FileNotFoundError, ValueError: no such file, a missing column, or a label that is missing, NaN or out of range;
                the message names the source, the row and what is allowed.
        """
        skipped = Counter() if skipped is None else skipped
        table, numbers = self._open(seed)
        readers = {"rtp": self._rtp, "hh-rlhf": self._dialogues}
        read = readers[self.source] if self.source in readers else self._plain(table)
        for number, row in zip(numbers, _rows(table), strict=True):
            for example in read(row, number):
                if isinstance(example, Example):
                    yield example
                else:
                    skipped[example] += 1

    def pairs(self, skipped: Counter[str], seed: int = 0) -> Iterator[Pair]:
        """Pairs of replies to the same prompt, of dialogues in the schema of hh-rlhf; `skipped` counts others by reason.

        Raises:
            FileNotFoundError, ValueError: as `examples`, and for a source of another kind.
        """
        if self.source != "hh-rlhf":
            raise ValueError(f"corpus {self.source} has no pairs: give hh-rlhf, or hh-rlhf::path=FILE in its schema")
        table, numbers = self._open(seed)
        for number, row in zip(numbers, _rows(table), strict=True):
            safe, unsafe = self._dialogues(row, number)
            if isinstance(safe, str) or isinstance(unsafe, str):
                skipped["with an empty reply"] += 1
            elif safe.text[0] != unsafe.text[0]:
                skipped["with two prompts"] += 1
            elif safe.text == unsafe.text:
                skipped["with the same reply twice"] += 1
            else:
                yield Pair(safe.text[0], safe.text[1], unsafe.text[1])

    # --- readers ---------------------------------------------------------------------------------------------

    def _open(self, seed: int) -> tuple[datasets.Dataset, Sequence[int]]:
        """The rows to read, and their numbers in the source."""
        hub = {
            "jigsaw": ("google/civil_comments", None),
            "rtp": ("allenai/real-toxicity-prompts", None),
            "hh-rlhf": ("Anthropic/hh-rlhf", "harmless-base"),
            "toxigen": ("toxigen/toxigen-data", "annotated"),
            "diasafety": ("thu-coai/diasafety", None),
        }
        file = self.path if self.source in hub else self.source
        plain_name = str(file).removesuffix(".gz").removesuffix(".zst")
        kind = FILE_KINDS.get(Path(plain_name).suffix)
        if file is not None and (kind or Path(file).exists()):
            if not Path(file).expanduser().is_file():
                raise FileNotFoundError(f"corpus {self.source}: no file at {file}")
            if kind is None:
                raise ValueError(f"corpus {file}: expected one of {', '.join(FILE_KINDS)}")
            options = {"sep": "\t"} if plain_name.endswith(".tsv") else {}
            try:
                table = datasets.load_dataset(kind, data_files=str(Path(file).expanduser()), split="train", **options)
            except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
                raise ValueError(
                    f"corpus {file} is empty or cannot be read as {kind}: {error.__cause__ or error}"
                ) from error
        else:
            name, config = hub.get(self.source, (self.source, None))
            try:
                where = {"data_dir" if self.source == "hh-rlhf" else "name": self.config or config}
                table = datasets.load_dataset(name, split=self.split, **where)
            except Exception as error:  # the Hub's errors are of a dozen types, and none says what to do instead
                raise FileNotFoundError(
                    f"corpus {self.source}: not a file here, and the Hub's {name!r} cannot be had ({error}). "
                    f"Give a file: {self.source}::path=FILE"
                    if self.source in hub
                    else f"corpus {self.source}: not a file here, and the Hub has no data set of that name ({error})"
                ) from error
        numbers: Sequence[int] = range(len(table))
        if self.rows:
            try:
                numbers = numbers[slice(*parse_rows(self.rows))]
            except ValueError as error:
                raise ValueError(f"corpus {self.source}: {error}") from None
            if not len(numbers):
                raise ValueError(f"corpus {self.source}: rows {self.rows} is empty, there are {len(table)} rows")
        if self.limit and self.limit < len(numbers):
            numbers = sorted(random.Random(seed).sample(numbers, self.limit))
        if not len(numbers):
            raise ValueError(f"corpus {self.source} is empty")
        return table.select(numbers), numbers

    def _plain(self, table: datasets.Dataset) -> Callable[[dict[str, Any], int], Iterator[Example | str]]:
        """A reader of one row: examples, or the reason why there is none."""
        text, label, low, high = self.text, self.label, self.low, self.high
        columns = table.column_names
        if self.source == "jigsaw":  # Kaggle 2018, Kaggle 2019, Civil Comments
            text = text or next((c for c in ("comment_text", "text") if c in columns), "comment_text")
            label = label or next((c for c in ("toxic", "target", "toxicity") if c in columns), "toxic")
        elif self.source == "toxigen":
            text, label = text or "text", label or "toxicity_human"
            low, high = (1.0, 5.0) if (low, high) == (0.0, 1.0) else (low, high)
        if not text or not label:
            raise ValueError(f"corpus {self.source}: name its text and label columns; it has {', '.join(columns)}")
        for column in filter(None, (text, label, self.prompt, self.by)):
            if column.split(".")[0] not in columns:
                raise ValueError(f"corpus {self.source} has no column {column!r}; it has {', '.join(columns)}")

        def read(row: dict[str, Any], number: int) -> Iterator[Example | str]:
            content, value = _get(row, text), _get(row, label)
            if not isinstance(content, str):
                content = "" if content is None else str(content)
            score = self._score(value, low, high, number)
            if not content.strip():
                yield "empty text"
                return
            prompt = str(_get(row, self.prompt) or "")
            part = _name(_get(row, self.by)) if self.by else None
            yield Example((prompt, content) if self.prompt else content, score, prompt or content, by=part)

        return read

    def _score(self, value: Any, low: float, high: float, number: int) -> float:
        where = f"corpus {self.source}, row {number}"
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise ValueError(f"{where}: the label is missing or NaN")
        if self.positive:
            return float(_name(value) in self.positive)
        if isinstance(value, str) and value.strip().lower() in TRUE | FALSE:
            return float(value.strip().lower() in TRUE)
        try:
            score = (float(value) - low) / (high - low)
        except (TypeError, ValueError):
            raise ValueError(
                f"{where}: label {value!r} is not a number; say which labels are unsafe with positive=…"
            ) from None
        if not 0 <= score <= 1:
            raise ValueError(
                f"{where}: label {value!r} is not in [{low:g}, {high:g}]; give low= and high=, or positive=…"
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
            if part[attribute] is None or not (part["text"] or "").strip():
                yield "no score or text"
                continue
            score, group = self._score(part[attribute], 0.0, 1.0, number), opening["text"] or part["text"]
            if segment != "pair":
                yield Example(part["text"], score, group)
                continue
            before = opening.get(attribute)
            prompt_score = None if before is None else self._score(before, 0.0, 1.0, number)
            yield Example((opening["text"] or "", part["text"]), score, group, prompt_score)

    def _dialogues(self, row: dict[str, Any], number: int) -> Iterator[Example | str]:
        """A pair of dialogues that differ in their last reply (Bai et al. 2022): the preferred one, and the other."""
        sides = [("chosen", 0.0), ("rejected", 1.0)]
        if not all(isinstance(row.get(side), str) for side, _ in sides):
            raise ValueError(
                f"corpus hh-rlhf, row {number}: expected the dialogues chosen and rejected, got {list(row)}"
            )
        for side, score in sides:
            prompt, turn, reply = row[side].strip().rpartition("\n\nAssistant:")
            if not turn or not reply.strip():
                yield "no reply"
                continue
            yield Example((prompt + turn, reply), score, prompt.partition(turn)[0])


def _rows(table: datasets.Dataset) -> Iterator[dict[str, Any]]:
    for batch in table.iter(batch_size=1000):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _get(row: dict[str, Any], column: str | None) -> Any:
    value: Any = row
    for part in (column or "").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _name(value: Any) -> str:
    """A label as a person would write it: 1.0 as 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
