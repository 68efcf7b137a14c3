import json

import pytest
import tiny
from typer.testing import CliRunner

from sasa.cli import app
from sasa.evaluation.methods import Settings, World
from sasa.evaluation.tuning import tune

PROMPTS = ["abc def", "some other text", "zzz", "one more"]


@pytest.fixture(scope="module")
def world(model, tokenizer):
    return World(model, tokenizer, tiny.boundary(model), Settings(completions=8, max_new_tokens=12, top_k=0, top_p=1.0))


def test_the_largest_beta_within_the_budget(world):
    beta, trials = tune(world, PROMPTS, 1.3, value="raw", start=0.01, steps=6)
    by_beta = {trial.beta: trial for trial in trials}
    assert trials[0].beta == 0
    assert trials[0].ratio == 1
    assert beta > 0
    assert by_beta[beta].ratio <= 1.3
    beyond = [trial for trial in trials if trial.ratio > 1.3]
    assert beta < min(trial.beta for trial in beyond)
    assert min(trial.beta for trial in beyond) / beta < 1.2, "the gap must have been narrowed"
    assert by_beta[beta].p_safe > trials[0].p_safe


def test_by_default_it_tunes_what_generate_does(world):
    beta, trials = tune(world, PROMPTS, 1.05, start=1.0, steps=1)
    same, again = tune(world, PROMPTS, 1.05, value="log_sigmoid", start=1.0, steps=1)
    assert (beta, trials) == (same, again)
    (found,) = (trial for trial in trials if trial.beta == beta)
    assert found.ratio <= 1.05
    assert max(trial.p_safe for trial in trials[1:]) > trials[0].p_safe


def test_a_tighter_budget_buys_less(world):
    tight, loose = (tune(world, PROMPTS, budget, value="raw", start=0.01)[0] for budget in (1.02, 1.5))
    assert tight < loose


def test_nothing_to_be_had(world):
    """The least that is tried costs too much."""
    beta, trials = tune(world, PROMPTS, 1.0001, value="raw", start=8.0, steps=1)
    assert beta == 0
    assert len(trials) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(budget=1.0), "a factor > 1"),
        (dict(budget=float("nan")), "a factor > 1"),
        (dict(budget=1.1, start=0.0), "start must be > 0"),
        (dict(budget=1.1, prompts=["a", " "]), "prompt 1 is empty"),
    ],
)
def test_bad_arguments(world, settings, message):
    with pytest.raises(ValueError, match=message):
        tune(world, settings.pop("prompts", PROMPTS), **settings)


def test_the_command(tiny_folder, model, tmp_path):
    tiny.boundary(model).save(tmp_path / "boundary")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    options = [
        "tune",
        str(tmp_path / "prompts.txt"),
        "-m",
        str(tiny_folder),
        "-b",
        str(tmp_path / "boundary"),
        "--no-strict",
    ]
    more = ["--device", "cpu", "-c", "2", "-n", "4", "--ppl-budget", "1.5", "--limit", "3", "--value", "log_sigmoid"]
    result = CliRunner().invoke(app, [*options, *more, "--json"])
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["trials"][0]["beta"] == 0
    assert isinstance(CliRunner().invoke(app, [*options, "--rows", "9:12"]).exception, ValueError)
