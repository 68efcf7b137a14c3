"""Key-value caches that a look-ahead reads from: one of its own, or the one that `generate()`
keeps.

What a pass writes stands behind the text, in a *scratch* region, until it is committed. The next
pass may write behind it, or over it.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class TextLayer(DynamicLayer):
    """One layer's keys and values, (B, heads, length, head_dim): the text so far, and scratch
    behind.

    Layers with a sliding window keep the whole text, too: the mask cuts their view.
    """

    is_compileable = (
        True  # so that masks are always made, and no device decides whether they are needed
    )

    def __init__(self, cache: LookaheadCache) -> None:
        super().__init__()
        self.cache = cache
        self.index = len(cache.layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        return self.cache.write(0, self.index, key_states), self.cache.write(
            1, self.index, value_states
        )

    def get_seq_length(self) -> int:
        return self.cache.length


class LookaheadCache(Cache):
    """Keys and values of the texts so far, and of the candidates of a step behind them.

    Layers of one shape, which in most models is all of them, share two tensors, (layers, rows,
    heads, positions, head_dim) for keys and for values: what happens to all layers alike is one
    operation and not one a layer.

    Args:
        layers: how many layers have keys and values of their own.
        rows, positions: for how many there will be room at once; more are made as they are needed.
        apart: gives each layer tensors of its own, filled with zeros, as `Replay` wants them.

    Attributes:
        length: tokens of the texts, padding included. The scratch region begins there.
    """

    def __init__(self, layers: int, rows: int = 0, positions: int = 0, apart: bool = False) -> None:
        # Weakly, or the tensors would wait for the garbage collector.
        super().__init__(layer_class_to_replicate=functools.partial(TextLayer, weakref.proxy(self)))  # type: ignore[arg-type]
        self.depth = layers
        self.rows, self.positions, self.apart = rows, positions, apart
        self.batch = 0
        self.length = 0
        self._offset = 0
        self._rows: Tensor | None = None
        self._pools: dict[
            tuple[int, ...], Tensor
        ] = {}  # by side, and by layer where its shape is its own
        self._slots: dict[
            tuple[int, int], tuple[tuple[int, ...], int]
        ] = {}  # (side, layer) -> pool, place in it

    @contextlib.contextmanager
    def scratch(self, offset: int, rows: Tensor | None = None) -> Iterator[None]:
        """Inside, passes write `offset` positions behind the texts, and are of some rows only,
        int64 (R,).
        """
        self._offset, self._rows = offset, rows
        try:
            yield
        finally:
            self._offset, self._rows = 0, None

    def write(self, side: int, layer: int, states: Tensor) -> Tensor:
        """Writes a pass's keys (side 0) or values (1), (R, heads, n, head_dim); all up to them, (R,
        heads, …, head_dim).
        """
        start = self.length + self._offset
        end = start + states.shape[2]
        if self._rows is None:
            self.batch = len(states)
            whole = self._room(side, layer, states, end)[:, :, :end]
            whole[:, :, start:] = states
            return whole
        room = self._room(side, layer, states, end)
        room[self._rows, :, start:end] = states
        return room[:, :, :end].index_select(0, self._rows)

    def _room(self, side: int, layer: int, states: Tensor, end: int) -> Tensor:
        """A layer's buffer (B, heads, positions, head_dim), with `end` positions or more."""
        _, heads, _, width = states.shape
        if (side, layer) not in self._slots:
            shared = self._pools.get((side,))
            alike = not self.apart and (
                shared is None
                or (
                    layer < len(shared)
                    and (heads, width, states.dtype, states.device)
                    == (shared.shape[2], shared.shape[4], shared.dtype, shared.device)
                )
            )
            self._slots[side, layer] = (
                ((side,), layer) if alike and layer < self.depth else ((side, layer), 0)
            )
        key, place = self._slots[side, layer]
        pool = self._pools.get(key)
        if pool is None or pool.shape[3] < end:
            # By a quarter: few copies, little waste. Where the texts fit, only scratch is missing.
            larger_by = 16 if self.length < self.positions else end // 4 + 64
            positions = max(self.positions, end) if pool is None else end + larger_by
            rows = max(self.rows, self.batch) if pool is None else pool.shape[1]
            larger = (states.new_zeros if self.apart else states.new_empty)(
                self.depth if len(key) == 1 else 1, rows, heads, positions, width
            )
            if pool is not None:
                larger[:, :, :, : pool.shape[3]] = pool
            self._pools[key] = pool = larger
        return pool[place, : self.batch]

    def buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer with all their room, (B, heads, positions, head_dim)."""
        return [
            (self._pools[key][i, : self.batch], self._pools[value][j, : self.batch])
            for (key, i), (value, j) in (
                (self._slots[0, n], self._slots[1, n]) for n in range(self.depth)
            )
        ]

    @property
    def nbytes(self) -> int:
        """Memory of all buffers, in bytes."""
        return sum(pool.nbytes for pool in self._pools.values())

    def commit(self, tokens: int) -> None:
        """Makes the first `tokens` positions of the scratch region part of the texts."""
        self.length += tokens

    def move(self, offset: Tensor, layers: int | None = None) -> None:
        """Moves what stands `offset` (B,) positions behind the texts to their ends, in the first
        layers or in all.
        """
        row = torch.arange(len(offset), device=offset.device)
        for (_, *own), pool in self._pools.items():
            if not own:
                pool = pool[:layers]
            elif layers is not None and own[0] >= layers:
                continue
            # Of the row and the position, (B, layers, heads, head_dim): indices apart from each
            # other come first.
            pool[:, : self.batch, :, self.length] = pool[:, row, :, self.length + offset].transpose(
                0, 1
            )

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, int64 (B',), in place where they move one way only, as they do
        when some leave.
        """
        order = rows.tolist()
        down = all(row >= i for i, row in enumerate(order))
        up = all(row <= i for i, row in enumerate(order))
        for key, pool in self._pools.items():
            if len(order) > pool.shape[1] or not (down or up):
                self._pools[key] = pool[:, rows]
                continue
            moves = [(i, row) for i, row in enumerate(order) if i != row]
            for i, row in moves if down else reversed(moves):
                pool[:, i, :, : self.length] = pool[:, row, :, : self.length]
        self.batch = len(order)

    def rewind(self, back: Tensor) -> None:
        """Drops the last entries of each row, int64 (B,) of them, and moves the others to the end."""
        for row, gone in enumerate(back.tolist()):
            if gone:
                for pool in self._pools.values():
                    pool[:, row, :, gone : self.length] = pool[
                        :, row, :, : self.length - gone
                    ].clone()


