"""Trainings side by side: mean return against how rare bad completions are, by the reward and by a judge that took no part.

Each training's tail must have been measured (`sasa bench tail`), in a folder of the same name; trainings that differ only by
their seed are one setting, NAME-SEED. The base model's own tail is called base.

    python benchmarks/frontier.py --trained runs/repulse --tails runs/repulse-tails --output benchmarks/results/repulse
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from repulse_toy import COLOURS as METHOD_COLOURS

from sasa.evaluation.importance import proportion
from sasa.evaluation.metrics import Estimate, from_json, to_json
from sasa.utils.files import write_atomically
from sasa.utils.jsonl import read

COLOURS = {**METHOD_COLOURS, "base": "black"}

FLOOR = 1e-4
"""Where a share of 0 is drawn."""


def measured(folder: Path, etas: list[float]) -> dict[str, Any]:
    """Of a measurement: its figures, and for each reward how many of the model's own completions are below each eta."""
    figures = json.loads((folder / "figures.json").read_text(), object_hook=from_json)
    own = [i for i, record in enumerate(read(folder / "samples.jsonl")) if record["by"] == "model"]
    counts = {}
    for file in sorted((folder / "rewards").glob("*.json")):
        judged = json.loads(file.read_text())
        rewards = np.array(judged["rewards"])[own]
        counts[judged["name"]] = {eta: (int((rewards < eta).sum()), len(rewards)) for eta in etas}
    return {"figures": figures, "counts": counts}


def pooled(parts: list[dict[str, Any]], method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A setting: means over its seeds, and shares of all their completions."""

    def mean(*keys: str) -> float | None:
        found: list[Any] = []
        for part in parts:
            value: Any = part["figures"]
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            found.append(value)
        return (
            None
            if any(value is None for value in found)
            else float(np.mean([value.value for value in found]))
        )

    return {
        "method": method,
        "settings": settings,
        "seeds": len(parts),
        **{key: mean(key) for key in ("kl", "perplexity", "distinct_2", "tokens")},
        "rewards": {
            name: {
                "below": {
                    f"{eta:g}": proportion(
                        *(sum(part["counts"][name][eta][i] for part in parts) for i in (0, 1))
                    )
                    for eta in parts[0]["counts"][name]
                },
                "each": {
                    f"{eta:g}": [np.divide(*part["counts"][name][eta]) for part in parts]
                    for eta in parts[0]["counts"][name]
                },
                "mean": mean("rewards", name, "mean"),
                "return": mean("rewards", name, "return"),
                "cvar": mean("rewards", name, "cvar"),
            }
            for name in parts[0]["counts"]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trained", type=Path, required=True, help="folder of trainings, NAME-SEED each"
    )
    parser.add_argument(
        "--tails",
        type=Path,
        required=True,
        help="folder of their tails, of the same names, and base",
    )
    parser.add_argument(
        "--eta",
        type=float,
        action="append",
        help="a reward below is bad; repeat it, by default 0 and 2",
    )
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    etas = args.eta or [0.0, 2.0]
    groups: dict[str, list[Path]] = {}
    for folder in sorted(args.tails.iterdir()):
        if (folder / "figures.json").is_file():
            groups.setdefault(
                folder.name if folder.name == "base" else folder.name.rpartition("-")[0], []
            ).append(folder)
    if not groups:
        raise SystemExit(f"no measurements in {args.tails}")
    found = {}
    for name, folders in groups.items():
        method, settings = "base", {}
        if name != "base":
            trained = json.loads((args.trained / folders[0].name / "training.json").read_text())[
                "training"
            ]
            method = trained["method"]
            settings = {
                k: v
                for k, v in trained.items()
                if k not in ("method", "seed", "base", "prompts", "reward")
            }
        found[name] = pooled([measured(folder, etas) for folder in folders], method, settings)
    write_atomically(args.output / "frontier.json", json.dumps(to_json(found), indent=1) + "\n")
    judges = list(next(iter(found.values()))["rewards"])
    write_atomically(args.output / "frontier.md", table(found, judges))
    draw(found, judges, args.output / "frontier.png")


def table(found: dict[str, Any], judges: list[str]) -> str:
    etas = list(next(iter(found.values()))["rewards"][judges[0]]["below"])
    columns = (*(f"P(r < {eta})" for eta in etas), "mean of the worst 5%", "return")
    heads = [f"{what} ({judge})" for judge in judges for what in columns]
    lines = [
        f"| setting | seeds | {' | '.join(heads)} | KL | perplexity under the base | distinct-2 | tokens |",
        "| --- " * (len(heads) + 6) + "|",
    ]
    for name, one in found.items():
        cells = []
        for judge in judges:
            r = one["rewards"][judge]
            cells += [
                f"{bad.value:.4f} [{bad.low:.4f}, {bad.high:.4f}]" for bad in r["below"].values()
            ]
            cells += ["–" if v is None else f"{v:.2f}" for v in (r["cvar"], r["return"])]
        rest = [one[key] for key in ("kl", "perplexity", "distinct_2", "tokens")]
        shown = [
            "–" if value is None else f"{value:{form}}"
            for value, form in zip(rest, (".2f", ".2f", ".3f", ".1f"), strict=True)
        ]
        lines.append(f"| {name} | {one['seeds']} | {' | '.join(cells + shown)} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], judges: list[str], path: Path) -> None:
    """A picture for each judge and eta."""
    from matplotlib.figure import Figure

    etas = list(next(iter(found.values()))["rewards"][judges[0]]["below"])
    figure = Figure(figsize=(4.6 * len(judges), 3.4 * len(etas)), layout="constrained")
    grid = figure.subplots(len(etas), len(judges), squeeze=False)
    for (row, eta), (column, judge) in itertools.product(enumerate(etas), enumerate(judges)):
        axes = grid[row][column]
        named: set[str] = set()
        for name, one in found.items():
            r, colour = one["rewards"][judge], COLOURS[one["method"]]
            place = r["mean"] if r["return"] is None else r["return"]
            bad: Estimate = r["below"][eta]
            axes.plot([place, place], [max(bad.low, FLOOR), bad.high], color=colour, linewidth=1)
            axes.plot(
                place, max(bad.value, FLOOR), "o", color=colour,
                label=None if one["method"] in named else one["method"],
            )  # fmt: skip
            named.add(one["method"])
            axes.annotate(
                name, (place, bad.high), fontsize=6, xytext=(3, 3), textcoords="offset points"
            )
        axes.margins(x=0.12)  # room for the names
        axes.set(yscale="log", xlabel="mean return", ylabel=f"P(r < {eta})", title=judge)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
