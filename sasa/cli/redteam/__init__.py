"""`sasa redteam`: what still gets through, and what is left of it elsewhere."""

from __future__ import annotations

import typer

from sasa.cli.redteam import export, replay, report, run

app = typer.Typer(
    no_args_is_help=True,
    help="Attack a model with prompts that it is led to write badly by, report, export, and replay them against defences.",
)


@app.callback()
def _group() -> None:
    """Attack, report, export, replay."""


app.command("run")(run.command)
app.command("report")(report.command)
app.command("export")(export.command)
app.command("replay")(replay.command)
