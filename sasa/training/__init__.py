"""Training: what a boundary, a reward, or preferences can teach a model for good."""

from sasa.training.backtracking import Training, train_backtracking
from sasa.training.repulse import Repulse, train_repulse

__all__ = ["Repulse", "Training", "train_backtracking", "train_repulse"]
