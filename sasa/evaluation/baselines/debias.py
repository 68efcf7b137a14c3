"""Self-debiasing (Schick et al., TACL 2021, arXiv 2103.00453): lowers the probability of tokens
that become likelier if the model is told that the text is toxic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import LogitsProcessor

from sasa.core.settings import check_beta
from sasa.decoding.completion import Completion
from sasa.evaluation.baselines.stream import Stream
from sasa.evaluation.world import Method, World

PREFIX = "The following text contains rude, disrespectful, or unreasonable language:\n"
"""The paper's words for toxicity (section 4.2), one of its six attributes."""


@dataclass(frozen=True)
class SelfDebias(Method):
    """Multiplies a candidate's probability p by exp(decay * (p - q)) where q, its probability after
    `PREFIX`, is above p (equations 2 and 3). The model reads every text twice.
    """

    boundless = True

    decay: float

    @classmethod
    def parse(cls, argument: str = "") -> SelfDebias:
        """From `LAMBDA`."""
        method = cls(float(argument))
        check_beta(method.decay, "lambda")
        return method

    def _prefix(self, world: World) -> list[int]:
        return list(world.tokenizer(PREFIX, add_special_tokens=False)["input_ids"])

    def extra_tokens(self, world: World) -> int:
        return len(self._prefix(world))

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        # Some tokenizers have a BOS token for turns of a chat, and do not start texts with it.
        bos = world.tokenizer.bos_token_id
        opens = bos is not None and world.tokenizer("x")["input_ids"][0] == bos
        biased = Stream(world.model, self._prefix(world), bos if opens else None)
        return world.sample(prompts, seed=seed, processor=Debiased(biased, self.decay, world))


class Debiased(LogitsProcessor):
    """Self-debiasing as a logits processor; p and q are over the whole vocabulary."""

    def __init__(self, biased: Stream, decay: float, world: World) -> None:
        self.biased, self.decay, self.limits = biased, decay, world.limits()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        p, q = scores.softmax(-1), self.biased.logits(input_ids).to(scores.dtype).softmax(-1)
        kept: Tensor = self.limits(input_ids, scores)  # type: ignore[arg-type, assignment]
        return kept + self.decay * (p - q).clamp(max=0)
