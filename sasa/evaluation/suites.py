"""The prompts of benchmarks by group, from the Hub or from files of the same schema."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sasa.data.tables import Row, local, open_table, read_lines

HUB = {
    "rtp": "allenai/real-toxicity-prompts",
    "bold": "AlexaAI/bold",
    "attaq": "ibm-research/AttaQ",
}
TOXIC = 0.5
"""Prompts with at least this Perspective toxicity are toxic (Gehman et al. 2020, section 4)."""


@dataclass(frozen=True)
class Prompt:
    """A prompt: an id that is stable within its source, the text, and its group."""

    id: str
    text: str
    group: str


@dataclass(frozen=True)
class Suite:
    """A benchmark's prompts.

    Attributes:
        name: rtp, bold or attaq.
        source: where the prompts come from, for the report.
        skipped: the number of rows that were left out, by reason.
        sample: limit, groups and rows that were requested, for run.json.
    """

    name: str
    source: str
    prompts: tuple[Prompt, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    sample: Mapping[str, object] = field(default_factory=dict)


def load_suite(
    name: str,
    path: str | Path | None = None,
    *,
    limit: int | None = None,
    groups: Sequence[str] | None = None,
    rows: tuple[int, int | None] | None = None,
    seed: int = 0,
) -> Suite:
    """Reads a benchmark's prompts, and draws a sample that is stratified by group.

    Args:
        name: `rtp` (RealToxicityPrompts, Gehman et al. 2020): nontoxic, toxic and challenging.
            `bold` (Dhamala et al. 2021): groups are DOMAIN/GROUP, such as gender/American_actors.
            `attaq` (Kour et al. 2023): groups are the attack's label. Dialogues in the form of
            hh-rlhf stand in for it: their first human turns, as one group.
        path: a local file or, for bold, a file or a folder of `*_prompt.json`; None reads the Hub.
        limit: the maximum number of prompts, drawn as evenly from the groups as they allow.
        groups: only groups with these names, or with one of these before a slash.
        rows: only rows START to STOP, or to the end, of the source.
        seed: of the sample.

    Raises:
        ValueError: an unknown suite or group, a missing column (it is named), or nothing left.
        FileNotFoundError: no such file.
    """
    if name not in HUB:
        raise ValueError(f"unknown suite {name!r}; there are: {', '.join(HUB)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be >= 1, got {limit}")
    skipped: Counter[str] = Counter()
    table = _rows(name, path)
    if rows is not None:
        table = itertools.islice(table, *rows)
    read = {"rtp": _rtp, "bold": _bold, "attaq": _attaq}[name]
    source = str(path) if path else HUB[name]
    try:
        prompts = [p for place, row in table for p in read(place, row, skipped)]
    except ValueError as error:
        raise ValueError(str(error) if source in str(error) else f"{source}, {error}") from None
    known = sorted({p.group for p in prompts})
    if groups:
        if unknown := [
            g for g in groups if not any(k == g or k.startswith(f"{g}/") for k in known)
        ]:
            raise ValueError(
                f"no group {', '.join(unknown)} in this source; there are: {', '.join(known)}"
            )
        prompts = [
            p for p in prompts if any(p.group == g or p.group.startswith(f"{g}/") for g in groups)
        ]
    if not prompts:
        reasons = ", ".join(f"{count} rows {reason}" for reason, count in skipped.items())
        raise ValueError(f"no prompts in {path or HUB[name]}{': ' if reasons else ''}{reasons}")
    if rows is not None:
        source += (
            f", rows from {rows[0]}" if rows[1] is None else f", rows {rows[0]} to {rows[1] - 1}"
        )
    if any(p.group == FIRST_TURNS for p in prompts):
        source += " (first human turns in AttaQ's place)"
    sample = {
        "limit": limit,
        "groups": list(groups) if groups else None,
        "rows": list(rows) if rows else None,
    }
    return Suite(name, source, tuple(_sample(prompts, limit, seed)), dict(skipped), sample)


def _sample(prompts: list[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """At most `limit` prompts, drawn in turn from each group, in their original order."""
    if limit is None or limit >= len(prompts):
        return prompts
    draw = random.Random(seed)
    piles: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        piles.setdefault(prompt.group, []).append(prompt)
    for pile in piles.values():
        draw.shuffle(pile)
    order = sorted(piles)
    draw.shuffle(order)
    taken: set[str] = set()
    while len(taken) < limit:
        for group in order:
            if piles[group] and len(taken) < limit:
                taken.add(piles[group].pop().id)
    return [p for p in prompts if p.id in taken]


def _rows(name: str, path: str | Path | None) -> Iterator[tuple[int, Row]]:
    """Rows of the source with their numbers."""
    if path is None:
        import datasets

        split = "train" if name != "attaq" else None
        data: Any = datasets.load_dataset(HUB[name], split=split)
        data = data if split else next(iter(data.values()))
        yield from enumerate(data)
        return
    path = local(path)
    if not path.exists():
        raise FileNotFoundError(f"no prompts at {path}")
    if name == "bold":
        yield from enumerate(_bold_files(path))
        return
    if path.is_dir():
        raise ValueError(f"{path} is a folder: the suite {name} takes one file")
    table = open_table(path)
    columns = ("chosen",) if "chosen" in table.columns else ("input", "label")
    if name == "attaq" and set(columns) <= set(table.columns):
        table.require(columns)
    yield from table.rows()


def _bold_files(path: Path) -> Iterator[Row]:
    """Rows with the Hub's columns, from the files of the original release."""
    files = sorted(path.glob("*_prompt.json")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"no *_prompt.json in {path}")
    for file in files:
        domain = file.name.removesuffix("_prompt.json")
        for category, entity, prompts in _categories(file):
            yield {"domain": domain, "category": category, "name": entity, "prompts": prompts}


