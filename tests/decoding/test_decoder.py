"""The fused loop against the definition, and against transformers' own generate()."""

from dataclasses import replace

import pytest
import reference
import tiny
import torch
from helpers import PROMPTS, families, generate
from scipy.stats import chi2
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer

from sasa import SASADecoder, SASALogitsProcessor

SPECS = [
    {},
    {"pooling": "mean"},
    {"pooling": "mean", "span": "response"},
    {"layer": 1, "pooling": "mean"},
]


@pytest.mark.parametrize("layer", [-1, 1, (1, 2)])
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("family", families())
def test_it_writes_what_the_reference_writes(family, seed, layer):
    """Texts of 19 tokens, beyond sliding windows of 6; layers above the boundary's read the chosen token alone."""
    model = tiny.model(family)
    boundary = tiny.boundary(model, pooling="mean", layer=layer)
    got = generate(model, PROMPTS[:1], SASADecoder(boundary, 2.0, top_k=6, top_p=0.95), seed)[
        0
    ].tolist()
    want = reference.decode(
        model, boundary, 2.0, PROMPTS[0], 10, [tiny.EOS], top_k=6, top_p=0.95, seed=seed
    )
    assert got[: len(want)] == want


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("family", families(["llama", "gemma3", "bloom"], quick=["llama", "bloom"]))
def test_margins_and_distribution_of_every_step_equal_the_reference(family, spec):
    model = tiny.model(family)
    boundary = tiny.boundary(model, **spec)
    out = generate(
        *(model, PROMPTS, SASADecoder(boundary, 1.5, top_k=7), 1),
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    width = max(map(len, PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for step, token in enumerate(out.sequences[row, width:].tolist()):
            if token == tiny.EOS:
                break
            logits = reference.logits(model, text)
            torch.testing.assert_close(out.logits[step][row], logits, atol=1e-3, rtol=1e-4)
            want = reference.reweighted(
                model, boundary, 1.5, text, logits, [tiny.EOS], top_k=7, prompt_length=len(prompt)
            )
            torch.testing.assert_close(
                out.scores[step][row].softmax(-1), want.softmax(-1), atol=1e-4, rtol=0
            )
            ids = out.candidates[step][row].tolist()
            margins = reference.margins(model, boundary, text, ids, [tiny.EOS], len(prompt))
            torch.testing.assert_close(
                out.candidate_margins[step][row, :, 0], margins, atol=1e-3, rtol=1e-4
            )
            assert out.margins[step][row] == out.candidate_margins[step][row][ids.index(token)]
            text.append(token)


@pytest.mark.parametrize("family", families())
def test_beta_zero_is_plain_generate(family):
    model = tiny.model(family)
    decoder = SASADecoder(tiny.boundary(model), beta=0)
    # no cache for plain: a left-padded row of a recurrent model is right only without it
    for kwargs in (
        {},
        {"seed": 5},
        {"seed": 6, "temperature": 0.7, "top_k": 9, "top_p": 0.8, "num_return_sequences": 2},
    ):
        plain = generate(model, PROMPTS, **kwargs, use_cache=family in tiny.FAMILIES)
        assert torch.equal(generate(model, PROMPTS, decoder, **kwargs), plain)


def test_batched_equals_one_by_one(model):
    decoder = SASADecoder(tiny.boundary(model, pooling="mean"), 2.0, top_k=8)
    together = generate(model, PROMPTS, decoder)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], decoder)[0]
        assert torch.equal(together[row, : len(alone)], alone)


def test_it_equals_the_processor(model):
    boundary = tiny.boundary(model, pooling="mean", span="response")
    settings = dict(seed=2, temperature=1.0, repetition_penalty=1.3)
    decoder = generate(model, PROMPTS, SASADecoder(boundary, 2.0, top_k=8), **settings)
    processor = SASALogitsProcessor(model, boundary, 2.0, top_k=8)
    assert torch.equal(
        decoder,
        generate(model, PROMPTS, logits_processor=LogitsProcessorList([processor]), **settings),
    )


@pytest.fixture
def everything(monkeypatch):
    """Calls a function with every candidate read, whether it can win or not."""

    def read(function):
        with monkeypatch.context() as patch:
            patch.setattr("sasa.decoding.passes.share", lambda *_: 10_000)
            return function()

    return read


LIMITS = [{"top_k": 40, "top_p": 0.98}, {"top_k": 0, "top_p": 1.0}]


@pytest.mark.parametrize("limits", LIMITS, ids=["top-k and top-p", "the whole vocabulary"])
@pytest.mark.parametrize("family", families())
def test_the_same_tokens_as_with_every_candidate_read(family, limits, everything):
    """Batched and left-padded, truncated by the decoder or by generate(), sampled and greedy; and few of them are read."""
    model = tiny.model(family)
    boundary = replace(tiny.boundary(model, pooling="mean", layer=1), scale=0.1)
    prompts = PROMPTS if family in tiny.FAMILIES else PROMPTS[:2]
    for own, seed in ((limits, 3), ({}, 4), (limits, None)):
        theirs = {"top_k": 0, "top_p": 1.0} if own else limits

        def write(own=own, theirs=theirs, seed=seed):
            decoder = SASADecoder(boundary, 2.0, **own)
            return generate(
                model, prompts, decoder, seed, 8, **theirs, return_dict_in_generate=True
            )

        lazily, wholly = write(), everything(write)
        assert torch.equal(lazily.sequences, wholly.sequences)
        torch.testing.assert_close(
            torch.stack(lazily.margins),
            torch.stack(wholly.margins),
            atol=1e-3,
            rtol=1e-3,
            equal_nan=True,
        )
        assert lazily.candidates_read.sum() < wholly.candidates_read.sum()
        assert (lazily.candidates_read >= 8).all() or tiny.EOS in lazily.sequences


def test_the_same_tokens_in_half_precision(everything):
    model = tiny.model("llama", torch.bfloat16)
    boundary = replace(tiny.boundary(model), scale=0.3)

    def write():
        return generate(model, PROMPTS, SASADecoder(boundary, 2.0, top_k=40), 3)

    assert torch.equal(write(), everything(write))


def test_the_same_tokens_with_several_boundaries(model, everything):
    several = [
        (tiny.boundary(model), 0.5),
        (tiny.boundary(model, seed=1, layer=1, pooling="ema"), 1.0),
    ]

    def write():
        return generate(model, PROMPTS, SASADecoder(several, 2.0, top_k=40), 3)

    assert torch.equal(write(), everything(write))


@pytest.mark.slow
def test_the_same_tokens_where_scores_are_equal(model, everything):
    """A processor makes ties; values of safe texts are exactly 0 and leave them."""

    class Rounds(LogitsProcessor):
        def __call__(self, ids, scores):
            return (scores / 8).round()

    for bias in (0.0, 1e4):
        boundary = replace(tiny.boundary(model), bias=bias)

        def write(seed, boundary=boundary):
            return generate(
                model,
                PROMPTS,
                SASADecoder(boundary, 2.0, top_k=40),
                seed,
                logits_processor=LogitsProcessorList([Rounds()]),
            )

        for seed in (None, 3):
            assert torch.equal(write(seed), everything(lambda seed=seed, write=write: write(seed)))
        if bias:
            plain = generate(model, PROMPTS, logits_processor=LogitsProcessorList([Rounds()]))
            assert torch.equal(write(None), plain), "of equals, argmax takes the lowest id"


def test_draws_have_the_distribution_of_the_reference(model):
    """20,000 draws of one step, by Pearson's chi-square test."""
    boundary = replace(tiny.boundary(model), scale=0.2)
    logits = reference.logits(model, PROMPTS[0]) / 6
    want = reference.reweighted(
        model, boundary, 2.0, PROMPTS[0], logits, [tiny.EOS], top_k=30
    ).softmax(-1)
    counts = torch.zeros(tiny.VOCABULARY)
    for seed in range(10):
        decoder = SASADecoder(boundary, 2.0, top_k=30)
        settings = dict(num_return_sequences=2000, temperature=6.0)
        drawn = generate(model, PROMPTS[:1], decoder, seed, 1, **settings)
        counts += torch.bincount(drawn[:, 0], minlength=tiny.VOCABULARY)
    assert counts.sum() == 20_000
    assert not counts[want == 0].any()
    common = want * 20_000 >= 5
    expected = torch.cat([want[common], want[~common].sum()[None]]) * 20_000
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    assert len(expected) > 5
    statistic = float(((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum())
    assert chi2.sf(statistic, len(expected) - 1) > 1e-3


def test_generates_settings_stay_what_they_are(model, tokenizer):
    boundary = tiny.boundary(model)
    decoder = SASADecoder(boundary, 1.0, top_k=8)
    free = generate(model, PROMPTS[:1], decoder)[0].tolist()
    stopped = generate(model, PROMPTS[:1], decoder, eos_token_id=[free[4], tiny.EOS])[0].tolist()
    assert stopped == free[: free.index(free[4]) + 1]
    banned = generate(model, PROMPTS[:1], decoder, suppress_tokens=[free[0]])[0].tolist()
    assert free[0] not in banned
    text = tokenizer.decode(free[2:4])
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, [text])])
    halted = generate(model, PROMPTS[:1], decoder, stopping_criteria=criteria)[0].tolist()
    assert halted == free[: len(halted)]
    assert text in tokenizer.decode(halted)
    assert text not in tokenizer.decode(halted[:-1])
    long = generate(model, PROMPTS, decoder, eos_token_id=list(range(128)), min_new_tokens=6)
    assert long.shape[1] >= 6

    class Two(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            return torch.full((len(ids),), ids.shape[1] >= 11)

    assert (
        generate(model, PROMPTS, decoder, stopping_criteria=StoppingCriteriaList([Two()])).shape[1]
        == 2
    )


def test_streamers_get_every_token(model):
    class Gather(BaseStreamer):
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, value):
            self.got += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Gather()
    decoder = SASADecoder(tiny.boundary(model), top_k=5)
    out = generate(model, PROMPTS[:1], decoder, streamer=streamer)[0]
    assert streamer.got == PROMPTS[0] + out.tolist()
    assert streamer.ended


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cache_implementations(model, cache):
    decoder = SASADecoder(tiny.boundary(model), 2.0, top_k=6)
    want = generate(model, PROMPTS, decoder)
    assert torch.equal(generate(model, PROMPTS, decoder, cache_implementation=cache), want)


def test_half_precision_generates(model):
    half = tiny.model("llama", torch.bfloat16)
    assert generate(
        half, PROMPTS, SASADecoder(tiny.boundary(half), 1.0, top_k=5), seed=0
    ).shape == (3, 10)


def test_its_own_limits_are_those_of_generate():
    """top_k and top_p given to the decoder leave what generate() leaves, at beta 0 as well."""
    model = tiny.model("llama")
    ids = torch.tensor([[5, 6, 7]] * 8)
    for beta in (0.0, 2.0):
        written = []
        for own, limits in (
            ({}, {"top_k": 7, "top_p": 0.8}),
            ({"top_k": 7, "top_p": 0.8}, {"top_k": 0, "top_p": 1.0}),
        ):
            torch.manual_seed(0)
            decoder = SASADecoder(tiny.boundary(model), beta, **own)
            settings = dict(
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                max_new_tokens=12,
                pad_token_id=0,
            )
            written.append(model.generate(ids, custom_generate=decoder, **limits, **settings))
        assert torch.equal(*written)
