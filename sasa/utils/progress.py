"""Progress bars on stderr, for whatever takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

Tell = Callable[[str, float, float | None], None]
_follower: ContextVar[Tell | None] = ContextVar("follower", default=None)


@contextmanager
def following(tell: Tell | None) -> Iterator[None]:
    """Within the block, bars also tell a function what is being done, how much of it is done, and of how much; so a page
    can show them. What the function raises ends the work.
    """
    token = _follower.set(tell)
    try:
        yield
    finally:
        _follower.reset(token)


class _Bar(Progress):
    """A bar that may be followed."""

    def update(self, task_id: TaskID, **fields: Any) -> None:  # type: ignore[override]
        super().update(task_id, **fields)
        self._follow(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._follow(task_id)

    def _follow(self, task_id: TaskID) -> None:
        if (tell := _follower.get()) is not None:
            task = self._tasks[task_id]
            tell(task.description, task.completed, task.total)


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
    return _Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
        transient=True,
    )
