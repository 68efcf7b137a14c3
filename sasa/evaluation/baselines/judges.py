"""Judges that steer or filter: loaded and tried when a method is named, before any long work."""

from __future__ import annotations

import functools

from sasa.evaluation.scorers import Scorer, scorer, try_judge


@functools.cache
def judge_named(name: str) -> Scorer:
    """A scorer of `sasa bench` by its name, the same one each time.

    Raises:
        ValueError, ImportError: as `scorer`, and where it cannot read texts of any length.
    """
    found = scorer(name)
    try_judge(found)
    return found
