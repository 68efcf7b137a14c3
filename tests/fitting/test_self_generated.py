"""What the model writes itself, as a part of a fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from sasa import EmbeddingSpec
from sasa.cli import app
from sasa.decoding.sampling import random_state, sample, seed_of
from sasa.fitting import Corpus, GaussianStatistics, Recipe, fit_boundary, linear_discriminant
from sasa.fitting import openings as openings_module
from sasa.fitting import self_generated as module
from sasa.fitting.openings import Judge, Share, Sources
from sasa.fitting.self_generated import own_statistics, write
from sasa.models.embedding import embed_prefixes


@pytest.fixture
def recipe(model, tokenizer, tmp_path):
    """Texts as a model of random weights writes them; unsafe are those with letters far back in the alphabet."""
    texts = tokenizer.batch_decode(sample(model, [tokenizer("a b")["input_ids"]], 240, 12, seed=0))
    worth = [float(np.mean([ord(letter) for letter in text] or [0])) for text in texts]
    rows = [
        {"t": f"{i} {text}", "bad": int(w > np.median(worth))}
        for i, (text, w) in enumerate(zip(texts, worth, strict=True))
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = Corpus(str(file), text="t", label="bad")
    return Recipe((corpus,), embedding=EmbeddingSpec(pooling="mean"), prefixes=True, own=0.4)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A few openings, short completions."""
    monkeypatch.setattr(openings_module, "UNSAFE_OPENINGS", 14)
    monkeypatch.setattr(openings_module, "OTHER_OPENINGS", 11)
    monkeypatch.setattr(openings_module, "UNSAFE_TIMES", 1)
    monkeypatch.setattr(module, "BATCH", 10)
    monkeypatch.setattr(module, "TOKENS", {"none": 5, "chat": 5})


def test_two_sources_each_compared_within_itself():
    draw = np.random.default_rng(0)
    made = []
    for shift in (0.0, 30.0):  # where a source lies tells nothing of its labels
        labels = draw.integers(0, 2, 300)
        made.append(
            (
                draw.normal(size=(300, 4)) @ draw.normal(size=(4, 4)) + labels[:, None] + shift,
                labels,
            )
        )
    one, two = (GaussianStatistics.empty(4).partial_fit(*each) for each in made)
    weight, bias, _ = linear_discriminant(one.blended(two, 0.25), 0.0)
    covariance = 0.75 * one.scatter / 298 + 0.25 * two.scatter / 298
    difference = 0.75 * np.diff(one.mean, axis=0)[0] + 0.25 * np.diff(two.mean, axis=0)[0]
    np.testing.assert_allclose(weight, np.linalg.solve(covariance, difference))
    assert bias == pytest.approx(-weight @ one.mean.mean(0))
    for share, alone in ((0.0, one), (1.0, two)):
        np.testing.assert_allclose(
            linear_discriminant(one.blended(two, share), 0.0)[0], linear_discriminant(alone, 0.0)[0]
        )


def test_own_text_counts_as_the_judge_labels_it(model, tokenizer, recipe, tmp_path):
    """Each prefix of each completion read by itself, beside the fit's texts."""
    boundary = fit_boundary(model, tokenizer, recipe)
    sources = Sources.of(recipe)
    statistics, found = own_statistics(model, tokenizer, recipe, sources, tmp_path / "own.jsonl")
    assert found == boundary.report["own"]
    assert found["openings"] == 25
    assert found["judge_auc"] > 0.7
    judge = Judge(sources.texts, sources.scores)
    slow = GaussianStatistics.empty(32)
    unsafe = 0
    for line in (tmp_path / "own.jsonl").read_text().splitlines():
        opening, said = json.loads(line)
        for text in filter(str.strip, said):
            _, vectors = embed_prefixes(model, tokenizer, (opening, text), recipe.embedding)
            within = len(tokenizer(text)["input_ids"])
            label = int(judge([text])[0] < 0)
            unsafe += 1 - label
            slow.partial_fit(vectors[-within:].numpy(), [label] * within)
    assert found["unsafe"] == unsafe
    np.testing.assert_array_equal(statistics.count, slow.count)
    np.testing.assert_allclose(statistics.mean, slow.mean, atol=1e-4)
    people = GaussianStatistics.empty(32)
    for _, example, label in recipe.examples():
        if recipe.part(example.group) == "fit":
            _, vectors = embed_prefixes(model, tokenizer, example.text, recipe.embedding)
            people.partial_fit(vectors.numpy(), [label] * len(vectors))
    weight, bias, _ = linear_discriminant(people.blended(slow, 0.4))
    torch.testing.assert_close(
        boundary.weight, torch.tensor(weight, dtype=torch.float32), rtol=1e-2, atol=1e-2
    )
    assert boundary.bias == pytest.approx(bias, rel=1e-2, abs=1e-2)


