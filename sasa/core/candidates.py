"""Candidates: the tokens that may come next, the order in which they can win, and which one does.

A draw from a distribution p is the argmax of p(v) / e(v), where e is exponential noise: this is how
`torch.multinomial` draws. Call log p(v) - log e(v) the *key* of v. Steering multiplies p(v) by
exp(beta * value(v)), so that the argmax of key + beta * value wins. Where values have an upper bound,
as log P(safe) has 0, no candidate can come out above its key plus that bound. So candidates are
valued a few at a time, the greatest key first, until the best sum so far is above all that the
others can reach. What wins is what would have won had all been valued: the same token from the same
seed. Greedy decoding is the same without noise.

This file is functions on tensors: no model is needed, and any engine can use it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sasa.core.settings import check_truncation

AHEAD = 64
"""Of a whole vocabulary, how many candidates are put in order at a time."""


@dataclass(frozen=True)
class Candidates:
    """What may come next: K tokens of each row, the likeliest first.

    Attributes:
        ids: int64 (B, K), distinct within a row.
        mask: bool (B, K), False where a row has fewer than K.
    """

    ids: Tensor
    mask: Tensor


def select(scores: Tensor, top_k: int | None = None, top_p: float | None = None) -> Candidates:
    """Survivors of top-k, then top-p.

    Args:
        scores: logits float (B, V); -inf marks a token that is already out.
        top_k, top_p: as in `GenerationConfig`; None (and 0 for top_k, 1.0 for top_p) sets no limit.

    Returns:
        exactly the tokens that transformers' warpers keep, ties at the k-th place included.
    """
    check_truncation(top_k, top_p)
    if top_k and top_k < scores.shape[-1]:
        # Only the k likeliest go on, so that top-p sorts k values and not the vocabulary; ties with
        # the k-th stay in.
        values, ids = scores.topk(top_k)
        least = values[:, -1:]
        most = int(((scores >= least) & (scores > -torch.inf)).sum(-1).max())
        if most > top_k:
            values, ids = scores.topk(most)
    else:
        most = max(1, int((scores > -torch.inf).sum(-1).max()))
        values, ids = scores.topk(most)
    mask = survivors(values, top_k or None, top_p)
    width = max(1, int(mask.sum(-1).max()))  # the rows are sorted: survivors come first
    return Candidates(ids[:, :width], mask[:, :width])


def survivors(scores: Tensor, top_k: Tensor | int | None, top_p: Tensor | float | None) -> Tensor:
    """Survivors of top-k, then top-p, bool (B, K), among scores float (B, K) that are sorted, the greatest first.

    Args:
        top_k: a number, or each row's own, int64 (B, 1); None, and from K on, for no limit. Ties with the k-th survive.
        top_p: a number, or each row's own, float (B, 1); None, and 1, for no limit.
    """
    mask = scores > -torch.inf
    if isinstance(top_k, Tensor):
        mask &= scores >= scores.gather(1, top_k.clamp(max=scores.shape[1]) - 1)
    elif top_k is not None and top_k < scores.shape[1]:
        mask &= scores >= scores[:, top_k - 1 : top_k]
    if isinstance(top_p, Tensor) or (top_p is not None and top_p < 1.0):
        # Summed from the least likely on, as transformers' TopPLogitsWarper sums.
        total = scores.masked_fill(~mask, -torch.inf).flip(-1).softmax(-1).cumsum(-1).flip(-1)
        within = total > 1 - top_p
        if isinstance(top_p, Tensor):
            within |= top_p >= 1  # of all, a share may be too small for a float
        mask &= within
        mask[:, 0] = True
    return mask


def noise(scores: Tensor) -> Tensor:
    """Exponential noise (B, V) for scores (B, V), as `torch.multinomial` draws it."""
    return torch.empty_like(scores).exponential_()


def keyed_noise(seeds: Tensor, places: Tensor, ids: Tensor) -> Tensor:
    """Exponential noise, float32 (B, K), that is a function of a row's seed, of the place of the token that is drawn, and
    of the candidate.

    It is the same on every machine and in every batch, whatever was drawn before: for an engine that interrupts
    requests, reads them again, and draws on several devices at once.

    Args:
        seeds, places: int64 (B,). ids: int64 (B, K), candidates.
    """
    row = _mixed(_mixed(seeds) * _GOLDEN + places)
    bits = _mixed(row[:, None] * _GOLDEN + ids)
    share = (((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) / (1 << 53)  # in (0, 1)
    return share.log().neg().float()


_GOLDEN = -7046029254386353131  # 2**64 divided by the golden ratio, odd, as a signed number


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014), on int64 that wrap around."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class Race:
    """Which candidate of each row wins, from the values of no more of them than that takes.

    Args:
        ids: int64 (R, K), candidates, the greatest key first.
        keys: float (R, K), their scores less the logarithms of their noise; -inf where a row has
            fewer.
        bound: the most that a value can add to a key, a number or (R,); None where nothing bounds
            it, so that all have to be valued, in whatever order.
        rest: float (R, V), keys of the whole vocabulary where these are but the first K of them.

    Attributes:
        read: how many candidates of each open row have been valued.
        winner: int64 (R,), the token with the greatest sum of key and value so far.
        number: int64 (R,), the place of the winner among the row's candidates.
    """

    def __init__(
        self,
        ids: Tensor,
        keys: Tensor,
        bound: Tensor | float | None = 0.0,
        rest: Tensor | None = None,
    ) -> None:
        self.ids, self.keys = ids, keys
        self.read = 0
        self._bound = torch.inf if bound is None else bound
        self._rest = rest
        self._best = keys.new_full((len(keys),), -torch.inf)
        self.winner = ids[:, 0]
        self.number = torch.zeros_like(self.winner)

    @classmethod
    def of_all(
        cls, scores: Tensor, noise: Tensor | None, bound: Tensor | float | None = 0.0
    ) -> Race:
        """Between all tokens that are not out, of scores (R, V), with noise (R, V), which is used
        up, or, greedily, without.
        """
        keys = (
            scores if noise is None else noise.log_().neg_().add_(scores)
        )  # a vocabulary for each row: no copies
        first, ids = keys.topk(min(AHEAD, keys.shape[1]))
        return cls(ids, first, bound, keys)

    @classmethod
    def among(
        cls,
        candidates: Candidates,
        scores: Tensor,
        noise: Tensor | None,
        bound: Tensor | float | None = 0.0,
    ) -> Race:
        """Between the candidates alone."""
        ids = candidates.ids
        keys = (
            scores.gather(1, ids)
            if noise is None
            else scores.gather(1, ids) - noise.gather(1, ids).log()
        )
        keys = keys.masked_fill(~candidates.mask, -torch.inf)
        if bound is not None:
            keys, order = keys.sort(-1, descending=True)
            ids = ids.gather(1, order)
        return cls(ids, keys, bound)

    @classmethod
    def won(cls, tokens: Tensor) -> Race:
        """Won already, by tokens int64 (R,): the plain draw."""
        return cls(tokens[:, None], torch.zeros(len(tokens), 1, device=tokens.device))

    def failed(self) -> Tensor:
        """Where nothing has won, bool (R,): no token is left, or keys or values are not numbers."""
        return ~(self._best > -torch.inf)

    def over(self) -> bool:
        """Whether all candidates have been valued."""
        return self.read == self.ids.shape[1] and (
            self._rest is None or self.read == self._rest.shape[1]
        )

    def open(self) -> Tensor:
        """Where a candidate that has not been valued can still win, bool (R,); not where `over`."""
        if self.read == self.ids.shape[1]:
            self._extend()
        key = self.keys[:, self.read]
        # One that is as good is read, too: of equals, the token with the lower id wins, as in
        # argmax.
        return (key > -torch.inf) & (key + self._bound >= self._best)

    def _extend(self) -> None:
        """Puts more of the vocabulary in order."""
        assert self._rest is not None
        rest = self._rest.scatter(1, self.ids, -torch.inf)
        keys, ids = rest.topk(min(AHEAD, rest.shape[1] - self.ids.shape[1]))
        self.keys, self.ids = torch.cat([self.keys, keys], 1), torch.cat([self.ids, ids], 1)

    def take(self, count: int, rows: Tensor) -> Tensor:
        """The next candidates to be valued, of rows int64 (R',).

        Returns:
            ids int64 (R', K): K is `count`, or less where none of the rows has so many left.
        """
        block = slice(self.read, self.read + count)
        left = int((self.keys[rows, block] > -torch.inf).sum(1).max())
        return self.ids[rows, block][:, : max(1, left)]

    def value(self, values: Tensor, rows: Tensor) -> None:
        """Takes in what steering adds to the keys of the candidates last taken, (R', K), of rows
        int64 (R',).
        """
        k = values.shape[1]
        block = slice(self.read, self.read + k)
        keys = torch.cat(
            [self._best[rows, None], self.keys[rows, block] + values.to(self.keys.dtype)], 1
        )
        ids = torch.cat([self.winner[rows, None], self.ids[rows, block]], 1)
        places = torch.arange(self.read, self.read + k, device=ids.device).expand(len(rows), k)
        places = torch.cat([self.number[rows, None], places], 1)
        best = keys.amax(1, keepdim=True)
        at = ids.masked_fill(keys < best, torch.iinfo(ids.dtype).max).argmin(1, keepdim=True)
        self._best = self._best.index_copy(0, rows, best[:, 0])
        self.winner = self.winner.index_copy(0, rows, ids.gather(1, at)[:, 0])
        self.number = self.number.index_copy(0, rows, places.gather(1, at)[:, 0])
        self.read += k
