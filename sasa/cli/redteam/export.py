"""`sasa redteam export`: the hits of an attack, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sasa.cli.output import print_line
from sasa.cli.redteam.options import ClustersOption, ThresholdOption
from sasa.redteam.settings import HIT


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of an attack.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; it holds offensive text.")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="prompts: JSONL for sasa train repulse, sasa redteam replay, sasa bench attaq and rtp. garak: its hit log. csv, "
            "jsonl: all that is known. replies: a CSV for sasa fit FILE::text=reply,label=toxic.",
        ),
    ] = "prompts",
    threshold: ThresholdOption = HIT,
    clusters: ClustersOption = "all",
) -> None:
    """Write an attack's distinct hits into a file, for other tools and for training.

    sasa redteam export runs/attack -o hits.jsonl --clusters even

    sasa train repulse hits.jsonl --chat --beta-kl 0.5 --steps 20 -o safer

    sasa redteam replay runs/attack --clusters odd -m HuggingFaceTB/SmolLM2-135M-Instruct -m safer
    """
    from sasa.redteam.exports import export

    count = export(folder, output, form, threshold=threshold, clusters=clusters)
    print_line(f"wrote {count} {'replies' if form == 'replies' else 'hits'} to {output}")
