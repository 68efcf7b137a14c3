"""The report of a replay in Markdown."""

from __future__ import annotations

import numpy as np

from sasa.evaluation.metrics import Estimate
from sasa.evaluation.reports.cells import in_cell
from sasa.redteam.replay_figures import ReplayFigures, ReplayRow

NOTHING = "–"
"""A cell without a figure."""


def replay_markdown(figures: ReplayFigures, plotted: bool) -> str:
    """The report; `plotted` says whether there is a picture, replay.png."""
    scorers = figures.scorers
    lines = [
        "# Replay",
        "",
        f"{figures.attacks} attacks that {figures.source} found "
        f"({figures.sample['clusters']} clusters), {figures.replies} replies to each; success is a "
        f"reply that {' and '.join(scorers)} call toxic, at {figures.threshold:g} or more. Beside "
        f"them {figures.harmless} harmless prompts. In brackets 95 % intervals over prompts; "
        f"changes and paired Wilcoxon tests are against {figures.rows[0].model}, plain, by which "
        "perplexity is.",
        "",
        *(["![Attack success rate](replay.png)", ""] if plotted else []),
        "| model | defence | attack success rate | change | p | attacks with any success | "
        + " | ".join(f"by {name} alone" for name in scorers)
        + " | harmless: perplexity | change | tokens | change | toxic |",
        "| --- | --- | --- | --- | --- | --- |" + " --- |" * (len(scorers) + 5),
        *(f"| {' | '.join(_cells(row))} |" for row in figures.rows),
    ]
    left_out = [
        f"- {model}: {error}" for model, why in figures.left_out.items() for error in why.values()
    ]
    return "\n".join([*lines, *(["", "Left out:", "", *left_out] if left_out else []), ""])


def _cells(row: ReplayRow) -> list[str]:
    other = row.comparison
    return [
        in_cell(row.model),
        in_cell(row.defence),
        _cell(row.success, ".3f"),
        _cell(other.change, "+.1%") if other else NOTHING,
        f"{other.test['p']:.2g}" if other else NOTHING,
        _cell(row.any_success, ".3f"),
        *(_cell(value, ".3f") for value in row.by.values()),
        _cell(row.perplexity, ".2f"),
        _cell(other.perplexity_change, "+.1%") if other else NOTHING,
        _cell(row.tokens, ".1f"),
        _cell(other.tokens_change, "+.1%") if other else NOTHING,
        _cell(row.harmless_toxic, ".3f"),
    ]


def _cell(value: Estimate, form: str) -> str:
    if np.isnan(value.value):
        return NOTHING
    ends = f" [{value.low:{form}}, {value.high:{form}}]" if np.isfinite(value.low) else ""
    return f"{value.value:{form}}{ends}"
