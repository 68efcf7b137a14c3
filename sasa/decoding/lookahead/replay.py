"""Replay: the pass over the candidates as one compiled graph, whose shapes and addresses never
change.

What makes a step of a small batch slow on a GPU is Python and the launch of kernels;
`torch.compile` with CUDA graphs launches them all at once. This file handles the tensors of a
cache; texts and masks are its caller's.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from sasa.models.states import hidden_states


class ReplayLayer(DynamicLayer):
    """One layer's keys and values, (B, heads, positions, head_dim); the candidates' are the last of
    the positions.

    A pass begins with a move: of the candidate that was committed last, what its pass wrote goes to
    its place in the text.
    """

    is_compileable = True

    def __init__(
        self, keys: Tensor, values: Tensor, source: Tensor, target: Tensor, place: Tensor
    ) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.source, self.target, self.place = source, target, place
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.move()
        keys.index_copy_(2, self.place, key_states)
        values.index_copy_(2, self.place, value_states)
        return keys, values

    def move(self) -> tuple[Tensor, Tensor]:
        """Copies what stands at `source` (B,) to `target` (1,); keys and values."""
        assert self.keys is not None
        assert self.values is not None
        for whole in (self.keys, self.values):
            chosen = self.source[:, None, None, None].expand(-1, whole.shape[1], 1, whole.shape[3])
            whole.index_copy_(2, self.target, whole.gather(2, chosen))
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0  # masks and positions are given; a length that grows would be compiled in


class Replay:
    """Passes over `width` candidates a row, each the same graph.

    Args:
        layers: keys and values of each layer, with the text read, all the positions that will be
            needed, and nothing but finite numbers behind it.
        width: candidates of a row in one pass.
        room: positions for the candidates of a step, which stay until the first pass after a
            commit.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], width: int, room: int) -> None:
        keys = layers[0][0]
        self.width = width
        self.positions = keys.shape[2]
        self.first = self.positions - room
        self._source = torch.full((len(keys),), self.first, device=keys.device)
        self._target = torch.full((1,), self.first, device=keys.device)  # nothing is committed yet
        self._place = torch.arange(self.first, self.first + width, device=keys.device)
        self._layers = [
            ReplayLayer(*layer, self._source, self._target, self._place) for layer in layers
        ]
        self._cache = Cache(layers=[*self._layers])
        fixed = (
            self._source,
            self._target,
            self._place,
            *(tensor for layer in layers for tensor in layer),
        )
        for tensor in fixed:
            torch._dynamo.mark_static_address(tensor)

    def read(
        self,
        model: PreTrainedModel,
        layers: tuple[int, ...],
        ids: Tensor,
        masks: Any,
        place: Tensor,
        offset: int,
    ) -> tuple[Tensor, Tensor]:
        """States (L, B, width, d) of layers and (B, width, d) of the last, of ids (B, width) at
        positions (B, width).

        Args:
            masks: (B, 1, width, positions), or one for each kind of layer.
            offset: where the pass writes, counted from `first`.
        """
        start = self.first + offset
        self._place.copy_(torch.arange(start, start + self.width, device=self._place.device))
        states, last = _compiled(model.device.type)(model, ids, layers, masks, place, self._cache)
        self._nothing_committed()
        return states.clone(), last.clone()  # the next replay writes over them

    def commit(self, offset: Tensor, length: int) -> None:
        """Makes the candidate at `offset` (B,) the text's token number `length`, when the next pass
        begins.
        """
        self._source.copy_(self.first + offset)
        self._target.fill_(length)

    def settle(self) -> None:
        """Does at once what would wait for the next pass: another reader is going to read the text."""
        for layer in self._layers:
            layer.move()
        self._nothing_committed()

    def _nothing_committed(self) -> None:
        """Makes the next move one of the first candidate onto itself."""
        self._source.fill_(self.first)
        self._target.fill_(self.first)


def _read(
    model: PreTrainedModel,
    ids: Tensor,
    layers: tuple[int, ...],
    masks: Any,
    place: Tensor,
    cache: Cache,
) -> Any:
    return hidden_states(model, ids, layers, attention_mask=masks, position_ids=place, cache=cache)


@functools.cache
def _compiled(device: str) -> Any:
    # compiled at the first call for each model and shape
    return torch.compile(_read, dynamic=False, mode="reduce-overhead" if device == "cuda" else None)
