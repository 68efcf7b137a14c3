"""Self-disciplined autoregressive sampling: a language model that moderates its own language while it writes."""

from importlib.metadata import version

from sasa.backtracking import Backtracking
from sasa.boundary import Boundary
from sasa.decoding import SASADecoder, SASAOutput
from sasa.embedding import EmbeddingSpec, embed
from sasa.generation import Completion, generate
from sasa.models import load
from sasa.processor import SASALogitsProcessor

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
]

__version__ = version("sasa-decoding")
