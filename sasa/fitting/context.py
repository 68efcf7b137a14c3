"""What all steps of a fit share: the model, the recipe, and where and how the model runs."""

from __future__ import annotations

from dataclasses import dataclass

from sklearn.base import ClassifierMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.fitting.recipe import PARTS, Part, Recipe
from sasa.utils.parallel import Spread


@dataclass(frozen=True)
class FitContext:
    """The arguments of a fit.

    Attributes:
        recipe: with layers of this model, not with a depth: see `Recipe.for_model`.
        classifier: an unfitted scikit-learn classifier in place of the closed form, or None.
        batch_size: texts in one forward pass.
        progress: whether progress bars are shown.
        spread: the workers that read and write texts; None for this process.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    classifier: ClassifierMixin | None = None
    batch_size: int = 64
    progress: bool = False
    spread: Spread | None = None

    @property
    def kept(self) -> tuple[Part, ...]:
        """The parts whose embeddings are kept: those held out, and all for a classifier."""
        return ("calibration", "test") if self.classifier is None else PARTS
