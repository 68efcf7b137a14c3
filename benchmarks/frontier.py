"""Trainings side by side: mean return against how rare bad completions are, by the reward and by a judge that took no part.

Each training's tail must have been measured (`sasa bench tail`), in a folder of the same name; trainings that differ only by
their seed are one setting, NAME-SEED. The base model's own tail is called base.

    python benchmarks/frontier.py --trained runs/repulse --tails runs/repulse-tails --output benchmarks/results/repulse
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sasa.boundary import write_atomically
from sasa.evaluation.importance import proportion
from sasa.evaluation.metrics import Estimate, from_json, to_json
from sasa.evaluation.store import read

COLOURS = {
    "repulse": "tab:red",
    "rloo": "tab:blue",
    "rloo-transformed": "tab:green",
    "p-proposal": "tab:purple",
    "base": "black",
}


def measured(folder: Path) -> dict[str, Any]:
    """Of a measurement: its figures, and for each reward how many of the model's own completions are bad."""
    figures = json.loads((folder / "figures.json").read_text(), object_hook=from_json)
    own = [i for i, record in enumerate(read(folder / "samples.jsonl")) if record["by"] == "model"]
    counts = {}
    for file in sorted((folder / "rewards").glob("*.json")):
        judged = json.loads(file.read_text())
        rewards = np.array(judged["rewards"])[own]
        counts[judged["name"]] = int((rewards < figures["about"]["settings"]["eta"]).sum()), len(rewards)
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
        return None if any(value is None for value in found) else float(np.mean([value.value for value in found]))

    return {
        "method": method,
        "settings": settings,
        "seeds": len(parts),
        **{key: mean(key) for key in ("kl", "perplexity", "distinct_2", "tokens")},
        "rewards": {
            name: {
                "bad": proportion(*(sum(part["counts"][name][i] for part in parts) for i in (0, 1))),
                "each": [part["counts"][name][0] / part["counts"][name][1] for part in parts],
                "mean": mean("rewards", name, "mean"),
                "return": mean("rewards", name, "return"),
                "cvar": mean("rewards", name, "cvar"),
            }
            for name in parts[0]["counts"]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, required=True, help="folder of trainings, NAME-SEED each")
    parser.add_argument("--tails", type=Path, required=True, help="folder of their tails, of the same names, and base")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    groups: dict[str, list[Path]] = {}
    for folder in sorted(args.tails.iterdir()):
        if (folder / "figures.json").is_file():
            groups.setdefault(folder.name if folder.name == "base" else folder.name.rpartition("-")[0], []).append(
                folder
            )
    if not groups:
        raise SystemExit(f"no measurements in {args.tails}")
    found = {}
    for name, folders in groups.items():
        method, settings = "base", {}
        if name != "base":
            trained = json.loads((args.trained / folders[0].name / "training.json").read_text())["training"]
            method = trained["method"]
            settings = {k: v for k, v in trained.items() if k not in ("method", "seed", "base", "prompts", "reward")}
        found[name] = pooled([measured(folder) for folder in folders], method, settings)
    write_atomically(args.output / "frontier.json", json.dumps(to_json(found), indent=1) + "\n")
    judges = list(next(iter(found.values()))["rewards"])
    write_atomically(args.output / "frontier.md", table(found, judges))
    draw(found, judges, args.output / "frontier.png")


def table(found: dict[str, Any], judges: list[str]) -> str:
    heads = [f"{what} ({judge})" for judge in judges for what in ("P(bad)", "return", "mean of the worst 5%")]
    lines = [
        f"| setting | seeds | {' | '.join(heads)} | KL | perplexity under the base | distinct-2 | tokens |",
        "| --- " * (len(heads) + 6) + "|",
    ]
    for name, one in found.items():
        cells = []
        for judge in judges:
            r = one["rewards"][judge]
            bad: Estimate = r["bad"]
            cells += [
                f"{bad.value:.4f} [{bad.low:.4f}, {bad.high:.4f}]",
                *("–" if v is None else f"{v:.2f}" for v in (r["return"], r["cvar"])),
            ]
        rest = [one[key] for key in ("kl", "perplexity", "distinct_2", "tokens")]
        shown = [
            "–" if value is None else f"{value:{form}}"
            for value, form in zip(rest, (".2f", ".2f", ".3f", ".1f"), strict=True)
        ]
        lines.append(f"| {name} | {one['seeds']} | {' | '.join(cells + shown)} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], judges: list[str], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(judges), 3.8), layout="constrained")
    for axes, judge in zip(figure.subplots(1, len(judges), squeeze=False)[0], judges, strict=True):
        for method, colour in COLOURS.items():
            points = [(name, one) for name, one in found.items() if one["method"] == method]
            for name, one in points:
                r = one["rewards"][judge]
                place = r["mean"] if r["return"] is None else r["return"]
                bad: Estimate = r["bad"]
                axes.plot(
                    [place, place], [max(bad.low, 1e-5), bad.high], color=colour, linewidth=1,
                )  # fmt: skip
                axes.plot(
                    place, bad.value or math.nan, "o", color=colour, label=method if (name, one) == points[0] else None
                )
                axes.annotate(
                    name, (place, bad.value or bad.high), fontsize=6, xytext=(3, 3), textcoords="offset points"
                )
        axes.set(yscale="log", xlabel="mean return", ylabel="P(bad)", title=judge)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
