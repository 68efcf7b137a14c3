"""Self-disciplined autoregressive sampling: a model that moderates its own language as it writes.

The public names. What needs a model's library is imported when it is first used, so that the rule
(`sasa.boundary`, `sasa.values`, `sasa.candidates`, `sasa.backtracking`) serves any engine.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sasa.backtracking import Backtracking
    from sasa.boundary import Boundary, EmbeddingSpec
    from sasa.decoding import SASADecoder
    from sasa.embedding import embed
    from sasa.generation import Completion, generate
    from sasa.hub import push_to_hub
    from sasa.loop import SASAOutput
    from sasa.margins import score, trace
    from sasa.models.load import load
    from sasa.processor import SASALogitsProcessor

_HOMES = {
    "Backtracking": "backtracking",
    "Boundary": "boundary",
    "Completion": "generation",
    "EmbeddingSpec": "boundary",
    "SASADecoder": "decoding",
    "SASALogitsProcessor": "processor",
    "SASAOutput": "loop",
    "embed": "embedding",
    "generate": "generation",
    "load": "models.load",
    "push_to_hub": "hub",
    "score": "margins",
    "trace": "margins",
}

__all__ = [
    "Backtracking",
    "Boundary",
    "Completion",
    "EmbeddingSpec",
    "SASADecoder",
    "SASALogitsProcessor",
    "SASAOutput",
    "embed",
    "generate",
    "load",
    "push_to_hub",
    "score",
    "trace",
]

__version__ = version("sasa-decoding")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"sasa.{_HOMES[name]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"sasa.{name}"):
        value = importlib.import_module(f"sasa.{name}")
    else:
        raise AttributeError(f"module 'sasa' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
