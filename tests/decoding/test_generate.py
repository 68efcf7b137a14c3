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


class Longer(StoppingCriteria):
    """Ends each row after so many tokens, by what its text is."""

    def __call__(self, ids, scores, **_):
        return torch.tensor([len(row) >= 4 + row[0] % 3 for row in ids.tolist()])


@pytest.mark.parametrize("steered", [True, False])
def test_without_an_end_of_sequence_a_stopped_row_grows_no_more(tokenizer, steered):
    model = tiny.model("llama")
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    boundary = tiny.boundary(model) if steered else None
    prompts, settings = (
        ["abc", "bcd", "cde"],
        dict(do_sample=False, max_new_tokens=8, stopping_criteria=[Longer()]),
    )
    for prompt, (one,) in zip(
        prompts, sasa.generate(model, tokenizer, prompts, boundary, **settings), strict=True
    ):
        assert len(one.tokens) == 1 + ord(prompt[0]) % 3
        assert one.finish_reason == "stop"
        assert one.tokens == sasa.generate(model, tokenizer, prompt, boundary, **settings)[0].tokens


class Unseen(torch.nn.Module):
    """Takes away whatever stands in the text, and counts its tokens."""

    def __call__(self, ids, scores):
        scores = scores.scatter(1, ids, -torch.inf)
        return scores - torch.arange(scores.shape[1]) * (ids.shape[1] % 3)


FEW = list(range(4, 260))
"""All tokens but !, ", # and $, which are 0 to 3: what reads texts finds repetitions, and padding if there is some."""
READING = [
    {"repetition_penalty": 0.05},
    {"encoder_repetition_penalty": 0.05},
    {"no_repeat_ngram_size": 3},
    {"min_length": 9, "suppress_tokens": FEW[:-2], "eos_token_id": tiny.EOS},
    {"bad_words_ids": [[0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 1, 0]]},
    {"sequence_bias": [[[0, 0, 1], -90.0], [[1, 1, 1], 90.0], [[0, 0, 2], 90.0]]},
    {"logits_processor": [Unseen()], "suppress_tokens": []},
    {"stopping_criteria": [Longer()]},
    {"stop_strings": ['!!!"', '"""!', "##"]},
    {"forced_bos_token_id": 2},
    {"prefix_allowed_tokens_fn": lambda number, ids: [(number + len(ids)) % 3]},
]


@pytest.mark.parametrize("steered", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reading", READING, ids=lambda settings: next(iter(settings)))
def test_a_completion_does_not_depend_on_its_neighbours(model, tokenizer, reading, steered):
    """With whatever reads texts: token by token as alone, though neighbours are of other lengths."""
    boundary = tiny.boundary(model) if steered else None
    settings = dict(do_sample=False, max_new_tokens=6, suppress_tokens=FEW) | reading
    prompts = ['"', '!"', '!#"', '#!"!##!', "!", "$"]
    together = sasa.generate(model, tokenizer, prompts, boundary, **settings)
    for number, (prompt, (one,)) in enumerate(zip(prompts, together, strict=True)):
        alone = dict(settings)
        if allowed := alone.get("prefix_allowed_tokens_fn"):
            alone["prefix_allowed_tokens_fn"] = lambda _, ids, number=number, allowed=allowed: (
                allowed(number, ids)
            )
        assert one.tokens == sasa.generate(model, tokenizer, prompt, boundary, **alone)[0].tokens


@pytest.mark.parametrize(
    "more",
    [
        {"stop_strings": ['"!']},
        {"num_return_sequences": 2},
        {"num_return_sequences": 2, "stop_strings": ["!!"]},
    ],
)
def test_beams_without_a_boundary_are_transformers_own(model, tokenizer, more):
    seen = set()
    settings = dict(do_sample=False, num_beams=3, max_new_tokens=5, suppress_tokens=FEW) | more

    def allowed(number, ids):
        seen.add(number)
        return [0, 1, 2]

    found = sasa.generate(
        model, tokenizer, ["!#", '"#'], None, **settings, prefix_allowed_tokens_fn=allowed
    )
    assert seen == {0, 1}
    strings = {"tokenizer": tokenizer} if "stop_strings" in more else {}
    for prompt, row in zip(["!#", '"#'], found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(
            ids,
            pad_token_id=tiny.PAD,
            **settings,
            **strings,
            prefix_allowed_tokens_fn=lambda *_: [0, 1, 2],
        )
        want = [[t for t in tokens if t != tiny.PAD] for tokens in out[:, ids.shape[1] :].tolist()]
        assert [one.tokens for one in row] == want


def test_prompts_of_several_lengths_share_a_batch_where_nothing_reads_padding(
    model, tokenizer, monkeypatch
):
    sizes = []
    generate = type(model).generate
    monkeypatch.setattr(
        type(model),
        "generate",
        lambda self, ids, **kw: sizes.append(len(ids)) or generate(self, ids, **kw),
    )
    for settings, batches in (
        ({}, [3]),
        ({"repetition_penalty": 1.5}, [3]),
        ({"bad_words_ids": [[5, 6]]}, [3]),
        ({"no_repeat_ngram_size": 2}, [1, 1, 1]),
    ):
        sizes.clear()
        sasa.generate(model, tokenizer, ["abc", "de", "f"], None, max_new_tokens=2, **settings)
        assert sizes == batches


def test_how_many_candidates_were_read(model, tokenizer):
    """None without a boundary, those that were written where it only measures, and more where it steers."""
    boundary = tiny.boundary(model)
    settings = dict(max_new_tokens=6, num_return_sequences=2, seed=3)
    assert [
        c.candidates_read for c in sasa.generate(model, tokenizer, "abcd", None, **settings)
    ] == [0, 0]
    for completion in sasa.generate(model, tokenizer, "abcd", boundary, 0.0, **settings):
        assert completion.candidates_read == len(completion.tokens)
    for completion in sasa.generate(model, tokenizer, "abcd", boundary, 3.0, **settings):
        assert completion.candidates_read > len(completion.tokens)
    for completion in sasa.generate(
        model, tokenizer, "abcd", boundary, 3.0, value="raw", top_k=9, top_p=1.0, **settings
    ):
        assert completion.candidates_read >= 9 * len(completion.tokens), "raw values have no bound"


def test_a_model_without_a_bundled_boundary_gets_the_command_that_fits_one(model, tokenizer):
    with pytest.raises(
        FileNotFoundError,
        match=r"no bundled 'toxicity' boundary .*sasa fit --recipe toxicity --model",
    ):
        sasa.generate(model, tokenizer, "x")
    with pytest.raises(FileNotFoundError, match="no boundary 'politeness'"):
        sasa.generate(model, tokenizer, "x", "politeness")
