"""The command line: `sasa generate`, `sasa fit`, `sasa bench`, `sasa tune`, `sasa train`, `sasa redteam`, `sasa serve`,
`sasa inspect`, `sasa audit`, `sasa selectivity` and `sasa classifiers`."""

from __future__ import annotations

import io
import logging
import sys
from typing import Annotated

import typer
from rich.console import Console

import sasa
from sasa.cli import audit, bench, classifiers, fit, generate, inspect, redteam, selectivity, serve, train, tune

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A language model that moderates its own language while it writes (SASA, Ko et al., ICLR 2025).",
)


@app.callback(invoke_without_command=True)
def _options(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    if show_version:
        print(sasa.__version__)
        raise typer.Exit()


app.command("generate")(generate.command)
app.command("fit")(fit.command)
app.command("tune")(tune.command)
app.add_typer(train.app, name="train")
app.add_typer(redteam.app, name="redteam")
app.command("serve", context_settings=serve.SETTINGS, options_metavar="[MODEL] [OPTIONS]")(serve.command)
app.command("audit")(audit.command)
app.command("selectivity")(selectivity.command)
app.command("inspect")(inspect.command)
app.add_typer(bench.app, name="bench")
app.command("classifiers")(classifiers.command)


def main() -> None:
    """Runs the command line; what a user can mend is one line on stderr and exit status 1, not a traceback."""
    from transformers.utils import logging as transformers_logging

    for stream in (sys.stdout, sys.stderr):  # a character that a terminal lacks must not cost the results
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    transformers_logging.disable_progress_bar()
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _plain(error: BaseException) -> str:
    from rich.markup import escape

    return escape(str(error))
