"""Hidden states of a model's layers, of tokens that are given; what is above the layers asked for
need not run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from sasa.models.parts import depth_of, some_states


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids (B, T) that count the real tokens only, so that padding on either side changes
    nothing.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def hidden_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    layers: Sequence[int] = (-1,),
    *,
    lower: Any = None,
    cache: Cache | None = None,
    **inputs: Any,
) -> tuple[Tensor, Tensor]:
    """Hidden states of some layers, (L, B, T, d), and those of the last, (B, T, d), which the
    language-model head reads.

    `attention_mask` (B, T) is required unless `position_ids` come with a mask of the caller's own
    making.

    Args:
        lower: the model's `first_layers` up to the highest of `layers`, where those above are not
            wanted; in the place of the last states are then those of that layer.
        cache: what was read before; what is read now is added to it.

    Raises:
        ValueError: the model is in training mode, or the layer does not exist.
    """
    check_ready(model, *layers)
    at = numbered(model, layers)
    decoder: Any = model.get_decoder() if lower is None else lower
    top = depth_of(model) if lower is None else max(at)
    if "position_ids" not in inputs and _takes_positions(type(decoder)):  # type: ignore[arg-type]
        inputs["position_ids"] = positions(inputs["attention_mask"])
    if cache is not None:
        inputs[cache_name(decoder)] = cache
    inputs.setdefault("use_cache", cache is not None)
    # Layers by their indices, or a pass would hold the states of all of them until its end.
    wanted = [layer for layer in at if layer != top]
    read = decoder(input_ids=input_ids, output_hidden_states=some_states(wanted), **inputs)
    last = read.last_hidden_state
    states = [last if layer == top else read.hidden_states[layer] for layer in at]
    return torch.stack(states) if len(states) > 1 else states[0][None], last


def numbered(model: PreTrainedModel, layers: Sequence[int]) -> list[int]:
    """Layers counted from the token embeddings, 0, to the last, the model's number of layers."""
    return [layer % (depth_of(model) + 1) for layer in layers]


def cache_name(model: Any) -> str:
    """What a model calls the keys and values of what it has read: `cache` from transformers 5.24 on."""
    forward: Any = type(model).forward
    return _cache_name(forward)


@functools.cache
def _cache_name(forward: Any) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@functools.cache
def _takes_positions(decoder: type[torch.nn.Module]) -> bool:
    return "position_ids" in inspect.signature(decoder.forward).parameters


def context_window(model: PreTrainedModel) -> int | None:
    """Tokens that a model can read; None where its config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_ready(model: PreTrainedModel, *layers: int) -> None:
    """Raises ValueError where the model is in training mode or has no such hidden states."""
    if model.training:
        raise ValueError(
            "the model is in training mode, where dropout blurs its states: call model.eval() first"
        )
    depth = depth_of(model)
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ValueError(
                f"layer must be in [{-depth - 1}, {depth}] for this model, got {layer}"
            )
