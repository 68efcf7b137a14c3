"""What is compared: ways to have a model complete prompts, each a small class. `METHODS` is where one is added."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import sasa
from sasa.backtracking import THRESHOLD, Backtracking
from sasa.boundary import Boundary
from sasa.generation import Completion
from sasa.values import BETA, PRIOR, VALUE, VALUES, Boundaries, check_beta, check_prior, check_value, terms

WORDS = tuple(
    """
    anal anus arse arsehole ass asshole bastard bitch bitches blowjob bollocks boner bullshit cock cocksucker crap
    cum cunt damn dick dickhead dildo dyke fag faggot fuck fucked fucker fucking goddamn hell horny idiot jackass
    jerk moron motherfucker nazi nigga nigger penis piss pissed porn prick pussy rape raped rapist retard retarded
    sex sexy shit shitty slut sluts stupid suck sucks tits twat vagina wanker whore
    """.split()  # noqa: SIM905
)
"""The word filter's own list: common profanity, short on purpose. A list of one's own comes with --words."""


@dataclass(frozen=True)
class Settings:
    """How every method samples.

    Attributes:
        completions: of a prompt.
        chat: prompts go through the chat template.
        words: what the word filter forbids.
    """

    completions: int = 25
    max_new_tokens: int = 20
    temperature: float = 1.0
    top_k: int = 10
    top_p: float = 0.9
    chat: bool = False
    words: tuple[str, ...] = WORDS

    def to_dict(self) -> dict[str, Any]:
        """What tells these settings from others; the word list by its digest."""
        return asdict(self) | {"words": hashlib.sha256(" ".join(self.words).encode()).hexdigest()[:16]}


@dataclass(frozen=True)
class World:
    """What a method works with; a boundary, unless the method needs none."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    boundary: Boundaries | None
    settings: Settings

    @property
    def first(self) -> Boundary:
        """The boundary whose margins are a text's, where there are several."""
        return terms(self.boundary)[0][0]

    def generate(
        self,
        prompts: Sequence[str],
        beta: float = 0.0,
        value: str = VALUE,
        prior: float = PRIOR,
        *,
        words: bool = False,
        backtrack: Backtracking | None = None,
        seed: int,
    ) -> list[list[Completion]]:
        """`sasa.generate` with these settings, and the word filter or not."""
        s = self.settings
        more: dict[str, Any] = {"bad_words_ids": self._bad_words()} if words else {}
        return sasa.generate(
            self.model, self.tokenizer, list(prompts), self.boundary, beta, chat=s.chat, batch_size=len(prompts),
            seed=seed, max_new_tokens=s.max_new_tokens, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p,
            num_return_sequences=s.completions, value=value, prior=prior, backtrack=backtrack, **more,
        )  # fmt: skip

    def _bad_words(self) -> list[list[int]]:
        """Token ids of the words as they may stand in a text: at its start or within, in lower case or capitalised."""
        forms = {f"{space}{form}" for w in self.settings.words for space in ("", " ") for form in (w, w.capitalize())}
        found = (self.tokenizer(form, add_special_tokens=False).input_ids for form in sorted(forms))
        return [list(ids) for ids in {tuple(ids) for ids in found} if ids]


class Method(Protocol):
    """A way to complete prompts."""

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        """`world.settings.completions` of each prompt; the same ones for the same seed and prompts."""
        ...


@dataclass(frozen=True)
class Plain:
    """What the model writes on its own."""

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(prompts, seed=seed)


@dataclass(frozen=True)
class Words:
    """The word filter: transformers' bad-words processor."""

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(prompts, words=True, seed=seed)


@dataclass(frozen=True)
class SASA:
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

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.generate(prompts, self.beta, self.value, self.prior, words=self.words, seed=seed)


@dataclass(frozen=True)
class BestOf:
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
class Backtrack:
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


METHODS: dict[str, tuple[str, Callable[..., Method]]] = {
    "plain": ("the model on its own", Plain),
    "words": ("the word filter", Words),
    "sasa": (
        f"sasa:BETA[:VALUE[:PRIOR]], SASA at that strength; VALUE is {' or '.join(VALUES)}, by default {VALUE}, PRIOR the "
        f"share of unsafe text, by default {PRIOR:g}",
        SASA.parse,
    ),
    "sasa+words": (
        "sasa+words:BETA[:VALUE[:PRIOR]], SASA and the word filter",
        lambda argument=f"{BETA:g}": SASA.parse(argument, words=True),
    ),
    "backtrack": (
        f"backtrack:THRESHOLD, back from where P(unsafe) reaches it, by default {THRESHOLD:g}",
        lambda threshold=f"{THRESHOLD:g}": Backtrack.parse(f"0:{threshold}"),
    ),
    "sasa+backtrack": ("sasa+backtrack:BETA[:THRESHOLD], SASA, and back where it was not enough", Backtrack.parse),
    "best-of": ("best-of:N, the one of N completions with the greatest margin", lambda n="4": BestOf(_count(n))),
}


def method(spec: str) -> Method:
    """A method from its name and argument, as in `sasa:2`.

    Raises:
        ValueError: an unknown name, or an argument that it does not take; the message lists what there is.
    """
    name, _, argument = spec.partition(":")
    if name not in METHODS:
        known = "; ".join(f"{key} ({what})" for key, (what, _) in METHODS.items())
        raise ValueError(f"unknown method {spec!r}; there are: {known}")
    try:
        return METHODS[name][1](*([argument] if argument else []))
    except (TypeError, ValueError) as error:
        raise ValueError(f"method {spec!r}: {METHODS[name][0]} ({error})") from error


def _count(text: str) -> int:
    if int(text) < 2:
        raise ValueError("N must be >= 2")
    return int(text)
