"""RePULSe against its definition: a model small enough to know everything of (tests/reference_repulse.py)."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import reference_repulse as exact
import tiny
import torch
from safetensors.torch import load_file
from shell import sasa as command

import sasa
from sasa.evaluation.rewards import function_reward
from sasa.models.skinny import skinny_linears
from sasa.training import Repulse, objectives, train_repulse
from sasa.training.folder import training_folder
from sasa.training.models import POLICY, PROPOSAL, REFERENCE, Models
from sasa.training.trainer import Trainer

accelerate = pytest.importorskip("accelerate", reason="pip install 'sasa-decoding[train]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")

REWARD = function_reward(exact.reward)
SMALL = Repulse(
    samples=4, prompts_per_step=2, steps=6, max_new_tokens=exact.LENGTH, lora=2, learning_rate=1e-2,
    proposal_learning_rate=1e-2, save_steps=2, eta=exact.BAD,
)  # fmt: skip
PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w7", "w8 w9"]


# --- the weights of both losses ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables():
    """Log-probabilities of all sequences under two models, float64 (32768,) each."""
    with torch.no_grad():
        return exact.log_probs(exact.model(0)), exact.log_probs(exact.model(1))


def test_the_bias_of_importance_sampling_is_of_order_one_over_k(tables):
    """Of an expectation under sigma, estimated from K samples of the policy as its own proposal."""
    log_p, _ = tables
    beta, rewards = 0.2, exact.rewards()
    want = float((exact.sigma(log_p, beta).exp() * rewards).sum())
    draw = torch.Generator().manual_seed(0)
    bias = {}
    for k in (4, 8, 16):
        noise = torch.rand(150_000, k, generator=draw, dtype=torch.float64)
        i = torch.searchsorted(log_p.exp().cumsum(0), noise).clamp(max=len(log_p) - 1)
        weights = objectives.sigma_weights(log_p[i], log_p[i], rewards[i], beta)
        bias[k] = float((weights * rewards[i]).sum(1).mean()) - want
    assert bias[4] > 0.03
    assert bias[8] / bias[4] == pytest.approx(0.5, abs=0.1)
    assert bias[16] / bias[8] == pytest.approx(0.5, abs=0.1)


def test_samples_of_sigma_itself_are_all_worth_the_same(tables):
    log_p, _ = tables
    beta = 0.7
    log_q = exact.sigma(log_p, beta)
    i = torch.multinomial(log_q.exp(), 16, generator=torch.Generator().manual_seed(0))[None]
    weights = objectives.sigma_weights(log_p[i], log_q[i], exact.rewards()[i], beta)
    assert float(objectives.effective_sample_size(weights)) == pytest.approx(16)


def test_equal_samples_teach_a_proposal_nothing():
    log_p, log_q = torch.randn(3, 1, 5).expand(3, 4, 5), torch.randn(3, 1, 5).expand(3, 4, 5)
    w = objectives.sigma_weights(log_p.sum(2), log_q.sum(2), torch.full((3, 4), 2.0), 1.3)
    v = objectives.baseline_weights(log_p, log_q)
    torch.testing.assert_close(v, w[..., None].expand_as(v))


def test_the_baseline_looks_at_what_stands_before_a_token():
    """By hand: two samples, the second of which has ended after a token."""
    log_p = torch.tensor([[[-1.0, -2.0, -3.0], [-2.0, 0.0, 0.0]]])
    log_q = torch.tensor([[[-1.5, -1.0, -1.0], [-1.0, 0.0, 0.0]]])
    want = torch.tensor([[[0.0, 0.5, -0.5], [0.0, -1.0, -1.0]]]).softmax(1)
    torch.testing.assert_close(objectives.baseline_weights(log_p, log_q), want)


def test_advantages_leave_one_out():
    values = torch.tensor([[1.0, 2.0, 6.0]])
    torch.testing.assert_close(
        objectives.advantages(values), torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5]])
    )


def test_the_return_measures_the_distance_to_the_best_policy(tables):
    """return = (log Z - KL(p || p*)) / beta_kl, with p* proportional to p0 * exp(beta_kl * r) (Zhao et al. 2025)."""
    log_p0, log_p = tables
    beta_kl = 1.7
    unnormalised = log_p0 + beta_kl * exact.rewards()
    log_z = unnormalised.logsumexp(0)
    returns = objectives.returns(exact.rewards(), log_p, log_p0, beta_kl)
    want = (log_z - exact.kl(log_p, unnormalised - log_z)) / beta_kl
    torch.testing.assert_close((log_p.exp() * returns).sum(), want)
    torch.testing.assert_close(
        (log_p.exp() * returns).sum(), exact.mean_return(log_p, log_p0, beta_kl)
    )


# --- gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "lora"),
    [
        ("rloo", 0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("repulse", 0),
                ("repulse", 4),
                ("rloo-transformed", 0),
                ("p-proposal", 4),
            )
        ),
    ],
)
def test_a_step_follows_the_gradients_of_both_losses(method, lora):
    """From 25,000 samples, against the enumerated losses: of p the return's and the push against sigma, of q KL(sigma || q)."""
    settings = Repulse(
        method, alpha=0.5, beta=0.2, beta_kl=2.0, samples=25_000, prompts_per_step=1, steps=1, lora=lora,
        max_new_tokens=exact.LENGTH, max_norm=1e9, batch_size=10**6,
    )  # fmt: skip
    tokenizer = exact.tokenizer()
    models = Models(exact.model(), lora, proposal=method == "repulse", seed=0)
    draw = torch.Generator().manual_seed(3)
    learning = [POLICY, PROPOSAL] if method == "repulse" else [POLICY]
    for who in learning:  # all three apart from each other
        for weight in models.weights(who).values():
            weight.data.add_(
                0.1 * weight.data.std().clamp(min=0.05) * torch.randn(weight.shape, generator=draw)
            )

    def enumerated(who):
        with models.use(who) as model:
            whole = exact.doubled(model)
        own = models.weights(who) if who in learning else ()
        return exact.log_probs(whole), [
            weight for name, weight in whole.named_parameters() if name in own
        ]

    log_p, weights = enumerated(POLICY)
    log_p0 = enumerated(REFERENCE)[0].detach()
    sigma = exact.sigma(log_p, settings.beta).detach()
    loss = -exact.mean_return(log_p, log_p0, settings.beta_kl)
    if method == "rloo-transformed":
        loss = (
            loss + settings.alpha * (log_p.exp() * (-settings.beta * exact.rewards()).exp()).sum()
        )
    elif method != "rloo":
        loss = loss + settings.alpha * (sigma.exp() * log_p).sum()
    want = {POLICY: torch.autograd.grad(loss, weights)}
    if method == "repulse":
        log_q, weights = enumerated(PROPOSAL)
        want[PROPOSAL] = torch.autograd.grad(exact.kl(sigma, log_q), weights)
    ids = tokenizer(exact.PROMPT).input_ids
    trainer = Trainer(
        models, tokenizer, [exact.PROMPT], [ids], REWARD, settings, accelerate.Accelerator(cpu=True)
    )
    entry = trainer.step(0)
    for who, gradient in want.items():
        found = torch.cat(
            [weight.grad.flatten() for weight in models.weights(who).values()]
        ).double()
        gradient = torch.cat([g.flatten() for g in gradient])
        assert float((found - gradient).norm() / gradient.norm()) < 0.25
        assert float(torch.cosine_similarity(found, gradient, 0)) > 0.97
    p = log_p.detach()
    assert entry["return"] == pytest.approx(float(exact.mean_return(p, log_p0, 2.0)), abs=0.05)
    assert entry["kl"] == pytest.approx(float(exact.kl(p, log_p0)), abs=0.05)
    assert entry["below"] == pytest.approx(float(p.exp()[exact.rewards() < 0].sum()), abs=0.01)


