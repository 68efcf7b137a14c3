"""SASA for `generate(custom_generate="OWNER/sasa", trust_remote_code=True)`: see the repository's README."""

from __future__ import annotations

from typing import Any

from sasa import Backtracking, Boundary, SASADecoder
from sasa.core.values import load_terms


def generate(
    model: Any,
    boundary: Any = "toxicity",
    beta: float = 4.0,
    value: str = "log_sigmoid",
    prior: float = 0.2,
    backtrack: Any = None,
    strict: bool = True,
    **kwargs: Any,
) -> Any:
    """`model.generate(**kwargs)` under SASA.

    Args:
        boundary: a name for `Boundary.load`, a `Boundary`, or several: names, NAME::WEIGHT, or pairs of either and a weight.
        beta, value, prior: see `sasa.SASADecoder`.
        backtrack: a `Backtracking`, its settings as a dictionary, or True for the defaults.
        strict: False takes a boundary that was fitted on the model under another name.
        kwargs: whatever `generate()` takes.
    """
    if isinstance(boundary, str):
        boundary = [boundary]
    if not isinstance(boundary, Boundary):
        boundary = load_terms(boundary, model, strict)
    if backtrack is True:
        backtrack = Backtracking()
    elif isinstance(backtrack, dict):
        backtrack = Backtracking(**backtrack)
    decoder = SASADecoder(boundary, beta, value=value, prior=prior, backtrack=backtrack or None)
    return model.generate(custom_generate=decoder, **kwargs)
