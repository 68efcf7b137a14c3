"""Completions drawn from a language model as it is, and the log-probability of each of their
tokens.

No truncation, no processor: what is drawn has exactly the probability that is computed for it,
which training and importance sampling rest on. Generation configs change distributions (a
repetition penalty, a top-k), so neither function reads more of one than the end-of-sequence tokens.
This file knows nothing about boundaries, rewards or steering.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel

from sasa.decoding.lookahead import packs
from sasa.models.embedding import pad
from sasa.models.heads import has_plain_head, head, next_logits, reread_logits, token_ids
from sasa.models.inputs import check_model
from sasa.models.skinny import skinny_linears
from sasa.models.states import hidden_states, positions

HEAD_TOKENS = 1024
"""Completion tokens whose logits over the vocabulary are computed at a time."""


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    count: int,
    max_new_tokens: int,
    seed: int,
    stop: Sequence[int] = (),
    temperature: float = 1.0,
) -> list[list[int]]:
    """Draws completions of prompts, each prompt read once.

    Args:
        prompts: token ids.
        count: completions of each prompt.
        max_new_tokens: a completion ends with an end-of-sequence token, which is part of it, or
            after so many tokens.
        seed: for the same completions again, on the same machine with the same prompts. The global
            random state is not used.
        stop: tokens that end a completion as an end-of-sequence token does.
        temperature: logits are divided by it.

    Returns:
        token ids of `len(prompts) * count` completions, one prompt's after the other's.
    """
    check_model(model)
    eos = torch.tensor(
        [*token_ids(model, "eos_token_id", None), *stop], dtype=torch.long, device=model.device
    )
    # MPS has no float64; elsewhere the rounding of a sum over the vocabulary must not cost rare
    # tokens their probability.
    dtype = torch.float32 if model.device.type == "mps" else torch.float64
    generator = torch.Generator(model.device).manual_seed(seed)
    found: list[list[int]] = [[] for _ in range(len(prompts) * count)]
    rows = torch.arange(len(found), device=model.device)  # those that have not ended
    text = _Text(model, prompts, count)
    for step in range(max_new_tokens):
        # A number for every row, ended or not: a row's draws do not depend on when others end.
        noise = torch.rand(len(found), generator=generator, device=model.device, dtype=dtype)
        total = _at(temperature, text.logits()).softmax(-1).to(dtype).cumsum(-1)
        chosen = torch.searchsorted(total, noise[rows, None] * total[:, -1:], right=True)
        chosen = chosen.clamp(max=total.shape[1] - 1)[:, 0]
        for row, token in zip(rows.tolist(), chosen.tolist(), strict=True):
            found[row].append(token)
        going_on = ~torch.isin(chosen, eos)
        if step + 1 == max_new_tokens or not going_on.any():
            break
        text.append(chosen, going_on)
        rows = rows[going_on]
    return found


@contextlib.contextmanager
def random_state(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds torch for the length of a block; without a seed the global state goes on as ever."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def seed_of(*parts: object) -> int:
    """A seed from whatever tells a sample from others, such as a run's seed and the number of a
    batch.
    """
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big")


def in_rounds(count: int, size: int, number: int, *seed: object) -> list[int]:
    """Which of `count` things are in batch `number`, of `size`: all of them in one order, then all
    in another one, and so on.
    """
    found: list[int] = []
    for place in range(number * size, (number + 1) * size):
        order = list(range(count))
        random.Random(seed_of(*seed, place // count)).shuffle(order)
        found.append(order[place % count])
    return found


class _Text:
    """Texts that grow by a token at a time: prompts, each of them `count` times, and what has been
    drawn so far.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], count: int
    ) -> None:
        self.model = model
        self.ids, self.mask = pad(prompts, "left", model.device)
        self.cache: DynamicCache | None = None
        if _has_plain_cache(model):
            self.cache, last = _read_prompts(model, self.ids, self.mask, count)
            self.last = last.repeat_interleave(count, 0)
        self.ids, self.mask = (
            self.ids.repeat_interleave(count, 0),
            self.mask.repeat_interleave(count, 0),
        )

    def logits(self) -> Tensor:
        """Of the next token, float32 (B, V)."""
        if self.cache is None:
            return reread_logits(self.model, self.ids, self.mask)
        return next_logits(self.model, self.last)

    def append(self, tokens: Tensor, keep: Tensor) -> None:
        """Appends a token (B,) to each text and goes on with those that a mask (B,) keeps."""
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)[keep]
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)[:, None]], 1)[keep]
        if self.cache is None:
            return
        if not keep.all():
            self.cache.batch_select_indices(keep.nonzero()[:, 0])
        with skinny_linears(self.model):
            _, last = hidden_states(
                self.model,
                self.ids[:, -1:],
                attention_mask=self.mask,
                position_ids=positions(self.mask)[:, -1:],
                cache=self.cache,
            )
        self.last = last[:, -1]


