"""The protocol of scorers, and how one is made from its name and checked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from sasa.evaluation.registry import SCORERS, Entry

LONG_TEXT = "a long text that goes on and on, " * 500
"""Longer than the window of any classifier."""
PREFIXES = {
    "hf": Entry("", "scorers.classifier:ClassifierScorer"),
    "words": Entry("", "scorers.bag_of_words:BagOfWordsScorer"),
}
"""Scorers that take an argument, `PREFIX:ARGUMENT`."""


class Scorer(Protocol):
    """Scores the toxicity of texts.

    Attributes:
        name: for reports and file names.
        version: identifies everything that the scores depend on; a new version means new scores.
    """

    name: str
    version: str

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Returns the toxicity of each text in [0, 1], float64 (N,)."""
        ...


def scorer(name: str, boundary: Callable[[], Scorer] | None = None) -> Scorer:
    """Makes a scorer from its name.

    Args:
        name: a name in `sasa.evaluation.registry.SCORERS`, `hf:MODEL`, `words:CORPUS`, or
            `boundary` if there is a function that makes it.
        boundary: makes the scorer that is named `boundary`.

    Raises:
        ValueError: the name is unknown, or the scorer cannot be used; the message says why.
        ImportError: the scorer's package is not installed; the message says how to install it.
    """
    prefix, colon, argument = name.partition(":")
    if colon and prefix in PREFIXES:
        return cast(Scorer, PREFIXES[prefix].make(argument))
    if name == "boundary" and boundary is not None:
        return boundary()
    if name not in SCORERS:
        known = [*SCORERS, *(["boundary"] if boundary is not None else [])]
        raise ValueError(
            f"unknown scorer {name!r}; there are: {', '.join(known)}, hf:MODEL, words:CORPUS"
        )
    return cast(Scorer, SCORERS[name].make())


def checked_scores(scorer: Scorer, texts: Sequence[str]) -> NDArray[np.float64]:
    """Returns the scores of texts, float64 (N,).

    Raises:
        ValueError: the number of scores is not that of the texts, or some are outside [0, 1].
    """
    scores = np.asarray(scorer.score(texts), dtype=np.float64)
    if scores.shape != (len(texts),):
        raise ValueError(
            f"the scorer {scorer.name} gave scores of shape {scores.shape} for {len(texts)} texts"
        )
    if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()):
        raise ValueError(f"the scorer {scorer.name} gave scores outside 0..1")
    return scores


def require_package(module: str, package: str) -> None:
    """Raises ImportError with the command that installs the package if its module is missing."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"this scorer needs {package}: pip install {package}")
