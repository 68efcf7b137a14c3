"""`sasa classifiers`: the boundaries that ship with the package."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from sasa.boundary import Boundary, bundled
from sasa.cli.common import out, print_json


def command(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False) -> None:
    """List the bundled boundaries with their held-out figures."""
    table = Table("name", "attribute", "model", "embedding", "held-out texts", "AUC", "accuracy", "ECE")
    for name, file in bundled().items():
        boundary = Boundary.load(file)
        test = boundary.report["test"]
        if as_json:
            about = {"name": name, "attribute": boundary.attribute, "model": boundary.model.id}
            print_json({**about, "embedding": asdict(boundary.embedding), "test": test})
        spec = boundary.embedding
        table.add_row(
            name,
            boundary.attribute,
            boundary.model.id,
            f"layer {' and '.join(map(str, spec.layers))}, {spec.pooling} of {spec.span}",
            str(test["safe"] + test["unsafe"]),
            *(f"{test[key]:.3f}" for key in ("auc", "accuracy", "ece")),
        )
    if not as_json:
        out.print(table)
