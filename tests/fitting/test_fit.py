"""A fit from corpora to a boundary: what it separates, calibrates and refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from helpers import write_corpus
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from sasa import Boundary, EmbeddingSpec, embed
from sasa.fitting import Corpus, GaussianStatistics, Recipe, fit_boundary, linear_discriminant
from sasa.fitting.calibration import calibrate, expected_calibration_error, metrics
from sasa.models.embedding import embed_prefixes


def test_a_fit_separates_what_can_be_separated(model, tokenizer, recipe, tmp_path):
    boundary = fit_boundary(model, tokenizer, recipe, tmp_path / "out")
    test = boundary.report["test"]
    assert test["auc"] > 0.95
    assert test["accuracy"] > 0.9
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "boundary.safetensors",
        "recipe.toml",
        "README.md",
        "margins.png",
    }
    loaded = Boundary.load(tmp_path / "out", model=model)
    safe, unsafe = loaded.score(model, tokenizer, ["bright calm kind", "XQZ QQQ ZZX"])
    assert safe > 0 > unsafe
    assert loaded.report == boundary.report


def test_the_boundary_is_the_closed_form_of_the_fit_part(model, tokenizer, recipe):
    boundary = fit_boundary(model, tokenizer, recipe)
    rows = [(e, label) for _, e, label in recipe.examples() if recipe.part(e.group) == "fit"]
    vectors = embed(model, tokenizer, [e.text for e, _ in rows], recipe.embedding)
    statistics = GaussianStatistics.empty(32).partial_fit(
        vectors.numpy(), [label for _, label in rows]
    )
    weight, bias, shrinkage = linear_discriminant(statistics)
    torch.testing.assert_close(
        boundary.weight, torch.tensor(weight, dtype=torch.float32), rtol=1e-2, atol=1e-2
    )
    assert boundary.bias == pytest.approx(bias, rel=1e-2, abs=1e-2)
    assert boundary.report["shrinkage"] == pytest.approx(shrinkage, rel=1e-3)
    texts = boundary.report["texts"]
    assert texts["fit_safe"] + texts["fit_unsafe"] == len(rows)
    assert sum(texts.values()) == 240


def test_prefixes_are_fitted_on_and_whole_texts_held_out(model, tokenizer, recipe, tmp_path):
    recipe = replace(recipe, prefixes=True, embedding=EmbeddingSpec(pooling="ema", half_life=3.0))
    boundary = fit_boundary(model, tokenizer, recipe, tmp_path)
    examples = [(e, label) for _, e, label in recipe.examples()]
    statistics = GaussianStatistics.empty(32)
    for e, label in examples:
        if recipe.part(e.group) == "fit":
            _, vectors = embed_prefixes(model, tokenizer, e.text, recipe.embedding)
            statistics.partial_fit(vectors.numpy(), [label] * len(vectors))
    weight, bias, shrinkage = linear_discriminant(statistics)
    torch.testing.assert_close(
        boundary.weight, torch.tensor(weight, dtype=torch.float32), rtol=1e-2, atol=1e-2
    )
    assert boundary.bias == pytest.approx(bias, rel=1e-2, abs=1e-2)
    assert boundary.report["shrinkage"] == pytest.approx(shrinkage, rel=1e-3)
    tested = [(e.text, label) for e, label in examples if recipe.part(e.group) == "test"]
    margins = boundary.score(model, tokenizer, [text for text, _ in tested]).numpy()
    want = metrics(
        margins, np.array([label for _, label in tested]), boundary.scale, boundary.shift
    )
    assert boundary.report["test"] == pytest.approx(want, rel=1e-4)
    assert Recipe.load(tmp_path / "recipe.toml") == recipe
    assert "each with all its prefixes" in (tmp_path / "README.md").read_text()
    with_classifier = fit_boundary(model, tokenizer, recipe, classifier=LogisticRegression())
    assert with_classifier.report["test"]["auc"] > 0.9


def test_a_prompts_own_prefixes_are_not_its_responses(model, tokenizer, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"q": f"why XQZ {i}", "a": ("calm kind", "ZZX QQQ")[i % 2] + f" {i % 7}", "bad": i % 2}
        for i in range(160)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = EmbeddingSpec(
        pooling="mean"
    )  # of the whole text: the prompt is in what is embedded, its prefixes are not fitted on
    recipe = Recipe(
        (Corpus(str(file), text="a", prompt="q", label="bad"),), embedding=spec, prefixes=True
    )
    boundary = fit_boundary(model, tokenizer, recipe)
    statistics = GaussianStatistics.empty(32)
    for _, e, label in recipe.examples():
        if recipe.part(e.group) == "fit":
            within = len(
                embed_prefixes(model, tokenizer, e.text, replace(spec, span="response"))[0]
            )
            vectors = embed_prefixes(model, tokenizer, e.text, spec)[1][-within:]
            statistics.partial_fit(vectors.numpy(), [label] * within)
    weight, bias, _ = linear_discriminant(statistics)
    torch.testing.assert_close(
        boundary.weight, torch.tensor(weight, dtype=torch.float32), rtol=1e-2, atol=1e-2
    )
    assert boundary.bias == pytest.approx(bias, rel=1e-2, abs=1e-2)


def test_parts_share_no_text_and_keep_their_proportions(recipe):
    recipe = replace(recipe, calibration=0.2, test=0.3)
    parts = [recipe.part(f"text {i}") for i in range(4000)]
    assert parts.count("test") / 4000 == pytest.approx(0.3, abs=0.03)
    assert parts.count("calibration") / 4000 == pytest.approx(0.2, abs=0.03)
    assert [recipe.part(f"text {i}") for i in range(4000)] == parts
    assert [replace(recipe, seed=1).part(f"text {i}") for i in range(4000)] != parts


def test_scikit_learn_classifiers_come_through_the_same_door(model, tokenizer, recipe):
    boundary = fit_boundary(model, tokenizer, recipe, classifier=LogisticRegression(max_iter=1000))
    assert boundary.report["test"]["auc"] > 0.95
    assert "LogisticRegression" in boundary.report["classifier"]
    with pytest.raises(ValueError, match="RandomForestClassifier is not a linear classifier"):
        fit_boundary(model, tokenizer, recipe, classifier=RandomForestClassifier(n_estimators=2))


def test_one_class_or_too_few_texts_fail_before_anything_is_embedded(
    model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "sasa.fitting.reading.embed_stream", lambda *a, **k: pytest.fail("embedded")
    )
    (tmp_path / "one.csv").write_text(
        "comment,toxic\n" + "".join(f"nice {i},False\n" for i in range(50))
    )
    one = Recipe((Corpus(str(tmp_path / "one.csv"), text="comment", label="toxic"),))
    with pytest.raises(ValueError, match="50 safe and 0 unsafe texts"):
        fit_boundary(model, tokenizer, one)
    bad = replace(one, shrinkage=2.0)
    with pytest.raises(ValueError, match="shrinkage must be"):
        fit_boundary(model, tokenizer, bad)
    plain = Recipe((Corpus(str(write_corpus(tmp_path / "c.csv")), text="comment", label="toxic"),))
    with pytest.raises(ValueError, match=r"template='chat' needs .* has plain texts"):
        fit_boundary(model, tokenizer, replace(plain, embedding=EmbeddingSpec(template="chat")))
    with pytest.raises(ValueError, match="layer must be in"):
        fit_boundary(model, tokenizer, replace(one, embedding=EmbeddingSpec(layer=40)))


def test_labels_without_signal_are_an_error(model, tokenizer, tmp_path):
    """The labels of the calibration part are turned round: the margin ranks it backwards."""
    recipe = Recipe((Corpus(str(tmp_path / "c.csv"), text="t", label="y"),))
    lines = ["t,y"]
    for i in range(300):
        bad = i % 2 == 0
        text = f"{'XQZ ZZX' if bad else 'bright calm'} {i}"
        lines.append(f"{text},{bad != (recipe.part(text) == 'calibration')}")
    (tmp_path / "c.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"does not separate the calibration texts \(AUC 0\.0"):
        fit_boundary(model, tokenizer, recipe)


def test_pairs_and_chat(tokenizer, model, tmp_path):
    rows = [
        {"ask": f"q{i}?", "say": ("XQZ" if i % 2 else "calm") + f" {i}", "bad": i % 2}
        for i in range(200)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = Corpus(str(tmp_path / "p.jsonl"), text="say", prompt="ask", label="bad")
    spec = EmbeddingSpec(pooling="mean", span="response", template="chat")
    boundary = fit_boundary(model, tokenizer, Recipe((corpus,), embedding=spec))
    good, bad = boundary.score(model, tokenizer, [("q?", "calm 3"), ("q?", "XQZ 3")])
    assert good > bad


def test_calibration_turns_margins_into_log_odds():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=60_000) * 3
    labels = (rng.random(60_000) < 1 / (1 + np.exp(-(0.7 * margins + 0.4)))).astype(float)
    scale, shift = calibrate(margins, labels)
    balance = np.log(labels.mean() / (1 - labels.mean()))
    assert scale == pytest.approx(0.7, rel=0.03)
    assert shift + balance == pytest.approx(0.4, abs=0.05)
    assert metrics(margins, labels, scale, shift)["ece"] < 0.02
    assert metrics(margins, labels, 5 * scale, shift)["ece"] > 0.05


def test_expected_calibration_error_by_hand():
    # bins [0.2, 0.3) and [0.9, 1): confidences 0.25 and 0.95, balanced frequencies 1/3 and 1
    probability = np.array([0.25, 0.25, 0.25, 0.95])
    labels = np.array([1, 0, 0, 1])
    # weights: safe 1/4 each, unsafe 1/4 each
    want = abs(0.25 * 3 * 0.25 - 0.25) + abs(0.25 * 0.95 - 0.25)
    assert expected_calibration_error(probability, labels) == pytest.approx(want)


@pytest.mark.slow
def test_peak_memory_does_not_hold_the_texts(tokenizer, tmp_path):
    """What a fit keeps while it embeds is the statistics, whatever the number of texts."""
    import tracemalloc

    model = tiny.model("llama", hidden_size=16, num_attention_heads=2, num_key_value_heads=1)
    peaks = []
    for rows in (2048, 8192):
        recipe = Recipe(
            (
                Corpus(
                    str(write_corpus(tmp_path / f"{rows}.csv", rows)), text="comment", label="toxic"
                ),
            )
        )
        list(recipe.examples())  # the data library's own first look at the file
        tracemalloc.start()
        fit_boundary(model, tokenizer, recipe)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_500_000, (
        "6144 more texts of 32 bytes and 64 bytes of embedding each"
    )
