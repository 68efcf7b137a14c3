"""The texts that processors and stopping criteria see while backtracking takes responses back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PrefixConstrainedLogitsProcessor

from sasa.core.backtracking import History


class Constraint(LogitsProcessor):
    """A `prefix_allowed_tokens_fn` that is called for some of the rows.

    Attributes:
        rows: bool (B,), the rows; None for all.
    """

    def __init__(self, whole: PrefixConstrainedLogitsProcessor) -> None:
        self.allowed = whole._prefix_allowed_tokens_fn
        self.rows: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        numbers = range(len(input_ids)) if self.rows is None else self.rows.nonzero()[:, 0].tolist()
        one = PrefixConstrainedLogitsProcessor(lambda _, ids: self.allowed(row, ids), 1)
        scores = scores.clone()
        for row in numbers:
            scores[row] = one(input_ids[row : row + 1], scores[row : row + 1])[0]
        return scores


def with_constraints(
    processors: LogitsProcessorList,
) -> tuple[LogitsProcessorList, list[Constraint]]:
    """The processors with each `prefix_allowed_tokens_fn` as a `Constraint`, and the constraints."""
    wrapped = LogitsProcessorList(
        Constraint(p) if isinstance(p, PrefixConstrainedLogitsProcessor) else p for p in processors
    )
    return wrapped, [p for p in wrapped if isinstance(p, Constraint)]


def delivered_texts(
    prompts: Tensor,
    histories: Sequence[History],
    unfinished: Tensor,
    last: Tensor | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Prompts and delivered responses, without what was discarded, grouped by length.

    Args:
        prompts: int64 (B, T).
        histories: one per row.
        unfinished: int64 (B,), 1 where a row has not ended.
        last: int64 (B,), tokens that the histories do not contain yet.

    Returns:
        for each length of the responses, the rows of that length, bool (B,), and ids, int64
        (B, T'), to be read for these rows alone. The other rows hold some text of that length: the
        beginning of their own, or another row's.
    """
    responses = [row.tokens for row in histories]
    if last is not None:
        responses = [
            [*tokens, token] for tokens, token in zip(responses, last.tolist(), strict=True)
        ]
    lengths = torch.tensor(list(map(len, responses)), device=prompts.device)
    texts = []
    for length in sorted(set(lengths[unfinished.bool()].tolist())):
        rows = lengths == length
        one = int(rows.nonzero()[0])
        cut = [
            (tokens if len(tokens) >= length else responses[one])[:length] for tokens in responses
        ]
        before = torch.where((lengths >= length)[:, None], prompts, prompts[one])
        texts.append((rows, torch.cat([before, prompts.new_tensor(cut)], 1)))
    return texts
