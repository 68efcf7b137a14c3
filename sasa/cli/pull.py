"""`sasa pull`: a boundary of the Hub -> a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sasa.cli.output import print_line


def command(
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Where it is.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to write.", show_default="NAME"),
    ] = None,
) -> None:
    """Download a boundary with its card and recipe.

    sasa pull OWNER/NAME

    sasa generate "My neighbour is" --boundary NAME
    """
    from sasa.fitting.hub import pull_from_hub

    folder = pull_from_hub(repository, output or Path(repository.rpartition("/")[2]))
    print_line(f"wrote {folder}: use it with --boundary {folder}")
