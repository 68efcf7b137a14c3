import contextlib
import json
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from helpers import write_corpus
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

import sasa
from sasa import Boundary, EmbeddingSpec, embed
from sasa.cli import app
from sasa.fitting import Corpus, GaussianStatistics, Recipe, fit_boundary, linear_discriminant
from sasa.fitting.calibration import calibrate, expected_calibration_error, metrics
from sasa.fitting.reading import embed_stream
from sasa.fitting.recipe import shipped_recipes, tomllib
from sasa.models.embedding import embed_prefixes
from sasa.utils.run_folder import RunFolder


@pytest.fixture
def recipe(corpus_file):
    return Recipe(
        (Corpus(str(corpus_file), text="comment", label="toxic"),),
        embedding=EmbeddingSpec(pooling="mean"),
    )


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


def test_a_recipe_says_it_all(model, tokenizer, recipe, tmp_path):
    one = fit_boundary(model, tokenizer, recipe, tmp_path / "a")
    again = Recipe.load(tmp_path / "a" / "recipe.toml")
    assert again == recipe
    two = fit_boundary(model, tokenizer, again)
    assert torch.equal(one.weight, two.weight)


def test_parts_share_no_text_and_keep_their_proportions(recipe):
    recipe = replace(recipe, calibration=0.2, test=0.3)
    parts = [recipe.part(f"text {i}") for i in range(4000)]
    assert parts.count("test") / 4000 == pytest.approx(0.3, abs=0.03)
    assert parts.count("calibration") / 4000 == pytest.approx(0.2, abs=0.03)
    assert [recipe.part(f"text {i}") for i in range(4000)] == parts
    assert [replace(recipe, seed=1).part(f"text {i}") for i in range(4000)] != parts


