"""Replay: the pass over the candidates as one compiled graph, whose shapes and addresses never change.

What makes a step of a small batch slow on a GPU is Python and the launch of kernels; `torch.compile` with CUDA graphs
launches them all at once. It knows the tensors of a cache and nothing of texts.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from sasa.embedding import hidden_states


class ReplayLayer(DynamicLayer):
    """One layer's keys and values, (B, heads, positions, head_dim); the last `width` positions are the candidates'.

    A pass begins with a move: what the pass before wrote of the candidate that was chosen goes to its place in the text.
    """

    is_compileable = True

    def __init__(self, keys: Tensor, values: Tensor, width: int, choice: Tensor, target: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.first = keys.shape[2] - width
        self.choice, self.target = choice, target
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.move()
        keys[:, :, self.first :] = key_states
        values[:, :, self.first :] = value_states
        return keys, values

    def move(self) -> tuple[Tensor, Tensor]:
        """Takes what was chosen, (B,) of the candidates, to where it belongs, (1,); keys and values."""
        assert self.keys is not None
        assert self.values is not None
        for whole in (self.keys, self.values):
            chosen = (self.first + self.choice)[:, None, None, None].expand(-1, whole.shape[1], 1, whole.shape[3])
            whole.index_copy_(2, self.target, whole.gather(2, chosen))
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0  # masks and positions are given; a length that grows would be compiled in


class Replay:
    """Passes over `width` candidates a row, each the same graph.

    Args:
        layers: keys and values of each layer, with the text read, all the positions that will be needed, and nothing but
            finite numbers behind it.
        width: candidates of a row in one pass; fewer are filled up.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], width: int) -> None:
        keys = layers[0][0]
        self.width = width
        self.positions = keys.shape[2]
        self.first = self.positions - width
        self._choice = torch.zeros(len(keys), dtype=torch.long, device=keys.device)
        self._target = torch.full((1,), self.first, device=keys.device)  # nothing is chosen yet: over what is to come
        self._layers = [ReplayLayer(*layer, width, self._choice, self._target) for layer in layers]
        self._cache = Cache(layers=[*self._layers])
        for fixed in (self._choice, self._target, *(tensor for layer in layers for tensor in layer)):
            torch._dynamo.mark_static_address(fixed)

    def read(
        self, model: PreTrainedModel, layers: tuple[int, ...], ids: Tensor, masks: Any, place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States (L, B, width, d) of layers and (B, width, d) of the last, of ids (B, width) at positions (B, width).

        Args:
            masks: (B, 1, width, positions), or one for each kind of layer.
        """
        states, last = _compiled(model.device.type)(model, ids, layers, masks, place, self._cache)
        self._target.fill_(self.first)
        return states.clone(), last.clone()  # the next replay writes over them

    def keep(self, choice: Tensor, length: int) -> None:
        """Makes the candidate at `choice` (B,) of the last pass the text's token number `length`, when the next one begins."""
        self._choice.copy_(choice)
        self._target.fill_(length)

    def settle(self) -> None:
        """Does at once what would wait for the next pass: somebody else is going to read the text."""
        for layer in self._layers:
            layer.move()
        self._target.fill_(self.first)


def _read(model: PreTrainedModel, ids: Tensor, layers: tuple[int, ...], masks: Any, place: Tensor, cache: Cache) -> Any:
    inputs = {"attention_mask": masks, "position_ids": place, "past_key_values": cache}
    return hidden_states(model, ids, layers, **inputs)


@functools.cache
def _compiled(device: str) -> Any:
    # compiled at the first call for each model and shape
    return torch.compile(_read, dynamic=False, mode="reduce-overhead" if device == "cuda" else None)
