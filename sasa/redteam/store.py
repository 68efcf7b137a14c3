"""The attempts of an attack, in a folder from which a killed attack is resumed.

    redteam.json      settings, target, attacker, scorers, versions: all that attempts depend on
    attempts.jsonl    one line an attempt, appended a step at a time
    vectors.f32       the attacks' sentence embeddings, float32, in the same order
    checkpoints/      the attacker's weights

A step counts when all of its lines are on the disk; half a step is cut off and made anew. After a
restart the attacker learns again from the rewards on record: the target is never asked twice for
what is on record.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from sasa.utils.run_folder import RunFolder

ABOUT, ATTEMPTS, VECTORS = "redteam.json", "attempts.jsonl", "vectors.f32"


class Attempt(TypedDict):
    """A line of attempts.jsonl: one attack, and what came of it.

    Keys:
        step: the number of its step, from 0.
        context: what the attack was written from.
        attack: its text.
        tokens: its token ids.
        reply: the target's reply; None if there is none.
        error: why there is no reply; None if there is one.
        scores: the reply's score by each scorer, by name; empty if there is no reply.
        terms: the terms of the reward by name; None where the target failed.
        reward: None where the target failed.
    """

    step: int
    context: str
    attack: str
    tokens: list[int]
    reply: str | None
    error: str | None
    scores: dict[str, float]
    terms: dict[str, float | None]
    reward: float | None


RECORD = tuple(Attempt.__annotations__)


def attack_folder(path: str | os.PathLike[str]) -> RunFolder:
    """The run folder of an attack."""
    return RunFolder(Path(path), ABOUT, "an attack")


class Attempts:
    """The attempts of an attack, in memory and in a folder.

    Attributes:
        folder: the folder's path.
        about: what is in redteam.json.
        records: the attempts, in order.
    """

    def __init__(
        self,
        folder: Path,
        about: dict[str, Any],
        records: list[Attempt],
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
    def check(cls, folder: str | os.PathLike[str], about: dict[str, Any]) -> None:
        """Raises ValueError if a folder has attempts with other settings, or something else."""
        run = attack_folder(folder)
        if not run.exists or cls.open(folder).records:
            run.check(about)

    @classmethod
    def begin(cls, folder: str | os.PathLike[str], about: dict[str, Any]) -> Attempts:
        """Begins a store, or opens the folder's if it has the same settings or no attempts.

        Raises:
            ValueError: the folder has attempts with other settings, which are named, or holds
                something else.
        """
        run = attack_folder(folder)
        cls.check(folder, about)
        if not (run.exists and cls.open(folder).records):
            run.write(about)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Attempts:
        """Opens the store in a folder, as far as its steps are whole.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it is damaged.
        """
        run = attack_folder(folder)
        if not run.exists:
            raise FileNotFoundError(
                f"{run.path} is no folder of `sasa redteam run`: it has no {ABOUT}"
            )
        about = run.read()
        try:
            size, rows = int(about["encoder"]["size"]), int(about["rows"])
            if min(size, rows) < 1 or any(
                not isinstance(scorer["name"], str) for scorer in about["judges"]
            ):
                raise ValueError("sizes must be >= 1, and scorers have names")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{run.path / ABOUT} is damaged: {error!r}") from error
        content = (run.path / VECTORS).read_bytes() if (run.path / VECTORS).is_file() else b""
        vectors = np.frombuffer(content[: len(content) // 4 * 4], np.float32)
        whole = min(len(run.lines(ATTEMPTS)), len(vectors) // size) // rows * rows
        records = run.records(ATTEMPTS, whole)
        for number, record in enumerate(records, 1):
            if missing := [key for key in RECORD if key not in record]:
                raise ValueError(
                    f"{run.path / ATTEMPTS}, line {number} is damaged: "
                    f"it has no {', '.join(missing)}"
                )
        attempts = cast(list[Attempt], records)
        return cls(run.path, about, attempts, vectors[: whole * size].reshape(whole, size))

    @property
    def rows(self) -> int:
        """Attempts in a step."""
        return int(self.about["rows"])

    @property
    def judges(self) -> list[str]:
        """The scorers' names, the reward's first."""
        return [scorer["name"] for scorer in self.about["judges"]]

    @property
    def steps(self) -> int:
        """How many steps are on record."""
        return len(self.records) // self.rows

    def step(self, number: int) -> list[Attempt]:
        """The attempts of a step."""
        return self.records[number * self.rows : (number + 1) * self.rows]

    def append(self, records: list[Attempt], vectors: NDArray[np.float32]) -> None:
        """Appends a step; it is on the disk when the method returns.

        Args:
            vectors: the attacks' sentence embeddings, float32 (N, d).
        """
        with (self.folder / VECTORS).open("ab") as file:
            file.write(np.ascontiguousarray(vectors, np.float32).tobytes())
            file.flush()
            os.fsync(file.fileno())
        attack_folder(self.folder).append(ATTEMPTS, records)
        self.records += records
        self._vectors.append(vectors)

    def repair(self) -> None:
        """Cuts off what follows the last whole step; only under the folder's lock."""
        attack_folder(self.folder).keep(ATTEMPTS, len(self.records))
        if (file := self.folder / VECTORS).is_file():
            os.truncate(file, self.vectors.nbytes)
