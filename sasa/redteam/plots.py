"""The pictures of a report and of a replay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sasa.redteam.figures import THRESHOLDS, AttackFigures
from sasa.redteam.settings import METHODS, TERMS
from sasa.utils.plots import has_matplotlib, new_figure, save_figure

if TYPE_CHECKING:  # a report needs none of what a replay runs
    from sasa.redteam.replay_figures import ReplayRow

COLOURS = dict(
    zip(METHODS, ("tab:red", "tab:blue", "tab:purple", "tab:grey", "tab:green"), strict=True)
)
STYLES = "-", "--", ":", "-."
DPI = 110


def plot_attacks(folder: Path, attacks: Sequence[AttackFigures]) -> dict[str, str]:
    """Draws the pictures of a report.

    Returns:
        titles by the names of files; none if matplotlib is not installed.
    """
    if not has_matplotlib():
        return {}
    scorer = list(attacks[0].scorers)[-1]
    by = f"by {scorer}"
    _plot_hits(folder / "hits.png", attacks, scorer, by)
    _plot_quality(folder / "quality.png", attacks, scorer, by)
    _plot_terms(folder / "terms.png", attacks)
    return {
        "hits.png": f"Hits and clusters by the number of cases tried, {by}",
        "quality.png": f"Quality and diversity by threshold, {by}",
        "terms.png": "Terms of the reward by cases tried",
    }


def plot_replay(file: Path, rows: Sequence[ReplayRow]) -> bool:
    """Draws attack success rates with their intervals; False if matplotlib is not installed."""
    figure = new_figure(figsize=(7, 0.5 * len(rows) + 1.2), layout="constrained")
    if figure is None:
        return False
    axes = figure.subplots()
    for place, row in enumerate(rows):
        rate = row.success
        low, high = (rate.low, rate.high) if np.isfinite(rate.low) else (rate.value, rate.value)
        axes.barh(place, rate.value, color="tab:grey" if place == 0 else "tab:blue", alpha=0.7)
        axes.plot([low, high], [place, place], color="black", linewidth=1.5)
    axes.set_yticks(range(len(rows)), [f"{row.model}, {row.defence}" for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="attack success rate", xlim=(0, None))
    save_figure(figure, file, dpi=DPI)
    return True


def _plot_hits(file: Path, attacks: Sequence[AttackFigures], scorer: str, by: str) -> None:
    figure, panels = _panels(2)
    for axes, key in zip(panels, ("hits", "clusters"), strict=True):
        for attack, style in _lines(attacks):
            curve = attack.scorers[scorer].curve
            axes.plot(curve.cases, getattr(curve, key), **style)
        axes.set(xlabel="cases tried", ylabel=key, title=f"{key}, {by}")
    panels[0].legend(frameon=False, fontsize="small")
    save_figure(figure, file, dpi=DPI)


def _plot_quality(file: Path, attacks: Sequence[AttackFigures], scorer: str, by: str) -> None:
    figure, panels = _panels(3)
    titles = "quality: share of cases", "diversity: 1 - SelfBLEU", "diversity: 1 - cosine"
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlabel=f"toxicity, {by}", title=title)
    for attack, style in _lines(attacks):
        side = attack.scorers[scorer]
        panels[0].plot(THRESHOLDS, [value or float("nan") for value in side.quality], **style)
        for axes, key in zip(panels[1:], ("self_bleu", "cosine"), strict=True):
            values = [_or_nan(getattr(diversity, key)) for diversity in side.diversity]
            axes.plot(THRESHOLDS, values, **style)
    panels[0].set_yscale("log")
    panels[0].legend(frameon=False, fontsize="small")
    save_figure(figure, file, dpi=DPI)


def _plot_terms(file: Path, attacks: Sequence[AttackFigures]) -> None:
    figure, panels = _panels(len(TERMS))
    for axes, name in zip(panels, TERMS, strict=True):
        for attack, style in _lines(attacks):
            values = [_or_nan(value) for value in attack.terms[name]]
            cases = attack.scorers[attack.rewarded].curve.cases
            axes.plot(cases[: len(values)], _smooth(values), **style)
        axes.set(xlabel="cases tried", title=name)
    panels[0].legend(frameon=False, fontsize="small")
    save_figure(figure, file, dpi=DPI)


def _lines(attacks: Sequence[AttackFigures]) -> list[tuple[AttackFigures, dict[str, str]]]:
    """Each attack with the style of its line: a colour a method, a dash a run of that method."""
    runs: dict[str, int] = {}
    lines = []
    for attack in attacks:
        number = runs[attack.method] = runs.get(attack.method, -1) + 1
        style = dict(
            color=COLOURS[attack.method],
            linestyle=STYLES[number % len(STYLES)],
            label=attack.name,
        )
        lines.append((attack, style))
    return lines


def _smooth(values: list[float], over: int = 5) -> list[float]:
    """Means of each value and the few before it: one step says little."""
    return [
        sum(values[max(0, i + 1 - over) : i + 1]) / min(over, i + 1) for i in range(len(values))
    ]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _panels(count: int) -> tuple[Any, list[Any]]:
    """A figure of `count` panels, three in a row."""
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = new_figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
