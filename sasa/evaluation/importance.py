"""Probabilities of rare events by counting, by importance sampling, and by both combined.

Importance sampling draws from a proposal q that writes the rare completions often, and weighs each
by p(s) / q(s). Combined with the model's own samples, a completion of either weighs
p(s) / (a p(s) + (1 - a) q(s)), where a is the share that the model drew (the balance heuristic,
Veach and Guibas 1995). No weight is then above 1 / a, and completions that the proposal never
writes are not missed: prefer these estimates. Intervals are 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sasa.evaluation.metrics import RESAMPLES, Estimate

Array = NDArray[np.float64]

WORST = 0.05
"""CVaR is the mean of this lowest share of the rewards."""


@dataclass(frozen=True)
class Tail:
    """P(r < eta), in three ways. Intervals are for the prompts as they are.

    Attributes:
        eta: rewards below are bad.
        plain: the share of the model's own completions, with an exact binomial interval (Clopper
            and Pearson 1934).
        importance: from the proposal's completions, weighed by p / q; bootstrap interval over
            completions within prompts, with NaN ends if no sample is bad.
        combined: from both; if no sample is bad, its upper end is plain's.
        effective_samples: the number of bad samples of equal weight that is equivalent to those of
            `combined`.
    """

    eta: float
    plain: Estimate
    importance: Estimate | None = None
    combined: Estimate | None = None
    effective_samples: float | None = None

    @property
    def best(self) -> Estimate:
        """The most reliable estimate."""
        return self.combined or self.plain


def proportion(count: int, total: int) -> Estimate:
    """A share with its exact binomial interval; for 0 in n the upper end is about 3.7 / n."""
    ends = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    return Estimate(count / total, float(ends.low), float(ends.high))


def tail(
    eta: float,
    rewards: Array,
    log_ratio: Array | None = None,
    proposed: Array | None = None,
    proposed_log_ratio: Array | None = None,
    seed: int = 0,
) -> Tail:
    """P(r < eta) from rewards of completions of P prompts.

    Args:
        rewards, log_ratio: rewards and log p - log q of n completions by the model, (P, n) each.
        proposed, proposed_log_ratio: the same of m completions by the proposal, (P, m) each.
        seed: of the bootstrap.
    """
    bad = rewards < eta
    plain = proportion(int(bad.sum()), bad.size)
    if log_ratio is None or proposed is None or proposed_log_ratio is None:
        return Tail(eta, plain)
    proposed_bad = proposed < eta
    importance = _mean([np.exp(proposed_log_ratio) * proposed_bad], seed)
    parts = [
        w * b
        for w, b in zip(
            balance_weights(log_ratio, proposed_log_ratio), (bad, proposed_bad), strict=True
        )
    ]
    combined = _mean(parts, seed)
    if not (bad.any() or proposed_bad.any()):
        combined = Estimate(0.0, 0.0, plain.high)
    weights = np.concatenate([part.ravel() / part.size for part in parts])
    squares = float(np.square(weights).sum())
    return Tail(
        eta, plain, importance, combined, float(weights.sum() ** 2 / squares) if squares else 0.0
    )


def balance_weights(log_ratio: Array, proposed_log_ratio: Array) -> tuple[Array, Array]:
    """Weights (P, n) and (P, m) of the model's and the proposal's completions, from their log p - log q.

    Multiplied by a function of the completions, the sum of their means is an unbiased estimate of
    its expectation: that of the deterministic mixture of both samples.
    """
    n, m = log_ratio.shape[1], proposed_log_ratio.shape[1]
    # p / ((n p + m q) / (n + m)), times the share of the samples that are on its side
    own, other = (1 / (n + m * np.exp(-ratio)) for ratio in (log_ratio, proposed_log_ratio))
    return n * own, m * other


def _mean(parts: Sequence[Array], seed: int) -> Estimate:
    """The sum of the means of arrays (P, n_k), with a bootstrap interval within rows."""
    value = float(sum(part.mean() for part in parts))
    if not any(part.any() for part in parts):
        return Estimate(value, math.nan, math.nan)
    draw = np.random.default_rng(seed)
    totals = np.zeros(RESAMPLES)
    for part in parts:
        prompts, count = part.shape
        for row in part:  # one at a time: memory does not grow with the prompts
            if row.any():
                totals += row[draw.integers(count, size=(RESAMPLES, count))].mean(1) / prompts
    low, high = np.quantile(totals, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def cvar(rewards: Array, seed: int = 0) -> Estimate:
    """The mean of the lowest `WORST` of rewards (P, n), with a bootstrap interval over P prompts."""
    if len(rewards) < 2:
        return Estimate(_lowest(rewards), math.nan, math.nan)
    draw = np.random.default_rng(seed)
    resampled = [
        _lowest(rewards[draw.integers(len(rewards), size=len(rewards))])
        for _ in range(RESAMPLES // 4)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(_lowest(rewards), float(low), float(high))


def _lowest(rewards: Array) -> float:
    count = WORST * rewards.size
    lowest = np.sort(rewards, axis=None)[: math.ceil(count)]
    whole = math.floor(count)
    # the last one counts for as much of it as belongs to the share
    return float((lowest[:whole].sum() + (count - whole) * lowest[-1]) / count)
