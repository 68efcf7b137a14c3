"""Boundary files: those that ship with the package, and what a file says of its boundary, without reading its weights.

torch is not needed for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors

FILE_NAME = "boundary.safetensors"
FORMAT = 1
PACKAGE = Path(__file__).parents[1]


def bundled() -> dict[str, Path]:
    """The boundaries that ship with the package, name -> file."""
    inside = PACKAGE / "_classifiers"  # an installed wheel
    folder = inside if inside.is_dir() else PACKAGE.parent / "classifiers"  # a checkout
    return {file.parent.name: file for file in sorted(folder.glob(f"*/{FILE_NAME}"))}


def about(path: Path) -> dict[str, Any]:
    """What `Boundary.save` wrote beside the weights: attribute, bias, calibration, embedding, model and report.

    Raises:
        ValueError: the file is damaged, no boundary, or of another format.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            found = json.loads((file.metadata() or {})["sasa"])
    except KeyError as error:
        raise ValueError(
            f"{path} is a safetensors file, but not a sasa boundary ({error} is missing)"
        ) from error
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or not a boundary file: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} is damaged: its metadata is a {type(found).__name__}, not an object"
        )
    if found.pop("format", None) != FORMAT:
        raise ValueError(
            f"{path} was written in another format than this version of sasa reads ({FORMAT})"
        )
    return found