def _categories(file: Path) -> Iterator[tuple[str, str, list[Any]]]:
    """Category, name and prompts of one of BOLD's files: {category: {name: [prompt, …]}}."""
    content = "\n".join(line for _, line in read_lines(file))
    try:
        categories = json.loads(content)
        for category, entities in categories.items():
            for entity, prompts in entities.items():
                if not isinstance(prompts, list):
                    raise TypeError
                yield category, entity, prompts
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: expected {{category: {{name: [prompt, …]}}}} as JSON") from error


def _rtp(place: int, row: Row, skipped: Counter[str]) -> Iterator[Prompt]:
    prompt = _field(row, "prompt", place)
    text, toxicity = _field(prompt, "text", place), _field(prompt, "toxicity", place)
    if not isinstance(toxicity, (int, float)) or toxicity != toxicity:
        skipped["without a toxicity score"] += 1
    elif not isinstance(text, str) or not text.strip():
        skipped["with an empty prompt"] += 1
    else:
        group = (
            "challenging"
            if row.get("challenging")
            else "toxic"
            if toxicity >= TOXIC
            else "nontoxic"
        )
        yield Prompt(f"rtp-{place}", text, group)


def _bold(place: int, row: Row, skipped: Counter[str]) -> Iterator[Prompt]:
    group = f"{_field(row, 'domain', place)}/{_field(row, 'category', place)}"
    for number, text in enumerate(_field(row, "prompts", place)):
        if not isinstance(text, str) or not text.strip():
            skipped["with an empty prompt"] += 1
            continue
        # The release's prompts end in a space, which tokenizers put into the following word.
        yield Prompt(f"bold-{place}-{number}", text.rstrip(), group)


FIRST_TURNS = "first human turn"


def _attaq(place: int, row: Row, skipped: Counter[str]) -> Iterator[Prompt]:
    if "chosen" in row:
        text, group = _first_turn(row["chosen"]), FIRST_TURNS
    else:
        text, group = _field(row, "input", place), _field(row, "label", place)
    if not isinstance(text, str) or not text.strip():
        skipped["with an empty prompt"] += 1
        return
    if group is None:
        skipped["without a label"] += 1
        return
    yield Prompt(f"attaq-{place}", text.strip(), str(group))


def _first_turn(dialogue: Any) -> str:
    """The user's first turn of a dialogue of hh-rlhf, or of a list of messages."""
    if isinstance(dialogue, list):
        contents = (
            m.get("content") for m in dialogue if isinstance(m, dict) and m.get("role") == "user"
        )
        return str(next(contents, ""))
    match = re.match(
        r"\s*Human:(.*?)(?=\n\nAssistant:|\Z)", str(dialogue).replace("\r\n", "\n"), re.DOTALL
    )
    return match.group(1) if match else ""


def _field(row: Any, name: str, place: int) -> Any:
    if not isinstance(row, dict) or name not in row:
        have = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"row {place} has no {name!r}; it has: {have}")
    return row[name]
