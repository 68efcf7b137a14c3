"""What steering takes from the words of a text, against the definition in reference.py."""

from dataclasses import replace

import pytest
import reference
import tiny
import torch
from helpers import families

from sasa.core.values import Steering
from sasa.decoding.cost import read, taxes

TEXTS = ["abc", ("a prompt", " and what follows"), "a somewhat longer text", ("xyz", "q")]


def boundaries(model):
    several = [
        tiny.boundary(model, 1),
        tiny.boundary(model, 2, layer=1, pooling="mean", span="response"),
    ]
    return [
        (replace(one, scale=0.4), weight) for one, weight in zip(several, (1.0, 0.5), strict=True)
    ]


@pytest.mark.parametrize("family", families(["llama", "gemma3", "bloom"], quick=["llama"]))
def test_taxes_are_those_of_the_reference(family, tokenizer):
    """Batched, each text from its own first place on, for any strength, value and prior from one reading."""
    model = tiny.model(family)
    several = boundaries(model)
    reading = read(model, tokenizer, TEXTS, several, top_k=7, batch_size=3)
    for beta, value, prior in (
        (1.5, "log_sigmoid", 0.05),
        (0.7, "log_sigmoid", 0.5),
        (0.3, "raw", 0.05),
    ):
        got = taxes(reading, Steering.of(several, beta, value, prior))
        for number, text in enumerate(TEXTS):
            prompt, response = ("", text) if isinstance(text, str) else text
            ids = [*tokenizer(prompt)["input_ids"], *tokenizer(response)["input_ids"]]
            first = len(tokenizer(prompt)["input_ids"]) or 1
            want = reference.taxes(
                model, several, beta, ids, first, [tiny.EOS], 7, value=value, prior=prior
            )
            mine = reading.text == number
            assert reading.place[mine].tolist() == list(range(len(ids) - first))
            torch.testing.assert_close(got[mine], torch.tensor(want), atol=1e-3, rtol=1e-3)


def test_no_strength_takes_nothing(model, tokenizer):
    boundary = tiny.boundary(model)
    reading = read(model, tokenizer, TEXTS, boundary, top_k=5)
    assert taxes(reading, Steering.of(boundary, 0.0)).abs().max() < 1e-5
    sums, tokens = reading.per_text(taxes(reading, Steering.of(boundary, 2.0)), len(TEXTS))
    assert tokens.tolist() == [2, 17, 21, 1]
    assert sums.shape == (4,)


def test_one_boundary_of_several_and_some_places(model, tokenizer):
    several = boundaries(model)
    both, alone = (
        read(model, tokenizer, TEXTS, given, top_k=5) for given in (several, several[1][0])
    )
    torch.testing.assert_close(both.by(1).margins, alone.margins)
    first = both.at(both.place == 0)
    assert len(first.text) == len(TEXTS)
    assert first.margins.shape == (4, 5, 2)


def test_of_long_texts_the_beginning_is_read(model, tokenizer):
    boundary = tiny.boundary(model)
    whole, cut = (read(model, tokenizer, TEXTS, boundary, top_k=5, max_tokens=n) for n in (64, 3))
    for number in range(len(TEXTS)):
        mine, here = (whole.text == number) & (whole.place < 3), cut.text == number
        torch.testing.assert_close(cut.margins[here], whole.margins[mine])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(texts=[]), "texts is empty"),
        (dict(texts=["fine", "a"]), "text 1 has one token"),
        (dict(top_k=0), "top_k must be >= 1, got 0"),
        (dict(max_tokens=0), "max_tokens must be >= 1, got 0"),
        (dict(boundary="other"), "does not fit the model"),
    ],
)
def test_bad_input(model, tokenizer, settings, message):
    boundary = (
        tiny.boundary(tiny.model("gpt2"))
        if settings.pop("boundary", None)
        else tiny.boundary(model)
    )
    with pytest.raises(ValueError, match=message):
        read(model, tokenizer, settings.pop("texts", TEXTS), boundary, **settings)
