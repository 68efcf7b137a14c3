"""vLLM's front end: it learns our model classes, and refuses what an engine of ours cannot do as a request asks."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

from sasa.serving.requests import PREFIX
from sasa.serving.slots import ENDS, Slots
from sasa.serving.vllm.served import CLASS, HOME, KEY, Served, supported

GREEDY = 1e-5
"""Temperatures below are greedy decoding, as vLLM has it."""
UNDONE = {
    "logprobs": None,
    "prompt_logprobs": None,
    "logprob_token_ids": None,
    "prompt_logprob_token_ids": None,
    "structured_outputs": None,
    "thinking_token_budget": None,
    "trace_decode_token_ids": None,
}
"""What a request may not ask of our engines, and what it is where nobody does: vLLM's sampler does it, or cannot
together with drafts."""
UNDONE_FIRST = {"min_tokens": 0, "min_p": 0.0, "logit_bias": None}
"""What the first runner cannot do besides, together with drafts."""


def register() -> None:
    """vLLM calls this in each of its processes (entry point `vllm.general_plugins`): names our model classes, and has
    requests looked at before they are admitted. Engines that are not ours go on as ever.
    """
    if not supported():
        return
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.v1.engine.input_processor import InputProcessor

    for architecture in [*ModelRegistry.models]:
        if not architecture.startswith(CLASS):
            ModelRegistry.register_model(
                CLASS + architecture, f"{HOME}.model:{CLASS}{architecture}"
            )
            if architecture in MODELS_CONFIG_MAP:  # what vLLM sets for a model by its name
                MODELS_CONFIG_MAP[CLASS + architecture] = MODELS_CONFIG_MAP[architecture]
    build = InputProcessor._build_logits_processors_params_validator
    if getattr(build, KEY, False):
        return

    @functools.wraps(build)
    def with_ours(self: Any) -> Callable[[Any], None]:
        theirs, served, first = (
            build(self),
            Served.of(self.vllm_config),
            not self.vllm_config.use_v2_model_runner,
        )

        def validate(params: Any) -> None:
            from vllm.exceptions import VLLMValidationError

            theirs(params)
            try:
                admit(served, params, first)
            except ValueError as error:
                raise VLLMValidationError(str(error)) from error

        return validate

    setattr(with_ours, KEY, True)
    InputProcessor._build_logits_processors_params_validator = with_ours


def admit(served: Served | None, params: Any, first: bool) -> None:
    """Raises ValueError where a request cannot be done as it asks.

    Args:
        served: what the engine was started with; None where it is not ours.
        first: whether it has vLLM's first model runner.
    """
    if served is None:
        if mine := [name for name in params.extra_args or {} if name.startswith(PREFIX)]:
            raise ValueError(
                f"{', '.join(mine)}: this engine was not started with sasa: use `sasa serve`"
            )
        return
    undone = UNDONE | UNDONE_FIRST if first else UNDONE
    if asked := [name for name, off in undone.items() if getattr(params, name) not in (off, None)]:
        raise ValueError(
            f"{', '.join(asked)} cannot be used in an engine that steers" + " on a CPU" * first
        )
    wanted = served.wanted(params)
    wanted.check(
        params.top_k, params.temperature < GREEDY, len(params.stop_token_ids or ()), ENDS // 2
    )


def put(slots: Slots, slot: int, served: Served, params: Any, request: str) -> None:
    """Gives a slot to a request of vLLM's.

    One without a seed gets it from its id, of which vLLM makes the end at random in the front end: the same on every
    device, and after the request was interrupted.
    """
    seed = params.seed
    if seed is None:
        seed = int.from_bytes(
            hashlib.blake2b(request.encode(), digest_size=8).digest(), "big", signed=True
        )
    closing = [] if params.eos_token_id is None else [params.eos_token_id]
    slots.put(
        slot, served.wanted(params), seed=seed, temperature=0.0 if params.temperature < GREEDY else params.temperature,
        top_k=params.top_k, top_p=params.top_p, ends=[*closing, *(params.stop_token_ids or ())],
    )  # fmt: skip
