"""Fits, benchmarks and completions by several workers are those of one machine, whoever dies on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from typer.testing import CliRunner

if importlib.util.find_spec("ray") is None:
    pytest.skip(
        "Ray is not installed here: pip install 'sasa-decoding[ray]'", allow_module_level=True
    )

import sasa
from sasa.cli import app
from sasa.evaluation import stages
from sasa.evaluation.methods import method
from sasa.evaluation.run import Run
from sasa.evaluation.settings import Settings
from sasa.evaluation.suites import Prompt, Suite
from sasa.evaluation.world import World
from sasa.fitting import Corpus, Recipe, fit_boundary, reading
from sasa.serving.ray import Ray

pytest.importorskip("ray.cloudpickle").register_pickle_by_value(
    sys.modules[__name__]
)  # no worker has this file
pytestmark = pytest.mark.slow  # each starts processes of its own
WORDS = ("you fool and liar", "what a good day it is")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, labelled texts, and prompts."""
    made = tmp_path_factory.mktemp("many")
    tiny.model("llama").save_pretrained(made / "model")
    tiny.tokenizer().save_pretrained(made / "model")
    rows = [{"text": f"{i} {WORDS[i % 2]} {i * i}", "label": 1 - i % 2} for i in range(600)]
    (made / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "prompts.txt").write_text("".join(f"prompt number {i}\n" for i in range(40)))
    tiny.boundary(tiny.model("llama")).save(made / "calm")
    return made


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A worker has one core, and the last bit of a product depends on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def two(folder) -> Ray:
    made = Ray(str(folder / "model"), "cpu", workers=2)
    made.connect()
    return made


def recipe(folder: Path, **more: object) -> Recipe:
    return Recipe(
        (Corpus(str(folder / "texts.jsonl"), text="text", label="label"),),
        embedding=sasa.EmbeddingSpec(layer=(1, -1)),
        **more,
    )


def one_way(folder: Path, spread: Ray | None, output: Path | None = None) -> sasa.Boundary:
    model, tokenizer = sasa.load(folder / "model", "cpu")
    return fit_boundary(
        model, tokenizer, recipe(folder, prefixes=True), output, batch_size=16, spread=spread
    )


@pytest.fixture
def windows(monkeypatch):
    """Small ones: several shards."""
    monkeypatch.setattr(reading, "WINDOW", 64)


def test_a_fit_is_the_same_to_the_bit(folder, two, windows, tmp_path):
    here, there = one_way(folder, None), one_way(folder, two, tmp_path / "fitted")
    assert torch.equal(here.weight, there.weight)
    assert (here.bias, here.scale, here.shift) == (there.bias, there.scale, there.shift)
    assert here.report == there.report
    assert sasa.Boundary.load(tmp_path / "fitted").fingerprint == here.fingerprint


def dying(marker: Path, task, model, tokenizer, item):
    """Does what the task does, but for the first worker that comes along with the fourth shard."""
    name = marker / str(len(list(marker.iterdir())))
    name.write_text(str(os.getpid()))
    if name.name == "3":
        os.kill(os.getpid(), signal.SIGKILL)
    return task(model, tokenizer, item)


def test_a_worker_that_is_killed_costs_a_shard_and_not_the_run(folder, two, windows, tmp_path):
    def spread(task, items):
        return two(partial(dying, tmp_path, task), items)

    assert one_way(folder, spread).fingerprint == one_way(folder, None).fingerprint
    tried = len(list(tmp_path.iterdir()))
    assert tried > 10, "nothing was done again"


def bench(folder: Path, output: Path, spread: Ray | None) -> dict[str, str]:
    """What a run writes, by file."""
    model, tokenizer = sasa.load(folder / "model", "cpu")
    line = sasa.Boundary.load(folder / "calm", model=model, strict=False)
    prompts = tuple(Prompt(str(i), f"prompt number {i}", "") for i in range(60))
    world = World(model, tokenizer, line, Settings(completions=3, max_new_tokens=8))
    run = Run.create(output, Suite("rtp", "made up", prompts), world, batch_size=10)
    made = {name: method(name) for name in ("plain", "sasa:1")}
    stages.generate_stage(run, made, world, spread=spread)
    stages.likelihood_stage(run, model, tokenizer, list(made), spread=spread)
    return {
        str(f.relative_to(output)): f.read_text()
        for f in output.rglob("*.jsonl")
        if f.name != "timings.jsonl"
    }


