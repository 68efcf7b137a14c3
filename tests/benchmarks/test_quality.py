"""The scripts behind the figures of quality run: on a tiny model, in a few seconds."""

import json

import pytest
from scripts import run

import sasa


@pytest.mark.model
def test_auc(real, shared_data):
    pytest.importorskip("profanity_check")
    options = (
        "--prompts",
        shared_data / "rtp" / "prompts.jsonl",
        "--rows",
        "3000:3030",
        "--scorer",
        "profanity",
    )
    assert run("auc.py", *options).count("AUC") == 2


@pytest.mark.slow
def test_search(tiny_folder, tmp_path):
    pytest.importorskip("profanity_check")
    corpus = tmp_path / "rtp.jsonl"
    with corpus.open("w") as file:
        for i in range(500):
            bad = i % 2
            sides = {
                "text": f"{('XQZ', 'ZZX')[i % 3 > 0] if bad else ('calm', 'kind')[i % 3 > 0]} {i}",
                "toxicity": float(bad),
            }
            file.write(
                json.dumps({"prompt": sides, "continuation": sides, "challenging": False}) + "\n"
            )
    options = (
        *(
            "search.py",
            "--rtp",
            corpus,
            "--model",
            tiny_folder,
            "--output",
            tmp_path / "search",
            "--fit-rows",
            "0:480",
        ),
        *(
            "--spec",
            "1:mean:text",
            "--spec",
            "2:ema:text:3",
            "--method",
            "sasa:2:log_sigmoid",
            "--completions",
            2,
        ),
    )
    assert "2:ema:text:3" in run(*options, "--tune-rows", "480:500", "--limit", 4)
    (folder,) = (tmp_path / "search").iterdir()
    lines = json.loads((folder / "search.json").read_text())
    assert all(0 <= line["caught"] <= 1 for line in lines)
    assert [(line["boundary"], line["method"]) for line in lines] == [
        ("plain", "plain"),
        ("1:mean:text", "sasa:2:log_sigmoid"),
        ("2:ema:text:3", "sasa:2:log_sigmoid"),
    ]
    run(
        *options, "--tune-rows", "490:", "--limit", 2
    )  # other prompts: what was found for the first ones is not theirs
    assert json.loads((folder / "search.json").read_text())[0] != lines[0]
    before = {folder}
    for change in (["--prefixes"], ["--shrinkage", 0.5]):
        run(*options, "--tune-rows", "490:", "--limit", 2, *change)
        (other,) = set((tmp_path / "search").iterdir()) - before
        before.add(other)
        for spec in ("1-mean-text", "2-ema-text-3"):
            one, two = (sasa.Boundary.load(f / "boundaries" / spec) for f in (folder, other))
            assert one.fingerprint != two.fingerprint


@pytest.mark.slow
def test_killed_again_and_again(few_prompts):
    """kill -9 in the middle, each time followed by the same command: the same store as without."""
    pytest.importorskip("profanity_check")
    shown = run("kills.py", *few_prompts, "--limit", 12, "--tokens", 6, "--kills", 3)
    assert "are the same, byte for byte" in shown
    assert "completions/sasa.jsonl" in shown
    assert shown.count("kill ") > 1
