"""Streams, processors, grammars and criteria see delivered text alone."""

import itertools
from dataclasses import replace

import tiny
import torch
from helpers import PROMPTS, generate
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import sasa
from sasa import Backtracking, SASADecoder

SETTINGS = Backtracking(threshold=0.6, safe_below=0.5, boost=1.0, boost_tokens=3)
NEW = 12


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
