"""A small RePULSe training that several test modules share."""

import pytest
import reference_repulse as exact

from sasa.evaluation.rewards import function_reward
from sasa.training import Repulse, train_repulse

accelerate = pytest.importorskip("accelerate", reason="pip install 'sasa-decoding[train]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")


REWARD = function_reward(exact.reward)
SMALL = Repulse(
    samples=4, prompts_per_step=2, steps=6, max_new_tokens=exact.LENGTH, lora=2, learning_rate=1e-2,
    proposal_learning_rate=1e-2, save_steps=2, eta=exact.BAD,
)  # fmt: skip
PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w7", "w8 w9"]


def train(folder, settings=SMALL, prompts=PROMPTS, reward=REWARD, **options):
    return train_repulse(
        exact.model(),
        exact.tokenizer(),
        prompts,
        reward,
        folder,
        settings,
        base="me/exact",
        **options,
    )
