"""Recipes: written, read, shipped, and refused."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from sasa import Boundary
from sasa.cli import app
from sasa.fitting import Corpus, Recipe, fit_boundary
from sasa.fitting.recipe import shipped_recipes, tomllib


def test_a_recipe_says_it_all(model, tokenizer, recipe, tmp_path):
    one = fit_boundary(model, tokenizer, recipe, tmp_path / "a")
    again = Recipe.load(tmp_path / "a" / "recipe.toml")
    assert again == recipe
    two = fit_boundary(model, tokenizer, again)
    assert torch.equal(one.weight, two.weight)


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
