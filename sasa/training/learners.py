"""Models that learn, each with an optimizer: updates of their weights, and checkpoints of both.

RePULSe's loop and the attacker of `sasa.redteam` train by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sasa.training.checkpoint import Learner, newest, restore, save
from sasa.training.models import Models


class Learners:
    """The trained weights of some of the `Models`, each set with AdamW at a constant learning rate.

    Args:
        models: the models.
        rates: learning rates, by the name of the model that learns: POLICY, PROPOSAL.
        max_norm: gradients are scaled down to this norm, each model's of its own.
    """

    def __init__(self, models: Models, rates: Mapping[str, float], max_norm: float) -> None:
        self.models, self.max_norm = models, max_norm
        self._learners: dict[str, Learner] = {}
        for name, rate in rates.items():
            weights = models.weights(name)
            optimizer = torch.optim.AdamW(weights.values(), lr=rate, weight_decay=0.0)
            self._learners[name] = weights, optimizer

    def __contains__(self, name: str) -> bool:
        """Whether the model of this name learns."""
        return name in self._learners

    def weights(self) -> list[list[torch.nn.Parameter]]:
        """The trained weights of each model that learns."""
        return [list(weights.values()) for weights, _ in self._learners.values()]

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for weights in self.weights():
            for weight in weights:
                weight.grad = None

    def step(self) -> dict[str, float]:
        """Updates all weights by their gradients, the last model's first.

        Returns:
            the gradients' norms before they were scaled, by model.
        """
        norms = {}
        for name, (weights, optimizer) in reversed(self._learners.items()):
            norm = torch.nn.utils.clip_grad_norm_(weights.values(), self.max_norm)
            norms[name] = float(norm)
            optimizer.step()
        return norms

    def save(self, checkpoints: Path, step: int, log: Sequence[dict[str, Any]] = ()) -> None:
        """Writes a checkpoint in place of the ones before it."""
        save(checkpoints, step, self._learners, log)

    def restore(self, checkpoints: Path) -> tuple[int, list[dict[str, Any]]]:
        """Takes weights and optimizers back to the last checkpoint in a folder.

        Returns:
            the checkpoint's step and log; 0 and an empty log if there is no checkpoint.
        """
        last = newest(checkpoints)
        return (0, []) if last is None else restore(last, self._learners)
