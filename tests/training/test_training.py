"""Teaching a model to go back: examples, a training that can be stopped, and its command."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import tiny
import torch
from helpers import write_pairs
from safetensors.torch import load_file
from shell import sasa as command

import sasa
from sasa.core.backtracking import RESET, Backtracking, reset_token_id
from sasa.training import Training, train_backtracking
from sasa.training.backtracking import add_reset_token, encode_pair, examples
from sasa.training.folder import check_packages, training_folder

trl = pytest.importorskip("trl", reason="pip install 'sasa-decoding[train]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")


def message(role, content):
    return {"role": role, "content": content}


def test_sft_examples(corpus, fresh):
    """After a prefix of the unsafe reply, [RESET] and the safe one, with no loss on the prefix; and the safe one alone."""
    model, tokenizer = fresh
    reset = add_reset_token(model, tokenizer)
    (pair, *_) = corpus.pairs(Counter())
    prompt, safe, unsafe = encode_pair(tokenizer, pair)
    assert tokenizer.decode(prompt).endswith("[user]Any 0.</s>[assistant]")
    assert safe[-1] == unsafe[-1] == tiny.EOS
    assert tokenizer.decode(safe[:-1]) == "calm and kind"
    rows = examples(Training(corpus, max_length=200), tokenizer, reset, Counter())
    back, plain = rows[:2]
    assert len(rows) == 24
    assert plain["input_ids"] == prompt + safe
    assert plain["completion_mask"] == [0] * len(prompt) + [1] * len(safe)
    at = back["input_ids"].index(reset)
    assert len(prompt) < at < len(prompt + unsafe) - 1
    assert back["input_ids"][:at] == (prompt + unsafe)[:at]
    assert back["input_ids"][at:] == [reset, *safe]
    assert back["completion_mask"] == [0] * at + [1] * (1 + len(safe))
    lengths = {len(row["input_ids"]) - sum(row["completion_mask"]) for row in rows[::2]}
    assert len(lengths) > 3  # the prefixes are of many lengths


def test_dpo_examples(corpus, fresh):
    """Going back is preferred to going on where the reply is unsafe, and rejected where it is safe."""
    model, tokenizer = fresh
    reset = add_reset_token(model, tokenizer)
    (pair, *_) = corpus.pairs(Counter())
    prompt, safe, unsafe = encode_pair(tokenizer, pair)
    wrong, right = examples(Training(corpus, "dpo", max_length=200), tokenizer, reset, Counter())[
        :2
    ]
    assert wrong["prompt_ids"][: len(prompt)] == right["prompt_ids"][: len(prompt)] == prompt
    assert wrong["prompt_ids"] + wrong["rejected_ids"] == prompt + unsafe
    assert len(prompt) < len(wrong["prompt_ids"])
    assert wrong["chosen_ids"] == [reset, *safe]
    assert right["prompt_ids"] + right["chosen_ids"] == prompt + safe
    assert right["rejected_ids"] == [reset, *unsafe]


def test_a_tokenizer_without_a_chat_template_reads_the_dialogue_as_it_stands(corpus):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    (pair, *_) = corpus.pairs(Counter())
    prompt, safe, _ = encode_pair(tokenizer, pair)
    assert tokenizer.decode(prompt + safe[:-1]) == pair.prompt + pair.safe


def chance_of_reset(model, tokenizer, corpus):
    """Log P([RESET]) after half of the unsafe reply, and after half of the safe one."""
    reset = reset_token_id(tokenizer)
    (pair, *_) = corpus.pairs(Counter())
    prompt, safe, unsafe = encode_pair(tokenizer, pair)
    ends = [torch.tensor([prompt + reply[: len(reply) // 2]]) for reply in (unsafe, safe)]
    with torch.no_grad():
        return torch.tensor(
            [float(model(input_ids=ids).logits[0, -1].log_softmax(-1)[reset]) for ids in ends]
        )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "lora"), [("sft", 4), ("sft", 0), ("dpo", 4), ("dpo", 0)])
def test_a_trained_model_goes_back_from_what_is_unsafe(method, lora, corpus, fresh, tmp_path):
    model, tokenizer = fresh
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rate = 2e-2 if lora else 3e-3
    add_reset_token(model, tokenizer)
    before = chance_of_reset(model, tokenizer, corpus)
    training = Training(
        corpus, method, lora, epochs=12, learning_rate=rate, max_length=200, save_steps=1000
    )
    out = train_backtracking(model, tokenizer, training, tmp_path / "out", base=str(folder))
    loaded, words = sasa.load(str(out), device="cpu")
    assert type(loaded) is type(tiny.model("llama"))  # nothing of an adapter is left in the way
    unsafe, safe = (chance_of_reset(loaded, words, corpus) - before).tolist()
    assert unsafe > safe + 0.5
    about = json.loads((out / "training.json").read_text())
    assert about["counts"] == {"examples": 24, "skipped": {}}
    assert any("loss" in row for row in about["log"])
    # and it is what sasa.Backtracking waits for, without a boundary
    watch = Backtracking(
        threshold=None, reset_token_id=reset_token_id(words), reset_bias=1e4, max_resets=1
    )
    (found,) = sasa.generate(
        loaded, words, "Any 0.", None, chat=True, max_new_tokens=4, seed=0, backtrack=watch
    )
    assert [a.reason for a in found.attempts] == ["reset"]
    assert found.margin is None
    assert RESET not in found.text


def test_all_weights_are_trained_in_float32(corpus, tmp_path):
    """In half precision most steps are smaller than what a weight can tell apart."""
    model, tokenizer = tiny.model("llama", torch.bfloat16), tiny.tokenizer()
    training = Training(corpus, lora=0, epochs=1, learning_rate=1e-6, max_length=200)
    before = tiny.model("llama", torch.bfloat16).float().model.layers[0].mlp.up_proj.weight.detach()
    out = train_backtracking(model, tokenizer, training, tmp_path / "out")
    after = sasa.load(str(out), device="cpu")[0].model.layers[0].mlp.up_proj.weight.detach()
    assert (after != before).float().mean() > 0.9


@pytest.mark.slow
def test_stopped_it_goes_on_from_its_checkpoint(corpus, tmp_path, monkeypatch):
    training = Training(
        corpus, lora=4, epochs=3, learning_rate=1e-2, batch_size=4, max_length=200, save_steps=5
    )

    def train(folder):
        return train_backtracking(
            tiny.model("llama"), tiny.tokenizer(), training, folder, base="me/tiny"
        )

    def logged(folder):
        return json.loads((folder / "training.json").read_text()).get("log")

    whole, half = train(tmp_path / "whole"), tmp_path / "half"
    assert logged(whole)[-1]["step"] == 18
    steps = []
    own = trl.SFTTrainer.training_step

    def step(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 13:
            raise KeyboardInterrupt
        return own(self, *args, **kwargs)

    monkeypatch.setattr(trl.SFTTrainer, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(half)
    assert logged(half) is None
    (half / "checkpoints" / "checkpoint-99").mkdir()  # one that it was killed in the middle of
    train(half)
    assert steps[12:15] == [12, 10, 11]  # it went on behind its last checkpoint
    want, found = (load_file(folder / "adapter_model.safetensors") for folder in (whole, half))
    assert want.keys() == found.keys()
    for name, weight in want.items():
        torch.testing.assert_close(found[name], weight)
    train(half)  # what is done is not done again
    assert len(steps) == 12 + 1 + 8


def test_two_trainings_in_one_folder(corpus, fresh, tmp_path):
    training = Training(corpus, lora=2, epochs=1, max_length=200)
    with (
        training_folder(tmp_path / "out").lock(),
        pytest.raises(BlockingIOError, match="another process is writing to"),
    ):
        train_backtracking(*fresh, training, tmp_path / "out", base="me/tiny")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".lock"]
    train_backtracking(*fresh, training, tmp_path / "out", base="me/tiny")


def test_other_settings_are_refused(corpus, fresh, tmp_path):
    training = Training(corpus, lora=2, epochs=1, max_length=200)
    train_backtracking(*fresh, training, tmp_path / "out", base="me/tiny")

    def again(training=training, base="me/tiny", folder="out"):
        return train_backtracking(
            tiny.model("llama"), tiny.tokenizer(), training, tmp_path / folder, base=base
        )

    again()
    with pytest.raises(ValueError, match="other settings: epochs was 1, is 2"):
        again(replace(training, epochs=2))
    with pytest.raises(ValueError, match="other settings: base was me/tiny, is me/other"):
        again(base="me/other")
    with pytest.raises(ValueError, match="is not empty and does not hold a training"):
        again(folder="")
    with pytest.raises(ValueError, match=r"goes by '', which sasa\.load does not know"):
        again(base=None, folder="new")
    write_pairs(tmp_path / "pairs.jsonl.gz", question="\n\nHuman: Any?\n\nAssistant:")
    with pytest.raises(ValueError, match="other settings: texts was"):
        again()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "ppo"}, "method must be one of sft, dpo, got 'ppo'"),
        ({"epochs": 0}, "epochs must be > 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be > 0"),
        ({"lora": -1}, "lora must be >= 0, got -1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"beta": 0.0}, "beta must be > 0"),
    ],
)
def test_bad_settings(change, message, corpus):
    with pytest.raises(ValueError, match=message):
        Training(corpus, **change)


def test_pairs_that_are_all_too_long(corpus, fresh, tmp_path):
    with pytest.raises(ValueError, match="no pair can be trained on: 12 longer than 16 tokens"):
        train_backtracking(
            *fresh, Training(corpus, max_length=16), tmp_path / "out", base="me/tiny"
        )


def test_the_command(corpus, tiny_folder, tmp_path):
    source = f"hh-rlhf::path={corpus.path}"
    out = tmp_path / "out"
    command(
        "train",
        "backtracking",
        source,
        "-m",
        tiny_folder,
        "-o",
        out,
        "--lora",
        2,
        "--max-length",
        200,
    )
    written = command(
        "generate", "hello", "-m", out, "--boundary", "none", "--backtrack", "--reset-token", RESET,
        "--reset-bias", "1e4", "--max-resets", 1, "--chat", "-n", 3, "--json",
    )  # fmt: skip
    assert "NaN" not in written.stdout
    (completion,) = json.loads(written.stdout)["completions"]
    assert [a["reason"] for a in completion["attempts"]] == ["reset"]
    train = ["train", "backtracking", source, "--method", "dpo", "--lora", 2, "--max-length", 200]
    command(*train, "-m", out, "-o", tmp_path / "dpo")
    assert (
        json.loads((tmp_path / "dpo" / "training.json").read_text())["training"]["method"] == "dpo"
    )
    bad = command(*train, "-m", out, "-o", out, status=1)
    assert "other settings" in bad.stderr
    bad = command(
        "train", "backtracking", f"hh-rlhf::path={tmp_path / 'no.jsonl'}", "-o", out, status=1
    )
    assert "no file at" in bad.stderr
    bad = command(
        "generate",
        "x",
        "-m",
        tiny_folder,
        "-b",
        "none",
        "--backtrack",
        "--reset-token",
        RESET,
        status=1,
    )
    assert "was not trained to write it" in bad.stderr


def test_on_an_old_python_it_says_what_trl_needs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for version, said in (((3, 10), True), ((3, 11), False)):
        monkeypatch.setattr("sys.version_info", version)
        with pytest.raises(ImportError, match="training needs trl") as caught:
            check_packages("trl")
        assert ("Python 3.11" in str(caught.value)) == said
