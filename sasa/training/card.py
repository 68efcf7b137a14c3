"""What a trained model says of itself: a model card in Markdown and a picture of its training."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sasa.utils.plots import new_figure, save_figure

logger = logging.getLogger(__name__)

AVERAGED = 10
"""Steps at either end of a training that the card's figures are means of."""
CURVES = {
    "reward": "mean reward",
    "below": "share of bad completions",
    "kl": "KL to the model as it was, nats",
    "effective_samples": "effective samples of the proposal's",
}


def card(
    base: str, reward: str, about: dict[str, Any], log: Sequence[dict[str, Any]], plotted: bool
) -> str:
    """The card of a model trained with RePULSe, every figure in it from its settings and log."""
    steps = [entry for entry in log if "reward" in entry]
    ends = steps[:AVERAGED], steps[-AVERAGED:]
    s = about["training"]
    rows = [
        f"| {title} | "
        + " | ".join(f"{sum(e[key] for e in part) / len(part):.3f}" for part in ends)
        + " |"
        for key, title in CURVES.items()
        if all(key in e for part in ends for e in part)
    ]
    settings = ", ".join(
        f"{key} `{json.dumps(value)}`" for key, value in s.items() if key not in ("base", "reward")
    )
    return "\n".join(
        [
            "---",
            f"base_model: {base}",
            *(["library_name: peft"] if s["lora"] else []),
            "tags: [sasa, repulse, detoxification]",
            "---",
            "",
            f"# {base}, trained to make its bad outputs improbable",
            "",
            "By RePULSe (Zhao et al. 2025, arXiv 2510.21184; here its method "
            f"`{s['method']}`) with the reward `{reward}`, with "
            "[sasa](https://pypi.org/project/sasa-decoding/). Load it with `sasa.load(FOLDER)`; "
            "a boundary that was fitted on the base fits it with `strict=False` (`--no-strict`).",
            "",
            f"Over {len(steps)} steps, of completions sampled from the policy at temperature 1; "
            f"bad is a reward below {s['eta']:g}. "
            f"Means of the first and of the last {min(AVERAGED, len(steps))} steps, on training "
            "prompts:",
            "",
            "| | first | last |",
            "| --- | --- | --- |",
            *rows,
            "",
            *(["![the training, step by step](training.png)", ""] if plotted else []),
            "It was trained for this reward and may please it without being better: measure it by "
            "a judge that took no part (`sasa bench tail`, `sasa bench rtp`). It makes some "
            "outputs rarer, none impossible.",
            "",
            f"Settings: {settings}.",
            "",
        ]
    )


def plot(path: Path, log: Sequence[dict[str, Any]]) -> bool:
    """Draws the log's curves, step by step; False, and said so, without matplotlib."""
    shown = {key: title for key, title in CURVES.items() if any(key in entry for entry in log)}
    figure = new_figure(figsize=(3.2 * len(shown), 2.8), layout="constrained")
    if figure is None:
        logger.warning("no plot of the training: pip install 'sasa-decoding[plots]'")
        return False
    for axes, (key, title) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        places = [(entry["step"], entry[key]) for entry in log if key in entry]
        axes.plot(*zip(*places, strict=True), color="tab:blue", linewidth=1)
        held_out = [
            (entry["step"], entry["eval"][key]) for entry in log if key in entry.get("eval", {})
        ]
        if held_out:
            axes.plot(
                *zip(*held_out, strict=True),
                color="tab:orange",
                marker="o",
                markersize=3,
                label="held-out prompts",
            )
            axes.legend(frameon=False, fontsize=7)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    save_figure(figure, path, dpi=120)
    return True
