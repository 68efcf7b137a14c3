"""Settings, models and folders that RePULSe refuses."""

from dataclasses import replace

import pytest
import reference_repulse as exact
from small_repulse import PROMPTS, REWARD, SMALL, train

from sasa.evaluation.rewards import function_reward
from sasa.training import train_repulse

accelerate = pytest.importorskip("accelerate", reason="pip install 'sasa-decoding[train]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"method": "ppo"},
            "method must be one of repulse, rloo, rloo-transformed, p-proposal, got 'ppo'",
        ),
        ({"alpha": -0.1}, "alpha must be >= 0, got -0.1"),
        ({"beta": -1.0}, "beta must be >= 0, got -1.0"),
        ({"beta": float("nan")}, "beta must be >= 0, got nan"),
        ({"beta_kl": 0.0}, "beta_kl must be > 0, got 0.0"),
        ({"samples": 1}, "samples must be >= 2, got 1"),
        ({"learning_rate": float("inf")}, "learning_rate must be > 0, got inf"),
        ({"eta": float("nan")}, "eta must be a finite number, got nan"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"lora": -1}, "lora must be >= 0, got -1"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prompts=[]), "there are no prompts to train on"),
        (dict(prompts=["w1", " "]), "prompt 1 is empty"),
        (
            dict(prompts=["w1 " * 40]),
            "prompt 0 has 40 tokens: with max_new_tokens=3 that is beyond the model's context window of 32",
        ),
        (
            dict(settings=replace(SMALL, chat=True)),
            "chat: the model's tokenizer has no chat template",
        ),
        (
            dict(reward=function_reward(lambda p, c: [1.0] * len(c), "flat")),
            "the reward flat is constant: it gave 1 for each of 20",
        ),
        (
            dict(reward=function_reward(lambda p, c: [float("nan")] * len(c), "broken")),
            "the reward broken is not finite: it gave nan",
        ),
        (
            dict(reward=function_reward(lambda p, c: 1.0, "single")),
            "the reward single gave an array of shape",
        ),
        (
            dict(settings=replace(SMALL, method="rloo-transformed", beta=300.0)),
            "is not finite for rewards as low as",
        ),
    ],
)
def test_what_cannot_be_trained_on(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_folders_of_something_else(tmp_path):
    train(tmp_path / "out")
    with pytest.raises(ValueError, match=r"other settings: alpha was 0\.1, is 0\.2"):
        train(tmp_path / "out", replace(SMALL, alpha=0.2))
    with pytest.raises(ValueError, match=r"other settings: prompts was"):
        train(tmp_path / "out", prompts=PROMPTS[:4])
    with pytest.raises(ValueError, match=r"other settings: reward\.name was reward, is another"):
        train(tmp_path / "out", reward=replace(REWARD, name="another"))
    with pytest.raises(ValueError, match="is not empty and does not hold a training"):
        train(tmp_path)
    with pytest.raises(ValueError, match="in training mode"):
        train_repulse(
            exact.model().train(),
            exact.tokenizer(),
            PROMPTS,
            REWARD,
            tmp_path / "t",
            SMALL,
            base="me/exact",
        )
