"""The scorer `detoxify`: Detoxify's model `original` (Hanu 2020), BERT on the Jigsaw comments."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasa.evaluation.scorers.base import require_package


class DetoxifyScorer:
    """Loads the model when the first text is scored."""

    name = "detoxify"

    def __init__(self) -> None:
        require_package("detoxify", "detoxify")
        self.version = importlib.metadata.version("detoxify")
        self._model: Any = None

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        if self._model is None:
            from detoxify import Detoxify

            self._model = Detoxify("original")
        return np.asarray(self._model.predict(list(texts))["toxicity"], dtype=np.float64)
