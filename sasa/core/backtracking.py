"""Backtracking: a response that goes wrong goes back to where it was safe, and is written anew.

Two signals say that it has. The boundary's: the calibrated probability that the running text is
unsafe passes a threshold; no training is needed. The model's own: it writes [RESET], as models
trained to do so do (Zhang et al., ICLR 2025, arXiv 2409.14586); all of the response before it is
thrown away for the user, and stays in the model's context.

This file keeps the books of each row, on the host, and needs no model. A decoding loop records with
an `Observer` what it has written and what the boundaries make of it; the verdict says how far to go
back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sasa.core.boundary import Boundary
from sasa.core.settings import MAX_RESETS, THRESHOLD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESET = "[RESET]"


@dataclass(frozen=True)
class Backtracking:
    """When a response goes back, how far, and how often.

    A response goes back to its last safe point, the latest token at which every boundary held the
    text for safe, or to its start. There the token that led astray is impossible from then on, and
    beta is raised for a while.

    Attributes:
        threshold: in (0, 1): a text goes back when its calibrated P(unsafe), by any of the
            boundaries, reaches this. None: never.
        safe_below: in (0, threshold]: a point at which P(unsafe) is below this is safe; None takes
            half of the threshold.
        to_start: goes back to the start of the response and not to the last safe point.
        max_resets: of one response; then it ends with the safest of what was tried from the last
            safe point.
        max_tokens: once so many were drawn for one response, those thrown away included, it goes
            back no more; None takes four times what may be delivered.
        boost: what is added to beta after a reset, for `boost_tokens` tokens.
        reset_token_id: of [RESET], for a model that was trained to write it; reset_bias: is added
            to its logit.

    Raises:
        ValueError: a value outside its range, or neither a threshold nor a [RESET] token.
    """

    threshold: float | None = THRESHOLD
    safe_below: float | None = None
    to_start: bool = False
    max_resets: int = MAX_RESETS
    max_tokens: int | None = None
    boost: float = 2.0
    boost_tokens: int = 10
    reset_token_id: int | None = None
    reset_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.threshold is None and self.reset_token_id is None:
            raise ValueError("backtracking needs a threshold, or a model's [RESET] token, or both")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold is a probability in (0, 1), got {self.threshold}")
        if self.safe_below is not None and not 0 < self.safe_below <= (self.threshold or 1):
            raise ValueError(f"safe_below must be in (0, threshold], got {self.safe_below}")
        for name in ("max_resets", "max_tokens"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name} must be >= 1, got {number}")
        if not (math.isfinite(self.boost) and self.boost >= 0 and self.boost_tokens >= 0):
            raise ValueError(
                f"boost and boost_tokens must be >= 0, got {self.boost} and {self.boost_tokens}"
            )
        if not math.isfinite(self.reset_bias):
            raise ValueError(f"reset_bias must be finite, got {self.reset_bias}")
        if self.reset_bias and self.reset_token_id is None:
            raise ValueError(
                "reset_bias is added to the logit of [RESET]: give reset_token_id, too"
            )


def reset_token_id(tokenizer: PreTrainedTokenizerBase, token: str = RESET) -> int:
    """The id of a model's own [RESET] token. Raises ValueError where its tokenizer has none."""
    if (found := tokenizer.get_vocab().get(token)) is None:
        raise ValueError(
            f"the tokenizer has no token {token!r}: this model was not trained to write it"
        )
    return found


@dataclass(frozen=True)
class Attempt:
    """What was thrown away.

    Attributes:
        tokens: of the response when it was stopped; the first `kept` of them stayed.
        kept: to where it went back.
        p_unsafe: of the text with its last token, the greatest of the boundaries'; None without a
            boundary.
        reason: `threshold`, or `reset` where the model wrote [RESET].
        text: of the tokens, where `sasa.generate` tells.
    """

    tokens: tuple[int, ...]
    kept: int
    p_unsafe: float | None
    reason: str
    text: str = ""


