"""Names of groups: a fit that makes little of them, and what steering takes from sentences that say them."""

import json

import numpy as np
import pytest
import reference
import tiny
from typer.testing import CliRunner

from sasa import EmbeddingSpec, embed
from sasa.cli import app
from sasa.fitting import Corpus, GaussianStatistics, Recipe, fit_boundary, linear_discriminant
from sasa.fitting.identity import Sentences, identity_tax, load_people, name_covariance

PEOPLE = Sentences(("We like {}.", "{} sing."), ("cats", "old owls"), ("dogs", "tall dogs", "ants"))


def test_what_ships_has_no_sentence_in_both_parts():
    fit, audit = (load_people(use) for use in ("fit", "audit"))
    shared = {t for part in fit for t in part.templates} & {
        t for part in audit for t in part.templates
    }
    assert not shared
    assert sum(len(part.templates) for part in audit) >= 25
    assert {"gay people", "black people", "women"} <= {
        name for part in audit for name in part.groups
    }
    assert PEOPLE.filled("{} sing.") == [
        "Cats sing.",
        "Old owls sing.",
        "Dogs sing.",
        "Tall dogs sing.",
        "Ants sing.",
    ]


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("template", ["none", "chat"])
def test_the_covariance_of_names(model, tokenizer, prefixes, template):
    """Each sentence read by itself: the last letter of the name, which all names share here, and all behind it."""
    spec = EmbeddingSpec(
        pooling="mean", template=template, span="response" if template == "chat" else "text"
    )
    got = name_covariance(model, tokenizer, [PEOPLE], spec, prefixes=prefixes, batch_size=2)
    before = "Tell me about the people you know." if template == "chat" else "\n"
    total, count = np.zeros((32, 32)), 0
    for pattern in PEOPLE.templates:
        # all names end in s: of the sentence, what follows the letter before it; the name ends with it
        behind = len(pattern.split("{}")[1]) + 1
        for cut in range(behind + 1) if prefixes else [0]:
            texts = [(before, text[: len(text) - cut]) for text in PEOPLE.filled(pattern)]
            vectors = embed(model, tokenizer, texts, spec).double().numpy()
            moved = vectors[:2] - vectors[2:].mean(0)
            total, count = total + moved.T @ moved, count + 2
    np.testing.assert_allclose(got, total / count, atol=1e-5, rtol=1e-3)


def test_a_move_that_should_not_matter_costs():
    draw = np.random.default_rng(0)
    d = 6
    labels = draw.integers(0, 2, 4000)
    vectors = draw.normal(size=(4000, d)) @ draw.normal(size=(d, d)) + labels[
        :, None
    ] * np.linspace(1, -1, d)
    statistics = GaussianStatistics.empty(d).partial_fit(vectors, labels)
    moves = draw.normal(size=(2, d))
    weights = {
        k: linear_discriminant(statistics, 0.0, k * moves.T @ moves / 2)[0] for k in (0.0, 1.0, 1e9)
    }
    np.testing.assert_allclose(weights[0.0], linear_discriminant(statistics, 0.0)[0])
    covariance = statistics.scatter / (statistics.count.sum() - 2)
    difference = statistics.mean[1] - statistics.mean[0]

    def quotient(w):  # of separation, to variance within the classes and change by a move
        return (w @ difference) ** 2 / (w @ covariance @ w + ((moves @ w) ** 2).mean())

    assert max(map(quotient, draw.normal(size=(2000, d)))) <= quotient(weights[1.0])
    assert max(quotient(weights[0.0]), quotient(weights[1e9])) < quotient(weights[1.0])
    blind = weights[1e9] / np.linalg.norm(weights[1e9])
    np.testing.assert_allclose(moves @ blind, 0, atol=1e-6)


