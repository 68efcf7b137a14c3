"""vLLM's own model classes, which also keep the states that boundaries measure."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from sasa.serving.slots import layers_of
from sasa.serving.vllm.served import CLASS, Served


def __getattr__(name: str) -> Any:
    """Our class for each of vLLM's, made when its registry asks for it."""
    if name.startswith(CLASS):
        return model_class(name.removeprefix(CLASS))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def model_class(architecture: str) -> Any:
    """vLLM's class of that name, which keeps the states of its last pass.

    Raises:
        ValueError: vLLM has none, or it gives no states of its layers.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_eagle3

    known = ModelRegistry.models.get(architecture)
    if known is None:
        raise ValueError(f"vLLM has no model class {architecture}")
    base: Any = known.load_model_cls()
    if not supports_eagle3(base):
        raise ValueError(
            f"vLLM's {architecture} gives no states of its layers, which a boundary measures. Llama, Mistral, Qwen 2 and "
            "Qwen 3 do, and were tried"
        )

    class Keeping(base):  # type: ignore[misc]
        """Attributes: sasa_states (L, T, d), of the boundaries' layers, and sasa_last (T, d), of the last."""

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            served = Served.of(vllm_config)
            if served is None:
                raise ValueError(f"{CLASS}{architecture} is for engines that sasa starts")
            on_cpu, second = (
                vllm_config.device_config.device_type == "cpu",
                vllm_config.use_v2_model_runner,
            )
            if not (second or on_cpu):
                raise ValueError(
                    "vLLM has chosen its first model runner, in which sasa works on a CPU alone"
                )
            config = vllm_config.model_config.hf_text_config
            self.sasa_layers = layers_of(served.load())
            self.sasa_below = [
                layer for layer in self.sasa_layers if layer < config.num_hidden_layers
            ]
            if self.sasa_below:
                self.set_aux_hidden_state_layers(tuple(self.sasa_below))
            tokens = vllm_config.scheduler_config.max_num_batched_tokens
            tokens = max([tokens, *(vllm_config.compilation_config.cudagraph_capture_sizes or [])])
            self.sasa_states = torch.zeros(len(self.sasa_layers), tokens, config.hidden_size)
            self.sasa_last = torch.zeros(tokens, config.hidden_size)

        @staticmethod
        def get_model_state_cls() -> type:
            from sasa.serving.vllm.second import State

            return State

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            last = super().forward(*args, **kwargs)
            last, aux = last if isinstance(last, tuple) else (last, [])
            # Copied to where they always stand: a CUDA graph that is replayed copies them, too.
            assert len(aux) == len(self.sasa_below), "a compiled model of other layers"
            for layer, found in enumerate(aux):
                self.sasa_states[layer, : len(found)].copy_(found)
            if len(aux) < len(self.sasa_states):
                self.sasa_states[-1, : len(last)].copy_(last)
            self.sasa_last[: len(last)].copy_(last)
            return last

    Keeping.__name__ = Keeping.__qualname__ = CLASS + architecture
    Keeping.__module__ = __name__
    return Keeping