@dataclass
class History:
    """A response in the making.

    Attributes:
        tokens, margins: what is delivered, and the margins (S,) of the text with each of the
            tokens.
        safe: tokens up to the last safe point. They can no longer be taken back, unless the model
            writes [RESET].
        attempts: what was thrown away.
        spent: tokens drawn, those of the attempts included.
        exhausted: the budget was spent, and what is delivered passed the threshold.
        stopped: a stopping criterion ended it.
        streamed: of the first row, how many tokens could no longer be taken back while it was
            written.
    """

    tokens: list[int] = field(default_factory=list)
    margins: list[list[float]] = field(default_factory=list)
    safe: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    spent: int = 0
    exhausted: bool = False
    stopped: bool = False
    streamed: int = 0
    boosted: int = 0
    # Tokens that led astray, by the number of tokens before them; and the failed ends (P(unsafe),
    # tokens, margins) from `safe`.
    forbidden: dict[int, set[int]] = field(default_factory=dict)
    failed: list[tuple[float, list[int], list[list[float]]]] = field(default_factory=list)


class Verdict(NamedTuple):
    """What follows from a step.

    Attributes:
        over: bool (B,), which rows of the batch have ended.
        stream: int64 (n,), the tokens that a streamer gets now.
        back: int64 (R,), how many tokens each row that is followed goes back; None where none does.
        restart: int64 (R',), of the rows that are followed, those whose response begins anew here;
            None for none.
    """

    over: Tensor
    stream: Tensor
    back: Tensor | None = None
    restart: Tensor | None = None


class Observer:
    """What a decoding loop reports to. This one changes nothing.

    Attributes:
        no_text: ids of tokens that are no text of their own, besides those that end one.
        goes_back: whether texts may go back; it then ends rows at their greatest length itself.
        histories: what became of each row, where that is more than its tokens.
    """

    no_text: tuple[int, ...] = ()
    goes_back = False
    histories: list[History] | None = None

    def logits(self, logits: Tensor) -> Tensor:
        """Logits (B, V) as the processors of a step may see and change them: a copy."""
        return logits.clone()

    def beta(self, beta: float, rows: Tensor) -> Tensor | float:
        """The strength for each of the rows int64 (R,), float32 (R, 1), or one for all."""
        return beta

    def record(
        self, rows: Tensor, tokens: Tensor, margins: Tensor, open_: Tensor, over: Tensor
    ) -> Verdict:
        """Takes down a step.

        Args:
            rows: int64 (R,), the rows of the batch that are followed.
            tokens: int64 (B,), what was written.
            margins: (R, S), of the followed rows' texts with it.
            open_: (B,), nonzero where a row had not ended before.
            over: bool (B,), where a stopping criterion holds.
        """
        return Verdict(over, tokens)

    def rest(self) -> Tensor | None:
        """What a streamer gets when all rows have ended, int64 (n,)."""
        return None


