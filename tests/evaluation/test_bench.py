"""`sasa bench` from the command line."""

from __future__ import annotations

import json

import pytest
import tiny
from runs import jsonl, rtp_row

pytestmark = pytest.mark.usefixtures("_own_cache")


@pytest.fixture(scope="module")
def command_line(tiny_folder, tmp_path_factory):
    """A boundary for the tiny model and prompts, and the options that name them."""
    from sasa.models.load import load

    folder = tmp_path_factory.mktemp("bench")
    model, _ = load(tiny_folder, "cpu")
    tiny.boundary(model).save(folder / "boundary")
    rows = [rtp_row(f"prompt number {i}", 0.9 if i % 2 else 0.1) for i in range(40)]
    jsonl(folder / "rtp.jsonl", rows)
    options = [
        "rtp",
        "-p",
        folder / "rtp.jsonl",
        "-m",
        tiny_folder,
        "-b",
        folder / "boundary",
        "-c",
        3,
        "-n",
        8,
    ]
    return [*options, "--device", "cpu", "--batch-size", 2, "-M", "plain", "-M", "sasa:3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-s", "boundary"], "cannot be the only scorer"),
        (["-s", "nobody"], "unknown scorer"),
        (["-M", "nothing"], "unknown method"),
        (["--rows", "9"], "START:STOP"),
        (["--groups", "rude"], "there are: nontoxic, toxic"),
    ],
)
def test_bad_options_before_any_work(command_line, tmp_path, options, message):
    from typer.testing import CliRunner

    from sasa.cli import app

    result = CliRunner().invoke(
        app, ["bench", *map(str, command_line), "-o", str(tmp_path / "x"), *options]
    )
    assert message in str(result.exception)
    assert not (tmp_path / "x" / "run.json").exists()


def test_a_word_list_and_a_judge_of_the_users_own(command_line, tiny_folder, tmp_path):
    pytest.importorskip("profanity_check")
    from typer.testing import CliRunner

    from sasa.cli import app

    (tmp_path / "words.txt").write_text("bright\n\ncalm\n")
    run = [
        "bench",
        *map(str, command_line),
        "-M",
        "words",
        "--limit",
        "4",
        "-o",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(
        app, [*run, "--words", str(tmp_path / "words.txt"), "--judge", str(tiny_folder)]
    )
    assert result.exit_code == 0, result.exception
    words = json.loads((tmp_path / "run" / "summary.json").read_text())["runs"][0]["methods"][
        "words"
    ]["figures"]
    figures = [value["value"] for name, value in words.items() if name.startswith("perplexity")]
    assert len(figures) == 2
    assert min(figures) > 1
    texts = (tmp_path / "run" / "completions" / "words.jsonl").read_text().lower()
    assert "bright" not in texts
    again = CliRunner().invoke(
        app, ["bench", "report", str(tmp_path / "run"), "-o", str(tmp_path / "again")]
    )
    assert again.exit_code == 0, again.exception
    assert "words" in (tmp_path / "again" / "report.md").read_text()
    for missing in (tmp_path / "none.txt", tmp_path / "empty.txt"):
        (tmp_path / "empty.txt").write_text("\n")
        result = CliRunner().invoke(app, [*run, "--words", str(missing)])
        assert isinstance(result.exception, FileNotFoundError | ValueError)


def test_a_folder_that_cannot_be_written(command_line, tmp_path):
    from typer.testing import CliRunner

    from sasa.cli import app

    (tmp_path / "file").touch()
    result = CliRunner().invoke(
        app, ["bench", *map(str, command_line), "-o", str(tmp_path / "file" / "run")]
    )
    assert isinstance(result.exception, OSError)


def test_the_weight_of_one_boundary_counts(command_line, tmp_path):
    pytest.importorskip("profanity_check")
    from typer.testing import CliRunner

    from sasa.cli import app

    at = command_line.index("-b") + 1
    written = {}
    for weight, strength in (("", "sasa:1"), ("::3", "sasa:1"), ("", "sasa:3")):
        line = [
            *command_line[:-4],
            "-M",
            strength,
            "--limit",
            "4",
            "-o",
            tmp_path / f"{weight}{strength}",
        ]
        line[at] = f"{line[at]}{weight}"
        result = CliRunner().invoke(app, ["bench", *map(str, line)])
        assert result.exit_code == 0, result.exception
        rows = (
            tmp_path / f"{weight}{strength}" / "completions" / f"{strength.replace(':', '@')}.jsonl"
        ).read_text()
        written[weight, strength] = [json.loads(row)["tokens"] for row in rows.splitlines()]
    assert written["::3", "sasa:1"] == written["", "sasa:3"] != written["", "sasa:1"]


def test_dry_runs_fix_nothing(command_line, tmp_path):
    pytest.importorskip("profanity_check")
    from typer.testing import CliRunner

    from sasa.cli import app

    result = CliRunner().invoke(
        app, ["bench", *map(str, command_line), "-o", str(tmp_path), "--dry-run"]
    )
    assert result.exit_code == 0, result.exception
    assert "minutes" in result.output
    assert not list(tmp_path.iterdir())
