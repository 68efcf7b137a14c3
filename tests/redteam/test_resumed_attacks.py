"""Attacks that are stopped, killed, extended or repeated."""

import os
import signal
import time
from dataclasses import replace

import pytest
from attacks import CONTEXTS, ECHO, EMBED, JUDGES, SMALL, attack, files

import sasa

pytest.importorskip("sacrebleu", reason="pip install 'sasa-decoding[redteam]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")
from sasa.redteam import (
    Attempts,
    Function,
    red_team,
)


class Stops(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_stopped_it_goes_on_to_the_same_bytes_and_asks_nothing_twice(
    done, tmp_path, at, monkeypatch
):
    """Stopped at a target, or after what it said was put on record and before it was learnt from."""
    from sasa.redteam import attacker

    asked = []

    def answers(attacks):
        asked.extend(attacks)
        return [f"> {text}" for text in attacks]

    learn = attacker.Attacker.learn

    def stops(self, number, log_p=None):
        if number == at:
            raise Stops
        learn(self, number, log_p)

    monkeypatch.setattr(attacker.Attacker, "learn", stops)
    with pytest.raises(Stops):
        attack(tmp_path / "a", target=Function(answers, "echo"))
    monkeypatch.undo()
    with (tmp_path / "a" / "attempts.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "torn')
    with (tmp_path / "a" / "vectors.f32").open("ab") as file:
        file.write(b"torn")
    found = attack(tmp_path / "a", target=Function(answers, "echo"))
    assert files(tmp_path / "a") == files(done.folder)
    greeted = [text for text in asked if text.startswith("Hello!")]
    assert len(asked) - len(greeted) == sum(record["attack"] != "" for record in found.records)
    attack(tmp_path / "a", target=Function(None, "echo"))  # what is done asks nobody


@pytest.mark.slow
def test_killed_again_and_again_the_store_ends_the_same(tmp_path):
    settings = replace(SMALL, cases=180, save_steps=1)
    whole, torn = attack(tmp_path / "whole", settings), tmp_path / "torn"

    def size():
        return (torn / "attempts.jsonl").stat().st_size if (torn / "attempts.jsonl").exists() else 0

    for kill in range(10):
        before = size()
        pid = os.fork()
        if not pid:
            try:
                attack(torn, settings)
            finally:
                os._exit(0)
        late = time.monotonic() + 120
        while size() <= before:
            assert time.monotonic() < late
            time.sleep(0.001)
        time.sleep(0.002 * kill)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL  # in the middle of something
    assert size() < len(files(whole.folder)["attempts.jsonl"])
    attack(torn, settings)
    assert files(torn) == files(whole.folder)


def test_a_finished_attack_goes_on_where_more_cases_are_asked_for(done, tmp_path):
    attack(tmp_path / "a", replace(SMALL, cases=12))
    attack(tmp_path / "a", replace(SMALL, cases=24, save_steps=1))
    assert files(tmp_path / "a") == files(done.folder)
    assert len(attack(tmp_path / "a", replace(SMALL, cases=6)).records) == 24


def test_full_training_resumes_too(tmp_path):
    settings = replace(SMALL, lora=0, learning_rate=1e-3, batch_size=3)
    attack(tmp_path / "a", settings)
    attack(tmp_path / "b", replace(settings, cases=6))
    attack(tmp_path / "b", settings)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_kept_attacker_attacks_again(tiny_folder, tmp_path):
    model, tokenizer = sasa.load(tiny_folder)
    red_team(
        ECHO, model, tokenizer, CONTEXTS, JUDGES, tmp_path / "a", SMALL, embed=EMBED, keep_attacker=True,
        base=str(tiny_folder),
    )  # fmt: skip
    again, tokenizer = sasa.load(tmp_path / "a" / "attacker")
    whole = replace(SMALL, lora=0, cases=6)
    attack(tmp_path / "whole", whole)
    attack(tmp_path / "whole", whole, keep_attacker=True)  # of an attack that is done, too
    assert (tmp_path / "whole" / "attacker" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="zero-shot trains no attacker"):
        attack(tmp_path / "zero", replace(SMALL, method="zero-shot"), keep_attacker=True)
    assert "not for use" in (tmp_path / "a" / "attacker" / "README.md").read_text()
    found = red_team(
        ECHO,
        again,
        tokenizer,
        CONTEXTS,
        JUDGES,
        tmp_path / "b",
        replace(SMALL, method="zero-shot"),
        embed=EMBED,
    )
    assert (
        found.about["attacker"]["weights"]
        != Attempts.open(tmp_path / "a").about["attacker"]["weights"]
    )