# --- whole trainings -----------------------------------------------------------------------------------------------------


def train(folder, settings=SMALL, prompts=PROMPTS, reward=REWARD, **options):
    return train_repulse(
        exact.model(),
        exact.tokenizer(),
        prompts,
        reward,
        folder,
        settings,
        base="me/exact",
        **options,
    )


def about(folder):
    return json.loads((folder / "training.json").read_text())


@pytest.mark.slow
def test_bad_outputs_become_improbable(tmp_path):
    """Against reinforcement learning with as many samples: P(bad), enumerated, falls further, at a mean reward as high."""
    with torch.no_grad():
        start = float(exact.p_bad(exact.log_probs(exact.model())))

    def enumerated(model):
        log_p = exact.log_probs(model)
        return {
            "p_bad": float(exact.p_bad(log_p)),
            "mean": float((log_p.exp() * exact.rewards()).sum()),
        }

    rates = dict(learning_rate=2e-3, proposal_learning_rate=2e-3)
    shared = dict(
        beta_kl=2.0, prompts_per_step=1, steps=60, max_new_tokens=exact.LENGTH, lora=0, **rates
    )
    found = {}
    for method, samples in (("repulse", 16), ("rloo", 32)):
        settings = Repulse(method, alpha=0.3, samples=samples, **shared)
        folder = train(tmp_path / method, settings, [exact.PROMPT], evaluate=enumerated)
        first, *_, last = (entry for entry in about(folder)["log"] if "eval" in entry)
        assert first["step"] == 0
        assert first["eval"]["p_bad"] == pytest.approx(start, rel=1e-3)
        found[method] = last["eval"]
    assert found["repulse"]["p_bad"] < 0.6 * found["rloo"]["p_bad"]
    assert found["repulse"]["p_bad"] < 0.2 * start
    assert found["repulse"]["mean"] > found["rloo"]["mean"] - 0.1


