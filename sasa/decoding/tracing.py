"""Tracing: what each step of decoding chose among, and why.

A decoding loop hands a `Tracer` the tensors of each step as it is made, and says when a text goes
back; what comes of it is plain Python, for people and for JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sasa.core.backtracking import Verdict
from sasa.models.embedding import pieces

BEFORE = 8
"""Tokens of a text that are decoded before a candidate, which may look different at a text's start."""


@dataclass(frozen=True)
class TracedCandidate:
    """A token that could have come next.

    Attributes:
        token, text: its id, and what it would have added to the text.
        score: its logit as temperature and other processors left it.
        p, q: its probability among the candidates, before and after reweighting.
        margins: of the text with it, by each boundary.
        value: what these count for together; shift: beta times that, which was added to the score.
    """

    token: int
    text: str
    score: float
    p: float
    q: float
    margins: tuple[float, ...]
    value: float
    shift: float


@dataclass
class TracedStep:
    """A token that was written.

    Attributes:
        place: tokens of the response before it.
        token, text: the token that was drawn. Of the tokens of one character the last has its text.
        beta: the strength there and then.
        candidates: all of them, the likeliest of the model's own first.
        kept: whether it is part of what is delivered; backtracking throws tokens away.
    """

    place: int
    token: int
    text: str
    beta: float
    candidates: tuple[TracedCandidate, ...]
    kept: bool = True

    @property
    def chosen(self) -> TracedCandidate:
        """The candidate that was drawn."""
        return next(one for one in self.candidates if one.token == self.token)

    def likeliest(self, count: int) -> list[TracedCandidate]:
        """So many of the model's own likeliest candidates, and the one that was drawn."""
        return [
            one for n, one in enumerate(self.candidates) if n < count or one.token == self.token
        ]


class Draw(NamedTuple):
    """A step of a batch: R rows that are followed, K candidates of each, S boundaries.

    Attributes:
        rows: int64 (R,), their numbers in the batch; going: bool (R,), where the text has not ended.
        tokens: int64 (R,), what was drawn.
        ids, mask: int64 and bool (R, K), the candidates; False where a row has fewer.
        scores, margins, values, shifts: (R, K), margins (R, K, S).
        beta: (R, 1), or one for all.
    """

    rows: Tensor
    going: Tensor
    tokens: Tensor
    ids: Tensor
    mask: Tensor
    scores: Tensor
    margins: Tensor
    values: Tensor
    shifts: Tensor
    beta: Tensor | float


class Tracer:
    """The traces of a batch.

    Args:
        tell: is called after each step with the traces so far, a list of steps for each row. What it
            raises ends the generation.

    Attributes:
        steps: of each row, everything that was drawn, in that order.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tell: Callable[[list[list[TracedStep]]], None] | None = None,
    ) -> None:
        self.tokenizer, self.tell = tokenizer, tell
        self.steps: list[list[TracedStep]] = []

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """A new batch: the token ids of each row's prompt."""
        self.steps = [[] for _ in prompts]
        self._before = [list(prompt)[-BEFORE:] for prompt in prompts]

    def step(self, drawn: Draw) -> None:
        """Takes down a step."""
        p = drawn.scores.masked_fill(~drawn.mask, -float("inf")).float().softmax(-1)
        q = (
            (drawn.scores + drawn.shifts)
            .masked_fill(~drawn.mask, -float("inf"))
            .float()
            .softmax(-1)
        )
        beta = (
            drawn.beta[:, 0].tolist()
            if isinstance(drawn.beta, Tensor)
            else [drawn.beta] * len(drawn.rows)
        )
        numbers = [drawn.scores, p, q, drawn.margins, drawn.values, drawn.shifts]
        columns = [column.float().tolist() for column in numbers]
        masks, ids, going = drawn.mask.tolist(), drawn.ids.tolist(), drawn.going.tolist()
        for i, (row, token) in enumerate(
            zip(drawn.rows.tolist(), drawn.tokens.tolist(), strict=True)
        ):
            if not going[i]:
                continue
            written = self._kept(row)
            before = [*self._before[row], *(step.token for step in written[-BEFORE:])][-BEFORE:]
            found = [
                TracedCandidate(
                    one,
                    pieces(self.tokenizer, before, [one])[0],
                    score,
                    p_,
                    q_,
                    tuple(margins),
                    value,
                    shift,
                )
                for there, one, score, p_, q_, margins, value, shift in zip(
                    masks[i], ids[i], *(column[i] for column in columns), strict=True
                )
                if there
            ]
            self.steps[row].append(
                TracedStep(len(written), token, "", float(beta[i]), tuple(found))
            )
            self._spell(row)
        if self.tell is not None:
            self.tell(self.steps)

    def _kept(self, row: int) -> list[TracedStep]:
        return [step for step in self.steps[row] if step.kept]

    def _spell(self, row: int) -> None:
        """Gives the newest step its text, and those before it that are parts of the same character."""
        kept = self._kept(row)
        first = len(kept) - 1
        while first and (not kept[first - 1].text or kept[first - 1].text.endswith("\ufffd")):
            first -= 1
        before = [*self._before[row], *(step.token for step in kept[:first])][-BEFORE:]
        tail = kept[first:]
        for step, text in zip(
            tail, pieces(self.tokenizer, before, [step.token for step in tail]), strict=True
        ):
            step.text = text

    def take_back(self, rows: Tensor, verdict: Verdict) -> None:
        """Marks the tokens that a verdict discards, in rows int64 (R,) of the batch."""
        if verdict.restart is not None:
            for row in rows[verdict.restart].tolist():
                self._discard(row)
        if verdict.back is not None:
            for row, count in zip(rows.tolist(), verdict.back.tolist(), strict=True):
                if count:
                    self._discard(row, count)

    def _discard(self, row: int, count: int | None = None) -> None:
        """Marks the last `count` tokens of a row as discarded; None marks all of them."""
        kept = self._kept(row)
        for step in kept[-count:] if count else kept:
            step.kept = False

    def finish(self, responses: Sequence[Sequence[int]]) -> list[tuple[TracedStep, ...]]:
        """The traces, where the token ids of what is delivered are these.

        Where backtracking's budget was spent, that ends with an attempt that was thrown away before.
        """
        for steps, tokens in zip(self.steps, responses, strict=True):
            wanted = list(tokens)
            if [step.token for step in steps if step.kept] == wanted:
                continue
            for step in steps:
                step.kept = False
            end = len(steps)
            while end and [step.token for step in _ending(steps[:end])] != wanted:
                end -= 1
            for step in _ending(steps[:end]):
                step.kept = True
        return [tuple(steps) for steps in self.steps]


def _ending(steps: Sequence[TracedStep]) -> list[TracedStep]:
    """The text that stood there after the last of these steps."""
    found: list[TracedStep] = []
    for step in steps:
        del found[step.place :]
        found.append(step)
    return found
