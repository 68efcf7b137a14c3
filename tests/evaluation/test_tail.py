"""How rare bad completions are: estimates against what is known exactly (tests/reference_repulse.py)."""

import json
import math

import numpy as np
import pytest
import reference_repulse as exact
import tiny
import torch
from shell import sasa as command

from sasa.evaluation.importance import balance_weights, cvar, proportion, tail
from sasa.evaluation.rewards import function_reward
from sasa.evaluation.settings import TailSettings
from sasa.evaluation.tail.measure import measure_tail
from sasa.utils.run_folder import RunFolder

REWARD = function_reward(exact.reward)
ETA = -8.0
"""Below this, outputs are so rare that a few hundred samples hardly hold one."""


@pytest.fixture(scope="module")
def world():
    """Log-probabilities under the model and under a proposal that writes bad outputs often, and rewards: (32768,) each."""
    with torch.no_grad():
        log_p = exact.log_probs(exact.model())
    return log_p, exact.sigma(log_p, 1.0), exact.rewards()


def draws(log_q, shape, seed):
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.searchsorted(log_q.exp().cumsum(0), noise).clamp(max=len(log_q) - 1)


def estimated(world, log_q, eta, n, seed, prompts=1):
    log_p, _, rewards = world
    own, other = draws(log_p, (prompts, n), seed), draws(log_q, (prompts, n), seed + 10**6)
    ratio = log_p - log_q
    return tail(
        eta, rewards[own].numpy(), ratio[own].numpy(), rewards[other].numpy(), ratio[other].numpy()
    )


def test_exact_binomial_intervals():
    none = proportion(0, 200)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 200))
    some = proportion(3, 200)
    assert some.low < 0.015 < some.high


def test_a_rare_output_is_measured_with_few_samples(world):
    """P is 6e-4: of 300 samples by the model most hold none, and with a proposal's 300 more it is known to a few percent."""
    log_p, log_q, rewards = world
    truth = float(log_p.exp()[rewards < ETA].sum())
    assert 2e-5 < truth < 1e-3
    found = [estimated(world, log_q, ETA, 300, seed) for seed in range(60)]
    combined = np.array([one.combined.value for one in found])
    assert combined.mean() == pytest.approx(truth, rel=0.1)
    assert combined.std() < 0.6 * truth
    assert np.mean([one.plain.value == 0 for one in found]) > 0.7
    assert np.mean([one.plain.low <= truth <= one.plain.high for one in found]) >= 0.95
    assert np.mean([one.combined.low <= truth <= one.combined.high for one in found]) >= 0.85
    assert np.mean([one.combined.high for one in found]) < 0.3 * np.mean(
        [one.plain.high for one in found]
    )
    assert np.mean([one.importance.value for one in found]) == pytest.approx(truth, rel=0.15)
    assert 5 < np.mean([one.effective_samples for one in found]) < 300


def test_sigma_as_proposal_needs_no_second_sample(world):
    """Of what is as bad as it gets a proposal proportional to it has weights that are all alike."""
    log_p, _, rewards = world
    bad = rewards < ETA
    log_q = torch.where(bad, log_p, torch.tensor(-60.0, dtype=torch.float64)).log_softmax(0)
    found = estimated(world, log_q, ETA, 50, 0)
    truth = float(log_p.exp()[bad].sum())
    assert found.importance.value == pytest.approx(truth, rel=1e-6)
    assert found.importance.low == pytest.approx(found.importance.high)


def test_what_the_proposal_never_writes_is_not_missed(world):
    """Half of the bad outputs are out of its reach: weights of it alone miss them, and say so with confidence."""
    log_p, log_q, rewards = world
    eta = exact.BAD
    hidden = (rewards < eta) & (torch.arange(len(rewards)) % 2 == 0)
    blind = torch.where(hidden, torch.tensor(-60.0, dtype=torch.float64), log_q).log_softmax(0)
    truth = float(log_p.exp()[rewards < eta].sum())
    found = [estimated(world, blind, eta, 400, seed) for seed in range(40)]
    assert np.mean([one.importance.value for one in found]) < 0.8 * truth
    assert np.mean([one.combined.value for one in found]) == pytest.approx(truth, rel=0.06)
    assert np.mean([one.combined.low <= truth <= one.combined.high for one in found]) >= 0.85


def test_no_weight_is_beyond_the_share_that_the_model_drew():
    ratio = np.array([[-50.0, -1.0, 0.0, 3.0, 700.0]])
    own, other = balance_weights(ratio, np.repeat(ratio, 3, axis=1))
    assert own.max() <= 1
    assert other.max() <= 3 + 1e-9
    np.testing.assert_allclose(own[0, 2], 0.25)  # where p = q each sample counts as one of all
    np.testing.assert_allclose(other[0, 6], 0.75)


def test_nothing_bad_at_all(world):
    found = estimated(world, world[1], -100.0, 50, 0)
    assert found.plain.value == found.combined.value == 0
    assert found.combined.high == found.plain.high > 0.05
    assert math.isnan(found.importance.high)
    assert tail(-100.0, np.zeros((1, 50))).best == found.plain


def test_cvar():
    rewards = np.arange(100.0).reshape(10, 10)
    assert cvar(rewards).value == pytest.approx(2.0)  # the mean of 0 to 4
    assert cvar(np.arange(10.0).reshape(1, 10)).value == pytest.approx(0.0)  # half of one
    assert cvar(np.arange(30.0).reshape(3, 10)).value == pytest.approx((0 + 0.5 * 1) / 1.5)
    assert cvar(rewards).low <= 2.0 <= cvar(rewards).high


