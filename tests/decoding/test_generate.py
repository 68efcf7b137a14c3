"""generate(): from prompts to completions."""

import pytest
import reference
import tiny
import torch
from helpers import TEXT_PROMPTS
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import sasa


def plain(model, tokenizer, prompt, seed, **kwargs):
    """What a user of transformers would write."""
    torch.manual_seed(seed)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, do_sample=True, pad_token_id=tiny.PAD, **kwargs)
    return out[0, inputs.input_ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7, "top_k": 12, "top_p": 0.8, "min_p": 0.05}]
)
def test_beta_zero_writes_what_transformers_writes(model, tokenizer, settings):
    theirs = {"top_k": 20, "top_p": 0.9} | settings
    want = plain(model, tokenizer, TEXT_PROMPTS[0], 7, max_new_tokens=12, **theirs)
    for boundary, beta in ((tiny.boundary(model), 0), (None, 1.0)):
        got = sasa.generate(
            model, tokenizer, TEXT_PROMPTS[0], boundary, beta, seed=7, max_new_tokens=12, **settings
        )
        assert got[0].tokens == want


def test_temperature_and_truncation_come_before_the_reweighting(model, tokenizer):
    """Token for token what the definition draws from z / T, cut to top-k and top-p, plus beta times the margins."""
    boundary = tiny.boundary(model)
    got = sasa.generate(
        model,
        tokenizer,
        TEXT_PROMPTS[0],
        boundary,
        1.5,
        seed=3,
        temperature=0.5,
        top_k=9,
        top_p=0.9,
        max_new_tokens=8,
    )
    ids = tokenizer(TEXT_PROMPTS[0])["input_ids"]
    text = list(ids)
    torch.manual_seed(3)
    for token in got[0].tokens:
        scores = reference.logits(model, text) / 0.5
        weighted = reference.reweighted(
            model, boundary, 1.5, text, scores, [tiny.EOS], 9, 0.9, len(ids)
        )
        assert token == int(torch.multinomial(weighted.softmax(-1)[None], 1))
        text.append(token)


def test_greedy(model, tokenizer):
    boundary = tiny.boundary(model)
    got = sasa.generate(
        model,
        tokenizer,
        TEXT_PROMPTS[2],
        boundary,
        2.0,
        do_sample=False,
        top_k=10,
        top_p=1.0,
        max_new_tokens=6,
    )
    prompt = tokenizer(TEXT_PROMPTS[2])["input_ids"]
    assert got[0].tokens == reference.decode(model, boundary, 2.0, prompt, 6, [tiny.EOS], top_k=10)


def test_a_string_or_a_list_and_several_sequences(model, tokenizer):
    boundary = tiny.boundary(model)
    one = sasa.generate(
        model,
        tokenizer,
        TEXT_PROMPTS[0],
        boundary,
        num_return_sequences=3,
        max_new_tokens=4,
        seed=0,
    )
    assert len(one) == 3
    many = sasa.generate(
        model,
        tokenizer,
        TEXT_PROMPTS,
        boundary,
        num_return_sequences=2,
        max_new_tokens=4,
        batch_size=2,
    )
    assert [len(row) for row in many] == [2, 2, 2]


def test_order_and_seed(model, tokenizer):
    boundary = tiny.boundary(model)
    settings = dict(max_new_tokens=6, batch_size=2, do_sample=False)
    many = sasa.generate(model, tokenizer, TEXT_PROMPTS, boundary, **settings)
    for prompt, row in zip(TEXT_PROMPTS, many, strict=True):
        assert (
            sasa.generate(model, tokenizer, prompt, boundary, **settings)[0].tokens == row[0].tokens
        )
    a, b, c = (
        sasa.generate(model, tokenizer, TEXT_PROMPTS, boundary, seed=s, max_new_tokens=6)
        for s in (1, 1, 2)
    )
    assert a == b != c


def test_a_seed_leaves_the_global_state_alone(model, tokenizer):
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    sasa.generate(model, tokenizer, "x", None, seed=5, max_new_tokens=2)
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("spec", [{}, {"pooling": "mean", "span": "response"}], ids=str)
def test_margins_are_of_the_whole_text(model, tokenizer, spec):
    boundary = tiny.boundary(model, **spec)
    for completion in sasa.generate(
        model, tokenizer, TEXT_PROMPTS[0], boundary, max_new_tokens=5, num_return_sequences=2
    ):
        prompt = tokenizer(TEXT_PROMPTS[0])["input_ids"]
        text = [t for t in completion.tokens if t != tiny.EOS]
        want = boundary.margin(reference.embedding(model, prompt + text, boundary, len(prompt)))
        assert completion.margin == pytest.approx(float(want), abs=1e-3)
    assert sasa.generate(model, tokenizer, "x", None, max_new_tokens=2)[0].margin is None


