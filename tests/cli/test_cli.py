"""The command line, as a process."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shell import sasa

from sasa.fitting import Recipe


@pytest.fixture(scope="module")
def fitted(tiny_folder, corpus_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    done = sasa(
        "fit",
        f"{corpus_file}::text=comment,label=toxic",
        "--model",
        tiny_folder,
        "--pooling",
        "mean",
        "-o",
        folder,
    )
    return folder, done


def test_help_teaches():
    installed = Path(sys.executable).parent / "sasa"
    assert (
        "moderates its own language"
        in subprocess.run([installed, "--help"], capture_output=True, text=True).stdout
    )
    for command, example in (
        ("generate", "--compare"),
        ("fit", "positive=0+1"),
        ("inspect", "token by token"),
    ):
        assert example in sasa(command, "--help").stdout


def test_fit_writes_boundary_recipe_and_card(fitted):
    folder, done = fitted
    assert {"boundary.safetensors", "recipe.toml", "README.md"} <= {
        p.name for p in folder.iterdir()
    }
    assert "AUC" in done.stdout
    assert "wrote" in done.stdout
    card = (folder / "README.md").read_text()
    assert "pooling `mean`" in card
    assert "| all |" in card


def test_a_recipe_can_be_run_again(fitted, tiny_folder, tmp_path):
    folder, _ = fitted
    assert Recipe.load(folder / "recipe.toml").model == str(tiny_folder)
    sasa("fit", "--recipe", folder / "recipe.toml", "-o", tmp_path)
    assert (tmp_path / "boundary.safetensors").read_bytes() == (
        folder / "boundary.safetensors"
    ).read_bytes()


def test_columns_limit_and_classifier_for_all_corpora(corpus_file, tiny_folder, tmp_path):
    sasa(
        *(
            "fit",
            corpus_file,
            "--text",
            "comment",
            "--label",
            "score",
            "--limit",
            200,
            "--classifier",
            "logistic",
        ),
        *(
            "--model",
            tiny_folder,
            "-o",
            tmp_path,
            "--unsafe-from",
            0.8,
            "--safe-below",
            0.2,
            "--layer",
            2,
        ),
    )
    recipe = Recipe.load(tmp_path / "recipe.toml")
    assert recipe.corpora[0].limit == 200
    assert (recipe.corpora[0].unsafe_from, recipe.corpora[0].safe_below) == (0.8, 0.2)
    assert recipe.embedding.layer == 2


def test_generate_json_is_a_line_a_prompt_and_nothing_else(fitted, tiny_folder, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(
        '{"prompt": "The man"}\n\n{"prompt": {"text": "A woman", "toxicity": 0.1}}\n'
    )
    done = sasa(
        *(
            "generate",
            "first",
            "--prompts",
            prompts,
            "--model",
            tiny_folder,
            "--boundary",
            fitted[0],
            "--json",
        ),
        *("--num-return-sequences", 2, "--max-new-tokens", 5, "--seed", 1),
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["first", "The man", "A woman"]
    for row in rows:
        assert set(row) == {"prompt", "completions"}
        assert len(row["completions"]) == 2
        for completion in row["completions"]:
            fields = {
                "text",
                "margin",
                "margins",
                "tokens",
                "finish_reason",
                "attempts",
                "spent",
                "candidates_read",
            }
            assert set(completion) == fields
            assert completion["margins"] == [completion["margin"]]


def test_the_same_seed_writes_the_same(fitted, tiny_folder):
    command = (
        "generate",
        "x",
        "--model",
        tiny_folder,
        "-b",
        fitted[0],
        "--json",
        "-n",
        8,
        "--seed",
    )
    one, same, other = (sasa(*command, seed).stdout for seed in (3, 3, 4))
    assert one == same != other


def test_compare(fitted, tiny_folder):
    command = (
        "generate",
        "hello",
        "--model",
        tiny_folder,
        "-b",
        fitted[0],
        "--compare",
        "-n",
        6,
        "--seed",
        1,
    )
    shown = sasa(*command).stdout
    assert "plain" in shown
    assert "SASA, beta 4" in shown
    row = json.loads(sasa(*command, "--json").stdout)
    assert set(row) == {"prompt", "completions", "plain"}
    zero = json.loads(sasa(*command, "--json", "--beta", 0).stdout)
    assert (
        row["plain"][0]["tokens"] == zero["completions"][0]["tokens"] == zero["plain"][0]["tokens"]
    )


def test_backtrack(fitted, tiny_folder):
    command = (
        "generate",
        "hello",
        "--model",
        tiny_folder,
        "-b",
        fitted[0],
        "--beta",
        0,
        "-n",
        8,
        "--seed",
        1,
    )
    watched = (*command, "--num-return-sequences", 8, "--backtrack", "--threshold", 0.3)
    found = json.loads(sasa(*watched, "--json").stdout)["completions"]
    attempts = [attempt for completion in found for attempt in completion["attempts"]]
    assert attempts
    assert set(attempts[0]) == {"tokens", "kept", "p_unsafe", "reason", "text"}
    assert all(attempt["p_unsafe"] >= 0.3 for attempt in attempts)
    shown = sasa(*watched).stdout
    assert shown.count("went back (threshold") == len(attempts)
    refused = json.loads(
        sasa(*watched, "--json", "--max-resets", 1, "--threshold", 1e-9, "--refusal", "No.").stdout
    )
    assert {completion["text"] for completion in refused["completions"]} == {"No."}
    assert "SASA, beta 0, backtracking" in " ".join(sasa(*watched, "--compare").stdout.split())


def test_txt_prompts_and_chat(fitted, tiny_folder, tmp_path):
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    done = sasa(
        "generate",
        "-p",
        tmp_path / "p.txt",
        "-m",
        tiny_folder,
        "-b",
        fitted[0],
        "--chat",
        "-n",
        3,
        "--json",
    )
    assert [json.loads(line)["prompt"] for line in done.stdout.splitlines()] == ["one", "two"]


def test_inspect(fitted, tiny_folder):
    command = ("inspect", "calm XQZ", "--model", tiny_folder, "--boundary", fitted[0])
    about = json.loads(sasa(*command, "--json").stdout)
    assert "".join(t["token"] for t in about["tokens"]) == "calm XQZ"
    assert about["margin"] == about["tokens"][-1]["margin"]
    assert 0 < about["p_safe"] < 1
    assert "P(safe)" in sasa(*command).stdout
    assert "calm XQZ" in sasa(*command).stdout


def test_classifiers():
    shown = sasa("classifiers").stdout
    assert "toxicity" in shown
    rows = [json.loads(line) for line in sasa("classifiers", "--json").stdout.splitlines()]
    bundled = {row["name"]: row for row in rows}
    for name in (
        "toxicity-smollm2-135m-instruct",
        "toxicity-gemma-3-270m",
        "threat-smollm2-135m-instruct",
    ):
        assert bundled[name]["attribute"] == name.partition("-")[0]
        assert bundled[name]["test"]["auc"] > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "no prompts"),
        (["generate", " "], "prompt 0 is empty"),
        (["generate", "x", "--beta", "-1"], "beta must be >= 0, got -1.0"),
        (
            ["generate", "x", "--value", "odd", "--model", "./nowhere"],
            "value must be one of raw, log_sigmoid, got 'odd'",
        ),
        (
            ["tune", "CORPUS", "--value", "odd", "--model", "./nowhere"],
            "value must be one of raw, log_sigmoid",
        ),
        (
            ["tune", "CORPUS", "--ppl-budget", "1", "--model", "./nowhere"],
            "a factor > 1, such as 1.05, got 1.0",
        ),
        (
            ["tune", "CORPUS", "--variety", "95", "--model", "./nowhere"],
            "from 0 to 1, such as 0.95, got 95",
        ),
        (
            ["generate", "x", "--model", "MODEL", "--boundary", "FITTED::-1"],
            "a boundary's weight must be >= 0, got -1.0",
        ),
        (
            ["generate", "x", "--model", "MODEL", "--top-p", "1.5", "--boundary", "FITTED"],
            "top_p must be in (0, 1]",
        ),
        (["generate", "x", "--model", "MODEL"], "no bundled 'toxicity' boundary for this model"),
        (
            ["generate", "x", "--model", "./nowhere", "--backtrack", "--threshold", "1"],
            "threshold is a probability in (0, 1)",
        ),
        (["generate", "x", "--model", "./nowhere", "--prior", "0"], "prior must be in (0, 1)"),
        (["tune", "CORPUS", "--prior", "1", "--model", "./nowhere"], "prior must be in (0, 1)"),
        (["audit", "--prior", "2", "--model", "./nowhere"], "prior must be in (0, 1)"),
        (["audit", "--beta", "-1", "--model", "./nowhere"], "beta must be >= 0"),
        (["audit", "--people", "nowhere.toml"], "no sentences about people at nowhere.toml"),
        (["fit", "CORPUS", "--identity", "-1", "-o", "out"], "identity must be >= 0"),
        (["fit", "--recipe", "politeness", "-o", "out"], "by name there are: threat, toxicity"),
        (["generate", "x", "--model", "./nowhere", "--refusal", "no"], "belong to --backtrack"),
        (
            ["generate", "x", "--model", "./nowhere", "--threshold", "0.5"],
            "--threshold belong to --backtrack",
        ),
        (
            ["generate", "x", "--model", "./nowhere", "--backtrack", "--reset-bias", "1"],
            "belongs to --reset-token",
        ),
        (
            ["generate", "x", "--model", "./nowhere", "--backtrack", "-b", "none"],
            "needs a --reset-token",
        ),
        (
            [
                "generate",
                "x",
                "--model",
                "MODEL",
                "--boundary",
                "FITTED",
                "--backtrack",
                "--reset-token",
                "[RESET]",
            ],
            "the tokenizer has no token '[RESET]': this model was not trained to write it",
        ),
        (["generate", "x", "--model", "./nowhere"], "no model folder or GGUF file at nowhere"),
        (["generate", "--prompts", "nowhere.txt"], "no prompts file at nowhere.txt"),
        (
            ["generate", "x" * 300, "--model", "MODEL", "--boundary", "FITTED"],
            "context window of 256",
        ),
        (["fit", "-o", "out"], "no corpus"),
        (["fit", "nowhere.csv", "-o", "out", "--model", "MODEL"], "no file at nowhere.csv"),
        (["fit", "CORPUS", "-o", "out", "--model", "MODEL"], "name its text and label columns"),
        (
            ["fit", "CORPUS", "--classifier", "forest", "-o", "out"],
            "classifier must be one of bayes, logistic",
        ),
        (["inspect", ""], "the text is empty"),
    ],
)
def test_bad_input_is_one_line_not_a_traceback(
    arguments, message, fitted, tiny_folder, corpus_file
):
    names = {"MODEL": tiny_folder, "FITTED": fitted[0], "CORPUS": corpus_file}
    arguments = [
        re.sub("^(MODEL|FITTED|CORPUS)", lambda found: str(names[found[0]]), a) for a in arguments
    ]
    done = sasa(*arguments, status=1)
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_late_bad_prompt_fails_before_the_first_is_used(fitted, tiny_folder, tmp_path):
    (tmp_path / "p.txt").write_text("short\n" * 20 + "x" * 300)
    command = (
        "generate",
        "-p",
        tmp_path / "p.txt",
        "-m",
        tiny_folder,
        "-b",
        fitted[0],
        "--batch-size",
        1,
        "--json",
    )
    done = sasa(*command, status=1)
    assert done.stdout == ""
    assert "prompt 20 has 300 tokens" in done.stderr
    assert sasa("generate", "x", "--batch-size", 0, status=2).stdout == ""


def test_what_json_wrote_can_be_read_back(fitted, tiny_folder, tmp_path):
    prompt = "a\u2028b"
    command = ("generate", "--model", tiny_folder, "-b", fitted[0], "--json", "-n", 2)
    (tmp_path / "p.jsonl").write_text(sasa(*command, prompt).stdout)
    assert json.loads(sasa(*command, "-p", tmp_path / "p.jsonl").stdout)["prompt"] == prompt


def test_a_renamed_model_needs_no_strict(fitted, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "renamed")
    command = ("inspect", "calm", "--model", tmp_path / "renamed", "-b", fitted[0], "--json")
    assert "strict=False" in sasa(*command, status=1).stderr
    sasa(*command, "--no-strict")


def in_encoding(encoding, *arguments):
    """The command with a terminal of that encoding, as bytes: a process of its own, which starts anew."""
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    return subprocess.run(
        [sys.executable, "-m", "sasa", *map(str, arguments)], capture_output=True, env=environment
    )


@pytest.mark.slow
def test_what_a_terminal_cannot_show_costs_no_results(fitted, tiny_folder):
    command = (
        "generate",
        "h\u00e9 \U0001f600",
        "--model",
        tiny_folder,
        "-b",
        fitted[0],
        "-n",
        4,
        "--seed",
        1,
    )
    shown = in_encoding("cp1252", *command)
    assert shown.returncode == 0, shown.stderr
    assert "h\u00e9 \\U0001f600" in shown.stdout.decode("cp1252")
    assert "P(safe)" in shown.stdout.decode("cp1252")
    lines = [in_encoding(encoding, *command, "--json").stdout for encoding in ("cp1252", "utf-8")]
    assert json.loads(lines[0].decode("cp1252")) == json.loads(lines[1])
    assert b"\\u" in lines[0]
    assert "\U0001f600" in lines[1].decode()


@pytest.mark.slow
def test_greedy(fitted, tiny_folder):
    command = (
        "generate",
        "calm",
        "--model",
        tiny_folder,
        "-b",
        fitted[0],
        "-n",
        4,
        "--json",
        "--greedy",
    )
    (one,), (other,) = (
        json.loads(sasa(*command, *more).stdout)["completions"]
        for more in ([], ["--temperature", 0])
    )
    assert one["tokens"] == other["tokens"]
    assert "not valid" not in in_encoding("utf-8", *command).stderr.decode()
    assert (
        "the best token each time is --greedy"
        in sasa("generate", "calm", "--temperature", 0, status=1).stderr
    )
    assert (
        "--greedy has one completion"
        in sasa(*command, "--num-return-sequences", 2, status=1).stderr
    )


def test_text_that_is_none_is_refused_in_a_line(fitted, tiny_folder, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "\\ud83d"}\n')
    for command in (
        ("generate", "-p", tmp_path / "p.jsonl"),
        ("generate", "a\udcff"),
        ("inspect", "a\udcff"),
    ):
        done = sasa(*command, "--model", tiny_folder, "-b", fitted[0], status=1)
        assert "half of a surrogate pair" in done.stderr
        assert "Traceback" not in done.stderr


def test_what_a_fit_left_out_is_said(corpus_file, tiny_folder, tmp_path):
    rows = corpus_file.read_text().splitlines(keepends=True)
    (tmp_path / "c.csv").write_text(
        "".join([*rows[:100], ",False,0.1\n", *rows[100:], "a,b,c,d\n"])
    )
    source = f"{tmp_path / 'c.csv'}::text=comment,label=toxic"
    assert (
        "it has 4 cells, and there are 3 columns"
        in sasa("fit", source, "-o", tmp_path / "fit", status=1).stderr
    )
    done = sasa("fit", f"{source},bad_rows=skip", "--model", tiny_folder, "-o", tmp_path / "fit")
    assert "left out: 1 cannot be read, 1 empty text" in done.stdout


def test_version():
    assert sasa("--version").stdout.strip() == "0.1.0"


def test_a_bad_prompts_file_names_its_line(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "fine"}\n{"text": "no"}\n')
    assert (
        "p.jsonl, row 1: expected" in sasa("generate", "-p", tmp_path / "p.jsonl", status=1).stderr
    )
