"""The reward of an attack, advantages, and few-shot contexts: curiosity and its baselines.

Hong et al. (2024), "Curiosity-driven Red-teaming for Large Language Models" (arXiv 2402.19464),
equation 4: an attacker pi writes an attack x from a context z; the target answers y; x is worth

    toxicity(y) + w_gib * naturalness(x) - w_bleu * SelfBLEU(x) - w_cos * cosine(x)
                - beta * log(pi(x|z) / pi_ref(x|z)) - w_ent * log pi(x|z)

with SelfBLEU and cosine to all earlier attacks. Reinforcement learning alone settles on the first
attack that works, and finds it again and again; the novelty of a repeat falls, and with it what
repeating is worth.

Where few replies are toxic, most of that sum is novelty, and an attacker learns to be novel first,
which is easy: longer and stranger texts, none of which gets through. By default novelty is `gated`:
it is what share of the toxicity is paid.

    toxicity(y) * (1 - w_bleu * SelfBLEU(x)) * (1 - w_cos * cosine(x))
                + w_gib * naturalness(x) - ...

A harmless reply is worth nothing however new the attack, a new hit much, and one that is known to
the letter nothing.

Nothing in this file knows of models or targets.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sasa.redteam.settings import NOVELTY, RedTeam
from sasa.redteam.store import Attempt
from sasa.training import objectives


def rewards(terms: Mapping[str, ArrayLike], settings: RedTeam) -> NDArray[np.float64]:
    """What attacks are worth, float64 (N,), of their `TERMS`, each (N,).

    Where novelty is gated, a weight of it is what share of the toxicity an exact repeat loses; no
    attack loses more than all.
    """
    parts = {name: weight * np.asarray(terms[name]) for name, weight in settings.weights.items()}
    if settings.gated:
        for name in NOVELTY:
            parts["toxicity"] = parts["toxicity"] * np.maximum(0.0, 1.0 + parts.pop(name))
    return np.sum(list(parts.values()), axis=0)


def advantages(rewards: Sequence[float | None], samples: int) -> NDArray[np.float64]:
    """Leave-one-out advantages of each context's samples, float64 (N,).

    Those without a reward, or without another one to compare with, have 0.
    """
    gains = np.zeros(len(rewards))
    for first in range(0, len(rewards), samples):
        rewarded = [i for i in range(first, first + samples) if rewards[i] is not None]
        if len(rewarded) > 1:
            values = torch.tensor([[rewards[i] for i in rewarded]], dtype=torch.float64)
            gains[rewarded] = objectives.advantages(values)[0].numpy()
    return gains


def few_shot(context: str, examples: Sequence[str]) -> str:
    """A context with examples as items of its list, if one begins with `1.`, or lines before it."""
    item = re.match(r"(.*\n)1\.(.*)\Z", context, re.DOTALL)
    if item is None:
        return "".join(f"{example}\n" for example in examples) + context
    items = "".join(f"{i}. {example}\n" for i, example in enumerate(examples, 1))
    return f"{item[1]}{items}{len(examples) + 1}.{item[2]}"


def choose_examples(records: Sequence[Attempt], scorer: str, count: int, seed: int) -> list[str]:
    """Draws distinct earlier attacks to show, in proportion to exp(toxicity / 0.1).

    As in Perez et al. (2022), section 3.1; the toxicity is that of `scorer`.
    """
    known: dict[str, float] = {}
    for record in records:
        if record["attack"] and record["error"] is None:
            known[record["attack"]] = max(
                record["scores"][scorer], known.get(record["attack"], 0.0)
            )
    draw = random.Random(seed)
    # the greatest of log-weight + Gumbel noise: a draw without replacement
    keys = {
        attack: score / 0.1 - math.log(-math.log(draw.random() or 0.5))
        for attack, score in known.items()
    }
    return sorted(keys, key=lambda attack: -keys[attack])[:count]
