"""What a model is given beside token ids, and where it is: what the look-ahead cannot follow is
named, before anything is generated.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from sasa.models.states import positions

CACHES = "cache", "past_key_values", "cache_params"
"""What releases of transformers call what was read: the first from 5.24 on."""
FOLLOWED = (
    *("input_ids", "attention_mask", "position_ids", *CACHES, "cache_position"),
    *("use_cache", "logits_to_keep", "return_dict"),
)
"""What `generate()` hands every model, and the look-ahead makes for itself."""
KINDS = ("token_type_ids", "mm_token_type_ids")
"""Which tokens are of a picture: zeros where there is none, to a model that has pictures."""


def inputs_beside_ids(model: PreTrainedModel, inputs: dict[str, Any]) -> list[str]:
    """What a call of `generate()`, or a pass of it, gives a model that cannot be seen from token ids
    and their mask, by name.
    """
    found = [
        f"the input {name}"
        for name, value in inputs.items()
        if name not in FOLLOWED and _says(model, name, value)
    ]
    mask, places = inputs.get("attention_mask"), inputs.get("position_ids")
    if places is not None and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)):
        mask = places.new_ones(places.shape[-1]) if mask is None else mask
        if mask.shape[-1] == places.shape[-1] and bool(
            ((positions(mask) != places) & mask.bool()).any()
        ):
            found.append("position_ids of one's own")
    if (maker := other_maker(model)) is not None:
        found.append(
            f"inputs that {type(maker).__name__} makes, such as the virtual tokens of prompt tuning"
        )
    return found


def cache_of(inputs: dict[str, Any]) -> Any:
    """The cache among the inputs of a pass; None where there is none."""
    return next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)


def other_maker(model: PreTrainedModel) -> Any:
    """What makes the model's inputs in its place, as peft does for virtual tokens; None where it does so itself."""
    maker = getattr(model.prepare_inputs_for_generation, "__self__", model)
    return None if maker is model else maker


def _says(model: PreTrainedModel, name: str, value: Any) -> bool:
    """Whether an input says anything."""
    if not isinstance(value, Tensor):
        return bool(value)
    has_pictures = model.config.get_text_config() is not model.config
    return not (name in KINDS and has_pictures and not bool(value.any()))


def is_filled(cache: Any) -> bool:
    """Whether a cache of `generate()`'s, of keys and values or of states, holds something already."""
    if cache is None:
        return False
    states = [
        getattr(layer, "has_previous_state", None) or {} for layer in getattr(cache, "layers", ())
    ]
    if all(states) and states:  # it has no length
        return any(any(layer.values()) for layer in states)
    return cache.get_seq_length() > 0


def check_model(model: PreTrainedModel, ids: Tensor | None = None) -> None:
    """Raises ValueError where a model reads more than token ids, is not on one device, or token ids
    are on another.
    """
    if any(
        getattr(config, "is_prompt_learning", False)
        for config in (getattr(model, "peft_config", None) or {}).values()
    ):
        raise ValueError(
            "the model puts virtual tokens before a text (peft's prompt tuning and its kin), which the look-ahead does not "
            "read: an adapter of weights, such as LoRA, can be used"
        )
    devices = sorted({str(weight.device) for weight in model.parameters()})
    if "meta" in devices:
        raise ValueError(
            "the model is offloaded (some of its weights are on no device), and candidates are read on the device that the "
            "model is on: load it without offloading, such as device_map={'': 0}, or a smaller one"
        )
    if len(devices) > 1:
        raise ValueError(
            f"the model is spread over {', '.join(devices)}, and candidates are read on one device: load it on one, such as "
            "device_map={'': 0}"
        )
    if ids is not None and ids.device != model.device:
        raise ValueError(
            f"input_ids are on {ids.device} and the model is on {model.device}: give ids.to(model.device)"
        )
