"""Scorers of toxicity: a protocol, one file per scorer, and a cache of scores on disk."""

from sasa.evaluation.scorers.base import Scorer, checked_scores, scorer
from sasa.evaluation.scorers.cache import scored, try_scorer

__all__ = ["Scorer", "checked_scores", "scored", "scorer", "try_scorer"]
