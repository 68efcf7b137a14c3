"""The folder of a long run: the settings check, the lock between processes, and torn records."""

import os
import signal
import subprocess
import sys

import pytest

from sasa.utils.run_folder import RunFolder, SettingsDiffer

SETTINGS = {"seed": 1, "sizes": (2, 3), "model": {"id": "tiny", "layers": 4}}
HOLDER = """
import sys, time
from pathlib import Path
from sasa.utils.run_folder import RunFolder
with RunFolder(Path(sys.argv[1]), "run.json", "a run").lock():
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run", "run.json", "a run")


@pytest.fixture
def holder(folder):
    """Another process that holds the folder's lock."""
    command = [sys.executable, "-c", HOLDER, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_run_is_begun_once_and_resumed_with_the_same_settings(folder):
    assert not folder.exists
    assert folder.check(SETTINGS) is None
    assert not folder.path.exists()
    stored = folder.begin(SETTINGS)
    assert stored == {"seed": 1, "sizes": [2, 3], "model": {"id": "tiny", "layers": 4}}
    folder.write({**SETTINGS, "methods": ["plain"]})
    assert folder.begin(SETTINGS)["methods"] == ["plain"]
    assert folder.check(SETTINGS) == folder.read()


def test_other_settings_are_refused_by_name(folder):
    folder.begin(SETTINGS)
    other = {**SETTINGS, "seed": 2, "model": {"id": "tiny", "layers": 5}, "new": True}
    with pytest.raises(SettingsDiffer) as refused:
        folder.begin(other)
    assert str(refused.value) == (
        f"{folder.path} holds a run with other settings: seed was 1, is 2; model.layers was 4, is 5; "
        "new was None, is True. Give the same ones, or another folder"
    )
    assert folder.check(SETTINGS)["seed"] == 1


def test_only_the_sections_are_compared_where_there_are_any(tmp_path):
    folder = RunFolder(tmp_path, "state.json", "a fit", "Delete it", ("settings",))
    folder.begin({"settings": {"seed": 1}, "done": 0})
    assert folder.begin({"settings": {"seed": 1}, "done": 7})["done"] == 0
    with pytest.raises(SettingsDiffer, match=r"other settings: seed was 1, is 2\. Delete it"):
        folder.begin({"settings": {"seed": 2}})


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(folder):
    folder.path.mkdir()
    (folder.path / "thesis.tex").write_text("x")
    with pytest.raises(
        SettingsDiffer, match="is not empty and does not hold a run: give another folder"
    ):
        folder.begin(SETTINGS)
    assert os.listdir(folder.path) == ["thesis.tex"]
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        folder.read()
    (folder.path / "thesis.tex").rename(folder.path / ".run.json.x1")
    folder.begin(SETTINGS)  # half of a settings file, of a run that was killed then


def test_a_damaged_settings_file_is_named(folder):
    folder.path.mkdir()
    (folder.path / "run.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        folder.begin(SETTINGS)


def test_a_second_process_is_kept_out_until_the_first_is_killed(folder, holder):
    with pytest.raises(BlockingIOError, match=f"another process is writing to {folder.path}"):
        folder.lock().__enter__()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with folder.lock():
        folder.begin(SETTINGS)  # the lock's file does not make the folder a foreign one
    assert folder.read()["seed"] == 1


def test_the_lock_is_released_after_an_error_and_with_its_folder_removed(folder):
    with pytest.raises(KeyError), folder.lock():
        raise KeyError
    with folder.lock():
        (folder.path / ".lock").unlink()
        folder.path.rmdir()
    with folder.lock():
        assert folder.path.is_dir()


def test_a_folder_that_cannot_be_locked_is_named(folder):
    (folder.path / ".lock").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=f"cannot lock {folder.path}"):
        folder.lock().__enter__()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_folder_is_named(folder):
    folder.path.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match=f"cannot lock {folder.path}"):
        folder.lock().__enter__()


def test_a_file_in_place_of_the_folder_is_named(folder):
    folder.path.write_text("")
    with pytest.raises(FileExistsError, match=str(folder.path)):
        folder.lock().__enter__()


@pytest.mark.parametrize("torn", [b'{"id": 3, "te', b'{"id": 3, "te\n', b"\xff"])
def test_a_torn_last_line_is_neither_read_nor_kept(folder, torn):
    rows = [{"id": number, "text": "é"} for number in range(3)]
    assert folder.records("rows.jsonl") == folder.lines("rows.jsonl") == []
    folder.keep("rows.jsonl", 1)  # there is nothing yet
    folder.append("rows.jsonl", rows)
    file = folder.path / "rows.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    assert folder.records("rows.jsonl") == rows
    assert b"".join(folder.lines("rows.jsonl")) == whole
    folder.keep("rows.jsonl", 3)
    assert file.read_bytes() == whole
    folder.keep("rows.jsonl", 2)
    folder.append("rows.jsonl", rows[2:])
    assert file.read_bytes() == whole


def test_records_are_appended_in_place_of_a_torn_one(folder):
    folder.append("parts/rows.jsonl", [{"id": 0}])
    file = folder.path / "parts" / "rows.jsonl"
    file.write_bytes(file.read_bytes() + b'{"id": 1, "te')
    folder.append("parts/rows.jsonl", [{"id": 1}, [2]])
    assert file.read_text() == '{"id": 0}\n{"id": 1}\n[2]\n'
    assert folder.records("parts/rows.jsonl", 2) == [{"id": 0}, {"id": 1}]
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3 is damaged: it holds a list"):
        folder.records("parts/rows.jsonl")
