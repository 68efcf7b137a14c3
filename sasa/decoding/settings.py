"""The settings that `SASADecoder` hands to its loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sasa.core.backtracking import Backtracking
from sasa.core.values import Steering
from sasa.decoding.tracing import Tracer


@dataclass(frozen=True)
class DecoderSettings:
    """The settings of `SASADecoder`, which documents them, as the loop takes them."""

    steering: Steering
    top_k: int | None
    top_p: float | None
    compiled: bool
    backtrack: Backtracking | None
    refusal: tuple[Sequence[int], Sequence[int]] | None
    tracer: Tracer | None
