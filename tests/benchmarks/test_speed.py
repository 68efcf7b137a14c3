"""The scripts behind the figures of speed run: on a tiny model, in a few seconds."""

import json

import pytest
import tiny
from scripts import run

import sasa


@pytest.mark.slow
def test_speed_of_a_model_without_weights(tiny_folder, tmp_path):
    shown = run(
        *(
            "speed.py",
            "--random-weights",
            tiny_folder,
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--tokens",
            3,
        ),
        *(
            "--rounds",
            1,
            "--candidates",
            4,
            "--prompt",
            8,
            "--batch",
            1,
            2,
            "--output",
            tmp_path / "speed.json",
        ),
        *("--sides", "plain", "decoder", "raw", "several", "processor", "reference", "--profile"),
    )
    assert "look-ahead passes" in shown
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert {(r["batch"], r["side"]) for r in results} >= {
        (1, "plain"),
        (2, "decoder"),
        (1, "processor"),
        (1, "reference"),
        (2, "raw"),
        (2, "several"),
    }
    assert all(r["times_plain"] == 1 for r in results if r["side"] == "plain")
    assert (tmp_path / "speed.png").is_file()


def test_speed_of_several_boundaries(few_prompts, tmp_path):
    few = ("--device", "cpu", "--tokens", 3, "--rounds", 1, "--candidates", 4, "--prompt", 8)
    *_, model, _, boundary = few_prompts
    two = ("--boundary", boundary, "--boundary", boundary)
    output = tmp_path / "speed.json"
    run(
        "speed.py",
        "--model",
        model,
        *two,
        *few,
        "--sides",
        "plain",
        "raw",
        "several",
        "--output",
        output,
    )
    results = json.loads(output.read_text())["results"]
    assert [r["side"] for r in results] == ["plain", "raw", "several"]
    assert results[1]["times_raw"] == 1 != results[2]["times_raw"]
    with pytest.raises(AssertionError, match="--random-weights draws its own boundary"):
        run("speed.py", "--random-weights", model, *two)


@pytest.mark.slow
def test_speed_over_the_whole_vocabulary(tiny_folder, tmp_path):
    (tmp_path / "text.txt").write_text("so he said to her that he would not come. " * 4)
    command = (
        "speed.py",
        "--model",
        tiny_folder,
        "--device",
        "cpu",
        "--tokens",
        3,
        "--rounds",
        1,
        "--prompt",
        8,
    )
    model, _ = sasa.load(str(tiny_folder), device="cpu")
    tiny.boundary(model).save(tmp_path / "boundary")
    command += (
        "--boundary",
        tmp_path / "boundary",
        "--text",
        tmp_path / "text.txt",
        "--candidates",
        5,
        0,
    )
    command += ("--beta", 1, "--prior", 0.05)
    run(*command, "--sides", "plain", "decoder", "own", "--output", tmp_path / "speed.json")
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert [(r["top_k"], r["side"]) for r in results] == [
        (k, s) for k in (5, 0) for s in ("plain", "decoder", "own")
    ]
    assert [r["mean_candidates"] for r in results if r["top_k"] == 0] == [
        tiny.VOCABULARY - 1
    ] * 3, "all but EOS"
    assert all(
        ("candidates_read" in r) == ("passes" in r) == (r["side"] != "plain") for r in results
    )
    assert all(
        1 <= r["passes"] <= r["candidates_read"] < tiny.VOCABULARY
        for r in results
        if r["side"] != "plain"
    )
    with pytest.raises(AssertionError, match="not of the whole vocabulary"):
        run("speed.py", "--candidates", 0)


def test_what_the_harness_adds(few_prompts):
    shown = run(
        "harness.py", *few_prompts, "--rows", "0:8", "--limit", 4, "--completions", 2, "--rounds", 2
    )
    assert shown.count("of the processor") == 2
    assert "median of 2 ratios" in shown


@pytest.mark.slow
def test_what_a_start_costs():
    shown = run("startup.py", "--rounds", 1)
    assert shown.splitlines()[0].startswith("import torch ")
    assert len(shown.splitlines()) == 8
    assert "sasa classifiers" in shown


@pytest.mark.slow
def test_what_a_look_ahead_costs(few_prompts):
    shown = run("lookahead.py", *few_prompts, "--rows", "0:12", "--limit", 2, "--rounds", 1)
    assert "a pass by itself" in shown
    assert "texts that differ" in shown
    assert [row.split()[1::2][:2] for row in shown.splitlines() if "toxic" in row] == [
        ["toxic", str(k)] for k in (10, 50, 0)
    ]
