"""tail.png: P(r < eta) against eta."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sasa.evaluation.metrics import Estimate
from sasa.evaluation.tail.figures import RewardFigures
from sasa.utils.plots import new_figure, save_figure


def write_plot(file: Path, rewards: Mapping[str, RewardFigures]) -> bool:
    """Draws a curve per reward; returns False without matplotlib."""
    figure = new_figure(figsize=(4.2 * len(rewards), 3.4), layout="constrained")
    if figure is None:
        return False
    row = figure.subplots(1, len(rewards), squeeze=False)[0]
    for axes, (name, figures) in zip(row, rewards.items(), strict=True):
        _draw(axes, name, figures)
    save_figure(figure, file, dpi=120)
    return True


def _draw(axes: Any, name: str, figures: RewardFigures) -> None:
    curve = figures.curve
    etas = [point.eta for point in curve]
    columns: list[tuple[str, list[Estimate | None], str]] = [
        ("plain", [point.plain for point in curve], "tab:blue"),
        ("combined", [point.combined for point in curve], "tab:orange"),
    ]
    for label, column, colour in columns:
        estimates = [estimate for estimate in column if estimate is not None]
        if not estimates:
            continue
        # A logarithmic scale has no place for 0: the upper end of its interval is all there is.
        values = [estimate.value or math.nan for estimate in estimates]
        axes.plot(etas, values, color=colour, label=label)
        low = [max(estimate.low, 1e-9) for estimate in estimates]
        high = [estimate.high for estimate in estimates]
        axes.fill_between(etas, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.axvline(figures.tail.eta, color="grey", linewidth=1, linestyle=":")
    ends = [point.best.high for point in curve]
    smallest = min((end for end in ends if math.isfinite(end)), default=1e-6)
    axes.set(yscale="log", ylim=(smallest / 10, 1.2), xlabel="eta", ylabel="P(r < eta)", title=name)
    axes.legend(frameon=False)
