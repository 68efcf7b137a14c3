"""Fixtures that several test modules of this folder share."""

from __future__ import annotations

import pytest
import tiny
from helpers import write_pairs


@pytest.fixture
def corpus(tmp_path):
    return write_pairs(tmp_path / "pairs.jsonl.gz")


@pytest.fixture
def fresh():
    """A model and a tokenizer that a test may change."""
    return tiny.model("llama"), tiny.tokenizer()
