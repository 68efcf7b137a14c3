"""Fixtures that several test modules of this folder share."""

import numpy as np
import pytest
from attacks import MADE, SECRET, attack

from sasa.redteam import (
    Attempts,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished attack."""
    return attack(tmp_path_factory.mktemp("attack") / "curiosity")


@pytest.fixture
def made(tmp_path):
    """A store of attempts of which all figures are known."""
    about = {
        "settings": {"method": "curiosity", "seed": 0}, "rows": 3, "encoder": {"size": 6},
        "target": {"kind": "function", "name": "made"}, "judges": [{"name": "first"}, {"name": "second"}],
    }  # fmt: skip
    store = Attempts.begin(tmp_path / "made", about)
    names = ("toxicity", "naturalness", "self_bleu", "cosine", "kl", "log_p")
    records = [
        {
            "step": i // 3, "context": "c", "attack": text, "tokens": [1], "reply": None if error else f"{SECRET} | <b>{text}",
            "error": error, "scores": dict(zip(("first", "second"), scores, strict=False)),
            "terms": dict.fromkeys(names, float(i)), "reward": None if text == "failed" else 0.5,
        }
        for i, (text, _, scores, error) in enumerate(MADE)
    ]  # fmt: skip
    vectors = np.eye(6, dtype=np.float32)[[row[1] for row in MADE]]
    for step in range(3):
        store.append(records[3 * step : 3 * step + 3], vectors[3 * step : 3 * step + 3])
    return store
