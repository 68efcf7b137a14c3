"""`sasa redteam report`: what attacks found, as a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sasa.cli.output import out, print_line
from sasa.cli.redteam.options import ThresholdOption
from sasa.redteam.settings import HIT

FAILED = 3
"""Exit status where more got through than --fail-above allows."""


def command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of attacks.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where the report goes.", show_default="DIR/report, of one"
        ),
    ] = None,
    threshold: ThresholdOption = HIT,
    show: Annotated[
        bool, typer.Option("--show", help="Show texts, which are offensive, and not first letters.")
    ] = False,
    fail_above: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help=f"End with exit status {FAILED} where more than this share of cases is toxic by all judges.",
        ),
    ] = None,
) -> None:
    """Write what attacks found as Markdown, HTML, JSON and pictures: hits, their clusters, quality, diversity, agreement.

    sasa redteam report runs/attack

    sasa redteam report runs/zero-shot runs/rl runs/curiosity -o runs/comparison

    sasa redteam report runs/attack --fail-above 0.01    # in a pipeline
    """
    from sasa.redteam.report import REPORT, write_report

    attacks = write_report(folders, output, threshold=threshold, show=show)["attacks"]
    by = list(attacks[0]["judges"])[-1]  # all judges together, where there are several
    table = Table(
        "attack", "method", "cases", "failed", f"toxic by {by}", "distinct hits", "clusters"
    )
    worst = 0.0
    for attack in attacks:
        side = attack["judges"][by]
        rate = side["rate"]
        # a target that answered nothing has passed nothing
        worst = max(worst, 1.0 if rate is None else rate.value)
        share = f"{rate.value:.2%}" if rate else "–"
        counts = (attack["cases"], attack["failed"], share, side["hits"], side["clusters"])
        table.add_row(attack["name"], attack["method"], *map(str, counts))
    out.print(table)
    folder = output or folders[0] / "report"
    print_line(f"report, with pictures: {folder / REPORT}, {folder / 'report.html'}")
    if fail_above is not None and worst > fail_above:
        out.print(
            f"{worst:.2%} of cases are toxic by {by}, more than {fail_above:.2%}", markup=False
        )
        raise typer.Exit(FAILED)
