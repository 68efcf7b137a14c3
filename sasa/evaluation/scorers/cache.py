"""Scores in sasa's cache folder: a SQLite file per scorer and version."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np
from numpy.typing import NDArray

from sasa.evaluation.scorers.base import LONG_TEXT, Scorer, checked_scores
from sasa.models.load import cache_dir

BATCH = 256
"""Texts that are scored before their scores are saved."""


def scored(
    scorer: Scorer, texts: Sequence[str], advance: Callable[[int], None] = lambda n: None
) -> NDArray[np.float64]:
    """Returns the scores of texts, float64 (N,); each distinct text is scored once and cached.

    Args:
        advance: called with the number of distinct texts that have been scored since the last call.
    """
    keys = [hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in texts]
    scores: dict[bytes, float] = {}
    with _cache(scorer) as cache:
        for key in dict.fromkeys(keys):
            row = cache.execute("SELECT score FROM scores WHERE text = ?", (key,)).fetchone()
            if row is not None:
                scores[key] = row[0]
        advance(len(scores))
        distinct = dict(zip(keys, texts, strict=True))
        missing = [(key, text) for key, text in distinct.items() if key not in scores]
        for first in range(0, len(missing), BATCH):
            part = missing[first : first + BATCH]
            values = checked_scores(scorer, [text for _, text in part])
            fresh = {key: float(value) for (key, _), value in zip(part, values, strict=True)}
            cache.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", fresh.items())
            cache.commit()
            scores |= fresh
            advance(len(part))
    return np.array([scores[key] for key in keys])


def try_scorer(scorer: Scorer) -> None:
    """Scores a long and an empty text, so that a scorer's limits show before the long work.

    Raises:
        ValueError: it fails, or its scores are invalid.
    """
    try:
        scored(scorer, [LONG_TEXT, ""])
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(
            f"the scorer {scorer.name} failed on a long or an empty text: {error}"
        ) from error


@contextmanager
def _cache(scorer: Scorer) -> Iterator[sqlite3.Connection]:
    folder = cache_dir() / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{scorer.name} {scorer.version}".encode()).hexdigest()[:12]
    file = folder / f"{scorer.name.split(':')[0]}-{digest}.sqlite"
    with closing(sqlite3.connect(file, timeout=60)) as cache:
        try:
            cache.execute("CREATE TABLE IF NOT EXISTS scores (text BLOB PRIMARY KEY, score REAL)")
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"the cache of scores {file} is damaged ({error}): delete it"
            ) from error
        yield cache
