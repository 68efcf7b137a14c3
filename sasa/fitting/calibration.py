"""The calibration of margins to log-odds, and metrics of margins on held-out texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    roc_auc_score,
)

BINS = 10
"""Equally wide bins of P(safe), for the calibration error and its plot."""


class TextCounts(TypedDict):
    """Numbers of texts."""

    safe: int
    unsafe: int


class Metrics(TextCounts, total=False):
    """Metrics of held-out texts; the counts alone where one class is missing."""

    auc: float
    average_precision: float
    accuracy: float
    balanced_accuracy: float
    ece: float


@dataclass(frozen=True)
class HeldOut:
    """The margins of held-out texts.

    Attributes:
        margins: float64 (N,).
        labels: float32 (N,), 1 safe and 0 unsafe.
        corpora: float32 (N,), the index of each text's corpus.
    """

    margins: NDArray[np.float64]
    labels: NDArray[np.float32]
    corpora: NDArray[np.float32]


def calibrate(margins: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Scale and shift that make margins log-odds of safe (Platt 1999), classes weighted equally.

    Raises:
        ValueError: larger margins do not mean safer texts here: the boundary has no signal.
    """
    spread = float(margins.std()) or 1.0
    platt = LogisticRegression(C=1e3, class_weight="balanced").fit(
        margins[:, None] / spread, labels
    )
    scale, shift = float(platt.coef_[0, 0] / spread), float(platt.intercept_[0])
    if scale <= 0:
        auc = roc_auc_score(labels, margins)
        raise ValueError(
            f"the boundary does not separate the calibration texts (AUC {auc:.2f}): check the "
            "labels, or fit on more texts"
        )
    return scale, shift


def metrics(margins: np.ndarray, labels: np.ndarray, scale: float, shift: float) -> Metrics:
    """Metrics of held-out margins (N,) with labels (N,), 1 safe and 0 unsafe.

    Unsafe is the class to be detected. Accuracies are those of the calibrated margin. The expected
    calibration error weights both classes equally, as the calibration does.
    """
    safe, unsafe = int((labels == 1).sum()), int((labels == 0).sum())
    if not safe or not unsafe:
        return {"safe": safe, "unsafe": unsafe}
    log_odds = scale * margins + shift
    return {
        "auc": float(roc_auc_score(labels == 0, -margins)),
        "average_precision": float(average_precision_score(labels == 0, -margins)),
        "accuracy": float(accuracy_score(labels == 1, log_odds > 0)),
        "balanced_accuracy": float(balanced_accuracy_score(labels == 1, log_odds > 0)),
        "ece": expected_calibration_error(1 / (1 + np.exp(-log_odds)), labels),
        "safe": safe,
        "unsafe": unsafe,
    }


def expected_calibration_error(
    probability: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> float:
    """Mean |confidence - frequency| over equally wide bins of P(safe) (Guo et al. 2017).

    Both classes are weighted equally.
    """
    gaps = np.bincount(
        _bin_of(probability, bins), class_weights(labels) * (probability - labels), bins
    )
    return float(np.abs(gaps).sum())


def reliability_curve(
    probability: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean P(safe) and the share of safe texts in each bin that has texts, as two (n,) arrays.

    Both classes are weighted equally.
    """
    index, weights = _bin_of(probability, bins), class_weights(labels)
    total = np.bincount(index, weights, bins)
    filled = total > 0
    means = (np.bincount(index, weights * x, bins)[filled] for x in (probability, labels))
    predicted, observed = (mean / total[filled] for mean in means)
    return predicted, observed


def class_weights(labels: np.ndarray) -> NDArray[np.float64]:
    """Weights (N,) with which each class adds up to a half."""
    safe, unsafe = (labels == 1).sum(), (labels == 0).sum()
    return np.where(labels == 1, 0.5 / max(1, safe), 0.5 / max(1, unsafe))


def _bin_of(probability: np.ndarray, bins: int) -> NDArray[np.intp]:
    return np.minimum((probability * bins).astype(int), bins - 1)
