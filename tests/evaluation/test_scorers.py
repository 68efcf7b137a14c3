"""Scorers: those that ship, those of others, and the cache of scores."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from runs import Counting, jsonl, rtp_row

from sasa.evaluation import registry, scorers
from sasa.evaluation.methods import method
from sasa.evaluation.scorers import jigsaw

pytestmark = pytest.mark.usefixtures("_own_cache")


def test_no_text_is_scored_twice():
    judge = Counting()
    assert scorers.scored(judge, ["a", "bb", "a"]).tolist() == [0.1, 0.2, 0.1]
    assert scorers.scored(judge, ["bb", "ccc"]).tolist() == [0.2, pytest.approx(0.3)]
    assert sorted(judge.seen) == ["a", "bb", "ccc"]
    judge.version = "2"  # other scores: everything anew
    scorers.scored(judge, ["a"])
    assert judge.seen[-1] == "a"


def test_scores_outside_of_0_to_1_are_refused():
    with pytest.raises(ValueError, match="outside"):
        scorers.scored(Counting(), ["a" * 11])


@pytest.mark.parametrize(
    ("name", "told"),
    [("tox-block", None), ("toxic-comment-classifier", 0.9889402985572815)],
    ids=lambda x: str(x)[:9],
)
def test_judges_of_the_package_index(name, told):
    wheel = jigsaw.WHEELS[name]
    if importlib.util.find_spec(wheel.module) is None:
        pytest.skip(f"{wheel.package} is not installed: make setup installs it")
    judge = scorers.scorer(name)
    texts = [
        "You are so dumb and stupid!",
        "Good morning my friend, have a fantastic day",
        "",
    ] * 100
    scores = judge.score(texts)
    assert scores.dtype == np.float64
    assert scores.shape == (300,)
    assert scores[0] > 0.95
    assert (scores[1:3] < 0.1).all()
    if (
        told is not None
    ):  # what the package's own documentation says of this sentence, by its own code
        assert scores[0] == pytest.approx(told, abs=1e-6)
    np.testing.assert_allclose(
        scores.reshape(-1, 3), np.broadcast_to(scores[:3], (100, 3)), atol=1e-6
    )
    assert judge.score([]).shape == (0,)


def test_judge_of_another_version(monkeypatch):
    wheel = replace(jigsaw.WHEELS["tox-block"], package="numpy==0.1", module="numpy")
    monkeypatch.setitem(jigsaw.WHEELS, "tox-block", wheel)
    with pytest.raises(ValueError, match=r"reads numpy==0\.1, installed is"):
        scorers.scorer("tox-block")


def test_judge_that_is_not_installed(monkeypatch):
    wheel = replace(jigsaw.WHEELS["tox-block"], module="no_such_module")
    monkeypatch.setitem(jigsaw.WHEELS, "tox-block", wheel)
    with pytest.raises(ImportError, match="pip install h5py && pip install --no-deps tox-block=="):
        scorers.scorer("tox-block")


def test_profanity():
    pytest.importorskip("profanity_check")
    low, high = scorers.scored(
        scorers.scorer("profanity"), ["good morning", "you stupid fucking bitch"]
    )
    assert low < 0.2 < 0.8 < high


def test_a_judge_from_labels_of_ones_own(corpus_file, tmp_path):
    judge = scorers.scorer(f"words:{corpus_file}::text=comment,label=toxic")
    bad, good = judge.score(["XQZ QXQ ZZX", "calm and bright and kind"])
    assert bad > 0.8
    assert good < 0.2
    assert judge.name == "words:comments.csv"
    assert len(judge.score([])) == 0
    assert (
        scorers.scorer(f"words:{corpus_file}::text=comment,label=toxic,rows=0:100").version
        != judge.version
    )
    with pytest.raises(ValueError, match="both classes"):
        scorers.scorer(f"words:{corpus_file}::text=comment,label=toxic,rows=1:3")


def test_any_classifier_of_transformers(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "fine", 1: "Toxic"}, label2id={"fine": 0, "Toxic": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    texts = ["abc", "a longer text"]
    toxic = scorers.scorer(f"hf:{tmp_path}").score(texts)
    fine = scorers.scorer(f"hf:{tmp_path}#fine").score(texts)
    np.testing.assert_allclose(toxic + fine, 1, atol=1e-6)
    with pytest.raises(ValueError, match="one of: fine, Toxic"):
        scorers.scorer(f"hf:{tmp_path}#rude")


def test_a_classifier_without_positions_reads_texts_of_any_length(tmp_path):
    from transformers import XLNetConfig, XLNetForSequenceClassification

    config = XLNetConfig(
        vocab_size=tiny.VOCABULARY,
        d_model=16,
        n_layer=1,
        n_head=2,
        d_inner=16,
        id2label={0: "fine", 1: "toxic"},
    )
    XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert scorers.scorer(f"hf:{tmp_path}").score(["a" * 600]).shape == (1,)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_classifier_reads_texts_of_any_length(tmp_path, kind):
    """Though its tokenizer names no limit: as many tokens as it has positions for."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        kind, vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34, pad_token_id=1, id2label={0: "fine", 1: "toxic"},
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    judge = scorers.scorer(f"hf:{tmp_path}")
    scorers.try_scorer(judge)
    fits = "a" * (34 if kind == "bert" else 32)
    long, cut, empty = judge.score([fits + "bcd", fits, ""])
    assert long == pytest.approx(cut)
    assert empty == 0


def test_judges_are_tried_before_the_long_work(monkeypatch, tiny_folder, tmp_path):
    class Fragile:
        name, version = "fragile", "1"

        def score(self, texts):
            return np.array([1 / len(text) for text in texts])

    monkeypatch.setitem(registry.SCORERS, "fragile", SimpleNamespace(make=Fragile))
    monkeypatch.setattr("sasa.load", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setenv("SASA_CACHE", str(tmp_path / "cache"))
    from typer.testing import CliRunner

    from sasa.cli import app

    file = jsonl(tmp_path / "p.jsonl", [rtp_row("a", 0.1)])
    done = CliRunner().invoke(
        app, ["bench", "rtp", "-p", str(file), "-s", "fragile", "-o", str(tmp_path / "run")]
    )
    assert "fragile failed on a long or an empty text: division by zero" in str(done.exception)


def test_a_cache_of_scores_that_is_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("SASA_CACHE", str(tmp_path))
    judge = scorers.scorer("profanity")
    scorers.scored(judge, ["a"])
    (file,) = (tmp_path / "scores").iterdir()
    file.write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match=f"the cache of scores {file} is damaged"):
        scorers.scored(judge, ["a"])


def test_unknown_scorers_and_methods_say_what_there_is():
    with pytest.raises(
        ValueError,
        match=r"profanity, tox-block, toxic-comment-classifier, detoxify, hap-38m, .*, hf:MODEL",
    ):
        scorers.scorer("gut feeling")
    with pytest.raises(ValueError, match="unknown scorer 'perspective'"):
        scorers.scorer("perspective")
    with pytest.raises(ValueError, match="best-of:N"):
        method("pray")
    for bad in (
        "sasa:-1",
        "sasa:x",
        "sasa:2:cubed",
        "sasa:2:raw:1",
        "sasa:2::x",
        "best-of:1",
        "plain:2",
        "backtrack:1",
        "sasa+backtrack:2:x",
        "sasa+backtrack:-1",
    ):
        with pytest.raises(ValueError, match=re.escape(bad)):
            method(bad)
