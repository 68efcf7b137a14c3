"""RAD: reward-augmented decoding (Deng and Raffel, EMNLP 2023, arXiv 2310.09520)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from sasa.core.settings import check_beta
from sasa.decoding.completion import Completion
from sasa.evaluation.baselines.scorers import shared_scorer
from sasa.evaluation.scorers import Scorer
from sasa.evaluation.world import Method, World
from sasa.models.heads import token_ids


@dataclass(frozen=True)
class RAD(Method):
    """Adds beta * (1 - toxicity) to a candidate's logit, by a scorer of the text with the candidate.

    The paper's reward model is causal and keeps a cache; a scorer reads each candidate's text anew.
    The distribution is the same for the same scorer, at another cost.
    """

    boundless = True

    scorer: str
    beta: float

    @classmethod
    def parse(cls, argument: str = "") -> RAD:
        """From `JUDGE:BETA`."""
        name, _, beta = argument.rpartition(":")
        method = cls(name, float(beta))
        check_beta(method.beta)
        shared_scorer(name)
        return method

    @property
    def version(self) -> str:
        return shared_scorer(self.scorer).version

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        eos = token_ids(world.model, "eos_token_id", None)
        scorer = shared_scorer(self.scorer)
        processor = RewardProcessor(scorer, world.tokenizer, self.beta, world.limits(), eos)
        return world.sample(prompts, seed=seed, processor=processor)


class RewardProcessor(LogitsProcessor):
    """RAD as a logits processor; candidates are what `limits` leaves. Finished rows are skipped."""

    def __init__(
        self,
        scorer: Scorer,
        tokenizer: Any,
        beta: float,
        limits: LogitsProcessorList,
        eos: Sequence[int] = (),
    ) -> None:
        self.scorer, self.tokenizer, self.beta, self.limits = scorer, tokenizer, beta, limits
        self.eos = torch.tensor([*eos], dtype=torch.long)
        self._read = self._start = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        length = input_ids.shape[1]
        if length != self._read + 1:  # new texts
            self._start = length
        self._read = length
        scores = self.limits(input_ids, scores).clone()  # type: ignore[arg-type]
        going_on = ~torch.isin(input_ids[:, self._start :], self.eos.to(input_ids.device)).any(1)
        rows, tokens = ((scores > -torch.inf) & going_on[:, None]).nonzero(as_tuple=True)
        if not len(rows):
            return scores
        # An end of sequence is no text: it gets the reward of the text that it would end.
        texts = self.tokenizer.batch_decode(
            torch.cat([input_ids[rows], tokens[:, None]], 1), skip_special_tokens=True
        )
        different = list(dict.fromkeys(texts))
        toxicity = dict(zip(different, self.scorer.score(different), strict=True))
        rewards = torch.tensor(
            [1 - toxicity[text] for text in texts], dtype=scores.dtype, device=scores.device
        )
        scores[rows, tokens] += self.beta * rewards
        return scores
