"""Cells of Markdown tables."""

from __future__ import annotations

import math

from sasa.evaluation.metrics import Estimate

EMPTY = "–"


def in_cell(name: str) -> str:
    """A method's name as a cell: an instruction may hold characters that would end it."""
    return " ".join(name.replace("|", "\\|").split())


def estimate_cell(value: Estimate | None, form: str) -> str:
    """A value and, if it is known, its interval, in a number format such as `.3f`."""
    if value is None or math.isnan(value.value):
        return EMPTY
    ends = f" [{value.low:{form}}, {value.high:{form}}]" if math.isfinite(value.low) else ""
    return f"{value.value:{form}}{ends}"