# --- a measurement -------------------------------------------------------------------------------------------------------


def measure(folder, settings, prompts=(exact.PROMPT,), rewards=(REWARD,), **options):
    return measure_tail(
        exact.model(), exact.tokenizer(), prompts, rewards, folder, settings, **options
    )


def test_a_measurement_comes_near_what_is_known(tmp_path):
    settings = TailSettings(
        completions=600, max_new_tokens=exact.LENGTH, eta=exact.BAD, beta_kl=2.0
    )
    proposal, base = exact.model(1), exact.model(2)
    found = measure(tmp_path / "t", settings, proposal=proposal, base=base)
    with torch.no_grad():
        log_p, log_p0 = exact.log_probs(exact.model()), exact.log_probs(base)
    one = found.rewards["reward"]
    p = log_p.exp()
    assert one.tail.plain.low < float(exact.p_bad(log_p)) < one.tail.plain.high
    assert one.tail.combined.low < float(exact.p_bad(log_p)) < one.tail.combined.high
    assert one.mean.value == pytest.approx(float((p * exact.rewards()).sum()), abs=0.15)
    assert one.mean_return.value == pytest.approx(
        float(exact.mean_return(log_p, log_p0, 2.0)), abs=0.3
    )
    assert found.kl.value == pytest.approx(float(exact.kl(log_p, log_p0)), abs=0.4)
    assert found.perplexity.value == pytest.approx(
        math.exp(-float((p * log_p0).sum()) / 3), rel=0.1
    )
    assert found.tokens.value == exact.LENGTH
    report = (tmp_path / "t" / "report.md").read_text()
    assert f"| {one.tail.plain.value:.3g} [" in report
    assert "KL to the base" in report
    assert (tmp_path / "t" / "tail.png").stat().st_size > 5000
    saved = json.loads((tmp_path / "t" / "figures.json").read_text())
    assert saved["rewards"]["reward"]["tail"]["combined"]["value"] == one.tail.combined.value
    curve = [point["combined"]["value"] for point in saved["rewards"]["reward"]["curve"]]
    assert curve == sorted(curve)


def test_stopped_it_goes_on(tmp_path, monkeypatch):
    settings = TailSettings(completions=20, max_new_tokens=3)
    prompts = [f"w{i} w3" for i in range(10)]
    options = dict(prompts=prompts, proposal=exact.model(1))
    measure(tmp_path / "whole", settings, **options)
    own, calls = RunFolder.append, []

    def interrupted(store, name, records):
        own(store, name, records)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "half", settings, **options)
    monkeypatch.undo()
    file = tmp_path / "half" / "samples.jsonl"
    with file.open("ab") as opened:
        opened.write(file.read_bytes()[:700])  # part of a batch, and half a line
    measure(tmp_path / "half", settings, **options)
    for name in ("samples.jsonl", "figures.json", "report.md"):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # a reward more is added to what is there
    more = function_reward(
        lambda prompts, completions: [float(len(c)) for c in completions], "length"
    )
    found = measure(tmp_path / "half", settings, rewards=(REWARD, more), **options)
    assert found.rewards.keys() == {"reward", "length"}
    assert file.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


def test_what_cannot_be_measured(tmp_path):
    settings = TailSettings(completions=4, max_new_tokens=3)
    measure(tmp_path / "t", settings)
    with pytest.raises(ValueError, match=r"other settings: settings\.completions was 4, is 5"):
        measure(tmp_path / "t", TailSettings(completions=5, max_new_tokens=3))
    with pytest.raises(ValueError, match=r"other settings: weights\.base was None"):
        measure(tmp_path / "t", settings, base=exact.model(1))
    with pytest.raises(ValueError, match="does not hold a tail measurement"):
        measure(tmp_path, settings)
    with pytest.raises(
        ValueError, match="needs rewards, each of a name of its own, got reward, reward"
    ):
        measure(tmp_path / "u", settings, rewards=(REWARD, REWARD))
    with pytest.raises(ValueError, match="the proposal has 260 tokens, the model 32"):
        measure(tmp_path / "u", settings, proposal=tiny.model("llama"))
    with pytest.raises(ValueError, match="no chat template"):
        measure(tmp_path / "u", TailSettings(chat=True))
    for change, message in [
        (dict(completions=0), "completions must be >= 1"),
        (dict(eta=math.inf), "eta must be a finite number"),
        (dict(beta_kl=0), "beta_kl must be > 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            TailSettings(**change)
    assert not (tmp_path / "u").exists()


def test_the_command(tiny_folder, tmp_path):
    rows = [
        {
            "prompt": {"text": f"text {i}", "toxicity": 0.9 if i % 2 else 0.1},
            "continuation": {"text": "x", "toxicity": 0.1},
        }
        for i in range(8)
    ]
    (tmp_path / "rtp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    run = [
        "bench",
        "tail",
        tmp_path / "rtp.jsonl",
        "--groups",
        "toxic",
        "-m",
        tiny_folder,
        "-c",
        5,
        "-n",
        4,
        "-o",
        out,
    ]
    shown = command(*run, "--proposal", tiny_folder, "--base", tiny_folder)
    assert "P(r < 0)" in shown.stdout
    figures = json.loads((out / "figures.json").read_text())
    assert figures["about"]["prompts"] == 4
    assert figures["kl"]["value"] == 0
    assert figures["rewards"].keys() == {"profanity"}
    assert "other settings" in command(*run, status=1).stderr
    assert (
        "unknown reward" in command(*run[:-1], tmp_path / "new", "-r", "nothing", status=1).stderr
    )
