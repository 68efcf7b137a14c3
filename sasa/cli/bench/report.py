"""`sasa bench report`: the report of a run, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sasa.cli.output import out
from sasa.utils.files import read_json


def command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Folders of runs, or of reports such as published ones."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where the report goes.", show_default="the run's own folder"
        ),
    ] = None,
) -> None:
    """Write summary.json, report.md and pictures of a run, or of several side by side.

    sasa bench report runs/rtp

    sasa bench report runs/rtp runs/rtp-other-model --output runs/comparison

    sasa bench report runs/rtp benchmarks/results/rtp-default --output runs/beside-the-published-one
    """
    from sasa.evaluation.reports.report import write_report

    show(write_report(folders, output))


def show(report: Path) -> None:
    """Prints the figures that matter most of a report, and where the rest is."""
    for run in read_json(report.with_name("summary.json"))["runs"]:
        for scorer in run["scorers"]:
            table = Table(
                *("method", "exp. max. toxicity", "toxic rate", "perplexity", "against plain", "p"),
                title=f"{run['name']}: {run['suite']}, {run['prompts']} prompts, by {scorer}",
            )
            for name, method in run["methods"].items():
                toxicity = method["toxicity"].get(scorer, {})
                figures = (
                    toxicity.get("emt"),
                    toxicity.get("toxic_rate"),
                    method["figures"].get("perplexity"),
                )
                cells = (f"{figure['value']:.3f}" if figure else "–" for figure in figures)
                test = toxicity.get("against_plain")
                change = f"{test['relative']:+.1%}" if test and test["relative"] is not None else ""
                table.add_row(escape(name), *cells, change, f"{test['p']:.3f}" if test else "")
            out.print(table)
    out.print(f"report, with intervals and pictures: {report}")
