"""The kit for a machine with a GPU runs on the CPU, with tiny models."""

import json

import pytest
from scripts import run


@pytest.mark.slow
def test_the_gpu_kit(tmp_path):
    """All its parts, on tiny models and a CPU; a part that fails is named and keeps none from running."""
    pytest.importorskip("trl")
    options = ("--tiny", "--device", "cpu", "-o", tmp_path, "--kit", tmp_path)
    run("gpu.py", *options)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["ended"] for name, part in found["parts"].items()} == dict.fromkeys(
        ("exact", "time", "fit", "rtp", "reset"), ""
    )
    checks = found["parts"]["exact"]["results"]
    assert {row["check"] for row in checks} == {
        "processor",
        "decoder",
        "lazy",
        "backtracking",
        "compiled",
    }
    assert all(row["ok"] for row in checks), [row for row in checks if not row.get("ok")]
    assert {row["side"] for row in found["parts"]["time"]["results"]} == {
        "plain",
        "decoder",
        "processor",
    }
    assert all(0 < row["share"] < 1 for row in found["parts"]["fit"]["results"])
    assert {row["method"] for row in found["parts"]["rtp"]["results"]} == {"plain", "sasa"}
    forced = [row for row in found["parts"]["reset"]["results"] if row.get("bias")]
    assert [row["model"] for row in forced] == ["reset-sft", "reset-dpo"]
    assert "llama-8b, batch 1, decoder: times plain: not measured" in run(
        "gpu.py", *options, "--compare"
    )
    (tmp_path / "again").mkdir()
    shown = run(
        "gpu.py",
        "--device",
        "cpu",
        "--parts",
        "rtp",
        "-o",
        tmp_path / "again",
        "--kit",
        tmp_path / "none",
    )
    assert "rtp: failed: FileNotFoundError: no " in shown
    assert "**time: not run**" in shown
