"""Plots, written atomically; matplotlib is an extra, and what is done goes on without it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from sasa.utils.files import write_atomically


def new_figure(**settings: Any) -> Any:
    """An empty matplotlib `Figure` that no window shows; None if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(**settings)


def save_figure(figure: Any, file: Path, **settings: Any) -> None:
    """Writes a figure as a picture of the kind that the file's ending names, atomically."""
    content = io.BytesIO()
    figure.savefig(content, format=file.suffix.removeprefix("."), **settings)
    write_atomically(file, content.getvalue())
