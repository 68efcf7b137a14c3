"""A thousand prompts of mixed length in one call: does it slow down, does memory grow?

    python benchmarks/long_run.py

A logits processor that changes nothing notes the time and the resident memory at each step, for plain sampling and for SASA. The
call goes from long prompts to short ones, so that a step's time is compared with plain's at the same place of the run.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import sasa

ROOT = Path(__file__).parents[1]


class Clock(LogitsProcessor):
    """Changes nothing and notes (seconds, MB, rows) at each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float, int]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(
            (time.perf_counter(), psutil.Process().memory_info().rss / 2**20, len(input_ids))
        )
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="prompts")
    parser.add_argument("--longest", type=int, default=40, help="words of a prompt, at most")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--model")
    args = parser.parse_args()
    model, tokenizer = sasa.load(args.model)
    boundary = sasa.Boundary.load("toxicity", model=model)
    words = (ROOT / "README.md").read_text().split()
    draw = random.Random(0)
    prompts = []
    for _ in range(args.count):
        start = draw.randrange(len(words) - args.longest)
        prompts.append(" ".join(words[start : start + draw.randint(2, args.longest)]))
    runs: dict[str, list[tuple[float, float, int]]] = {}
    for name, line in (("plain", None), ("sasa", boundary)):
        clock = Clock()
        sasa.generate(
            model, tokenizer, prompts, line, 1.0, batch_size=args.batch, max_new_tokens=args.tokens,
            min_new_tokens=args.tokens, top_k=10, top_p=0.9, seed=0, progress=True,
            logits_processor=LogitsProcessorList([clock]),
        )  # fmt: skip
        runs[name] = clock.steps
    table = Table(
        "part of the run", "plain, ms a step", "sasa, ms a step", "ratio", "resident, MB (sasa)"
    )
    parts = 5
    each = len(runs["plain"]) // parts
    for part in range(parts):
        found = {}
        for name, steps in runs.items():
            here = steps[part * each : (part + 1) * each]
            found[name] = statistics.median(b[0] - a[0] for a, b in itertools.pairwise(here)) * 1e3
        memory = max(m for _, m, _ in runs["sasa"][part * each : (part + 1) * each])
        table.add_row(
            f"{part + 1} of {parts}", f"{found['plain']:.0f}", f"{found['sasa']:.0f}",
            f"{found['sasa'] / found['plain']:.2f}", f"{memory:.0f}",
        )  # fmt: skip
    console = Console(width=100)
    console.print(
        f"{args.count} prompts of 2 to {args.longest} words, {args.tokens} tokens each, torch {torch.__version__}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
