"""What a fit costs beyond the model's own forward passes, and whether its memory grows with the corpus.

    python benchmarks/fit_speed.py --corpus ../shared/data/davidson/labeled_data.csv::text=tweet,label=class,positive=0+1

Each size is fitted in a process of its own. The share is the time inside the model's forward passes over the time of
the whole embedding stage, in the same run and on the same batches: 1.0 would be the bare forward pass.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import sasa
from sasa.fitting import Corpus, Recipe, fit_boundary


def share_of_forward(model: Any, tokenizer: Any, recipe: Recipe) -> dict[str, float]:
    """A fit's seconds, and how many of them were spent in the model's forward passes."""
    forward = began = 0.0

    def now() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(*_: object) -> None:
        nonlocal began
        began = now()

    def after(*_: object) -> None:
        nonlocal forward
        forward += now() - began

    decoder = model.get_decoder()
    hooks = [decoder.register_forward_pre_hook(before), decoder.register_forward_hook(after)]
    start = now()
    boundary = fit_boundary(model, tokenizer, recipe)
    seconds = now() - start
    for hook in hooks:
        hook.remove()
    texts = sum(boundary.report["texts"].values())
    return {
        "texts": texts,
        "seconds": seconds,
        "forward_seconds": forward,
        "share": forward / seconds,
    }


def measure(corpus: str, limit: int, pooling: str, prefixes: bool) -> dict[str, float]:
    """One fit in this process."""
    from dataclasses import replace

    model, tokenizer = sasa.load(device="cpu")
    spec = sasa.EmbeddingSpec(pooling=pooling)
    recipe = Recipe(
        (replace(Corpus.parse(corpus), limit=limit),), embedding=spec, prefixes=prefixes
    )
    list(recipe.examples())  # the data library converts the file on first sight
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return share_of_forward(model, tokenizer, recipe) | {
        "peak_mb_before": loaded,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="as for `sasa fit`")
    parser.add_argument("--sizes", type=int, nargs="+", default=[3000, 12000])
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--prefixes", action="store_true", help="fit on every prefix of a text")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.corpus, args.one, args.pooling, args.prefixes)))
        return
    table = Table(
        "texts",
        "seconds",
        "texts/s",
        "forward passes, share of the time",
        "peak RSS, MB",
        "of which before the fit",
    )
    for size in args.sizes:
        command = [
            sys.executable,
            __file__,
            "--corpus",
            args.corpus,
            "--pooling",
            args.pooling,
            "--one",
            str(size),
        ]
        command += ["--prefixes"] * args.prefixes
        r = json.loads(
            subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True
            ).stdout.splitlines()[-1]
        )
        table.add_row(
            str(r["texts"]),
            f"{r['seconds']:.0f}",
            f"{r['texts'] / r['seconds']:.1f}",
            f"{r['share']:.3f}",
            f"{r['peak_mb']:.0f}",
            f"{r['peak_mb_before']:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
