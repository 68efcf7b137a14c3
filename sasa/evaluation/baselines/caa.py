"""Contrastive activation addition (Panickssery et al., ACL 2024, arXiv 2312.06681).

The package `steering-vectors` (0.12) requires transformers below 5; a forward hook does the same.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sasa.data.tables import local
from sasa.decoding.completion import Completion
from sasa.evaluation.world import Method, World
from sasa.models.parts import depth_of, layers

VECTORS = "vectors.safetensors"


@dataclass(frozen=True)
class CAA(Method):
    """Adds scale * (mean hidden state of non-toxic text - of toxic text) to the output of a layer,
    at the prompt's last token and at every generated token.

    `benchmarks/experts.py` writes the differences to DIR/vectors.safetensors.

    Args:
        layer: from 1, the first layer, to the model's number of layers.
    """

    boundless = True

    folder: str
    layer: int
    scale: float

    @classmethod
    def parse(cls, argument: str = "") -> CAA:
        """From `DIR:LAYER:SCALE`."""
        folder, layer, scale = argument.rsplit(":", 2)
        method = cls(folder, int(layer), float(scale))
        if not math.isfinite(method.scale):
            raise ValueError(f"SCALE must be finite, got {scale}")
        vectors = _vectors(str(local(folder)))
        if not 1 <= method.layer < len(vectors):
            raise ValueError(f"LAYER must be in [1, {len(vectors) - 1}], got {layer}")
        return method

    @property
    def version(self) -> str:
        return hashlib.sha256(_vectors(str(local(self.folder))).numpy().tobytes()).hexdigest()[:12]

    def check(self, world: World) -> None:
        with added(world.model, self.layer, _vectors(str(local(self.folder)))[self.layer]):
            pass

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        vector = _vectors(str(local(self.folder)))[self.layer]
        with added(world.model, self.layer, self.scale * vector):
            return world.sample(prompts, seed=seed)


@contextmanager
def added(model: PreTrainedModel, layer: int, vector: Tensor) -> Iterator[None]:
    """Within the block, a layer adds a vector (d,) at the last token of each forward pass."""
    if layer > depth_of(model) or len(vector) != model.config.get_text_config().hidden_size:
        raise ValueError(f"the vectors are of another model: {len(vector)} wide, for layer {layer}")
    vector = vector.to(model.device, model.dtype)

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, -1] += vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = layers(model)[layer - 1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@functools.lru_cache(maxsize=8)
def _vectors(folder: str) -> Tensor:
    file = Path(folder) / VECTORS
    if not file.is_file():
        raise ValueError(f"no {file}: benchmarks/experts.py writes it")
    try:
        vectors = load_file(file)["vectors"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{file} is damaged: {error!r}") from error
    if vectors.ndim != 2:
        raise ValueError(f"{file} is damaged: vectors have the shape {tuple(vectors.shape)}")
    return vectors