def test_a_fit_that_makes_less_of_names(model, tokenizer, corpus_file, people_file, tmp_path):
    corpora = (Corpus(str(corpus_file), text="comment", label="toxic"),)
    spec = EmbeddingSpec(pooling="mean")
    plain = fit_boundary(model, tokenizer, Recipe(corpora, embedding=spec))
    recipe = Recipe(corpora, embedding=spec, identity=10.0, people=str(people_file))
    fair = fit_boundary(model, tokenizer, recipe, tmp_path / "fair")
    moves = name_covariance(model, tokenizer, load_people("fit", people_file), spec, prefixes=False)

    def change(boundary):  # beside how far it puts safe and unsafe apart
        weight = boundary.weight.double().numpy()
        texts = embed(model, tokenizer, ["nice day", "xqz"], spec)
        return weight @ moves @ weight / float(boundary.margin(texts).diff() ** 2)

    assert change(fair) < 0.5 * change(plain)
    assert fair.report["test"]["auc"] > 0.9
    assert Recipe.load(tmp_path / "fair" / "recipe.toml").to_dict() == fair.report["recipe"]
    card = (tmp_path / "fair" / "README.md").read_text()
    assert "sentences about people" in card
    assert "| cats | 1 |" in card
    assert "identity" not in plain.report["recipe"]


def test_the_tax_of_a_group_beside_names_of_as_many_tokens(model, tokenizer):
    boundary = tiny.boundary(model)
    found = identity_tax(boundary, model, tokenizer, [PEOPLE], beta=2.0, prior=0.3, top_k=6)

    def tax(text):
        ids = tokenizer("\n")["input_ids"] + tokenizer(text)["input_ids"]
        return sum(reference.taxes(model, boundary, 2.0, ids, 1, [tiny.EOS], 6, prior=0.3))

    cats, dogs, ants, owls, tall = (
        tax(f"We like {x}.") for x in ("cats", "dogs", "ants", "old owls", "tall dogs")
    )
    one = identity_tax(
        *(
            boundary,
            model,
            tokenizer,
            [Sentences(PEOPLE.templates[:1], PEOPLE.groups, PEOPLE.controls)],
        ),
        **dict(beta=2.0, prior=0.3, top_k=6),
    )
    assert one["groups"]["cats"]["tax"] == pytest.approx(cats, abs=2e-3)
    assert one["groups"]["cats"]["beyond"] == pytest.approx(
        cats - (dogs + ants) / 2, abs=2e-3
    )  # a token is a byte
    assert one["groups"]["old owls"]["beyond"] == pytest.approx(
        owls - (dogs + tall + ants) / 3, abs=2e-3
    )
    assert one["controls"] == pytest.approx((dogs + tall + ants) / 3, abs=2e-3)
    assert found["groups"]["cats"]["sentences"] == 2
    assert found["worst"]["beyond"] == max(group["beyond"] for group in found["groups"].values())


def test_the_command(tiny_folder, model, people_file, tmp_path):
    tiny.boundary(model).save(tmp_path / "boundary")
    options = [
        "audit",
        "--people",
        str(people_file),
        "-m",
        str(tiny_folder),
        "-b",
        str(tmp_path / "boundary"),
    ]
    options += ["--device", "cpu", "--no-strict"]
    result = CliRunner().invoke(app, [*options, "--json"])
    assert result.exit_code == 0, result.exception
    assert set(json.loads(result.stdout)["identity_tax"]["groups"]) == {"cats"}
    assert "beyond" in CliRunner().invoke(app, options).output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no sentences about people at"),
        ("templates = [", "expected .*fit.* and .*audit"),
        ("[[fit]]\ntemplates = ['{} sing.']\ngroups = ['cats']", "expected"),
        (
            "[[fit]]\ntemplates = ['sing.']\ngroups = ['cats']\ncontrols = ['dogs']",
            "one {} where a group's name goes",
        ),
        ("[[fit]]\ntemplates = ['{} sing.']\ngroups = []\ncontrols = ['dogs']", "need groups"),
    ],
)
def test_bad_files(tmp_path, content, message):
    file = tmp_path / "people.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_people("fit", file)


def test_bad_recipes(model, tokenizer, corpus_file, tmp_path):
    from sklearn.linear_model import LogisticRegression

    corpus = Corpus(str(corpus_file), text="comment", label="toxic")
    with pytest.raises(ValueError, match="identity must be >= 0, got -1"):
        Recipe((corpus,), identity=-1)
    with pytest.raises(ValueError, match="goes with the closed form"):
        fit_boundary(
            model,
            tokenizer,
            Recipe((corpus,), identity=1),
            tmp_path,
            classifier=LogisticRegression(),
        )
    with pytest.raises(FileNotFoundError, match="no sentences about people"):
        fit_boundary(
            model, tokenizer, Recipe((corpus,), identity=1, people="nowhere.toml"), tmp_path
        )
    assert not list(tmp_path.iterdir())
