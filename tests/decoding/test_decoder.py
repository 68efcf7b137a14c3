"""The fused loop against the definition, and against transformers' own generate()."""

import functools
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

import sasa
from sasa import Boundary, SASADecoder, SASALogitsProcessor
from sasa.decoding import passes
from sasa.decoding.lookahead import replay

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


class Watch:
    """Counts forward passes of the decoder stack, and the (rows, tokens) of each."""

    def __init__(self, model):
        self.passes = []
        self.handle = model.get_decoder().register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, _, args, kwargs):
        self.passes.append(tuple(kwargs["input_ids"].shape))


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


def test_one_pass_a_token_where_nothing_stays_open_and_the_prompt_once(model):
    decoder = SASADecoder(
        replace(tiny.boundary(model), bias=1e4), 1.0, top_k=5
    )  # all is safe: the first one wins
    generate(model, PROMPTS[:1], decoder, 0, new=1)  # the probes
    watch = Watch(model)
    generate(model, PROMPTS, decoder, seed=0, new=4, num_return_sequences=4, min_new_tokens=4)
    watch.handle.remove()
    assert watch.passes == [(3, 9)] + [(12, 1)] * 4, "three distinct prompts; then a pass a token"


def test_rows_that_are_settled_take_part_in_no_further_pass(model):
    decoder = SASADecoder(tiny.boundary(model), 3.0)
    generate(model, PROMPTS[:1], decoder, 0, new=1)
    watch = Watch(model)
    out = generate(
        model,
        PROMPTS,
        decoder,
        0,
        6,
        num_return_sequences=4,
        min_new_tokens=6,
        return_dict_in_generate=True,
    )
    watch.handle.remove()
    passes = watch.passes[1:]
    assert out.passes == len(passes)
    assert sum(rows * width for rows, width in passes) == int(out.candidates_read.sum())
    first = [width == 1 and rows == 12 for rows, width in passes]
    assert sum(first) == 6
    later = [rows for (rows, _), one in zip(passes, first, strict=True) if not one]
    assert later
    assert min(later) < 12


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_margins_that_are_not_numbers(model, beta, monkeypatch):
    """Steering by them is an error; measuring by them is not."""
    monkeypatch.setattr(Boundary, "margin", lambda self, hidden: hidden[..., 0] * torch.nan)
    decoder = SASADecoder(tiny.boundary(model), beta)
    if beta:
        with pytest.raises(ValueError, match="scores or margins are not numbers"):
            generate(model, PROMPTS, decoder, 3)
    else:
        assert torch.equal(generate(model, PROMPTS, decoder, 3), generate(model, PROMPTS, seed=3))


@pytest.mark.parametrize("do_sample", [True, False])
def test_where_no_token_can_come_next(model, do_sample):
    class Nothing(LogitsProcessor):
        def __call__(self, ids, scores):
            return torch.full_like(scores, -torch.inf)

    with pytest.raises(ValueError, match="no token can come next"):
        generate(
            model,
            PROMPTS,
            SASADecoder(tiny.boundary(model)),
            0 if do_sample else None,
            logits_processor=LogitsProcessorList([Nothing()]),
        )


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


def test_with_scores_every_candidate_is_read(model):
    settings = dict(return_dict_in_generate=True, output_scores=True)
    out = generate(
        model, PROMPTS[:1], SASADecoder(tiny.boundary(model), 1.0, top_p=0.5), 0, new=8, **settings
    )
    ks = [scores.isfinite().sum() for scores in out.scores]
    assert [margins.isfinite().sum() for margins in out.candidate_margins] == ks, (
        "K follows the nucleus"
    )
    assert len(set(map(int, ks))) > 1
    assert out.candidates_read.tolist() == [sum(ks)]


def test_more_candidates_than_fit_one_pass(model, monkeypatch):
    boundary = tiny.boundary(model, pooling="mean")
    decoder = SASADecoder(
        boundary, 2.0, value="raw", top_k=0
    )  # of which nothing is known before it is read
    whole = generate(model, PROMPTS, decoder, seed=1)
    monkeypatch.setattr("sasa.decoding.lookahead.readers.CHUNK", 50)
    assert torch.equal(generate(model, PROMPTS, decoder, seed=1), whole)


