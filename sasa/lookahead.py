"""Look-ahead: the embedding that a text would have with each of its candidate next tokens, in one forward pass.

The candidates of a row stand side by side behind its text. Each has the position that comes next, attends to the text
and to itself and not to the others, so that the text is read once and its keys and values exist once, whatever K is.
This file knows nothing about boundaries or sampling: tokens go in, embeddings come out.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import create_masks_for_generate

from sasa.boundary import EmbeddingSpec
from sasa.embedding import check_ready, hidden_states, layers_of, numbered, positions
from sasa.models.parts import first_layers, last_layers
from sasa.models.skinny import skinny_linears
from sasa.replay import Replay

logger = logging.getLogger(__name__)

CHUNK = 512
"""Candidates of a row in one forward pass; more of them take several."""
REREAD_TOKENS = 8192
"""Padded tokens in one forward pass of the re-reading path."""
READ_TOKENS = {"cpu": 256, "cuda": 8192}
"""New tokens in one forward pass, of all rows together but at least 16 of each; longer prompts take several, in less memory."""
WIDE = {"cpu": 8, "cuda": 128}
"""From so many candidates in a pass, of all rows together, their number and not the weights' is what a layer costs."""

_packs: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()
_spare: weakref.WeakKeyDictionary[PreTrainedModel, tuple[Any, Any, Replay]] = weakref.WeakKeyDictionary()


