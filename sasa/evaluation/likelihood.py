"""How likely a model finds completions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from sasa.decoding.sampling import log_probs


@torch.no_grad()
def negative_log_likelihood(
    model: PreTrainedModel, contexts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[float]:
    """Nats of completions given their contexts: float32 log-probabilities, summed; each context is
    read once.

    Args:
        contexts: token ids of P prompts.
        completions: token ids of P * n completions, those of the first context first. An empty one
            has 0 nats.
    """
    return (-log_probs(model, contexts, completions).sum(1)).tolist()
