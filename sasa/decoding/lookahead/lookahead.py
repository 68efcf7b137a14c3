"""Look-ahead: a batch of growing texts, and what each candidate next token would make of its text.

`peek` answers and changes nothing; `append` and `commit` make the texts longer. Nothing here knows
boundaries or sampling: tokens go in, embeddings and next-token logits come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.decoding.lookahead.cache import BorrowedCache
from sasa.decoding.lookahead.packing import packs
from sasa.decoding.lookahead.pooling import Pools
from sasa.decoding.lookahead.readers import (
    CompiledReader,
    PackedReader,
    Reader,
    RereadingReader,
    States,
)
from sasa.decoding.lookahead.texts import Texts
from sasa.models.heads import has_plain_head, next_logits, reread_logits
from sasa.models.states import check_ready

READ_TOKENS = {"cpu": 256, "cuda": 8192}
"""New tokens in one pass, of all rows together but at least 16 of each: longer prompts take
several, in less memory.
"""


class Peek(NamedTuple):
    """One pass over candidates, kept until the texts change.

    Attributes:
        rows: int64 (R,), the texts they belong to; all where None.
        ids: int64 (R, K); states: theirs.
        first: how many candidates of the step were read before these.
    """

    rows: Tensor | None
    ids: Tensor
    states: States
    first: int


class Lookahead:
    """Reads a batch of growing texts and looks one token ahead.

    Args:
        model: any causal language model of transformers, in eval mode.
        specs: layer, pooling and span of the embeddings: one, or several that come from the same
            passes, or none.
        attention_mask: (B, T) of the prompts, 0 at padding on the left.
        packed: whether candidates stand side by side; None tries it, see `packs`.
        rows, positions: how many rows and positions the cache is going to need, those of the
            candidates included unless `compiled`, where that is known: it is then made once.
        cache: one to borrow; its texts grow by `follow`.
        compiled: candidates of a row in a pass that is compiled once and replayed; 0 compiles
            nothing. Needs `positions`, and rows that stay.
        rewindable: whether `rewind` is going to be called.
        margins_only: whether all that is wanted are embeddings, and neither `last` nor `commit`.

    Attributes:
        passes: forward passes over candidates so far.
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
        compiled: int = 0,
        rewindable: bool = False,
        margins_only: bool = False,
    ) -> None:
        specs = (specs,) if isinstance(specs, EmbeddingSpec) else tuple(specs)
        self.model = model
        config = model.config.get_text_config()
        self._pools = Pools(
            specs, len(attention_mask), config.hidden_size, model.dtype, model.device, rewindable
        )
        layers = self._pools.layers
        check_ready(model, *layers)
        packed = packs(model) if packed is None else packed
        self._reader: Reader
        if not packed:
            self._reader = RereadingReader(model, layers, margins_only)
        elif compiled:
            self._reader = CompiledReader(model, layers, rows, positions, compiled)
        else:
            self._reader = PackedReader(model, layers, cache, margins_only, rows, positions)
        self._texts = Texts(attention_mask.to(model.device))
        self._unread = 0  # tokens at the texts' ends that no pass has read yet
        self.passes = 0
        self._peeks: list[Peek] = []
        self._kept_from = (
            0  # of the step's candidates, the first whose keys and values are still there
        )
        # Frequencies that follow from the length of what a pass reads must be those of the whole
        # prompt.
        rope = str(
            getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        )
        self._in_passes = packed and not any(kind in rope for kind in ("longrope", "dynamic"))

    @property
    def ids(self) -> Tensor:
        """The texts so far, int64 (B, T), padding included."""
        return self._texts.ids

    @property
    def prompt_mask(self) -> Tensor:
        """Attention mask of the prompts, int64 (B, T); after `rewind`, of the whole texts."""
        return self._texts.prompt_mask

    @property
    def prompt_length(self) -> int:
        return self._texts.prompt_length

    @property
    def mask(self) -> Tensor:
        """Attention mask of the texts so far, int64 (B, T)."""
        return self._texts.mask()

    @property
    def nbytes(self) -> int:
        """Memory of the key-value cache, in bytes."""
        return self._reader.nbytes

    @property
    def last(self) -> Tensor:
        """States (B, d) of the model's last layer at the texts' ends, which its head turns into
        logits.
        """
        self._read_unread()
        return self._pools.now.last

    def logits(self) -> Tensor:
        """Next-token logits, float32 (B, V), of the texts as they are."""
        if has_plain_head(self.model):
            return next_logits(self.model, self.last)
        return reread_logits(self.model, self.ids, self.mask)

    def embeddings(self) -> list[Tensor]:
        """The embedding of each text as it is, float32 (B, d), for each spec."""
        self._read_unread()
        return self._pools.texts()

    def append(self, tokens: Tensor) -> None:
        """Appends tokens, int64 (B, n). The next pass, whatever it is for, reads them along."""
        self._end_step()
        self._texts.append(tokens.to(self.ids.device))
        self._unread += tokens.shape[1]

    @torch.no_grad()
    def peek(self, candidates: Tensor, rows: Tensor | None = None) -> list[Tensor]:
        """The embedding of each text with each candidate.

        Until the texts change, candidates of several calls count on, and `commit` takes any of
        them. The first of these calls is for all rows, each later one for rows of the one before.

        Args:
            candidates: int64 (R, K).
            rows: int64 (R,), which texts they belong to; all where None.

        Returns:
            for each spec, float32 (R, K, d).
        """
        candidates = candidates.to(self.ids.device)
        if rows is not None or not self._reader.joint or self._unread > self._most():
            self._read_unread()
        found = [self._peek(part, rows) for part in candidates.split(self._reader.width, 1)]
        states = found[0].layers if len(found) == 1 else torch.cat([one.layers for one in found], 2)
        return self._pools.extended(states, rows)

    def _peek(self, candidates: Tensor, rows: Tensor | None) -> States:
        """One pass over candidates that fit one."""
        assert self._peeks or rows is None
        first = self._peeks[-1].first + self._peeks[-1].ids.shape[1] if self._peeks else 0
        if first + candidates.shape[1] - self._kept_from > self._reader.capacity:
            self._kept_from = first  # the scratch region is full: it is written over from its start
        self.passes += 1
        new, self._unread = self._unread, 0
        read, states = self._reader.read(
            self._texts, new, candidates, first - self._kept_from, rows
        )
        if new:
            self._take_in(read, new)
        if self._reader.capacity:
            self._peeks.append(Peek(rows, candidates, states, first))
        return states

    @torch.no_grad()
    def commit(self, choice: Tensor) -> None:
        """Appends to each text the candidate number `choice`, int64 (B,), of those peeked at since
        the texts changed.

        What its pass wrote into the cache moves to the end of the text; no token is read twice.
        """
        ids, layers, last = self._chosen(choice)
        if self._kept_from and bool(
            (choice < self._kept_from).any()
        ):  # written over by later passes
            self.append(ids[:, None])
            return
        last = self._reader.commit(self._texts, choice - self._kept_from, last)
        self._texts.append(ids[:, None])
        self._take_in(States(layers[:, :, None], last[:, None]), 1)
        self._end_step()

    def _chosen(self, choice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids (B,), layers' states (L, B, d) and last states (B, d) of the chosen candidates."""
        found: tuple[Tensor, ...] = ()
        for rows, ids, states, first in self._peeks:
            at = choice if rows is None else choice[rows]
            mine = (at >= first) & (at < first + ids.shape[1])
            column, row = (
                (at - first).clamp(0, ids.shape[1] - 1),
                torch.arange(len(at), device=at.device),
            )
            here = (
                ids[row, column],
                states.layers[:, row, column].transpose(0, 1),
                states.last[row, column],
            )
            if not found:  # the first pass is over all rows
                found = here
                continue
            rows = row if rows is None else rows
            found = tuple(
                whole.index_copy(
                    0, rows, torch.where(mine.view(-1, *[1] * (part.ndim - 1)), part, whole[rows])
                )
                for whole, part in zip(found, here, strict=True)
            )
        return found[0], found[1].transpose(0, 1), found[2]

    def follow(self, new: Tensor, states: Tensor) -> None:
        """Appends tokens (B, n) that the model has read into the borrowed cache, and their layers'
        states (L, B, n, d).
        """
        self._end_step()
        self._texts.append(new)
        self._take_in(States(states, states[0]), new.shape[1])

    def release(self) -> None:
        """Ends the look-ahead: a compiled one leaves its memory for the model's next."""
        self._reader.release()

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows only, int64 (B',), in this order; a row may come more than once."""
        self._read_unread()
        self._end_step()
        self._texts.select(rows)
        self._pools.select(rows)
        self._reader.select(rows)

    def rewind(self, back: Tensor) -> None:
        """Takes the last tokens of each text back, int64 (B,) of them, all of which `commit` has
        appended.
        """
        self._read_unread()
        self._end_step()
        back = back.to(self.ids.device)
        self._texts.rewind(back)
        self._pools.rewind(back)
        self._reader.rewind(back)

    def restart(self, rows: Tensor) -> None:
        """Leaves what was written after the prompt out of these rows' embeddings, int64 (R,); it
        stays in their context.
        """
        self._read_unread()
        self._pools.restart(rows)

    def _end_step(self) -> None:
        self._peeks, self._kept_from = [], 0

    def _most(self) -> int:
        """How many new tokens of a row one pass reads."""
        most = READ_TOKENS.get(self.ids.device.type, 8192) // max(1, len(self.ids))
        return max(16, most) if self._in_passes else 1 << 62

    @torch.no_grad()
    def _read_unread(self) -> None:
        """Reads what has been appended, in several passes where it is long."""
        while self._unread:
            new = min(self._unread, self._most())
            whole, self._unread = self._unread, self._unread - new
            nothing = self.ids[:, :0]
            read, _ = self._reader.read(self._texts, new, nothing)
            self._take_in(read, new, whole - new)

    def _take_in(self, read: States, n: int, behind: int = 0) -> None:
        """Adds the states of n tokens to the running sums, `behind` of which there are more."""
        end = self._texts.length - behind
        mask = self._texts.mask(end)[:, end - n :]
        self._pools.append(
            read.layers, read.last[:, -1], mask, max(0, self.prompt_length - (end - n))
        )
        if end >= self.prompt_length:
            self._pools.remember()
