"""`sasa push`: a fitted boundary -> a repository of the Hub."""

from __future__ import annotations

from typing import Annotated

import typer

from sasa.cli.output import print_line


def command(
    boundary: Annotated[
        str,
        typer.Argument(
            metavar="BOUNDARY",
            help="The folder of a fit, a file, or a bundled one by name.",
            show_default=False,
        ),
    ],
    repository: Annotated[
        str,
        typer.Argument(metavar="OWNER/NAME", help="Made where there is none.", show_default=False),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Of a new repository: only you see it.")
    ] = False,
) -> None:
    """Upload a boundary with its card, recipe and picture to the Hub.

    It is uploaded as the user of `hf auth login`, or of the token in $HF_TOKEN.

        sasa push my-boundary ME/my-boundary

        sasa generate "My neighbour is" --boundary ME/my-boundary
    """
    from sasa.core.boundary import Boundary
    from sasa.fitting.hub import check_repository, push_to_hub

    check_repository(repository)
    file = Boundary.find(boundary)
    address = push_to_hub(
        Boundary.load(file), repository, folder=file.parent, private=private or None
    )
    print_line(f"{address}: use it with --boundary {repository}")
