"""The scripts behind the figures run: on a tiny model, in a few seconds."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script, *arguments):
    done = subprocess.run([sys.executable, BENCHMARKS / script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_speed_of_a_model_without_weights(tiny_folder, tmp_path):
    shown = run(
        *("speed.py", "--random-weights", tiny_folder, "--device", "cpu", "--dtype", "float32", "--tokens", 3),
        *("--rounds", 1, "--candidates", 4, "--prompt", 8, "--batch", 1, 2, "--output", tmp_path / "speed.json"),
        *("--sides", "plain", "decoder", "processor", "reference", "--profile"),
    )
    assert "look-ahead passes" in shown
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert {(r["batch"], r["side"]) for r in results} >= {
        (1, "plain"),
        (2, "decoder"),
        (1, "processor"),
        (1, "reference"),
    }
    assert all(r["times_plain"] == 1 for r in results if r["side"] == "plain")
    assert (tmp_path / "speed.png").is_file()


def test_auc(real, shared_data):
    assert "AUC" in run("auc.py", "--prompts", shared_data / "rtp" / "prompts.jsonl", "--rows", "3000:3030")
