"""Self-disciplined autoregressive sampling: a model that moderates its own language as it writes.

The public names. What needs a model's library is imported when it is first used, so that the rule
(`sasa.boundary`, `sasa.values`, `sasa.candidates`, `sasa.backtracking`) serves any engine.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from sasa.lazy import lazy

if TYPE_CHECKING:
    from sasa.backtracking import Backtracking
    from sasa.boundary import Boundary, EmbeddingSpec
    from sasa.decoding import SASADecoder
    from sasa.embedding import embed
    from sasa.generation import Completion, generate
    from sasa.hub import pull_from_hub, push_to_hub
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
    "pull_from_hub": "hub",
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
    "pull_from_hub",
    "push_to_hub",
    "score",
    "trace",
]

__version__ = version("sasa-decoding")


__getattr__, __dir__ = lazy(__name__, _HOMES)
