"""Training: what a boundary, a reward, or preferences can teach a model for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sasa.lazy import lazy

if TYPE_CHECKING:
    from sasa.training.backtracking import Training, train_backtracking
    from sasa.training.repulse import train_repulse
    from sasa.training.settings import Repulse

_HOMES = {
    "Repulse": "settings",
    "Training": "backtracking",
    "train_backtracking": "backtracking",
    "train_repulse": "repulse",
}

__all__ = ["Repulse", "Training", "train_backtracking", "train_repulse"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