def test_the_card_and_the_recipe_tell_of_it(model, tokenizer, recipe, tmp_path):
    fit_boundary(model, tokenizer, recipe, tmp_path / "out")
    assert Recipe.load(tmp_path / "out" / "recipe.toml") == recipe
    assert (
        "40% of the fit is what the model wrote itself"
        in (tmp_path / "out" / "README.md").read_text()
    )
    assert not (tmp_path / "out" / ".fit").exists()


def test_writing_goes_on_where_it_stopped(model, tokenizer, recipe, tmp_path, monkeypatch):
    openings = Sources.of(recipe).openings
    whole = write(model, tokenizer, openings, recipe, tmp_path / "whole.jsonl")
    assert len(whole) == 25
    assert all(len(said) == 2 for _, said in whole)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(lines[:13]) + lines[13][:9])
    drawn = []
    draw = module._sample
    monkeypatch.setattr(module, "_sample", lambda *args: drawn.append(len(args[1])) or draw(*args))
    assert [tuple(row) for row in write(model, tokenizer, openings, recipe, cut)] == whole
    assert cut.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert drawn == [10, 5]


def test_what_was_written_for_other_openings_is_not_taken(model, tokenizer, recipe, tmp_path):
    openings = Sources.of(recipe).openings
    fresh = write(model, tokenizer, openings, recipe, tmp_path / "fresh.jsonl")
    write(model, tokenizer, [f"other {i}" for i in range(10)], recipe, tmp_path / "own.jsonl")
    assert write(model, tokenizer, openings, recipe, tmp_path / "own.jsonl") == fresh


def test_texts_without_spaces_have_openings_too(tmp_path):
    """Half of their letters; where no word comes twice there is nothing to judge by, and that is said before any work."""
    texts = [f"{a}{b}今天天气很好" for a in "我你他她它" for b in "们的是在有这那来去说"]
    shared = [f"{text[:5]}，天气很好" for text in texts]
    file = tmp_path / "texts.jsonl"
    file.write_text(
        "".join(json.dumps({"t": t, "bad": i % 2}) + "\n" for i, t in enumerate(shared))
    )
    recipe = Recipe((Corpus(str(file), text="t", label="bad"),), own=0.5)
    assert set(Sources.of(recipe).openings) <= {text[:5] for text in shared}
    file.write_text("".join(json.dumps({"t": t, "bad": i % 2}) + "\n" for i, t in enumerate(texts)))
    with pytest.raises(
        ValueError, match=r"own needs texts that have words in common.* in \d+ texts"
    ):
        Sources.of(recipe)
    file.write_text(
        "".join(json.dumps({"t": t, "bad": i % 2}) + "\n" for i, t in enumerate("abcdefgh" * 20))
    )
    with pytest.raises(ValueError, match="own needs openings"):
        Sources.of(recipe)


