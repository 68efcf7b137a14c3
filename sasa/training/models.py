"""The models of a RePULSe training: policy, prior and proposal.

The policy learns, the prior is the policy before training, and the proposal learns to write what is
worst.

With an adapter all three share one model's weights: policy and proposal are LoRA adapters, the
prior is the model without them. Without an adapter, policy and proposal are copies of the prior.
The given model is not changed: rewards may read its hidden states.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sasa.decoding.sampling import random_state
from sasa.models.skinny import forget
from sasa.training.folder import save_adapter

POLICY, REFERENCE, PROPOSAL = "policy", "reference", "proposal"
"""Names of the models; the reference is the prior."""
ADAPTERS = {POLICY: "default", PROPOSAL: "proposal"}
"""The adapters' names in peft, which saves all but `default` in folders of their names."""


class Models:
    """Policy, prior and optionally a proposal, on one set of weights or several, without dropout.

    Args:
        model: the prior, in eval mode.
        lora: the rank of the adapters; 0 for copies, in float32, all weights of which are trained.
        proposal: whether there is one.
        seed: of the adapters' initial weights.
    """

    def __init__(self, model: PreTrainedModel, lora: int, *, proposal: bool, seed: int) -> None:
        self.prior = model
        self.adapted: Any = None
        names = [POLICY, PROPOSAL] if proposal else [POLICY]
        frozen = {name: weight.requires_grad for name, weight in model.named_parameters()}
        self._unfreeze = [name for name, wanted in frozen.items() if wanted]
        model.requires_grad_(False)
        if lora:
            self.adapted = _adapt(model, lora, [ADAPTERS[name] for name in names], seed)
            forget(model)
            self._models = dict.fromkeys(names, model)
        else:
            # in half precision most steps would be too small to change a weight
            self._models = {
                name: copy.deepcopy(model).float().requires_grad_(True) for name in names
            }
        self._weights = {name: self._own(name) for name in names}

    @contextmanager
    def use(self, which: str) -> Iterator[PreTrainedModel]:
        """The policy, the reference or the proposal, for this block only. Blocks do not nest."""
        if self.adapted is None:
            yield self._models.get(which, self.prior)
        elif which == REFERENCE:
            with self.adapted.disable_adapter():
                yield self.prior
            self._require_grad()
        else:
            self.adapted.set_adapter(ADAPTERS[which])
            self._require_grad()
            yield self.prior

    def weights(self, which: str) -> dict[str, nn.Parameter]:
        """The trained weights of the policy or the proposal, by name."""
        return self._weights[which]

    def save(self, which: str, folder: Path, base: str) -> Path:
        """Saves the policy or the proposal, as an adapter of `base` or as a whole model.

        Returns:
            where it is: `folder` for the policy, its folder `proposal` for the proposal.
        """
        place = folder if which == POLICY else folder / ADAPTERS[which]
        if self.adapted is None:
            self._models[which].save_pretrained(place)
        else:
            save_adapter(self.adapted, folder, base, ADAPTERS[which])
        return place

    def close(self) -> None:
        """Gives the prior back as it was given."""
        if self.adapted is not None:
            self.adapted.unload()
            forget(self.prior)
        for name, weight in self.prior.named_parameters():
            weight.requires_grad_(name in self._unfreeze)

    def _own(self, which: str) -> dict[str, nn.Parameter]:
        every = dict(self._models[which].named_parameters())
        if self.adapted is None:
            return every
        return {
            name: weight
            for name, weight in every.items()
            if f".{ADAPTERS[which]}." in name and ".lora_" in name
        }

    def _require_grad(self) -> None:
        # peft takes gradients from an adapter when another one is chosen, but a loss of the first
        # may still need them
        for weights in self._weights.values():
            for weight in weights.values():
                weight.requires_grad_(True)


def _adapt(model: PreTrainedModel, rank: int, names: list[str], seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with random_state(seed, model.device), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # of what peft (0.21) asks transformers (5.23) for
        adapted = get_peft_model(model, settings)
        for name in names[1:]:
            adapted.add_adapter(name, settings)
    return adapted.eval()
