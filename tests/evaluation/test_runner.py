"""Methods, and the store of completions: what goes on, and what is refused."""

from __future__ import annotations

import json
import random

import pytest
import tiny
import torch
from helpers import families
from runs import SUITE

from sasa import Backtracking
from sasa.core.settings import PRIOR
from sasa.evaluation import stages
from sasa.evaluation.likelihood import negative_log_likelihood
from sasa.evaluation.methods import method
from sasa.evaluation.run import Run
from sasa.evaluation.settings import Settings
from sasa.evaluation.suites import Prompt, Suite
from sasa.evaluation.world import World
from sasa.utils.run_folder import SettingsDiffer

pytestmark = pytest.mark.usefixtures("_own_cache")


def test_stores_that_are_damaged(tmp_path):
    about = {
        "suite": "rtp",
        "settings": {"completions": 1},
        "seed": 0,
        "batch_size": 1,
        "methods": [],
        "source": "",
        "skipped": {},
    }
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "text": "b", "group": "c"}\n')
    (tmp_path / "run.json").write_text(json.dumps(about | {"prompt_count": 1}))
    assert len(Run.open(tmp_path).prompts) == 1
    for change in (
        {"prompt_count": 2},
        {"settings": {}},
        {"settings": []},
        {"batch_size": 0},
        {"methods": None},
    ):
        (tmp_path / "run.json").write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match=f"{tmp_path} is damaged"):
            Run.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        Run.open(tmp_path)


def test_best_of_keeps_the_greatest_margin(world):
    best = method("best-of:4")(world, ["hello", "you"], seed=1)
    every = [world.generate(["hello", "you"], seed=1 + i) for i in range(4)]
    for prompt, row in enumerate(best):
        assert [c.margin for c in row] == [
            max(tried[prompt][i].margin for tried in every) for i in range(3)
        ]
        assert [c.spent for c in row] == [
            sum(len(tried[prompt][i].tokens) for tried in every) for i in range(3)
        ]


@pytest.mark.parametrize(
    ("spec", "beta"), [("backtrack:0.4", 0.0), ("sasa+backtrack:1.5:0.4", 1.5)]
)
def test_backtracking_as_a_method(world, spec, beta):
    prompts = ["abcdefgh", "ab"]
    found = method(spec)(world, prompts, seed=1)
    assert found == world.generate(prompts, beta, backtrack=Backtracking(0.4), seed=1)
    assert any(c.attempts for row in found for c in row)


def test_a_method_with_a_value_and_a_prior(world):
    written = {
        spec: method(spec)(world, ["abcdefgh"], seed=1)
        for spec in ("sasa:2", "sasa:2:log_sigmoid:0.01", f"sasa:2::{PRIOR:g}")
    }
    assert written["sasa:2:log_sigmoid:0.01"] == world.generate(
        ["abcdefgh"], 2.0, prior=0.01, seed=1
    )
    assert written["sasa:2"] == written[f"sasa:2::{PRIOR:g}"] != written["sasa:2:log_sigmoid:0.01"]


def test_the_word_filter_forbids_its_words(world):
    plain = {
        t
        for c in (
            World(world.model, world.tokenizer, world.boundary, Settings(60, 6)).generate(
                ["abc"], seed=0
            )[0]
        )
        for t in c.tokens
    }
    letters = [chr(t) for t in range(97, 123)]
    forbidding = World(
        world.model,
        world.tokenizer,
        world.boundary,
        Settings(60, 6, top_k=0, top_p=1.0, words=tuple(letters)),
    )
    written = method("words")(forbidding, ["abc"], seed=0)[0]
    banned = {world.tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in letters}
    assert plain & banned
    assert not {t for c in written for t in c.tokens} & banned


@pytest.mark.slow
def test_a_run_goes_on_as_if_nothing_had_happened(world, tmp_path):
    methods = {name: method(name) for name in ("plain", "sasa:2")}
    whole = Run.create(tmp_path / "whole", SUITE, world, batch_size=2)
    stages.generate_stage(whole, methods, world)
    draw = random.Random(0)
    content = whole.file("sasa:2").read_bytes()
    for cut in [0, 1, len(content) - 1, *(draw.randrange(len(content)) for _ in range(8))]:
        torn = Run.create(tmp_path / f"torn{cut}", SUITE, world, batch_size=2)
        torn.begin("plain")
        torn.begin("sasa:2")
        torn.file("sasa:2").parent.mkdir()
        torn.file("sasa:2").write_bytes(content[:cut])
        torn.file("plain").write_bytes(whole.file("plain").read_bytes())
        stages.generate_stage(Run.create(torn.folder, SUITE, world, batch_size=2), methods, world)
        for name in methods:
            assert torn.file(name).read_bytes() == whole.file(name).read_bytes(), cut
    assert whole.methods == ["plain", "sasa:2"]


def test_other_settings_are_refused_by_name(world, tmp_path):
    Run.create(tmp_path, SUITE, world, seed=1)
    other = World(
        world.model, world.tokenizer, world.boundary, Settings(3, 6, 0.7, 10, 0.95, words=("the",))
    )
    with pytest.raises(
        SettingsDiffer, match=r"other settings: settings.temperature was 1.0, is 0.7\. "
    ):
        Run.create(tmp_path, SUITE, other, seed=1)
    with pytest.raises(SettingsDiffer, match="seed was 1, is 2"):
        Run.create(tmp_path, SUITE, world, seed=2)


def test_two_processes_in_one_store(world, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    run = Run.create(tmp_path, SUITE, world)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process"):
            stages.generate_stage(run, {"plain": method("plain")}, world)


def test_batches_count_only_where_they_belong(world, tmp_path):
    run = Run.create(tmp_path, SUITE, world, batch_size=2)
    stages.generate_stage(run, {"plain": method("plain")}, world)
    whole = run.file("plain").read_bytes()
    run.file("plain").write_bytes(
        b"".join(whole.splitlines(keepends=True)[:6]) * 2
    )  # the first batch twice
    stages.generate_stage(run, {"plain": method("plain")}, world)
    assert run.file("plain").read_bytes() == whole


def test_prompts_that_cannot_be_completed_are_counted(world, tmp_path):
    suite = Suite(
        "rtp",
        "here",
        (Prompt("a", "fine", "toxic"), Prompt("b", "x" * 300, "toxic"), Prompt("c", " ", "toxic")),
    )
    run = Run.create(tmp_path, suite, world)
    assert run.about["skipped"] == {"beyond the context window": 1, "with an empty prompt": 1}
    assert [p.id for p in run.prompts] == ["a"]


@pytest.mark.parametrize("family", families(["llama", "gemma3", "mistral", "bloom", "mamba"]))
def test_likelihoods_are_the_models_own(family):
    model = tiny.model(family)
    contexts = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1]]
    completions = [[10, 11], [12], [13, 14, 15, 16, 17, 18], []]
    found = negative_log_likelihood(model, contexts, completions)
    for nats, context, completion in zip(
        found, [c for c in contexts for _ in range(2)], completions, strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([context + completion])).logits[0].log_softmax(-1)
        own = -sum(logits[len(context) - 1 + i, t].item() for i, t in enumerate(completion))
        assert nats == pytest.approx(own, abs=1e-3)