@pytest.mark.parametrize("lora", [2, 0])
def test_what_is_saved_is_the_policy_and_the_model_is_given_back(lora, tmp_path, monkeypatch):
    base = tmp_path / "base"
    model, tokenizer = exact.model(), exact.tokenizer()
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    before = exact.log_probs(model).detach()
    seen = {}
    folder = train_repulse(
        model, tokenizer, PROMPTS, REWARD, tmp_path / "out", replace(SMALL, lora=lora, learning_rate=3e-2 if lora else 3e-3),
        base=str(base), evaluate=lambda policy: seen.update(policy=exact.log_probs(policy)) or {"x": 1.0},
    )  # fmt: skip
    assert torch.equal(exact.log_probs(model), before)
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any("lora" in name for name, _ in model.named_modules())
    loaded, words = sasa.load(str(folder), device="cpu")
    with torch.no_grad():
        found = exact.log_probs(loaded)
    torch.testing.assert_close(found, seen["policy"], atol=1e-4, rtol=0)
    assert float(exact.kl(found, before)) > 1e-3
    assert words("w3 w4").input_ids == [3, 4]
    line = tiny.boundary(model)
    with pytest.raises(ValueError, match="strict=False"):
        line.check(loaded)
    line.check(loaded, strict=False)
    assert not (folder / "checkpoints").exists()
    assert not (folder / "proposal").exists()
    assert (folder / "training.png").stat().st_size > 5000
    card = (folder / "README.md").read_text()
    assert "method `repulse`" in card
    first = sum(entry["reward"] for entry in about(folder)["log"][1:]) / 6
    assert f"| mean reward | {first:.3f} | {first:.3f} |" in card