@pytest.mark.parametrize("prefixes", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("classifier", [None, LogisticRegression(max_iter=500)])
def test_a_fit_that_is_interrupted_goes_on(
    model, tokenizer, tmp_path, monkeypatch, classifier, prefixes
):
    """Stopped in every window once: texts are not embedded twice, and the boundary is the same to the last bit."""
    monkeypatch.setattr("sasa.fitting.reading.WINDOW", 40)
    corpus = Corpus(str(write_corpus(tmp_path / "c.csv", 300)), text="comment", label="toxic")
    recipe = Recipe((corpus,), prefixes=prefixes)
    whole = fit_boundary(model, tokenizer, recipe, tmp_path / "whole", classifier=classifier)
    embedded = []
    original = embed_stream

    def counting(model, tokenizer, texts, *args, **kwargs):
        embedded.append(len(texts))
        if len(embedded) % 2 == 0:
            for i, item in enumerate(original(model, tokenizer, texts, *args, **kwargs)):
                if i:
                    raise KeyboardInterrupt  # in the middle of a window, with a batch already on disk
                yield item
        yield from original(model, tokenizer, texts, *args, **kwargs)

    monkeypatch.setattr("sasa.fitting.reading.embed_stream", counting)
    tries = 0
    while True:
        tries += 1
        try:
            resumed = fit_boundary(
                model,
                tokenizer,
                recipe,
                tmp_path / "out",
                classifier=classifier,
                save_every=0,
                batch_size=7,
            )
            break
        except KeyboardInterrupt:
            assert (tmp_path / "out" / ".fit" / "state.json").is_file()
    assert tries > 3
    assert len(embedded) <= 8 + tries
    torch.testing.assert_close(
        resumed.weight, whole.weight, rtol=2e-2, atol=2e-2
    )  # batches of another size
    assert resumed.report["texts"] == whole.report["texts"]
    assert not (tmp_path / "out" / ".fit").exists()


@pytest.mark.slow
def test_killed_for_good_it_still_goes_on(tiny_folder, tmp_path):
    """kill -9 and the same again, in a process of its own: the boundary equals an undisturbed one bit for bit."""
    recipe = Recipe(
        (Corpus(str(write_corpus(tmp_path / "c.csv", 6000)), text="comment", label="toxic"),)
    )

    def start(output):
        """A process that fits; a fork, which has imported already what takes seconds to import."""
        if not (pid := os.fork()):
            with contextlib.suppress(BaseException):
                fit_boundary(*sasa.load(tiny_folder, device="cpu"), recipe, output, save_every=0)
                os._exit(0)
            os._exit(1)
        return pid

    def status(pid, options=0):
        """Of a process that has ended; None while it has not."""
        ended, code = os.waitpid(pid, options)
        return os.waitstatus_to_exitcode(code) if ended else None

    assert status(start(tmp_path / "whole")) == 0
    kills = 0
    while kills < 3:
        pid = start(tmp_path / "killed")
        state = tmp_path / "killed" / ".fit" / "state.json"
        before = state.read_text() if state.exists() else ""
        while (ended := status(pid, os.WNOHANG)) is None and (
            not state.exists() or state.read_text() == before
        ):
            time.sleep(0.005)
        if ended is not None:
            break
        os.kill(pid, signal.SIGKILL)
        status(pid)
        kills += 1
    assert kills, "the fit was over before it could be killed"
    assert status(start(tmp_path / "killed")) == 0
    one, other = (Boundary.load(tmp_path / name) for name in ("whole", "killed"))
    assert torch.equal(one.weight, other.weight)
    assert (one.bias, one.scale, one.report) == (other.bias, other.scale, other.report)


def test_another_recipe_does_not_take_over_an_unfinished_fit(
    model, tokenizer, recipe, tmp_path, monkeypatch
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    recipe = replace(recipe, prefixes=True)
    work = tmp_path / ".fit"
    fit_boundary(model, tokenizer, recipe, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("sasa.fitting.fit.calibrate", stop)
        with pytest.raises(KeyboardInterrupt):
            fit_boundary(model, tokenizer, recipe, tmp_path, save_every=0)
    assert work.exists()
    for change, said in (
        ({"seed": 7}, "seed was 0, is 7"),
        ({"prefixes": False}, "prefixes was True, is None"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"holds an unfinished fit with other settings: recipe\.{said}\. Delete it",
        ):
            fit_boundary(model, tokenizer, replace(recipe, **change), tmp_path)
    fit_boundary(model, tokenizer, recipe, tmp_path)
    assert not work.exists()


def test_two_fits_in_one_folder(model, tokenizer, recipe, tmp_path):
    (tmp_path / ".fit").mkdir()
    with (
        RunFolder(tmp_path / ".fit", "state.json", "a fit").lock(),
        pytest.raises(BlockingIOError, match="another process is writing to"),
    ):
        fit_boundary(model, tokenizer, recipe, tmp_path)
    fit_boundary(model, tokenizer, recipe, tmp_path)
    assert not (tmp_path / ".fit").exists()


def test_an_unfinished_fit_on_other_texts_is_not_taken_up(model, tokenizer, tmp_path, monkeypatch):
    """The labels in the same file were mended in between."""
    path = write_corpus(tmp_path / "c.csv")
    recipe = Recipe((Corpus(str(path), text="comment", label="toxic"),))
    with monkeypatch.context() as patch:
        patch.setattr(
            "sasa.fitting.fit.calibrate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            fit_boundary(model, tokenizer, recipe, tmp_path / "out", save_every=0)
    text = path.read_text()
    path.write_text(text.replace("True,0.9", "False,0.1", 1))
    with pytest.raises(ValueError, match=r"unfinished fit with other settings: texts"):
        fit_boundary(model, tokenizer, recipe, tmp_path / "out")
    path.write_text(text)
    (tmp_path / "out" / ".fit" / "test.f32").write_bytes(b"")
    with pytest.raises(ValueError, match="has lost rows"):
        fit_boundary(model, tokenizer, recipe, tmp_path / "out")


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "colour = 'red'\n[[corpus]]\nsource='a.csv'",
            "recipe: unknown colour; allowed: attribute",
        ),
        ("[[corpus]]\nsource='a.csv'\ncolour='red'", "recipe: .*colour"),
        ("attribute = ", "is not valid TOML"),
        ("attribute = 'x'", "at least one corpus"),
        (
            "people = 'a.toml'\n[[corpus]]\nsource='a.csv'",
            "people = 'a.toml' is for identity, which is 0",
        ),
        ("test = 0.9\ncalibration = 0.2\n[[corpus]]\nsource='a.csv'", "leave something to fit on"),
    ],
)
def test_bad_recipes(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Recipe.load(tmp_path / "r.toml")


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


def test_recipes_that_ship_serve_any_model(model, tokenizer, corpus_file, people_file, tmp_path):
    assert {"toxicity", "threat"} <= set(shipped_recipes())
    for name in shipped_recipes():
        recipe = Recipe.load(name)
        assert recipe.attribute == name
        assert recipe.model is None
        assert all(corpus.path is None for corpus in recipe.corpora)
        assert Recipe.from_dict(tomllib.loads(recipe.to_toml())).to_dict() == recipe.to_dict()
    recipe = replace(
        Recipe.load("toxicity"),
        corpora=(Corpus(str(corpus_file), text="comment", label="toxic"),),
        people=str(people_file),
        own=0.0,  # of tests/test_own.py; a model of random weights writes nothing that a judge could tell apart
    )
    boundary = fit_boundary(model, tokenizer, recipe, tmp_path / "out")
    assert boundary.embedding.layer == (2, 3)  # of 3
    assert boundary.attribute == "toxicity"
    assert set(boundary.report["identity_tax"]["groups"]) == {"cats"}
    assert "depth" not in boundary.report["recipe"]


def test_a_recipe_of_no_such_name_names_those_that_ship(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no recipe at politeness; by name there are: threat, toxicity"
    ):
        Recipe.load("politeness")
    with pytest.raises(
        ValueError, match=r"depth must be in \[0, 1\], the share of the layers below, got 24"
    ):
        replace(Recipe.load("toxicity"), depth=24)


@pytest.mark.slow
def test_a_layer_given_takes_the_place_of_a_recipes_depth(
    tiny_folder, corpus_file, people_file, tmp_path
):
    corpus = f"{corpus_file}::text=comment,label=toxic"
    options = [
        corpus,
        "--recipe",
        "toxicity",
        "--layer",
        "1",
        "--people",
        str(people_file),
        "-m",
        str(tiny_folder),
    ]
    result = CliRunner().invoke(
        app, ["fit", *options, "--device", "cpu", "-o", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.exception
    assert Boundary.load(tmp_path / "out").embedding.layer == 1
