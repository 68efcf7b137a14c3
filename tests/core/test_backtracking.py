"""Going back: against the definition, and what a user gets of it."""

import itertools
from dataclasses import replace

import pytest
import reference
import tiny
import torch
from helpers import PROMPTS, families, generate
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

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


class Streamer(BaseStreamer):
    def __init__(self):
        self.parts, self.ended = [], False

    def put(self, value):
        self.parts.append(value.flatten().tolist())

    def end(self):
        self.ended = True


def test_a_stream_gets_what_is_never_taken_back(model, tokenizer):
    went_back = 0
    for seed in range(6):
        streamer = Streamer()
        boundary = tiny.boundary(model, seed=seed)
        options = dict(max_new_tokens=NEW, seed=seed, backtrack=SETTINGS, streamer=streamer)
        (found,) = sasa.generate(model, tokenizer, "abcd", boundary, 0.0, **options)
        prompt, *parts = streamer.parts
        assert [token for part in parts for token in part] == found.tokens
        assert streamer.ended
        assert len(prompt) == 4
        went_back += len(found.attempts)
        if all(a.kept for a in found.attempts) and found.attempts:
            assert len(parts) > 1
    assert went_back


def test_a_refusal_is_streamed_behind_what_is_safe(model, tokenizer):
    behind = alone = 0
    for seed in range(30):
        streamer, boundary = Streamer(), tiny.boundary(model, seed=seed % 6)
        watch = replace(SETTINGS, max_resets=1)
        (found,) = sasa.generate(
            model, tokenizer, "abcd", boundary, 0.0, max_new_tokens=NEW, seed=seed, backtrack=watch, refusal="I stop.",
            streamer=streamer,
        )  # fmt: skip
        got = tokenizer.decode(
            [token for part in streamer.parts[1:] for token in part], skip_special_tokens=True
        )
        assert streamer.ended
        assert got == found.text
        if found.finish_reason == "unsafe":
            assert found.text == "I stop." or found.text.endswith("\nI stop.")
            behind, alone = behind + (found.text != "I stop."), alone + (found.text == "I stop.")
    assert behind
    assert alone


class Seen(LogitsProcessor):
    """Takes down the texts that it is given; a token that stands in the text already becomes impossible."""

    def __init__(self):
        self.texts = []

    def __call__(self, ids, scores):
        self.texts.append(ids.tolist())
        return scores.scatter(1, ids, -torch.inf)


def test_processors_see_the_prompt_and_what_is_delivered(model):
    """In a batch as alone, though rows have gone back by different lengths; nothing that was thrown away is among it."""
    went_back = 0
    for seed in range(6):
        boundary = tiny.boundary(model, seed=seed)
        decoder = SASADecoder(boundary, 0.0, top_k=8, backtrack=SETTINGS)
        options = dict(new=NEW, return_dict_in_generate=True, do_sample=False)
        prompts = [prompt[:4] for prompt in (PROMPTS[0], PROMPTS[1][::-1], PROMPTS[0][1:])]
        prompts = [prompt for prompt in prompts if len(prompt) == 4]
        together = generate(model, prompts, decoder, logits_processor=[Seen()], **options).histories
        for prompt, history in zip(prompts, together, strict=True):
            seen = Seen()
            (alone,) = generate(
                model, [prompt], decoder, logits_processor=[seen], **options
            ).histories
            assert (alone.tokens, [a.tokens for a in alone.attempts]) == (
                history.tokens,
                [a.tokens for a in history.attempts],
            )
            assert all(text[0][:4] == prompt for text in seen.texts)
            assert len(set(history.tokens) - {tiny.EOS}) == len(
                [t for t in history.tokens if t != tiny.EOS]
            )
            lengths = [len(text[0]) for text in seen.texts]
            kept = [len(prompt) + attempt.kept for attempt in history.attempts]
            backs = [b for a, b in itertools.pairwise(lengths) if b <= a]
            assert backs == kept
            went_back += len(kept)
    assert went_back


def test_a_grammar_holds_when_a_response_goes_back(model, tokenizer):
    """Which token may come depends on how many there are: even and odd ones take turns, by another rule for each prompt."""

    def allowed(number, ids):
        turn = (len(ids) + number) % 2
        return list(range(turn, 256, 2))

    prompts, attempts = ["abcd", "bcde", "ab"], 0
    for seed in range(4):
        found = sasa.generate(
            model, tokenizer, prompts, tiny.boundary(model, seed=seed), 0.0, max_new_tokens=NEW, seed=seed, backtrack=SETTINGS,
            prefix_allowed_tokens_fn=allowed, min_new_tokens=NEW,
        )  # fmt: skip
        for number, (prompt, (one,)) in enumerate(zip(prompts, found, strict=True)):
            assert [t % 2 for t in one.tokens] == [
                (len(prompt) + i + number) % 2 for i in range(len(one.tokens))
            ]
            attempts += len(one.attempts)
            assert one.finish_reason == "unsafe" or len(one.tokens) == NEW
    assert attempts


def test_a_constraint_is_asked_about_delivered_texts_alone(model, tokenizer):
    """Rows that have gone back are shorter than others: what fills them up is nothing to ask about."""
    asked = []

    def allowed(number, ids):
        asked.append((number, ids.tolist()))
        return list(range(97, 123))

    prompts, went_back = ["abcd", "bcde", "cdef"], 0
    for seed in range(4):
        found = sasa.generate(
            model, tokenizer, prompts, tiny.boundary(model, seed=seed), 0.0, max_new_tokens=NEW, seed=seed, backtrack=SETTINGS,
            prefix_allowed_tokens_fn=allowed,
        )  # fmt: skip
        went_back += sum(len(one.attempts) for (one,) in found)
    assert went_back
    for number, ids in asked:
        assert ids[:4] == tokenizer(prompts[number]).input_ids
        assert all(97 <= token < 123 for token in ids[4:])


def test_a_criterion_ends_what_is_delivered(model, tokenizer):
    """A stop string in a part that was thrown away stops nothing; one on the last token is a stop."""
    for seed in range(6):
        settings = dict(beta=0.0, max_new_tokens=NEW, seed=seed, backtrack=SETTINGS)
        boundary = tiny.boundary(model, seed=seed)
        (free,) = sasa.generate(model, tokenizer, "abcd", boundary, **settings)
        kept = len(free.tokens) - (free.tokens[-1] == tiny.EOS)
        (stopped,) = sasa.generate(
            model,
            tokenizer,
            "abcd",
            boundary,
            **settings,
            stopping_criteria=[Reached(["abcd", free.tokens[:kept]], tokenizer)],
        )
        assert (stopped.tokens, stopped.attempts) == (free.tokens[:kept], free.attempts)
        assert stopped.finish_reason == ("unsafe" if free.finish_reason == "unsafe" else "stop")


class Reached(StoppingCriteria):
    def __init__(self, text, tokenizer):
        self.text = [*tokenizer(text[0]).input_ids, *text[1]]

    def __call__(self, ids, scores, **_):
        return torch.tensor([row == self.text for row in ids.tolist()])


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
