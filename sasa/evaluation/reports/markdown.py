"""report.md: the figures of runs as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sasa.evaluation import metrics
from sasa.evaluation.metrics import Estimate
from sasa.evaluation.reports.cells import EMPTY, estimate_cell, in_cell
from sasa.evaluation.reports.figures import OWN, RunFigures
from sasa.evaluation.reports.measure import STYLE

COLUMNS = {
    "emt": "expected max. toxicity",
    "toxic_rate": "toxic rate",
    "mean_toxicity": "mean toxicity",
    "perplexity": "perplexity",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "repetition": "repetition",
    "tokens": "tokens",
    "spent": "tokens drawn / delivered",
    "sent_back": "completions sent back",
    "perplexity_never_back": "perplexity of the others",
}
TOXICITY = ("emt", "toxic_rate", "mean_toxicity")
PERPLEXITY, JUDGED = "perplexity", "perplexity@"


NOTES = (
    "Expected maximum toxicity: mean over prompts of the highest score among a prompt's completions. "
    f"Toxic rate: share of prompts with at least one completion at {metrics.TOXIC} or more. "
    "Perplexity: of the completions given their prompts, under the generating model unless a judge "
    "is named. Distinct-n: distinct word n-grams among a prompt's completions over their words. "
    "Repetition: share of a completion's word pairs that stand in it before. Changes: relative, "
    "with intervals that resample a prompt's plain and steered completions together. Seconds "
    "include what every method does here: plain, too, is decoded with the margins of its texts."
)


@dataclass(frozen=True)
class Plot:
    """A plot's file in the report's folder, and its caption."""

    file: str
    caption: str


def markdown(runs: Sequence[RunFigures], plots: Mapping[str, Sequence[Plot]]) -> str:
    """The report.

    Args:
        plots: of each run, by its name.
    """
    lines = ["# Detoxification report", ""]
    for run in runs:
        lines += _run(run, plots.get(run.name, []))
    lines.append(NOTES)
    if not any(plots.values()):
        lines += ["", "Pictures need matplotlib: `pip install matplotlib`."]
    return "\n".join([*lines, ""])


def _run(run: RunFigures, plots: Sequence[Plot]) -> list[str]:
    run = replace(run, methods={in_cell(name): method for name, method in run.methods.items()})
    settings = run.settings
    groups = ", ".join(f"{count} {group}" for group, count in run.groups.items())
    lines = [
        f"## {run.name}: {run.suite}",
        "",
        f"{run.prompts} prompts from {run.source} ({groups}), {settings.completions} completions "
        f"of at most {settings.max_new_tokens} tokens each, "
        f"temperature {settings.temperature:g}, top-k {settings.top_k}, top-p {settings.top_p:g}"
        f"{', chat template' if settings.chat else ''}, seed {run.seed}. "
        f"Model {run.model} ({run.dtype}, {run.device}). "
        "Completions alone are scored, without their prompts. "
        "In brackets: 95 % bootstrap intervals over prompts.",
        "",
    ]
    if run.skipped:
        skipped = ", ".join(f"{count} prompts {reason}" for reason, count in run.skipped.items())
        lines += [f"Left out: {skipped}.", ""]
    for plot in plots:
        lines += [f"![{plot.caption}]({plot.file})", ""]
    for name, version in run.scorers.items():
        note = " (the boundary that steered: not evidence of its own)" if name == OWN else ""
        lines += [f"### Scored by {name} {version}{note}", ""]
        lines += [*_table(run, name), "", *_tests(run, name), ""]
        if len(run.groups) > 1:
            lines += [*_group_table(run, name), *_gender_gaps(run, name), ""]
    if len(run.groups) > 1 and PERPLEXITY in run.figure_names:
        lines += ["### Perplexity by group of prompts, and over plain's", ""]
        lines += [*_perplexity_table(run), ""]
    if any(method.changes is not None for method in run.methods.values()):
        lines += ["### Change against plain", "", *_change_table(run), ""]
    for name, method in run.methods.items():
        if method.sent_back_by_group is not None:
            shares = method.sent_back_by_group.items()
            by_group = ", ".join(f"{share:.1%} of {group}" for group, share in shares)
            lines.append(f"{name} sent back {by_group}.\n")
    return lines


def _header(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]


def _table(run: RunFigures, scorer: str) -> list[str]:
    """Toxicity by one scorer, fluency, style and time, a line per method."""
    judged = [key for key in run.figure_names if key.startswith(JUDGED)]
    titles = COLUMNS | {key: f"perplexity ({key.removeprefix(JUDGED)})" for key in judged}
    titles = {k: title for k, title in titles.items() if k in TOXICITY or k in run.figure_names}
    lines = _header(["method", *titles.values(), "s / completion"])
    for name, method in run.methods.items():
        toxicity = method.toxicity.get(scorer)
        known = dict(method.figures)
        if toxicity is not None:
            known |= {key: getattr(toxicity, key) for key in TOXICITY}
        cells = [_figure_cell(known.get(key), key) for key in titles]
        seconds = method.seconds_per_completion
        cells.append(EMPTY if seconds is None else f"{seconds:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _figure_cell(value: Estimate | None, key: str) -> str:
    """A figure, with its interval if it is one of toxicity or perplexity."""
    if value is None:
        return EMPTY
    perplexity = key.startswith(PERPLEXITY)
    form = f".{2 if perplexity else 1 if key == 'tokens' else 3}f"
    interval = perplexity or key in TOXICITY
    return estimate_cell(value, form) if interval else f"{value.value:{form}}"


def _tests(run: RunFigures, scorer: str) -> list[str]:
    plain = run.methods.get("plain")
    lines = []
    for name, method in run.methods.items():
        toxicity = method.toxicity.get(scorer)
        test = toxicity.against_plain if toxicity else None
        if not test or not plain:
            continue
        relative = EMPTY if math.isnan(test["relative"]) else f"{test['relative']:+.1%}"
        p = "p < 0.001" if test["p"] < 0.001 else f"p = {test['p']:.3f}"
        text = (
            f"- {name} against plain: expected maximum toxicity {relative} "
            f"(paired Wilcoxon over prompts, {p})"
        )
        if PERPLEXITY in method.figures and PERPLEXITY in plain.figures:
            ratio = method.figures[PERPLEXITY].value / plain.figures[PERPLEXITY].value
            text += f", perplexity x{ratio:.3f}"
        lines.append(text)
    return lines


def _group_table(run: RunFigures, scorer: str) -> list[str]:
    domains: dict[str, int] = {}
    for group, prompts in run.groups.items():
        if "/" in group:
            domain = group.partition("/")[0]
            domains[domain] = domains.get(domain, 0) + prompts
    lines = ["Expected maximum toxicity by group:", ""]
    lines += _header(["group", "prompts", *run.methods])
    for group, prompts in {**domains, **run.groups}.items():
        cells = [
            _figure_cell(toxicity.emt_of(group) if toxicity else None, "emt")
            for toxicity in (method.toxicity.get(scorer) for method in run.methods.values())
        ]
        lines.append(f"| {group} | {prompts} | {' | '.join(cells)} |")
    return lines


def _gender_gaps(run: RunFigures, scorer: str) -> list[str]:
    lines = []
    titles = {"gender_gap": "share of toxic ones", "gender_gap_mean": "mean toxicity"}
    for key, title in titles.items():
        gaps: dict[str, Estimate | None] = {
            name: getattr(method.toxicity.get(scorer), key, None)
            for name, method in run.methods.items()
        }
        if any(gaps.values()):
            gap_title = f"{title} among actors' completions minus that among actresses'"
            lines += ["", f"Gender gap: {gap_title}:", ""]
            lines += [
                f"- {name}: {estimate_cell(gap, '+.4f')}" for name, gap in gaps.items() if gap
            ]
    return lines


def _perplexity_table(run: RunFigures) -> list[str]:
    lines = _header(["group", *run.methods])
    plain = run.methods.get("plain")
    for group in run.groups:
        before = plain.perplexity_by_group.get(group) if plain else None
        cells = []
        for name, method in run.methods.items():
            value = method.perplexity_by_group.get(group)
            over = ""
            if before and value and name != "plain":
                over = f" (x{value.value / before.value:.3f})"
            cells.append(_figure_cell(value, PERPLEXITY) + over)
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return lines


def _change_table(run: RunFigures) -> list[str]:
    """Whether toxicity fell by shorter, emptier or more monotonous text."""
    known = {key for method in run.methods.values() for key in method.changes or ()}
    keys = [key for key in (PERPLEXITY, *STYLE) if key in known]
    lines = _header(["method", *(COLUMNS[key] for key in keys), "empty completions"])
    for name, method in run.methods.items():
        if name != "plain" and method.changes is None:
            continue
        changes = {k: v for k, v in (method.changes or {}).items() if math.isfinite(v.value)}
        cells = [estimate_cell(changes.get(key), "+.1%") for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} | {method.figures['empty'].value:.1%} |")
    return lines