@pytest.mark.slow
def test_what_was_read_long_ago_is_read_again(model, monkeypatch):
    """With little scratch room, winners whose keys and values have been written over are appended anew."""
    boundary = replace(tiny.boundary(model), scale=3.0, bias=-20.0)  # hardly anything is safe
    decoder = SASADecoder(boundary, 5.0)
    settings = dict(temperature=20.0, return_dict_in_generate=True)
    whole = generate(model, PROMPTS, decoder, 1, **settings)
    assert whole.candidates_read.max() > 100
    monkeypatch.setattr("sasa.decoding.lookahead.readers.CHUNK", 3)
    assert torch.equal(generate(model, PROMPTS, decoder, 1, **settings).sequences, whole.sequences)


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
        (
            {"output_hidden_states": True, "return_dict_in_generate": True},
            "output_attentions and output_hidden_states",
        ),
    ],
)
def test_what_it_does_not_do_is_refused(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        generate(model, PROMPTS, SASADecoder(tiny.boundary(model)), **kwargs)


def test_inputs_beside_token_ids_are_refused_by_name(model, tokenizer):
    """By the decoder and by the processor: neither sees them."""
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    ids = torch.tensor([PROMPTS[0]])
    gpt2 = tiny.model("gpt2")
    settings = dict(max_new_tokens=2, do_sample=False)
    kinds = dict(input_ids=ids, token_type_ids=torch.ones_like(ids))
    with pytest.raises(ValueError, match="cannot be used with the input token_type_ids"):
        gpt2.generate(**kinds, **settings, custom_generate=SASADecoder(tiny.boundary(gpt2)))
    with pytest.raises(
        ValueError, match="the model was given the input token_type_ids beside them"
    ):
        gpt2.generate(
            **kinds, **settings, logits_processor=[SASALogitsProcessor(gpt2, tiny.boundary(gpt2))]
        )
    places = torch.arange(ids.shape[1])[None] + 5
    with pytest.raises(ValueError, match="position_ids of one's own"):
        model.generate(
            ids, position_ids=places, **settings, custom_generate=SASADecoder(tiny.boundary(model))
        )
    with pytest.raises(ValueError, match="position_ids of one's own"):
        model.generate(
            ids,
            position_ids=places,
            **settings,
            logits_processor=[SASALogitsProcessor(model, tiny.boundary(model))],
        )
    embeds = model.get_input_embeddings()(ids)
    processor = SASALogitsProcessor(model, tiny.boundary(model))
    with pytest.raises(ValueError, match="the model was given the input inputs_embeds"):
        model.generate(inputs_embeds=embeds, **settings, logits_processor=[processor])
    model.generate(ids, **settings, logits_processor=[processor])  # the next text has none
    base = tiny.model("llama")
    boundary = tiny.boundary(base)
    tuned = get_peft_model(
        base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).eval()
    for use in (
        lambda: sasa.generate(tuned, tokenizer, "abc", boundary),
        lambda: boundary.score(tuned, tokenizer, ["abc"]),
        lambda: SASALogitsProcessor(tuned, boundary),
    ):
        with pytest.raises(ValueError, match="the model puts virtual tokens before a text"):
            use()
    with pytest.raises(
        ValueError, match="PeftModelForCausalLM makes, such as the virtual tokens of prompt tuning"
    ):
        tuned.generate(input_ids=ids, **settings, custom_generate=SASADecoder(boundary))
    with pytest.raises(ValueError, match="the model was given the input inputs_embeds"):
        tuned.generate(
            input_ids=ids, **settings, logits_processor=[SASALogitsProcessor(base, boundary)]
        )
    base = tiny.model("llama")
    prefixed = get_peft_model(
        base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).eval()
    with pytest.raises(ValueError, match="inputs that PeftModelForCausalLM makes"):
        prefixed.generate(
            input_ids=ids, **settings, logits_processor=[SASALogitsProcessor(base, boundary)]
        )


def pictures():
    """A tiny model that takes pictures, too."""
    from transformers import AutoConfig, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma3",
        text_config=tiny.FAMILIES["gemma3"] | dict(model_type="gemma3_text", vocab_size=tiny.VOCABULARY),
        vision_config=dict(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
        ),
        mm_tokens_per_image=4, image_token_index=250, boi_token_index=251, eoi_token_index=252,
        pad_token_id=tiny.PAD, bos_token_id=tiny.BOS, eos_token_id=tiny.EOS,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config).eval()


