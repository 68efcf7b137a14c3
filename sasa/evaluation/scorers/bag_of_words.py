"""The scorer `words:CORPUS`: a bag of words and letters, fitted on the user's labelled texts."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sasa.data.bag_of_words import bag_of_words
from sasa.data.corpus import Corpus


class BagOfWordsScorer:
    """Logistic regression on a corpus as for `sasa fit`.

    It uses no language model; so it is independent of a boundary that was fitted on other texts.
    """

    def __init__(self, corpus: str) -> None:
        source = Corpus.parse(corpus)
        rows = [
            (example.text, label == 0)
            for example in source.examples()
            if (label := source.label_of(example.score)) is not None
        ]
        texts = [text for text, _ in rows if isinstance(text, str)]
        unsafe = [label for _, label in rows]
        if len(texts) < len(rows) or len(set(unsafe)) < 2:
            raise ValueError(f"words:{corpus}: this scorer needs plain texts of both classes")
        content = "\0".join(f"{label:d}{text}" for text, label in zip(texts, unsafe, strict=True))
        digest = hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:12]
        self.name = f"words:{Path(source.source).name}"
        self.version = f"{digest} scikit-learn {importlib.metadata.version('scikit-learn')}"
        self._model = make_pipeline(
            bag_of_words(letters=4), LogisticRegression(class_weight="balanced", max_iter=1000)
        )
        self._model.fit(texts, unsafe)

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        if not texts:
            return np.zeros(0)
        return np.asarray(self._model.predict_proba(list(texts))[:, 1], dtype=np.float64)
