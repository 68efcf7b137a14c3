"""What a request may ask of a server, and what commands say of engines and workers that they cannot use."""

from __future__ import annotations

import importlib.util

import pytest
from typer.testing import CliRunner

from sasa.cli import app
from sasa.decoding.completion import Completion
from sasa.evaluation.methods import method
from sasa.evaluation.settings import Settings
from sasa.evaluation.world import World
from sasa.serving.requests import Wanted
from sasa.utils.parallel import here

LOADED = ("toxicity", "threat")
NO_VLLM = importlib.util.find_spec("vllm") is None


def test_a_request_that_asks_for_nothing_is_as_the_server_says():
    assert Wanted.parse({}, {}, LOADED) == Wanted() == Wanted.parse({"other": 1}, {}, LOADED)
    assert Wanted.parse({}, {"beta": 2.0, "prior": 0.1}, LOADED) == Wanted(
        2.0, (("toxicity", 1.0),), prior=0.1
    )
    assert Wanted.parse({"sasa_beta": 0}, {"beta": 2.0}, LOADED).beta == 0


def test_what_a_request_leaves_out_has_the_defaults():
    assert Wanted.parse({"sasa_boundary": "threat"}, {}, LOADED) == Wanted(4.0, (("threat", 1.0),))
    asked = {
        "sasa_boundary": ["threat", "toxicity::0.5"],
        "sasa_top_k": 5.0,
        "sasa_top_p": 0.5,
        "sasa_value": "raw",
    }
    assert Wanted.parse(asked, {}, LOADED) == Wanted(
        4.0, (("threat", 1.0), ("toxicity", 0.5)), "raw", top_k=5, top_p=0.5
    )


def test_greedy_requests_are_limited_as_the_decoder_is():
    assert Wanted(1.0).limit(greedy=True) == (20, 1.0)
    assert Wanted(1.0).limit(greedy=False) == (0, 1.0)
    assert Wanted(1.0, top_p=0.5).limit(greedy=True) == (0, 0.5)
    assert Wanted(1.0, top_k=0).limit(greedy=True) == (0, 1.0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sasa_beta": True}, "sasa_beta must be a number, got True"),
        ({"sasa_beta": float("nan")}, "sasa_beta must be >= 0"),
        ({"sasa_boundary": 3}, "sasa_boundary must be a name"),
        ({"sasa_boundary": "toxicity::-1"}, "a boundary's weight must be >= 0"),
        ({"sasa_top_k": -1}, "sasa_top_k must be an integer >= 0"),
        ({"sasa_temperature": 1}, "unknown sasa_temperature: there are sasa_beta"),
    ],
)
def test_a_bad_request_is_refused_by_name(asked, message):
    with pytest.raises(ValueError, match=r"sasa_|weight") as error:
        Wanted.parse(asked, {}, LOADED)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "Hello", "--engine", "llama"], "--engine must be vllm, got 'llama'"),
        (
            ["generate", "Hello", "--ray-workers", "2"],
            "--ray-address and --ray-workers belong to --ray",
        ),
        (
            ["bench", "rtp", "-o", "x", "--engine", "vllm", "-M", "words"],
            "--engine writes plain and sasa alone, not words",
        ),
        (
            ["serve", "--prior", "0.1"],
            "--prior are for requests that do not say how they are steered: give --beta",
        ),
        (["serve", "--beta", "-1"], "beta must be >= 0, got -1.0"),
        (["serve"], "serving needs vLLM, in an environment of its own"),
        (
            ["generate", "Hello", "--engine", "vllm"],
            "serving needs vLLM, in an environment of its own",
        ),
    ],
)
@pytest.mark.skipif(not NO_VLLM, reason="says what is missing where vLLM is")
def test_commands_say_what_is_missing_or_wrong(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "words" in message:
        monkeypatch.setitem(__import__("sys").modules, "sasa.serving.vllm", object())
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, (ValueError, ImportError)), done.output
    assert message in str(done.exception)


def test_an_engine_writes_in_place_of_the_model():
    """Plain and SASA go to it, with the settings of all methods; others say that it cannot write them."""
    asked = []

    def engine(prompts, beta, **settings):
        asked.append((prompts, beta, settings))
        return [[Completion("x", [1], None, "stop")] for _ in prompts]

    world = World(None, None, None, Settings(completions=2, top_k=7), engine)
    for name in ("plain", "sasa:2:raw"):
        assert method(name).served
        assert len(method(name)(world, ["a", "b"], 3)) == 2
    assert [beta for _, beta, _ in asked] == [0.0, 2.0]
    assert asked[1][2]["value"] == "raw"
    assert {settings["top_k"] for *_, settings in asked} == {7}
    assert {settings["seed"] for *_, settings in asked} == {3}
    assert not any(
        method(name).served for name in ("words", "sasa+words", "best-of:2", "backtrack", "prompt")
    )


def test_work_that_is_done_here_is_done_in_order():
    assert list(
        here("model", "tokenizer")(lambda model, tokenizer, item: (model, item), [3, 1])
    ) == [
        ("model", 3),
        ("model", 1),
    ]
