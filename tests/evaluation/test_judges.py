"""Ready-made judges and guards."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

import sasa
from sasa.evaluation import registry, scorers
from sasa.evaluation.baselines import guard
from sasa.evaluation.baselines.scorers import shared_scorer
from sasa.evaluation.methods import method
from sasa.evaluation.scorers import classifier
from sasa.evaluation.scorers.qwen3guard import Qwen3GuardScorer
from sasa.evaluation.settings import Settings
from sasa.evaluation.world import World

PROMPTS = ["hello there", "abc", "you and me!"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SASA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def world(model, tokenizer):
    return World(model, tokenizer, tiny.boundary(model), Settings(3, 5, 0.8, 12, 0.9))


def test_a_guard_writes_again_what_a_judge_stops(world, judge, monkeypatch):
    first = world.sample(PROMPTS, seed=1)
    scores = shared_scorer(judge).score([c.text for row in first for c in row])
    middle = float(np.median(scores))
    monkeypatch.setattr(guard, "TOXIC", middle)
    found = [c for row in method(f"guard:3:{judge}")(world, PROMPTS, seed=1) for c in row]
    again = shared_scorer(judge).score([c.text for c in found])
    for before, score, after, now in zip(
        (c for row in first for c in row), scores, found, again, strict=True
    ):
        if score < middle:
            assert after == before
        else:
            assert now <= score
            assert after.spent > len(before.tokens)
    assert sum(again >= middle) < sum(scores >= middle)


@pytest.mark.parametrize(("kind", "name"), [("roberta", "hap-38m"), ("deberta-v2", "deberta-rtp")])
def test_ready_made_classifiers(kind, name, tmp_path, monkeypatch):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        kind, vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=80, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    judge_model = AutoModelForSequenceClassification.from_config(config)
    judge_model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    rude, polite = classifier.ClassifierScorer(f"{tmp_path}#1").score(
        [classifier.RUDE, classifier.POLITE]
    )
    right, wrong = (1, 0) if rude > polite else (0, 1)
    assert registry.SCORERS[name].argument.endswith("#1")
    entry = replace(registry.SCORERS[name], argument=f"{tmp_path}#{right}")
    monkeypatch.setitem(registry.SCORERS, name, entry)
    found = scorers.scorer(name)
    scorers.try_scorer(found)
    np.testing.assert_allclose(
        found.score(["abc"])
        + classifier.ClassifierScorer(f"{tmp_path}#{1 - right}").score(["abc"]),
        1,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="its label is not the toxic one"):
        classifier.checked_classifier(f"{tmp_path}#{wrong}")
    with pytest.raises(ValueError, match="which label is toxic"):
        classifier.ClassifierScorer(str(tmp_path))


def test_qwen3guard(tmp_path, monkeypatch):
    """Its score is of the three answers it could give; by reading each of them."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}:"
    tiny.model("qwen3").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    guard_judge = Qwen3GuardScorer(str(tmp_path))
    texts = ["abc", "", "a longer one"]
    model = sasa.load(str(tmp_path), device="cpu")[0]
    for text, score in zip(texts, guard_judge.score(texts), strict=True):
        before = tokenizer(f"[{text}]:").input_ids
        log_p = []
        for answer in ("Safe", "Controversial", "Unsafe"):
            ids = [*before, *tokenizer(f"Safety: {answer}", add_special_tokens=False).input_ids]
            with torch.no_grad():
                every = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            log_p.append(
                float(sum(every[place - 1, ids[place]] for place in range(len(before), len(ids))))
            )
        _, half, unsafe = torch.tensor(log_p).softmax(0).tolist()
        assert score == pytest.approx(unsafe + half / 2, abs=1e-5)
    cache = tmp_path / "cache"
    monkeypatch.setenv("SASA_CACHE", str(cache))
    scorers.try_scorer(guard_judge)
    assert list((cache / "scores").iterdir()), (
        "its scores are kept where all others are, whatever its name"
    )
    assert len(guard_judge.score([])) == 0
    other = tiny.model("qwen3")
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    other.save_pretrained(tmp_path)
    assert Qwen3GuardScorer(str(tmp_path)).version != guard_judge.version
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    tiny.model("qwen3").save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="no chat template"):
        Qwen3GuardScorer(str(tmp_path / "plain"))