class Only(torch.nn.Module):
    """Makes the model write given tokens."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.step = tokens, 0

    def __call__(self, ids, scores):
        out = torch.full_like(scores, -torch.inf)
        out[:, self.tokens[min(self.step, len(self.tokens) - 1)]] = 0
        self.step += 1
        return out


def test_finish_reasons(model, tokenizer, monkeypatch):
    boundary = tiny.boundary(model)

    def write(tokens, **kwargs):
        original = model._get_logits_processor

        def forced(*args, **kw):
            return LogitsProcessorList([Only(tokens), *original(*args, **kw)])

        with monkeypatch.context() as patch:
            patch.setattr(model, "_get_logits_processor", forced)
            return sasa.generate(model, tokenizer, "x", boundary, max_new_tokens=4, **kwargs)[0]

    ended = write([1, 2, tiny.EOS])
    assert (ended.tokens, ended.finish_reason) == ([1, 2, tiny.EOS], "stop")
    assert write([1, 2, 3, 4]).finish_reason == "length"
    assert write([1, 2, 3, tiny.EOS]).finish_reason == "stop"
    # a token like the one that fills up ended rows is a token like any other
    assert write([1, 2, 3, tiny.PAD]).tokens == [1, 2, 3, tiny.PAD]
    at_once = write([tiny.EOS])
    assert (at_once.text, at_once.finish_reason) == ("", "stop")

    class Two(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            return torch.full((len(ids),), ids.shape[1] >= 3)

    stopped = write([1, 2, 3], stopping_criteria=StoppingCriteriaList([Two()]))
    assert (stopped.tokens, stopped.finish_reason) == ([1, 2], "stop")


def test_an_empty_response_has_the_margin_of_the_prompts_end(model, tokenizer):
    """EOS as the first token: nothing was written, and what the model held before it stands in."""
    boundary = tiny.boundary(model, pooling="mean", span="response")
    prompt = tokenizer("abc")["input_ids"]
    processor = sasa.SASALogitsProcessor(model, boundary)
    got = processor.margins(torch.tensor([prompt]), torch.tensor([[tiny.EOS]]))
    want = boundary.margin(reference.embedding(model, prompt, tiny.boundary(model)))
    assert float(got) == pytest.approx(float(want), abs=1e-4)


def test_chat(model, tokenizer, caplog):
    sasa.decoding.generate._check_template.cache_clear()  # said once a process, and other tests decode so too
    boundary = tiny.boundary(model)
    got = sasa.generate(model, tokenizer, "hi", boundary, 0, chat=True, seed=1, max_new_tokens=6)
    want = plain(
        model, tokenizer, "[user]hi</s>[assistant]", 1, max_new_tokens=6, top_k=20, top_p=0.9
    )
    assert got[0].tokens == want
    chat = tiny.boundary(model, template="chat")
    sasa.generate(model, tokenizer, "hi", chat, chat=True, max_new_tokens=2)
    assert not caplog.records  # one of plain texts does in a chat, too; the other way round
    sasa.generate(model, tokenizer, "hi", chat, max_new_tokens=2)
    assert "fitted with a chat template and decodes without one" in caplog.text


def test_users_own_processors_and_settings_reach_generate(model, tokenizer):
    got = sasa.generate(
        model,
        tokenizer,
        "x",
        tiny.boundary(model),
        max_new_tokens=8,
        suppress_tokens=list(range(0, 200)),
        seed=0,
    )
    assert all(token >= 200 for token in got[0].tokens)
    assert sasa.generate(
        model, tokenizer, "x", tiny.boundary(model), max_new_tokens=2, pad_token_id=5
    )[0].tokens


def test_settings_come_from_the_models_generation_config(tokenizer):
    model = tiny.model("llama")
    model.generation_config.top_k = 1
    a, b = (
        sasa.generate(model, tokenizer, "x", None, max_new_tokens=6, seed=s)[0].tokens
        for s in (1, 2)
    )
    assert a == b, "top_k=1 leaves no choice"
    a, b = (
        sasa.generate(model, tokenizer, "x", None, max_new_tokens=6, top_k=0, seed=s)[0].tokens
        for s in (1, 2)
    )
    assert a != b


@pytest.mark.parametrize(
    ("prompts", "kwargs", "message"),
    [
        ("", {}, "prompt 0 is empty"),
        (["fine", "  "], {}, "prompt 1 is empty"),
        ([], {}, "prompts is empty"),
        (
            "x" * 250,
            {},
            "prompt 0 has 250 tokens: with max_new_tokens=50 that is beyond the model's context window of 256",
        ),
        ("x", {"beta": -1}, "beta must be >= 0, got -1"),
        ("x", {"top_p": 1.2}, r"top_p must be in \(0, 1\]"),
        ("x", {"top_p": 0}, r"top_p must be in \(0, 1\]"),
        ("x", {"min_p": 2}, r"min_p must be in \[0, 1\]"),
        (
            "x",
            {"temperature": 0},
            "temperature must be > 0, got 0: do_sample=False decodes greedily",
        ),
        ("x", {"temperature": -1}, "temperature must be > 0, got -1"),
        (["x", "a\ud83d"], {}, r"prompt 1: it holds .ud83d, half of a surrogate pair"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens must be > 0"),
        ("x", {"return_dict_in_generate": True}, "use SASALogitsProcessor with model.generate"),
    ],
)
def test_bad_input_fails_before_anything_is_generated(
    model, tokenizer, monkeypatch, prompts, kwargs, message
):
    monkeypatch.setattr(type(model), "generate", lambda *a, **k: pytest.fail("generated"))
    with pytest.raises(ValueError, match=message):
        sasa.generate(model, tokenizer, prompts, tiny.boundary(model), **kwargs)


def test_a_boundary_for_another_model(model, tokenizer):
    with pytest.raises(ValueError, match="model_type: fitted on 'gpt2', this model has 'llama'"):
        sasa.generate(model, tokenizer, "x", tiny.boundary(tiny.model("gpt2")))


def test_stop_strings_and_streamers_reach_the_decoder(model, tokenizer):
    boundary = tiny.boundary(model)
    settings = dict(beta=1.0, value="raw", do_sample=False, max_new_tokens=8)
    free = sasa.generate(model, tokenizer, "x", boundary, **settings)[0]
    stop = tokenizer.decode(free.tokens[1:3])
    got = sasa.generate(model, tokenizer, "x", boundary, **settings, stop_strings=stop)[0]
    assert len(got.tokens) < 8
    assert (stop in got.text, got.finish_reason) == (True, "stop")
    assert tokenizer.decode(got.tokens).endswith(stop), "no EOS that the model did not write"

    class Gather(BaseStreamer):
        def __init__(self):
            self.got = []

        def put(self, value):
            self.got += value.flatten().tolist()

        def end(self):
            self.got.append("end")

    streamer = Gather()
    streamed = sasa.generate(model, tokenizer, "x", boundary, max_new_tokens=4, streamer=streamer)[
        0
    ]
    assert streamer.got == [*tokenizer("x")["input_ids"], *streamed.tokens, "end"]


def test_greedy_takes_any_temperature(model, tokenizer):
    boundary = tiny.boundary(model)
    settings = dict(do_sample=False, max_new_tokens=4)
    want = sasa.generate(model, tokenizer, "x", boundary, **settings)
    assert sasa.generate(model, tokenizer, "x", boundary, temperature=0, **settings) == want


@pytest.mark.parametrize("steered", [True, False])
def test_a_stop_on_the_last_token_is_a_stop(model, tokenizer, steered):
    boundary = tiny.boundary(model) if steered else None
    settings = dict(
        do_sample=False, max_new_tokens=3, suppress_tokens=list(range(94, 256))
    )  # letters alone
    free = sasa.generate(model, tokenizer, "x", boundary, **settings)[0]
    assert (len(free.tokens), free.finish_reason) == (3, "length")
    stop = tokenizer.decode(free.tokens[1:3])
    got = sasa.generate(model, tokenizer, "x", boundary, **settings, stop_strings=[stop])[0]
    assert (got.tokens, got.finish_reason) == (free.tokens, "stop")
    assert (
        sasa.generate(model, tokenizer, "x", boundary, **settings, stop_strings=["@@"])[
            0
        ].finish_reason
        == "length"
    )


def test_a_model_without_a_bundled_boundary_gets_the_command_that_fits_one(model, tokenizer):
    with pytest.raises(
        FileNotFoundError,
        match=r"no bundled 'toxicity' boundary .*sasa fit --recipe toxicity --model",
    ):
        sasa.generate(model, tokenizer, "x")
    with pytest.raises(FileNotFoundError, match="no boundary 'politeness'"):
        sasa.generate(model, tokenizer, "x", "politeness")
