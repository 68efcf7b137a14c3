"""The Bayes-optimal linear classifier between two Gaussians, from streamed, mergeable statistics.

It sees vectors and labels; it knows nothing about texts or models.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import load_file, save

Vector = NDArray[np.float64]


@dataclass
class GaussianStatistics:
    """Counts, means and pooled scatter of two classes: sufficient for two Gaussians with a common
    covariance.

    These are O(d^2) numbers in float64, however many vectors they are of. The statistics of two
    halves of a corpus, read on two machines, merge into those of the whole (Chan, Golub & LeVeque
    1983).

    Attributes:
        count: (2,), the number of vectors of class 0 and class 1.
        mean: (2, d).
        scatter: (d, d), the sum over both classes of (x - class mean)(x - class mean)^T.
    """

    count: Vector
    mean: Vector
    scatter: Vector

    @classmethod
    def empty(cls, dimension: int) -> GaussianStatistics:
        return cls(np.zeros(2), np.zeros((2, dimension)), np.zeros((dimension, dimension)))

    def partial_fit(self, vectors: ArrayLike, labels: ArrayLike) -> GaussianStatistics:
        """Adds vectors (n, d) with labels (n,), 0 or 1.

        Raises:
            ValueError: a shape that does not fit, another label, or a vector that is not finite.
        """
        vectors, labels = np.asarray(vectors, np.float64), np.asarray(labels)
        if (
            vectors.ndim != 2
            or vectors.shape[1] != self.mean.shape[1]
            or labels.shape != vectors.shape[:1]
        ):
            raise ValueError(
                f"expected vectors (n, {self.mean.shape[1]}) and labels (n,), got {vectors.shape} "
                f"and {labels.shape}"
            )
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("labels must be 0 or 1")
        if not np.isfinite(vectors).all():
            raise ValueError(
                "a vector is not finite: the model's hidden states overflow in this dtype"
            )
        batch = GaussianStatistics.empty(vectors.shape[1])
        for c in (0, 1):
            of_class = vectors[labels == c]
            if len(of_class):
                batch.count[c], batch.mean[c] = len(of_class), of_class.mean(0)
                centred = of_class - batch.mean[c]
                batch.scatter += centred.T @ centred
        return self.merge(batch)

    def merge(self, other: GaussianStatistics) -> GaussianStatistics:
        """Adds the statistics of other vectors, in place."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"cannot merge statistics of {self.mean.shape[1]} and {other.mean.shape[1]} "
                "dimensions"
            )
        self.scatter += other.scatter
        for c in (0, 1):
            total = self.count[c] + other.count[c]
            if not other.count[c]:
                continue
            shift = other.mean[c] - self.mean[c]
            self.scatter += np.outer(shift, shift) * (self.count[c] * other.count[c] / total)
            self.mean[c] += shift * (other.count[c] / total)
            self.count[c] = total
        return self

    def blended(self, other: GaussianStatistics, share: float) -> GaussianStatistics:
        """Statistics that weight `other` by `share` and these by the rest, whatever their counts.

        The weighted averages are of the covariances and of the differences of the class means; the
        middle between the means stays that of these statistics. So each of two sources that differ
        in more than their labels is compared within itself: merged statistics would also count what
        distinguishes one source from the other.
        """
        n, m = self.count.sum() - 2, other.count.sum() - 2
        middle = self.mean.mean(0)
        half = (
            (1 - share) * (self.mean[1] - self.mean[0]) + share * (other.mean[1] - other.mean[0])
        ) / 2
        scatter = ((1 - share) * self.scatter / n + share * other.scatter / m) * (n + m)
        return GaussianStatistics(
            self.count + other.count - 1, np.stack([middle - half, middle + half]), scatter
        )

    def to_bytes(self) -> bytes:
        """The content of a safetensors file."""
        return save({"count": self.count, "mean": self.mean, "scatter": self.scatter})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GaussianStatistics:
        return cls(**load_file(Path(path)))


def linear_discriminant(
    statistics: GaussianStatistics, shrinkage: float | str = "auto", nuisance: Vector | None = None
) -> tuple[Vector, float, float]:
    """The Bayes-optimal boundary between two Gaussians with a common covariance (Ko et al. 2025,
    section 3.2).

    w = S^-1 (mean_1 - mean_0), b = -w . (mean_0 + mean_1) / 2: the log-odds of class 1 with both
    classes equally likely, so that an unbalanced corpus does not move the boundary.

    Args:
        shrinkage: how far the correlations are shrunk towards zero, in [0, 1]; `auto` takes the
            oracle approximating shrinkage (Chen et al. 2010, eq. 23), which needs no more than
            these statistics. Correlations are shrunk rather than covariances because hidden states
            have a few dimensions of enormous variance.
        nuisance: (d, d), the second moment of moves that should not change the margin. It is added
            to the covariance, as if texts of one class differed by these moves, too. Of all weights
            that separate the means equally far, the result has the least sum of variance within the
            classes and of mean squared change by such a move (within-class covariance
            normalization, Hatch et al. 2006).

    Returns:
        weight (d,), bias, and the shrinkage used.

    Raises:
        ValueError: fewer than two vectors of a class, or a shrinkage outside [0, 1].
    """
    if (statistics.count < 2).any():
        raise ValueError(
            f"each class needs at least two texts, got {statistics.count.astype(int).tolist()}"
        )
    n = statistics.count.sum() - 2
    covariance = statistics.scatter / n
    if nuisance is not None:
        covariance = covariance + nuisance
    scale = np.sqrt(np.diag(covariance))
    scale[scale == 0] = (
        1.0  # a constant dimension has no information, and its row of correlations is zero
    )
    correlation = covariance / np.outer(scale, scale)
    if shrinkage == "auto":
        shrinkage = oracle_approximating_shrinkage(correlation, n)
    elif isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be 'auto' or in [0, 1], got {shrinkage!r}")
    d = len(correlation)
    target = np.trace(correlation) / d
    correlation = (1 - shrinkage) * correlation + shrinkage * target * np.eye(d)
    difference = (statistics.mean[1] - statistics.mean[0]) / scale
    try:
        weight = np.linalg.solve(correlation, difference) / scale
    except np.linalg.LinAlgError as error:
        raise ValueError("the covariance is singular: give shrinkage > 0, or 'auto'") from error
    return weight, float(-weight @ statistics.mean.sum(0) / 2), float(shrinkage)


def oracle_approximating_shrinkage(covariance: Vector, n: float) -> float:
    """The OAS coefficient in [0, 1] of a covariance (d, d) estimated with n degrees of freedom."""
    d = len(covariance)
    mean_square = float((covariance**2).mean())
    square_mean = (np.trace(covariance) / d) ** 2
    denominator = (n + 1) * (mean_square - square_mean / d)
    return 1.0 if denominator <= 0 else float(min(1.0, (mean_square + square_mean) / denominator))
