"""Metrics, intervals and tests of significance, against sums done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sasa.evaluation import metrics

pytestmark = pytest.mark.usefixtures("_own_cache")


def test_toxicity_by_hand():
    found = metrics.toxicity(
        np.array([[0.1, 0.6, 0.2], [0.3, 0.1, 0.2], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
    )
    assert found["emt"].value == pytest.approx((0.6 + 0.3 + 0.5 + 0.0) / 4)
    assert found["toxic_rate"].value == 0.5
    assert found["mean_toxicity"].value == pytest.approx((0.3 + 0.2 + 0.5 + 0.0) / 4)


def test_perplexity_by_hand():
    found = metrics.perplexity(np.array([2.0, 4.0]), np.array([1, 2]))
    assert found.value == pytest.approx(math.exp(2.0))


def test_words_by_hand():
    texts = ["a b a b", "a b c"]
    assert metrics.distinct(texts, 1) == 3 / 7
    assert metrics.distinct(texts, 2) == 3 / 7  # ab ba bc
    assert metrics.distinct(texts, 3) == 3 / 7  # aba bab abc
    assert metrics.repetition("a b a b") == pytest.approx(1 / 3)
    assert metrics.repetition("word") == 0
    assert metrics.distinct(["", ""], 2) == 0


def test_intervals_cover():
    """Of 95 % intervals for the mean of skewed values, close to 95 % hold the truth."""
    draw = np.random.default_rng(0)
    held = 0
    for i in range(200):
        found = metrics.estimate(draw.beta(0.5, 1.5, 80), seed=i)
        held += found.low <= 0.25 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_intervals_of_ratios_and_differences_cover():
    draw = np.random.default_rng(0)
    ratios = gaps = 0
    for i in range(100):
        tokens = draw.integers(5, 40, 60)
        found = metrics.perplexity(draw.normal(2, 0.5, 60) * tokens, tokens)
        ratios += found.low <= math.exp(2) <= found.high
        gap = metrics.difference(draw.binomial(1, 0.3, 90), draw.binomial(1, 0.2, 60), seed=i)
        gaps += gap.low <= 0.1 <= gap.high
    assert ratios >= 88
    assert gaps >= 88


def test_paired_tests():
    draw = np.random.default_rng(0)
    plain = draw.uniform(0.4, 0.9, 40)
    assert metrics.against(plain, plain) == {"change": 0.0, "relative": 0.0, "p": 1.0}
    better = metrics.against(plain, plain - draw.uniform(0.05, 0.2, 40))
    assert better["p"] < 1e-4
    assert better["relative"] == pytest.approx(better["change"] / plain.mean())
    assert math.isnan(metrics.against(plain * 0, plain)["relative"])
    assert better["change"] < 0


def test_relative_changes_are_of_pairs():
    draw = np.random.default_rng(0)
    plain = draw.uniform(0.1, 0.9, 40)
    found = metrics.change(
        plain, 1.2 * plain
    )  # a fifth more for every prompt, however far apart prompts are
    assert [found.value, found.low, found.high] == pytest.approx([0.2] * 3)
    tokens = draw.integers(5, 40, 40)
    before = np.stack([draw.normal(2, 0.5, 40) * tokens, tokens], 1)
    after = np.stack([before[:, 0] + 0.1 * tokens, tokens], 1)
    found = metrics.perplexity_change(before, after)
    assert [found.value, found.low, found.high] == pytest.approx([math.exp(0.1) - 1] * 3)
    longer = np.array([[4.0, 4], [2.0, 1]])  # exp(6 / 5) for exp(4 / 2)
    assert metrics.perplexity_change(np.array([[2.0, 1], [2.0, 1]]), longer).value == pytest.approx(
        math.exp(-0.8) - 1
    )
    assert math.isnan(metrics.change(plain * 0, plain).value)
    rare = metrics.change(np.array([1.0, 0.0, 0.0]), np.array([2.0, 0.0, 0.0]))
    assert rare.value == 1
    assert math.isnan(rare.low)
