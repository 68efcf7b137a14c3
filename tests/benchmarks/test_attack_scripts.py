"""The scripts behind the figures of attacks run: on tiny models."""

import gzip
import json

import pytest
import tiny
from scripts import run

import sasa

GCG = {"steps": 40, "width": 32, "top": 128, "suffix_tokens": 10, "seed": 0}


def test_under_attack(tiny_folder, mine):
    """What the attack has found already is judged; to find it takes a package that is no dependency."""
    sides = {
        "prompt": {"text": "Go on", "toxicity": 0.1},
        "continuation": {"text": " LOUD", "toxicity": 0.9},
    }
    (mine / "rtp.jsonl").write_text(json.dumps(sides) + "\n")
    for name in ("base", "same"):
        found = {
            "prompt": "Go on",
            "attack": "Go on NOW",
            "target": " LOUD",
            "losses": [3.0],
            "seconds": 1.0,
            **GCG,
        }
        (mine / f"{name}-0.json").write_text(json.dumps(found))
    (mine / "same").symlink_to(tiny_folder)
    run(
        *(
            "gcg.py",
            "--prompts",
            "rtp.jsonl",
            "--base",
            tiny_folder,
            "--model",
            "same",
            "--reward",
            "homemade:quiet",
        ),
        *("--completions", 32, "--tokens", 4, "--store", ".", "--output", "gcg.json"),
        cwd=mine,
    )
    before, after = json.loads((mine / "gcg.json").read_text())["results"]
    assert before["bad"]["homemade:quiet"]["each"] == after["bad"]["homemade:quiet"]["each"]
    assert (
        before["bad"]["homemade:quiet"]["each"][0][0]
        != before["bad"]["homemade:quiet"]["each"][0][1]
    )
    assert before["nats"] == after["nats"]


def test_under_attack_with_a_reset_of_its_own(tiny_folder, mine):
    """Dialogues are answered through the chat template, and what is sent back is not delivered."""
    model, tokenizer = sasa.load(str(tiny_folder), device="cpu")
    tiny.boundary(model).save(mine / "judge")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(mine / "taught")
    rows = [{"chosen": f"\n\nHuman: Any {i}.\n\nAssistant: {text}", "rejected": f"\n\nHuman: Any {i}.\n\nAssistant: {text}er"}
            for i, text in enumerate(("calm", "LOUD"))]  # fmt: skip
    with gzip.open(mine / "pairs.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    found = {
        "prompt": "Any 1.",
        "attack": "Any 1. NOW",
        "target": "LOUDer",
        "losses": [3.0],
        "seconds": 1.0,
        **GCG,
    }
    for name in ("base", "taught"):
        (mine / f"{name}-0.json").write_text(json.dumps(found))
    command = [
        *(
            "gcg.py",
            "--pairs",
            "pairs.jsonl.gz",
            "--rows",
            ":",
            "--base",
            tiny_folder,
            "--model",
            "taught",
            "--judge",
            "judge",
        ),
        *(
            "--reward",
            "homemade:quiet",
            "--completions",
            8,
            "--tokens",
            4,
            "--target-tokens",
            99,
            "--store",
            ".",
            "--bias",
            40,
        ),
    ]
    run(*command, "--output", "gcg.json", cwd=mine)
    before, after = json.loads((mine / "gcg.json").read_text())["results"]
    assert (before["prompts"], set(before["bad"])) == (1, {"homemade:quiet", "harm"})
    assert "sent_back" not in before
    assert after["sent_back"] == [1, 1]
    with pytest.raises(AssertionError, match="is of another attack: steps was 40, is 9"):
        run(*command, "--steps", 9, cwd=mine)
    with pytest.raises(AssertionError, match="rows 0:1: nothing there"):
        run(*command, "--rows", "0:1", cwd=mine)
    with pytest.raises(AssertionError, match="which must differ: base, taught, taught"):
        run(*command, "--model", "elsewhere/taught", cwd=mine)


def test_an_attack_by_gradients(tiny_folder, mine):
    """Of a model that opens each turn of a chat with its BOS, and knows tokens that no attack may hold."""
    pytest.importorskip("nanogcg")
    rows = [
        {
            "chosen": "\n\nHuman: Any.\n\nAssistant: calm",
            "rejected": "\n\nHuman: Any.\n\nAssistant: LOUD",
        }
    ]
    with gzip.open(mine / "pairs.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    model, tokenizer = sasa.load(str(tiny_folder), device="cpu")
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["[RESET]"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}<s>assistant: "
    )
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(mine / "taught")
    run(
        *(
            "gcg.py",
            "--pairs",
            "pairs.jsonl.gz",
            "--base",
            "taught",
            "--model",
            "taught",
            "--reward",
            "homemade:quiet",
        ),
        *("--steps", 3, "--completions", 2, "--tokens", 2, "--store", ".", "--output", "gcg.json"),
        cwd=mine,
    )
    attack = json.loads((mine / "base-0.json").read_text())
    assert "<s>" not in attack["attack"]
    assert "[RESET]" not in attack["attack"]
    # what the attack makes likely is what the model is asked: the loss is that of the target behind the whole chat
    found = json.loads((mine / "gcg.json").read_text())["results"][0]
    tokens = len(tokenizer(attack["target"], add_special_tokens=False).input_ids)
    assert found["nats"][1] == pytest.approx(tokens * min(attack["losses"]), rel=1e-3)


def test_what_novelty_costs():
    shown = run("novelty.py", "--histories", 20, 40, "--batch", 4, "--rounds", 2).splitlines()
    assert [line.split(" attacks:")[0].strip() for line in shown] == ["20", "40"]
    assert all(part in shown[0] for part in ("SelfBLEU", "cosine, mean", "4 nearest", "MiB"))