class Watch(Observer):
    """Backtracking's observer: the histories of a batch's rows, for one call of the decoder.

    Args:
        settings: when to go back.
        boundaries: S of them; any may send a text back. None at all leaves it to the model's own
            [RESET].
        rows: of the batch.
        room: tokens that a response may have.
        eos: ids that end a text; they are no text of their own and go unwatched.
        beyond: tokens that the model can read beyond prompt and response; None: no limit. The
            model's own [RESET], which takes nothing out of its context, is impossible where what
            comes after it would not fit.
        refusal: token ids that a streamer gets in place of the rest of a response on which the
            budget was spent: behind a part that it has got, and from nothing.
    """

    goes_back = True

    def __init__(
        self,
        settings: Backtracking,
        boundaries: Sequence[Boundary],
        rows: int,
        room: int,
        eos: Sequence[int],
        beyond: int | None = None,
        refusal: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> None:
        self.settings = settings
        self.refusal = refusal
        self.boundaries = boundaries
        if settings.reset_token_id is not None:  # beta must not change how often it comes
            self.no_text = (settings.reset_token_id,)
        self.room = room
        self.eos = frozenset(eos)
        self.beyond = beyond
        self.histories: list[History] = [History() for _ in range(rows)]
        self._budget = settings.max_tokens or 4 * room
        threshold = settings.threshold or 1.0
        self._safe_below = threshold / 2 if settings.safe_below is None else settings.safe_below

    def logits(self, logits: Tensor) -> Tensor:
        """A copy in which what led astray is impossible, and [RESET] has its bias."""
        logits = logits.clone()
        found = [
            (b, token)
            for b, row in enumerate(self.histories)
            for token in row.forbidden.get(len(row.tokens), ())
        ]
        reset = self.settings.reset_token_id
        if reset is not None:
            logits[:, reset] += self.settings.reset_bias
            found += [
                (b, reset)
                for b, row in enumerate(self.histories)
                if not (self._may_go_back(row) and self._fits(row))
            ]
        if found:
            rows, tokens = torch.tensor(found, device=logits.device).T
            logits[rows, tokens] = -torch.inf
        return logits

    def beta(self, beta: float, rows: Tensor) -> Tensor | float:
        boosts = [self.settings.boost * (self.histories[b].boosted > 0) for b in rows.tolist()]
        return beta + torch.tensor(boosts, device=rows.device)[:, None] if any(boosts) else beta

    def record(
        self, rows: Tensor, tokens: Tensor, margins: Tensor, open_: Tensor, over: Tensor
    ) -> Verdict:
        margins, over, written = margins.float().cpu(), over.cpu().clone(), tokens[rows]
        odds = [-b.log_odds(margins[:, i]) for i, b in enumerate(self.boundaries)]
        unsafe = torch.stack(odds).sigmoid().amax(0).tolist() if odds else [None] * len(rows)
        open_rows, back = open_.tolist(), torch.zeros(len(rows), dtype=torch.long)
        for i, (b, token, margin) in enumerate(
            zip(rows.tolist(), written.tolist(), margins.tolist(), strict=True)
        ):
            if open_rows[b]:
                back[i], ended = self._one(self.histories[b], token, margin, unsafe[i])
                # A text that was taken back has not ended.
                stopped = bool(over[b]) and not back[i] and token not in self.no_text
                self.histories[b].stopped = stopped
                over[b] = ended or stopped
        final = self._final(0)[self.histories[0].streamed :]
        self.histories[0].streamed += len(final)
        restart = None
        if (reset := self.settings.reset_token_id) is not None:
            restart = ((written == reset) & open_[rows].bool()).nonzero()[:, 0]
        return Verdict(
            over, torch.tensor(final, dtype=torch.long), back if back.any() else None, restart
        )

    def rest(self) -> Tensor | None:
        row = self.histories[0]
        left = row.tokens[row.streamed :]
        if row.exhausted and self.refusal is not None:
            left = list(self.refusal[0 if row.streamed else 1])
        return torch.tensor(left) if left else None

    def _final(self, row: int) -> list[int]:
        """What can no longer be taken back of a row's response."""
        history = self.histories[row]
        return [] if self.settings.reset_token_id is not None else history.tokens[: history.safe]

    def _may_go_back(self, row: History) -> bool:
        return len(row.attempts) < self.settings.max_resets and row.spent < self._budget

    def _fits(self, row: History) -> bool:
        """Whether a whole response has room behind one more [RESET]."""
        dropped = sum(
            len(attempt.tokens) + 1 for attempt in row.attempts if attempt.reason == "reset"
        )
        return self.beyond is None or dropped + len(row.tokens) + 1 <= self.beyond

    def _one(
        self, row: History, token: int, margins: list[float], unsafe: float | None
    ) -> tuple[int, bool]:
        threshold = self.settings.threshold
        row.spent += 1
        row.boosted -= 1
        if token == self.settings.reset_token_id:
            row.attempts.append(Attempt(tuple(row.tokens), 0, unsafe, "reset"))
            row.tokens, row.margins, row.safe, row.forbidden, row.failed = [], [], 0, {}, []
            return 0, False
        row.tokens.append(token)
        row.margins.append(margins)
        if token in self.eos or threshold is None or unsafe is None or unsafe < threshold:
            if unsafe is not None and unsafe < self._safe_below and not self.settings.to_start:
                row.safe, row.failed = len(row.tokens), []
            return 0, len(row.tokens) >= self.room
        place = row.safe
        row.failed.append((unsafe, row.tokens[place:], row.margins[place:]))
        if self._may_go_back(row):
            row.attempts.append(Attempt(tuple(row.tokens), place, unsafe, "threshold"))
            row.forbidden = {at: found for at, found in row.forbidden.items() if at <= place}
            row.forbidden.setdefault(place, set()).add(row.tokens[place])
            row.boosted = self.settings.boost_tokens
            back = len(row.tokens) - place
            del row.tokens[place:], row.margins[place:]
            return back, False
        _, tokens, kept = min(row.failed, key=lambda end: end[0])
        row.tokens[place:], row.margins[place:] = tokens, kept
        row.exhausted = True
        return 0, True