def test_a_model_that_takes_pictures_is_followed_where_it_is_given_none():
    model = pictures()
    boundary = tiny.boundary(model)
    ids = torch.tensor([PROMPTS[0]])
    settings = dict(max_new_tokens=4, do_sample=False, top_k=5)
    plain = model.generate(ids, **settings)
    for kinds in ({}, {"token_type_ids": torch.zeros_like(ids)}):
        found = model.generate(ids, **kinds, **settings, custom_generate=SASADecoder(boundary, 0.0))
        assert found.tolist() == plain.tolist()
        steered = [
            model.generate(ids, **kinds, **settings, **way).tolist()
            for way in (
                {"custom_generate": SASADecoder(boundary, 2.0, top_k=5)},
                {"logits_processor": [SASALogitsProcessor(model, boundary, 2.0, top_k=5)]},
            )
        ]
        assert steered[0] == steered[1]
    shown = torch.cat([torch.tensor([[251, 250, 250, 250, 250, 252]]), ids], 1)
    picture = dict(pixel_values=torch.randn(1, 3, 16, 16), token_type_ids=(shown == 250).long())
    for kinds in (picture, {"pixel_values": picture["pixel_values"]}):
        with pytest.raises(ValueError, match="cannot be used with the input"):
            model.generate(shown, **kinds, **settings, custom_generate=SASADecoder(boundary))
        with pytest.raises(ValueError, match="reads token ids, and the model was given the input"):
            model.generate(
                shown, **kinds, **settings, logits_processor=[SASALogitsProcessor(model, boundary)]
            )


def test_what_others_give_the_model_is_not_held_against_a_text(model):
    boundary = tiny.boundary(model)
    processor = SASALogitsProcessor(model, boundary)
    ids = torch.tensor([PROMPTS[0]])
    model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=True)
    assert processor.margins(ids, torch.tensor([[3, 4]])).shape == (1, 2, 1)
    olmoe = tiny.model("olmoe")
    olmoe.generate(
        ids,
        output_router_logits=False,
        max_new_tokens=2,
        custom_generate=SASADecoder(tiny.boundary(olmoe)),
    )


def test_an_adapter_that_is_not_merged_is_followed():
    """peft's own generate(), of layers that it has changed: what the reference writes with them."""
    from peft import LoraConfig, get_peft_model

    base = tiny.model("llama")
    boundary = tiny.boundary(base)
    tuned = get_peft_model(
        base,
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False),
    )
    ids = torch.tensor([PROMPTS[0]])
    out = tuned.eval().generate(
        input_ids=ids,
        max_new_tokens=6,
        do_sample=False,
        custom_generate=SASADecoder(boundary, 2.0, top_k=10),
    )
    want = reference.decode(base, boundary, 2.0, PROMPTS[0], 6, [tiny.EOS], top_k=10)
    assert out[0, ids.shape[1] :].tolist()[: len(want)] == want


def test_a_model_that_is_not_on_one_device_is_refused(tokenizer):
    from accelerate import cpu_offload

    from sasa.models.inputs import check_model

    model = tiny.model("llama")
    boundary = tiny.boundary(model)
    ids = torch.tensor([PROMPTS[0]])
    with pytest.raises(
        ValueError, match=r"input_ids are on meta and the model is on cpu: give ids\.to"
    ):
        check_model(model, ids.to("meta"))
    cpu_offload(model, execution_device="cpu")
    for use in (
        lambda: sasa.generate(model, tokenizer, "abc", boundary),
        lambda: model.generate(ids, custom_generate=SASADecoder(boundary)),
        lambda: SASALogitsProcessor(model, boundary),
        lambda: boundary.score(model, tokenizer, ["abc"]),
        lambda: sasa.embed(model, tokenizer, ["abc"]),
    ):
        with pytest.raises(ValueError, match="the model is offloaded"):
            use()


