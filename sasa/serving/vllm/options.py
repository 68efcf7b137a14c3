"""How an engine of vLLM's has to be started, so that it serves under SASA; and what is refused before it starts."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from sasa.core.boundary import Boundary
from sasa.data.tables import local
from sasa.models.load import ADAPTER, source_of
from sasa.serving.requests import Wanted
from sasa.serving.slots import Slots
from sasa.serving.vllm.model import model_class
from sasa.serving.vllm.served import CLASS, HOME, KEY, Served, check_vllm

CACHE = 4 << 30
"""Bytes for the keys and values of texts on a CPU, where nothing else is said."""
SPACE = "VLLM_CPU_KVCACHE_SPACE"
REFUSED = {
    "speculative_config": "speculative decoding",
    "scheduler_cls": "a scheduler of your own",
    "worker_cls": "a worker of your own",
    "worker_extension_cls": "an extension of the worker of your own",
    "diffusion_config": "diffusion models",
    "enable_lora": "LoRA: adapters change the states that a boundary was fitted on. Merge one, and fit or --no-strict",
    "enable_prompt_embeds": "prompts as embeddings",
    "enable_batch_sharded_sampling": "sampling in shards",
    "watermark_config": "watermarks",
    "enable_dbo": "two batches at a time",
    "kv_sharing_fast_prefill": "prompts of which only the ends are read",
    "enable_sleep_mode": "engines that sleep",
    "return_sampling_mask": "sampling masks",
}
"""vLLM's options that cannot be had together with ours."""


def first_runner() -> bool:
    """Whether vLLM is going to use its first model runner. Raises ValueError where that is one that we cannot work in."""
    from vllm import envs
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return not envs.VLLM_USE_V2_MODEL_RUNNER
    if envs.VLLM_USE_V2_MODEL_RUNNER is False:
        raise ValueError("VLLM_USE_V2_MODEL_RUNNER=0 cannot be used with sasa on a GPU: unset it")
    return False


def engine_options(
    model: str | None,
    boundary: str | Sequence[str] = "toxicity",
    *,
    strict: bool = True,
    defaults: Mapping[str, Any] | None = None,
    **given: Any,
) -> dict[str, Any]:
    """vLLM's engine arguments with which it serves a model under SASA.

    Args:
        model: as for `sasa.load`, but for adapters.
        boundary: those that requests may name, as `Boundary.load` finds them; NAME=WHERE gives one another name. The
            first holds where a request names none.
        strict: whether boundaries must have been fitted on a model of this name.
        defaults: for requests that ask for nothing: `Wanted`'s fields.
        given: vLLM's own.

    Raises:
        FileNotFoundError, ValueError: no such model or boundary, one that does not fit, or options that cannot be had
            together; before the engine starts.
    """
    check_vllm()
    for name, what in REFUSED.items():
        if given.get(name):
            raise ValueError(f"{name} cannot be used with sasa ({what})")
    for name in (
        "pipeline_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
    ):
        if (given.get(name) or 1) > 1:
            raise ValueError(
                f"{name} must be 1 with sasa, got {given[name]}: tensor parallelism works"
            )
    if callable(given.get("hf_overrides")):
        raise ValueError("hf_overrides must be a dictionary with sasa, which adds to it")
    source, identity, skeleton = model_at(model, **code_of(given))
    named = [boundary] if isinstance(boundary, str) else list(boundary)
    files, loaded = {}, {}
    for each in named:
        name, separator, where = each.partition("=")
        if name in loaded:
            raise ValueError(f"two boundaries are called {name}: NAME=WHERE gives one another name")
        found = Boundary.find(where if separator else name, skeleton, strict)
        loaded[name] = Boundary.load(found)
        loaded[name].check(skeleton, strict)
        files[name] = str(found.resolve())
    Slots(loaded, (), 0, 0)  # refuses what an engine cannot measure
    Wanted.parse({}, defaults or {}, tuple(files))
    (architecture, *_) = skeleton.config.architectures or [type(skeleton).__name__]
    model_class(architecture)  # refuses what has no states to give
    marks = {name: one.fingerprint for name, one in loaded.items()}
    options: dict[str, Any] = {
        "model": source,
        "served_model_name": identity or model,
        "worker_extension_cls": f"{HOME}.served.Counting",
        "additional_config": {KEY: asdict(Served(files, dict(defaults or {}), marks))},
    }
    overrides = {"architectures": [CLASS + architecture]}
    options["hf_overrides"] = {**(given.pop("hf_overrides", None) or {}), **overrides}
    options["additional_config"] |= given.pop("additional_config", None) or {}
    if (
        _platform() == "cpu"
        and not given.get("gpu_memory_utilization")
        and not os.environ.get(SPACE)
    ):
        options["kv_cache_memory_bytes"] = (
            CACHE  # vLLM would take nine tenths of the machine's memory
        )
    if first_runner():
        options |= {
            "worker_cls": f"{HOME}.first.CPUWorker",
            "scheduler_cls": f"{HOME}.first.Scheduler",
            "speculative_config": {
                "method": "custom_class",
                "model": f"{HOME}.first.Drafts",
                "num_speculative_tokens": 1,
            },
        }
    else:
        asked = given.get("async_scheduling")  # on a CPU, vLLM turns it off
        waits = _platform() == "cpu" if asked is None else not asked
        options |= {
            "diffusion_config": {"canvas_length": 1},
            "scheduler_cls": f"{HOME}.second.{'Scheduler' if waits else 'AsyncScheduler'}",
        }
    return options | given


def _platform() -> str:
    from vllm.platforms import current_platform

    return str(current_platform.device_type)


def code_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Which of a model's versions is meant, and whether its own code may run, of vLLM's options."""
    return {name: given[name] for name in ("revision", "trust_remote_code") if given.get(name)}


@functools.lru_cache(maxsize=1)  # offline, the engine and its front end both ask
def model_at(name: str | None, **code: Any) -> tuple[str, str | None, Any]:
    """Where an engine finds a model, the id that it goes by where that is not its name, and the model without weights.

    Args:
        code: `revision` and `trust_remote_code`, for the Hub.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if name is not None and (local(name) / ADAPTER).is_file():
        raise ValueError(
            f"{name} holds an adapter: merge it into its model and save that, then serve it"
        )
    source, identity = source_of(name)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(source, **code),
            **{name: value for name, value in code.items() if name == "trust_remote_code"},
        )
    skeleton.config._name_or_path = identity or source
    return source, identity, skeleton
