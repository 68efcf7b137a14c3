import json
from dataclasses import replace

import pytest
import tiny
from typer.testing import CliRunner

from sasa.cli import app
from sasa.evaluation.settings import Settings
from sasa.evaluation.tuning import tune
from sasa.evaluation.world import World

PROMPTS = ["abc def", "some other text", "zzz", "one more"]


@pytest.fixture(scope="module")
def world(model, tokenizer):
    return World(
        model,
        tokenizer,
        tiny.boundary(model),
        Settings(completions=8, max_new_tokens=12, top_k=0, top_p=1.0),
    )


@pytest.mark.slow
def test_the_largest_beta_within_the_budget(world):
    beta, trials = tune(world, PROMPTS, 1.3, variety=0, value="raw", start=0.01, steps=6)
    by_beta = {trial.beta: trial for trial in trials}
    assert trials[0].beta == 0
    assert trials[0].ratio == 1
    assert beta > 0
    assert by_beta[beta].ratio <= 1.3
    beyond = [trial for trial in trials if trial.ratio > 1.3]
    assert beta < min(trial.beta for trial in beyond)
    assert min(trial.beta for trial in beyond) / beta < 1.2, "the gap must have been narrowed"
    assert by_beta[beta].p_safe > trials[0].p_safe


@pytest.mark.slow
def test_by_default_it_tunes_what_generate_does(world):
    beta, trials = tune(world, PROMPTS, 1.05, variety=0, start=1.0, steps=1)
    same, again = tune(world, PROMPTS, 1.05, variety=0, value="log_sigmoid", start=1.0, steps=1)
    assert (beta, trials) == (same, again)
    (found,) = (trial for trial in trials if trial.beta == beta)
    assert found.ratio <= 1.05
    assert max(trial.p_safe for trial in trials[1:]) > trials[0].p_safe


@pytest.mark.slow
def test_a_tighter_budget_buys_less(world):
    tight, loose = (
        tune(world, PROMPTS, budget, variety=0, value="raw", start=0.01)[0]
        for budget in (1.02, 1.5)
    )
    assert tight < loose


@pytest.mark.slow
def test_monotony_is_not_taken_for_fluency(world):
    """Where variety is spent before the budget, it ends the search."""
    world = replace(world, settings=replace(world.settings, max_new_tokens=32, top_k=60))
    tuned = (
        tune(world, PROMPTS[:2], 1.4, variety=share, value="raw", start=1.6, steps=0)
        for share in (0.7, 0)
    )
    (beta, trials), (free, others) = tuned
    by_beta = {trial.beta: trial.distinct_2 for trial in trials}
    assert 0 < beta < free
    assert by_beta[beta] >= 0.7 * by_beta[0]
    assert max(by_beta) > beta
    assert by_beta[max(by_beta)] < 0.7 * by_beta[0]
    assert {t.beta: t.distinct_2 for t in others}[free] < 0.7 * by_beta[0]


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
        (dict(budget=1.1, variety=95), "variety is a factor from 0 to 1"),
        (dict(budget=1.1, start=0.0), "start must be > 0"),
        (dict(budget=1.1, prompts=["a", " "]), "prompt 1 is empty"),
    ],
)
def test_bad_arguments(world, settings, message):
    with pytest.raises(ValueError, match=message):
        tune(world, settings.pop("prompts", PROMPTS), **settings)


@pytest.fixture
def options(tiny_folder, model, tmp_path):
    """The command line's first words: prompts, model and boundary."""
    tiny.boundary(model).save(tmp_path / "boundary")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return [
        "tune",
        str(tmp_path / "prompts.txt"),
        "-m",
        str(tiny_folder),
        "-b",
        str(tmp_path / "boundary"),
        "--no-strict",
    ]


def test_the_command(options):
    more = [
        "--device",
        "cpu",
        "-c",
        "2",
        "-n",
        "4",
        "--ppl-budget",
        "1.5",
        "--limit",
        "3",
        "--value",
        "log_sigmoid",
    ]
    result = CliRunner().invoke(app, [*options, *more, "--json"])
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["trials"][0]["beta"] == 0
    assert isinstance(CliRunner().invoke(app, [*options, "--rows", "9:12"]).exception, ValueError)


@pytest.mark.slow
def test_the_command_without_a_floor_of_variety(options):
    more = [
        "--device",
        "cpu",
        "-c",
        "8",
        "-n",
        "32",
        "--ppl-budget",
        "1.4",
        "--limit",
        "2",
        "--value",
        "raw",
        "--top-k",
        "60",
    ]
    result = CliRunner().invoke(app, [*options, *more, "--top-p", "1", "--variety", "0", "--json"])
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    (last,) = (trial for trial in found["trials"] if trial["beta"] == found["beta"])
    assert last["distinct_2"] < 0.5 * found["trials"][0]["distinct_2"], (
        "by default, that would have ended it"
    )
