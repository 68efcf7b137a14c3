"""The folder of a long run: its settings, its records, and a lock, so that a killed run resumes where it stopped.

Fits, benchmarks, tail measurements, trainings and attacks each keep one:

    <settings file>   JSON; all that the records depend on
    *.jsonl           records, appended in one go (`sasa.utils.jsonl`)
    .lock             held by the one process that writes
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from sasa.utils import jsonl
from sasa.utils.files import differences, read_json, write_atomically

LOCK = ".lock"


class SettingsDiffer(ValueError):
    """The folder holds a run with other settings, or something else."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder.

    Attributes:
        path: the folder; it need not exist yet.
        settings_file: the name of the JSON file in it that holds the settings.
        holds: what a run of this kind is called in errors, such as `a training`.
        remedy: what to do when the folder cannot be used, as the last sentence of the error.
    """

    path: Path
    settings_file: str
    holds: str
    remedy: str = "Give the same ones, or another folder"

    @property
    def exists(self) -> bool:
        """Whether a run has been begun here."""
        return (self.path / self.settings_file).is_file()

    def read(self) -> dict[str, Any]:
        """The settings file. Raises ValueError if it is damaged, FileNotFoundError if there is none."""
        return read_json(self.path / self.settings_file)

    def write(self, content: Mapping[str, Any]) -> None:
        """Replaces the settings file atomically."""
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(self.path / self.settings_file, text)

    def check(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Compares settings with those that the folder's run began with.

        Args:
            settings: JSON values; keys that the file has beside these are not compared.

        Returns:
            the content of the settings file; None if no run has begun here.

        Raises:
            SettingsDiffer: the run has other settings, which are named, or the folder is not empty
                and holds no such run.
            ValueError: the settings file is damaged.
        """
        if not self.exists:
            if self.path.is_dir() and any(each.name != LOCK for each in self.path.iterdir()):
                raise SettingsDiffer(
                    f"{self.path} is not empty and does not hold {self.holds}: give another folder"
                )
            return None
        stored = self.read()
        now = json.loads(json.dumps(settings))  # as they come back from the file
        if differ := differences({key: stored.get(key) for key in now}, now):
            raise SettingsDiffer(
                f"{self.path} was made with other settings: {'; '.join(differ)}. {self.remedy}"
            )
        return stored

    def begin(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Begins a run, or resumes the one that is there: `check`, and `write` where there is none."""
        stored = self.check(settings)
        if stored is None:
            self.write(settings)
        return stored or self.read()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing here. Raises BlockingIOError if one does already."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(self.path / LOCK, blocking=False):
                yield
        except filelock.Timeout as error:
            raise BlockingIOError(f"another process is writing to {self.path}") from error

    def records(self, name: str) -> list[dict[str, Any]]:
        """The records of one of the run's .jsonl files, without a torn last line; none without a file."""
        return jsonl.read(self.path / name)

    def append(self, name: str, records: Sequence[Any]) -> None:
        """Appends records in one go; they are on the disk when it returns."""
        jsonl.append(self.path / name, records)

    def keep(self, name: str, count: int) -> None:
        """Cuts a .jsonl file off after its first `count` whole lines; only for the process that writes."""
        file = self.path / name
        if file.is_file():
            jsonl.keep_lines(file, jsonl.whole_lines(file)[:count])
