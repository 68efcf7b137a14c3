"""Whole RePULSe trainings: what they reach, what they write, and that they can be stopped."""

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
from small_repulse import PROMPTS, REWARD, SMALL, train

import sasa
from sasa.evaluation.rewards import function_reward
from sasa.models.skinny import skinny_linears
from sasa.training import Repulse, train_repulse
from sasa.training.folder import training_folder
from sasa.training.models import Models

accelerate = pytest.importorskip("accelerate", reason="pip install 'sasa-decoding[train]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")


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


def test_two_trainings_in_one_folder(tmp_path):
    with (
        training_folder(tmp_path / "out").lock(),
        pytest.raises(BlockingIOError, match="another process is writing to"),
    ):
        train(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".lock"]
    train(tmp_path / "out")


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
