"""What a batch costs as the history of attacks grows: time of novelty's parts, and memory, with random texts.

    python benchmarks/novelty.py

The two parts of novelty are timed on the same batches with histories of 1,000 to 20,000 attacks. A step of 32 attacks by the
default model takes half a minute on a core.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import psutil

from sasa.redteam.novelty import Cosine, SelfBLEU

WORDS = 5000


def texts(count: int, draw: np.random.Generator) -> list[str]:
    """Of 5 to 20 words, frequent ones more often, as in any language."""
    rank = draw.zipf(1.3, (count, 20)) % WORDS
    return [" ".join(f"w{word}" for word in row[: draw.integers(5, 21)]) for row in rank]


def vectors(count: int, draw: np.random.Generator) -> np.ndarray:
    found = draw.normal(size=(count, 384)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--histories", type=int, nargs="+", default=[1000, 5000, 10000, 20000])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    draw = np.random.default_rng(0)
    parts = {"SelfBLEU": SelfBLEU(), "cosine, mean": Cosine(), "cosine, 4 nearest": Cosine(4)}
    seen, process = 0, psutil.Process()
    for history in sorted(args.histories):
        while seen < history:
            count = min(args.batch, history - seen)
            _observe(parts, texts(count, draw), vectors(count, draw))
            seen += count
        took: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(args.rounds):
            for name, seconds in _observe(
                parts, texts(args.batch, draw), vectors(args.batch, draw)
            ).items():
                took[name].append(seconds)
            seen += args.batch
        told = ", ".join(
            f"{name} {1000 * statistics.median(times):.1f} ms" for name, times in took.items()
        )
        print(
            f"{history:6d} attacks: a batch of {args.batch}: {told}; memory {process.memory_info().rss >> 20} MiB",
            flush=True,
        )


def _observe(parts: dict[str, object], lines: list[str], rows: np.ndarray) -> dict[str, float]:
    found = {}
    for name, part in parts.items():
        start = time.perf_counter()
        part.observe(lines if isinstance(part, SelfBLEU) else rows)  # type: ignore[attr-defined]
        found[name] = time.perf_counter() - start
    return found


if __name__ == "__main__":
    main()
