"""The folder of a long run: settings, records and a lock, so that a killed run can be resumed.

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
        remedy: what to do about other settings, as the last sentence of the error.
        sections: keys of the settings file whose objects are the settings, where it holds more
            than settings; empty if its keys are the settings.
    """

    path: Path
    settings_file: str
    holds: str
    remedy: str = "Give the same ones, or another folder"
    sections: tuple[str, ...] = ()

    @property
    def exists(self) -> bool:
        """Whether a run has been begun in the folder."""
        return (self.path / self.settings_file).is_file()

    def read(self) -> dict[str, Any]:
        """Reads the settings file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        return read_json(self.path / self.settings_file)

    def write(self, content: Mapping[str, Any]) -> None:
        """Replaces the settings file atomically."""
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(self.path / self.settings_file, text)

    def check(self, content: Mapping[str, Any]) -> dict[str, Any] | None:
        """Compares settings with those that the folder's run began with, and changes nothing.

        Args:
            content: JSON values, as for `write`. Keys that only the file has are not compared,
                nor, where there are sections, is anything outside of them.

        Returns:
            the content of the settings file; None if no run has begun here.

        Raises:
            SettingsDiffer: the run has other settings, which are named, or the folder holds
                something else. Hidden files do not count: the lock, or half of a settings file.
            ValueError: the settings file is damaged.
        """
        if not self.exists:
            if any(self.path.glob("[!.]*")):
                raise SettingsDiffer(
                    f"{self.path} is not empty and does not hold {self.holds}: give another folder"
                )
            return None
        stored = self.read()
        given = json.loads(json.dumps(content))  # as the values come back from the file
        pairs = (
            [(stored[section], given[section]) for section in self.sections]
            if self.sections
            else [({key: stored.get(key) for key in given}, given)]
        )
        if changes := [change for pair in pairs for change in differences(*pair)]:
            raise SettingsDiffer(
                f"{self.path} holds {self.holds} with other settings: {'; '.join(changes)}. "
                f"{self.remedy}"
            )
        return stored

    def begin(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Begins a run, or resumes the one that is there: `check`, then `write` if none is.

        Returns:
            the content of the settings file.
        """
        stored = self.check(content)
        if stored is None:
            self.write(content)
            stored = self.read()
        return stored

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing here. The folder is made if there is none.

        The system releases the lock when the process ends, however it ends.

        Raises:
            BlockingIOError: another process holds the lock.
            OSError: the folder cannot be made, or not be locked; the error names it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / LOCK, blocking=False)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise BlockingIOError(f"another process is writing to {self.path}") from error
        except OSError as error:
            raise OSError(error.errno, f"cannot lock {self.path}: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def lines(self, name: str) -> list[bytes]:
        """The lines of a .jsonl file that were written to the end; none without a file."""
        file = self.path / name
        return jsonl.whole_lines(file) if file.is_file() else []

    def records(self, name: str, count: int | None = None) -> list[dict[str, Any]]:
        """The first `count` records of a .jsonl file, or all, without a torn last line.

        Raises:
            ValueError: one of these is damaged.
        """
        return jsonl.parse(self.path / name, self.lines(name)[:count])

    def append(self, name: str, records: Sequence[Any]) -> None:
        """Appends records in one go, on the disk when it returns; a torn last line is cut off."""
        jsonl.append(self.path / name, records)

    def keep(self, name: str, count: int) -> None:
        """Cuts a .jsonl file off after its first `count` whole lines; only under the lock."""
        file = self.path / name
        if file.is_file():
            jsonl.keep_lines(file, jsonl.whole_lines(file)[:count])
