"""The scorer `profanity`: alt-profanity-check, a linear model over words."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sasa.evaluation.scorers.base import require_package


class ProfanityScorer:
    """Crude, fast and offline; independent of any language model."""

    name = "profanity"

    def __init__(self) -> None:
        require_package("profanity_check", "alt-profanity-check")
        self.version = importlib.metadata.version("alt-profanity-check")

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        from profanity_check import predict_prob

        return np.asarray(predict_prob(list(texts)), dtype=np.float64)
