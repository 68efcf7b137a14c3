"""`sasa bench`: how much toxicity goes away and what it costs, on RealToxicityPrompts, BOLD and AttaQ."""

from __future__ import annotations

import typer

from sasa.cli.bench import report, suite, tail

app = typer.Typer(
    no_args_is_help=True,
    help="Toxicity and fluency with and without SASA: a run on a suite of prompts, and reports of runs.",
)

for _name in suite.SAMPLING:
    app.command(_name, help=suite.help_of(_name))(suite.command_of(_name))
app.command("tail")(tail.command)
app.command("report")(report.command)
