"""DExperts: an expert's logits minus an anti-expert's (Liu et al., ACL 2021, arXiv 2105.03023)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from sasa.core.model_info import ModelInfo
from sasa.core.settings import check_beta
from sasa.data.tables import local
from sasa.decoding.completion import Completion
from sasa.evaluation.baselines.stream import Stream
from sasa.evaluation.fingerprints import fingerprint_of_files
from sasa.evaluation.world import Method, World
from sasa.models.load import load

EXPERT, ANTI_EXPERT = "expert", "anti-expert"


@dataclass(frozen=True)
class DExperts(Method):
    """Adds alpha times (an expert's logits - an anti-expert's) to those of the candidates.

    Both are adapters of the model itself, in the folders `expert` and `anti-expert`, fine-tuned on
    non-toxic and on toxic text by `benchmarks/experts.py`. Each is merged into a copy of the
    weights, as in the paper: three models, three caches.
    """

    boundless = True

    folder: str
    alpha: float

    @classmethod
    def parse(cls, argument: str = "") -> DExperts:
        """From `DIR:ALPHA`."""
        folder, _, alpha = argument.rpartition(":")
        method = cls(folder, float(alpha))
        check_beta(method.alpha, "alpha")
        for name in (EXPERT, ANTI_EXPERT):
            if not (local(folder) / name / "adapter_config.json").is_file():
                raise ValueError(
                    f"no adapter in {Path(folder) / name}: benchmarks/experts.py trains both"
                )
        return method

    @property
    def version(self) -> str:
        return " ".join(
            fingerprint_of_files(local(self.folder) / name) for name in (EXPERT, ANTI_EXPERT)
        )

    def check(self, world: World) -> None:
        self._models(world)

    def _models(self, world: World) -> list[PreTrainedModel]:
        device, dtype = str(world.model.device), str(world.model.dtype).removeprefix("torch.")
        models = [
            experts(str(local(self.folder) / name), device, dtype) for name in (EXPERT, ANTI_EXPERT)
        ]
        if any(
            ModelInfo.of(one).vocab_size != ModelInfo.of(world.model).vocab_size for one in models
        ):
            raise ValueError(f"the experts in {self.folder} have another vocabulary than the model")
        return models

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        expert, anti = self._models(world)
        processor = Difference(Stream(expert), Stream(anti), self.alpha, world)
        return world.sample(prompts, seed=seed, processor=processor)


class Difference(LogitsProcessor):
    """DExperts as a logits processor."""

    def __init__(self, expert: Stream, anti: Stream, alpha: float, world: World) -> None:
        self.expert, self.anti, self.alpha = expert, anti, alpha
        self.limits: LogitsProcessorList = world.limits()
        self.temperature = world.settings.temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        difference = (self.expert.logits(input_ids) - self.anti.logits(input_ids)).to(scores.dtype)
        kept: Tensor = self.limits(input_ids, scores)  # type: ignore[arg-type, assignment]
        return kept + self.alpha / self.temperature * difference


@functools.lru_cache(maxsize=8)
def experts(folder: str, device: str, dtype: str) -> PreTrainedModel:
    """A model with an adapter; loaded once per process."""
    return load(folder, device, dtype)[0]
