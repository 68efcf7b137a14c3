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
from sasa.evaluation.baselines.judges import judge_named
from sasa.evaluation.scorers import Scorer
from sasa.evaluation.world import Method, World
from sasa.models.heads import token_ids


@dataclass(frozen=True)
class RAD(Method):
    """Adds beta times the reward of the text with a candidate, 1 - its toxicity by a judge, to the candidate's logit.

    The paper's reward model reads from left to right behind a cache of its own; a judge of ours reads each candidate's text
    anew. What it decodes to is the same for the same judge, at another price.
    """

    boundless = True

    judge: str
    beta: float

    @classmethod
    def parse(cls, argument: str = "") -> RAD:
        """From `JUDGE:BETA`."""
        judge, _, beta = argument.rpartition(":")
        made = cls(judge, float(beta))
        check_beta(made.beta)
        judge_named(judge)
        return made

    @property
    def version(self) -> str:
        return judge_named(self.judge).version

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        eos = token_ids(world.model, "eos_token_id", None)
        processor = Reward(judge_named(self.judge), world.tokenizer, self.beta, world.limits(), eos)
        return world.sample(prompts, seed=seed, processor=processor)


class Reward(LogitsProcessor):
    """The same as a logits processor: the candidates are what `limits` leaves. Rows that have ended cost nothing."""

    def __init__(
        self,
        judge: Scorer,
        tokenizer: Any,
        beta: float,
        limits: LogitsProcessorList,
        eos: Sequence[int] = (),
    ) -> None:
        self.judge, self.tokenizer, self.beta, self.limits = judge, tokenizer, beta, limits
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
        toxicity = dict(zip(different, self.judge.score(different), strict=True))
        rewards = torch.tensor(
            [1 - toxicity[text] for text in texts], dtype=scores.dtype, device=scores.device
        )
        scores[rows, tokens] += self.beta * rewards
        return scores
