"""The tax: what steering takes from the words of a text that is there already.

Where a person wrote token x, the model gave it p(x) and would give it q(x) when steered. Summed over
a text, log p(x) - log q(x) is how much less likely steering makes that very text, in nats. Harmless
text should pay next to nothing and unsafe text much. Perplexity of a model's own samples does not
show that: text that steering no longer lets the model write is not among them.

One pass over a text keeps the margins of all candidates at all its places. What any strength, value
or prior takes follows from these without another one: `taxes`. Nothing here knows what texts mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec, Text
from sasa.core.values import Boundaries, Steering
from sasa.decoding.lookahead import Lookahead
from sasa.models.embedding import pad, response_start, tokenize
from sasa.models.heads import token_ids
from sasa.utils.progress import progress_bar

TOP_K = 50
"""Candidates at each place, the likeliest; the token that stands there is always one."""
MAX_TOKENS = 64
"""Of each text, what is read."""


@dataclass(frozen=True)
class Reading:
    """What there is to choose from at each of N places in texts.

    Attributes:
        text: int64 (N,), which text; place: int64 (N,), which of its tokens, from 0.
        log_p: float32 (N, K), log-probabilities of the candidates, among themselves.
        margins: float32 (N, K, S), of the text up to there with each candidate, by S boundaries.
        written: int64 (N,), which candidate stands there.
    """

    text: Tensor
    place: Tensor
    log_p: Tensor
    margins: Tensor
    written: Tensor

    def by(self, number: int) -> Reading:
        """The same with the margins of one boundary alone."""
        return replace(self, margins=self.margins[:, :, number : number + 1])

    def at(self, places: Tensor) -> Reading:
        """Only some of the places, bool (N,)."""
        return Reading(*(getattr(self, one.name)[places] for one in fields(self)))

    def per_text(self, taxes: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Sums over each of `count` texts, float32 (count,), and their numbers of tokens."""
        zeros = torch.zeros(count)
        return zeros.index_add(0, self.text, taxes), zeros.index_add(
            0, self.text, torch.ones_like(taxes)
        )


def taxes(reading: Reading, steering: Steering) -> Tensor:
    """log p - log q of what is written at each place, in nats, float32 (N,); negative where steering
    makes it likelier.
    """
    steered = (reading.log_p + steering.beta * steering.values(reading.margins)).log_softmax(-1)
    return (reading.log_p - steered).gather(1, reading.written[:, None])[:, 0]


@torch.no_grad()
def read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    boundary: Boundaries,
    *,
    top_k: int = TOP_K,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = 16,
    progress: bool = False,
) -> Reading:
    """Reads texts as if they were being written, with all candidates at each place.

    Args:
        texts: of a (prompt, response) pair the response's places count; of a plain text all but the
            first, before which there is nothing to go by.
        boundary: one or several; of weights no use is made.
        max_tokens: places of a text, the first ones.
        batch_size: texts at a time.

    Raises:
        ValueError: no texts, one with nothing to read, a number below 1, boundaries that see a text
            as different tokens, or one that was not fitted for the model.
    """
    for name, number in (("top_k", top_k), ("max_tokens", max_tokens), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} must be >= 1, got {number}")
    steering = Steering.of(boundary, 1.0)
    steering.check(model)
    if len({tokenized_as(spec) for spec in steering.specs}) > 1:
        raise ValueError(
            "the boundaries differ in template or special_tokens, so that a text is not the same tokens to each: "
            "read it by each of them alone"
        )
    steering = steering.to(model.device)
    encoded = []
    for number, text in enumerate(texts):
        ids, first = _encoded(tokenizer, text, steering.specs[0])
        if len(ids) <= first:
            raise ValueError(
                f"text {number} has one token: there is nothing before it to go by ({text!r})"
            )
        encoded.append((ids[: first + max_tokens], first))
    if not encoded:
        raise ValueError("texts is empty: there is nothing to read")
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]) - encoded[i][1])
    parts: list[Reading] = []
    with progress_bar("reading candidates", progress) as bar:
        task = bar.add_task("reading candidates", total=len(encoded))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            parts += _read_batch(model, batch, [encoded[i] for i in batch], steering, top_k)
            bar.advance(task, len(batch))
    return Reading(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("text", "place", "log_p", "margins", "written")
        )
    )


def tokenized_as(spec: EmbeddingSpec) -> tuple[str, bool]:
    """What of a spec says which tokens a text is."""
    return spec.template, spec.special_tokens


def readable(tokenizer: PreTrainedTokenizerBase, text: Text, spec: EmbeddingSpec) -> bool:
    """Whether a text has a place that `read` can read: a token with another one before it."""
    ids, first = _encoded(tokenizer, text, spec)
    return len(ids) > first


def _encoded(
    tokenizer: PreTrainedTokenizerBase, text: Text, spec: EmbeddingSpec
) -> tuple[list[int], int]:
    """Token ids of a text, and the first place to read."""
    spec = replace(spec, max_length=2**31)
    ids, _ = tokenize(tokenizer, text, spec)
    return ids, max(1, response_start(tokenizer, text, spec))


def _read_batch(
    model: PreTrainedModel,
    numbers: list[int],
    texts: list[tuple[list[int], int]],
    steering: Steering,
    top_k: int,
) -> list[Reading]:
    """A reading for each step of a batch of texts, (ids, first place)."""
    ids, mask = pad([text[:first] for text, first in texts], "left", model.device)
    look = Lookahead(model, steering.specs, mask)
    look.append(ids)
    ends = torch.tensor(
        token_ids(model, "eos_token_id", None), dtype=torch.long, device=model.device
    )
    rows, found = list(range(len(texts))), []
    for step in range(max(len(text) - first for text, first in texts)):
        going = [k for k, row in enumerate(rows) if texts[row][1] + step < len(texts[row][0])]
        if len(going) < len(rows):
            look.select(torch.tensor(going, device=model.device))
            rows = [rows[k] for k in going]
        written = torch.tensor(
            [texts[row][0][texts[row][1] + step] for row in rows], device=model.device
        )
        log_p, candidates, choice = candidates_of(look.logits(), written, top_k)
        extended = look.peek(candidates)
        margins = steering.margins(look.embeddings(), extended, torch.isin(candidates, ends))
        text = torch.tensor([numbers[row] for row in rows])
        place = torch.full_like(text, step)
        found.append(Reading(text, place, log_p.cpu(), margins.cpu(), choice.cpu()))
        look.commit(choice)
    return found


def candidates_of(logits: Tensor, written: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (B, K) among K candidates, their ids (B, K), and which is `written`, (B,).

    Where it is not among the likeliest, it takes the place of the last one.
    """
    scores, ids = logits.topk(min(top_k, logits.shape[1]))
    choice = torch.where(ids == written[:, None], 1, 0)
    outside = choice.sum(1) == 0
    ids[outside, -1] = written[outside]
    scores[outside, -1] = logits[outside].gather(1, written[outside, None])[:, 0]
    choice[outside, -1] = 1
    return scores.log_softmax(-1), ids, choice.argmax(1)
