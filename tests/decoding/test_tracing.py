"""Traces: what each step chose among is what the definition says, and tracing changes no token."""

import json

import pytest
import reference
import tiny
import torch
from helpers import TEXT_PROMPTS
from shell import sasa as command

import sasa
from sasa import Backtracking
from sasa.decoding.tracing import Tracer
from sasa.models.embedding import pieces

SETTINGS = dict(max_new_tokens=8, seed=5, top_k=9, top_p=0.95)


def kept(completion):
    return [step.token for step in completion.trace if step.kept]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("several", [False, True])
def test_each_step_is_as_the_definition_has_it(family, several, tokenizer):
    model = tiny.model(family)
    boundary = tiny.boundary(model)
    lines = (
        [(boundary, 1.0), (tiny.boundary(model, 1, pooling="mean"), 0.5)] if several else boundary
    )
    (made,) = sasa.generate(model, tokenizer, TEXT_PROMPTS[0], lines, 2.0, trace=True, **SETTINGS)
    prompt = tokenizer(TEXT_PROMPTS[0])["input_ids"]
    text = list(prompt)
    assert len(made.trace) == len(made.tokens)
    for place, (step, token) in enumerate(zip(made.trace, made.tokens, strict=True)):
        scores = reference.logits(model, text)
        want = reference.reweighted(
            model, lines, 2.0, text, scores, [tiny.EOS], 9, 0.95, len(prompt)
        )
        ids = [one.token for one in step.candidates]
        assert sorted(ids) == want.isfinite().nonzero()[:, 0].tolist()
        assert torch.allclose(
            torch.tensor([one.score for one in step.candidates]), scores[ids], atol=1e-4
        )
        assert torch.allclose(
            torch.tensor([one.p for one in step.candidates]), scores[ids].softmax(0), atol=1e-4
        )
        assert torch.allclose(
            torch.tensor([one.q for one in step.candidates]), want[ids].softmax(0), atol=1e-4
        )
        for one in step.candidates:
            assert one.shift == pytest.approx(2.0 * one.value)
            assert one.shift == pytest.approx(float(want[one.token] - scores[one.token]), abs=1e-3)
        first = lines[0][0] if several else lines
        margins = reference.margins(model, first, text, ids, [tiny.EOS], len(prompt))
        assert torch.allclose(
            torch.tensor([one.margins[0] for one in step.candidates]), margins, atol=1e-3
        )
        assert (step.place, step.token, step.beta, step.kept) == (place, token, 2.0, True)
        assert step.chosen.token == token
        scored = [one.score for one in step.candidates]
        assert scored == sorted(scored, reverse=True), "the likeliest first"
        text.append(token)
    assert made.trace[-1].chosen.margins == pytest.approx(made.margins, abs=1e-4)


@pytest.mark.parametrize(
    "more", [{}, {"beta": 0.0}, {"value": "raw"}, {"do_sample": False}, {"temperature": 0.7}]
)
def test_a_trace_changes_no_token(more, model, tokenizer):
    boundary = tiny.boundary(model)
    settings = (
        SETTINGS | dict(num_return_sequences=1 if "do_sample" in more else 2, batch_size=2) | more
    )
    want = sasa.generate(model, tokenizer, TEXT_PROMPTS, boundary, **settings)
    got = sasa.generate(model, tokenizer, TEXT_PROMPTS, boundary, trace=True, **settings)
    for rows, others in zip(want, got, strict=True):
        for one, other in zip(rows, others, strict=True):
            assert (one.tokens, one.text, one.trace) == (other.tokens, other.text, ())
            assert kept(other) == other.tokens
            assert all(len(step.candidates) <= 9 for step in other.trace)
            if more.get("beta") == 0:
                assert all(
                    c.shift == 0 and c.p == c.q for step in other.trace for c in step.candidates
                )
    prompt = tokenizer(TEXT_PROMPTS[2])["input_ids"]
    words = "".join(pieces(tokenizer, prompt, got[2][0].tokens))
    assert "".join(step.text for step in got[2][0].trace) == words


def test_a_character_of_several_tokens_has_its_text_once(model, tokenizer):
    wanted = tokenizer("é — ü")["input_ids"]
    start = len(tokenizer(TEXT_PROMPTS[0])["input_ids"])
    (made,) = sasa.generate(
        model,
        tokenizer,
        TEXT_PROMPTS[0],
        tiny.boundary(model),
        trace=True,
        max_new_tokens=len(wanted),
        prefix_allowed_tokens_fn=lambda _, ids: [wanted[len(ids) - start]],
    )
    assert [step.text for step in made.trace if step.text] == ["é", " ", "—", " ", "ü"]


