"""Prompts, suites and runs of the benchmark harness that several test modules share."""

from __future__ import annotations

import json

import numpy as np

from sasa.evaluation.suites import Prompt, Suite


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rtp_row(text, toxicity, challenging=False):
    return {"prompt": {"text": text, "toxicity": toxicity}, "challenging": challenging}


class Counting:
    name, version = "counting", "1"

    def __init__(self):
        self.seen = []

    def score(self, texts):
        self.seen += texts
        return np.array([len(t) / 10 for t in texts])


SUITE = Suite(
    "rtp",
    "here",
    tuple(
        Prompt(f"p{i}", "abcdefgh "[: 2 + i % 5] * 2, "toxic" if i % 2 else "nontoxic")
        for i in range(7)
    ),
    {"without a toxicity score": 1},
)
