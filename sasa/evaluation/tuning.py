"""Tunes beta: the largest strength within a perplexity and a diversity budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sasa.core.settings import PRIOR, VALUE
from sasa.decoding.prompts import encode_prompts
from sasa.evaluation.likelihood import negative_log_likelihood
from sasa.evaluation.metrics import style
from sasa.evaluation.world import World

LARGEST = 256.0
BATCH = 8


@dataclass(frozen=True)
class Trial:
    """Figures of one strength on the tuning prompts.

    Attributes:
        beta: the strength; 0 is plain sampling.
        perplexity: of the completions given their prompts, under the model itself.
        ratio: perplexity over that of plain sampling.
        p_safe: calibrated probability of being safe, mean over completions.
        tokens: mean length.
        distinct_2, repetition: see `metrics`, means.
    """

    beta: float
    perplexity: float
    ratio: float
    p_safe: float
    tokens: float
    distinct_2: float
    repetition: float


def tune(
    world: World,
    prompts: Sequence[str],
    budget: float,
    *,
    variety: float = 0.95,
    value: str = VALUE,
    prior: float = PRIOR,
    start: float = 1.0,
    steps: int = 5,
    seed: int = 0,
    tell: Callable[[Trial], None] = lambda trial: None,
) -> tuple[float, list[Trial]]:
    """Searches the largest beta whose perplexity is at most `budget` times plain's, and whose
    distinct-2 is at least `variety` times plain's.

    Perplexity alone is not enough: repetitive text is likely text. Beta is doubled until a budget is
    exceeded; then the gap is bisected, on a logarithmic scale, `steps` times.

    Args:
        world: model, boundary and sampling settings.
        prompts: the tuning prompts; results must be reported on others.
        budget: a factor above 1.
        variety: a factor in [0, 1]; 0 ignores diversity.
        start: the first beta.
        tell: called with each trial.

    Returns:
        beta, 0 if even the smallest one exceeds a budget, and all trials in their order, plain first.

    Raises:
        ValueError: a budget of 1 or less, a variety outside [0, 1], or a prompt that cannot be
            completed.
    """
    check_budget(budget, variety)
    if not start > 0:
        raise ValueError(f"start must be > 0, got {start}")
    room = world.settings.max_new_tokens
    encoded = encode_prompts(
        world.model, world.tokenizer, prompts, world.first.embedding, world.settings.chat, room
    )
    trials: list[Trial] = []

    def attempt(beta: float) -> bool:
        nats, tokens, safe, count = 0.0, 0, 0.0, 0
        texts: list[list[str]] = []
        lengths: list[list[int]] = []
        for first in range(0, len(prompts), BATCH):
            # The same seeds at every strength: strengths share their noise.
            rows = world.generate(
                prompts[first : first + BATCH], beta, value, prior, seed=seed + first
            )
            every = [completion for row in rows for completion in row]
            texts += [[completion.text for completion in row] for row in rows]
            lengths += [[len(completion.tokens) for completion in row] for row in rows]
            nats += sum(
                negative_log_likelihood(
                    world.model, encoded[first : first + BATCH], [c.tokens for c in every]
                )
            )
            tokens += sum(len(c.tokens) for c in every)
            margins = torch.tensor([c.margin for c in every])
            safe += float(world.first.log_odds(margins).sigmoid().sum())
            count += len(every)
        perplexity = math.exp(nats / tokens)
        plain = trials[0].perplexity if trials else perplexity
        means = {key: float(values.mean()) for key, values in style(texts, lengths).items()}
        shown = (means[key] for key in ("tokens", "distinct_2", "repetition"))
        trials.append(Trial(beta, perplexity, perplexity / plain, safe / count, *shown))
        tell(trials[-1])
        return (
            trials[-1].ratio <= budget and trials[-1].distinct_2 >= variety * trials[0].distinct_2
        )

    attempt(0.0)
    low, high = 0.0, start
    while high <= LARGEST and attempt(high):
        low, high = high, 2 * high
    if high > LARGEST:
        return low, trials
    for _ in range(steps):
        middle = math.sqrt(low * high) if low else high / 4
        if attempt(middle):
            low = middle
        else:
            high = middle
    return low, trials


def check_budget(budget: float, variety: float) -> None:
    """Raises ValueError unless the perplexity budget is above 1 and the variety in [0, 1]."""
    if not 0 <= variety <= 1:
        raise ValueError(f"variety is a factor from 0 to 1, such as 0.95, got {variety}")
    if not (math.isfinite(budget) and budget > 1):
        raise ValueError(f"the perplexity budget is a factor > 1, such as 1.05, got {budget}")
