"""Ways to read candidates: side by side in one pass, side by side in a compiled one, or one by one.

Each is a reader, with one `read`: tokens that the texts have gained, and candidates, go in; hidden
states come out. Nothing here pools states or measures margins.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from sasa.decoding.lookahead.cache import LookaheadCache
from sasa.decoding.lookahead.masks import side_by_side
from sasa.decoding.lookahead.replay import Replay
from sasa.decoding.lookahead.texts import Texts
from sasa.models.parts import first_layers, last_layers
from sasa.models.skinny import skinny_linears
from sasa.models.states import cache_name, hidden_states, numbered, positions

CHUNK = 512
"""Candidates of a row in one pass, and of a step in the scratch region behind its text."""
REREAD_TOKENS = 8192
"""Padded tokens in one pass of the re-reading path."""
COMPILED_ROOM = 64
"""Candidates of a row and step that a compiled reader keeps in its cache; more write over them."""

_spare: weakref.WeakKeyDictionary[PreTrainedModel, tuple[Any, Any, Replay]] = (
    weakref.WeakKeyDictionary()
)


class States(NamedTuple):
    """Hidden states of tokens: (L, B, n, d) of L layers, and (B, n, d) of the last layer that has
    run.
    """

    layers: Tensor
    last: Tensor


class Reader(Protocol):
    """One way of reading.

    Attributes:
        width: candidates of a row that one pass takes.
        capacity: candidates of a row and step that can still be committed; 0 where none ever is.
        joint: whether new tokens and candidates can go into one pass.
        nbytes: memory of its cache.
    """

    width: int
    capacity: int
    joint: bool

    @property
    def nbytes(self) -> int: ...

    def read(
        self,
        texts: Texts,
        new: int,
        candidates: Tensor,
        offset: int = 0,
        rows: Tensor | None = None,
    ) -> tuple[States, States]:
        """Reads the last `new` tokens of the texts, which become part of the cache, and candidates.

        Args:
            candidates: int64 (R, K), K >= 0.
            offset: candidates of this step that were read before.
            rows: int64 (R,), which texts the candidates belong to; all where None. Only with new =
                0.

        Returns:
            the states of the new tokens, and of the candidates.
        """

    def commit(self, texts: Texts, offset: Tensor, last: Tensor) -> Tensor:
        """Makes the candidates at `offset` (B,) of this step, whose `last` (B, d) `read` gave, part
        of the cache.

        Returns:
            their states (B, d) of the model's last layer.
        """

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, int64 (B',)."""

    def rewind(self, back: Tensor) -> None:
        """Drops the last tokens of each row, int64 (B,) of them."""

    def release(self) -> None:
        """Ends the reading."""