@pytest.mark.parametrize("threshold", [0.6, 1e-6])
def test_what_goes_back_is_traced_and_marked(threshold, model, tokenizer):
    boundary = tiny.boundary(model)
    watch = Backtracking(threshold=threshold, safe_below=threshold, max_resets=3)
    settings = dict(backtrack=watch, num_return_sequences=6, max_new_tokens=8, seed=1)
    want = sasa.generate(model, tokenizer, TEXT_PROMPTS[0], boundary, 0.5, **settings)
    got = sasa.generate(model, tokenizer, TEXT_PROMPTS[0], boundary, 0.5, trace=True, **settings)
    assert any(one.attempts for one in got)
    for one, other in zip(want, got, strict=True):
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert [a.tokens for a in one.attempts] == [a.tokens for a in other.attempts]
        assert kept(other) == other.tokens
        assert len(other.trace) == other.spent, "all that was drawn is there"
        lost = [step.token for step in other.trace if not step.kept]
        if other.finish_reason != "unsafe":
            assert lost == [
                token for attempt in other.attempts for token in attempt.tokens[attempt.kept :]
            ]
        assert {step.beta for step in other.trace} <= {0.5, 2.5}
    if threshold == 1e-6:
        assert all(one.finish_reason == "unsafe" for one in got)


def test_what_the_model_resets_is_marked(model, tokenizer):
    watch = Backtracking(threshold=None, reset_token_id=77, reset_bias=4.0, max_resets=2)
    made = sasa.generate(
        model,
        tokenizer,
        TEXT_PROMPTS[0],
        tiny.boundary(model),
        0.0,
        backtrack=watch,
        trace=True,
        max_new_tokens=8,
        num_return_sequences=6,
        seed=2,
        top_k=0,
        top_p=0.999,
    )
    assert any(one.attempts for one in made)
    for one in made:
        assert kept(one) == one.tokens
        assert [s.token for s in one.trace if s.token == 77 and not s.kept] == [77] * len(
            one.attempts
        )


def test_a_function_gets_the_traces_as_they_grow_and_can_stop_them(model, tokenizer):
    class Enough(Exception):
        pass

    seen = []

    def tell(traces):
        seen.append([len(steps) for steps in traces])
        if len(traces[0]) == 3:
            raise Enough

    with pytest.raises(Enough):
        sasa.generate(
            model,
            tokenizer,
            TEXT_PROMPTS[0],
            tiny.boundary(model),
            trace=tell,
            num_return_sequences=2,
            max_new_tokens=8,
        )
    assert seen == [[1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(boundary=None), "give a boundary, and beta=0"),
        (dict(top_k=0, top_p=1.0), "limit them by top_k"),
        (dict(compiled=True), "leave compiled out"),
    ],
)
def test_what_cannot_be_traced_is_an_error(settings, message, model, tokenizer):
    settings = {"boundary": tiny.boundary(model)} | settings
    with pytest.raises(ValueError, match=message):
        sasa.generate(model, tokenizer, TEXT_PROMPTS[0], trace=True, **settings)


def test_a_compiled_pass_is_not_traced(model, tokenizer):
    decoder = sasa.SASADecoder(tiny.boundary(model), compiled=True, tracer=Tracer(tokenizer))
    with pytest.raises(ValueError, match="a tracer and compiled=True"):
        model.generate(
            torch.tensor([[5, 6]]), do_sample=True, max_new_tokens=2, custom_generate=decoder
        )


def test_on_the_command_line(tiny_folder, model, tmp_path):
    folder = tiny.boundary(model).save(tmp_path / "line").parent
    base = [
        "generate",
        "The man",
        "-m",
        tiny_folder,
        "-b",
        folder,
        "--no-strict",
        "-n",
        "3",
        "--seed",
        "1",
        "--trace",
    ]
    table = command(*base)
    assert all(name in table.stdout for name in ("before", "after", "margin", "value", "added"))
    done = command(*base, "--json")
    (line,) = done.stdout.splitlines()
    trace = json.loads(line)["completions"][0]["trace"]
    assert len(trace) == 3
    assert {"token", "text", "score", "p", "q", "margins", "value", "shift"} == set(
        trace[0]["candidates"][0]
    )
    assert sum(one["q"] for one in trace[0]["candidates"]) == pytest.approx(1, abs=1e-4)
    bad = command("generate", "The man", "-m", tiny_folder, "-b", "none", "--trace", status=1)
    assert "--trace shows margins" in bad.stderr
