"""What is compared: ways to have a model complete prompts, each a small class. `MAKERS` is where one is added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from sasa.core.backtracking import Backtracking, reset_token_id
from sasa.core.settings import BETA, PRIOR, THRESHOLD, VALUE, check_beta, check_prior, check_value
from sasa.decoding.completion import Completion
from sasa.evaluation.baselines.caa import CAA
from sasa.evaluation.baselines.debias import SelfDebias
from sasa.evaluation.baselines.dexperts import DExperts
from sasa.evaluation.baselines.guard import Guard
from sasa.evaluation.baselines.prompt import Prompted
from sasa.evaluation.baselines.rad import RAD
from sasa.evaluation.settings import METHODS
from sasa.evaluation.world import Method, World


@dataclass(frozen=True)
class Plain(Method):
    """What the model writes on its own."""

    boundless = True
    served = True

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(prompts, seed=seed)


@dataclass(frozen=True)
class Words(Method):
    """The word filter: transformers' bad-words processor."""

    boundless = True

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(prompts, words=True, seed=seed)


@dataclass(frozen=True)
class SASA(Method):
    """Self-disciplined sampling, with the word filter on top or not."""

    beta: float
    value: str = VALUE
    prior: float = PRIOR
    words: bool = False

    @classmethod
    def parse(cls, argument: str = f"{BETA:g}", words: bool = False) -> SASA:
        """From `BETA`, `BETA:VALUE` or `BETA:VALUE:PRIOR`."""
        beta, value, prior = [*argument.split(":", 2), "", ""][:3]
        made = cls(float(beta), value or VALUE, float(prior or PRIOR), words)
        check_beta(made.beta)
        check_value(made.value)
        check_prior(made.prior)
        return made

    @property
    def served(self) -> bool:  # type: ignore[override]
        return not self.words

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(
            prompts, self.beta, self.value, self.prior, words=self.words, seed=seed
        )


@dataclass(frozen=True)
class BestOf(Method):
    """Writes n completions for each one that is asked for and keeps that with the greatest margin."""

    n: int

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        # One after the other: n times as many rows at once take more than n times as long.
        tries = [world.generate(prompts, seed=seed + i) for i in range(self.n)]
        return [
            [
                replace(
                    max(same, key=lambda c: cast(float, c.margin)),
                    spent=sum(c.spent for c in same),
                    candidates_read=sum(c.candidates_read for c in same),
                )
                for same in zip(*rows, strict=True)
            ]
            for rows in zip(*tries, strict=True)
        ]


@dataclass(frozen=True)
class Backtrack(Method):
    """Text that goes wrong goes back; with SASA before or without."""

    threshold: float = THRESHOLD
    beta: float = 0.0

    @classmethod
    def parse(cls, argument: str = f"{BETA:g}") -> Backtrack:
        """From `BETA` or `BETA:THRESHOLD`."""
        beta, _, threshold = argument.partition(":")
        made = cls(float(threshold or THRESHOLD), float(beta))
        check_beta(made.beta)
        Backtracking(made.threshold)
        return made

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(prompts, self.beta, backtrack=Backtracking(self.threshold), seed=seed)


@dataclass(frozen=True)
class Reset(Method):
    """Text goes back where the model says so itself: it was taught to write [RESET] (`sasa train backtracking`)."""

    boundless = True

    bias: float = 0.0

    @classmethod
    def parse(cls, argument: str = "0") -> Reset:
        """From `BIAS`."""
        made = cls(float(argument))
        made._obeyed(0)
        return made

    def check(self, world: World) -> None:
        reset_token_id(world.tokenizer)

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(
            prompts, backtrack=self._obeyed(reset_token_id(world.tokenizer)), seed=seed
        )

    def _obeyed(self, token: int) -> Backtracking:
        return Backtracking(threshold=None, reset_token_id=token, reset_bias=self.bias)


MAKERS: dict[str, Callable[..., Method]] = {
    "plain": Plain,
    "words": Words,
    "sasa": SASA.parse,
    "sasa+words": lambda argument=f"{BETA:g}": SASA.parse(argument, words=True),
    "backtrack": lambda threshold=f"{THRESHOLD:g}": Backtrack.parse(f"0:{threshold}"),
    "sasa+backtrack": Backtrack.parse,
    "reset": Reset.parse,
    "best-of": lambda n="4": BestOf(_count(n)),
    "rad": RAD.parse,
    "dexperts": DExperts.parse,
    "self-debias": SelfDebias.parse,
    "caa": CAA.parse,
    "prompt": Prompted,
    "guard": Guard.parse,
}
"""A method of what stands behind the colon, for each name in `METHODS`."""


def method(spec: str) -> Method:
    """A method from its name and argument, as in `sasa:2`.

    Raises:
        ValueError: an unknown name, or an argument that it does not take; the message lists what there is.
    """
    name, _, argument = spec.partition(":")
    if name not in METHODS:
        known = "; ".join(f"{key} ({what})" for key, what in METHODS.items())
        raise ValueError(f"unknown method {spec!r}; there are: {known}")
    try:
        return MAKERS[name](*([argument] if argument else []))
    except (TypeError, ValueError) as error:
        raise ValueError(f"method {spec!r}: {METHODS[name]} ({error})") from error


def _count(text: str) -> int:
    if int(text) < 2:
        raise ValueError("N must be >= 2")
    return int(text)
