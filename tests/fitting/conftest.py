"""Fixtures that several test modules of this folder share."""

import pytest

from sasa import EmbeddingSpec
from sasa.fitting import Corpus, Recipe


@pytest.fixture
def recipe(corpus_file):
    return Recipe(
        (Corpus(str(corpus_file), text="comment", label="toxic"),),
        embedding=EmbeddingSpec(pooling="mean"),
    )
