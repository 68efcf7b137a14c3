"""The name of `sasa.core.boundary` before it moved, for code that imports from here."""

from sasa.core.boundary import Boundary
from sasa.core.embedding_spec import EmbeddingSpec, Text
from sasa.core.model_info import ModelInfo

__all__ = ["Boundary", "EmbeddingSpec", "ModelInfo", "Text"]
