"""A fit and a benchmark by two of Ray's workers, one of them killed on the way: the same result as on one core, and the time.

    python benchmarks/spread.py --texts ../shared/data/davidson/labeled_data.csv::text=tweet,label=class,positive=0+1 \\
        --prompts ../shared/data/rtp/prompts.jsonl --rows 3000:4000

The fit reads 20,000 texts, the benchmark writes 60 prompts by two methods. On either side one thread reads a shard, for the last
bit of a product depends on how many there are.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import sasa
from sasa.data.corpus import parse_rows
from sasa.evaluation import stages
from sasa.evaluation.methods import method
from sasa.evaluation.run import Run
from sasa.evaluation.settings import Settings
from sasa.evaluation.suites import load_suite
from sasa.evaluation.world import World
from sasa.fitting import Corpus, Recipe, fit_boundary
from sasa.serving.ray import Ray


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", required=True, help="a corpus, as for `sasa fit`")
    parser.add_argument("--limit", type=int, default=20_000)
    parser.add_argument("--prompts", required=True, help="RealToxicityPrompts, or rows of its form")
    parser.add_argument("--rows", default="3000:4000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--only", choices=("fit", "bench"), help="one of the two; the fit takes about twice as long"
    )
    given = parser.parse_args()
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker has this file
    torch.set_num_threads(1)
    model, tokenizer = sasa.load()
    many = Ray(workers=given.workers)
    many.connect()
    corpus = replace(Corpus.parse(given.texts), limit=given.limit)
    recipe = Recipe(
        (corpus,), embedding=sasa.EmbeddingSpec(layer=6)
    )  # the first layers are read alone: minutes
    suite = load_suite("rtp", given.prompts, rows=parse_rows(given.rows), limit=60)
    line = sasa.Boundary.load("toxicity", model=model)
    world = World(model, tokenizer, line, Settings(completions=5))
    made = {name: method(name) for name in ("plain", "sasa")}

    def bench(spread: Any) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            run = Run.create(folder, suite, world)
            stages.generate_stage(run, made, world, spread=spread)
            stages.likelihood_stage(run, model, tokenizer, list(made), spread=spread)
            return {
                str(f.relative_to(folder)): f.read_bytes()
                for f in Path(folder).rglob("*.jsonl")
                if f.name != "timings.jsonl"
            }

    def fit(spread: Any) -> str:
        return fit_boundary(model, tokenizer, recipe, spread=spread).fingerprint

    jobs = {
        "fit": (f"a fit of {given.limit:,} texts", fit),
        "bench": ("a benchmark of 60 prompts", bench),
    }
    for name, job in [jobs[given.only]] if given.only else jobs.values():
        seconds, found = [], []
        for side in ("one core", "workers", "workers, one killed"):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as marks:
                killing = partial(_spread, many, Path(marks)) if side.endswith("killed") else many
                found.append(job(None if side == "one core" else killing))
            seconds.append(time.perf_counter() - start)
        same = "the same to the last bit" if found[0] == found[1] == found[2] else "NOT THE SAME"
        times = ", ".join(f"{t:.0f} s" for t in seconds)
        print(
            f"{name}: {same}; one core, {given.workers} workers, and with one of them killed: {times}",
            flush=True,
        )


def _spread(many: Ray, marks: Path, task: Any, items: Any) -> Iterator[Any]:
    return many(partial(_dying, marks, task), items)


def _dying(marks: Path, task: Any, model: Any, tokenizer: Any, item: Any) -> Any:
    """The task, but for the worker that comes to the fourth shard of all."""
    mark = marks / str(len(list(marks.iterdir())))
    mark.touch()
    if mark.name == "3":
        os.kill(os.getpid(), signal.SIGKILL)
    return task(model, tokenizer, item)


if __name__ == "__main__":
    main()