def test_a_benchmark_is_the_same_with_a_worker_killed_in_the_middle(folder, two, tmp_path):
    here = bench(folder, tmp_path / "here", None)
    marker = tmp_path / "marker"
    marker.mkdir()
    there = bench(
        folder, tmp_path / "there", lambda task, items: two(partial(dying, marker, task), items)
    )
    assert len(here) == 5
    assert there == here


def process(model, tokenizer, item):
    return os.getpid()


def test_workers_stay_until_they_are_let_go(two):
    first, second = set(two(process, range(8))), set(two(process, range(8)))
    assert second <= first
    assert len(first) <= 2
    two.close()
    assert not first & set(two(process, range(8)))


def itself(model, tokenizer, item):
    return item


def test_shards_are_read_as_they_are_needed_and_come_in_their_order(two):
    taken = []
    found = two(itself, (taken.append(i) or i for i in range(100)))
    assert next(found) == 0
    assert len(taken) < 20
    assert list(found) == list(range(1, 100))


def test_nobody_waits_for_a_worker_that_finds_no_place(two):
    import ray

    two.close()
    others = ray.remote(num_cpus=int(ray.cluster_resources()["CPU"]) - 1)(Other).remote()
    ray.get(others.ready.remote())
    assert list(two(itself, range(20))) == list(range(20))
    ray.kill(others)
    two.close()


class Other:
    def ready(self):
        """There."""


def test_more_workers_than_there_is_room_for_are_refused(folder):
    with pytest.raises(
        ValueError, match=r"workers must be between 1 and \d+, one a core of the cluster, got 500"
    ):
        list(Ray(str(folder / "model"), "cpu", workers=500)(partial(dying, folder), [1]))


def failing(model, tokenizer, item):
    raise ValueError(f"text {item} is no text")


def test_what_the_work_raises_is_what_is_raised_here(two):
    with pytest.raises(ValueError, match=r"^text 7 is no text$"):
        list(two(failing, [7]))
    assert list(two(failing, [])) == []


def test_the_command_line(folder, two, tmp_path):
    """`sasa generate` and `sasa fit` by two workers, and what belongs to --ray."""
    two.close()  # there are no more places in this cluster
    common = ["-m", str(folder / "model"), "--device", "cpu"]
    ask = [
        "generate",
        "-p",
        str(folder / "prompts.txt"),
        "-b",
        str(folder / "calm"),
        "--no-strict",
        "-n",
        "6",
        "--json",
    ]
    ask += ["--seed", "1", "--batch-size", "2", *common]
    here, there = (
        CliRunner().invoke(app, [*ask, *more]) for more in ([], ["--ray", "--ray-workers", "2"])
    )
    assert here.exit_code == there.exit_code == 0, there.output
    assert there.stdout == here.stdout
    assert len(here.stdout.splitlines()) == 40
    done = CliRunner().invoke(
        app,
        [
            "fit",
            f"{folder / 'texts.jsonl'}::text=text,label=label",
            "-o",
            str(tmp_path / "fitted"),
            "--ray",
            "--layer",
            "1",
            *common,
        ],
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "fitted" / "boundary.safetensors").is_file()
    lost = CliRunner().invoke(app, [*ask, "--ray-workers", "2"])
    assert "--ray-address and --ray-workers belong to --ray" in str(lost.exception)


def test_a_cluster_that_is_not_there_is_named(folder):
    import ray

    ray.shutdown()
    with pytest.raises(ConnectionError, match=r"no Ray cluster at '127.0.0.1:1'"):
        Ray(str(folder / "model"), address="127.0.0.1:1").connect()
    with pytest.raises(ConnectionError, match="no Ray cluster at 'nonsense'"):
        Ray(str(folder / "model"), address="nonsense").connect()
