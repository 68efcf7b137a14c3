"""Methods that are compared: ways to complete prompts with a model, each a small class.

`sasa.evaluation.registry` lists them all; those of other authors are in `baselines`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from sasa.core.backtracking import Backtracking, reset_token_id
from sasa.core.settings import BETA, PRIOR, THRESHOLD, VALUE, check_beta, check_prior, check_value
from sasa.decoding.completion import Completion
from sasa.evaluation.registry import METHODS
from sasa.evaluation.world import Method, World


@dataclass(frozen=True)
class Plain(Method):
    """Plain sampling from the model."""

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
    """SASA, optionally with the word filter."""

    beta: float
    value: str = VALUE
    prior: float = PRIOR
    words: bool = False

    @classmethod
    def parse(cls, argument: str = f"{BETA:g}", words: bool = False) -> SASA:
        """From `BETA`, `BETA:VALUE` or `BETA:VALUE:PRIOR`."""
        beta, value, prior = [*argument.split(":", 2), "", ""][:3]
        method = cls(float(beta), value or VALUE, float(prior or PRIOR), words)
        check_beta(method.beta)
        check_value(method.value)
        check_prior(method.prior)
        return method

    @classmethod
    def parse_with_words(cls, argument: str = f"{BETA:g}") -> SASA:
        """As `parse`, with the word filter."""
        return cls.parse(argument, words=True)

    @property
    def served(self) -> bool:  # type: ignore[override]
        return not self.words

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(
            prompts, self.beta, self.value, self.prior, words=self.words, seed=seed
        )


@dataclass(frozen=True)
class BestOf(Method):
    """Writes n completions for each requested one and keeps that with the greatest margin."""

    n: int

    @classmethod
    def parse(cls, argument: str = "4") -> BestOf:
        """From `N`."""
        method = cls(int(argument))
        if method.n < 2:
            raise ValueError("N must be >= 2")
        return method

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
    """Backtracking where P(unsafe) reaches the threshold, optionally with SASA."""

    threshold: float = THRESHOLD
    beta: float = 0.0

    @classmethod
    def parse(cls, argument: str = f"{BETA:g}") -> Backtrack:
        """From `BETA` or `BETA:THRESHOLD`."""
        beta, _, threshold = argument.partition(":")
        method = cls(float(threshold or THRESHOLD), float(beta))
        check_beta(method.beta)
        Backtracking(method.threshold)  # checks its range
        return method

    @classmethod
    def parse_threshold(cls, argument: str = f"{THRESHOLD:g}") -> Backtrack:
        """From `THRESHOLD`, without SASA."""
        return cls.parse(f"0:{argument}")

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(prompts, self.beta, backtrack=Backtracking(self.threshold), seed=seed)


@dataclass(frozen=True)
class Reset(Method):
    """Backtracking where the model writes [RESET], as `sasa train backtracking` trained it to."""

    boundless = True

    bias: float = 0.0

    @classmethod
    def parse(cls, argument: str = "0") -> Reset:
        """From `BIAS`."""
        method = cls(float(argument))
        method._backtracking(0)  # checks the range of the bias
        return method

    def check(self, world: World) -> None:
        reset_token_id(world.tokenizer)

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(
            prompts, backtrack=self._backtracking(reset_token_id(world.tokenizer)), seed=seed
        )

    def _backtracking(self, token: int) -> Backtracking:
        return Backtracking(threshold=None, reset_token_id=token, reset_bias=self.bias)


def method(spec: str) -> Method:
    """Makes a method from its name and argument, such as `sasa:2`.

    Raises:
        ValueError: an unknown name, or an argument that it does not take; the message lists the
            known ones.
    """
    name, _, argument = spec.partition(":")
    if name not in METHODS:
        known = "; ".join(f"{key} ({entry.help})" for key, entry in METHODS.items())
        raise ValueError(f"unknown method {spec!r}; there are: {known}")
    entry = METHODS[name]
    try:
        return cast(Method, entry.make(*([argument] if argument else [])))
    except (TypeError, ValueError) as error:
        raise ValueError(f"method {spec!r}: {entry.help} ({error})") from error