@pytest.mark.parametrize("lora", [pytest.param(2, marks=pytest.mark.slow), 0])
def test_the_proposal_is_kept_where_it_is_asked_for(lora, tmp_path):
    base = tmp_path / "base"
    exact.model().save_pretrained(base)
    exact.tokenizer().save_pretrained(base)
    rates = (1e-2, 3e-2) if lora else (2e-3, 2e-3)
    settings = replace(
        SMALL,
        lora=lora,
        steps=30,
        samples=16,
        learning_rate=rates[0],
        proposal_learning_rate=rates[1],
    )
    folder = train_repulse(
        exact.model(),
        exact.tokenizer(),
        [exact.PROMPT],
        REWARD,
        tmp_path / "out",
        settings,
        base=str(base),
        keep_proposal=True,
    )
    assert "not for use" in (folder / "proposal" / "README.md").read_text()
    with torch.no_grad():
        policy, proposal = (
            exact.log_probs(sasa.load(str(place), device="cpu")[0])
            for place in (folder, folder / "proposal")
        )
    assert exact.p_bad(proposal) > 2 * exact.p_bad(policy)


def weights_of(folder):
    return next(folder.glob("*.safetensors")).read_bytes()


@pytest.mark.parametrize(
    ("lora", "method"),
    [
        (0, "repulse"),
        pytest.param(2, "repulse", marks=pytest.mark.slow),
        pytest.param(2, "rloo", marks=pytest.mark.slow),
    ],
)
def test_stopped_it_goes_on_to_the_same_bytes(lora, method, tmp_path):
    settings = replace(SMALL, lora=lora, method=method, eval_every=2)
    whole = train(tmp_path / "whole", settings, eval_prompts=["w9 w8"])
    calls = []

    def interrupted(prompts, completions):
        calls.append(1)
        if len(calls) == (7 if method == "rloo" else 12):
            raise KeyboardInterrupt
        return exact.reward(prompts, completions)

    half = tmp_path / "half"
    breaking = replace(REWARD, function=interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(half, settings, reward=breaking, eval_prompts=["w9 w8"])
    (kept,) = (half / "checkpoints").glob("step-*")
    assert "not for use" in (half / "checkpoints" / "README.md").read_text()
    (half / "checkpoints" / ".step-torn").write_bytes(
        kept.read_bytes()[:1000]
    )  # killed while it was written
    train(half, settings, eval_prompts=["w9 w8"])
    assert weights_of(half) == weights_of(whole)
    assert about(half) == about(whole)
    assert (half / "README.md").read_bytes() == (whole / "README.md").read_bytes()
    done = weights_of(half)
    train(
        half, settings, reward=replace(REWARD, function=None), eval_prompts=["w9 w8"]
    )  # what is done is not done again
    assert weights_of(half) == done


@pytest.mark.slow
def test_killed_again_and_again_it_goes_on_to_the_same_bytes(tmp_path):
    settings = replace(SMALL, steps=12, save_steps=1)
    whole, torn = train(tmp_path / "whole", settings), tmp_path / "torn"
    for kill in range(6):
        before = max((file.name for file in (torn / "checkpoints").glob("step-*")), default="")
        pid = os.fork()
        if not pid:
            train(torn, settings)
            os._exit(0)
        while (
            max((file.name for file in (torn / "checkpoints").glob("step-*")), default="") <= before
        ):
            time.sleep(0.002)
        time.sleep(0.01 * kill)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert "log" not in about(torn)
    train(torn, settings)
    assert weights_of(torn) == weights_of(whole)
    assert about(torn) == about(whole)


def test_which_layers_are_fast_does_not_depend_on_what_came_before():
    """A training that goes on first runs its model with the adapters in it, one that begins without them."""

    def fast(model):
        with skinny_linears(model):
            return {name for name, layer in model.named_modules() if "forward" in layer.__dict__}

    used, fresh = exact.model(), exact.model()
    before = fast(used)
    adapted = [Models(model, 4, proposal=True, seed=0) for model in (used, fresh)]
    assert fast(used) == fast(fresh)
    for models in adapted:
        models.close()
    assert fast(used) == fast(fresh) == before


@pytest.mark.slow
def test_without_a_push_it_is_reinforcement_learning(tmp_path):
    """alpha = 0 is RLOO: the same weights, whatever the proposal learns beside it."""
    one = train(tmp_path / "repulse", replace(SMALL, alpha=0.0))
    other = train(tmp_path / "rloo", replace(SMALL, method="rloo"))
    pushed = train(tmp_path / "pushed", SMALL)
    assert weights_of(one) == weights_of(other)
    assert weights_of(one) != weights_of(pushed)


def on_two_processes(folder, settings):
    from accelerate import PartialState

    torch.set_num_threads(1)
    train(folder, settings)
    assert PartialState().num_processes == 2


@pytest.mark.slow
def test_several_processes_share_a_step(tmp_path):
    """Each takes some of a step's prompts, their gradients are added up: the weights are those of one process."""
    settings = replace(
        SMALL, batch_size=1, learning_rate=1e-3
    )  # a prompt a pass, however many processes there are
    one = train(tmp_path / "one", settings)
    pid = (
        os.fork()
    )  # that launches processes, which a process that has an accelerator of its own may not
    if not pid:
        accelerate.state.AcceleratorState._reset_state(True)
        accelerate.debug_launcher(on_two_processes, (tmp_path / "two", settings), num_processes=2)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    want, found = (
        load_file(folder / "adapter_model.safetensors") for folder in (one, tmp_path / "two")
    )
    for name, weight in want.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-3)
    log, other = about(one)["log"], about(tmp_path / "two")["log"]
    assert other[-1]["reward"] == pytest.approx(log[-1]["reward"], rel=1e-4)
    assert other[-1]["effective_samples"] == pytest.approx(log[-1]["effective_samples"], rel=1e-3)
    assert about(tmp_path / "two")["counts"]["processes"] == 2


