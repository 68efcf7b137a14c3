"""The interface of methods: a model with its boundary and sampling settings, and the base class."""

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
    """A model and its settings, with which methods complete prompts.

    Attributes:
        boundary: None for methods that need none.
        engine: generates in place of the model, for methods that are `served`; it takes the
            arguments of `sasa.generate` from the prompts on.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    boundary: Boundaries | None
    settings: Settings
    engine: Callable[..., Any] | None = None

    @property
    def first(self) -> Boundary:
        """The boundary, or the first of several: its margins are reported."""
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
        """`sasa.generate` with these settings, and with the word filter if `words` is set."""
        s = self.settings
        if self.engine is not None:
            return self.engine(
                list(prompts), beta, value=value, prior=prior, chat=s.chat, seed=seed,
                max_new_tokens=s.max_new_tokens, temperature=s.temperature, top_k=s.top_k,
                top_p=s.top_p, num_return_sequences=s.completions,
            )  # fmt: skip
        more: dict[str, Any] = {"bad_words_ids": self._bad_words()} if words else {}
        return generate(
            self.model, self.tokenizer, list(prompts), self.boundary, beta, value=value,
            prior=prior, chat=s.chat, batch_size=len(prompts), seed=seed,
            max_new_tokens=s.max_new_tokens, temperature=s.temperature, top_k=s.top_k,
            top_p=s.top_p, num_return_sequences=s.completions, backtrack=backtrack, **more,
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
            completions: per prompt; None for the number in the settings.
            chat: whether prompts go through the chat template; None as in the settings.
            processor: receives the model's unchanged logits and is the last to change them: it
                applies temperature, top-k and top-p itself, see `limits`.
        """  # fmt: skip
        s = self.settings
        if self.boundary is not None and not self.first.embedding.special_tokens:
            raise ValueError(
                "the boundary has special_tokens=False, "
                "and other people's methods read prompts with them"
            )
        limits: dict[str, Any] = dict(temperature=s.temperature, top_k=s.top_k, top_p=s.top_p)
        if processor is not None:
            limits = dict(
                temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, logits_processor=[processor]
            )
        return generate(
            self.model, self.tokenizer, list(prompts), None,
            chat=s.chat if chat is None else chat, seed=seed, batch_size=len(prompts),
            max_new_tokens=s.max_new_tokens, num_return_sequences=completions or s.completions,
            **limits,
        )  # fmt: skip

    def limits(self) -> LogitsProcessorList:
        """Temperature, top-k and top-p as transformers' processors; they leave the candidates."""
        s = self.settings
        limits = LogitsProcessorList(
            [TemperatureLogitsWarper(s.temperature)] if s.temperature != 1.0 else []
        )
        if s.top_k:
            limits.append(TopKLogitsWarper(s.top_k))
        if s.top_p < 1.0:
            limits.append(TopPLogitsWarper(s.top_p))
        if min_p := self.model.generation_config.min_p:
            limits.append(MinPLogitsWarper(min_p))
        return limits

    def _bad_words(self) -> list[list[int]]:
        """Token ids of the words, at the start of a text or within it, also capitalised."""
        forms = {
            f"{space}{form}"
            for w in self.settings.words
            for space in ("", " ")
            for form in (w, w.capitalize())
        }
        encoded = (
            self.tokenizer(form, add_special_tokens=False).input_ids for form in sorted(forms)
        )
        return [list(ids) for ids in {tuple(ids) for ids in encoded} if ids]


class Method(ABC):
    """A way to complete prompts.

    Attributes:
        boundless: whether it needs no boundary.
        served: whether an engine can generate for it: engines have no word filter, no backtracking
            and no margins.
    """

    boundless: ClassVar[bool] = False
    served: bool = False

    @abstractmethod
    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        """Writes `world.settings.completions` of each prompt; deterministic given the seed."""

    @property
    def version(self) -> str:
        """The version of its files or scorer: a run is resumed only with the same one."""
        return ""

    def check(self, world: World) -> None:  # noqa: B027
        """Raises ValueError if it cannot be used in this world, before any long work."""

    def extra_tokens(self, world: World) -> int:
        """The maximum number of tokens that it puts before a prompt."""
        return 0