class PackedReader:
    """Candidates side by side behind one cache, in one pass.

    Layers above those that embeddings come from say nothing about a candidate. Where the model
    comes apart there, candidates are read by the layers below, and `commit` has the chosen one
    alone read by the rest.

    Args:
        layers: that embeddings come from.
        cache: one to use, or to borrow from; one of its own where None, with room for `rows` and
            `positions`.
        margins_only: whether nothing is ever committed: the layers above need not run at all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int],
        cache: Any = None,
        margins_only: bool = False,
        rows: int = 0,
        positions: int = 0,
    ) -> None:
        self.model, self.layers = model, tuple(layers)
        self.margins_only = margins_only
        self.top = max(numbered(model, self.layers))
        lower = first_layers(model, self.top)
        self.upper = None if lower is None or margins_only else last_layers(model, self.top)
        # Without the upper layers alone, a candidate's keys and values in them must come from the
        # same pass.
        self.lower = lower if margins_only or self.upper is not None else None
        self.joint = self.upper is None
        if cache is None:
            depth = (
                cached_layers(model)
                if self.lower is None or self.upper
                else min(cached_layers(model), self.top)
            )
            cache = LookaheadCache(depth, rows, positions)
        self.cache = cache
        self.capacity = 0 if margins_only else CHUNK
        self.width = CHUNK

    def read(
        self,
        texts: Texts,
        new: int,
        candidates: Tensor,
        offset: int = 0,
        rows: Tensor | None = None,
    ) -> tuple[States, States]:
        k, length = candidates.shape[1], self.cache.length
        assert not (new and k) or self.joint
        mask = texts.mask(length + new + 1)
        if rows is not None:
            mask = mask[rows]
        place = positions(mask)[:, length:]
        tokens = (
            torch.cat([texts.ids[:, length : length + new], candidates], 1) if new else candidates
        )
        with self.cache.scratch(offset, rows), skinny_linears(self.model):
            states = States(
                *hidden_states(
                    self.model,
                    tokens,
                    self.layers,
                    lower=self.lower if k or self.margins_only else None,
                    # Without candidates it is ordinary reading, which needs no mask of ours.
                    attention_mask=side_by_side(
                        self.model, self.cache, mask, new, k, length + new + offset
                    )
                    if k
                    else mask[:, :-1],
                    position_ids=torch.cat([place[:, :new], place[:, new:].expand(-1, k)], 1),
                    cache=self.cache,
                )
            )
        self.cache.commit(new)
        return _split(states, new)

    def commit(self, texts: Texts, offset: Tensor, last: Tensor) -> Tensor:
        if self.upper is None:
            self.cache.move(offset)
        else:
            self.cache.move(offset, self.top)
            mask = texts.mask(self.cache.length + 1)
            with skinny_linears(self.model):
                read = self.upper(
                    inputs_embeds=last[:, None],
                    attention_mask=side_by_side(self.model, self.cache, mask, 0, 1),
                    position_ids=positions(mask)[:, -1:],
                    use_cache=True,
                    **{cache_name(self.upper): self.cache},
                )
            last = read.last_hidden_state[:, 0]
        self.cache.commit(1)
        return last

    @property
    def nbytes(self) -> int:
        return int(self.cache.nbytes)

    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)

    def rewind(self, back: Tensor) -> None:
        self.cache.rewind(back)

    def release(self) -> None:
        pass


class CompiledReader:
    """Candidates side by side in one compiled graph, whose shapes and addresses never change.

    Every row takes part in every pass, for another number of rows would be another graph.

    Args:
        rows: B; they stay.
        positions: of the longest text. Room for the candidates comes on top of these.
        width: candidates of a row in one pass; fewer are filled up.
    """

    joint = False

    def __init__(
        self, model: PreTrainedModel, layers: Sequence[int], rows: int, positions: int, width: int
    ) -> None:
        self.model, self.layers, self.width = model, tuple(layers), width
        self.capacity = max(width, COMPILED_ROOM)
        self._room = self.capacity + width  # a pass with fewer candidates is filled up
        self._shape = (rows, positions, width, model.device, model.dtype)
        self._replay: Replay | None = None
        if (spare := _spare.pop(model, None)) and spare[0] == self._shape:
            _, self.cache, self._replay = spare
            self.cache.length = 0
            self._replay.settle()
        else:
            self.cache = LookaheadCache(
                cached_layers(model), rows, positions + self._room, apart=True
            )
        self._ordinary = PackedReader(model, layers, self.cache)

    def read(
        self,
        texts: Texts,
        new: int,
        candidates: Tensor,
        offset: int = 0,
        rows: Tensor | None = None,
    ) -> tuple[States, States]:
        if new:
            if self._replay is not None:
                self._replay.settle()
            return self._ordinary.read(texts, new, candidates)
        if self._replay is None:
            self._replay = Replay(self.cache.buffers(), self.width, self._room)
        replay, k, length = self._replay, candidates.shape[1], self.cache.length
        mask = texts.mask(length + 1)
        place = positions(mask)[:, length:].repeat(1, self.width)
        ids = pad(candidates, (0, self.width - k))
        if rows is not None:
            ids = ids.new_zeros(len(mask), self.width).index_copy(0, rows, ids)
        masks = side_by_side(
            self.model, self.cache, mask, 0, self.width, replay.first + offset, replay.positions
        )
        states, last = replay.read(self.model, self.layers, ids, masks, place, offset)
        if rows is not None:
            states, last = states[:, rows], last[rows]
        return _split(States(states[:, :, :k], last[:, :k]), 0)

    def commit(self, texts: Texts, offset: Tensor, last: Tensor) -> Tensor:
        assert self._replay is not None
        self._replay.commit(offset, self.cache.length)
        self.cache.commit(1)
        return last

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)

    def rewind(self, back: Tensor) -> None:
        raise NotImplementedError("a compiled look-ahead does not go back")

    def release(self) -> None:
        """Leaves the memory, whose addresses are recorded in the graph, for the model's next
        reader.
        """
        if self._replay is not None:
            _spare[self.model] = self._shape, self.cache, self._replay


class RereadingReader:
    """Candidates one by one, each from a pass over its whole text: for models that take none side
    by side.
    """

    joint = True

    def __init__(
        self, model: PreTrainedModel, layers: Sequence[int], margins_only: bool = False
    ) -> None:
        self.model, self.layers = model, tuple(layers)
        self.lower = (
            first_layers(model, max(numbered(model, self.layers))) if margins_only else None
        )
        self.capacity = 1 << 62  # nothing is overwritten, for nothing is kept
        self.width = CHUNK

    def read(
        self,
        texts: Texts,
        new: int,
        candidates: Tensor,
        offset: int = 0,
        rows: Tensor | None = None,
    ) -> tuple[States, States]:
        ids, mask, k = texts.ids, texts.mask(texts.length + 1), candidates.shape[1]
        if rows is not None:
            ids, mask = ids[rows], mask[rows]
        found = []
        if new:
            read = self._states(texts.ids, texts.mask())
            found.append(States(read.layers[:, :, -new:], read.last[:, -new:]))
        if k:
            extended = torch.cat([ids.repeat_interleave(k, 0), candidates.reshape(-1, 1)], 1)
            size = max(1, REREAD_TOKENS // extended.shape[1])
            parts = zip(extended.split(size), mask.repeat_interleave(k, 0).split(size), strict=True)
            ends = [
                States(*(part[..., -1, :] for part in self._states(some, of_some)))
                for some, of_some in parts
            ]
            layers, last = (torch.cat(part, -2) for part in zip(*ends, strict=True))
            found.append(
                States(layers.view(len(layers), len(ids), k, -1), last.view(len(ids), k, -1))
            )
        return _split(States(*(torch.cat(part, -2) for part in zip(*found, strict=True))), new)

    def _states(self, ids: Tensor, mask: Tensor) -> States:
        with skinny_linears(self.model):
            return States(
                *hidden_states(self.model, ids, self.layers, lower=self.lower, attention_mask=mask)
            )

    def commit(self, texts: Texts, offset: Tensor, last: Tensor) -> Tensor:
        return last

    @property
    def nbytes(self) -> int:
        return 0

    def select(self, rows: Tensor) -> None:
        pass

    def rewind(self, back: Tensor) -> None:
        pass

    def release(self) -> None:
        pass


def _split(states: States, n: int) -> tuple[States, States]:
    """States of the first n tokens and of the others."""
    return (
        States(states.layers[:, :, :n], states.last[:, :n]),
        States(states.layers[:, :, n:], states.last[:, n:]),
    )


def cached_layers(model: PreTrainedModel) -> int:
    """How many layers of a model have keys and values of their own."""
    config = model.config.get_text_config()
    return int(config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", None) or 0))
