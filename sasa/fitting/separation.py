"""The third step of a fit: the weight and the bias that separate safe from unsafe embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin

from sasa.fitting.context import FitContext
from sasa.fitting.discriminant import linear_discriminant
from sasa.fitting.identity import name_covariance
from sasa.fitting.self_generated import OwnText, own_statistics
from sasa.fitting.survey import Survey
from sasa.fitting.workspace import Workspace


@dataclass(frozen=True)
class Separation:
    """A weight and a bias whose margin is positive on the safe side.

    Attributes:
        weight: float64 (d,).
        bias: in the margin's unit.
        classifier: `bayes`, the closed form, or the scikit-learn classifier as text.
        shrinkage: of the closed form; None for another classifier.
        own: figures of the text that the model wrote itself; None if it wrote none.
    """

    weight: NDArray[np.float64]
    bias: float
    classifier: str
    shrinkage: float | None = None
    own: OwnText | None = None

    def margins(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """The margins (N,) of embeddings (N, d), a few thousand at a time."""
        starts = range(0, len(embeddings), 4096)
        return np.concatenate([embeddings[i : i + 4096] @ self.weight + self.bias for i in starts])


def separate(context: FitContext, survey: Survey, workspace: Workspace) -> Separation:
    """Separates the fitted embeddings: the closed form, or the context's classifier.

    Raises:
        ValueError: the classifier is not linear, or the model's own text has too few completions
            of one class.
    """
    if context.classifier is not None:
        return _by_classifier(context.classifier, workspace.embeddings("fit"))
    recipe, model, tokenizer = context.recipe, context.model, context.tokenizer
    statistics, own, nuisance = workspace.statistics, None, None
    if survey.sources is not None:
        workspace.save()  # writing takes longer than reading
        of_own_text, own = own_statistics(
            *(model, tokenizer, recipe, survey.sources, workspace.own_text),
            spread=context.spread,
            batch_size=context.batch_size,
            progress=context.progress,
        )
        statistics = statistics.blended(of_own_text, recipe.own)
    if recipe.identity:
        nuisance = recipe.identity * name_covariance(
            *(model, tokenizer, survey.names_to_fit, recipe.embedding),
            prefixes=recipe.prefixes,
            batch_size=context.batch_size,
            progress=context.progress,
        )
    weight, bias, shrinkage = linear_discriminant(statistics, recipe.shrinkage, nuisance)
    return Separation(weight, bias, "bayes", shrinkage, own)


def _by_classifier(classifier: ClassifierMixin, rows: NDArray[np.float32]) -> Separation:
    """Separates rows (N, 2 + d) of label, corpus and embedding by a scikit-learn classifier."""
    labels, embeddings = rows[:, 0], rows[:, 2:]
    classifier.fit(embeddings, labels)
    coefficients = getattr(classifier, "coef_", None)
    if coefficients is None or np.shape(coefficients) != (1, embeddings.shape[1]):
        raise ValueError(
            f"{type(classifier).__name__} is not a linear classifier of two classes: it has no "
            "coef_ of shape (1, d)"
        )
    weight = np.asarray(coefficients[0], np.float64)
    bias = float(np.ravel(classifier.intercept_)[0])
    return Separation(weight, bias, str(classifier))
