"""Prompts to token ids, and the tokens of a completion to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.models.embedding import Prompt, tokenize_prompt
from sasa.models.states import context_window


def encode_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    spec: EmbeddingSpec,
    chat: bool,
    room: int,
) -> list[list[int]]:
    """Token ids of the prompts, all checked before the first of them is used.

    Raises:
        ValueError: no prompts, an empty one, one that leaves no `room` in the context window (it is
            named by its index), or a chat without a template.
    """
    spec = replace(spec, template="chat" if chat else "none")
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to complete")
    if chat and tokenizer.chat_template is None:
        raise ValueError("chat: the model's tokenizer has no chat template")
    window = context_window(model)
    encoded = []
    for number, prompt in enumerate(prompts):
        _check_prompt(number, prompt, chat)
        try:
            ids = tokenize_prompt(tokenizer, prompt, spec)
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        if window is not None and len(ids) + room > window:
            raise ValueError(
                f"prompt {number} has {len(ids)} tokens: with max_new_tokens={room} that is beyond the model's context "
                f"window of {window}"
            )
        encoded.append(ids)
    return encoded


def _check_prompt(number: int, prompt: Prompt, chat: bool) -> None:
    """Raises ValueError for a prompt that holds nothing, or that is a conversation and none is wanted."""
    if prompt is None or (
        isinstance(prompt, Sequence) and not (prompt.strip() if isinstance(prompt, str) else prompt)
    ):
        raise ValueError(f"prompt {number} is empty: a completion needs something to complete")
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, Sequence):
        raise ValueError(
            f"prompt {number} is of type {type(prompt).__name__}: it must be a text or a list of messages"
        )
    if not chat:
        raise ValueError(f"prompt {number} is a conversation: give chat=True")
    for turn in prompt:
        if not (
            isinstance(turn, Mapping)
            and all(isinstance(turn.get(name), str) for name in ("role", "content"))
        ):
            raise ValueError(
                f"prompt {number}: a conversation is messages with role and content, got {turn!r}"
            )


def completion_text(tokenizer: PreTrainedTokenizerBase, prompt: list[int], row: list[int]) -> str:
    """What a row of tokens adds to its prompt: alone, SentencePiece would drop the space that it
    begins with.
    """
    before, whole = (
        str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, [*prompt, *row])
    )
    if whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode(row, skip_special_tokens=True))
