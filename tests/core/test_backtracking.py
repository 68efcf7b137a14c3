"""Going back, against the definition."""

from dataclasses import replace

import pytest
import reference
import tiny
import torch
from helpers import PROMPTS, families, generate

import sasa
from sasa import Backtracking, SASADecoder

SETTINGS = Backtracking(threshold=0.6, safe_below=0.5, boost=1.0, boost_tokens=3)
NEW = 12


def compare(model, boundary, beta, settings, prompts=PROMPTS):
    """The decoder's rows, in one batch, against the definition; how many attempts were thrown away."""
    decoder = SASADecoder(boundary, beta, top_k=6, backtrack=settings)
    out = generate(model, prompts, decoder, new=NEW, return_dict_in_generate=True)
    width = max(map(len, prompts))
    thrown = 0
    for row, (prompt, history) in enumerate(zip(prompts, out.histories, strict=True)):
        want, attempts, exhausted = reference.backtrack(
            model, boundary, beta, prompt, NEW, [tiny.EOS], settings, 6
        )
        assert history.tokens == want
        assert [(list(a.tokens), a.kept) for a in history.attempts] == attempts
        assert history.exhausted == exhausted
        assert all(
            a.p_unsafe >= settings.threshold and a.reason == "threshold" for a in history.attempts
        )
        assert out.sequences[row, width:][: len(want)].tolist() == want
        assert (
            history.spent == len(want) + sum(len(a.tokens) - a.kept for a in history.attempts)
            or exhausted
        )
        margin = boundary.margin(
            reference.embedding(model, [*prompt, *want], boundary, len(prompt))
        )
        if want[-1] != tiny.EOS:
            torch.testing.assert_close(
                out.margins[len(want) - 1][row, 0], margin, atol=1e-3, rtol=1e-3
            )
        thrown += len(attempts)
    return thrown


@pytest.mark.parametrize("family", families(quick=["llama", "bloom"]))
def test_a_text_that_went_back_is_read_as_if_it_had_never_been_longer(family):
    """Rows of other lengths beside it, texts beyond sliding windows of 6, steering before and more of it afterwards."""
    model = tiny.model(family)
    found = 0
    for seed, sign in [(0, 1), (1, 1), (0, -1)]:
        boundary = tiny.boundary(model, seed=seed)
        boundary = replace(boundary, weight=sign * boundary.weight)
        here = float(boundary.margin(reference.embedding(model, PROMPTS[0], boundary)))
        found += compare(
            model, replace(boundary, bias=boundary.bias - here), 0.5, SETTINGS
        )  # right at the boundary
    assert found


@pytest.mark.parametrize(
    "spec",
    [
        {"pooling": "mean"},
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in ({"pooling": "mean", "span": "response"}, {"pooling": "ema"}, {"layer": 1})
        ),
    ],
    ids=str,
)
def test_running_sums_go_back_with_the_text(spec):
    model = tiny.model("llama")
    settings = replace(SETTINGS, threshold=0.55, safe_below=0.5)
    assert sum(
        compare(model, tiny.boundary(model, seed=seed, **spec), 1.0, settings) for seed in range(4)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"max_resets": 1},
        *(
            pytest.param(change, marks=pytest.mark.slow)
            for change in (
                {"to_start": True},
                {"max_tokens": 14},
                {"boost_tokens": 0},
                {"safe_below": 0.05},
            )
        ),
    ],
    ids=str,
)
def test_settings(change):
    model = tiny.model("llama")
    settings = replace(SETTINGS, **change)
    assert sum(compare(model, tiny.boundary(model, seed=seed), 0.0, settings) for seed in range(4))


@pytest.mark.parametrize("beta", [0.0, 1.5])
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_what_never_goes_back_is_sasa_token_for_token(family, beta):
    model = tiny.model(family)
    boundary = tiny.boundary(model)
    alone = generate(model, PROMPTS, SASADecoder(boundary, beta), seed=4, new=NEW)
    never = Backtracking(threshold=1 - 1e-12)
    watched = generate(
        model, PROMPTS, SASADecoder(boundary, beta, backtrack=never), seed=4, new=NEW
    )
    assert torch.equal(alone, watched)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_the_same_histories_as_with_every_candidate_read(family, monkeypatch):
    model = tiny.model(family)
    found = 0
    for seed in range(3):
        decoder = SASADecoder(tiny.boundary(model, seed=seed), 1.0, top_k=20, backtrack=SETTINGS)
        settings = dict(seed=seed, new=NEW, return_dict_in_generate=True)
        lazily = generate(model, PROMPTS, decoder, **settings)
        with monkeypatch.context() as patch:
            patch.setattr("sasa.decoding.passes.share", lambda *_: 10_000)
            wholly = generate(model, PROMPTS, decoder, **settings)
        assert lazily.candidates_read.sum() < wholly.candidates_read.sum()
        for one, other in zip(lazily.histories, wholly.histories, strict=True):
            assert one.tokens == other.tokens
            assert [(a.tokens, a.kept) for a in one.attempts] == [
                (a.tokens, a.kept) for a in other.attempts
            ]
            found += len(one.attempts)
    assert found