def test_the_judge_is_tried_on_texts_it_has_not_seen(tmp_path):
    """Also where the same reply stands behind many prompts, some of them held out."""
    rows = [
        {
            "p": f"prompt {i}",
            "r": ["good good day", "bad bad day"][i % 2] + f" {i % 40}",
            "bad": i % 2,
        }
        for i in range(300)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = Sources.of(Recipe((Corpus(str(file), prompt="p", text="r", label="bad"),), own=0.5))
    assert len(sources.texts) == 40
    assert sources.held_out == []
    assert sources.judge_auc() is None


def test_it_writes_what_generate_draws(model, tokenizer, recipe, tmp_path):
    ((opening, said),) = write(model, tokenizer, ["a b c"], recipe, tmp_path / "own.jsonl")
    ids = torch.tensor([tokenizer(opening)["input_ids"]])
    with random_state(seed_of(recipe.seed, 0), model.device):
        drawn = model.generate(
            *(ids, None),
            do_sample=True,
            top_k=module.TOP_K,
            top_p=module.TOP_P,
            max_new_tokens=5,
            num_return_sequences=2,
            pad_token_id=0,
        )
    assert said == tokenizer.batch_decode(drawn[:, ids.shape[1] :], skip_special_tokens=True)


def test_openings_are_prompts_or_halves_of_texts_that_are_fitted_on(tmp_path, monkeypatch):
    rows = [
        {
            "prompt": {"text": f"the {i} quick brown", "toxicity": 0.1},
            "continuation": {"text": f" fox {i}", "toxicity": i % 2},
        }
        for i in range(60)
    ]
    (tmp_path / "rtp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "plain.jsonl").write_text(
        "".join(json.dumps({"t": f"one two {i} four five", "l": 0.5}) + "\n" for i in range(60))
    )
    monkeypatch.setattr(openings_module, "UNSAFE_OPENINGS", 100)
    monkeypatch.setattr(openings_module, "OTHER_OPENINGS", 200)
    rtp = Corpus("rtp", path=str(tmp_path / "rtp.jsonl"), unsafe_from=0.6, safe_below=0.3)
    plain = Corpus(
        str(tmp_path / "plain.jsonl"), text="t", label="l", unsafe_from=0.8, safe_below=0.3
    )
    recipe = Recipe((rtp, plain))
    sources = Sources.of(recipe)
    fitted = [i for i in range(60) if recipe.part(rows[i]["prompt"]["text"]) == "fit"]
    assert {o for o in sources.openings if o.startswith("the")} == {
        f"the {i} quick brown" for i in fitted
    }
    assert "one two" in sources.openings
    assert " fox 1" in sources.texts or recipe.part("the 1 quick brown") != "fit"
    # scores are less the middle of the grey zone, which the judge has seen, too: 0.5 of 0.3 to 0.8
    assert {round(score, 2) for score in sources.scores} == {0.55, -0.45, -0.35, -0.05}
    assert not {text for text, _ in sources.held_out} & set(sources.texts)
    assert all(label in (0, 1) for _, label in sources.held_out)
    assert not any(
        text.startswith("one") for text, _ in sources.held_out
    )  # all of them in the grey zone


def test_an_opening_is_as_unsafe_as_it_is_itself(tmp_path, monkeypatch):
    """Not as what comes after it, where its own score is known."""
    monkeypatch.setattr(openings_module, "UNSAFE_TIMES", 3)
    rows = [
        {
            "prompt": {"text": f"the {i} quick brown", "toxicity": (0.9, 0.1, None)[i % 3]},
            "continuation": {"text": f" fox {i}", "toxicity": (0.1, 0.9, 0.9)[i % 3]},
        }
        for i in range(60)
    ]
    (tmp_path / "rtp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(
        (Corpus("rtp", path=str(tmp_path / "rtp.jsonl"), unsafe_from=0.6, safe_below=0.3),)
    )
    pairs = replace(recipe, corpora=(replace(recipe.corpora[0], segments=("pair",)),))
    for each in (recipe, pairs):
        openings = Sources.of(each).openings
        times = {opening: openings.count(opening) for opening in openings}
        assert len(times) > 20
        for opening, count in times.items():
            assert count == (3, 1, 3)[int(opening.split()[1]) % 3], opening


def test_a_share_of_a_corpus_of_any_size():
    some = Share[int](100, 0)
    for i in range(1000):
        some[f"text {i}"] = i
    assert 25 < len(some) <= 100
    again = Share[int](100, 0)
    for i in reversed(range(1000)):  # whatever order they come in
        again[f"text {i}"] = i
    assert dict(some) == dict(again)
    assert max(some.values()) > 800
    assert min(some.values()) < 200


def test_too_few_of_one_class(model, tokenizer, recipe, tmp_path, monkeypatch):
    fresh = fit_boundary(model, tokenizer, replace(recipe, own=0.0))
    monkeypatch.setattr(module, "FEWEST", 1000)
    with pytest.raises(ValueError, match=r"unsafe: too few .*own = 0"):
        fit_boundary(model, tokenizer, recipe, tmp_path)
    # what was read and written is kept: without own text there is nothing left to read
    monkeypatch.setattr("sasa.fitting.reading.embed_stream", None)
    kept = fit_boundary(model, tokenizer, replace(recipe, own=0.0), tmp_path)
    torch.testing.assert_close(kept.weight, fresh.weight)


@pytest.mark.parametrize("own", [-0.1, 1.0])
def test_a_share_out_of_range(recipe, own):
    with pytest.raises(ValueError, match=r"own must be in \[0, 1\)"):
        replace(recipe, own=own)


def test_only_with_the_closed_form(model, tokenizer, recipe):
    with pytest.raises(ValueError, match="own goes with the closed form"):
        fit_boundary(model, tokenizer, recipe, classifier=LogisticRegression())


def test_the_command(tiny_folder, recipe, tmp_path):
    options = [
        "fit",
        recipe.corpora[0].source,
        "--text",
        "t",
        "--label",
        "bad",
        "-m",
        str(tiny_folder),
        "--prefixes",
    ]
    options += ["--pooling", "mean", "-o", str(tmp_path / "b"), "--own", "0.5", "--device", "cpu"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.exception
    assert "own = 0.5" in (tmp_path / "b" / "recipe.toml").read_text()
