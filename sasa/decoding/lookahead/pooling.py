"""Running sums: what an embedding of a growing text needs of the states that have been read.

With `last` pooling that is the newest state. With `mean` and `ema` it is a sum of states and the
sum of their weights, so that a text with one candidate more costs one addition, whatever its
length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sasa.core.embedding_spec import EmbeddingSpec, layers_of


class Sums(NamedTuple):
    """All that the embeddings of B texts rest on, by S specs that look at L layers.

    Attributes:
        last: (B, d), the last layer's states at the texts' ends.
        end: (B, L, d), the specs' layers' states there.
        total: float32 (B, D), the weighted sums of the span's states, one spec's behind the
            other's; weight: (B, S), of the weights.
    """

    last: Tensor
    end: Tensor
    total: Tensor
    weight: Tensor

    def rows(self, rows: Tensor) -> Sums:
        return Sums(*(part[rows] for part in self))


class Pools:
    """The running sums of a batch of texts.

    Args:
        specs: S of them.
        rows, width: B and d; dtype and device: of the states.
        rewindable: keeps the sums of every length, so that `rewind` can go back to them.
    """

    def __init__(
        self,
        specs: Sequence[EmbeddingSpec],
        rows: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        rewindable: bool = False,
    ) -> None:
        self.specs = tuple(specs)
        self.layers = layers_of(self.specs) or (-1,)
        last = torch.zeros(rows, width, dtype=dtype, device=device)
        self._widths = [width * len(spec.layers) for spec in self.specs]
        total = torch.zeros(rows, sum(self._widths), device=device)
        weight = torch.zeros(rows, len(self.specs), device=device)
        self.now = Sums(last, last[:, None].expand(-1, len(self.layers), -1), total, weight)
        self._past: list[Sums] | None = [] if rewindable else None

    def append(self, states: Tensor, last: Tensor, read: Tensor, outside: int = 0) -> None:
        """Takes in the states of the texts' newest tokens.

        Args:
            states: (L, B, n, d); last: (B, d), the last layer's, of the newest of them.
            read: (B, n), 0 where a token is padding.
            outside: how many of them stand before the response.
        """
        n = states.shape[2]
        totals, counts = [*self.now.total.split(self._widths, 1)], [*self.now.weight.unbind(1)]
        for i, spec in enumerate(self.specs):
            if spec.pooling == "last":
                continue
            weights = read.float()
            if spec.span == "response" and outside:
                weights[:, :outside] = 0
            if spec.decay < 1 and n > 1:
                weights = weights * spec.decay ** torch.arange(n - 1, -1, -1, device=weights.device)
            own = spec.of_layers(states, self.layers).float()
            totals[i] = totals[i] * spec.decay**n + torch.einsum("bnd,bn->bd", own, weights)
            counts[i] = counts[i] * spec.decay**n + weights.sum(1)
        total, count = self.now.total, self.now.weight
        if self.specs:
            total, count = torch.cat(totals, 1), torch.stack(counts, 1)
        self.now = Sums(last, states[:, :, -1].transpose(0, 1), total, count)

    def remember(self) -> None:
        """Keeps the sums of this length of the texts, where `rewindable`."""
        if self._past is not None:
            self._past.append(self.now)

    def texts(self) -> list[Tensor]:
        """The embedding of each text as it is, float32 (B, d), for each spec."""
        found, totals = [], self.now.total.split(self._widths, 1)
        for i, spec in enumerate(self.specs):
            end = spec.of_layers(self.now.end.transpose(0, 1), self.layers).float()
            if spec.pooling != "last":
                total, count = totals[i], self.now.weight[:, i, None]
                # An empty response has no mean: what the model holds before it writes stands in.
                end = torch.where(count > 0, total / count.clamp(min=1), end)
            found.append(end)
        return found

    def extended(self, states: Tensor, rows: Tensor | None = None) -> list[Tensor]:
        """The embedding of each text with each candidate, float32 (R, K, d), for each spec.

        Args:
            states: (L, R, K, d), the candidates'.
            rows: int64 (R,), which texts they belong to; all where None.
        """
        found, totals = [], self.now.total.split(self._widths, 1)
        for i, spec in enumerate(self.specs):
            ahead = spec.of_layers(states, self.layers).float()
            if spec.pooling != "last":
                total, count = totals[i], self.now.weight[:, i]
                if rows is not None:
                    total, count = total[rows], count[rows]
                count = count[:, None, None]
                ahead = (total[:, None] * spec.decay + ahead) / (count * spec.decay + 1)
            found.append(ahead)
        return found

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, int64 (B',)."""
        self.now = self.now.rows(rows)
        if self._past is not None:
            self._past = [sums.rows(rows) for sums in self._past]

    def rewind(self, back: Tensor) -> None:
        """Goes back to the sums of `back` (B,) tokens ago."""
        assert self._past is not None
        steps = torch.arange(len(self._past), device=back.device)[:, None] - back  # (T, B)
        row = torch.arange(len(back), device=back.device)
        moved = [
            torch.stack(part)[steps.clamp(min=0), row] for part in zip(*self._past, strict=True)
        ]
        self._past = [Sums(*parts) for parts in zip(*moved, strict=True)]
        self.now = self._past[-1]

    def restart(self, rows: Tensor) -> None:
        """Leaves what was written after the prompt out of these rows' sums, int64 (R,)."""
        assert self._past is not None
        first, now = self._past[0], self.now
        total = now.total.index_copy(0, rows, first.total[rows])
        weight = now.weight.index_copy(0, rows, first.weight[rows])
        self._past[-1] = self.now = now._replace(total=total, weight=weight)