def test_sampled_completions_and_their_histories(model, tokenizer):
    boundary = tiny.boundary(model, seed=2)
    settings = dict(max_new_tokens=NEW, num_return_sequences=6, seed=0, top_k=8)
    plain = sasa.generate(model, tokenizer, "abcd", boundary, 0.0, **settings)
    assert all(c.attempts == () and c.spent == len(c.tokens) for c in plain)
    found = sasa.generate(model, tokenizer, "abcd", boundary, 0.0, backtrack=SETTINGS, **settings)
    assert found == sasa.generate(
        model, tokenizer, "abcd", boundary, 0.0, backtrack=SETTINGS, **settings
    )
    assert any(c.attempts for c in found)
    for c in found:
        assert c.finish_reason in ("length", "stop", "unsafe")
        if c.finish_reason != "unsafe":
            assert c.spent == len(c.tokens) + sum(len(a.tokens) - a.kept for a in c.attempts)
            unsafe = torch.sigmoid(-boundary.log_odds(torch.tensor(c.margin)))
            assert unsafe < SETTINGS.threshold or c.finish_reason == "stop"
        texts = boundary.score(model, tokenizer, ["abcd" + c.text])
        if c.finish_reason == "length" and "�" not in c.text:
            assert c.margin == pytest.approx(float(texts[0]), abs=1e-3)


def test_a_spent_budget_is_marked_and_refused(model, tokenizer):
    boundary = replace(tiny.boundary(model), bias=-1e3)  # nothing is safe
    settings = Backtracking(max_resets=2)
    options = dict(max_new_tokens=5, do_sample=False, backtrack=settings)
    (found,) = sasa.generate(model, tokenizer, "abcd", boundary, 0.0, **options)
    assert found.finish_reason == "unsafe"
    assert [a.kept for a in found.attempts] == [0, 0]
    assert found.spent == 3  # a token, and two others in its place
    assert len({*(a.tokens for a in found.attempts)}) == 2
    (found,) = sasa.generate(
        model, tokenizer, "abcd", boundary, 0.0, refusal="I would rather not.", **options
    )
    assert found.text == "I would rather not."
    assert found.finish_reason == "unsafe"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.0}, r"threshold is a probability in \(0, 1\), got 0.0"),
        ({"threshold": 1.0}, "threshold is a probability"),
        ({"threshold": None}, r"threshold, or a model's \[RESET\] token"),
        ({"safe_below": 0.999}, r"safe_below must be in \(0, threshold\]"),
        ({"max_resets": 0}, "max_resets must be >= 1, got 0"),
        ({"max_tokens": 0}, "max_tokens must be >= 1, got 0"),
        ({"boost": -1.0}, "boost and boost_tokens must be >= 0"),
        ({"reset_bias": float("nan")}, "reset_bias must be finite"),
        ({"reset_bias": 1.0}, "give reset_token_id, too"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        Backtracking(**change)


def test_what_backtracking_cannot_be_used_with(model, tokenizer):
    boundary = tiny.boundary(model)
    with pytest.raises(ValueError, match="needs a boundary"):
        sasa.generate(model, tokenizer, "abcd", None, backtrack=SETTINGS)
    with pytest.raises(ValueError, match="give backtrack"):
        sasa.generate(model, tokenizer, "abcd", boundary, refusal="no")
    own = Backtracking(threshold=None, reset_token_id=77)
    with pytest.raises(ValueError, match="backtracking by a threshold says"):
        sasa.generate(model, tokenizer, "abcd", None, backtrack=own, refusal="no")
    decoder = SASADecoder(boundary, backtrack=SETTINGS)
    for option in (
        {"guidance_scale": 1.5},
        {"return_dict_in_generate": True, "output_scores": True},
    ):
        with pytest.raises(ValueError, match="cannot be used with backtracking and"):
            generate(model, PROMPTS, decoder, **option)
    with pytest.raises(ValueError, match="compiled"):
        generate(model, PROMPTS, SASADecoder(boundary, backtrack=SETTINGS, compiled=True))
