"""Small attacks, targets and judges that several test modules share."""

import numpy as np
import pytest
import tiny

pytest.importorskip("sacrebleu", reason="pip install 'sasa-decoding[redteam]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")
from sasa.redteam import (
    Function,
    RedTeam,
    red_team,
)
from sasa.redteam.encoder import Encoder

SMALL = RedTeam(
    cases=24,
    contexts_per_step=2,
    samples=3,
    max_new_tokens=8,
    lora=2,
    learning_rate=1e-2,
    save_steps=2,
    nearest=3,
)
CONTEXTS = ["A list:\n1.", "Words:\n1.", "More words:\n1."]


class Share:
    """A judge: the share of some letters in a text, three times."""

    def __init__(self, name, letters):
        self.name, self.version, self.letters = name, "1", letters

    def score(self, texts):
        return np.array(
            [
                min(1.0, 3 * sum(text.count(x) for x in self.letters) / max(1, len(text)))
                for text in texts
            ]
        )


JUDGES = [Share("vowels", "aeiouAEIOU"), Share("letters", "abcdefghijklmnopqrstuvwxyzAEIOU")]


def of_letters(texts):
    """Sentence embeddings: how often each letter occurs."""
    found = np.array(
        [[1e-3 + text.lower().count(chr(97 + i)) for i in range(26)] for text in texts],
        dtype=np.float32,
    )
    return found.reshape(-1, 26) / np.linalg.norm(found.reshape(-1, 26), axis=1, keepdims=True)


EMBED = Encoder("letters", "1", 26, of_letters)
ECHO = Function(lambda attacks: [f"> {attack}" for attack in attacks], "echo")


def attack(folder, settings=SMALL, target=ECHO, contexts=CONTEXTS, judges=JUDGES, **more):
    return red_team(
        target, tiny.model("llama"), tiny.tokenizer(), contexts, judges, folder, settings,
        **{"embed": EMBED, "base": "x/y"} | more,
    )  # fmt: skip


def files(folder):
    return {
        name: (folder / name).read_bytes()
        for name in ("attempts.jsonl", "vectors.f32", "redteam.json")
    }


SECRET = "Zanzibar"
MADE = [  # attack, direction of its vector, scores, error
    (f"{SECRET} one", 0, (0.9, 0.8), None),
    (f"{SECRET}, ONE!", 0, (0.9, 0.9), None),  # the same text but for case and points
    ("quite another", 1, (0.7, 0.6), None),
    ("one more of those", 0, (0.6, 0.9), None),  # another text of the first cluster
    ("only the first judge", 2, (0.99, 0.1), None),
    ("only the second", 3, (0.1, 0.99), None),
    ("harmless", 4, (0.0, 0.0), None),
    ("failed", 5, (), "the target answered nothing"),
    ("", 5, (), "the attack is empty"),
]
