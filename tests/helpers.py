"""Prompts, corpora and calls that several test modules share."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Collection, Iterable
from pathlib import Path

import pytest
import tiny
import torch
from transformers import LogitsProcessorList

from sasa.data.corpus import Corpus

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [65, 66, 67], [40, 41, 42, 43, 44]]
TEXT_PROMPTS = ["The man said", "A", "Yesterday we went to the"]
ALL_FAMILIES = [*tiny.FAMILIES, *tiny.REREAD_FAMILIES]
# Rotary positions; learned positions; sliding windows on some layers; ALiBi, which re-reads every candidate
QUICK_FAMILIES = ("llama", "gpt2", "gemma3", "bloom")
GOOD, BAD = ["bright", "calm", "kind", "fair", "warm"], ["XQZ", "ZZX", "QXQ", "XXZ", "QQQ"]
QUESTION = "\n\nHuman: Say a word.\n\nAssistant: Which?\n\nHuman: Any.\n\nAssistant:"


def families(
    names: Iterable[str] = ALL_FAMILIES, *, quick: Collection[str] = QUICK_FAMILIES
) -> list:
    """Returns the names as parameters of a test; those that are not in `quick` are marked slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def left_padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[tiny.PAD] * (width - len(p)) + p for p in prompts])
    return ids, (
        torch.arange(width) >= width - torch.tensor([len(p) for p in prompts])[:, None]
    ).long()


def generate(model, prompts, decoder=None, seed=None, new=10, processor=None, **kwargs):
    ids, mask = left_padded(prompts)
    if seed is not None:
        torch.manual_seed(seed)
    settings = (
        dict(do_sample=seed is not None, max_new_tokens=new, pad_token_id=tiny.PAD, top_k=0)
        | kwargs
    )
    extra = {} if decoder is None else {"custom_generate": decoder}
    if processor is not None:
        extra["logits_processor"] = LogitsProcessorList([processor])
    out = model.generate(ids, attention_mask=mask, **settings, **extra)
    return out if settings.get("return_dict_in_generate") else out[:, ids.shape[1] :]


def write_corpus(path: Path, rows: int = 240, seed: int = 0) -> Path:
    """A CSV that any model can separate: lower-case sentences and upper-case gibberish."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["comment", "toxic", "score"])
        for i in range(rows):
            bad = i % 3 == 0
            words = [draw.choice(BAD if bad else GOOD) for _ in range(draw.randint(2, 6))]
            writer.writerow([f"{' '.join(words)} {i}", bad, 0.9 if bad else 0.1])
    return path


def write_pairs(path, count=12, question=QUESTION):
    with gzip.open(path, "wt") as file:
        for i in range(count):
            asked = question.replace("Any", f"Any {i}")
            file.write(
                json.dumps({"chosen": asked + " calm and kind", "rejected": asked + " XQZ ZZX QXQ"})
                + "\n"
            )
    return Corpus("hh-rlhf", path=str(path))
