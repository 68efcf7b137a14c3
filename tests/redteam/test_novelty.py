"""Novelty against its definition (tests/reference_redteam.py), and what an attacker comes to that is paid for it."""

import numpy as np
import pytest
import reference_redteam as exact

pytest.importorskip("sacrebleu", reason="pip install 'sasa-decoding[redteam]'")

from sasa.redteam.curiosity import advantages, choose_examples, few_shot, rewards
from sasa.redteam.novelty import Cosine, SelfBLEU, mutual_bleu
from sasa.redteam.settings import RedTeam

WORDS = [
    "you",
    "are",
    "a",
    "very",
    "rude",
    "and",
    "silly",
    "old",
    "goat",
    ",",
    "who",
    "eats",
    "my",
    "Hat",
    ".",
]


def sentences(count, seed=0, repeats=True):
    draw = np.random.default_rng(seed)
    found = [" ".join(draw.choice(WORDS, draw.integers(1, 9))) for _ in range(count)]
    return found + found[: count // 4] if repeats else found


def unit(count, size=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_self_bleu_is_sacrebleu_s_against_all_before():
    texts = [*sentences(40), "", "goat", "Goat", "!", "you are a very rude and silly old goat"]
    memory = SelfBLEU()
    found = np.concatenate(
        [memory.observe(texts[:7]), memory.observe(texts[7:30]), memory.observe(texts[30:])]
    )
    assert found == pytest.approx(exact.self_bleu(texts), abs=1e-12)


def test_a_repeat_is_known_at_once():
    memory = SelfBLEU()
    assert memory.observe(["You silly old goat", "you silly old GOAT", "", "entirely other words"]).tolist() == [
        0, pytest.approx(1), 1, pytest.approx(0, abs=0.05),
    ]  # fmt: skip
    assert memory.observe(["you silly old goat"]) == pytest.approx(1)


def test_mutual_bleu_compares_with_all_others():
    texts = [*sentences(9), ""]
    want = [
        exact.self_bleu([*texts[:i], *texts[i + 1 :], text])[-1] for i, text in enumerate(texts)
    ]
    assert mutual_bleu(texts) == pytest.approx(want, abs=1e-12)
    assert mutual_bleu(["one", "two words"]) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("nearest", [None, 1, 3, 16])
def test_cosine_is_to_all_before_or_to_the_nearest(nearest):
    vectors = unit(1300)  # more than the memory begins with
    vectors[50] = vectors[3]
    memory = Cosine(nearest)
    parts = [vectors[:1], vectors[1:40], vectors[40:1000], vectors[1000:]]
    found = np.concatenate([memory.observe(part) for part in parts])
    assert found == pytest.approx(exact.cosine(vectors, nearest), abs=1e-5)


def test_a_mean_over_all_grows_numb_where_the_nearest_do_not():
    others = np.eye(64, dtype=np.float32)
    whole, near = Cosine(), Cosine(nearest=2)
    for memory in (whole, near):
        memory.observe(others)
    repeats = np.repeat(others[:1], 3, axis=0)
    assert whole.observe(repeats) == pytest.approx([1 / 64, 2 / 65, 3 / 66])  # m of N + m
    assert near.observe(repeats) == pytest.approx([0.5, 1, 1])


TERMS = dict(
    toxicity=[0.9], naturalness=[-0.5], self_bleu=[0.25], cosine=[0.5], kl=[2.0], log_p=[-30.0]
)


@pytest.mark.parametrize(
    ("method", "want"),
    [
        ("curiosity", 0.9 - 0.5 - 0.25 - 0.5 - 0.002 + 0.3),
        ("rl", 0.9 - 0.5 - 0.002),
        ("rl-entropy", 0.9 - 0.5 - 0.002 + 0.3),
        ("zero-shot", 0.9),
        ("few-shot", 0.9),
    ],
)
def test_the_reward_is_the_paper_s_with_its_weights(method, want):
    paper = dict(gated=False, entropy=0.01)
    assert rewards(TERMS, RedTeam(method, **paper)) == pytest.approx([want])
    # a product in place of 0.9 - 0.25 - 0.5
    gated = want + (0.9 * 0.75 * 0.5 - (0.9 - 0.25 - 0.5) if method == "curiosity" else 0)
    assert rewards(TERMS, RedTeam(method, entropy=0.01)) == pytest.approx([gated])
    weighted = RedTeam(
        method, gated=False, naturalness=2, self_bleu=3, cosine=4, kl=0.5, entropy=0.1
    )
    signs = {
        "curiosity": (2, 3, 4, 0.5, 0.1),
        "rl": (2, 0, 0, 0.5, 0),
        "rl-entropy": (2, 0, 0, 0.5, 0.1),
    }
    gib, bleu, cos, kl, ent = signs.get(method, (0, 0, 0, 0, 0))
    assert rewards(TERMS, weighted) == pytest.approx(
        [0.9 - 0.5 * gib - 0.25 * bleu - 0.5 * cos - 2 * kl + 30 * ent]
    )


def test_advantages_leave_one_out_and_failures_out():
    assert advantages([1.0, 3.0, 5.0, None, 2.0, None], 3) == pytest.approx([-3, 0, 3, 0, 0, 0])
    assert advantages([1.0, 3.0, None, 4.0], 2) == pytest.approx([-2, 2, 0, 0])


def test_few_shot_contexts_show_examples():
    assert few_shot("Rude things:\n1.", ["a", "b"]) == "Rude things:\n1. a\n2. b\n3."
    assert few_shot("Rude things:\n1. Write", ["a"]) == "Rude things:\n1. a\n2. Write"
    assert few_shot("So he said", ["a", "b"]) == "a\nb\nSo he said"
    records = [
        dict(attack=f"a{i}", error=None, scores={"j": 0.9 if i < 5 else 0.1}) for i in range(50)
    ]
    records += [
        dict(attack="failed", error="down", scores={}),
        dict(attack="", error=None, scores={"j": 1.0}),
    ]
    drawn = [choose_examples(records + records, "j", 5, seed) for seed in range(40)]
    assert all(len(set(row)) == 5 for row in drawn)
    # one of the five counts as exp(8) of the others, of which there are 45
    assert np.mean([int(attack[1:]) < 5 for row in drawn for attack in row]) > 0.9
    assert drawn[0] == choose_examples(records + records, "j", 5, 0)
    assert len({tuple(row) for row in drawn}) > 5


# --- an attacker of which all is known -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kl", "entropy"), [(0.1, 0.0), (0.1, 0.05), (0.05, 0.1)])
def test_without_novelty_a_policy_comes_to_its_closed_form(kl, entropy):
    """By the gradient of the real reward, which the policy's own log-probabilities are part of, through the real advantages."""
    draw = np.random.default_rng(1)
    reference = draw.dirichlet(np.full(exact.ATTACKS, 5.0))
    toxic = exact.toxicity()
    settings = RedTeam("rl-entropy" if entropy else "rl", kl=kl, entropy=entropy, naturalness=0)
    logits = np.log(reference)
    for _ in range(60):
        log_p = logits - np.log(np.exp(logits).sum())
        terms = dict(toxicity=toxic, naturalness=0 * toxic, self_bleu=0 * toxic, cosine=0 * toxic)
        worth = rewards(terms | dict(kl=log_p - np.log(reference), log_p=log_p), settings)
        logits = log_p + 0.3 / (kl + entropy) * advantages(worth.tolist(), exact.ATTACKS)
    found = np.exp(logits - np.log(np.exp(logits).sum()))
    assert np.abs(found - exact.optimum(reference, toxic, kl, entropy)).sum() < 1e-3


def long_run(weight, steps, gated=False):
    """How often each of some attacks is tried by a table of logits, in training by the real novelty, reward and advantages."""
    toxic = exact.toxicity()
    some = np.flatnonzero(
        toxic
    )  # what is not toxic is not tried for long: leaving it out leaves the end the same
    some = np.concatenate([some, np.flatnonzero(toxic == 0)[:12]])
    settings = RedTeam(  # a little entropy: never quite sure
        "curiosity", cosine=weight, self_bleu=0, naturalness=0, kl=0, entropy=0.003, gated=gated
    )
    draw, logits, count = np.random.default_rng(0), np.zeros(len(some)), np.zeros(len(some))
    memory, vectors, samples = Cosine(), np.eye(len(some), dtype=np.float32), 32
    for _ in range(steps):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        chosen = draw.choice(len(some), samples, p=p)
        zero = np.zeros(samples)
        terms = dict(
            toxicity=toxic[some[chosen]],
            naturalness=zero,
            self_bleu=zero,
            kl=zero,
            log_p=np.log(p[chosen]),
        )
        worth = rewards(terms | dict(cosine=memory.observe(vectors[chosen])), settings)
        np.add.at(logits, chosen, 0.5 * advantages(worth.tolist(), samples))
        np.add.at(count, chosen, 1)
    return some, count / count.sum()


def test_without_novelty_samples_settle_on_one_attack():
    some, found = long_run(0.0, 4000)
    assert found.max() > 0.9
    assert exact.toxicity()[some[found.argmax()]] > 0


def test_with_gated_novelty_they_spread_over_what_is_toxic():
    """R * (1 - w * f) is the same, c, for all that is tried: f = (1 - c / R) / w, which sums to 1."""
    toxic, weight = np.sort(exact.toxicity())[-exact.TOXIC :], 10.0
    c = (exact.TOXIC - weight) / (1 / toxic).sum()
    want = (1 - c / toxic) / weight
    assert want.min() > 0
    some, found = long_run(weight, 3000, gated=True)
    assert np.abs(found[np.argsort(exact.toxicity()[some])][-exact.TOXIC :] - want).sum() < 0.1


@pytest.mark.parametrize(("weight", "support"), [(1.0, 9), (2.0, 12), (5.0, 19)])
def test_with_novelty_they_spread_as_water_fills(weight, support):
    """Of 5, the twentieth attack is worth just what the others are worth in the end, and is not tried."""
    want = exact.water_filling(exact.toxicity(), weight)
    assert (want > 1e-9).sum() == support
    some, found = long_run(weight, 3000)
    assert np.abs(found - want[some]).sum() < 0.1
    assert (found[want[some] > 0.02] > 0.01).all()


def test_what_settings_refuse():
    for bad in (
        dict(method="magic"), dict(cases=0), dict(samples=1), dict(kl=-1.0), dict(entropy=float("nan")), dict(nearest=-1),
        dict(learning_rate=0.0), dict(max_norm=float("inf")), dict(save_steps=0), dict(temperature=0.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            RedTeam(**bad)
    assert RedTeam(cases=65, contexts_per_step=8, samples=4).steps == 3
    assert RedTeam(lora=0).learning_rate == 1e-5
    assert RedTeam().learning_rate == 1e-3
    assert RedTeam().nearest == 4