def log_probs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    temperature: float = 1.0,
) -> Tensor:
    """Log-probability of each token of completions given their prompts, differentiable; each prompt
    is read once.

    Args:
        prompts: token ids.
        completions: token ids, the same number of each prompt, one prompt's after the other's; some
            may be empty.
        temperature: logits are divided by it.

    Returns:
        float32 (N, T), T the length of the longest, 0 behind a completion's end.
    """
    each, longest = len(completions) // len(prompts), max(map(len, completions))
    if not longest:
        return torch.zeros(len(completions), 0, device=model.device)
    if not _has_plain_cache(model):
        return _by_reading(
            model,
            [prompt for prompt in prompts for _ in range(each)],
            completions,
            longest,
            temperature,
        )
    ids, mask = pad(prompts, "left", model.device)
    cache, last = _read_prompts(model, ids, mask, each)
    tokens, written = pad([list(row) or [0] for row in completions], "right", model.device)
    whole = torch.cat([mask.repeat_interleave(each, 0), written], 1)
    _, states = hidden_states(
        model,
        tokens,
        attention_mask=whole,
        position_ids=positions(whole)[:, ids.shape[1] :],
        cache=cache,
    )
    states = torch.cat([last.repeat_interleave(each, 0)[:, None], states[:, :-1]], 1)
    lengths = torch.tensor([len(row) for row in completions], device=model.device)
    rows, places = (torch.arange(longest, device=model.device) < lengths[:, None]).nonzero(
        as_tuple=True
    )
    parts = [
        -cross_entropy(_at(temperature, head(model, some)), ids_, reduction="none")
        for some, ids_ in zip(
            states[rows, places].split(HEAD_TOKENS),
            tokens[rows, places].split(HEAD_TOKENS),
            strict=True,
        )
    ]
    found = torch.zeros(len(completions), longest, device=model.device)
    return found.index_put((rows, places), torch.cat(parts))


def _at(temperature: float, logits: Tensor) -> Tensor:
    """Logits at a temperature; at 1 as they are, for a copy is as large as the vocabulary."""
    return logits if temperature == 1 else logits / temperature


def _read_prompts(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, count: int
) -> tuple[DynamicCache, Tensor]:
    """A cache of left-padded prompts (P, T) with each of them `count` times, and their last states,
    (P, d).
    """
    cache = DynamicCache(config=model.config)
    _, states = hidden_states(model, ids, attention_mask=mask, cache=cache)
    cache.batch_repeat_interleave(count)
    return cache, states[:, -1]


@torch.no_grad()
def _has_plain_cache(model: PreTrainedModel) -> bool:
    """Whether a text is its cache and its last state, as in most models."""
    return packs(model) and has_plain_head(model)


def _by_reading(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    longest: int,
    temperature: float,
) -> Tensor:
    """What `log_probs` gives, for models without a plain key-value cache or head: one pass over
    each whole text.
    """
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion]], device=model.device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        logits = _at(temperature, logits[0, len(prompt) - 1 : -1].float())
        nats = cross_entropy(logits, ids[0, len(prompt) :], reduction="none")
        found.append(torch.nn.functional.pad(-nats, (0, longest - len(completion))))
    return torch.stack(found)
