"""Products with few rows: PyTorch against sasa/models/skinny.c, over all weights of a model's layers, per reading of them all.

python benchmarks/skinny.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import linear

from sasa.models.skinny import kernel, skinny_linear


def timed(multiply: Callable[[Tensor, Tensor], Tensor], layers: list[Tensor], rows: int) -> float:
    inputs = {k: torch.randn(rows, k) for k in {w.shape[1] for w in layers}}
    start = time.perf_counter()
    for weight in layers:
        multiply(inputs[weight.shape[1]], weight)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 2, 4, 6, 8, 10, 16, 20, 32, 50, 64]
    )
    parser.add_argument(
        "--hidden", type=int, default=576, help="576 with 1536 and 30 layers: SmolLM2-135M"
    )
    parser.add_argument("--intermediate", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if kernel() is None:
        parser.error("there is no C compiler here, or this is not Linux: nothing to compare")
    h, i = args.hidden, args.intermediate
    shapes = [(h, h), (h // 3, h), (h // 3, h), (h, h), (i, h), (i, h), (h, i)]
    layers = [torch.randn(*shape) for _ in range(args.layers) for shape in shapes]
    table = Table(
        "rows",
        "PyTorch, ms",
        "skinny.c, ms",
        "PyTorch / skinny.c",
        "skinny.c / PyTorch with one row",
    )
    for rows in args.rows:
        runs = [
            (
                timed(linear, layers, 1),
                timed(linear, layers, rows),
                timed(skinny_linear, layers, rows),
            )
            for _ in range(args.rounds + 1)
        ][1:]
        one, theirs, ours = (statistics.median(column) for column in zip(*runs, strict=True))
        table.add_row(
            str(rows), f"{theirs:.1f}", f"{ours:.1f}", f"{theirs / ours:.2f}", f"{ours / one:.2f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
