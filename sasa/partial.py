"""A model's first layers, or the rest of them, as a decoder of its own that shares its weights.

A boundary looks at one hidden state, often well below the last: to know a candidate's margin, the layers above need not run.
The model itself stays as it is; a part is a shallow copy of its decoder with some of the layers.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
"""What decoders call the norm behind their last layer."""

_found: weakref.WeakKeyDictionary[PreTrainedModel, dict[int, tuple[bool, bool]]] = weakref.WeakKeyDictionary()


def first_layers(model: PreTrainedModel, depth: int) -> Any | None:
    """The decoder up to hidden state number `depth`, which becomes its `last_hidden_state`.

    None where that would be all of it, or where the model does not come apart there: see `divides`.
    """
    return _part(model, depth, upper=False) if divides(model, depth)[0] else None


def last_layers(model: PreTrainedModel, depth: int) -> Any | None:
    """The decoder from hidden state number `depth`, given as `inputs_embeds`, to its last state; None as in `first_layers`."""
    return _part(model, depth, upper=True) if divides(model, depth)[1] else None


def divides(model: PreTrainedModel, depth: int) -> tuple[bool, bool]:
    """Whether the first layers, and the last, compute what they compute within the whole model.

    It is asked, not looked up: a few tokens are read both ways, once for each model and depth.
    """
    decoder: Any = model.get_decoder()
    if "forward" in decoder.__dict__ or decoder._compiled_call_impl is not None:
        return False, False  # somebody's own (accelerate's hooks, `compile()`), bound to the whole
    known = _found.setdefault(model, {})
    if depth not in known:
        known[depth] = _agree(model, depth) if 0 < depth < _depth(model) else (False, False)
    return known[depth]


def _depth(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def _part(model: PreTrainedModel, depth: int, upper: bool) -> Any:
    """A shallow copy with some of the layers. LookupError: the decoder does not name its layers and norm as others do."""
    decoder: Any = model.get_decoder()
    stacks = [
        name
        for name, child in decoder.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == _depth(model)
    ]
    norms = [name for name in NORMS if name in decoder._modules]
    if len(stacks) != 1 or len(norms) != 1:
        raise LookupError("the decoder's layers are not one list with a norm behind it")
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)
    layers = decoder._modules[stacks[0]]
    if not upper:
        part._modules |= {stacks[0]: layers[:depth], norms[0]: nn.Identity()}
        return part
    part._modules[stacks[0]] = layers[depth:]
    if kinds := getattr(decoder.config, "layer_types", None):  # looked up by a layer's place in the list
        part.config = copy.copy(decoder.config)
        part.config.layer_types = kinds[depth:]
    return part


@torch.no_grad()
def _agree(model: PreTrainedModel, depth: int) -> tuple[bool, bool]:
    decoder: Any = model.get_decoder()
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    inputs = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    whole = decoder(input_ids=ids, output_hidden_states=[depth], **inputs)
    state = whole.hidden_states[depth]
    same = []
    for upper, given, wanted in ((False, {"input_ids": ids}, state), (True, {"inputs_embeds": state}, whole[0])):
        try:
            same.append(_close(_part(model, depth, upper)(**given, **inputs)[0], wanted))
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
            same.append(False)
    return same[0], same[1]


def _close(found: Tensor, wanted: Tensor) -> bool:
    tolerance = 1e-4 if torch.finfo(wanted.dtype).eps < 1e-6 else 1e-2  # the same operations on the same numbers
    return found.shape == wanted.shape and bool((found - wanted).norm() <= tolerance * wanted.norm())
