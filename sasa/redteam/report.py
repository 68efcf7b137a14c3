"""The report of one attack or several: summary.json, report.md, report.html and pictures."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sasa.evaluation import metrics
from sasa.redteam.figures import DRAWS, SUBSET, THRESHOLDS, AttackFigures, figures, to_dict
from sasa.redteam.plots import plot_attacks
from sasa.redteam.settings import HIT
from sasa.redteam.store import Attempts
from sasa.utils.files import write_atomically

SUMMARY, REPORT = "summary.json", "report.md"
SHOWN = 0.0, 0.1, 0.5, 0.9
"""Thresholds of which the report has quality and diversity."""
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui;max-width:72rem;margin:2rem auto;padding:0 1rem}}table{{border-collapse:collapse}}
td,th{{border-bottom:1px solid #ccc;padding:.3rem .8rem;text-align:left}}img{{max-width:100%}}</style>
{body}</html>
"""


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    threshold: float = HIT,
    show: bool = False,
) -> dict[str, Any]:
    """Writes the report of attacks.

    Args:
        folders: of `sasa redteam run`.
        output: where it goes; None for `report` in the folder of a single attack.
        threshold: of a toxic reply, in 0..1.
        show: shows texts as they are, and not only their words' first letters.

    Returns:
        what summary.json holds: the attacks' figures under `attacks`.

    Raises:
        FileNotFoundError: a folder holds no attack.
        ValueError: no folder, several without an output, a threshold outside 0..1, an attack
            without attempts, or attacks whose scorers differ.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in 0..1, got {threshold}")
    if not folders:
        raise ValueError("there is no folder to report on")
    if output is None and len(folders) > 1:
        raise ValueError("a report of several attacks needs a folder of its own: give an output")
    stores = [Attempts.open(folder) for folder in folders]
    if len({tuple(store.judges) for store in stores}) > 1:
        names = "; ".join(f"{store.folder}: {', '.join(store.judges)}" for store in stores)
        raise ValueError(f"attacks that were scored by others cannot stand side by side: {names}")
    place = Path(output) if output is not None else stores[0].folder / "report"
    attacks = [figures(store, threshold, show) for store in stores]
    if len({attack.name for attack in attacks}) < len(attacks):
        attacks = [
            replace(attack, name=str(folder))
            for attack, folder in zip(attacks, folders, strict=True)
        ]
    summary = {"attacks": to_dict(attacks)}
    write_atomically(place / SUMMARY, json.dumps(metrics.to_json(summary), indent=1) + "\n")
    text = _markdown(attacks, plot_attacks(place, attacks))
    write_atomically(place / REPORT, text)
    write_atomically(place / "report.html", _html(text, place))
    return summary


def _markdown(attacks: list[AttackFigures], pictures: dict[str, str]) -> str:
    first = attacks[0]
    scorers = list(first.scorers)
    lines = [
        "# Red-teaming" if len(attacks) > 1 else f"# Red-teaming: {first.name}",
        "",
        "A case is one attack and one reply; what the target failed to answer is counted and left "
        f"out of shares. A hit is an attack whose reply is toxic, at {first.threshold:g} or more; "
        "each text counts once. Clusters are hits that mean the same, counted once. The attackers "
        f"were rewarded by {first.rewarded}: what it alone calls toxic may be its own mistake.",
        "",
        "| attack | method | cases | failed | "
        + " | ".join(f"toxic replies by {name} | hits | clusters" for name in scorers)
        + " |",
        "| --- | --- | --- | --- |" + " --- | --- | --- |" * len(scorers),
    ]
    for attack in attacks:
        cells = [attack.name, attack.method, str(attack.cases), str(attack.failed)]
        for name in scorers:
            side = attack.scorers[name]
            rate = side.rate
            cells += [
                "–" if rate is None else f"{rate.value:.2%} [{rate.low:.2%}, {rate.high:.2%}]",
                str(side.hits),
                str(side.clusters),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [""]
    for name, title in pictures.items():
        lines += [f"![{title}]({name})", ""]
    lines += _diversity(attacks, scorers[-1])
    lines += _agreement(attacks)
    lines += _errors(attacks)
    for attack in attacks:
        lines += _heads(attack)
    return "\n".join(lines)


def _diversity(attacks: list[AttackFigures], scorer: str) -> list[str]:
    """Quality and diversity at a few thresholds, by a scorer or by all."""
    lines = [
        f"## Quality and diversity, by {scorer}",
        "",
        "The share of cases at tau or more, and how unlike each other they are: 1 - SelfBLEU and "
        f"1 - mean cosine of subsets of {SUBSET} ({DRAWS} draws; of all, in brackets their number, "
        "where there are fewer).",
        "",
        "| attack | tau | quality | 1 - SelfBLEU | 1 - cosine |",
        "| --- | --- | --- | --- | --- |",
    ]
    for attack in attacks:
        side = attack.scorers[scorer]
        for tau, quality, diversity in zip(THRESHOLDS, side.quality, side.diversity, strict=True):
            if tau in SHOWN:
                few = f" ({diversity.n})" if diversity.n < SUBSET else ""
                words, meaning = (
                    "–" if value is None else f"{value:.3f}{few}"
                    for value in (diversity.self_bleu, diversity.cosine)
                )
                lines.append(f"| {attack.name} | {tau:g} | {quality:.2%} | {words} | {meaning} |")
    return [*lines, ""]


def _agreement(attacks: list[AttackFigures]) -> list[str]:
    lines = []
    for attack in attacks:
        for pair in attack.agreement:
            cells = [
                attack.name,
                ", ".join(pair.scorers),
                f"{pair.correlation:.2f}",
                f"{pair.kappa:.2f}",
                *map(str, (pair.both, *pair.only)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "## Do the judges agree?",
        "",
        "| attack | judges | correlation | kappa | both toxic | the first alone | the second alone |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *lines,
        "",
    ]


def _errors(attacks: list[AttackFigures]) -> list[str]:
    lines = [
        f"- {attack.name}: {count} x {_cell(reason)}"
        for attack in attacks
        for reason, count in attack.errors.items()
    ]
    return ["## Cases without a reply", "", *lines, ""] if lines else []


def _heads(attack: AttackFigures) -> list[str]:
    if not attack.heads:
        return []
    lines = [
        f"## The largest clusters: {attack.name}",
        "",
        "| hits | first attack | reply | scores | found at case |",
        "| --- | --- | --- | --- | --- |",
    ]
    for head in attack.heads:
        scores = ", ".join(f"{score:.2f}" for score in head.scores.values())
        lines.append(
            f"| {head.size} | {_cell(head.attack)} | {_cell(head.reply)} | {scores} | {head.case} |"
        )
    return [*lines, ""]


def _cell(text: str) -> str:
    """A text in a table's cell: in one line, with Markdown's and HTML's signs escaped."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in "\\|*_`[]~" else letter for letter in flat)


def _html(text: str, folder: Path) -> str:
    """The report as a page that stands alone, its pictures within."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for file in folder.glob("*.png"):
        data = base64.b64encode(file.read_bytes()).decode()
        body = body.replace(f'src="{file.name}"', f'src="data:image/png;base64,{data}"')
    return PAGE.format(title="Red-teaming", body=body)
