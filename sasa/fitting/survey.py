"""The first step of a fit: all of its texts are read and checked before the model reads any."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from sasa.fitting import fairness
from sasa.fitting.context import FitContext
from sasa.fitting.discriminant import GaussianStatistics, linear_discriminant
from sasa.fitting.identity import Sentences, load_people
from sasa.fitting.openings import Sources
from sasa.fitting.recipe import PARTS, Part, Recipe
from sasa.models.states import check_ready


@dataclass(frozen=True)
class Counts:
    """The texts of a recipe.

    Attributes:
        texts: their number by part and label, 1 safe and 0 unsafe.
        skipped: the number of rows that are left out, by reason.
        digest: a hash of all texts and labels.
    """

    texts: Counter[tuple[Part, int]]
    skipped: Counter[str]
    digest: str

    @property
    def total(self) -> int:
        return sum(self.texts.values())


@dataclass(frozen=True)
class Survey:
    """The texts that a fit needs.

    Attributes:
        counts: of the corpora's texts.
        sources: what the model's own text is made from; None without such text.
        names_to_fit, names_to_audit: sentences about people for the fit and, others, for its
            audit; none without `identity`.
        audit: labelled sentences that name identity terms; none without an audit.
    """

    counts: Counts
    sources: Sources | None
    names_to_fit: tuple[Sentences, ...]
    names_to_audit: tuple[Sentences, ...]
    audit: fairness.Labelled


def survey(context: FitContext) -> Survey:
    """Checks the settings and the texts of a fit.

    Raises:
        FileNotFoundError, ValueError: a setting out of range, a bad label, a plain text where the
            chat template needs a pair, or a part that lacks a class.
    """
    recipe = context.recipe
    check_ready(context.model, *recipe.embedding.layers)
    if context.classifier is None:
        _check_shrinkage(recipe.shrinkage)
    audit = [] if recipe.audit is None else fairness.read(recipe.audit, recipe.seed)
    names_to_fit = load_people("fit", recipe.people) if recipe.identity else ()
    names_to_audit = load_people("audit", recipe.people) if recipe.identity else ()
    for name in ("identity", "own"):
        if getattr(recipe, name) and context.classifier is not None:
            raise ValueError(f"{name} goes with the closed form, not with another classifier")
    counts = count_texts(recipe)
    sources = Sources.of(recipe) if recipe.own else None
    return Survey(counts, sources, names_to_fit, names_to_audit, audit)


def count_texts(recipe: Recipe) -> Counts:
    """Counts the texts by part and label, without a model.

    Raises:
        ValueError: a bad label, a plain text where the chat template needs a pair, or a part that
            lacks a class.
    """
    texts: Counter[tuple[Part, int]] = Counter()
    skipped: Counter[str] = Counter()
    content = hashlib.blake2b(digest_size=8)
    for index, example, label in recipe.examples(skipped):
        if recipe.embedding.template == "chat" and isinstance(example.text, str):
            raise ValueError(
                "template='chat' needs (prompt, response) pairs, and corpus "
                f"{recipe.corpora[index].source} has plain texts"
            )
        texts[recipe.part(example.group), label] += 1
        content.update(repr((index, example.text, label)).encode(errors="replace"))
    for part in PARTS:
        safe, unsafe = texts[part, 1], texts[part, 0]
        if min(safe, unsafe) < 2:
            all_safe, all_unsafe = (sum(texts[p, label] for p in PARTS) for label in (1, 0))
            raise ValueError(
                f"the corpora hold {all_safe} safe and {all_unsafe} unsafe texts, of which {safe} "
                f"and {unsafe} fall into the {part} part: each part needs two of either class. "
                "Give more texts of both classes"
                + (f" (left out: {dict(skipped)})" if skipped else "")
            )
    return Counts(texts, skipped, content.hexdigest())


def _check_shrinkage(shrinkage: float | str) -> None:
    """Raises ValueError for a shrinkage out of range."""
    linear_discriminant(GaussianStatistics(np.full(2, 2.0), np.zeros((2, 1)), np.eye(1)), shrinkage)
