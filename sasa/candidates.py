"""The tokens that are worth a look: survivors of top-k and top-p truncation, as padded (B, K).

Truncation itself is transformers' own; this file only gathers what it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import TopPLogitsWarper


@dataclass(frozen=True)
class Candidates:
    """ids int64 (B, K), distinct within a row, likeliest first; mask bool (B, K), False where a row has fewer than K."""

    ids: Tensor
    mask: Tensor


def check_truncation(top_k: int | None, top_p: float | None, min_p: float | None = None) -> None:
    """Raises ValueError for a limit outside its range."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0):
        raise ValueError(f"top_k must be an integer >= 0 (0: no limit), got {top_k!r}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p!r}")
    if min_p is not None and not 0.0 <= min_p <= 1.0:
        raise ValueError(f"min_p must be in [0, 1], got {min_p!r}")


def select(scores: Tensor, top_k: int | None = None, top_p: float | None = None, most: int | None = None) -> Candidates:
    """Survivors of top-k, then top-p.

    Args:
        scores: logits float (B, V); -inf marks a token that is already out.
        top_k, top_p: as in `GenerationConfig`; None (and 0 for top_k, 1.0 for top_p) sets no limit.
        most: at most how many tokens of a row are not out, where the host knows it; else the device is asked.

    Returns:
        exactly the tokens that transformers' warpers keep, ties at the k-th place included.
    """
    check_truncation(top_k, top_p)
    if top_k and top_k < scores.shape[-1] and (most is None or top_k < most):
        # Only the k likeliest go on, so that top-p sorts k values and not the vocabulary; ties with the k-th stay in.
        scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -torch.inf)
        most = None
    if most is None:
        most = max(1, int((scores > -torch.inf).sum(-1).max()))
    values, ids = scores.topk(most)
    if top_p is None or top_p >= 1.0:
        return Candidates(ids, values > -torch.inf)
    mask = TopPLogitsWarper(top_p)(cast(torch.LongTensor, ids), values) > -torch.inf
    width = max(1, int(mask.sum(-1).max()))  # the rows are sorted: survivors come first
    return Candidates(ids[:, :width], mask[:, :width])
