"""Rows of a batch do not depend on each other."""

import pytest
import tiny
import torch
from transformers import StoppingCriteria

import sasa


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
