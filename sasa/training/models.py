"""The models of a RePULSe training: the policy that learns, the prior that it was, and the proposal that finds its worst.

With an adapter all three share one model's weights: policy and proposal are LoRA adapters, the prior is neither. Without, policy
and proposal are copies of the prior. The model that was given stays what it was: rewards may read its states.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sasa.decoding.sampling import random_state
from sasa.models.skinny import forget

POLICY, PRIOR, PROPOSAL = "policy", "prior", "proposal"
ADAPTERS = {POLICY: "default", PROPOSAL: "proposal"}
"""What the adapters are called in peft, which saves the default one in the folder itself and others in folders of their names."""


class Models:
    """Policy, prior and, where one is wanted, proposal, on one set of weights or on several. Dropout is off in all of them.

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
        """The policy, the prior or the proposal, to be used within this block alone. Blocks do not nest."""
        if self.adapted is None:
            yield self._models.get(which, self.prior)
        elif which == PRIOR:
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

    def whole(self, which: str) -> PreTrainedModel:
        """The policy or the proposal where it is a model of its own."""
        return self._models[which]

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
        # peft takes gradients from an adapter when another one is chosen, but a loss of the first may still want them.
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
