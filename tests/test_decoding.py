"""The fused loop against the definition, and against transformers' own generate()."""

import functools

import pytest
import reference
import tiny
import torch
from test_lookahead import PROMPTS, left_padded
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer

from sasa import SASADecoder, SASALogitsProcessor
from sasa.lookahead import replay

ALL_FAMILIES = [*tiny.FAMILIES, *tiny.REREAD_FAMILIES]
SPECS = [{}, {"pooling": "mean"}, {"pooling": "mean", "span": "response"}, {"layer": 1, "pooling": "mean"}]


def generate(model, prompts, decoder=None, seed=None, new=10, **kwargs):
    ids, mask = left_padded(prompts)
    if seed is not None:
        torch.manual_seed(seed)
    settings = dict(do_sample=seed is not None, max_new_tokens=new, pad_token_id=tiny.PAD, top_k=0) | kwargs
    extra = {} if decoder is None else {"custom_generate": decoder}
    out = model.generate(ids, attention_mask=mask, **settings, **extra)
    return out if settings.get("return_dict_in_generate") else out[:, ids.shape[1] :]


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_it_writes_what_the_reference_writes(family, seed, layer):
    """Texts of 19 tokens, beyond sliding windows of 6; layers above the boundary's read the chosen token alone."""
    model = tiny.model(family)
    boundary = tiny.boundary(model, pooling="mean", layer=layer)
    got = generate(model, PROMPTS[:1], SASADecoder(boundary, 2.0, top_k=6, top_p=0.95), seed)[0].tolist()
    want = reference.decode(model, boundary, 2.0, PROMPTS[0], 10, [tiny.EOS], top_k=6, top_p=0.95, seed=seed)
    assert got[: len(want)] == want


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
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
            torch.testing.assert_close(out.scores[step][row].softmax(-1), want.softmax(-1), atol=1e-4, rtol=0)
            ids = out.candidates[step][row].tolist()
            margins = reference.margins(model, boundary, text, ids, [tiny.EOS], len(prompt))
            torch.testing.assert_close(out.candidate_margins[step][row, :, 0], margins, atol=1e-3, rtol=1e-4)
            assert out.margins[step][row] == out.candidate_margins[step][row][ids.index(token)]
            text.append(token)


@pytest.mark.parametrize("family", ALL_FAMILIES)
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
    assert torch.equal(decoder, generate(model, PROMPTS, logits_processor=LogitsProcessorList([processor]), **settings))


class Watch:
    """Counts forward passes of the decoder stack, and the (rows, tokens) of each."""

    def __init__(self, model):
        self.passes = []
        self.handle = model.get_decoder().register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, _, args, kwargs):
        self.passes.append(tuple(kwargs["input_ids"].shape))


def test_one_pass_a_token_and_the_prompt_once(model):
    decoder = SASADecoder(tiny.boundary(model), 1.0, top_k=5)
    generate(model, PROMPTS[:1], decoder, 0, new=1)  # the probes
    watch = Watch(model)
    generate(model, PROMPTS, decoder, seed=0, new=4, num_return_sequences=4, min_new_tokens=4)
    assert watch.passes == [(3, 9)] + [(12, 5)] * 4, "three distinct prompts; then a pass a token, K wide"
    watch.handle.remove()


def test_rows_that_have_ended_leave_the_batch(model):
    class Ends(LogitsProcessor):
        """Row i ends after i + 1 tokens."""

        def __call__(self, ids, scores):
            for row in range(len(ids)):
                if ids.shape[1] - 9 >= row + 1:
                    scores[row] = -torch.inf
                    scores[row, tiny.EOS] = 0.0
                else:
                    scores[row, tiny.EOS] = -torch.inf
            return scores

    prompts = [PROMPTS[0]] * 4
    decoder = SASADecoder(tiny.boundary(model), 1.0, top_k=5)
    generate(model, prompts, decoder, 0, new=1)
    watch = Watch(model)
    out = generate(model, prompts, decoder, seed=0, logits_processor=LogitsProcessorList([Ends()]))
    watch.handle.remove()
    assert [row.tolist().index(tiny.EOS) for row in out] == [1, 2, 3, 4]
    assert all((row[row.tolist().index(tiny.EOS) + 1 :] == tiny.PAD).all() for row in out)
    rows = [shape[0] for shape in watch.passes[1:]]
    assert rows == [4, 4, 3, 2, 1]


def test_k_follows_the_nucleus(model):
    decoder = SASADecoder(tiny.boundary(model), 1.0, top_p=0.5)
    generate(model, PROMPTS[:1], decoder, 0, new=1)
    watch = Watch(model)
    generate(model, PROMPTS[:1], decoder, seed=0, new=8)
    watch.handle.remove()
    ks = [shape[1] for shape in watch.passes[1:]]
    assert len(set(ks)) > 1
    assert max(ks) < 130


def test_more_candidates_than_fit_one_pass(model, monkeypatch):
    boundary = tiny.boundary(model, pooling="mean")
    whole = generate(model, PROMPTS, SASADecoder(boundary, 2.0, top_k=0), seed=1)
    monkeypatch.setattr("sasa.lookahead.readers.CHUNK", 50)
    assert torch.equal(generate(model, PROMPTS, SASADecoder(boundary, 2.0, top_k=0), seed=1), whole)


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

    assert generate(model, PROMPTS, decoder, stopping_criteria=StoppingCriteriaList([Two()])).shape[1] == 2


