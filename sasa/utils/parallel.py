"""Work that is done for each of many items by the same model: here, or by many workers that each hold it.

Fits and benchmarks hand what takes long to a `Spread`, and do not know where it is done. `sasa.serving.ray` has one for
many machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Spread(Protocol):
    """Applies a function to items, each with the model and its tokenizer.

    The results come in the items' order, whoever is first; so a sum of them has the same rounding wherever they were made.
    """

    def __call__(self, task: Callable[[Any, Any, T], R], items: Iterable[T]) -> Iterator[R]: ...


def here(model: Any, tokenizer: Any) -> Spread:
    """One item after the other, with this model."""

    def spread(task: Callable[[Any, Any, T], R], items: Iterable[T]) -> Iterator[R]:
        return (task(model, tokenizer, item) for item in items)

    return spread
