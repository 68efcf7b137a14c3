"""`sasa generate`, as a process."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from shell import sasa


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


def test_a_bad_prompts_file_names_its_line(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "fine"}\n{"text": "no"}\n')
    assert (
        "p.jsonl, row 1: expected" in sasa("generate", "-p", tmp_path / "p.jsonl", status=1).stderr
    )
