"""The command line. Each command is a file or a package, imported when the command is called."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

import sasa

COMMANDS = {
    "generate": "Complete prompts while the model keeps its own language on the safe side of a boundary.",
    "fit": "Fit a boundary between safe and unsafe text in a model's own hidden space, and report on held-out texts.",
    "tune": "Find the largest beta whose text is as fluent, and as varied, as it is asked to be.",
    "train": "Train a model: backtracking, or RePULSe.",
    "redteam": "Attack a model with prompts that it is led to write badly by, report, export, and replay them against "
    "defences.",
    "serve": "Serve a model by vLLM, with SASA in its engine.",
    "audit": "Show what steering takes from harmless sentences that name groups of people, in nats a sentence.",
    "selectivity": "Measure what steering takes from text that people wrote, by class.",
    "inspect": "Show where a text turns: the margin as the text grows, token by token.",
    "bench": "Toxicity and fluency with and without SASA: a run on a suite of prompts, and reports of runs.",
    "demo": "Serve a page that shows a model on its own and steered, side by side, each token coloured by its margin.",
    "push": "Upload a boundary with its card, recipe and picture to the Hub.",
    "pull": "Download a boundary with its card and recipe.",
    "classifiers": "List the bundled boundaries with their held-out figures.",
}
"""The commands and their help: each is the module of `sasa.cli` of its name."""


class _Commands(TyperGroup):
    """Commands whose files are imported when they are called, so that the list of them is there at once."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and _imported(str(name)), rest


def _imported(name: str) -> Any:
    """A command as its file defines it: its function `command`, or a group of several, `app`."""
    module = importlib.import_module(f"sasa.cli.{name}")
    group = typer.Typer(add_completion=False)
    group.callback()(lambda: None)  # it stays a group with one command in it
    if hasattr(module, "app"):
        group.add_typer(module.app, name=name)
    else:
        group.command(name, **getattr(module, "OPTIONS", {}))(module.command)
    return cast(Any, typer.main.get_command(group)).commands[name]


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A language model that moderates its own language while it writes (SASA, Ko et al., ICLR 2025).",
)


@app.callback(invoke_without_command=True)
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.")
    ] = False,
) -> None:
    if show_version:
        print(sasa.__version__)
        raise typer.Exit()


def main() -> None:
    """Runs the command line.

    An error that the user can mend is one line on stderr and exit status 1, not a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        # a character that a terminal lacks must not cost the results
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # transformers has no other switch for its own bars
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _plain(error: BaseException) -> str:
    from rich.markup import escape

    # errors of other libraries, the Hub's for one, may have several lines
    return escape(" ".join(str(error).split()))