def test_a_cache_that_is_already_filled_is_refused(model):
    mamba = tiny.model("mamba")
    states = mamba(torch.tensor([PROMPTS[0]]), use_cache=True).cache_params
    with pytest.raises(ValueError, match="a cache that is already filled"):
        mamba.generate(
            torch.tensor([PROMPTS[0] + [3]]),
            cache_params=states,
            custom_generate=SASADecoder(tiny.boundary(mamba)),
        )
    filled = model(torch.tensor([PROMPTS[0]]), use_cache=True).past_key_values
    ids = torch.tensor([PROMPTS[0] + [3]])
    with pytest.raises(ValueError, match="a cache that is already filled"):
        model.generate(
            ids,
            past_key_values=filled,
            custom_generate=SASADecoder(tiny.boundary(model)),
            max_new_tokens=2,
        )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta": -2}, "beta must be >= 0, got -2"),
        ({"top_p": 2.0}, "top_p must be"),
        ({"top_k": -1}, "top_k must be"),
    ],
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
@pytest.mark.parametrize(
    "family", families(["llama", "gpt2", "mistral", "gemma3", "falcon", "olmoe"], quick=["llama"])
)
def test_a_compiled_step_writes_the_same(family, spec, graphs):
    model = tiny.model(family)
    boundary = tiny.boundary(model, **spec)
    for new in (10, 14, 14):  # the third takes over the second's memory
        got, want = (
            generate(
                model, PROMPTS, SASADecoder(boundary, 2.0, top_k=8, top_p=0.9, compiled=c), 3, new
            )
            for c in (True, False)
        )
        assert torch.equal(got, want)
    if family != "olmoe":  # whose experts ask for values
        assert graphs() == 1, "texts, lengths and numbers of candidates must not be compiled in"


@pytest.mark.slow
def test_a_model_that_was_cast_does_not_take_over_its_old_memory(graphs):
    model = tiny.model("llama")
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        got, want = (
            generate(
                model, PROMPTS, SASADecoder(tiny.boundary(model), 2.0, top_k=8, compiled=c), 3, 10
            )
            for c in (True, False)
        )
        assert torch.equal(got, want)


@pytest.mark.slow
def test_more_candidates_than_a_compiled_step_takes(model, graphs, monkeypatch):
    boundary = tiny.boundary(model, pooling="mean")
    for value, reserved in (("raw", 100), ("raw", 30), ("log_sigmoid", 64)):
        monkeypatch.setattr("sasa.decoding.passes.RESERVED_CANDIDATES", reserved)
        got, want = (
            generate(model, PROMPTS, SASADecoder(boundary, 2.0, value=value, compiled=c), 3)
            for c in (True, False)
        )
        assert torch.equal(got, want)


@pytest.mark.slow
def test_compiled_passes_of_an_odd_width(model, graphs, monkeypatch):
    """The order of a vocabulary comes in blocks that the width does not divide, and hard steps read many."""
    monkeypatch.setitem(passes.PASS, "cpu", 4 * 21)  # 21 of each row
    boundary = replace(tiny.boundary(model), scale=3.0, bias=-20.0)  # hardly anything is safe
    settings = dict(temperature=20.0, top_k=0, new=6, return_dict_in_generate=True)
    got, want = (
        generate(model, PROMPTS, SASADecoder(boundary, 5.0, compiled=c), 3, **settings)
        for c in (True, False)
    )
    assert torch.equal(got.sequences, want.sequences)
    assert got.candidates_read.max() > 6 * 85, "more in a step than there is room for"


def test_what_cannot_be_compiled_is_refused():
    model = tiny.model("bloom")
    with pytest.raises(ValueError, match="compiled=True needs candidates side by side"):
        generate(model, PROMPTS, SASADecoder(tiny.boundary(model), compiled=True))
