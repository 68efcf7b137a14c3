"""Progress bars on stderr, for whatever takes long."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def figures_bar(show: bool) -> Progress:
    """A bar on stderr that stays, for loops whose tasks show what has come of them so far in a field `figures`."""
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
    """A bar on stderr with the count, the rate's time left, and nothing at all where `show` is False."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
        transient=True,
    )
