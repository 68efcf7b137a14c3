"""Progress bars on stderr, for whatever takes long."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def figures_bar(show: bool) -> Progress:
    """A bar on stderr that stays, for tasks that show their latest results in a field `figures`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=Console(stderr=True),
        disable=not show,
        speed_estimate_period=600,
    )


def progress_bar(what: str, show: bool) -> Progress:
    """A bar on stderr with the count and the time left; nothing where `show` is False."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
        transient=True,
    )