def test_prompts_come_in_turn(tmp_path):
    seen = []

    def watched(prompts, completions):
        if len(prompts) == 4:  # two samples of both of a step's prompts
            seen.extend(prompts[::2])
        return REWARD(prompts, completions)

    settings = replace(SMALL, method="rloo", samples=2, prompts_per_step=2, steps=5, batch_size=8)
    train(tmp_path, settings, reward=function_reward(watched))
    assert sorted(seen[:5]) == sorted(seen[5:]) == sorted(PROMPTS)
    assert seen[:5] != seen[5:]


# --- what cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"method": "ppo"},
            "method must be one of repulse, rloo, rloo-transformed, p-proposal, got 'ppo'",
        ),
        ({"alpha": -0.1}, "alpha must be >= 0, got -0.1"),
        ({"beta": -1.0}, "beta must be >= 0, got -1.0"),
        ({"beta": float("nan")}, "beta must be >= 0, got nan"),
        ({"beta_kl": 0.0}, "beta_kl must be > 0, got 0.0"),
        ({"samples": 1}, "samples must be >= 2, got 1"),
        ({"learning_rate": float("inf")}, "learning_rate must be > 0, got inf"),
        ({"eta": float("nan")}, "eta must be a finite number, got nan"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"lora": -1}, "lora must be >= 0, got -1"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prompts=[]), "there are no prompts to train on"),
        (dict(prompts=["w1", " "]), "prompt 1 is empty"),
        (
            dict(prompts=["w1 " * 40]),
            "prompt 0 has 40 tokens: with max_new_tokens=3 that is beyond the model's context window of 32",
        ),
        (
            dict(settings=replace(SMALL, chat=True)),
            "chat: the model's tokenizer has no chat template",
        ),
        (
            dict(reward=function_reward(lambda p, c: [1.0] * len(c), "flat")),
            "the reward flat is constant: it gave 1 for each of 20",
        ),
        (
            dict(reward=function_reward(lambda p, c: [float("nan")] * len(c), "broken")),
            "the reward broken is not finite: it gave nan",
        ),
        (
            dict(reward=function_reward(lambda p, c: 1.0, "single")),
            "the reward single gave an array of shape",
        ),
        (
            dict(settings=replace(SMALL, method="rloo-transformed", beta=300.0)),
            "is not finite for rewards as low as",
        ),
    ],
)
def test_what_cannot_be_trained_on(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_two_trainings_in_one_folder(tmp_path):
    with (
        training_folder(tmp_path / "out").lock(),
        pytest.raises(BlockingIOError, match="another process is writing to"),
    ):
        train(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".lock"]
    train(tmp_path / "out")


def test_folders_of_something_else(tmp_path):
    train(tmp_path / "out")
    with pytest.raises(ValueError, match=r"other settings: alpha was 0\.1, is 0\.2"):
        train(tmp_path / "out", replace(SMALL, alpha=0.2))
    with pytest.raises(ValueError, match=r"other settings: prompts was"):
        train(tmp_path / "out", prompts=PROMPTS[:4])
    with pytest.raises(ValueError, match=r"other settings: reward\.name was reward, is another"):
        train(tmp_path / "out", reward=replace(REWARD, name="another"))
    with pytest.raises(ValueError, match="is not empty and does not hold a training"):
        train(tmp_path)
    with pytest.raises(ValueError, match="in training mode"):
        train_repulse(
            exact.model().train(),
            exact.tokenizer(),
            PROMPTS,
            REWARD,
            tmp_path / "t",
            SMALL,
            base="me/exact",
        )


def test_the_command(tiny_folder, tmp_path, monkeypatch):
    """From the command line: a reward from a module in the working folder, then what was trained, and what is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def lower(prompts, completions):\n    return [-float(sum(c.isupper() for c in t)) for t in completions]\n"
    )
    (tmp_path / "p.txt").write_text("abc\ndef\nxyz\nhello there\nfive\nsix\n")
    run = [
        *("train", "repulse", "p.txt", "-m", tiny_folder, "--steps", 2, "-c", 2, "-n", 4),
        *("--prompts-per-step", 2, "--lora", 2),
    ]
    shown = command(*run, "-o", "out", "-r", "mine:lower", "--keep-proposal")
    assert "sasa generate PROMPT --model out --no-strict" in shown.stdout
    settings = about(tmp_path / "out")
    assert settings["training"]["reward"]["name"] == "mine:lower"
    assert settings["training"]["base"] == str(tiny_folder)
    assert settings["counts"] == {"prompts": 5, "eval_prompts": 1, "processes": 1}
    assert settings["log"][-1]["eval"].keys() == {"reward", "below", "kl"}
    assert settings["training"]["learning_rate"] == 2e-4
    assert settings["training"]["proposal_learning_rate"] == 1e-3  # the proposal has further to go
    written = command("generate", "abc", "-m", "out", "-b", "none", "-n", 3, "--json")
    assert len(json.loads(written.stdout)["completions"]) == 1
    assert "Warning" not in written.stderr
    command(*run, "-o", "chat", "-r", "mine:lower", "--chat", "--eval-every", 0, "--method", "rloo")
    for arguments, message in [
        (["-r", "mine:upper"], "module 'mine' has no attribute 'upper'"),
        (["-r", "nothing"], "unknown reward 'nothing'; there are: boundary, profanity"),
        (["-r", "mine:lower", "--alpha", "-1"], "alpha must be >= 0"),
        (["-r", "mine:lower", "--rows", "9:"], "p.txt has no rows 9:"),
        (["-r", "mine:lower", "--groups", "toxic"], "expected one of .csv"),
    ]:
        assert message in command(*run, "-o", "bad", *arguments, status=1).stderr.replace("\n", " ")
    assert not (tmp_path / "bad").exists()
