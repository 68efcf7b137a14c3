"""What a request to a server asks of SASA: flat `sasa_*` values beside its other sampling parameters.

    sasa_beta       strength, >= 0; 0 samples plainly
    sasa_boundary   the name of a boundary that the server has loaded, or NAME::WEIGHT, or a list of these
    sasa_value      log_sigmoid or raw
    sasa_prior      the share of text that is unsafe, in (0, 1)
    sasa_top_k      a further limit to the candidates, after the request's own top_k; 0 for none
    sasa_top_p      likewise

A request with any of them is steered, by the defaults for the rest. One with none of them is as the server's own
defaults say: plain, unless it was started with a beta. Nothing here knows an engine.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sasa.core.settings import (
    BETA,
    PRIOR,
    TOP_K,
    VALUE,
    check_beta,
    check_prior,
    check_truncation,
    check_value,
    weighted,
)

PREFIX = "sasa_"
NAMES = ("beta", "boundary", "value", "prior", "top_k", "top_p")
SERIAL = 64
"""Candidates that are kept in order for a request; where a value has no bound, all of them are read, so that no more
may survive."""


@dataclass(frozen=True)
class Wanted:
    """What one request asks for.

    Attributes:
        boundaries: names, each with its weight.
        top_k, top_p: a further limit to its candidates; None for the default, which is the 20 likeliest in greedy
            decoding and no limit in sampling.
    """

    beta: float = 0.0
    boundaries: tuple[tuple[str, float], ...] = ()
    value: str = VALUE
    prior: float = PRIOR
    top_k: int | None = None
    top_p: float | None = None

    @classmethod
    def parse(
        cls, given: Mapping[str, Any], defaults: Mapping[str, Any], loaded: Sequence[str]
    ) -> Wanted:
        """From a request's extra arguments, those of others among them.

        Args:
            defaults: the server's, for requests that ask for nothing and for what a request leaves out.
            loaded: names of the boundaries that the server has.

        Raises:
            ValueError: an unknown name, or a value out of its range; the message says what is allowed.
        """
        mine = {
            name.removeprefix(PREFIX): value
            for name, value in given.items()
            if name.startswith(PREFIX)
        }
        if unknown := [name for name in mine if name not in NAMES]:
            allowed = ", ".join(PREFIX + name for name in NAMES)
            raise ValueError(
                f"unknown {', '.join(PREFIX + name for name in unknown)}: there are {allowed}"
            )
        asked = {**defaults, **mine}
        if not asked:
            return cls()
        top_k = asked.get("top_k")
        if isinstance(top_k, float) and top_k.is_integer():  # JSON knows no difference
            top_k = int(top_k)
        made = cls(
            beta=_number("beta", asked.get("beta", BETA)),
            boundaries=_boundaries(asked.get("boundary", loaded[:1]), loaded),
            value=asked.get("value", VALUE),
            prior=_number("prior", asked.get("prior", PRIOR)),
            top_k=top_k,
            top_p=None if asked.get("top_p") is None else _number("top_p", asked["top_p"]),
        )
        try:
            check_beta(made.beta)
            check_value(made.value)
            check_prior(made.prior)
            check_truncation(made.top_k, made.top_p)
        except ValueError as error:
            raise ValueError(f"{PREFIX}{error}") from None
        return made

    def limit(self, greedy: bool) -> tuple[int, float]:
        """The further limit that holds: top-k, 0 for none, and top-p."""
        given = self.top_k is not None or self.top_p is not None
        return self.top_k or (TOP_K if greedy and not given else 0), self.top_p or 1.0

    def check(self, top_k: int, greedy: bool, ends: int, most_ends: int) -> None:
        """Raises ValueError where a request cannot be steered.

        Args:
            top_k: the request's own; 0 or less for none.
            ends: how many tokens end it, of which there may be `most_ends`.
        """
        if not self.beta:
            return
        limits = [k for k in (top_k, self.limit(greedy)[0]) if k > 0]
        if self.value == "raw" and not (limits and min(limits) <= SERIAL):
            raise ValueError(
                f"sasa_value=raw reads all candidates: give top_k or sasa_top_k between 1 and {SERIAL}"
            )
        if ends > most_ends:
            raise ValueError(
                f"a steered request may have up to {most_ends} stop tokens, got {ends}"
            )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{PREFIX}{name} must be a number, got {value!r}")
    return float(value)


def _boundaries(given: Any, loaded: Sequence[str]) -> tuple[tuple[str, float], ...]:
    named = [given] if isinstance(given, str) else given
    if (
        not isinstance(named, (list, tuple))
        or not named
        or not all(isinstance(name, str) for name in named)
    ):
        raise ValueError(
            f"{PREFIX}boundary must be a name, NAME::WEIGHT or a list of these, got {given!r}"
        )
    found: dict[str, float] = {}
    for each in named:
        name, weight = weighted(each, f"{PREFIX}boundary")
        if name not in loaded:
            raise ValueError(f"no boundary {name!r} is loaded here; there are: {', '.join(loaded)}")
        if name in found:
            raise ValueError(f"{PREFIX}boundary names {name!r} twice")
        found[name] = weight
    return tuple(found.items())
