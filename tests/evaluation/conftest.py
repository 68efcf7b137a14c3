"""Fixtures that several test modules of this folder share."""

from __future__ import annotations

import pytest
import tiny

from sasa.evaluation.settings import Settings
from sasa.evaluation.world import World


@pytest.fixture
def _own_cache(tmp_path_factory, monkeypatch):
    """Scores of one test must not serve another."""
    monkeypatch.setenv("SASA_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def world(model, tokenizer):
    return World(
        model,
        tokenizer,
        tiny.boundary(model, pooling="mean"),
        Settings(3, 6, 1.0, 10, 0.95, words=("the",)),
    )


@pytest.fixture(scope="module")
def judge(corpus_file):
    """The name of a judge that is there everywhere."""
    return f"words:{corpus_file}::text=comment,label=toxic"
