"""Prompts in batches in which no completion depends on its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import GenerationConfig

from sasa.decoding.limits import first_given
from sasa.models.embedding import length_batches

READERS = {
    "logits_processor": None,
    "prefix_allowed_tokens_fn": None,
    "stopping_criteria": None,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "watermarking_config": None,
}
"""Arguments of `model.generate` by which it may read a whole text, or count its tokens, padding
included; and the value that turns each off."""


def reach_of(kwargs: Mapping[str, Any], config: GenerationConfig) -> int:
    """The number of a text's last tokens that processors and criteria may read; 0 if they read none."""

    def given(name: str) -> Any:
        return first_given(kwargs.get(name), getattr(config, name, None))

    if any(given(name) not in (None, neutral) for name, neutral in READERS.items()):
        return 1 << 62
    bias = given("sequence_bias") or []
    sequences = [
        *(given("bad_words_ids") or []),
        *(bias if isinstance(bias, dict) else (pair[0] for pair in bias)),
    ]
    strings = given("stop_strings") or []
    strings = [strings] if isinstance(strings, str) else strings
    first = 2 * (given("forced_bos_token_id") is not None)  # where the text has one token
    return max(
        0,
        first,
        *(len(words) - 1 for words in sequences),
        *(len(text.encode()) for text in strings),
    )


def batches(lengths: Sequence[int], batch_size: int, reach: int) -> Iterator[list[int]]:
    """Prompts in batches; those shorter than `reach` only with others of their length."""
    for batch in length_batches(lengths, batch_size, 1 << 62):
        if lengths[batch[-1]] >= reach or lengths[batch[0]] == lengths[batch[-1]]:
            yield batch
        else:
            for length in dict.fromkeys(lengths[i] for i in batch):
                yield [i for i in batch if lengths[i] == length]
