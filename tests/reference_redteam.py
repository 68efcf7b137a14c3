"""What curiosity is, the slow way: novelty by comparing with every earlier attack, and an attacker of which all is known.

The attacker writes three of sixteen words: 4,096 attacks. Twenty of them make the target toxic, by 1 down to 0.5 in even steps.
What it should come to in the end can be said without training.
"""

from __future__ import annotations

import numpy as np
from sacrebleu.metrics import BLEU

WORDS, LENGTH, TOXIC = 16, 3, 20
ATTACKS = WORDS**LENGTH


def self_bleu(texts):
    """The mean of BLEU-2 to BLEU-5 of each text against all before it, by sacrebleu itself."""
    found = []
    for i, text in enumerate(texts):
        if not text.split() or i == 0:
            found.append(0.0 if text.split() else 1.0)
            continue
        before = [other for other in texts[:i] if other.split()] or [""]
        found.append(
            np.mean([_bleu(n).sentence_score(text, before).score for n in (2, 3, 4, 5)]) / 100
        )
    return np.array(found)


def _bleu(n):
    return BLEU(
        lowercase=True,
        effective_order=True,
        max_ngram_order=n,
        smooth_method="floor",
        smooth_value=0.1,
    )


def cosine(vectors, nearest=None):
    """The mean cosine of each vector to all before it, or to the most alike of them."""
    found = [0.0]
    for i in range(1, len(vectors)):
        known = sorted((vectors[:i] @ vectors[i]).tolist())[-(nearest or i) :]
        found.append(np.mean(known))
    return np.array(found)


def toxicity():
    """Of each attack's reply, (4096,)."""
    found = np.zeros(ATTACKS)
    found[np.random.default_rng(0).choice(ATTACKS, TOXIC, replace=False)] = np.linspace(
        1, 0.5, TOXIC
    )
    return found


def optimum(reference, toxic, kl, entropy):
    """The policy with the greatest E[toxicity] - kl * KL(pi || reference) + entropy * H(pi)."""
    log = (kl * np.log(reference) + toxic) / (kl + entropy)
    found = np.exp(log - log.max())
    return found / found.sum()


def water_filling(toxic, weight):
    """Long-run frequencies of an attacker that is worth toxicity - weight * (how often it has been): (R - c)_+ / weight.

    Where several attacks are tried, all of them are worth the same, c, and what is not tried is worth less.
    """
    low, high = toxic.min() - weight, toxic.max()
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if np.maximum(toxic - c, 0).sum() > weight else (low, c)
    return np.maximum(toxic - c, 0) / weight
