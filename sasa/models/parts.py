"""A model's first layers, or the rest of them, as a decoder of its own that shares its weights.

A boundary looks at one hidden state, often well below the last: to know a candidate's margin, the
layers above need not run. The model itself stays as it is; a part is a shallow copy of its decoder
with some of the layers.
"""

from __future__ import annotations

import copy
import logging
import weakref
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
"""What decoders call the norm behind their last layer."""

STATES_BY_NUMBER = Version(transformers.__version__) >= Version("5.23")
"""Whether a pass that is asked for hidden states by a list of layers counts them as everybody does, the token embeddings
first. Releases of transformers before 5.23 that take such a list count a layer's output from 0: of them all are asked for.
"""

_found: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple[int, bool], bool]] = (
    weakref.WeakKeyDictionary()
)


def first_layers(model: PreTrainedModel, depth: int) -> Any | None:
    """The decoder up to hidden state number `depth`, which becomes its `last_hidden_state`.

    None where that would be all of it, or where the part does not compute what it computes within
    the whole model.
    """
    return _part(model, depth, upper=False) if _comes_apart(model, depth, upper=False) else None


def last_layers(model: PreTrainedModel, depth: int) -> Any | None:
    """The decoder from hidden state number `depth`, given as `inputs_embeds`, to its last state;
    None as in `first_layers`.
    """
    return _part(model, depth, upper=True) if _comes_apart(model, depth, upper=True) else None


def _comes_apart(model: PreTrainedModel, depth: int, upper: bool) -> bool:
    """Whether a part does what it does within the whole: asked with a few tokens, once for each
    model and depth.
    """
    decoder: Any = model.get_decoder()
    if (
        "forward" in decoder.__dict__
        or decoder._compiled_call_impl
        or decoder._forward_hooks
        or decoder._forward_pre_hooks
    ):  # somebody's own (accelerate's, `compile()`, a probe), made for the whole
        return False
    known = _found.setdefault(model, {})
    if (depth, upper) not in known:
        known[depth, upper] = 0 < depth < depth_of(model) and _agrees(model, depth, upper)
    return known[depth, upper]


def some_states(layers: list[int]) -> list[int] | bool:
    """What a pass is given as `output_hidden_states`, so that those of some layers stand at their numbers; False for none."""
    return (layers if STATES_BY_NUMBER else True) if layers else False


def depth_of(model: PreTrainedModel) -> int:
    """How many layers a model has, which is the number of its last hidden state."""
    return int(model.config.get_text_config().num_hidden_layers)


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """A model's layers. LookupError: its decoder does not hold them as others do, in one list."""
    return _stack(model)[1]


def _stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """What the decoder calls its layers, and these."""
    found = [
        (name, child)
        for name, child in model.get_decoder().named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth_of(model)
    ]
    if len(found) != 1:
        raise LookupError("the decoder's layers are not one list")
    return found[0]


def _part(model: PreTrainedModel, depth: int, upper: bool) -> Any:
    """A shallow copy with some of the layers.

    LookupError: the decoder does not name its layers and norm as others do.
    """
    decoder: Any = model.get_decoder()
    stack, every = _stack(model)
    norms = [name for name in NORMS if name in decoder._modules]
    if len(norms) != 1:
        raise LookupError("the decoder has no norm behind its layers")
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)
    if not upper:
        part._modules |= {stack: every[:depth], norms[0]: nn.Identity()}
        return part
    part._modules[stack] = every[depth:]
    if kinds := getattr(
        decoder.config, "layer_types", None
    ):  # looked up by a layer's place in the list
        part.config = copy.copy(decoder.config)
        part.config.layer_types = kinds[depth:]
    return part


@torch.no_grad()
def _agrees(model: PreTrainedModel, depth: int, upper: bool) -> bool:
    decoder: Any = model.get_decoder()
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    inputs = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    try:
        whole = decoder(input_ids=ids, output_hidden_states=some_states([depth]), **inputs)
        state = whole.hidden_states[depth]
        part = _part(model, depth, upper)
        found = part(
            **({"inputs_embeds": state} if upper else {"input_ids": ids}), **inputs
        ).last_hidden_state
    except (
        Exception
    ) as error:  # whatever a decoder of another make finds wrong with it; whole, it is read as ever
        logger.info("%s is read whole: %s: %s", type(model).__name__, type(error).__name__, error)
        return False
    wanted = (whole.last_hidden_state if upper else state).float()
    tolerance = (
        1e-4 if torch.finfo(state.dtype).eps < 1e-6 else 1e-2
    )  # the same operations on the same numbers
    if found.shape != wanted.shape:
        return False
    # Token by token: a first token's state may be a hundred times as long as the others'.
    return bool(((found.float() - wanted).norm(dim=-1) <= tolerance * wanted.norm(dim=-1)).all())
