"""The classifier-fitting stage: labelled texts -> a calibrated boundary with a held-out report."""

from sasa.data.corpus import Corpus
from sasa.fitting.discriminant import GaussianStatistics, linear_discriminant
from sasa.fitting.fit import fit_boundary
from sasa.fitting.recipe import Recipe

__all__ = ["Corpus", "GaussianStatistics", "Recipe", "fit_boundary", "linear_discriminant"]
