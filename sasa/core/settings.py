"""The settings of decoding: their defaults, and what is allowed.

This file imports nothing, so that a command line knows them before a model's libraries are there.
"""

from __future__ import annotations

import math
from typing import Any

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What is loaded where no model is named."""
BUNDLED = "toxicity"
"""What the boundary finds that steers where none is named: the one that is bundled for the model."""
VALUES = "raw", "log_sigmoid"
"""What a margin can count for; `sasa.core.values` has the functions."""
VALUE, BETA, PRIOR = "log_sigmoid", 4.0, 0.2
"""See benchmarks/NOTES.md for what was compared."""
TOP_K, TOP_P = 20, 0.9
"""The candidates where nothing else limits them: so many of the likeliest, and of these so much probability."""
THRESHOLD, MAX_RESETS = 0.99, 4
"""Of backtracking. At this threshold two or three harmless completions of a hundred go back (benchmarks/NOTES.md)."""


def option(
    help: str, *flags: str, least: float | None = None, shown: str | None = None
) -> dict[str, Any]:
    """The metadata of a dataclass field that the command line offers as an option.

    Args:
        help: the option's help text.
        flags: the option's names, such as "--samples", "-c"; none: "--" and the field's name.
        least: the smallest value that the option takes.
        shown: the default as help shows it, where the value itself would say nothing.
    """
    return {"help": help, "flags": flags, "least": least, "shown": shown}


def check_value(value: str) -> None:
    """Raises ValueError where there is no value function of that name."""
    if value not in VALUES:
        raise ValueError(f"value must be one of {', '.join(VALUES)}, got {value!r}")


def check_prior(prior: float) -> None:
    """Raises ValueError where a share of unsafe text is not between 0 and 1."""
    if not 0 < prior < 1:
        raise ValueError(f"prior must be in (0, 1), the share of text that is unsafe, got {prior}")


def check_beta(beta: float, name: str = "beta") -> None:
    """Raises ValueError where a strength is not a finite number >= 0."""
    if not math.isfinite(beta) or beta < 0:
        raise ValueError(f"{name} must be >= 0, got {beta}")


def weighted(text: str, what: str = "boundary") -> tuple[str, float]:
    """A boundary's name and its weight, of NAME or NAME::WEIGHT. Raises ValueError for a weight that is none."""
    name, separator, weight = text.partition("::")
    try:
        number = float(weight) if separator else 1.0
    except ValueError:
        raise ValueError(
            f"{what} is NAME or NAME::WEIGHT, such as toxicity::0.5, got {text!r}"
        ) from None
    check_beta(number, "a boundary's weight")
    return name, number


def check_at_least(settings: object, **least: float) -> None:
    """Raises ValueError where a number among some settings is not finite, or smaller than its least."""
    for name, smallest in least.items():
        if not (math.isfinite(number := getattr(settings, name)) and number >= smallest):
            raise ValueError(f"{name} must be >= {smallest}, got {number}")


def check_above_zero(settings: object, *names: str) -> None:
    """Raises ValueError where a number among some settings is not finite and above 0."""
    for name in names:
        if not (math.isfinite(number := getattr(settings, name)) and number > 0):
            raise ValueError(f"{name} must be > 0, got {number}")


def check_truncation(top_k: int | None, top_p: float | None, min_p: float | None = None) -> None:
    """Raises ValueError for a limit outside its range."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0):
        raise ValueError(f"top_k must be an integer >= 0 (0: no limit), got {top_k!r}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p!r}")
    if min_p is not None and not 0.0 <= min_p <= 1.0:
        raise ValueError(f"min_p must be in [0, 1], got {min_p!r}")
