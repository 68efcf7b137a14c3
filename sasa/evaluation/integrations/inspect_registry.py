"""Registers the provider `sasa` with Inspect AI; it is an entry point of the package."""

from __future__ import annotations

from typing import Any

from inspect_ai.model import modelapi


@modelapi(name="sasa")
def sasa() -> Any:
    """The provider; its imports wait until a model is requested."""
    from sasa.evaluation.integrations.inspect_provider import SASAProvider

    return SASAProvider