class BorrowedLayer(DynamicLayer):
    """One layer of another cache: a pass attends to it and to what the pass itself reads, and
    leaves nothing behind.
    """

    is_compileable = True  # see TextLayer

    def __init__(self, cache: BorrowedCache, index: int) -> None:
        super().__init__()
        self.cache = cache
        self.index = index

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        lent: Any = self.cache.owner.layers[self.index]
        return torch.cat([lent.keys, key_states], 2), torch.cat([lent.values, value_states], 2)

    def get_seq_length(self) -> int:
        return self.cache.length


class BorrowedCache(Cache):
    """The keys and values that a running `generate()` keeps, to look ahead from without a copy of
    them.

    It does not keep them alive. What can be borrowed holds whole texts where the model is: see
    `can_borrow`.
    """

    def __init__(self, owner: Cache) -> None:
        self._owner = weakref.ref(owner)
        borrowed: Any = weakref.proxy(self)
        super().__init__(
            layers=[BorrowedLayer(borrowed, index) for index in range(len(owner.layers))]
        )

    @staticmethod
    def can_borrow(cache: Cache) -> bool:
        """Whether a cache can be borrowed from: not with sliding windows, quantized, static or
        offloaded layers.
        """
        return not getattr(cache, "offloading", False) and all(
            type(layer) is DynamicLayer for layer in cache.layers
        )

    @property
    def owner(self) -> Cache:
        owner = self._owner()
        assert owner is not None, "the generation whose cache was borrowed has ended"
        return owner

    @property
    def length(self) -> int:
        return self.owner.get_seq_length()

    @contextlib.contextmanager
    def scratch(self, offset: int, rows: Tensor | None = None) -> Iterator[None]:
        """As in `LookaheadCache`, of all rows and right behind the texts: nothing that a pass
        writes stays.
        """
        assert not offset
        assert rows is None
        yield

    def commit(self, tokens: int) -> None:
        """Nothing is written here: the owner's own passes make texts longer."""
        assert not tokens
