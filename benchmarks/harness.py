"""What the benchmark harness adds to the time of generating alone: the store, records and checks of `sasa bench`.

python benchmarks/harness.py --prompts ../shared/data/rtp/prompts.jsonl --rows 3000:4000
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sasa
from sasa.data.corpus import parse_rows
from sasa.evaluation import Run, Settings, World, generate_stage, load_suite, method


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, help="RealToxicityPrompts rows, JSONL"
    )
    parser.add_argument("--rows", help="START:STOP")
    parser.add_argument("--model")
    parser.add_argument("--boundary", default="toxicity")
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--completions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    model, tokenizer = sasa.load(args.model)
    boundary = sasa.Boundary.load(args.boundary, model=model)
    suite = load_suite(
        "rtp", args.prompts, rows=parse_rows(args.rows) if args.rows else None, limit=args.limit
    )
    world = World(model, tokenizer, boundary, Settings(args.completions))
    world.generate(["So"], seed=0)  # warms up

    def harness() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = Run.create(folder, suite, world)
            generate_stage(run, {"plain": method("plain")}, world, progress=True)

    def alone() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = Run.create(folder, suite, world)
        for batch in run.batches:
            world.generate([p.text for p in batch], seed=run.batch_seed(batch))

    ratios = []
    for number in range(args.rounds):
        sides = [harness, alone] if number % 2 else [alone, harness]
        took = {side: timed(side) for side in sides}
        ratios.append([a / b for a, b in zip(took[harness], took[alone], strict=True)])
        print(
            "harness {:.2f} s, {:.2f} s of the processor; alone {:.2f} s, {:.2f} s".format(
                *took[harness], *took[alone]
            )
        )
    by_clock, by_processor = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(
        f"median of {args.rounds} ratios: {by_clock:.3f} by the clock, {by_processor:.3f} in processor time"
    )


def timed(side: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of all threads on the processors: what others do on this machine spoils the latter less."""
    clock, processor = time.perf_counter(), time.process_time()
    side()
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    main()
