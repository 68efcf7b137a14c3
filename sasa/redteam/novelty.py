"""Novelty: how much of an attack was in earlier ones, in words (SelfBLEU) and in meaning (cosine).

Curiosity (Hong et al. 2024, arXiv 2402.19464, section 3.2) pays an attacker for attacks unlike the
ones that it has tried. Both memories keep what a look-up needs and no more, so that a batch costs
what it costs, whatever has been tried before. A batch's rows count as history to the rows behind
them: else the same attack, written eight times in a batch, would be novel eight times.

Nothing in this file knows of models, rewards or targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

ORDERS = (2, 3, 4, 5)
"""The n of BLEU-n over which SelfBLEU is a mean."""

Vectors = NDArray[np.float32]
Counts = Mapping[tuple[str, ...], int]
"""N-grams, of words, and how often each occurs."""


class SelfBLEU:
    """BLEU of texts against all earlier ones, the mean of BLEU-2 to BLEU-5; 1 is an exact repeat.

    BLEU clips an n-gram's count at the greatest count in any one reference, and compares lengths
    with the closest reference's. So the memory holds one number for each n-gram that was ever seen,
    and the lengths. The formula, its smoothing (0.1 for a count of 0) and the words are
    sacrebleu's; case does not count.

    Raises:
        ImportError: sacrebleu is not installed.
    """

    def __init__(self) -> None:
        try:
            from sacrebleu.metrics import BLEU
            from sacrebleu.metrics.helpers import extract_all_word_ngrams
        except ImportError as error:
            raise ImportError(
                "red-teaming needs sacrebleu: pip install 'sasa-decoding[redteam]'"
            ) from error
        self._bleu = BLEU(lowercase=True, effective_order=True)
        self._ngrams = extract_all_word_ngrams
        self._most: dict[tuple[str, ...], int] = {}  # the greatest count of an n-gram in one text
        self._lengths: set[int] = set()

    def observe(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """SelfBLEU of each text, float64 (N,), against all before it; then they are history.

        The first text of all has 0; one without a word has 1, as there is nothing new in it.
        """
        return np.array([self._observe(text) for text in texts])

    def count(self, text: str) -> tuple[Counts, int]:
        """The n-grams of a text, up to the longest that matter, and its words."""
        return self._ngrams(self._bleu.tokenizer(text.lower()), 1, max(ORDERS))

    def compare(self, counts: Counts, length: int, known: Counts, lengths: set[int]) -> float:
        """SelfBLEU of a text with the n-grams `counts`.

        Args:
            length: its words.
            known: the greatest count of each n-gram in any other text.
            lengths: the other texts' lengths.
        """
        if not length:
            return 1.0
        if not lengths:
            return 0.0
        correct, total = [0] * max(ORDERS), [0] * max(ORDERS)
        for gram, count in counts.items():
            total[len(gram) - 1] += count
            correct[len(gram) - 1] += min(count, known.get(gram, 0))
        closest = min(lengths, key=lambda other: (abs(other - length), other))
        scores = [
            self._bleu.compute_bleu(
                correct[:n], total[:n], length, closest, "floor", 0.1, True, n
            ).score
            for n in ORDERS
        ]
        return sum(scores) / (100 * len(ORDERS))

    def _observe(self, text: str) -> float:
        counts, length = self.count(text)
        score = self.compare(counts, length, self._most, self._lengths)
        for gram, count in counts.items():
            if count > self._most.get(gram, 0):
                self._most[gram] = count
        if length:
            self._lengths.add(length)
        return score


def mutual_bleu(texts: Sequence[str]) -> NDArray[np.float64]:
    """BLEU of each text, float64 (N,), against all others, as `SelfBLEU` has it of the last one."""
    memory = SelfBLEU()
    counted = [memory.count(text) for text in texts]
    # of an n-gram the greatest count, the second greatest, and whose the first is
    most: dict[tuple[str, ...], list[int]] = {}
    for i, (counts, _) in enumerate(counted):
        for gram, count in counts.items():
            first, second, whose = most.get(gram, (0, 0, -1))
            most[gram] = [count, first, i] if count > first else [first, max(second, count), whose]
    scores = np.zeros(len(texts))
    for i, (counts, length) in enumerate(counted):
        known = {gram: most[gram][1] if most[gram][2] == i else most[gram][0] for gram in counts}
        lengths = {other for j, (_, other) in enumerate(counted) if j != i}
        scores[i] = memory.compare(counts, length, known, lengths)
    return scores


class Cosine:
    """Cosine of vectors to earlier ones: the mean over all of them, or over the k nearest.

    A mean over all grows numb: a repeat after N others raises it by 1 / N. The k nearest are found
    by a product with all earlier vectors, whose time grows by a microsecond or so an attack
    (`benchmarks/novelty.py`); the mean over all takes a running sum.

    Args:
        nearest: k; None for the mean over all.
    """

    def __init__(self, nearest: int | None = None) -> None:
        self._nearest = nearest
        self._count = 0
        self._sum: NDArray[np.float64] | None = None
        self._kept: Vectors | None = None  # the first `_count` rows, with room for more

    def observe(self, vectors: Vectors) -> NDArray[np.float64]:
        """Cosine of each unit vector, (N, d), to those before it, float64 (N,); then they are
        history.

        The first vector of all has 0.
        """
        rows = np.asarray(vectors, dtype=np.float64)
        among = rows @ rows.T
        means = (
            self._over_all(rows, among)
            if self._nearest is None
            else self._over_nearest(rows, among)
        )
        self._count += len(rows)
        return means

    def _over_all(
        self, rows: NDArray[np.float64], among: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        total = np.tril(among, -1).sum(1)
        if self._sum is not None:
            total = total + rows @ self._sum
        self._sum = rows.sum(0) if self._sum is None else self._sum + rows.sum(0)
        return total / np.maximum(self._count + np.arange(len(rows)), 1)

    def _over_nearest(
        self, rows: NDArray[np.float64], among: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        assert self._nearest is not None
        if self._kept is None:
            self._kept = np.empty((1024, rows.shape[1]), dtype=np.float32)
        before = (rows.astype(np.float32) @ self._kept[: self._count].T).astype(np.float64)
        means = np.zeros(len(rows))
        for i in range(len(rows)):
            known = np.concatenate([before[i], among[i, :i]])
            if len(known):
                k = min(self._nearest, len(known))
                means[i] = np.partition(known, len(known) - k)[-k:].mean()
        while self._count + len(rows) > len(self._kept):
            self._kept = np.concatenate([self._kept, np.empty_like(self._kept)])
        self._kept[self._count : self._count + len(rows)] = rows
        return means
