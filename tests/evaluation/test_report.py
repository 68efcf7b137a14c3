"""The report of a run, and of several side by side."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
from runs import SUITE, Counting

from sasa.evaluation import stages
from sasa.evaluation.methods import method
from sasa.evaluation.reports.report import compare, write_report
from sasa.evaluation.run import Run
from sasa.evaluation.scorers.boundary import BoundaryScorer
from sasa.evaluation.suites import Prompt, Suite
from sasa.utils.jsonl import read

pytestmark = pytest.mark.usefixtures("_own_cache")


def make_run(folder, world, methods=("plain", "sasa:2"), scorer=True):
    run = Run.create(folder, SUITE, world, batch_size=3)
    stages.generate_stage(run, {name: method(name) for name in methods}, world)
    stages.likelihood_stage(run, world.model, world.tokenizer, methods)
    if scorer:
        judge = Counting()
        judge.score = lambda texts: np.array([(sum(map(ord, t)) % 100) / 100 for t in texts])
        stages.score_stage(run, [judge], methods)
    return run


def test_reports(world, tmp_path):
    run = make_run(tmp_path / "run", world)
    text = write_report([run.folder]).read_text()
    assert "without a toxicity score" in text
    assert "| plain |" in text
    assert "paired Wilcoxon" in text
    summary = json.loads((run.folder / "summary.json").read_text())["runs"][0]
    assert summary["groups"] == {"nontoxic": 4, "toxic": 3}
    by_group = summary["methods"]["plain"]["perplexity_by_group"]
    groups = [prompt.group for prompt in run.prompts for _ in range(3)]
    for group, found in by_group.items():
        mine = [
            r
            for r, g in zip(read(run.file("plain", "likelihood")), groups, strict=True)
            if g == group
        ]
        want = math.exp(sum(r["nats"] for r in mine) / sum(r["tokens"] for r in mine))
        assert found["value"] == pytest.approx(want)
        assert f"| {group} | {want:.2f}" in text
    assert set(by_group) == {"nontoxic", "toxic"}
    nats = sum(r["nats"] for r in read(run.file("plain", "likelihood")))
    tokens = sum(r["tokens"] for r in read(run.file("plain", "likelihood")))
    assert summary["methods"]["plain"]["figures"]["perplexity"]["value"] == pytest.approx(
        math.exp(nats / tokens)
    )
    scores = np.array(
        json.loads((run.folder / "scores" / "counting.json").read_text())["scores"]["plain"]
    ).reshape(7, 3)
    assert summary["methods"]["plain"]["toxicity"]["counting"]["emt"]["value"] == pytest.approx(
        scores.max(1).mean()
    )
    both = summary["methods"]
    for key in ("perplexity", "distinct_1", "distinct_2", "repetition", "tokens"):
        change = both["sasa:2"]["changes"][key]["value"]
        before, after = (both[m]["figures"][key]["value"] for m in ("plain", "sasa:2"))
        assert change is None if before == 0 else change == pytest.approx(after / before - 1)
    assert "changes" not in both["plain"]
    line = text[text.index("### Change against plain") :].split("| sasa:2 | ")[1].splitlines()[0]
    assert line.startswith(f"{both['sasa:2']['changes']['perplexity']['value']:+.1%} [")
    assert line.endswith(f"| {both['sasa:2']['figures']['empty']['value']:.1%} |")
    assert (run.folder / "frontier.png").stat().st_size > 5000
    assert (run.folder / "groups.png").is_file()


def test_what_backtracking_costs_is_reported(world, tmp_path):
    # One token each, and the boundary in the middle of what plain writes: half of them go back, whatever the machine draws.
    world = replace(world, settings=replace(world.settings, max_new_tokens=1))
    plain = make_run(tmp_path / "plain", world, ("plain",)).completed("plain")
    middle = float(np.median([row["margin"] for row in plain]))
    world = replace(world, boundary=replace(world.boundary, bias=world.boundary.bias - middle))
    run = make_run(tmp_path / "run", world, ("plain", "backtrack:0.5", "backtrack:0.999999"))
    text = write_report([run.folder]).read_text()
    rows = run.completed("backtrack:0.5")
    found = compare([run.folder])["runs"][0]["methods"]
    figures = found["backtrack:0.5"]["figures"]
    assert figures["sent_back"].value == pytest.approx(np.mean([bool(r["attempts"]) for r in rows]))
    assert 0 < figures["sent_back"].value < 1
    assert figures["spent"].value == pytest.approx(
        sum(r["spent"] for r in rows) / sum(len(r["tokens"]) for r in rows)
    )
    likelihoods = read(run.file("backtrack:0.5", "likelihood"))
    others = [one for one, r in zip(likelihoods, rows, strict=True) if not r["attempts"]]
    want = math.exp(sum(r["nats"] for r in others) / sum(r["tokens"] for r in others))
    assert figures["perplexity_never_back"].value == pytest.approx(want)
    groups = {p.id: p.group for p in run.prompts}
    toxic = [bool(r["attempts"]) for r in rows if groups[r["prompt"]] == "toxic"]
    assert "backtrack:0.5 sent back" in text
    assert f"{np.mean(toxic):.1%} of toxic" in text
    assert not {"sent_back", "spent"} & set(found["plain"]["figures"])
    assert found["backtrack:0.999999"]["figures"]["sent_back"].value == 0  # none is a figure, too


def test_a_reset_of_the_models_own_is_reported_as_what_it_is(world, tmp_path):
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    model.resize_token_embeddings(len(tokenizer))
    world = replace(world, model=model, tokenizer=tokenizer, boundary=tiny.boundary(model))
    run = make_run(tmp_path, world, ("plain", "reset:2"))
    text = write_report([run.folder]).read_text()
    back = [bool(row["attempts"]) for row in run.completed("reset:2")]
    assert 0 < np.mean(back) < 1
    assert compare([run.folder])["runs"][0]["methods"]["reset:2"]["figures"][
        "sent_back"
    ].value == pytest.approx(np.mean(back))
    assert "reset:2 sent back" in text


def test_plain_may_come_last_and_be_read_by_a_judge(world, tmp_path):
    run = make_run(tmp_path / "run", world, ("sasa:2", "plain"))
    judge = tiny.model("qwen3")
    stages.likelihood_stage(run, judge, world.tokenizer, ["plain"], judge="own/judge")
    text = write_report([run.folder]).read_text()
    assert "- sasa:2 against plain" in text
    found = compare([run.folder])["runs"][0]["methods"]
    assert (
        found["plain"]["figures"]["perplexity@own-judge"].value
        != found["plain"]["figures"]["perplexity"].value
    )
    assert "perplexity@own-judge" not in found["sasa:2"]["figures"]


def test_a_judge_with_too_short_a_window(world, tmp_path):
    run = make_run(tmp_path, world, ("plain",))
    with pytest.raises(ValueError, match="context window of 16"):
        run.encoded_prompts(
            tiny.model("llama", max_position_embeddings=16), world.tokenizer, judging=True
        )


@pytest.mark.slow
def test_reports_of_several_runs(world, tmp_path):
    make_run(tmp_path / "one", world)
    make_run(tmp_path / "two", world, ("plain",))
    with pytest.raises(ValueError, match="--output"):
        write_report([tmp_path / "one", tmp_path / "two"])
    text = write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "both").read_text()
    assert "## one: rtp" in text
    assert "## two: rtp" in text
    assert (tmp_path / "both" / "rtp-frontier.png").is_file()
    make_run(tmp_path / "three", world, ("plain",))
    write_report(
        [tmp_path / "both", tmp_path / "three"], tmp_path / "beside"
    )  # the completions of one and two not needed
    published, beside = (
        json.loads((tmp_path / f / "summary.json").read_text())["runs"] for f in ("both", "beside")
    )
    assert beside[:2] == published
    assert beside[2]["name"] == "three"
    text = (tmp_path / "beside" / "report.md").read_text()
    assert all(
        line in text
        for line in (tmp_path / "both" / "report.md").read_text().splitlines()
        if line[:1] in "|-"
    )


def test_the_boundary_is_never_the_only_judge(world, tmp_path):
    run = make_run(tmp_path, world, scorer=False)
    with pytest.raises(ValueError, match="no scores yet"):
        compare([run.folder])
    margin = BoundaryScorer(world.model, world.tokenizer, world.boundary)
    stages.score_stage(run, [margin], ["plain"])
    with pytest.raises(ValueError, match="the boundary alone"):
        compare([run.folder])


@pytest.mark.parametrize("score", [1.0, 0.25])
def test_gender_gap(world, tmp_path, score):
    groups = ["gender/American_actors", "gender/American_actresses"]
    suite = Suite(
        "bold", "here", tuple(Prompt(f"p{i}", "ab" * (1 + i % 3), groups[i % 2]) for i in range(8))
    )
    run = Run.create(tmp_path, suite, world)
    stages.generate_stage(run, {"plain": method("plain")}, world)
    judge = Counting()
    actors = {
        r["text"]
        for p, r in zip(
            [p for p in run.prompts for _ in range(3)], run.completed("plain"), strict=True
        )
        if p.group == groups[0]
    }
    judge.score = lambda texts: np.array([score * (t in actors) for t in texts])
    stages.score_stage(run, [judge], ["plain"])
    found = compare([tmp_path])["runs"][0]["methods"]["plain"]["toxicity"]["counting"]
    rate, mean = found["gender_gap"].value, found["gender_gap_mean"].value
    assert mean > 0.5 * score
    assert rate == (mean if score == 1 else 0)
    assert f"{mean:+.4f}" in write_report([tmp_path]).read_text()
