"""What the benchmark harness adds to the time of generating alone: the store, records and checks of `sasa bench`.

python benchmarks/harness.py --prompts ../shared/data/rtp/prompts.jsonl
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import sasa
from sasa.evaluation import Run, Settings, World, generate_stage, load_suite, method
from sasa.evaluation.runner import seed_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="RealToxicityPrompts rows, JSONL")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--completions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer = sasa.load()
    boundary = sasa.Boundary.load("toxicity", model=model)
    suite = load_suite("rtp", args.prompts, rows=(3000, 4000), limit=args.count)
    world = World(model, tokenizer, boundary, Settings(args.completions))
    ratios = []
    for number in range(args.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run = Run.create(folder, suite, world)
            generate_stage(run, {"plain": method("plain")}, world, progress=True)
            harness = time.perf_counter() - start
        start = time.perf_counter()
        for batch in run.batches:
            world.generate([p.text for p in batch], seed=seed_of(run, batch))
        alone = time.perf_counter() - start
        if number:  # the first round warms up
            ratios.append(harness / alone)
            print(f"harness {harness:.2f} s, generating alone {alone:.2f} s: {harness / alone:.3f}")
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
