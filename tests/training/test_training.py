"""Teaching a model to go back: the examples as the paper has them, a training that can be stopped, and what it leaves."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from dataclasses import replace

import pytest
import tiny
import torch
from helpers import QUESTION, write_pairs
from safetensors.torch import load_file
from shell import sasa as command

import sasa
from sasa.core.backtracking import RESET, Backtracking, reset_token_id
from sasa.data.dialogues import turns
from sasa.fitting import Corpus
from sasa.training import Training, train_backtracking
from sasa.training.backtracking import add_reset_token, encode_pair, examples
from sasa.training.folder import check_packages, training_folder

trl = pytest.importorskip("trl", reason="pip install 'sasa-decoding[train]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")


@pytest.fixture
def corpus(tmp_path):
    return write_pairs(tmp_path / "pairs.jsonl.gz")


@pytest.fixture
def fresh():
    """A model and a tokenizer that a test may change."""
    return tiny.model("llama"), tiny.tokenizer()


def test_dialogues_become_turns():
    assert turns(QUESTION) == [
        {"role": "user", "content": "Say a word."},
        {"role": "assistant", "content": "Which?"},
        {"role": "user", "content": "Any."},
    ]
    assert turns("Be kind.\n\nHuman: Why?\n\nAssistant:")[0] == {
        "role": "system",
        "content": "Be kind.",
    }
    assert turns("Question: why?\n\nAssistant:") == []


def test_pairs_that_teach_nothing_are_counted(tmp_path):
    rows = [
        {"chosen": QUESTION + " a", "rejected": QUESTION + " b"},
        {"chosen": QUESTION + " ", "rejected": QUESTION + " b"},
        {"chosen": QUESTION + " a", "rejected": QUESTION},
        {"chosen": QUESTION + " a", "rejected": QUESTION + " a"},
        {"chosen": QUESTION + " a", "rejected": QUESTION.replace("word", "thing") + " b"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    skipped: Counter[str] = Counter()
    (pair,) = Corpus("hh-rlhf", path=str(file)).pairs(skipped)
    assert (pair.safe, pair.unsafe) == (" a", " b")
    assert skipped == {
        "with an empty reply": 2,
        "with the same reply twice": 1,
        "with two prompts": 1,
    }
    with pytest.raises(ValueError, match="has no pairs"):
        next(Corpus("rtp").pairs(Counter()))


def message(role, content):
    return {"role": role, "content": content}


HELLO, GO = message("assistant", "Hello"), message("assistant", "Go")
HI = message("user", "hi")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "chosen": "Hello", "rejected": "Go"},
        {"prompt": "hi", "chosen": [HI, HELLO], "rejected": [HI, GO]},
        {"prompt": [HI], "chosen": [HELLO], "rejected": [GO]},
        {"prompt": [HI], "chosen": [message("user", "hi "), HELLO], "rejected": [HI, GO]},
        {
            "prompt": "\n\nHuman: hi\n\nAssistant:",
            "chosen": "\n\nHuman: hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: hi\n\nAssistant: Go",
        },
        {
            "chosen": "\r\n\r\nHuman: hi\r\n\r\nAssistant: Hello",
            "rejected": "\r\n\r\nHuman: hi\r\n\r\nAssistant: Go",
        },
        {
            "prompt": "Human: hi\n\nAssistant:",
            "chosen": "\n\nHuman: hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: hi\n\nAssistant: Go",
        },
        {"chosen": [message("Human", "hi"), message("Assistant", "Hello")], "rejected": [HI, GO]},
        {"prompt": [HI], "chosen": "Hello", "rejected": "Go"},
        {"chosen": [HI, HELLO], "rejected": [HI, GO]},
        {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " Hello", "rejected": " Go"},
        {"prompt": "Human: hi", "chosen": "Assistant: Hello", "rejected": "Assistant: Go"},
        {
            "chosen": "\n\nHuman: hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: hi\n\nAssistant: Go",
        },
        {
            "conversation_id": 7,
            "chosen": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello"}],
            "rejected": [message("user", [{"type": "text", "text": "hi"}]), GO],
        },
    ],
)
def test_pairs_in_every_form_that_people_have_them_in(tmp_path, row):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row))
    skipped: Counter[str] = Counter()
    for source in (Corpus("hh-rlhf", path=str(file)), Corpus(str(file))):
        (pair,) = source.pairs(skipped)
        assert list(pair.turns) == [HI]
        assert (pair.safe.strip(), pair.unsafe.strip()) == ("Hello", "Go")
        assert (pair.prompt, pair.safe) in [("hi", "Hello"), ("Human: hi\n\nAssistant:", " Hello")]
    assert [(e.text[1].strip(), e.score) for e in Corpus("hh-rlhf", path=str(file)).examples()] == [
        ("Hello", 0.0),
        ("Go", 1.0),
    ]


def test_a_reply_that_begins_as_the_prompt_does_keeps_its_letters(tmp_path):
    rows = [
        {"prompt": "Hi", "chosen": "Hi! How are you?", "rejected": "Hi there"},
        {"prompt": "No", "chosen": "Now", "rejected": "Not"},
    ]
    long = "Please tell me how I can whittle a spoon."
    rows.append({"prompt": long, "chosen": f"{long} Slowly.", "rejected": f"{long} Stab."})
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = [(pair.safe, pair.unsafe) for pair in Corpus(str(file)).pairs(Counter())]
    assert found == [("Hi! How are you?", "Hi there"), ("Now", "Not"), (" Slowly.", " Stab.")]


def test_replies_without_a_prompt_are_counted_and_its_column_can_be_named(tmp_path):
    rows = [
        {"question": "hi", "chosen": "Hello", "rejected": "Go"},
        {"question": "hi", "chosen": [HELLO], "rejected": [GO]},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    skipped: Counter[str] = Counter()
    assert not list(Corpus(str(file)).pairs(skipped))
    assert skipped == {"without a prompt": 2}
    assert [list(pair.turns) for pair in Corpus(str(file), prompt="question").pairs(skipped)] == [
        [HI],
        [HI],
    ]
    with pytest.raises(ValueError, match="no column 'asked'"):
        list(Corpus(str(file), prompt="asked").pairs(skipped))


def test_a_system_message_and_earlier_turns_stay(tmp_path):
    turns = [
        message("system", "Be kind."),
        HI,
        message("assistant", "Yes?"),
        message("user", "Why?"),
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"chosen": [*turns, HELLO], "rejected": [*turns, GO]}))
    (pair,) = Corpus(str(file)).pairs(Counter())
    assert list(pair.turns) == turns
    assert pair.prompt == "Be kind.\n\nHuman: hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"chosen": 1, "rejected": "a"},
            "row 0: .*chosen must be text or a list of messages, got int",
        ),
        (
            {"chosen": [{"text": "a"}], "rejected": "a"},
            "chosen is a list, and not each .*it has text",
        ),
        (
            {"chosen": [HI, message("narrator", "So")], "rejected": "a"},
            "a message's role is 'narrator'",
        ),
        (
            {"prompt": 3, "chosen": "a", "rejected": "b"},
            "the prompt must be text or a list of messages, got int",
        ),
    ],
)
def test_pairs_in_no_form(tmp_path, row, message):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        list(Corpus(str(file)).pairs(Counter()))
    file.write_text(json.dumps({"text": "a", "chosen": "b"}))
    with pytest.raises(
        ValueError, match="has no pairs: it has no column rejected, but text, chosen"
    ):
        list(Corpus(str(file)).pairs(Counter()))


def test_dialogues_that_a_strict_template_refuses_are_left_out(tmp_path, fresh):
    model, tokenizer = fresh
    tokenizer.chat_template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    )
    twice = QUESTION.replace("\n\nAssistant: Which?", "")
    rows = [{"chosen": q + " calm", "rejected": q + " XQZ ZZX"} for q in (QUESTION, twice)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    skipped: Counter[str] = Counter()
    found = examples(
        Training(Corpus(str(file)), max_length=200),
        tokenizer,
        add_reset_token(model, tokenizer),
        skipped,
    )
    assert len(found) == 2
    assert skipped == {"that the chat template refuses (roles must alternate)": 1}


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


def test_new_tokens_are_drawn_where_the_others_are():
    for tied in (False, True):
        model, tokenizer = tiny.model("llama", tie_word_embeddings=tied), tiny.tokenizer()
        old = model.get_output_embeddings().weight.detach().clone()
        reset = add_reset_token(model, tokenizer)
        assert reset == tiny.VOCABULARY == add_reset_token(model, tokenizer)
        new = model.get_output_embeddings().weight.detach()
        assert torch.equal(new[:-1], old)
        assert (
            0.5
            < float((new[-1] - old.mean(0)).norm() / (old - old.mean(0)).norm(dim=1).mean())
            < 1.5
        )
        again = tiny.model("llama", tie_word_embeddings=tied)
        add_reset_token(again, tiny.tokenizer())
        for one, other in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, other)


def test_rows_that_fill_up_a_vocabulary_are_drawn_anew():
    model, tokenizer = tiny.model("llama", vocab_size=272), tiny.tokenizer()
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny.VOCABULARY :] = 0.5
    reset = add_reset_token(model, tokenizer)
    table = model.get_input_embeddings().weight.detach()
    assert len(table) == 272
    assert table[reset].std() > 0.5 * table[:reset].std()
    assert (table[reset + 1 :] == 0.5).all()


@pytest.mark.slow
def test_an_adapter_gives_what_was_trained(corpus, fresh, tmp_path):
    """Loaded again, the merged weights write what the trained model wrote."""
    model, tokenizer = fresh
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    training = Training(corpus, lora=4, epochs=2, learning_rate=1e-2, max_length=200)
    out = train_backtracking(
        model, tokenizer, training, tmp_path / "out", base=str(tmp_path / "base")
    )
    loaded, words = sasa.load(str(out), device="cpu")
    ids = torch.tensor([words("Any 0.").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(ids).logits, model.eval()(ids).logits, atol=1e-3, rtol=1e-3
        )
    # a second training on top of the first
    again = Training(corpus, "dpo", lora=4, epochs=1, max_length=200)
    on_top = train_backtracking(loaded, words, again, tmp_path / "dpo", base=str(out))
    assert sasa.load(str(on_top), device="cpu")[0].config.vocab_size == tiny.VOCABULARY + 1


def test_an_adapter_without_a_tokenizer_has_its_models(tmp_path):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    tiny.model("llama").save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    kinds = {
        "lora": LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False
        ),
        "soft": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    }
    for name, config in kinds.items():
        base = sasa.load(tmp_path / "base", device="cpu")[0]
        get_peft_model(base, config).save_pretrained(tmp_path / name)
    model, tokenizer = sasa.load(tmp_path / "lora", device="cpu")
    assert tokenizer("abc").input_ids == tiny.tokenizer()("abc").input_ids
    ids = torch.tensor([[3, 4]])
    assert not torch.allclose(model(ids).logits, tiny.model("llama")(ids).logits)
    with pytest.raises(
        ValueError, match="of the kind PROMPT_TUNING: it puts virtual tokens before a text"
    ):
        sasa.load(tmp_path / "soft", device="cpu")
    tiny.model("llama", hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"does not go with .*base"):
        sasa.load(tmp_path / "lora", device="cpu")
    (tmp_path / "lora" / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"adapter_config\.json cannot be read"):
        sasa.load(tmp_path / "lora", device="cpu")
    for change in ({"peft_type": ["LORA"]}, {"base_model_name_or_path": 5}, {"r": "x"}):
        tiny.model("llama").save_pretrained(tmp_path / "base")
        settings = {
            "peft_type": "LORA",
            "base_model_name_or_path": str(tmp_path / "base"),
            "task_type": "CAUSAL_LM",
        } | change
        (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match="adapter"):
            sasa.load(tmp_path / "lora", device="cpu")


def test_weights_that_are_damaged(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="is damaged, or no model that can be read"):
        sasa.load(tmp_path, device="cpu")


def test_an_adapter_of_other_layers_is_no_adapter(tmp_path):
    from peft import LoraConfig, get_peft_model

    tiny.model("llama").save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    base = sasa.load(tmp_path / "base", device="cpu")[0]
    get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    ).save_pretrained(tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["k_proj"]}))
    with pytest.raises(ValueError, match="missing adapter keys"):
        sasa.load(tmp_path / "lora", device="cpu")


def test_adapters_that_cannot_be_read(tmp_path, monkeypatch):
    settings = tmp_path / "adapter_config.json"
    settings.write_text("{}")
    with pytest.raises(ValueError, match="does not say what model it was trained on"):
        sasa.load(str(tmp_path), device="cpu")
    settings.write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    with pytest.raises(ValueError, match="names itself"):
        sasa.load(f"~/{tmp_path.name}", device="cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="reading it needs peft"):
        sasa.load(str(tmp_path), device="cpu")
    with pytest.raises(ImportError, match="training needs trl and peft"):
        check_packages("trl", "peft")


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
