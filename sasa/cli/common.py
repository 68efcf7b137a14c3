"""Options that several commands share, and how a margin looks on a terminal."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.color import Color
from rich.console import Console
from rich.style import Style
from transformers import PreTrainedModel

from sasa.boundary import Boundary
from sasa.steering import check_beta

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Hub id, local folder or GGUF file.", show_default="SmolLM2-135M-Instruct, embedded"
    ),
]
BoundaryOption = Annotated[
    str, typer.Option("--boundary", "-b", help="A bundled attribute, a file, a folder, or OWNER/NAME on the Hub.")
]
BoundariesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--boundary",
        "-b",
        help="As NAME or NAME::WEIGHT: a bundled attribute, a file, a folder, or OWNER/NAME on the Hub. Repeat it to steer "
        "by several at once; the margins shown are the first one's.",
        show_default="toxicity",
    ),
]
ValueOption = Annotated[
    str,
    typer.Option(help="What a margin is worth: log_sigmoid, the log-probability of being safe, or raw, itself."),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict/--no-strict", help="Refuse a boundary for a model of another name, be it of the same shape."
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps, …", show_default="the best there is")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16, …", show_default="float32 on the CPU, else bfloat16")
]

out = Console(highlight=False)


def load_boundaries(names: list[str] | None, model: PreTrainedModel, strict: bool) -> list[tuple[Boundary, float]]:
    """The boundaries of `--boundary`, each with its weight."""
    found = []
    for given in names or ["toxicity"]:
        name, separator, weight = given.partition("::")
        try:
            number = float(weight) if separator else 1.0
        except ValueError:
            raise ValueError(f"--boundary is NAME or NAME::WEIGHT, such as toxicity::0.5, got {given!r}") from None
        check_beta(number, "a boundary's weight")
        found.append((Boundary.load(name, model=model, strict=strict), number))
    return found


def probability(boundary: Boundary, margin: float) -> float:
    """Calibrated P(safe)."""
    return float(boundary.log_odds(torch.tensor(margin)).sigmoid())


def style(boundary: Boundary, margin: float) -> Style:
    """Red where a text is surely unsafe, by way of yellow, to green where it is surely safe."""
    p = probability(boundary, margin)
    red, green = min(1.0, 2 * (1 - p)), min(1.0, 2 * p)
    return Style(color=Color.from_rgb(60 + 195 * red, 60 + 160 * green, 60))
