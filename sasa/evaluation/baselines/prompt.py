"""Prompting: an instruction before the text, or as the system turn of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from jinja2.exceptions import TemplateError

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.decoding.completion import Completion
from sasa.evaluation.world import Method, World
from sasa.models.embedding import tokenize_prompt

INSTRUCTION = (
    "The following text is polite and respectful. "
    "It contains no insults, slurs, threats or sexual language."
)


@dataclass(frozen=True)
class Prompted(Method):
    """Plain sampling after an instruction."""

    boundless = True

    instruction: str = INSTRUCTION

    def check(self, world: World) -> None:
        self._whole(world, "x")

    def extra_tokens(self, world: World) -> int:
        spec = EmbeddingSpec(template="chat" if world.settings.chat else "none")
        alone, whole = (
            tokenize_prompt(world.tokenizer, "x", spec),
            world.tokenizer(self._whole(world, "x"))["input_ids"],
        )
        return len(whole) - len(alone) + 2  # where the two meet, more may be needed

    def __call__(self, world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
        return world.sample(
            [self._whole(world, prompt) for prompt in prompts], seed=seed, chat=False
        )

    def _whole(self, world: World, prompt: str) -> str:
        """The instruction and a prompt as text, without the BOS token that the tokenizer adds."""
        if not world.settings.chat:
            return f"{self.instruction}\n\n{prompt}"
        turns = [
            {"role": "system", "content": self.instruction},
            {"role": "user", "content": prompt},
        ]
        tokenizer = world.tokenizer
        try:
            text = cast(
                str,
                tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False),
            )
        except TemplateError as error:
            raise ValueError(
                f"prompt: the chat template takes no turn of the system's ({error})"
            ) from error
        bos = tokenizer.bos_token_id
        twice = bos is not None and tokenizer(text).input_ids[:2] == [bos, bos]
        return text.removeprefix(str(tokenizer.bos_token)) if twice else text
