"""Where Inspect AI finds the provider `sasa`: an entry point of the package, so that nothing has to be imported for it."""

from __future__ import annotations

from typing import Any

from inspect_ai.model import modelapi


@modelapi(name="sasa")
def sasa() -> Any:
    """The provider; what it needs is imported when a model is asked for."""
    from sasa.evaluation.integrations.inspect_provider import SASAProvider

    return SASAProvider
