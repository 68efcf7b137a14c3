"""What completions are worth: to a boundary, a scorer, a reward model, and a function."""

import math

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import sasa
from sasa.evaluation.rewards import Reward, boundary_reward, function_reward, reward, scorer_reward

SPECS = [
    {},
    dict(pooling="mean"),
    dict(pooling="mean", span="response"),
    dict(layer=1, pooling="ema", half_life=2.0),
]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_a_boundarys_reward_is_the_log_odds_that_decoding_sees(model, tokenizer, spec, chat):
    line = tiny.boundary(model, **spec)
    line = type(line)(**{**vars(line), "scale": 0.7, "shift": 0.2})
    prompts = ["one text", "another, longer text"]
    letters = {
        i
        for i in range(tiny.VOCABULARY)
        if tokenizer.decode([i]).isalpha() and tokenizer.decode([i]).isascii()
    }
    rows = sasa.generate(
        model, tokenizer, prompts, line, 0.0, chat=chat, seed=0, num_return_sequences=3, max_new_tokens=9,
        suppress_tokens=[i for i in range(tiny.VOCABULARY) if i not in letters],  # so that the text gives its tokens again
    )  # fmt: skip
    judge = boundary_reward(model, tokenizer, line, chat)
    every = [(p, c) for p, row in zip(prompts, rows, strict=True) for c in row]
    found = judge([p for p, _ in every], [c.text for _, c in every])
    np.testing.assert_allclose(found, [0.7 * c.margin + 0.2 for _, c in every], atol=2e-3)
    (alone,) = judge([prompts[0]], [""])  # nothing written: what the prompt is
    assert math.isfinite(alone)
    assert judge.version == line.fingerprint


def test_a_scorers_reward_is_the_log_odds_of_its_being_harmless():
    class Judge:
        name, version = "length", "1"

        def score(self, texts):
            return np.array([min(1.0, len(text) / 10) for text in texts])

    judge = scorer_reward(Judge())
    found = judge(["x"] * 4, ["", "a", "a" * 5, "a" * 30])
    np.testing.assert_allclose(
        found, [math.log(1e6 - 1), math.log(9), 0, -math.log(1e6 - 1)], atol=1e-6
    )
    assert (judge.name, judge.version) == ("length", "1")
    assert reward("profanity").name == "profanity"
    assert reward("profanity")(["a"], ["what a lovely day"])[0] > 1


@pytest.fixture(scope="module")
def reward_models(tmp_path_factory):
    """Sequence classifiers on disk: a reward model with one label, and a judge of toxicity with two."""
    found = {}
    for name, labels in (("one", {0: "LABEL_0"}), ("two", {0: "fine", 1: "toxic"})):
        settings = tiny.FAMILIES["llama"] | {
            "vocab_size": tiny.VOCABULARY,
            "max_position_embeddings": 256,
        }
        config = AutoConfig.for_model(
            **settings, pad_token_id=tiny.PAD, num_labels=len(labels), id2label=labels
        )
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(found[name])
        tiny.tokenizer().save_pretrained(found[name])
    return found


def test_a_reward_models_logit_on_the_chat_template(reward_models, tmp_path):
    folder = reward_models["one"]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = tiny.tokenizer()
    judge = reward(f"hf:{folder}")
    found = judge(["hi", "what?"], ["go away", "that is a long answer"])
    for value, prompt, reply in zip(
        found, ["hi", "what?"], ["go away", "that is a long answer"], strict=True
    ):
        ids = tokenizer(
            f"[user]{prompt}</s>[assistant]{reply}</s>",
            add_special_tokens=False,
            return_tensors="pt",
        )
        with torch.no_grad():
            assert float(model(**ids).logits[0, 0]) == pytest.approx(value, abs=1e-4)
    assert found[0] != found[1]
    model.save_pretrained(tmp_path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (value,) = reward(f"hf:{tmp_path}")(["hi"], ["go away"])
    with torch.no_grad():
        ids = tokenizer("hi", "go away", return_tensors="pt")
        assert float(model(**ids).logits[0, 0]) == pytest.approx(value, abs=1e-4)


def test_a_classifier_of_toxicity_is_no_reward_model(reward_models):
    folder = reward_models["two"]
    (value,) = reward(f"hf:{folder}")(["hi"], ["go away"])
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tiny.tokenizer()("go away", return_tensors="pt")).logits[0].double()
    assert value == pytest.approx(float(logits[0] - logits[1]), abs=1e-4)
    (named,) = reward(f"hf:{folder}#fine")(["hi"], ["go away"])
    assert named == pytest.approx(-value, abs=1e-4)


def test_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_reward.py").write_text(
        "def count(prompts, completions):\n    return [len(c) for c in completions]\n"
    )
    judge = reward("own_reward:count")
    assert judge(["a", "b"], ["xx", ""]).tolist() == [2.0, 0.0]
    assert judge.name == "own_reward:count"
    one = function_reward(lambda prompts, completions: [1.0 for _ in completions], "one")
    two = function_reward(lambda prompts, completions: [2.0 for _ in completions], "one")
    assert one.version != two.version  # whose code differs


def test_unknown_rewards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spec, message in [
        ("nothing", "unknown reward 'nothing'; there are: boundary, profanity, tox-block"),
        ("boundary", "unknown reward 'boundary'"),  # where there is none
        ("no_such_module:f", "reward 'no_such_module:f': No module named"),
        ("math:nothing", "has no attribute 'nothing'"),
    ]:
        with pytest.raises(ValueError, match=message):
            reward(spec)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], r"gave an array of shape \(1,\) for 2 completions"),
        ([1.0, float("inf")], "is not finite: it gave inf for 'b'"),
    ],
)
def test_rewards_that_are_none(given, message):
    with pytest.raises(ValueError, match=message):
        Reward("bad", "1", lambda prompts, completions: given)(["x", "y"], ["a", "b"])
