"""Fixtures that several test modules of this folder share."""

import json

import pytest
import tiny

import sasa


@pytest.fixture
def few_prompts(tiny_folder, tmp_path):
    """Options: twelve prompts, a tiny model, and a boundary for it."""
    model, _ = sasa.load(str(tiny_folder), device="cpu")
    tiny.boundary(model).save(tmp_path / "boundary")
    rows = [
        {"prompt": {"text": f"number {i}", "toxicity": i % 2 * 0.9}, "challenging": False}
        for i in range(12)
    ]
    (tmp_path / "rtp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        "--prompts",
        tmp_path / "rtp.jsonl",
        "--model",
        tiny_folder,
        "--boundary",
        tmp_path / "boundary",
    )


@pytest.fixture
def mine(tmp_path):
    """A folder with a reward of one's own: a completion is bad where it holds a capital letter."""
    code = "def quiet(prompts, completions):\n    return [0.5 - sum(c.isupper() for c in text) for text in completions]\n"
    (tmp_path / "homemade.py").write_text(code)
    return tmp_path
