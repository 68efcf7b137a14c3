"""Replays of an attack against other models and defences."""

import json

import numpy as np
import pytest
import tiny
from attacks import JUDGES, MADE
from shell import sasa as command

import sasa

pytest.importorskip("sacrebleu", reason="pip install 'sasa-decoding[redteam]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")
from sasa.evaluation.settings import Settings
from sasa.redteam import (
    ModelTarget,
    replay,
    replay_suite,
)


def test_replay_takes_each_cluster_in_turn(made):
    suite = replay_suite(made, harmless=["so", "and so"])
    assert [p.text for p in suite.prompts] == [MADE[0][0], MADE[2][0], MADE[3][0], "so", "and so"]
    assert [p.text for p in replay_suite(made, limit=2).prompts if p.group == "attack"] == [
        MADE[0][0],
        MADE[2][0],
    ]
    assert sum(p.group == "harmless" for p in replay_suite(made).prompts) == 3
    texts = replay_suite(["so he said", "and so"], limit=1)
    assert [(p.id, p.text) for p in texts.prompts if p.group == "attack"] == [
        ("case-1", "so he said")
    ]
    with pytest.raises(ValueError, match="a list of prompts has none"):
        replay_suite(["so he said"], clusters="odd")
    with pytest.raises(ValueError, match="nothing to replay"):
        replay_suite(made, threshold=0.99)


def test_a_replay_has_every_model_and_defence_side_by_side(made, tmp_path):
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    other = tiny.model("llama", num_hidden_layers=2)
    models = {
        "base": (model, tokenizer, tiny.boundary(model)),
        "a/b": (other, tokenizer, tiny.boundary(other)),
    }
    settings = Settings(completions=3, max_new_tokens=5, chat=True, top_k=5)
    suite = replay_suite(made)
    found = replay(
        suite, models, ["sasa:3", "backtrack"], JUDGES, tmp_path / "r", settings, batch_size=2
    )
    assert [(row["model"], row["defence"]) for row in found["rows"]] == [
        (name, way) for name in models for way in ("plain", "sasa:3", "backtrack")
    ]
    assert (found["attacks"], found["harmless"], found["replies"]) == (3, 3, 3)
    by_hand = []
    lines = [
        json.loads(x)
        for x in (tmp_path / "r" / "base" / "completions" / "plain.jsonl").read_text().splitlines()
    ]
    for line in lines:
        if line["prompt"].startswith("case-"):
            by_hand.append(min(judge.score([line["text"]])[0] for judge in JUDGES) >= 0.5)
    first = found["rows"][0]
    assert first["success"].value == pytest.approx(np.mean(by_hand))
    assert first["any"].value == pytest.approx(np.reshape(by_hand, (3, 3)).any(1).mean())
    assert first["tokens"].value == pytest.approx(
        np.mean([len(line["tokens"]) for line in lines if line["prompt"].startswith("harmless-")])
    )
    assert "test" not in first
    assert 0 <= found["rows"][1]["test"]["p"] <= 1
    assert "| a/b | backtrack |" in (tmp_path / "r" / "replay.md").read_text()
    again = replay(
        suite, models, ["sasa:3", "backtrack"], JUDGES, tmp_path / "r", settings, batch_size=2
    )
    assert json.dumps(again, default=str) == json.dumps(found, default=str)
    with pytest.raises(ValueError, match="names that differ"):
        replay(
            suite,
            {"a/b": models["base"], "a-b": models["base"]},
            [],
            JUDGES,
            tmp_path / "x",
            settings,
        )
    with pytest.raises(ValueError, match="unknown method"):
        replay(suite, models, ["wall"], JUDGES, tmp_path / "r", settings)


def test_a_models_own_reset_needs_no_boundary(tokenizer):
    with pytest.raises(ValueError, match="was not trained to write it"):
        ModelTarget(tiny.model("llama"), tokenizer, "reset")
    for bad in ("reset:x", "reset:nan"):
        with pytest.raises(ValueError, match=f"method '{bad}'"):
            ModelTarget(tiny.model("llama"), tokenizer, bad)
    knows, model = tiny.tokenizer(), tiny.model("llama")
    knows.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    model.resize_token_embeddings(len(knows))
    settings = Settings(max_new_tokens=6, chat=True, top_k=5)
    plain, never, always = (
        ModelTarget(model, knows, defence, None, settings).reply(["hello", "you"], 1)
        for defence in ("plain", "reset:-1000", "reset:1000")
    )
    assert plain == never
    assert plain != always


def test_a_replay_leaves_out_a_defence_that_a_model_cannot_use(made, tmp_path):
    """A model that was taught [RESET] beside one that was not."""
    plain, taught, knows = tiny.model("llama"), tiny.model("llama"), tiny.tokenizer()
    knows.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    taught.resize_token_embeddings(len(knows))
    models = {
        "base": (plain, tiny.tokenizer(), tiny.boundary(plain)),
        "taught": (taught, knows, tiny.boundary(taught)),
    }
    settings, suite = (
        Settings(completions=2, max_new_tokens=5, chat=True, top_k=5),
        replay_suite(made),
    )
    with pytest.raises(ValueError, match=r"method reset:1: the tokenizer has no token '\[RESET\]'"):
        replay(suite, {"base": models["base"]}, ["reset:1"], JUDGES, tmp_path / "none", settings)
    assert not (tmp_path / "none" / "base" / "completions").exists()
    found = replay(suite, models, ["reset:40"], JUDGES, tmp_path / "r", settings)
    assert [(row["model"], row["defence"]) for row in found["rows"]] == [
        ("base", "plain"), ("taught", "plain"), ("taught", "reset:40"),
    ]  # fmt: skip
    lines = [
        json.loads(x) for x in (tmp_path / "r" / "taught" / "completions" / "reset@40.jsonl").open()
    ]
    assert all(line["attempts"] for line in lines)
    assert (
        "- base: method reset:40: the tokenizer has no token"
        in (tmp_path / "r" / "replay.md").read_text()
    )


def test_a_replay_tells_what_was_left_out_and_has_no_change_of_nothing(tiny_folder, tmp_path):
    pytest.importorskip("profanity_check")
    model, tokenizer = sasa.load(str(tiny_folder), device="cpu")
    tiny.boundary(model).save(tmp_path / "boundary")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "taught")
    (tmp_path / "prompts.txt").write_text("so he said\n")
    done = command(
        *(
            "redteam",
            "replay",
            tmp_path / "prompts.txt",
            "-m",
            tiny_folder,
            "-m",
            tmp_path / "taught",
            "--no-strict",
        ),
        *(
            "-b",
            tmp_path / "boundary",
            "-D",
            "reset:2",
            "-s",
            "profanity",
            "-c",
            2,
            "-n",
            4,
            "--threshold",
            1,
        ),
    )
    assert (
        f"left out for {tiny_folder.name}: method reset:2: the tokenizer has no token '[RESET]'"
        in done.stdout
    )
    assert "nan" not in done.stdout
