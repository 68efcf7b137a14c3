"""Texts -> context embeddings: what a language model's hidden space holds of a text.

One definition serves the fit, the look-ahead and the scoring of finished texts. It knows nothing
about labels, boundaries or sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec, Text, layers_of
from sasa.data.tables import check_characters
from sasa.models.inputs import check_model
from sasa.models.parts import first_layers
from sasa.models.states import check_ready, hidden_states, numbered
from sasa.utils.progress import progress_bar

Prompt: TypeAlias = "str | Sequence[Mapping[str, str]]"
"""A text, or a conversation: messages with `role` and `content`, as chat templates have them."""


def tokenize(
    tokenizer: PreTrainedTokenizerBase, text: Text, spec: EmbeddingSpec
) -> tuple[list[int], int]:
    """Token ids of a text, and where its span begins.

    The prompt and the response of a pair are tokenized apart, because that is how decoding meets
    them: the prompt's tokens are fixed before the first token of the response is drawn.

    Raises:
        ValueError: the text gives no tokens, holds what is no character, or `template="chat"` and the
            text is not a pair.
    """
    for part in [text] if isinstance(text, str) else text:
        check_characters(part or "")
    if isinstance(text, str):
        if spec.template == "chat":
            raise ValueError("template='chat' needs (prompt, response) pairs, got a plain text")
        prompt_ids, ids = [], tokenizer(text, add_special_tokens=spec.special_tokens)["input_ids"]
    else:
        prompt, response = text
        prompt_ids = tokenize_prompt(tokenizer, prompt, spec) if prompt else []
        # Without a prompt the response opens the text, and gets what opens a text.
        ids = tokenizer(response, add_special_tokens=spec.special_tokens and not prompt_ids)[
            "input_ids"
        ]
    if not ids:
        raise ValueError(f"a text without tokens has no embedding: {text!r}")
    ids = ids[: spec.max_length]
    room = spec.max_length - len(ids)
    prompt_ids = prompt_ids[max(0, len(prompt_ids) - room) :] if room else []
    return prompt_ids + ids, len(prompt_ids) if spec.span == "response" else 0


def response_start(tokenizer: PreTrainedTokenizerBase, text: Text, spec: EmbeddingSpec) -> int:
    """Where the response begins in a pair's token ids; 0 for a plain text."""
    return (
        0 if isinstance(text, str) else tokenize(tokenizer, text, replace(spec, span="response"))[1]
    )


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, spec: EmbeddingSpec
) -> list[int]:
    """Token ids of a prompt as decoding reads it, the chat template's opening of the answer
    included. Raises ValueError where it holds what is no character.
    """
    turns: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    for turn in turns:
        check_characters(turn["content"])
    if spec.template == "chat":
        try:
            encoded: Any = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except (
            Exception
        ) as error:  # a template is somebody's program, and may refuse turns by raising anything
            raise ValueError(f"the chat template does not take it: {error}") from error
        return list(encoded["input_ids"])
    return list(tokenizer(cast(str, prompt), add_special_tokens=spec.special_tokens)["input_ids"])


def pieces(
    tokenizer: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]
) -> list[str]:
    """What each token adds to the text behind those `before` it; joined, they are that text.

    A token that ends within a character adds nothing: the one that completes the character has it.
    """
    ids = [*before, *ids]
    read = len(before)
    start = max(0, read - 3)  # what a token is decoded to may depend on the ones before it
    found = []
    for end in range(read + 1, len(ids) + 1):
        known, whole = (str(tokenizer.decode(ids[start:stop])) for stop in (read, end))
        if whole.endswith("\ufffd") and end < len(ids):
            found.append("")
            continue
        found.append(
            whole[len(known) :] if whole.startswith(known) else str(tokenizer.decode(ids[read:end]))
        )
        start, read = read, end
    return found