def test_streamers_get_every_token(model):
    class Gather(BaseStreamer):
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, value):
            self.got += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Gather()
    decoder = SASADecoder(tiny.boundary(model), top_k=5, streamer=streamer)
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
    assert generate(half, PROMPTS, SASADecoder(tiny.boundary(half), 1.0, top_k=5), seed=0).shape == (3, 10)


def test_a_head_that_the_config_does_not_tell_of_is_found_out(monkeypatch, caplog):
    model = tiny.model("llama")
    boundary = tiny.boundary(model)
    forward = model.forward

    def odd(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits.flip(-1)
        return out

    monkeypatch.setattr(model, "forward", odd)
    got = generate(model, PROMPTS[:1], SASADecoder(boundary, 2.0, top_k=6))[0].tolist()
    assert got == reference.decode(model, boundary, 2.0, PROMPTS[0], 10, [tiny.EOS], top_k=6)
    assert "does more to its logits than its config tells" in caplog.text


def test_an_unknown_logit_cap_is_found_out_in_half_precision(monkeypatch):
    from sasa.models.heads import has_plain_head

    model = tiny.model("llama", torch.bfloat16)
    assert has_plain_head(model)
    model, forward = tiny.model("llama", torch.bfloat16), type(model).forward

    def capped(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        cap = out.logits.abs().mean()
        out.logits = torch.tanh(out.logits / cap) * cap
        return out

    monkeypatch.setattr(type(model), "forward", capped)
    assert not has_plain_head(model)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 2}, "cannot be used with beam search"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_attentions and output_hidden_states"),
    ],
)
def test_what_it_does_not_do_is_refused(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        generate(model, PROMPTS, SASADecoder(tiny.boundary(model)), **kwargs)


def test_a_cache_that_is_already_filled_is_refused(model):
    filled = model(torch.tensor([PROMPTS[0]]), use_cache=True).past_key_values
    ids = torch.tensor([PROMPTS[0] + [3]])
    with pytest.raises(ValueError, match="a cache that is already filled"):
        model.generate(ids, past_key_values=filled, custom_generate=SASADecoder(tiny.boundary(model)), max_new_tokens=2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"beta": -2}, "beta must be >= 0, got -2"), ({"top_p": 2.0}, "top_p must be"), ({"top_k": -1}, "top_k must be")],
)
def test_bad_arguments(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        SASADecoder(tiny.boundary(model), **kwargs)
    with pytest.raises(ValueError, match="hidden_size: fitted on 48"):
        generate(model, PROMPTS, SASADecoder(tiny.boundary(tiny.model("llama", hidden_size=48))))


def test_its_own_limits_are_those_of_generate():
    """top_k and top_p given to the decoder leave what generate() leaves, at beta 0 as well."""
    model = tiny.model("llama")
    ids = torch.tensor([[5, 6, 7]] * 8)
    for beta in (0.0, 2.0):
        written = []
        for own, limits in (({}, {"top_k": 7, "top_p": 0.8}), ({"top_k": 7, "top_p": 0.8}, {"top_k": 0, "top_p": 1.0})):
            torch.manual_seed(0)
            decoder = SASADecoder(tiny.boundary(model), beta, **own)
            settings = dict(attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=12, pad_token_id=0)
            written.append(model.generate(ids, custom_generate=decoder, **limits, **settings))
        assert torch.equal(*written)


@pytest.fixture
def graphs(monkeypatch):
    """Compiles without generating code, which takes half a minute, and counts the graphs."""
    replay._compiled.cache_clear()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setitem(torch._dynamo.utils.counters["stats"], "unique_graphs", 0)
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    replay._compiled.cache_clear()


@pytest.mark.parametrize("spec", [{}, {"layer": 1, "pooling": "mean"}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3", "falcon", "olmoe"])
def test_a_compiled_step_writes_the_same(family, spec, graphs):
    model = tiny.model(family)
    boundary = tiny.boundary(model, **spec)
    for new in (10, 14, 14):  # the third takes over the second's memory
        got, want = (
            generate(model, PROMPTS, SASADecoder(boundary, 2.0, top_k=8, top_p=0.9, compiled=c), 3, new)
            for c in (True, False)
        )
        assert torch.equal(got, want)
    if family != "olmoe":  # whose experts ask for values
        assert graphs() == 1, "texts, lengths and numbers of candidates must not be compiled in"


def test_a_model_that_was_cast_does_not_take_over_its_old_memory(graphs):
    model = tiny.model("llama")
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        got, want = (
            generate(model, PROMPTS, SASADecoder(tiny.boundary(model), 2.0, top_k=8, compiled=c), 3, 10)
            for c in (True, False)
        )
        assert torch.equal(got, want)


def test_more_candidates_than_a_compiled_step_takes(model, graphs, monkeypatch):
    boundary = tiny.boundary(model, pooling="mean")
    want = generate(model, PROMPTS, SASADecoder(boundary, 2.0), 3)
    monkeypatch.setattr("sasa.decoding.RESERVED_CANDIDATES", 100)
    assert torch.equal(generate(model, PROMPTS, SASADecoder(boundary, 2.0, compiled=True), 3), want)


def test_what_cannot_be_compiled_is_refused():
    model = tiny.model("bloom")
    with pytest.raises(ValueError, match="compiled=True needs candidates side by side"):
        generate(model, PROMPTS, SASADecoder(tiny.boundary(model), compiled=True))
