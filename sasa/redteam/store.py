"""Attempts of an attack, in a folder that survives being killed.

    redteam.json      settings, target, attacker, judges, versions: all that attempts depend on
    attempts.jsonl    one line an attempt, appended a step at a time
    vectors.f32       the attacks' sentence embeddings, float32, in the same order
    checkpoints/      the attacker's weights

A step is there when all of its lines are; half a step is taken away and made anew. Rewards that are on record are learnt from
again after a restart: for what is on record no target is asked twice.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasa.utils.files import differences, read_json, write_atomically
from sasa.utils.jsonl import append, keep_lines, parse, whole_lines

ABOUT, ATTEMPTS, VECTORS = "redteam.json", "attempts.jsonl", "vectors.f32"
RECORD = ("step", "context", "attack", "tokens", "reply", "error", "scores", "terms", "reward")


class Attempts:
    """A store.

    Attributes:
        folder: where it is.
        about: what is in redteam.json.
        records: the attempts, in order. Each has `step`, `context`, `attack`, `tokens` (of the attack), `reply` (None where there
            is none), `error` (None, or why), `scores` (of the reply, by judge), `terms` (of the reward) and `reward`.
    """

    def __init__(
        self,
        folder: Path,
        about: dict[str, Any],
        records: list[dict[str, Any]],
        vectors: NDArray[np.float32],
    ) -> None:
        self.folder, self.about, self.records = folder, about, records
        self._vectors = [vectors]

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The attacks' sentence embeddings, float32 (N, d)."""
        if len(self._vectors) > 1:
            self._vectors = [np.concatenate(self._vectors)]
        return self._vectors[0]

    @classmethod
    def begin(cls, folder: str | os.PathLike[str], about: dict[str, Any]) -> Attempts:
        """A new store, or the one that is there, if it was made with the same settings or holds no attempts yet.

        Raises:
            ValueError: it was made with others, which are named, or the folder holds something else.
        """
        folder, about = Path(folder), json.loads(json.dumps(about))
        file = folder / ABOUT
        known = cls.open(folder) if file.is_file() else None
        if known is not None and known.records:
            if differ := differences({key: known.about.get(key) for key in about}, about):
                raise ValueError(
                    f"{folder} was made with other settings: {'; '.join(differ)}. Give the same ones, or another folder"
                )
            return known
        if (
            known is None
            and folder.is_dir()
            and any(not each.name.startswith(".") for each in folder.iterdir())
        ):
            raise ValueError(f"{folder} is not empty and holds no attempts: give another folder")
        write_atomically(file, json.dumps(about, indent=1) + "\n")
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Attempts:
        """A store that is there, as far as its steps are whole.

        Raises:
            FileNotFoundError: none is.
            ValueError: it is damaged.
        """
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise FileNotFoundError(
                f"{folder} is no folder of `sasa redteam run`: it has no {ABOUT}"
            )
        about = read_json(folder / ABOUT)
        try:
            size, rows = int(about["encoder"]["size"]), int(about["rows"])
            if min(size, rows) < 1 or any(
                not isinstance(judge["name"], str) for judge in about["judges"]
            ):
                raise ValueError("sizes must be >= 1, and judges have names")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / ABOUT} is damaged: {error!r}") from error
        lines = whole_lines(folder / ATTEMPTS) if (folder / ATTEMPTS).is_file() else []
        kept = (folder / VECTORS).read_bytes() if (folder / VECTORS).is_file() else b""
        vectors = np.frombuffer(kept[: len(kept) // 4 * 4], np.float32)
        whole = min(len(lines), len(vectors) // size) // rows * rows
        records = parse(folder / ATTEMPTS, lines[:whole])
        for number, record in enumerate(records, 1):
            if missing := [key for key in RECORD if key not in record]:
                raise ValueError(
                    f"{folder / ATTEMPTS}, line {number} is damaged: it has no {', '.join(missing)}"
                )
        return cls(folder, about, records, vectors[: whole * size].reshape(whole, size))

    @property
    def rows(self) -> int:
        """Attempts in a step."""
        return int(self.about["rows"])

    @property
    def judges(self) -> list[str]:
        """The judges' names, the reward's first."""
        return [judge["name"] for judge in self.about["judges"]]

    @property
    def steps(self) -> int:
        """Steps that are there."""
        return len(self.records) // self.rows

    def step(self, number: int) -> list[dict[str, Any]]:
        """The attempts of a step."""
        return self.records[number * self.rows : (number + 1) * self.rows]

    def append(self, records: list[dict[str, Any]], vectors: NDArray[np.float32]) -> None:
        """Appends a step, on the disk when it returns."""
        with (self.folder / VECTORS).open("ab") as file:
            file.write(np.ascontiguousarray(vectors, np.float32).tobytes())
            file.flush()
            os.fsync(file.fileno())
        append(self.folder / ATTEMPTS, records)
        self.records += records
        self._vectors.append(vectors)

    def repair(self) -> None:
        """Takes away what stands behind the last whole step; for the one process that writes."""
        if (file := self.folder / ATTEMPTS).is_file():
            keep_lines(file, whole_lines(file)[: len(self.records)])
        if (file := self.folder / VECTORS).is_file():
            os.truncate(file, self.vectors.nbytes)
