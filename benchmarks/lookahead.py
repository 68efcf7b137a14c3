"""What a pass over candidates costs by how many it reads, and how many have to be read before a token is settled.

    python benchmarks/lookahead.py                                              # the default model
    python benchmarks/lookahead.py --prompts ../shared/data/rtp/prompts.jsonl --rows 3000:4000

`sasa.decoding.passes.PASS` comes from the first table: what a pass costs whatever it reads, counted in candidates.
The second has, for harmless and for toxic prompts, the candidates that a row needs (read one at a time), and
those that are read as it is, with the passes a step, alone and in a batch; and how many texts of the batch differ
from those that are written where every candidate is read, from the same seed (not of a whole vocabulary).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import sasa
from sasa.decoding.lookahead import Lookahead
from sasa.models.embedding import pad

README = Path(__file__).parents[1] / "README.md"
CELLS = [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32), (4, 1), (8, 1), (8, 2), (25, 1), (25, 2)]


def costs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, boundary: sasa.Boundary, rounds: int
) -> list[float]:
    """Milliseconds of a pass in each of `CELLS`, medians of rounds that go through all of them."""
    text = tokenizer(README.read_text(), return_tensors="pt").input_ids[0].to(model.device)
    looks = {}
    for rows in {rows for rows, _ in CELLS}:
        ids = torch.stack([text[row : row + 40] for row in range(rows)])
        looks[rows] = Lookahead(
            model, boundary.embedding, torch.ones_like(ids), positions=40 + 64, rows=rows
        )
        looks[rows].append(ids)
        looks[rows].embeddings()
    found: list[list[float]] = [[] for _ in CELLS]
    for _ in range(rounds + 1):
        for times, (rows, k) in zip(found, CELLS, strict=True):
            candidates = torch.randint(3, len(tokenizer) - 3, (rows, k), device=model.device)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            looks[rows].peek(candidates)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
            looks[rows].append(
                candidates[:, :0]
            )  # ends the step: the next pass writes over this one
    return [statistics.median(times[1:]) for times in found]


def reading(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    boundary: sasa.Boundary,
    prompts: list[str],
    k: int,
) -> tuple[list[list[int]], float, float]:
    """The texts, candidates read a row and step, and passes a step."""
    ids, mask = pad([tokenizer(prompt)["input_ids"] for prompt in prompts], "left", model.device)
    torch.manual_seed(0)
    out = model.generate(
        ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=16, min_new_tokens=16, pad_token_id=0,
        custom_generate=sasa.SASADecoder(boundary, top_k=k, top_p=0.9 if k else 1.0), return_dict_in_generate=True,
    )  # fmt: skip
    return out.sequences.tolist(), float(out.candidates_read.float().mean()) / 16, out.passes / 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prompts", type=Path, help="RealToxicityPrompts' rows")
    parser.add_argument("--rows", default="3000:4000")
    parser.add_argument("--limit", type=int, default=24, help="prompts of each kind")
    parser.add_argument("--model")
    parser.add_argument("--boundary", default="toxicity")
    args = parser.parse_args()
    model, tokenizer = sasa.load(args.model)
    boundary = sasa.Boundary.load(args.boundary, model=model)
    console = Console(width=None if sys.stdout.isatty() else 120)

    found = costs(model, tokenizer, boundary, args.rounds)
    table = Table(
        "rows",
        "candidates of each",
        "ms",
        title=f"a pass on {model.device}, {torch.get_num_threads()} threads",
    )
    for (rows, k), ms in zip(CELLS, found, strict=True):
        table.add_row(str(rows), str(k), f"{ms:.1f}")
    console.print(table)
    each, alone = np.polyfit([rows * k for rows, k in CELLS], found, 1)
    console.print(
        f"a pass by itself {alone:.1f} ms, each candidate {each:.2f} ms: as much as {alone / each:.0f} candidates"
    )
    if args.prompts is None:
        return

    first, last = map(int, args.rows.split(":"))
    rows = [
        json.loads(line)["prompt"] for line in args.prompts.read_text().splitlines()[first:last]
    ]
    kinds = {
        "harmless": [row["text"] for row in rows if (row["toxicity"] or 0) < 0.25][: args.limit],
        "toxic": [row["text"] for row in rows if (row["toxicity"] or 0) > 0.6][: args.limit],
    }
    columns = (
        "needed",
        "read alone",
        "passes alone",
        f"read of {args.limit}",
        "passes",
        "texts that differ",
    )
    table = Table("prompts", "top-k", *columns)
    for kind, prompts in kinds.items():
        for k in (10, 50, 0):
            with patch("sasa.decoding.passes.share", lambda *_: 1):
                _, needed, _ = reading(model, tokenizer, boundary, prompts, k)
            alone = [reading(model, tokenizer, boundary, [prompt], k)[1:] for prompt in prompts[:8]]
            texts, *together = reading(model, tokenizer, boundary, prompts, k)
            figures = (
                needed,
                *(statistics.mean(column) for column in zip(*alone, strict=True)),
                *together,
            )
            differ = ""
            if k:
                with patch("sasa.decoding.passes.share", lambda *_: 1 << 20):
                    wholly, *_ = reading(model, tokenizer, boundary, prompts, k)
                differ = str(sum(one != other for one, other in zip(texts, wholly, strict=True)))
            table.add_row(kind, str(k), *(f"{figure:.2f}" for figure in figures), differ)
    console.print(table)


if __name__ == "__main__":
    main()
