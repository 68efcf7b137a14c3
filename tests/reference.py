"""The definition: slow and obvious. Every fast path is held to it.

One text at a time, no padding, no cache, no mask: each candidate's text is read from its first token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TopKLogitsWarper, TopPLogitsWarper

from sasa import Backtracking, Boundary
from sasa.core.settings import PRIOR


@torch.no_grad()
def embedding(
    model: PreTrainedModel, ids: list[int], boundary: Boundary, prompt_length: int = 0
) -> Tensor:
    """The embedding (d,) of a text, given as token ids without padding."""
    spec = boundary.embedding
    every = model(
        input_ids=torch.tensor([ids], device=model.device),
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    states = torch.cat([every[layer][0].float() for layer in spec.layers], -1)
    if spec.pooling == "last":
        return states[-1]
    span = states[prompt_length:] if spec.span == "response" else states
    if not len(span):
        return states[-1]
    age = torch.arange(len(span) - 1, -1, -1, device=span.device)
    weights = 0.5 ** (age / spec.half_life) if spec.pooling == "ema" else torch.ones_like(age)
    return (span * weights[:, None]).sum(0) / weights.sum()


def margins(
    model: PreTrainedModel,
    boundary: Boundary,
    ids: list[int],
    candidates: list[int],
    eos: list[int],
    prompt_length: int = 0,
) -> Tensor:
    """The margin (K,) of a text with each candidate; with an end-of-sequence token, the margin of the text itself."""
    texts = [ids if candidate in eos else [*ids, candidate] for candidate in candidates]
    return torch.stack(
        [boundary.margin(embedding(model, text, boundary, prompt_length)) for text in texts]
    )


@torch.no_grad()
def logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """The model's own next-token logits, float32 (V,)."""
    return (
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
        .logits[0, -1]
        .float()
    )


Boundaries = Boundary | list[tuple[Boundary, float]]


def reweighted(
    model: PreTrainedModel,
    boundary: Boundaries,
    beta: float,
    ids: list[int],
    scores: Tensor,
    eos: list[int],
    top_k: int = 0,
    top_p: float = 1.0,
    prompt_length: int = 0,
    value: str = "log_sigmoid",
    prior: float = PRIOR,
) -> Tensor:
    """z'(v) = z(v) + beta * value(m(text, v)) for the survivors of truncation, -inf for the rest; (V,) from (V,)."""
    kept = scores[None]
    if top_k:
        kept = TopKLogitsWarper(top_k)(None, kept)
    if top_p < 1:
        kept = TopPLogitsWarper(top_p)(None, kept)
    survivors = kept[0].isfinite().nonzero()[:, 0].tolist()
    out = torch.full_like(scores, -torch.inf)
    out[survivors] = scores[survivors]
    for one, weight in [(boundary, 1.0)] if isinstance(boundary, Boundary) else boundary:
        worth = margins(model, one, ids, survivors, eos, prompt_length)
        if value == "log_sigmoid":
            worth = (
                torch.sigmoid(
                    (one.scale * worth + one.shift).double() - math.log(prior / (1 - prior))
                )
                .log()
                .float()
            )
        out[survivors] += beta * weight * worth
    return out


def decode(
    model: PreTrainedModel,
    boundary: Boundaries,
    beta: float,
    prompt: list[int],
    tokens: int,
    eos: list[int],
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    value: str = "log_sigmoid",
    prior: float = PRIOR,
) -> list[int]:
    """The tokens that follow a prompt: greedy where there is no seed, else drawn over the vocabulary as generate() draws."""
    ids = list(prompt)
    if seed is not None:
        torch.manual_seed(seed)
    for _ in range(tokens):
        scores = reweighted(
            model,
            boundary,
            beta,
            ids,
            logits(model, ids),
            eos,
            top_k,
            top_p,
            len(prompt),
            value,
            prior,
        )
        token = int(
            scores.argmax() if seed is None else torch.multinomial(scores.softmax(-1)[None], 1)
        )
        ids.append(token)
        if token in eos:
            break
    return ids[len(prompt) :]


def backtrack(
    model: PreTrainedModel,
    boundary: Boundary,
    beta: float,
    prompt: list[int],
    tokens: int,
    eos: list[int],
    settings: Backtracking,
    top_k: int = 0,
) -> tuple[list[int], list[tuple[list[int], int]], bool]:
    """Greedy decoding that goes back from where P(unsafe) reaches the threshold, each step from a fresh reading of what was kept.

    Returns:
        the tokens, what was thrown away with the length that it went back to, and whether the budget was spent on it.
    """
    written: list[int] = []
    safe, boosted, spent = 0, 0, 0
    astray: dict[tuple[int, ...], list[int]] = {}  # by the tokens before
    attempts: list[tuple[list[int], int]] = []
    failed: list[tuple[float, list[int]]] = []
    while len(written) < tokens:
        text = [*prompt, *written]
        scores = logits(model, text)
        scores[astray.get(tuple(written), [])] = -torch.inf
        strength = beta + settings.boost * (boosted > 0)
        token = int(
            reweighted(
                model, boundary, strength, text, scores, eos, top_k, 1.0, len(prompt)
            ).argmax()
        )
        spent, boosted = spent + 1, boosted - 1
        written.append(token)
        if token in eos:
            break
        margin = boundary.margin(embedding(model, [*prompt, *written], boundary, len(prompt)))
        unsafe = float(torch.sigmoid(-(boundary.scale * margin + boundary.shift)))
        if unsafe < settings.threshold:
            if unsafe < settings.safe_below and not settings.to_start:
                safe, failed = len(written), []
            continue
        failed.append((unsafe, list(written)))
        if len(attempts) == settings.max_resets or spent >= (settings.max_tokens or 4 * tokens):
            return min(failed)[1], attempts, True
        attempts.append((written, safe))
        astray.setdefault(tuple(written[:safe]), []).append(written[safe])
        written, boosted = written[:safe], settings.boost_tokens
    return written, attempts, False


def taxes(
    model: PreTrainedModel,
    boundary: Boundaries,
    beta: float,
    ids: list[int],
    first: int,
    eos: list[int],
    top_k: int,
    **settings: Any,
) -> list[float]:
    """log p - log q of each token from place `first` on, p over the likeliest top_k, the token in the place of the last."""
    found = []
    for place in range(first, len(ids)):
        scores = logits(model, ids[:place])
        likeliest = scores.topk(top_k).indices.tolist()
        kept = likeliest if ids[place] in likeliest else [*likeliest[:-1], ids[place]]
        among = torch.full_like(scores, -torch.inf)
        among[kept] = scores[kept]
        steered = reweighted(
            model, boundary, beta, ids[:place], among, eos, prompt_length=first, **settings
        )
        found.append(float((among.log_softmax(-1) - steered.log_softmax(-1))[ids[place]]))
    return found
