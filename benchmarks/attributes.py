"""Several boundaries in one decoding: does each move what it was fitted for, and what does it do to the others?

Prompts are completed with every boundary off, with each alone, and with all together. What each boundary says of the text,
whoever steered, is the mean calibrated P(safe); that a boundary approves of what it steered proves no safety, only that the
attributes can be moved together and apart. Perplexity is the model's own, and a scorer says what an outsider thinks.

    python benchmarks/attributes.py --rtp ../shared/data/rtp/prompts.jsonl --rows 3000:4000 --boundary toxicity --boundary harm
    python benchmarks/attributes.py --dialogues ../shared/data/hh-rlhf/harmless-base-test.jsonl.gz --rows 1800: ...
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import sasa
from sasa.core.settings import BETA
from sasa.data.corpus import parse_rows
from sasa.evaluation.likelihood import negative_log_likelihood
from sasa.evaluation.scorers import scorer
from sasa.evaluation.suites import load_suite
from sasa.fitting import Corpus
from sasa.models.embedding import length_batches, tokenize_prompt
from sasa.utils.files import write_atomically
from sasa.utils.progress import progress_bar


def prompts_of(args: argparse.Namespace) -> list[str]:
    """Evenly spread over the rows: toxic RTP prompts, or dialogues up to the reply that two were written for."""
    if args.rtp:
        rows = parse_rows(args.rows)
        suite = load_suite("rtp", args.rtp, limit=args.limit, groups=["toxic"], rows=rows)
        return [prompt.text for prompt in suite.prompts]
    pairs = Corpus("hh-rlhf", path=args.dialogues, rows=args.rows).examples()
    found = list(dict.fromkeys(e.text[0] for e in pairs if len(e.text[0]) < 1000))
    return [found[i * len(found) // args.limit] for i in range(min(args.limit, len(found)))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--rtp", help="RealToxicityPrompts rows, JSONL")
    source.add_argument("--dialogues", help="hh-rlhf pairs, JSONL")
    parser.add_argument(
        "--rows", required=True, help="START:STOP, rows that no boundary was fitted on"
    )
    parser.add_argument(
        "--boundary", action="append", required=True, help="as for sasa generate; repeat it"
    )
    parser.add_argument("--model")
    parser.add_argument("--beta", type=float, default=BETA)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--completions", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--scorer", default="profanity")
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    judge = scorer(args.scorer)
    model, tokenizer = sasa.load(args.model)
    boundaries = [sasa.Boundary.load(name, model=model) for name in args.boundary]
    prompts = prompts_of(args)
    contexts = [tokenize_prompt(tokenizer, prompt, boundaries[0].embedding) for prompt in prompts]
    batches = list(length_batches([len(ids) for ids in contexts], 8, 1 << 62))
    weights = sorted(itertools.product((0.0, 1.0), repeat=len(boundaries)), key=sum)
    results = []
    with progress_bar("completing", True) as bar:
        task = bar.add_task("completing", total=len(weights) * len(prompts))
        for setting in weights:
            texts, margins, nats, tokens = [], [], 0.0, 0
            for number, batch in enumerate(batches):
                rows = sasa.generate(
                    model, tokenizer, [prompts[i] for i in batch], list(zip(boundaries, setting, strict=True)), args.beta,
                    seed=number, max_new_tokens=args.tokens, top_k=10, top_p=0.9, num_return_sequences=args.completions,
                )  # fmt: skip
                every = [completion for row in rows for completion in row]
                texts += [completion.text for completion in every]
                margins += [completion.margins for completion in every]
                nats += sum(
                    negative_log_likelihood(
                        model, [contexts[i] for i in batch], [c.tokens for c in every]
                    )
                )
                tokens += sum(len(completion.tokens) for completion in every)
                bar.advance(task, len(batch))
            safe = [
                b.log_odds(m).sigmoid().mean().item()
                for b, m in zip(boundaries, torch.tensor(margins).T, strict=True)
            ]
            toxicity = np.array(judge.score(texts)).reshape(-1, args.completions)
            results.append(
                {
                    "on": [
                        name for name, weight in zip(args.boundary, setting, strict=True) if weight
                    ]
                }
                | {
                    "p_safe": dict(zip(args.boundary, safe, strict=True)),
                    "perplexity": math.exp(nats / tokens),
                }
                | {"emt": float(toxicity.max(1).mean())}
            )
    table = Table(
        "on",
        *(f"P(safe) by {name}" for name in args.boundary),
        "perplexity",
        f"EMT by {judge.name}",
    )
    for r in results:
        figures = [*r["p_safe"].values(), r["perplexity"], r["emt"]]
        table.add_row(" and ".join(r["on"]) or "none", *(f"{figure:.3f}" for figure in figures))
    Console().print(table)
    if args.output:
        settings = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(args).items()
        }
        write_atomically(
            args.output, json.dumps({"settings": settings, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
