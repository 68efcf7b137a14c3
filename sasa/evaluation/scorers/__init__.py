"""Scorers of toxicity: one protocol, one file per scorer, and a cache on disk so that no text is scored twice."""

from sasa.evaluation.scorers.base import Scorer, checked_scores, scorer
from sasa.evaluation.scorers.cache import scored, try_scorer

__all__ = ["Scorer", "checked_scores", "scored", "scorer", "try_scorer"]