class TextLayer(DynamicLayer):
    """One layer's keys and values, (B, heads, length, head_dim): the text so far, and room behind it for what a pass writes.

    What a pass wrote stands behind the text until `LookaheadCache.commit` says how much of it belongs to the text; the
    next pass writes over the rest. Layers with a sliding window keep the whole text, too: the mask cuts their view.
    """

    is_compileable = True  # that masks are always made, and no device is asked whether they are needed

    def __init__(self, cache: LookaheadCache) -> None:
        super().__init__()
        self.cache = cache
        self.index = len(cache.layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        start, end = self.cache.length, self.cache.length + key_states.shape[2]
        keys, values = (
            self.cache.room(side, self.index, states)[:, :, :end]
            for side, states in ((0, key_states), (1, value_states))
        )
        keys[:, :, start:] = key_states
        values[:, :, start:] = value_states
        return keys, values

    def get_seq_length(self) -> int:
        return self.cache.length


class LookaheadCache(Cache):
    """Keys and values of the text so far, into which candidates are written only for the length of a pass.

    Layers of one shape, which in most models is all of them, share two tensors, (layers, rows, heads, positions, head_dim) for
    keys and for values: what happens to all layers alike is one operation and not one a layer.

    Args:
        layers: how many layers have keys and values of their own.
        rows, positions: for how many there will be room at once; more are made as they are needed.
        apart: gives each layer tensors of its own, filled with zeros, as `Replay` wants them.
    """

    def __init__(self, layers: int, rows: int = 0, positions: int = 0, apart: bool = False) -> None:
        # Weakly, or the tensors would wait for the garbage collector.
        super().__init__(layer_class_to_replicate=functools.partial(TextLayer, weakref.proxy(self)))  # type: ignore[arg-type]
        self.depth = layers
        self.rows, self.positions, self.apart = rows, positions, apart
        self.batch = 0
        self.length = 0
        self._pools: dict[tuple[int, ...], Tensor] = {}  # by side, and by layer where its shape is its own
        self._slots: dict[tuple[int, int], tuple[tuple[int, ...], int]] = {}  # (side, layer) -> pool, place in it

    def room(self, side: int, layer: int, states: Tensor) -> Tensor:
        """A layer's buffer (B, heads, positions, head_dim) of keys (side 0) or values (1), and room behind the text."""
        self.batch, heads, new, width = states.shape
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
            self._slots[side, layer] = ((side,), layer) if alike and layer < self.depth else ((side, layer), 0)
        key, place = self._slots[side, layer]
        pool = self._pools.get(key)
        if pool is None or pool.shape[3] < self.length + new:
            # By a quarter: few copies, little waste. Where `positions` was told, this is once.
            positions = max(self.positions, self.length + new) if pool is None else (self.length + new) * 5 // 4 + 64
            rows = max(self.rows, self.batch) if pool is None else pool.shape[1]
            larger = (states.new_zeros if self.apart else states.new_empty)(
                self.depth if len(key) == 1 else 1, rows, heads, positions, width
            )
            if pool is not None:
                larger[:, :, :, : self.length] = pool[:, :, :, : self.length]
            self._pools[key] = pool = larger
        return pool[place, : self.batch]

    def buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer with all their room, (B, heads, positions, head_dim)."""
        return [
            (self._pools[key][i, : self.batch], self._pools[value][j, : self.batch])
            for (key, i), (value, j) in ((self._slots[0, n], self._slots[1, n]) for n in range(self.depth))
        ]

    @property
    def nbytes(self) -> int:
        """Memory of all buffers, in bytes."""
        return sum(pool.nbytes for pool in self._pools.values())

    def commit(self, tokens: int) -> None:
        """Makes the first `tokens` entries of the last pass part of the text."""
        self.length += tokens

    def move(self, choice: Tensor, layers: int | None = None) -> None:
        """Moves what the last pass wrote at offset `choice` (B,) behind the text to its end, in the first layers or in all."""
        row = torch.arange(len(choice), device=choice.device)
        for (_, *own), pool in self._pools.items():
            if not own:
                pool = pool[:layers]
            elif layers is not None and own[0] >= layers:
                continue
            # Of the row and the position, (B, layers, heads, head_dim): indices apart from each other come first.
            pool[:, : self.batch, :, self.length] = pool[:, row, :, self.length + choice].transpose(0, 1)

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, int64 (B',), in place where they move one way only, as they do when some leave."""
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
                    pool[:, row, :, gone : self.length] = pool[:, row, :, : self.length - gone].clone()


class BorrowedLayer(DynamicLayer):
    """One layer of another cache: what is new stands behind the text in what this pass attends to, and nowhere else."""

    is_compileable = True  # see TextLayer

    def __init__(self, cache: BorrowedCache, index: int) -> None:
        super().__init__()
        self.cache = cache
        self.index = index

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        lent: Any = self.cache.lender.layers[self.index]
        return torch.cat([lent.keys, key_states], 2), torch.cat([lent.values, value_states], 2)

    def get_seq_length(self) -> int:
        return self.cache.length


class BorrowedCache(Cache):
    """The keys and values that a running `generate()` keeps, to look ahead from without a copy of them.

    It does not keep them alive. What can be lent holds whole texts where the model is: see `lends`.
    """

    def __init__(self, lender: Cache) -> None:
        self._lender = weakref.ref(lender)
        borrowed: Any = weakref.proxy(self)
        super().__init__(layers=[BorrowedLayer(borrowed, index) for index in range(len(lender.layers))])

    @staticmethod
    def lends(cache: Cache) -> bool:
        """Whether a cache can be borrowed from: not with sliding windows, quantized, static or offloaded layers."""
        return not getattr(cache, "offloading", False) and all(type(layer) is DynamicLayer for layer in cache.layers)

    @property
    def lender(self) -> Cache:
        lender = self._lender()
        assert lender is not None, "the generation that lent its cache has ended"
        return lender

    @property
    def length(self) -> int:
        return self.lender.get_seq_length()

    def commit(self, tokens: int) -> None:
        """Nothing is written here: the lender's own passes make texts longer."""
        assert not tokens


class Lookahead:
    """Reads a batch of growing texts and looks one token ahead.

    Args:
        model: any causal language model of transformers, in eval mode.
        specs: layer, pooling and span of the embeddings: one, or several that come from the same passes, or none.
        attention_mask: (B, T) of the prompts, 0 at padding.
        packed: whether candidates stand side by side; None asks `packs`.
        rows, positions: how many rows and how many positions, with the candidates', the cache is going to need where that is
            known: it is then made once.
        cache: one to borrow; its texts grow by `follow`.
        replay: how many candidates of a row to read in one pass that is compiled once and replayed; 0 compiles nothing.
            Needs `positions`, and rows that stay.
        rewindable: whether `rewind` is going to be called: the states at the texts' ends are then kept for every step.
        margins_only: whether all that is wanted are embeddings, and neither `last` nor `keep`.

    Attributes:
        ids: int64 (B, T), the texts so far.
        last: states (B, d) of the model's last layer at the texts' ends, which its head turns into next-token logits.

    Where a model cannot take the candidates side by side (no key-value cache, attention that takes no 4-D mask, ALiBi
    from a 2-D one), every candidate re-reads its text: the same result, slower, and said once in the log.

    Layers above those of the specs tell nothing about a candidate. Where the model comes apart there, and a pass has `WIDE`
    candidates or more, `keep` has them read the chosen one alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        specs: EmbeddingSpec | Sequence[EmbeddingSpec],
        attention_mask: Tensor,
        packed: bool | None = None,
        *,
        rows: int = 0,
        positions: int = 0,
        cache: BorrowedCache | None = None,
        replay: int = 0,
        rewindable: bool = False,
        margins_only: bool = False,
    ) -> None:
        self.model = model
        self.specs = (specs,) if isinstance(specs, EmbeddingSpec) else tuple(specs)
        self.layers = layers_of(self.specs) or (-1,)
        check_ready(model, *self.layers)
        self.packed = packs(model) if packed is None else packed
        self.prompt_mask = attention_mask.to(model.device)
        self.prompt_length = attention_mask.shape[1]
        config = model.config.get_text_config()
        batch, width = len(attention_mask), config.hidden_size
        self.ids = torch.empty(batch, 0, dtype=torch.long, device=model.device)
        layers = config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", None) or 0)
        self._top = max(numbered(model, self.layers))
        self._lower = None if replay else first_layers(model, self._top)
        self._upper = None if self._lower is None or margins_only or not self.packed else last_layers(model, self._top)
        self._margins_only = margins_only
        if margins_only and self._lower is not None:
            layers = min(layers, self._top)
        # Frequencies that follow from the length of what a pass reads must be those of the whole prompt.
        rope = str(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
        self._in_passes = self.packed and not any(kind in rope for kind in ("longrope", "dynamic"))
        self._halfway = False  # whether the last look left the upper layers out
        self.cache: Any = LookaheadCache(layers, rows, positions, bool(replay)) if cache is None else cache
        self.chunk = replay or CHUNK
        self._replays = bool(replay)
        self._replay: Replay | None = None
        self._shape = (rows, positions, replay, model.device, model.dtype)
        if replay and (spare := _spare.pop(model, None)) and spare[0] == self._shape:
            _, self.cache, self._replay = spare
            self.cache.length = 0
            self._replay.settle()
        self.last = torch.empty(batch, width, dtype=model.dtype, device=model.device)
        self._end = self.last.expand(len(self.layers), -1, -1)  # states of the layers at the texts' ends, (L, B, d)
        # of the span's states, for each of S specs: the sum as each is weighted, float32 (S, B, d), and the weights' (S, B)
        self._total = torch.zeros(len(self.specs), batch, width, device=model.device)
        self._count = self._total[:, :, 0]
        self._ahead: tuple[Tensor, Tensor, Tensor]  # of the last look: candidates, their states and last states
        # `last`, and (B, ...) of `_end`, `_total` and `_count`, as they were at each length of the texts
        self._past: list[tuple[Tensor, ...]] | None = [] if rewindable else None

    def mask(self, length: int) -> Tensor:
        """Attention mask (B, length): the prompt's own, then ones, for what is written is never padding."""
        written = self.prompt_mask.new_ones(len(self.prompt_mask), max(0, length - self.prompt_mask.shape[1]))
        return torch.cat([self.prompt_mask[:, :length], written], 1)

    @torch.no_grad()
    def look(self, new: Tensor, candidates: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Appends tokens to the texts and embeds each text as it is and with each candidate.

        Args:
            new: int64 (B, n) tokens to append, n >= 1 the first time and >= 0 afterwards.
            candidates: int64 (B, K), K >= 0.

        Returns:
            for each spec, float32 (B, d), the text, and (B, K, d), the text and one candidate.
        """
        new, candidates = new.to(self.ids.device), candidates.to(self.ids.device)
        most = max(16, READ_TOKENS.get(self.ids.device.type, 8192) // len(new))
        if self._in_passes and new.shape[1] > most:
            *parts, new = new.split(most, 1)
            for part in parts:
                self.look(part, candidates[:, :0])
        n = new.shape[1]
        self.ids = torch.cat([self.ids, new], 1)
        read = self._read_replayed if self._replays else self._read_packed if self.packed else self._reread
        first, *rest = candidates.split(self.chunk, 1)
        wide = candidates.numel() >= WIDE.get(self.ids.device.type, 128)
        self._halfway = self._upper is not None and wide and not n and not rest
        with contextlib.nullcontext() if self._replays else skinny_linears(self.model):
            parts = [read(new, first), *(read(new[:, :0], chunk) for chunk in rest)]
        states, last = (torch.cat(part, -2) for part in zip(*parts, strict=True))
        self._ahead = candidates, states[:, :, n:], last[:, n:]
        if n:
            self._append(states[:, :, :n], last[:, n - 1])
        return [self._embed(i, states[self.layers.index(spec.layer), :, n:]) for i, spec in enumerate(self.specs)]

    def _embed(self, i: int, ahead: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings (B, d) and (B, K, d) of spec `i`, from the candidates' states (B, K, d)."""
        spec, ahead = self.specs[i], ahead.float()
        end = self._end[self.layers.index(spec.layer)].float()
        if spec.pooling == "last":
            return end, ahead
        total, count = self._total[i], self._count[i, :, None]
        # An empty response has no mean: what the model holds before it writes stands in.
        text = torch.where(count > 0, total / count.clamp(min=1), end)
        return text, (total[:, None] * spec.decay + ahead) / (count[:, None] * spec.decay + 1)

    def follow(self, new: Tensor, states: Tensor) -> None:
        """Appends tokens (B, n) that the model has read into the borrowed cache, and its layers' states (L, B, n, d)."""
        self.ids = torch.cat([self.ids, new], 1)
        self._append(states, states[0, :, -1])

    @torch.no_grad()
    def keep(self, choice: Tensor) -> None:
        """Appends to each text the candidate of the last look at index `choice`, int64 (B,), without another pass.

        What that pass wrote of the chosen candidates into the cache moves to the end of the text; the rest is dropped.
        """
        candidates, states, last = self._ahead
        row = torch.arange(len(choice), device=choice.device)
        if candidates.shape[1] > self.chunk:  # most candidates' entries have been written over by now
            self.look(candidates[row, choice][:, None], candidates[:, :0])
            return
        chosen, last = states[:, row, choice], last[row, choice]
        if self._replay is not None:
            self._replay.keep(choice, self.cache.length)
        elif self.packed:
            self.cache.move(choice, self._top if self._halfway else None)
            if self._halfway:
                last = self._read_on(last)
        if self.packed:
            self.cache.commit(1)
        self.ids = torch.cat([self.ids, candidates[row, choice][:, None]], 1)
        self._append(chosen[:, :, None], last)

    def _read_on(self, states: Tensor) -> Tensor:
        """The last layer's states (B, d) of the texts' next tokens, from those where the last look ended, (B, d)."""
        assert self._upper is not None
        mask = self.mask(self.cache.length + 1)
        with skinny_linears(self.model):
            read = self._upper(
                inputs_embeds=states[:, None],
                attention_mask=self._packed_masks(mask, 0, 1),
                position_ids=positions(mask)[:, -1:],
                past_key_values=self.cache,
                use_cache=True,
            )
        return read.last_hidden_state[:, 0]

    def release(self) -> None:
        """Ends the look-ahead: a compiled one leaves its memory, whose addresses are recorded, for the model's next."""
        if self._replay is not None:
            _spare[self.model] = self._shape, self.cache, self._replay

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows only, int64 (B',), in this order; a row may come more than once."""
        for name in ("ids", "prompt_mask", "last"):
            setattr(self, name, getattr(self, name)[rows])
        for name in ("_end", "_total", "_count"):
            setattr(self, name, getattr(self, name)[:, rows])
        if self._past is not None:
            self._past = [tuple(part[rows] for part in parts) for parts in self._past]
        self.cache.select(rows)

    def rewind(self, back: Tensor) -> None:
        """Takes the last tokens of each text back, int64 (B,) of them, not into what was read at first.

        What stays moves to the right, so that texts still end together: it keeps its positions, for these are counted from the
        attention mask, and what it leaves on the left is padding.
        """
        assert self._past is not None
        back = back.to(self.ids.device)
        width = self.ids.shape[1]
        source = torch.arange(width, device=back.device) - back[:, None]
        mask = self.mask(width).gather(1, source.clamp(min=0))
        self.prompt_mask = mask * (source >= 0)
        self.ids = self.ids.gather(1, source.clamp(min=0))
        steps = torch.arange(len(self._past), device=back.device)[:, None] - back  # (T, B)
        row = torch.arange(len(back), device=back.device)
        moved = [torch.stack(part)[steps.clamp(min=0), row] for part in zip(*self._past, strict=True)]
        self._past = list(zip(*moved, strict=True))
        self.last, end, total, count = self._past[-1]
        self._end, self._total, self._count = end.transpose(0, 1), total.transpose(0, 1), count.transpose(0, 1)
        if self.packed:
            self.cache.rewind(back)

    def forget(self, rows: Tensor) -> None:
        """Leaves what was written after the prompt out of these rows' embeddings, int64 (R,); it stays in their context."""
        assert self._past is not None
        last, end, total, count = self._past[-1]
        _, _, first_total, first_count = self._past[0]
        total = total.index_copy(0, rows, first_total[rows])
        count = count.index_copy(0, rows, first_count[rows])
        self._past[-1] = last, end, total, count
        self._total, self._count = total.transpose(0, 1), count.transpose(0, 1)

    def _append(self, states: Tensor, last: Tensor) -> None:
        """Takes the layers' states (L, B, n, d) of the texts' newest tokens, which `ids` holds already."""
        self._end, self.last = states[:, :, -1], last
        n = states.shape[2]
        start = self.ids.shape[1] - n
        read = self.mask(self.ids.shape[1])[:, start:].float()
        totals, counts = [*self._total], [*self._count]
        for i, spec in enumerate(self.specs):
            if spec.pooling == "last":
                continue
            weights = read
            if spec.span == "response" and start < self.prompt_length:
                weights = read.clone()
                weights[:, : self.prompt_length - start] = 0
            if spec.decay < 1 and n > 1:
                weights = weights * spec.decay ** torch.arange(n - 1, -1, -1, device=weights.device)
            own = states[self.layers.index(spec.layer)].float()
            totals[i] = totals[i] * spec.decay**n + torch.einsum("bnd,bn->bd", own, weights)
            counts[i] = counts[i] * spec.decay**n + weights.sum(1)
        if self.specs:
            self._total, self._count = torch.stack(totals), torch.stack(counts)
        if self._past is not None and self.ids.shape[1] >= self.prompt_length:
            of_rows = (part.transpose(0, 1) for part in (self._end, self._total, self._count))
            self._past.append((self.last, *of_rows))

    def _read_replayed(self, new: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The same states: new tokens as ever, then the candidates by the graph."""
        n, k = new.shape[1], candidates.shape[1]
        if n:
            if self._replay is not None:
                self._replay.settle()
            read = self._read_packed(new, candidates[:, :0])
            if not k:
                return read
            ahead = self._read_replayed(new[:, :0], candidates)
            return torch.cat([read[0], ahead[0]], 2), torch.cat([read[1], ahead[1]], 1)
        if self._replay is None:
            self._replay = Replay(self.cache.buffers(), self.chunk)
        replay = self._replay
        length = self.cache.length
        mask = self.mask(length + 1)
        place = positions(mask)[:, length:].repeat(1, replay.width)
        ids = torch.nn.functional.pad(candidates, (0, replay.width - k))
        masks = self._packed_masks(mask, 0, replay.width, replay.first)
        states, last = replay.read(self.model, self.layers, ids, masks, place)
        return states[:, :, :k], last[:, :k]

    def _read_packed(self, new: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """States (L, B, n + K, d) of the layers and (B, n + K, d) of the last, from one pass behind the cached text."""
        n, k = new.shape[1], candidates.shape[1]
        length = self.cache.length
        mask = self.mask(length + n + 1)
        place = positions(mask)[:, length:]
        states = hidden_states(
            self.model,
            torch.cat([new, candidates], 1),
            self.layers,
            lower=self._lower if self._margins_only or self._halfway else None,
            # Without candidates it is ordinary reading, which needs no mask of ours.
            attention_mask=self._packed_masks(mask, n, k) if k else mask[:, :-1],
            position_ids=torch.cat([place[:, :n], place[:, n:].expand(-1, k)], 1),
            past_key_values=self.cache,
        )
        self.cache.commit(n)
        return states

    def _packed_masks(self, mask: Tensor, n: int, k: int, first: int = 0) -> Tensor | dict[str, Tensor]:
        """Masks (B, 1, n + K, length + n + K) for each kind of layer, from transformers' own for n + 1 ordinary tokens.

        Where `first` tells that the candidates' keys begin there and not right behind the text, (B, 1, n + K, first + K).
        The last of these is where a candidate stands, so its row is every candidate's view of the text, whatever the
        layer's kind (full, sliding, chunked). Among themselves the candidates see only themselves.
        """
        # gives shape and dtype only
        like = torch.empty(len(mask), n + 1, 1, dtype=self.model.dtype, device=mask.device)
        masks = create_masks_for_generate(self.model.config, like, mask, self.cache, positions(mask)[:, -n - 1 :])
        if isinstance(masks, dict):
            return {kind: self._pack(one, mask, n, k, first) for kind, one in masks.items()}
        return self._pack(masks, mask, n, k, first)

    def _pack(self, ordinary: Tensor | None, mask: Tensor, n: int, k: int, first: int) -> Tensor:
        width = mask.shape[1]  # length + n + 1
        if ordinary is None:  # transformers leaves plain causal attention to the kernel
            query = torch.arange(width - n - 1, width, device=mask.device)
            ordinary = (torch.arange(width, device=mask.device) <= query[:, None]).expand(len(mask), 1, -1, -1)
        sees = ordinary if ordinary.dtype == torch.bool else ordinary == 0
        first = first or width - 1
        packed = sees.new_zeros(len(mask), 1, n + k, first + k)
        packed[:, :, :n, : width - 1] = sees[:, :, :n, :-1]
        packed[:, :, n:, : width - 1] = sees[:, :, n:, :-1]
        # Every token sees itself; for padding this is all it sees, which keeps its softmax finite.
        packed.diagonal(offset=first - n, dim1=2, dim2=3).fill_(True)
        if ordinary.dtype == torch.bool:
            return packed
        lowest = torch.finfo(ordinary.dtype).min
        return torch.where(packed, ordinary.new_zeros(()), lowest)

    def _reread(self, new: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The same states, each candidate's from a pass over its whole text."""
        (batch, k), n, length = candidates.shape, new.shape[1], self.ids.shape[1]
        found: list[tuple[Tensor, Tensor]] = []
        lower = self._lower if self._margins_only else None
        if n:
            read = hidden_states(self.model, self.ids, self.layers, lower=lower, attention_mask=self.mask(length))
            found.append((read[0][:, :, length - n :], read[1][:, length - n :]))
        extended = torch.cat([self.ids.repeat_interleave(k, 0), candidates.reshape(-1, 1)], 1)
        mask = self.mask(length + 1).repeat_interleave(k, 0)
        rows = max(1, REREAD_TOKENS // (length + 1))
        ends = [
            [part[..., -1, :] for part in hidden_states(self.model, ids, self.layers, lower=lower, attention_mask=m)]
            for ids, m in zip(extended.split(rows), mask.split(rows), strict=True)
            if len(ids)
        ]
        if ends:
            states, last = (torch.cat(part, -2) for part in zip(*ends, strict=True))
            found.append((states.view(len(states), batch, k, -1), last.view(batch, k, -1)))
        states, last = (torch.cat(part, -2) for part in zip(*found, strict=True))
        return states, last


def packs(model: PreTrainedModel) -> bool:
    """Whether the model reads candidates side by side exactly as it reads them one by one.

    It is asked, not looked up: a few tokens are read both ways, once a model, and the states compared.
    """
    if model not in _packs:
        why = _disagreement(model)
        _packs[model] = why is None
        if why:
            logger.warning(
                "%s cannot look ahead at candidates side by side (%s): each one re-reads its text, which is exact but slow",
                type(model).__name__,
                why,
            )
    return _packs[model]


def _disagreement(model: PreTrainedModel) -> str | None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.get_text_config().vocab_size, (2, 11), generator=generator).to(model.device)
    mask = torch.ones(2, 7, dtype=torch.long, device=model.device)
    mask[1, :3] = 0  # a left-padded row
    look = Lookahead(model, EmbeddingSpec(), mask, packed=True)
    try:
        look.look(tokens[:, :6], tokens[:, 8:])  # the candidates of an earlier step must leave no trace
        ((_, side_by_side),) = look.look(tokens[:, 6:7], tokens[:, 8:])
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError, KeyError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    look = Lookahead(model, EmbeddingSpec(), mask, packed=False)
    ((_, one_by_one),) = look.look(tokens[:, :7], tokens[:, 8:])
    gap = (side_by_side - one_by_one).norm(dim=-1) / one_by_one.norm(dim=-1).clamp(min=1e-12)
    gap = gap.nan_to_num(torch.inf)
    if torch.finfo(model.dtype).eps < 1e-6:
        differs, tolerance = float(gap.max()), 1e-3
    else:  # in half precision a mixture of experts may send one token elsewhere over a rounding error
        differs, tolerance = float(gap.median(1).values.max()), 5e-2
    return None if differs <= tolerance else f"its states differ by {differs:.1%}"
