"""The usual product's filter: a scorer checks each completion, and those it stops are rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sasa.decoding.completion import Completion
from sasa.evaluation.baselines.scorers import shared_scorer
from sasa.evaluation.metrics import TOXIC
from sasa.evaluation.registry import GUARD_SCORER
from sasa.evaluation.world import Method, World


@dataclass(frozen=True)
class Guard(Method):
    """Rewrites completions with a toxicity >= 0.5, up to n times, and keeps the least toxic."""

    boundless = True

    n: int
    scorer: str = GUARD_SCORER

    @classmethod
    def parse(cls, argument: str = "") -> Guard:
        """From `N` or `N:JUDGE`."""
        n, _, name = argument.partition(":")
        method = cls(int(n), name or GUARD_SCORER)
        if method.n < 1:
            raise ValueError(f"N must be >= 1, got {n}")
        shared_scorer(method.scorer)
        return method

    @property
    def version(self) -> str:
        return shared_scorer(self.scorer).version

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        scorer = shared_scorer(self.scorer)
        each = world.settings.completions
        best = [completion for row in world.sample(prompts, seed=seed) for completion in row]
        scores = scorer.score([completion.text for completion in best])
        for attempt in range(1, self.n + 1):
            stopped = [i for i, score in enumerate(scores) if score >= TOXIC]
            if not stopped:
                break
            # A seed of its own for each attempt, far from those of other batches.
            again = world.sample(
                [prompts[i // each] for i in stopped], seed=seed + 7919 * attempt, completions=1
            )
            fresh = scorer.score([completion.text for (completion,) in again])
            for i, (completion,), score in zip(stopped, again, fresh, strict=True):
                spent = best[i].spent + completion.spent
                if score < scores[i]:
                    best[i], scores[i] = completion, score
                best[i] = replace(best[i], spent=spent)
        return [best[i : i + each] for i in range(0, len(best), each)]
