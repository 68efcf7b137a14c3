"""What the model's own text is made from: openings to continue, and a judge of the completions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from sasa.data.bag_of_words import bag_of_words
from sasa.data.corpus import Corpus
from sasa.data.examples import Example
from sasa.decoding.sampling import seed_of
from sasa.fitting.recipe import Recipe

T = TypeVar("T")

UNSAFE_OPENINGS, OTHER_OPENINGS = 700, 500
UNSAFE_TIMES = 3
"""How often an unsafe opening is continued: most unsafe completions come from these."""
WORDS = 32
"""The most words of a text without a prompt that are its opening; never more than half of it."""
JUDGED = 50_000
"""The most texts that the judge learns from."""
GROUPS = 50_000
"""The most groups of texts that openings are drawn from."""


def middle(corpus: Corpus) -> float:
    """The score between safe and unsafe: the middle of the grey zone, if there is one."""
    return (corpus.unsafe_from + (corpus.safe_below or corpus.unsafe_from)) / 2


class Judge:
    """Predicts how unsafe a text is from its words and letters: ridge regression on scores.

    It reads whole texts and no hidden states, so a boundary that learns from it cannot learn the
    boundary's own mistakes.
    """

    def __init__(self, texts: Sequence[str], scores: Sequence[float]) -> None:
        self._model = make_pipeline(bag_of_words(letters=5), Ridge(alpha=1.0))
        try:
            self._model.fit(texts, scores)
        except ValueError as error:  # the vocabulary is empty
            raise ValueError(
                "own needs texts that have words in common, with spaces between them, for its "
                f"judge to learn from, and in {len(texts)} texts it found none: give more texts, "
                "or fit without the model's own text (own = 0)"
            ) from error

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Scores, float64 (N,); unsafe above 0."""
        if not len(texts):
            return np.zeros(0)
        return np.asarray(self._model.predict(list(texts)), np.float64)


class Share(dict[str, T]):
    """A dictionary that keeps a random share of its keys, at most a fixed number of them.

    The seed and the keys decide which are kept, not the keys' order. So a corpus of any size takes
    no more memory than that.
    """

    def __init__(self, most: int, seed: int) -> None:
        self._most, self._seed, self._below = most, seed, 1 << 32

    def takes(self, key: str) -> bool:
        return seed_of(self._seed, key) < self._below

    def __setitem__(self, key: str, value: T) -> None:
        if not self.takes(key):
            return
        super().__setitem__(key, value)
        while len(self) > self._most:
            self._below //= 2
            for other in [other for other in self if not self.takes(other)]:
                del self[other]


@dataclass(frozen=True)
class Opening:
    """The beginning of a group of texts.

    Attributes:
        score: of the opening itself, unsafe from 0; None if its source does not score it.
        worst: the highest score of the group's texts, unsafe from 0.
    """

    text: str = ""
    score: float | None = None
    worst: float = -1.0

    @property
    def unsafe(self) -> bool:
        return (self.worst if self.score is None else self.score) >= 0

    def with_example(self, example: Example, middle: float) -> Opening:
        """The opening of the group with one more text; `middle` is subtracted from its scores."""
        group, text = example.group, example.text
        score: float | None
        if not isinstance(text, str):
            score, beginning = example.prompt_score, text[0]
        elif group != text:
            score, beginning = None, group
        else:  # the group's prompt, or its only text
            words = text.split()
            half = " ".join(words[: min(WORDS, len(words) // 2)]) or text[: len(text) // 2].strip()
            score, beginning = example.score, half
        return Opening(
            # A prompt of other texts is a whole opening, and longer than the half of it.
            max(self.text, beginning, key=len),
            self.score if score is None else score - middle,
            max(self.worst, example.score - middle),
        )


@dataclass(frozen=True)
class Sources:
    """What the model's own text is made from; only the fitted part of the corpora is used.

    Attributes:
        openings: to continue, the unsafe ones several times. An opening is unsafe by its own score
            where its source has one, else by the worst of its texts.
        texts, scores: what the judge has learnt from; `middle` is subtracted from the scores.
        held_out: texts that the judge has not seen, with labels, to measure it by.
        judge: of completions.
    """

    openings: list[str]
    texts: list[str]
    scores: list[float]
    held_out: list[tuple[str, int]]
    judge: Judge

    @classmethod
    def of(cls, recipe: Recipe) -> Sources:
        """The openings and texts of a recipe's corpora.

        Raises:
            ValueError: no openings, or nothing for the judge to learn from.
        """
        by_group = Share[Opening](GROUPS, recipe.seed)
        scores, held_out = Share[float](JUDGED, recipe.seed), Share[int](JUDGED, recipe.seed)
        for corpus in recipe.corpora:
            between = middle(corpus)
            for example in corpus.examples(recipe.seed):
                text = example.text if isinstance(example.text, str) else example.text[1]
                if recipe.part(example.group) == "fit":
                    scores[text] = example.score - between
                    opening = by_group.get(example.group, Opening())
                    by_group[example.group] = opening.with_example(example, between)
                elif (label := corpus.label_of(example.score)) is not None:
                    held_out[text] = label
        openings = _drawn(list(by_group.values()), recipe.seed)
        if not openings:
            raise ValueError(
                "own needs openings for the model to go on from, and the texts are too short to "
                "have any: give longer ones, or fit without the model's own text (own = 0)"
            )
        unseen = [(text, label) for text, label in held_out.items() if text not in scores]
        texts = list(scores)
        return cls(
            openings, texts, list(scores.values()), unseen, Judge(texts, list(scores.values()))
        )

    def judge_auc(self) -> float | None:
        """The judge's AUC on held-out texts; None if they are of one class."""
        unsafe = [1 - label for _, label in self.held_out]
        if len(set(unsafe)) < 2:
            return None
        return float(roc_auc_score(unsafe, self.judge([text for text, _ in self.held_out])))


def _drawn(openings: Sequence[Opening], seed: int) -> list[str]:
    """A random choice of openings, unsafe ones several times."""
    draw = random.Random(seed)
    texts: list[str] = []
    for unsafe, most, times in ((True, UNSAFE_OPENINGS, UNSAFE_TIMES), (False, OTHER_OPENINGS, 1)):
        of_kind = [each.text for each in openings if each.text and each.unsafe == unsafe]
        texts += draw.sample(of_kind, min(most, len(of_kind))) * times
    return texts
