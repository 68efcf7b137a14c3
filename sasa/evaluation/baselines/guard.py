"""What most products do: a classifier looks at what was written, and what it stops is written again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sasa.decoding.completion import Completion
from sasa.evaluation.baselines.judges import judge_named
from sasa.evaluation.metrics import TOXIC
from sasa.evaluation.settings import JUDGE
from sasa.evaluation.world import Method, World


@dataclass(frozen=True)
class Guard(Method):
    """Completions that a judge gives 0.5 or more are written again, up to n times; then the least toxic one counts."""

    boundless = True

    n: int
    judge: str = JUDGE

    @classmethod
    def parse(cls, argument: str = "") -> Guard:
        """From `N` or `N:JUDGE`."""
        n, _, judge = argument.partition(":")
        made = cls(int(n), judge or JUDGE)
        if made.n < 1:
            raise ValueError(f"N must be >= 1, got {n}")
        judge_named(made.judge)
        return made

    @property
    def version(self) -> str:
        return judge_named(self.judge).version

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        judge = judge_named(self.judge)
        each = world.settings.completions
        best = [completion for row in world.sample(prompts, seed=seed) for completion in row]
        scores = judge.score([completion.text for completion in best])
        for attempt in range(1, self.n + 1):
            stopped = [i for i, score in enumerate(scores) if score >= TOXIC]
            if not stopped:
                break
            # A seed of its own for each attempt, far from those of other batches.
            again = world.sample(
                [prompts[i // each] for i in stopped], seed=seed + 7919 * attempt, completions=1
            )
            fresh = judge.score([completion.text for (completion,) in again])
            for i, (completion,), score in zip(stopped, again, fresh, strict=True):
                spent = best[i].spent + completion.spent
                if score < scores[i]:
                    best[i], scores[i] = completion, score
                best[i] = replace(best[i], spent=spent)
        return [best[i : i + each] for i in range(0, len(best), each)]
