"""What a corpus gives: examples, or pairs of replies."""

from __future__ import annotations

from dataclasses import dataclass

from sasa.core.embedding_spec import Text
from sasa.data.dialogues import Message


@dataclass(frozen=True)
class Example:
    """A text with its score.

    Attributes:
        text: plain, or a prompt and a response.
        score: how unsafe it is, in [0, 1].
        group: texts of one group must not be split between fitting and testing.
        prompt_score: of a response, how unsafe its prompt is, if the source says so.
        by: the value of the corpus's column `by`.
    """

    text: Text
    score: float
    group: str
    prompt_score: float | None = None
    by: str | None = None


@dataclass(frozen=True)
class Pair:
    """A prompt, the reply to it that people preferred, and the one that they rejected.

    Attributes:
        turns: the prompt as chat messages; none if no user speaks in it.
    """

    prompt: str
    safe: str
    unsafe: str
    turns: tuple[Message, ...] = ()
