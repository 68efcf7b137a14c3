"""Which candidates and rows the fused loop reads, and what it leaves unread."""

from dataclasses import replace

import pytest
import tiny
import torch
from helpers import PROMPTS, generate
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
)

from sasa import Boundary, SASADecoder


class Watch:
    """Counts forward passes of the decoder stack, and the (rows, tokens) of each."""

    def __init__(self, model):
        self.passes = []
        self.handle = model.get_decoder().register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, _, args, kwargs):
        self.passes.append(tuple(kwargs["input_ids"].shape))


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
