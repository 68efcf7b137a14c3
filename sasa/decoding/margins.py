"""Texts -> margins: what a boundary makes of text that is there already.

Decoding measures texts that are still being written; see `sasa.decoding.lookahead` for those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.boundary import Boundary
from sasa.core.embedding_spec import EmbeddingSpec, Text
from sasa.models.embedding import embed, embed_prefixes
from sasa.models.states import context_window


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    boundary: Boundary,
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """Margins, float32 (N,), of whole texts or (prompt, response) pairs.

    Raises:
        ValueError: no texts, a text without tokens (named by its index), or a boundary that was
            fitted for another model.
    """
    boundary.check(model)
    spec = _whole(model, boundary.embedding)
    vectors = embed(model, tokenizer, texts, spec, batch_size=batch_size, progress=progress)
    return boundary.margin(vectors.to(boundary.weight.device))


def trace(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Text, boundary: Boundary
) -> tuple[list[str], Tensor]:
    """The margin of a text as it grows: its T tokens as strings, and float32 (T,).

    Joined, the strings are the text: of the tokens of one character the last has it, the others are
    empty.
    """
    boundary.check(model)
    tokens, states = embed_prefixes(model, tokenizer, text, _whole(model, boundary.embedding))
    return tokens, boundary.margin(states.to(boundary.weight.device))


def turning_point(tokens: Sequence[str], margins: Sequence[float]) -> tuple[float, str]:
    """The lowest margin of a text as it grows, and the token after which it has it."""
    lowest = min(range(len(margins)), key=margins.__getitem__)
    # A token within a character has no text of its own.
    return margins[lowest], next((token for token in tokens[lowest:] if token), "")


def _whole(model: PreTrainedModel, spec: EmbeddingSpec) -> EmbeddingSpec:
    """A spec without the fit's limit on length: a text is judged by all that the model can read."""
    return replace(spec, max_length=context_window(model) or 2**31)
