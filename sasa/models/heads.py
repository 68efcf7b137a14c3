"""From a last state to next-token logits: a model's head, what its config does to logits, and its
special tokens.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sasa.models.skinny import skinny_linears
from sasa.models.states import hidden_states

logger = logging.getLogger(__name__)

_heads: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def next_logits(model: PreTrainedModel, last: Tensor) -> Tensor:
    """Next-token logits, float32 (B, V), from the last layer's states (B, d) at the texts' ends.

    Only of a model with a plain head, see `has_plain_head`.
    """
    with skinny_linears(model):
        return head(model, last)


def reread_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The same of any model, by reading the texts again, int64 (B, T) with their attention mask."""
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1].float()


def head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits, float32, of last-layer states (…, d): the head and the scalings that configs know."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits.float()


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether `head` gives the model's own logits: asked once a model, on a few tokens."""
    if model not in _heads:
        ids = torch.arange(1, 6, device=model.device)[None]
        mask = torch.ones_like(ids)
        _, last = hidden_states(model, ids, attention_mask=mask)
        ours, own = head(model, last), model(input_ids=ids, attention_mask=mask).logits.float()
        tolerance = 1e-3 if torch.finfo(model.dtype).eps < 1e-6 else 3e-2
        _heads[model] = bool((ours - own).norm() <= tolerance * own.norm())
        if not _heads[model]:
            logger.warning(
                "%s does more to its logits than its config tells: each token takes a second pass over its text",
                type(model).__name__,
            )
    return _heads[model]


def token_ids(model: PreTrainedModel, name: str, given: Any) -> list[int]:
    """A special token's ids: as given, else the generation config's, else the model config's, else
    none.
    """
    for source in (
        given,
        getattr(model.generation_config, name, None),
        getattr(model.config.get_text_config(), name, None),
    ):
        if source is not None:
            return [int(i) for i in (source if isinstance(source, (list, tuple)) else [source])]
    return []
