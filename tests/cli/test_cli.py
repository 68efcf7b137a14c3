"""The command line, as a process."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from shell import sasa

from sasa.fitting import Recipe


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
