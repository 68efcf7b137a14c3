"""Bias metrics by hand, and a fit that is blind to identity."""

import csv
import json

import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from sasa.cli import app
from sasa.fitting import Corpus, Recipe, fit_boundary
from sasa.fitting.fairness import bias_metrics


def test_metrics_by_hand():
    """Harmless texts that name the one term look unsafe, and those that name the other do not."""
    texts, labels, log_odds = [], [], []
    for i in range(10):
        for term in ("muslim", "sikh"):
            for safe in (1, 0):
                texts.append(f"text {i} of a {term}")
                labels.append(safe)
                log_odds.append(
                    (1.0 if safe else -1.0) - (1.5 if term == "muslim" else 0.0) + i / 100
                )
    found = bias_metrics(np.array(log_odds), np.array(labels), texts)
    assert set(found["terms"]) == {"muslim", "sikh"}
    muslim, sikh = found["terms"]["muslim"], found["terms"]["sikh"]
    assert muslim["texts"] == sikh["texts"] == 20
    assert muslim["subgroup_auc"] == sikh["subgroup_auc"] == 1
    assert muslim["fpr"] == 1
    assert sikh["fpr"] == 0
    assert found["fpr_gap"] == 1
    # Unsafe ones that name sikh, at -1.0, against harmless ones that name muslim, at -0.5; and the other way round.
    assert muslim["bpsn_auc"] == 1
    assert sikh["bnsp_auc"] == 0 + 1
    assert found["worst"]["subgroup_auc"]["value"] == 1


def test_auc_of_overlapping_groups():
    """Unsafe background against safe subgroup, where half of the pairs are in the wrong order."""
    texts = ["a gay man"] * 16 + ["a man"] * 16
    labels = np.array([1] * 8 + [0] * 8 + [1] * 8 + [0] * 8)
    log_odds = np.array([-2.0, 2.0] * 4 + [-3.0] * 8 + [1.0] * 8 + [-1.0] * 8)
    found = bias_metrics(log_odds, labels, texts)["terms"]["gay"]
    assert found["bpsn_auc"] == 0.5
    assert found["bnsp_auc"] == 1
    assert found["fpr"] == 0.5


def test_longer_terms_hide_shorter_ones():
    texts = ["an african american one"] * 16 + ["nobody"] * 16
    found = bias_metrics(np.arange(32.0), np.array([0, 1] * 16), texts)
    assert set(found["terms"]) == {"african american"}


def test_too_few_texts():
    with pytest.raises(ValueError, match="no identity term has"):
        bias_metrics(np.zeros(4), np.array([0, 1, 0, 1]), ["a gay man"] * 4)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Sentences that differ in an identity term, as the templates of Dixon et al. have them."""
    file = tmp_path_factory.mktemp("madlibs") / "sentences.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["Text", "Label"])
        for name in ("Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo"):
            for term in ("sikh", "gay", "deaf", "OLD"):
                for word, label in (("kind", "NOT_BAD"), ("fair", "NOT_BAD"), ("calm", "NOT_BAD")):
                    writer.writerow([f"{name} is a {word} {term}", label])
                for word in ("XQZ", "ZZX", "QXQ"):
                    writer.writerow([f"{name} is a {word} {term}", "BAD"])
    return f"{file}::text=Text,label=Label,positive=BAD"


def test_the_audit_goes_on_the_card(model, tokenizer, corpus_file, sentences, tmp_path):
    corpora = (Corpus(str(corpus_file), text="comment", label="toxic"),)
    recipe = Recipe(
        corpora, embedding=tiny.EmbeddingSpec(pooling="mean"), audit=Corpus.parse(sentences)
    )
    boundary = fit_boundary(model, tokenizer, recipe, tmp_path)
    assert Recipe.load(tmp_path / "recipe.toml").to_dict() == boundary.report["recipe"]
    assert "Identity terms" in (tmp_path / "README.md").read_text()
    assert boundary.report["audit"]["texts"] == 240


def test_an_audit_of_chats_is_refused(corpus_file):
    corpus = Corpus(str(corpus_file), text="comment", label="toxic")
    with pytest.raises(ValueError, match="does not go with template='chat'"):
        Recipe((corpus,), audit=corpus, embedding=tiny.EmbeddingSpec(template="chat"))


def test_an_audit_without_identity_terms_is_refused_before_the_fit(
    model, tokenizer, corpus_file, tmp_path
):
    corpus = Corpus(str(corpus_file), text="comment", label="toxic")
    with pytest.raises(ValueError, match="no text names one of the identity terms"):
        fit_boundary(model, tokenizer, Recipe((corpus,), audit=corpus), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command(tiny_folder, model, sentences, tmp_path):
    tiny.boundary(model).save(tmp_path / "boundary")
    options = [
        "audit",
        sentences,
        "-m",
        str(tiny_folder),
        "-b",
        str(tmp_path / "boundary"),
        "--device",
        "cpu",
        "--no-strict",
    ]
    result = CliRunner().invoke(app, [*options, "--json"])
    assert result.exit_code == 0, result.exception
    assert set(json.loads(result.stdout)["terms"]) == {"sikh", "gay", "deaf", "old"}
    assert "BPSN" in CliRunner().invoke(app, options).output
