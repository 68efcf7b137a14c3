"""`sasa classifiers`: the boundaries that ship with the package."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from sasa.cli.output import out, print_json
from sasa.core.shipped import about, bundled


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line on stdout.")
    ] = False,
) -> None:
    """List the bundled boundaries with their held-out figures."""
    table = Table(
        "name",
        "attribute",
        "model",
        "layers",
        "texts",
        "AUC",
        "accuracy",
        title="Bundled boundaries, with their figures on held-out texts",
    )
    for column in table.columns[:3]:
        column.overflow = "fold"  # a name has to be read in full
    for name, file in bundled().items():
        told = about(file)
        spec, model, test = told["embedding"], told["model"]["id"], told["report"]["test"]
        if as_json:
            print_json(
                {
                    "name": name,
                    "attribute": told["attribute"],
                    "model": model,
                    "embedding": spec,
                    "test": test,
                }
            )
        layers = spec["layer"] if isinstance(spec["layer"], list) else [spec["layer"]]
        table.add_row(
            name,
            told["attribute"],
            model,
            ", ".join(map(str, layers)),
            str(test["safe"] + test["unsafe"]),
            *(f"{test[key]:.3f}" for key in ("auc", "accuracy")),
        )
    if not as_json:
        out.print(table)
