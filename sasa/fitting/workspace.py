"""An unfinished fit on disk, so that a fit that is killed resumes where it stopped.

    .fit/
      state.json                how many texts have been read, how many rows of each file count,
                                and all settings that they depend on
      statistics-N.safetensors  statistics of the fitted vectors among the first N texts
      calibration.f32, …        rows of label, corpus and embedding, float32, of the parts that are
                                kept: those held out, and all for a classifier
      own.jsonl                 what the model wrote itself
      .lock                     held by the one process that writes

state.json is written last, and decides how much of every other file counts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasa.core.model_info import ModelInfo
from sasa.fitting.context import FitContext
from sasa.fitting.discriminant import GaussianStatistics
from sasa.fitting.recipe import Part
from sasa.utils.files import write_atomically
from sasa.utils.run_folder import LOCK, RunFolder

NOT_COMPARED = ("shrinkage", "attribute", "audit", "identity", "people", "own")
"""Settings of a recipe that embeddings do not depend on: a resumed fit may have others."""


@dataclass
class WindowEmbeddings:
    """The embeddings of one window of texts.

    Attributes:
        texts: the number of texts.
        statistics: of the vectors to be fitted, unless they are kept as rows.
        rows: by kept part, batches of rows, float32 (n, 2 + d): label, corpus and embedding.
    """

    texts: int
    statistics: GaussianStatistics
    rows: dict[Part, list[NDArray[np.float32]]]


class Workspace:
    """The state of an unfinished fit, in memory and on disk.

    Attributes:
        statistics: of the vectors to be fitted, of all texts added so far.
        saved: the number of texts of the stream that count if the fit is stopped now.
        added: the number of texts added so far.
        rows: by kept part, the number of rows written so far.
    """

    def __init__(self, run: RunFolder, settings: dict[str, Any], dimension: int) -> None:
        self._run = run
        self._settings = settings
        self._row_size = 2 + dimension  # label, corpus and embedding
        self.saved = self.added = 0
        self.rows: dict[Part, int] = dict.fromkeys(settings["spills"], 0)
        self.statistics = GaussianStatistics.empty(dimension)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, context: FitContext, digest: str) -> Iterator[Workspace]:
        """Begins a workspace, or resumes the one that an interrupted call left; locks the folder.

        Args:
            digest: of the texts.

        Raises:
            BlockingIOError: another process fits in this folder.
            ValueError: the folder holds an unfinished fit with other settings, or is damaged.
        """
        recipe, model = context.recipe, context.model
        settings = {
            "recipe": recipe.to_dict() | dict.fromkeys(NOT_COMPARED),
            "texts": digest,
            "model": ModelInfo.of(model).id,
            "dtype": str(model.dtype),
            "spills": list(context.kept),
        }
        run = RunFolder(
            folder,
            "state.json",
            "an unfinished fit",
            remedy="Delete it to begin anew",
            sections=("settings",),
        )
        workspace = cls(run, settings, recipe.dimension(model))
        with run.lock():
            if run.exists:
                workspace._resume(run.begin({"settings": settings}))
            else:
                workspace._clear()
            yield workspace

    def _resume(self, state: dict[str, Any]) -> None:
        """Takes up what state.json counts as saved."""
        self.saved = self.added = state["done"]
        self.rows = state["rows"]
        if self.saved:
            self.statistics = GaussianStatistics.load(self._statistics_file(self.saved))
        for part, count in self.rows.items():  # later rows were not saved, and are written again
            with open(self._rows_file(part), "ab") as file:
                size = 4 * self._row_size * count
                if file.tell() < size:
                    raise ValueError(
                        f"{self._rows_file(part)} has lost rows: delete {self.folder} to begin anew"
                    )
                file.truncate(size)

    def _clear(self) -> None:
        """Removes what a fit wrote that never saved its state."""
        for file in self.folder.iterdir():
            if file.name != LOCK:
                file.unlink()

    @property
    def folder(self) -> Path:
        return self._run.path

    @property
    def own_text(self) -> Path:
        """The file of what the model wrote itself."""
        return self.folder / "own.jsonl"

    def _rows_file(self, part: Part) -> Path:
        return self.folder / f"{part}.f32"

    def _statistics_file(self, done: int) -> Path:
        return self.folder / f"statistics-{done}.safetensors"

    def add(self, window: WindowEmbeddings) -> None:
        """Adds the embeddings of a window of texts: statistics to memory, rows to disk."""
        self.statistics.merge(window.statistics)
        for part, batches in window.rows.items():
            with open(self._rows_file(part), "ab") as file:
                for rows in batches:
                    file.write(rows.tobytes())
                    self.rows[part] += len(rows)
        self.added += window.texts

    def save(self) -> None:
        """Makes all that was added count: a fit that is stopped resumes here."""
        for part in self.rows:
            with open(self._rows_file(part), "ab") as file:
                os.fsync(file.fileno())
        write_atomically(self._statistics_file(self.added), self.statistics.to_bytes())
        state = {"settings": self._settings, "done": self.added, "rows": self.rows}
        write_atomically(self.folder / "state.json", json.dumps(state))
        if self.saved < self.added:
            self._statistics_file(self.saved).unlink(missing_ok=True)
        self.saved = self.added

    def embeddings(self, part: Part) -> NDArray[np.float32]:
        """A kept part's rows (N, 2 + d) of label, corpus and embedding, mapped from disk."""
        return np.memmap(self._rows_file(part), np.float32, "r").reshape(-1, self._row_size)

    def remove(self) -> None:
        """Removes the folder; first the file that makes the others count."""
        (self.folder / "state.json").unlink(missing_ok=True)
        # Windows does not delete the lock while it is held; without state.json it does no harm.
        shutil.rmtree(self.folder, ignore_errors=os.name == "nt")
