"""fit_boundary(): corpora -> embeddings -> boundary -> calibration -> held-out report.

Every text is read once. A fit keeps O(d^2) statistics in memory and, on disk, the embeddings of the
held-out texts. Both are saved as the fit proceeds, so that a fit that is killed resumes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.boundary import Boundary
from sasa.core.model_info import ModelInfo
from sasa.core.shipped import FILE_NAME
from sasa.fitting.calibration import HeldOut, calibrate
from sasa.fitting.card import card, plot
from sasa.fitting.context import FitContext
from sasa.fitting.reading import read_texts
from sasa.fitting.recipe import Part, Recipe
from sasa.fitting.report import add_audits, fit_report
from sasa.fitting.separation import Separation, separate
from sasa.fitting.survey import survey
from sasa.fitting.workspace import Workspace
from sasa.utils.files import write_atomically
from sasa.utils.parallel import Spread


def fit_boundary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    classifier: ClassifierMixin | None = None,
    batch_size: int = 64,
    save_every: float = 30.0,
    progress: bool = False,
    spread: Spread | None = None,
) -> Boundary:
    """Fits, calibrates and tests a boundary (Ko et al. 2025, section 3.2).

    Args:
        recipe: the corpora, the embedding and the split.
        output: a folder for the boundary, its recipe and its card. An unfinished fit is kept there,
            and the same call resumes it. None writes nothing.
        classifier: an unfitted scikit-learn linear classifier in place of the closed form. It needs
            the embeddings of all texts, or of all prefixes, at once: O(N d) memory.
        save_every: seconds between two saves of an unfinished fit.
        spread: workers that read and write texts with the same model (`sasa.serving.ray`); None for
            this process. The result is the same to the last bit if the arithmetic is.

    Returns:
        the boundary; `report` holds counts and held-out metrics.

    Raises:
        ValueError: one class only, a bad label, a folder with another recipe's unfinished fit, a
            boundary without signal, or too little of the model's own text of one class. All but the
            last two are raised before anything is embedded.
        BlockingIOError: another process fits in the same folder.
    """
    recipe = recipe.for_model(model)
    context = FitContext(model, tokenizer, recipe, classifier, batch_size, progress, spread)
    texts = survey(context)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if output is None else output)
        with Workspace.open(folder / ".fit", context, texts.counts.digest) as workspace:
            read_texts(context, workspace, texts.counts.total, save_every)
            separation = separate(context, texts, workspace)
            calibration = _held_out(workspace, "calibration", separation)
            scale, shift = calibrate(calibration.margins, calibration.labels)
            test = _held_out(workspace, "test", separation)
            boundary = Boundary(
                weight=torch.tensor(separation.weight, dtype=torch.float32),
                bias=separation.bias,
                embedding=recipe.embedding,
                model=ModelInfo.of(model),
                scale=scale,
                shift=shift,
                attribute=recipe.attribute,
                report={**fit_report(context, texts, separation, test, scale, shift)},
            )
            add_audits(context, texts, boundary)
            if output is not None:
                _write(folder, recipe, boundary, test)
                workspace.remove()
    return boundary.to(model.device)


def _held_out(workspace: Workspace, part: Part, separation: Separation) -> HeldOut:
    """The margins of a held-out part."""
    rows = workspace.embeddings(part)
    return HeldOut(separation.margins(rows[:, 2:]), np.array(rows[:, 0]), np.array(rows[:, 1]))


def _write(folder: Path, recipe: Recipe, boundary: Boundary, test: HeldOut) -> None:
    """Writes the recipe, the plot, the card, and last, as the others belong to it, the boundary."""
    write_atomically(folder / "recipe.toml", recipe.to_toml())
    plotted = plot(folder / "margins.png", test, boundary.scale, boundary.shift)
    write_atomically(folder / "README.md", card(boundary, plotted))
    boundary.save(folder / FILE_NAME)
