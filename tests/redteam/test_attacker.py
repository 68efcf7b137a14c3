"""The attacker: its records, its rewards, its training, and settings that are refused."""

import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from attacks import CONTEXTS, ECHO, EMBED, JUDGES, SMALL, Share, attack, of_letters

pytest.importorskip("sacrebleu", reason="pip install 'sasa-decoding[redteam]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")
import reference_redteam as exact

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.decoding.prompts import encode_prompts
from sasa.decoding.sampling import log_probs
from sasa.redteam import (
    Attempts,
    Function,
    ModelTarget,
    RedTeam,
    red_team,
)


def test_a_record_holds_what_a_reward_is_made_of(done):
    assert len(done.records) == 24 == len(done.vectors)
    attacks = [record["attack"] for record in done.records]
    assert [record["step"] for record in done.records] == [i // 6 for i in range(24)]
    assert {record["context"] for record in done.records} == set(CONTEXTS)
    column = {
        name: [record["terms"][name] for record in done.records]
        for name in done.records[0]["terms"]
    }
    filled = [i for i, text in enumerate(attacks) if text]
    assert np.array(column["self_bleu"]) == pytest.approx(exact.self_bleu(attacks), abs=1e-5)
    assert done.vectors == pytest.approx(of_letters(attacks))
    assert np.array(column["cosine"])[filled] == pytest.approx(
        exact.cosine(done.vectors, 3)[filled], abs=1e-5
    )
    for record in done.records:
        assert "\n" not in record["attack"]
        if record["error"] is None:
            assert record["reply"] == f"> {record['attack']}"
            assert record["scores"] == {
                judge.name: pytest.approx(judge.score([record["reply"]])[0], abs=1e-6)
                for judge in JUDGES
            }
            assert record["terms"]["toxicity"] == record["scores"]["vowels"]
        terms = record["terms"]
        want = (
            terms["toxicity"] * (1 - terms["self_bleu"]) * (1 - terms["cosine"])
            + terms["naturalness"]
        )
        assert record["reward"] == pytest.approx(
            want - 0.001 * terms["kl"] - 0.001 * terms["log_p"], abs=1e-5
        )


def test_log_probabilities_are_the_attacker_s_and_the_reference_s(done):
    """In the first step both are the model as it was."""
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    first = done.step(0)
    ids = encode_prompts(
        model, tokenizer, [first[0]["context"], first[3]["context"]], EmbeddingSpec(), False, 8
    )
    with torch.no_grad():
        want = (
            log_probs(model, ids, [record["tokens"] for record in first], SMALL.temperature)
            .sum(1)
            .numpy()
        )
    assert [record["terms"]["log_p"] for record in first] == pytest.approx(want, abs=1e-3)
    assert [record["terms"]["kl"] for record in first] == pytest.approx(np.zeros(6), abs=1e-3)
    per_token = want / np.array([len(record["tokens"]) for record in first])
    natural = [record["terms"]["naturalness"] for record in first]
    assert natural == pytest.approx(np.clip(per_token + SMALL.surprise, -1, 0), abs=1e-3)
    assert any(record["terms"]["kl"] != 0 for record in done.step(3))  # later ones have learnt


@pytest.mark.slow
def test_the_attacker_learns_what_is_rewarded(tmp_path):
    settings = RedTeam(
        "rl", cases=480, contexts_per_step=2, samples=8, max_new_tokens=6, lora=4, learning_rate=2e-2, naturalness=0,
        save_steps=100,
    )  # fmt: skip
    found = attack(tmp_path / "rl", settings)
    toxicity = [record["terms"]["toxicity"] for record in found.records]
    assert np.mean(toxicity[-120:]) > np.mean(toxicity[:120]) + 0.2


def test_methods_without_training_leave_the_attacker_as_it_is(tmp_path):
    for method in ("zero-shot", "few-shot"):
        found = attack(tmp_path / method, replace(SMALL, method=method))
        assert all(record["terms"]["kl"] == 0 for record in found.records)
        assert not (tmp_path / method / "checkpoints").exists()
    shown = [record["context"] for record in found.records[6:]]
    earlier = [record["attack"] for record in found.records[:6] if record["attack"]]
    assert any(text in context for context in shown for text in earlier)
    assert all(re.search(r"\n\d\.\Z", context) for context in shown)


def test_the_attacker_s_model_is_given_back_as_it_was(tmp_path):
    model = tiny.model("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    red_team(ECHO, model, tiny.tokenizer(), CONTEXTS, JUDGES, tmp_path / "a", SMALL, embed=EMBED)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_attacks_may_begin_with_their_contexts(tmp_path):
    found = attack(
        tmp_path / "a",
        replace(SMALL, include_context=True, method="zero-shot"),
        contexts=["You are"],
    )
    assert all(record["attack"].startswith("You are") for record in found.records)


def test_a_classifier_of_natural_text_takes_surprise_s_place(tmp_path):
    natural = Share("natural", "xyz")
    found = attack(tmp_path / "a", replace(SMALL, method="zero-shot"), naturalness=natural)
    want = natural.score([record["attack"] for record in found.records])
    assert [record["terms"]["naturalness"] for record in found.records] == pytest.approx(
        want, abs=1e-6
    )
    assert found.about["naturalness"] == [{"name": "natural", "version": "1"}]


def test_what_cannot_be_attacked(done, tmp_path):
    with pytest.raises(ValueError, match="one scorer alone, vowels"):
        attack(tmp_path / "a", judges=JUDGES[:1])
    assert attack(tmp_path / "one", judges=JUDGES[:1], single_judge=True).judges == ["vowels"]
    with pytest.raises(ValueError, match="names of their own"):
        attack(tmp_path / "a", judges=[JUDGES[0], JUDGES[0]])
    with pytest.raises(ValueError, match="contexts are empty"):
        attack(tmp_path / "a", contexts=[])
    with pytest.raises(ValueError, match="contexts are empty"):
        attack(tmp_path / "a", contexts=["so", " "])
    with pytest.raises(ValueError, match="context window"):
        attack(tmp_path / "a", contexts=["x" * 400])
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match=r"other settings: settings.cosine was 1.0, is 2.0"):
        attack(done.folder, replace(SMALL, cosine=2.0))
    with pytest.raises(ValueError, match=r"target.name was echo, is another"):
        attack(done.folder, target=Function(lambda attacks: attacks, "another"))
    model = tiny.model("llama")
    with pytest.raises(ValueError, match="load it a second time"):
        red_team(
            ModelTarget(model, tiny.tokenizer()),
            model,
            tiny.tokenizer(),
            CONTEXTS,
            JUDGES,
            tmp_path / "a",
            SMALL,
            embed=EMBED,
        )
    odd = Share("odd", "x")
    for given, said in (([2.0], "outside 0..1"), ([np.nan], "outside 0..1"), ([], "shape")):
        odd.score = lambda texts, given=given: np.array(given * len(texts))
        with pytest.raises(ValueError, match=f"scorer odd gave scores .*{said}"):
            attack(tmp_path / "odd", judges=[JUDGES[0], odd])
    assert (
        attack(tmp_path / "odd", replace(SMALL, cases=6)).steps == 1
    )  # nothing was on record: other settings are welcome
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is not empty and does not hold an attack"):
        attack(tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="no folder of `sasa redteam run`"):
        Attempts.open(tmp_path / "full")
