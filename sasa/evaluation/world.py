"""What every method works with: a model, how it samples, and what a method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sasa.core.backtracking import Backtracking
from sasa.core.boundary import Boundary
from sasa.core.settings import PRIOR, VALUE
from sasa.core.values import Boundaries, terms
from sasa.decoding.completion import Completion
from sasa.decoding.generate import generate
from sasa.evaluation.settings import Settings


@dataclass(frozen=True)
class World:
    """What a method works with; a boundary, unless the method needs none.

    Attributes:
        engine: what writes in place of the model, with `sasa.generate`'s arguments from the prompts on, for methods that
            are `served`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    boundary: Boundaries | None
    settings: Settings
    engine: Callable[..., Any] | None = None

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
        if self.engine is not None:
            return self.engine(
                list(prompts), beta, value=value, prior=prior, chat=s.chat, seed=seed, max_new_tokens=s.max_new_tokens,
                temperature=s.temperature, top_k=s.top_k, top_p=s.top_p, num_return_sequences=s.completions,
            )  # fmt: skip
        more: dict[str, Any] = {"bad_words_ids": self._bad_words()} if words else {}
        return generate(
            self.model, self.tokenizer, list(prompts), self.boundary, beta, chat=s.chat, batch_size=len(prompts),
            seed=seed, max_new_tokens=s.max_new_tokens, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p,
            num_return_sequences=s.completions, value=value, prior=prior, backtrack=backtrack, **more,
        )  # fmt: skip

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int,
        completions: int | None = None,
        chat: bool | None = None,
        processor: LogitsProcessor | None = None,
    ) -> list[list[Completion]]:
        """transformers' own `generate()` with these settings, without a boundary.

        Args:
            completions: of each prompt; None for as many as the settings say.
            chat: whether prompts go through the chat template; None as the settings say.
            processor: is given the model's logits as they are, and is the last to change them: temperature, top-k and
                top-p are its own affair, see `limits`.
        """  # fmt: skip
        s = self.settings
        if self.boundary is not None and not self.first.embedding.special_tokens:
            raise ValueError(
                "the boundary has special_tokens=False, and other people's methods read prompts with them"
            )
        limits: dict[str, Any] = dict(temperature=s.temperature, top_k=s.top_k, top_p=s.top_p)
        if processor is not None:
            limits = dict(
                temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, logits_processor=[processor]
            )
        return generate(
            self.model, self.tokenizer, list(prompts), None, chat=s.chat if chat is None else chat, seed=seed,
            batch_size=len(prompts), max_new_tokens=s.max_new_tokens, num_return_sequences=completions or s.completions,
            **limits,
        )  # fmt: skip

    def limits(self) -> LogitsProcessorList:
        """Temperature, top-k and top-p as transformers' processors: what survives them are the candidates."""
        s = self.settings
        found = LogitsProcessorList(
            [TemperatureLogitsWarper(s.temperature)] if s.temperature != 1.0 else []
        )
        if s.top_k:
            found.append(TopKLogitsWarper(s.top_k))
        if s.top_p < 1.0:
            found.append(TopPLogitsWarper(s.top_p))
        if min_p := self.model.generation_config.min_p:
            found.append(MinPLogitsWarper(min_p))
        return found

    def _bad_words(self) -> list[list[int]]:
        """Token ids of the words as they may stand in a text: at its start or within, in lower case or capitalised."""
        forms = {
            f"{space}{form}"
            for w in self.settings.words
            for space in ("", " ")
            for form in (w, w.capitalize())
        }
        found = (self.tokenizer(form, add_special_tokens=False).input_ids for form in sorted(forms))
        return [list(ids) for ids in {tuple(ids) for ids in found} if ids]


class Method(ABC):
    """A way to complete prompts, and what it says of itself besides: by default nothing.

    Attributes:
        boundless: it needs no boundary.
        served: an engine can write it, which has no word filter, goes back nowhere and gives no margins.
    """

    boundless: ClassVar[bool] = False
    served: bool = False

    @abstractmethod
    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        """`world.settings.completions` of each prompt; the same ones for the same seed and prompts."""

    @property
    def version(self) -> str:
        """Of what it reads from files, or scores by: a run goes on with the same one alone."""
        return ""

    def check(self, world: World) -> None:  # noqa: B027
        """Raises ValueError where it cannot be used in this world, before any long work."""

    def extra_tokens(self, world: World) -> int:
        """Tokens that it puts before a prompt, at most."""
        return 0
