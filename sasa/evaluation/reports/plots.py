"""Plots of a report: toxicity against perplexity, and toxicity by group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sasa.evaluation.metrics import Estimate
from sasa.evaluation.reports.figures import ACTORS, ACTRESSES, OWN, GroupToxicity, RunFigures
from sasa.evaluation.reports.markdown import PERPLEXITY, Plot
from sasa.utils.plots import has_matplotlib, new_figure, save_figure, tidy

MAX_GROUPS = 12
"""Groups with bars of their own; if there are more, and domains, the domains get the bars."""
DPI = 130


def write_plots(runs: Sequence[RunFigures], target: Path) -> dict[str, list[Plot]]:
    """Writes the plots of each run, and one of all runs of a suite; returns them by run.

    Without matplotlib there are none.
    """
    if not has_matplotlib():
        return {}
    plots: dict[str, list[Plot]] = {}
    for run in runs:
        prefix = ""
        if len(runs) > 1:
            prefix = "".join(c if c.isalnum() else "-" for c in run.name) + "-"
        own = plots.setdefault(run.name, [])
        scorer = next(name for name in run.scorers if name != OWN)
        if PERPLEXITY in run.figure_names:
            file = f"{prefix}frontier.png"
            _frontier([run], scorer, target / file)
            own.append(Plot(file, "Toxicity against perplexity: lower left is better"))
        if len(run.groups) > 1:
            file = f"{prefix}groups.png"
            _groups(run, scorer, target / file)
            own.append(Plot(file, "Toxicity by group of prompts"))
    by_suite: dict[str, list[RunFigures]] = {}
    for run in runs:
        by_suite.setdefault(run.suite, []).append(run)
    for suite, same in by_suite.items():
        shared = set.intersection(*(set(run.scorers) for run in same)) - {OWN}
        if len(same) > 1 and shared and all(PERPLEXITY in run.figure_names for run in same):
            file = f"{suite}-frontier.png"
            _frontier(same, min(shared), target / file)
            plots[same[0].name].insert(0, Plot(file, f"{suite}: all runs"))
    return plots


def _frontier(runs: Sequence[RunFigures], scorer: str, path: Path) -> None:
    """Toxicity against perplexity, a line per family of methods, such as all of `sasa:BETA`."""
    figure = new_figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(runs):
        points = {
            name: (method.figures[PERPLEXITY], method.toxicity[scorer].emt)
            for name, method in run.methods.items()
            if PERPLEXITY in method.figures and scorer in method.toxicity
        }
        families: dict[str, list[str]] = {}
        for name in points:
            families.setdefault(name.partition(":")[0], []).append(name)
        for place, (family, names) in enumerate(families.items()):
            names.sort(key=_argument)
            several = len(runs) > 1
            colour = f"C{place + 5 * number if several else place}"
            label = f"{run.name}: {family}" if several else family
            _family(axes, family, {name: points[name] for name in names}, label, colour)
    first = runs[0]
    axes.set(
        xlabel="perplexity of the completions (lower: more fluent)",
        ylabel=f"expected maximum toxicity, by {scorer} (lower: safer)",
        title=f"{first.suite.upper()}: {first.prompts} prompts, "
        f"{first.settings.completions} completions each",
    )
    axes.set_ylim(bottom=0)
    tidy(axes)
    save_figure(figure, path, dpi=DPI)


def _family(
    axes: Any, family: str, points: dict[str, tuple[Estimate, Estimate]], label: str, colour: str
) -> None:
    """A line through (perplexity, toxicity) of each method, with intervals and annotations."""
    columns = list(zip(*points.values(), strict=True))
    x, y = ([estimate.value for estimate in column] for column in columns)
    xerr, yerr = (_error_bars(column) for column in columns)
    axes.errorbar(
        x, y, xerr=xerr, yerr=yerr, fmt="o-", color=colour, label=label, linewidth=1.5,
        elinewidth=0.6, alpha=0.9,
    )  # fmt: skip
    for name, px, py in zip(points, x, y, strict=True):
        text = f"β={name.partition(':')[2]}" if family.startswith("sasa") else name
        axes.annotate(
            text, (px, py), xytext=(5, 5), textcoords="offset points", fontsize=8, color=colour
        )


def _error_bars(estimates: Sequence[Estimate]) -> Any:
    """Lengths of the intervals below and above the values, (2, N)."""
    below = [estimate.value - estimate.low for estimate in estimates]
    above = [estimate.high - estimate.value for estimate in estimates]
    return np.maximum([below, above], 0)


def _argument(name: str) -> float:
    """A method's argument if it is a number, such as 2 of `sasa:2`; else 0."""
    try:
        return float(name.partition(":")[2] or 0)
    except ValueError:
        return 0.0


def _groups(run: RunFigures, scorer: str, path: Path) -> None:
    """Bars with intervals, a cluster per group and a colour per method."""
    methods = [name for name, method in run.methods.items() if scorer in method.toxicity]
    bars: dict[str, dict[str, Estimate]] = {}
    for method in methods:
        for group, toxicity in _shown_groups(run, method, scorer).items():
            bars.setdefault(group, {})[method] = toxicity.emt
    width = max(6, 1.2 + len(bars) * max(1.1, 0.35 * len(methods)))
    figure = new_figure(figsize=(width, 4.5), layout="constrained")
    axes = figure.subplots()
    bar_width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        estimates = [by_method[method] for by_method in bars.values()]
        x = np.arange(len(bars)) + (place - (len(methods) - 1) / 2) * bar_width
        values = [estimate.value for estimate in estimates]
        ends = np.nan_to_num(_error_bars(estimates))
        axes.bar(x, values, bar_width, yerr=ends, error_kw={"elinewidth": 0.8}, label=method)
    names = [group.rpartition("/")[2].replace("_", "\n") for group in bars]
    axes.set_xticks(range(len(bars)), names, fontsize=8)
    axes.set(
        ylabel=f"expected maximum toxicity, by {scorer}",
        title=f"{run.suite.upper()} by group of prompts",
        ylim=(0, None),
    )
    tidy(axes, grid=False)
    save_figure(figure, path, dpi=DPI)


def _shown_groups(run: RunFigures, method: str, scorer: str) -> dict[str, GroupToxicity]:
    """The groups, or for BOLD's many groups actors, actresses and the other domains."""
    toxicity = run.methods[method].toxicity[scorer]
    groups = toxicity.groups
    if len(groups) <= MAX_GROUPS or toxicity.domains is None:
        return groups
    pair = {group: one for group, one in groups.items() if group in (ACTORS, ACTRESSES)}
    others = {
        domain: one for domain, one in toxicity.domains.items() if domain != "gender" or not pair
    }
    return pair | others
