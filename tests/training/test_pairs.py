"""Preference data in every form, and what is left out of it."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from helpers import QUESTION

from sasa.data.dialogues import turns
from sasa.fitting import Corpus
from sasa.training import Training
from sasa.training.backtracking import add_reset_token, examples

trl = pytest.importorskip("trl", reason="pip install 'sasa-decoding[train]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")


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
