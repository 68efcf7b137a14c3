"""Plots, written atomically. matplotlib is an extra: without it, work goes on without plots."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

from sasa.utils.files import write_atomically


def has_matplotlib() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(**settings: Any) -> Any:
    """An empty matplotlib `Figure` without a window; None if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(**settings)


def tidy(axes: Any, grid: bool = True) -> None:
    """Removes the frame's upper and right side, and adds a light grid and the legend."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8)


def save_figure(figure: Any, file: Path, **settings: Any) -> None:
    """Writes a figure atomically, in the format that the file's suffix names.

    Args:
        settings: for matplotlib's `savefig`, such as dpi.
    """
    content = io.BytesIO()
    figure.savefig(content, format=file.suffix.removeprefix("."), **settings)
    write_atomically(file, content.getvalue())
