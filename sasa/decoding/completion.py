"""The result of `generate()`."""

from __future__ import annotations

from dataclasses import dataclass

from sasa.core.backtracking import Attempt
from sasa.decoding.tracing import TracedStep


@dataclass(frozen=True)
class Completion:
    """What the model wrote after a prompt.

    Attributes:
        text: without special tokens.
        tokens: ids, the closing EOS included.
        margin: of the whole text, as the boundary embeds it; None without a boundary. Of several,
            the first one's.
        margins: by each of the boundaries.
        finish_reason: `stop`, the model closed the text (or a stop string or criterion did);
            `length`, it was cut off; `unsafe`, backtracking's budget was spent on it.
        attempts: what backtracking threw away; spent: tokens drawn in all, these included.
        candidates_read: how many candidate tokens the boundaries looked at in all; 0 without any.
        trace: with `trace`, what each step chose among.
    """

    text: str
    tokens: list[int]
    margin: float | None
    finish_reason: str
    margins: tuple[float, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    spent: int = 0
    candidates_read: int = 0
    trace: tuple[TracedStep, ...] = ()
