"""Rows of a table -> examples, or pairs of replies; a row without one gives the reason instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from sasa.data.cells import label_name, score_of, text_of, unsafe_classes
from sasa.data.dialogues import SIDES, Reply, replies
from sasa.data.examples import Example, Pair
from sasa.data.tables import Row, Table, value_of

T = TypeVar("T")

UNREAD = "cannot be read"
"""The reason for rows that a file with `bad_rows=skip` leaves out."""

ExampleReader: TypeAlias = Callable[[Row, int], Iterator[Example | str]]
"""Reads a row with its number: examples, and reasons for those that are missing."""


def read_rows(
    table: Table,
    numbers: Sequence[int],
    read: Callable[[Row, int], Iterator[T | str]],
    skipped: Counter[str],
) -> Iterator[T]:
    """What `read` makes of some rows; `skipped` counts what is left out, by reason."""
    if lost := table.lost(numbers):
        skipped[UNREAD] += lost
    for number, row in table.rows(numbers):
        for item in read(row, number):
            if isinstance(item, str):
                skipped[item] += 1
            else:
                yield item


@dataclass(frozen=True)
class Columns:
    """The columns of a table of labelled texts.

    Attributes:
        text, label, prompt, by: names of columns, None for no such column.
        low, high: the range of a label that is a number.
        positive: labels that mean unsafe, if labels are names.
    """

    text: str
    label: str
    prompt: str | None
    by: str | None
    low: float
    high: float
    positive: tuple[str, ...]


def column_reader(table: Table, columns: Columns) -> ExampleReader:
    """A reader of rows with a text and a label each.

    Raises:
        ValueError: a column is missing, or an unsafe label never occurs.
    """
    text, label, prompt, by = columns.text, columns.label, columns.prompt, columns.by
    table.require([column for column in (text, label, prompt, by) if column])
    unsafe = unsafe_classes(table, label, columns.positive)

    def read(row: Row, number: int) -> Iterator[Example | str]:
        where = f"{table.name}, row {number}"
        content = text_of(value_of(row, text), text, where)
        score = score_of(value_of(row, label), where, columns.low, columns.high, unsafe)
        if not content.strip():
            yield "empty text"
            return
        opening = text_of(value_of(row, prompt), prompt, where) if prompt else ""
        part = label_name(text_of(value_of(row, by), by, where)) if by else ""
        whole = (opening, content) if prompt else content
        yield Example(whole, score, opening or content, by=part or None)

    return read


def rtp_reader(attribute: str, segments: Sequence[str]) -> ExampleReader:
    """A reader of RealToxicityPrompts: Perspective scored prompt and continuation, not all of them.

    Args:
        attribute: which of Perspective's scores.
        segments: which texts of a row, see `Corpus`.
    """

    def read(row: Row, number: int) -> Iterator[Example | str]:
        where = f"corpus rtp, row {number}"
        for segment in segments:
            side = "prompt" if segment == "prompt" else "continuation"
            part, prompt = row.get(side), row.get("prompt")
            if (
                not isinstance(part, dict)
                or not {"text", attribute} <= part.keys()
                or not isinstance(prompt, dict)
            ):
                raise ValueError(
                    f"{where}: expected prompt and continuation with text and {attribute}, got "
                    f"{list(part) if isinstance(part, dict) else list(row)}"
                )
            opening = text_of(prompt.get("text"), "prompt.text", where)
            text = text_of(part.get("text"), f"{side}.text", where)
            if part[attribute] is None or not text.strip():
                yield "no score or text"
                continue
            score, group = score_of(part[attribute], where), opening or text
            if segment != "pair":
                yield Example(text, score, group)
                continue
            scored = prompt.get(attribute)
            prompt_score = None if scored is None else score_of(scored, where)
            yield Example((opening, text), score, group, prompt_score)

    return read


def dialogue_reader(table: Table, prompt: str | None) -> ExampleReader:
    """A reader of dialogues that differ in their last reply, the preferred one safe (Bai et al.
    2022).

    Args:
        prompt: the column of prompts; None for `prompt`, if there is such a column.
    """
    require_sides(table, prompt)

    def read(row: Row, number: int) -> Iterator[Example | str]:
        for reply, score in zip(_replies(table, prompt, row, number), (0.0, 1.0), strict=True):
            if not reply.prompt:
                yield "no prompt"
            elif not reply.text:
                yield "no reply"
            else:
                yield Example((reply.prompt, reply.text), score, reply.group)

    return read


def pair_reader(table: Table, prompt: str | None) -> Callable[[Row, int], Iterator[Pair | str]]:
    """A reader of a preferred and a rejected reply to the same prompt.

    Args:
        prompt: as for `dialogue_reader`.
    """
    require_sides(table, prompt)

    def read(row: Row, number: int) -> Iterator[Pair | str]:
        safe, unsafe = _replies(table, prompt, row, number)
        if not safe.prompt or not unsafe.prompt:
            yield "without a prompt"
        elif not safe.text or not unsafe.text:
            yield "with an empty reply"
        elif (safe.prompt, safe.turns) != (unsafe.prompt, unsafe.turns):
            yield "with two prompts"
        elif safe.text == unsafe.text:
            yield "with the same reply twice"
        else:
            yield Pair(safe.prompt, safe.text, unsafe.text, safe.turns)

    return read


def require_sides(table: Table, prompt: str | None) -> None:
    """Makes sure of the columns of preference data, in every row, if the table has them."""
    column = prompt or ("prompt" if "prompt" in table.columns else None)
    if set(SIDES) <= set(table.columns):
        table.require([*SIDES, *([column] if column else [])])


def _replies(table: Table, prompt: str | None, row: Row, number: int) -> tuple[Reply, Reply]:
    try:
        return replies(row, value_of(row, prompt or "prompt"))
    except ValueError as error:
        raise ValueError(
            f"{table.name}, row {number}: expected the dialogues chosen and rejected, or a prompt "
            f"and two replies, as text or lists of messages, got {', '.join(row)}: {error}"
        ) from None
