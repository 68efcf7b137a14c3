"""Training: what a boundary, or preferences, can teach a model for good."""

from sasa.training.backtracking import Training, train_backtracking

__all__ = ["Training", "train_backtracking"]
