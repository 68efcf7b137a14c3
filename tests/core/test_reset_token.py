"""A model that goes back by a token of its own."""

from dataclasses import replace

import pytest
import tiny
import torch
from helpers import PROMPTS, generate

import sasa
from sasa import Backtracking, SASADecoder

SETTINGS = Backtracking(threshold=0.6, safe_below=0.5, boost=1.0, boost_tokens=3)
NEW = 12


def test_a_models_own_reset(model, tokenizer):
    """A token that the bias makes likely stands in for [RESET]: what is before it is thrown away, and stays in the context."""
    boundary = tiny.boundary(model)
    reset = 77
    settings = Backtracking(threshold=None, reset_token_id=reset, max_resets=2)
    options = dict(max_new_tokens=NEW, do_sample=False)
    (never,) = sasa.generate(
        model,
        tokenizer,
        "abcd",
        boundary,
        0.0,
        backtrack=replace(settings, reset_bias=-1e4),
        **options,
    )
    assert not never.attempts
    (always,) = sasa.generate(
        model,
        tokenizer,
        "abcd",
        boundary,
        0.0,
        backtrack=replace(settings, reset_bias=1e4),
        **options,
    )
    assert [(a.tokens, a.reason) for a in always.attempts] == [((), "reset"), ((), "reset")]
    assert len(always.tokens) == NEW
    assert reset not in always.tokens
    assert always.spent == NEW + 2
    prompt = [*tokenizer("abcd").input_ids, reset, reset]
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        suppress_tokens=[reset],
        max_new_tokens=NEW,
        do_sample=False,
        top_k=0,
    )
    assert out[0, len(prompt) :].tolist()[: len(always.tokens)] == always.tokens


@pytest.mark.parametrize("spec", [{"pooling": "mean"}, {"pooling": "ema", "half_life": 2}], ids=str)
@pytest.mark.parametrize("span", ["text", "response"])
def test_what_the_model_threw_away_does_not_count(model, span, spec):
    """It stays in the context, but embeddings are of the prompt and of what is delivered; nor has [RESET] a margin of its own."""
    boundary = tiny.boundary(model, span=span, **spec)
    reset, prompts = 77, PROMPTS[:2]
    watch = Backtracking(threshold=1 - 1e-9, reset_token_id=reset, reset_bias=6.0, max_resets=2)
    found = 0
    for seed in range(4):
        decoder = SASADecoder(boundary, 0.0, top_k=8, backtrack=watch)
        out = generate(model, prompts, decoder, seed=seed, new=NEW, return_dict_in_generate=True)
        for row, (prompt, history) in enumerate(zip(prompts, out.histories, strict=True)):
            dropped = [token for a in history.attempts for token in (*a.tokens, reset)]
            found += len(dropped)
            ids = torch.tensor([[*prompt, *dropped, *history.tokens]])
            states = model(ids, output_hidden_states=True).hidden_states[-1][0]
            kept = [states[: len(prompt)]] * (span == "text") + [
                states[len(prompt) + len(dropped) :]
            ]
            states = torch.cat(kept)
            weights = boundary.embedding.decay ** torch.arange(len(states) - 1, -1, -1)
            want = boundary.margin((states * weights[:, None]).sum(0) / weights.sum())
            if history.tokens[-1] != tiny.EOS:
                margin = out.margins[len(history.tokens) - 1][row, 0]
                torch.testing.assert_close(margin, want, atol=1e-3, rtol=1e-3)
    assert found


def test_resets_stay_within_the_context_window():
    model, tokenizer = tiny.model("gpt2"), tiny.tokenizer()
    watch = Backtracking(threshold=None, reset_token_id=77, reset_bias=1e4, max_resets=9)
    for length, resets in ((100, 9), (214, 2), (216, 0)):
        (found,) = sasa.generate(
            model, tokenizer, "a" * length, None, max_new_tokens=40, seed=0, backtrack=watch
        )
        assert len(found.attempts) == resets
        assert len(found.tokens) == 40 or found.tokens[-1] == tiny.EOS


@pytest.mark.parametrize("do_sample", [True, False])
def test_a_models_own_reset_needs_no_boundary(model, tokenizer, do_sample):
    watch = Backtracking(threshold=None, reset_token_id=77, reset_bias=4.0)
    options = dict(
        max_new_tokens=NEW,
        num_return_sequences=1 + 2 * do_sample,
        seed=1,
        do_sample=do_sample,
        backtrack=watch,
    )
    alone = sasa.generate(model, tokenizer, ["abcd", "xyz"], None, **options)
    beside = sasa.generate(model, tokenizer, ["abcd", "xyz"], tiny.boundary(model), 0.0, **options)
    assert [[c.tokens for c in row] for row in alone] == [[c.tokens for c in row] for row in beside]
    assert any(c.attempts for row in alone for c in row)
    for row, other in zip(alone, beside, strict=True):
        for c, of in zip(row, other, strict=True):
            assert (c.margin, c.margins) == (None, ())
            assert [(a.tokens, a.reason) for a in c.attempts] == [
                (a.tokens, a.reason) for a in of.attempts
            ]
    with pytest.raises(ValueError, match="there is no boundary to steer by"):
        SASADecoder(None, 1.0, backtrack=watch)
    for without in (None, SETTINGS):
        with pytest.raises(ValueError, match="without a boundary there is only"):
            SASADecoder(None, 0.0, backtrack=without)
