"""The report of a fit, which the boundary carries and its card shows: plain JSON values."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, TypedDict, cast

import sklearn
import torch
import transformers

from sasa.core.boundary import Boundary
from sasa.fitting.calibration import HeldOut, Metrics, metrics
from sasa.fitting.context import FitContext
from sasa.fitting.fairness import BiasMetrics, audit
from sasa.fitting.identity import IdentityTax, identity_tax
from sasa.fitting.recipe import PARTS
from sasa.fitting.self_generated import OwnText
from sasa.fitting.separation import Separation
from sasa.fitting.survey import Survey


class Fitted(TypedDict):
    """What every report has.

    Attributes:
        test: of all held-out texts; test_by_corpus: of each corpus, by its number and source.
        texts: numbers of texts, by part and class, such as `fit_safe`.
        skipped: numbers of rows that were left out, by reason.
        classifier: `bayes`, the closed form, or a scikit-learn classifier.
        recipe: as `Recipe.to_dict` gives it.
        versions: of the libraries.
    """

    test: Metrics
    test_by_corpus: dict[str, Metrics]
    texts: dict[str, int]
    skipped: dict[str, int]
    classifier: str
    recipe: dict[str, Any]
    versions: dict[str, str]


class Report(Fitted, total=False):
    """The report of a fit.

    Attributes:
        shrinkage: of the closed form.
        own: of a fit on the model's own text. audit: of a recipe with an audit.
        identity_tax: of a recipe with `identity`.
    """

    shrinkage: float
    own: OwnText
    audit: BiasMetrics
    identity_tax: IdentityTax


def report_of(boundary: Boundary) -> Report:
    """The report of a boundary that `fit_boundary` made."""
    return cast(Report, boundary.report)


def fit_report(
    context: FitContext,
    survey: Survey,
    separation: Separation,
    test: HeldOut,
    scale: float,
    shift: float,
) -> Report:
    """The report of a fit on its texts.

    Args:
        test: margins of the held-out texts. scale, shift: their calibration.
    """
    recipe, counts = context.recipe, survey.counts
    by_corpus = {
        f"{number}: {corpus.source}": metrics(
            test.margins[test.corpora == number], test.labels[test.corpora == number], scale, shift
        )
        for number, corpus in enumerate(recipe.corpora)
    }
    shrinkage = {} if separation.shrinkage is None else {"shrinkage": separation.shrinkage}
    report: dict[str, Any] = {  # in the order of the file
        "test": metrics(test.margins, test.labels, scale, shift),
        "test_by_corpus": by_corpus,
        "texts": {
            f"{part}_{name}": counts.texts[part, label]
            for part in PARTS
            for name, label in (("safe", 1), ("unsafe", 0))
        },
        "skipped": dict(counts.skipped),
        "classifier": separation.classifier,
        **shrinkage,
        "recipe": recipe.to_dict(),
        "versions": {
            "sasa-decoding": version("sasa-decoding"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
    if separation.own is not None:
        report["own"] = separation.own
    return cast(Report, report)


def add_audits(context: FitContext, survey: Survey, boundary: Boundary) -> None:
    """Adds to a boundary's report how it treats identity terms and names of groups of people."""
    model, tokenizer, report = context.model, context.tokenizer, report_of(boundary)
    if survey.audit:
        report["audit"] = audit(
            *(boundary, model, tokenizer, survey.audit),
            batch_size=context.batch_size,
            progress=context.progress,
        )
    if context.recipe.identity:
        report["identity_tax"] = identity_tax(
            boundary, model, tokenizer, survey.names_to_audit, progress=context.progress
        )