def pad(
    sequences: Sequence[Sequence[int]], side: Literal["left", "right"], device: Any = None
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, each int64 (B, T).

    Padding is the row's own first token: the mask is what counts, and a processor that asks which
    tokens a text has finds no other.
    """
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        ids[row] = sequence[0] if sequence else 0
        ids[row, place] = torch.tensor(sequence, dtype=torch.long)
        mask[row, place] = 1
    return ids.to(device), mask.to(device)


def pool(hidden: Tensor, span_mask: Tensor, spec: EmbeddingSpec) -> Tensor:
    """Pools states (B, T, d) over a span, a 0/1 mask (B, T), into float32 (B, d)."""
    if spec.pooling == "last":
        index = span_mask.shape[1] - 1 - span_mask.flip(1).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), index].float()
    weights = span_mask.to(torch.float32)
    if spec.decay < 1:
        later = weights.flip(1).cumsum(1).flip(1) - weights  # tokens of the span behind each
        weights = weights * spec.decay**later
    return torch.einsum("btd,bt->bd", hidden.float(), weights) / weights.sum(1, keepdim=True)


def pool_prefixes(hidden: Tensor, span_mask: Tensor, spec: EmbeddingSpec) -> Tensor:
    """What `pool` makes of each prefix of states (B, T, d): float32 (B, T, d), of use where the
    span's mask is 1.
    """
    hidden = hidden.float()
    if spec.pooling == "last":
        return hidden
    total, count = torch.zeros_like(hidden[:, 0]), torch.zeros_like(hidden[:, 0, :1])
    means = torch.empty_like(hidden)
    for t, inside in enumerate(span_mask.unbind(1)):
        total = total * spec.decay + hidden[:, t] * inside[:, None]
        count = count * spec.decay + inside[:, None]
        means[:, t] = total / count
    return means


def embed_ids(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    spec: EmbeddingSpec,
) -> Tensor:
    """Embeds one batch of token ids whose spans begin at `starts` into float32 (B, d) on the
    model's device.

    Of an empty span it takes the last state: what the model holds before it writes.
    """
    ((states, span, _),) = _spans(model, sequences, [starts], [spec])
    return pool(states, span, spec)


def embed_each_prefix(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[Sequence[int]],
    specs: Sequence[EmbeddingSpec],
    firsts: Sequence[int],
) -> list[tuple[Tensor, Tensor]]:
    """Embeds what a batch's texts are at each of their tokens, by several specs from one pass.

    Args:
        starts: of the spans, for each spec.
        firsts: where each text's first prefix of interest ends.

    Returns:
        for each spec the N prefixes' rows, int64 (N,), and embeddings, float32 (N, d). A row's
        prefixes stand next to each other, from the shortest to the longest, which is the whole
        text.
    """
    found = []
    for states, span, spec in _spans(model, sequences, starts, specs):
        place = torch.arange(span.shape[1], device=span.device)
        first = torch.tensor(list(firsts), device=span.device)[:, None]
        rows, ends = (span * (place >= first).to(span)).nonzero(as_tuple=True)
        found.append((rows, pool_prefixes(states, span, spec)[rows, ends]))
    return found


@torch.no_grad()
def _spans(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[Sequence[int]],
    specs: Sequence[EmbeddingSpec],
) -> list[tuple[Tensor, Tensor, EmbeddingSpec]]:
    """States (B, T, d) and span mask (B, T) for each spec, from one pass."""
    ids, mask = pad(sequences, "right", model.device)
    layers = layers_of(specs)
    lower = first_layers(model, max(numbered(model, layers)))
    states, _ = hidden_states(model, ids, layers, lower=lower, attention_mask=mask)
    place, last = torch.arange(mask.shape[1], device=mask.device), mask.sum(1, keepdim=True) - 1
    found = []
    for spec, begins in zip(specs, starts, strict=True):
        start = torch.tensor(list(begins), device=mask.device)[:, None].minimum(last)
        found.append((spec.of_layers(states, layers), mask * (place >= start), spec))
    return found


def length_batches(lengths: Sequence[int], batch_size: int, max_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by length, longest first (so that memory peaks at once), at most `max_tokens`
    padded tokens a batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    at = 0
    while at < len(order):
        size = max(1, min(batch_size, max_tokens // max(1, lengths[order[at]])))
        yield order[at : at + size]
        at += size


def embed_stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    spec: EmbeddingSpec,
    *,
    batch_size: int = 64,
    max_tokens: int = 4096,
    window: int = 1024,
    prefixes: bool = False,
) -> Iterator[tuple[list[int], Tensor]]:
    """Embeds a stream of texts in bounded memory.

    `window` texts at a time are sorted by length, batched and embedded; nothing else is held.

    Args:
        prefixes: embeds every prefix of a text, of a pair every one that ends within the response,
            the whole text last.

    Yields:
        (indices into the stream, embeddings float32 (len(indices), d) on the model's device).
        Within a window the order is by length; windows follow one another.
    """
    check_model(model)
    check_ready(model, *spec.layers)
    first, stream = 0, iter(texts)
    while chunk := list(islice(stream, window)):
        encoded = []
        for offset, text in enumerate(chunk):
            try:
                encoded.append(tokenize(tokenizer, text, spec))
            except ValueError as error:
                raise ValueError(f"text {first + offset}: {error}") from error
        for batch in length_batches([len(ids) for ids, _ in encoded], batch_size, max_tokens):
            ids, starts = [encoded[i][0] for i in batch], [encoded[i][1] for i in batch]
            if prefixes:
                firsts = [response_start(tokenizer, chunk[i], spec) for i in batch]
                ((rows, vectors),) = embed_each_prefix(model, ids, [starts], [spec], firsts)
                yield [first + batch[row] for row in rows.tolist()], vectors
            else:
                yield [first + i for i in batch], embed_ids(model, ids, starts, spec)
        first += len(chunk)


def embed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    spec: EmbeddingSpec | None = None,
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """Context embeddings of texts or (prompt, response) pairs (Ko et al. 2025, section 3.1).

    Args:
        spec: layer, pooling, span and template; `EmbeddingSpec()` where None.
        progress: a bar on stderr.

    Returns:
        float32 (N, d), on the CPU, in the order of `texts`.

    Raises:
        ValueError: no texts, a text without tokens (named by its index), or a layer that the model
            does not have.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise ValueError("texts is empty: there is nothing to embed")
    out: Tensor | None = None
    with progress_bar("embedding", progress) as bar:
        task = bar.add_task("embedding", total=len(texts))
        for indices, vectors in embed_stream(
            model, tokenizer, texts, spec or EmbeddingSpec(), batch_size=batch_size
        ):
            if out is None:
                out = torch.empty(len(texts), vectors.shape[1])
            out[indices] = vectors.cpu()
            bar.advance(task, len(indices))
    assert out is not None
    return out


def embed_prefixes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Text, spec: EmbeddingSpec
) -> tuple[list[str], Tensor]:
    """A text's span token by token, as `pieces`, and the embedding of the text up to each of them,
    float32 (T, d) on the CPU.
    """
    check_model(model)
    ids, start = tokenize(tokenizer, text, spec)
    ((_, vectors),) = embed_each_prefix(model, [ids], [[start]], [spec], [start])
    return pieces(tokenizer, ids[:start], ids[start:]), vectors.cpu()
