"""Scorers that steer or filter: loaded and tried when a method is parsed, before any long work."""

from __future__ import annotations

import functools

from sasa.evaluation.scorers import Scorer, scorer, try_scorer


@functools.cache
def shared_scorer(name: str) -> Scorer:
    """The scorer of this name; one instance per process.

    Raises:
        ValueError, ImportError: as `scorer`; ValueError if it cannot score texts of any length.
    """
    shared = scorer(name)
    try_scorer(shared)
    return shared
