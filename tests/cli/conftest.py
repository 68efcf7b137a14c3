"""Fixtures that several test modules of this folder share."""

import pytest
from shell import sasa


@pytest.fixture(scope="module")
def fitted(tiny_folder, corpus_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    done = sasa(
        "fit",
        f"{corpus_file}::text=comment,label=toxic",
        "--model",
        tiny_folder,
        "--pooling",
        "mean",
        "-o",
        folder,
    )
    return folder, done
