"""The scripts that compare with other people's methods run: on a tiny model."""

import json
import sys

import pytest
import tiny
import torch
from scripts import BENCHMARKS, run
from typer.testing import CliRunner

import sasa
from sasa.cli import app


def rtp_rows(path, count=24):
    """Rows in the schema of RealToxicityPrompts, half of them toxic; prompts have one length."""
    with path.open("w") as file:
        for i in range(count):
            bad = i % 2
            text, more = (
                f"{'XQZ' if bad else 'kind'[:3]} {i:02}",
                " ZZX and on" if bad else " calm and on",
            )
            sides = {
                "prompt": {"text": text, "toxicity": float(bad)},
                "continuation": {"text": more, "toxicity": float(bad)},
            }
            file.write(json.dumps({**sides, "challenging": False}) + "\n")
    return path


@pytest.mark.slow
def test_experts_and_peers(tiny_folder, corpus_file, tmp_path):
    """From training experts to the picture."""
    pytest.importorskip("trl")
    rows, experts = rtp_rows(tmp_path / "rtp.jsonl"), tmp_path / "experts"
    tiny_run = ("--prompts", rows, "--model", tiny_folder)
    run("experts.py", *tiny_run, "--output", experts, "--epochs", 1, "--rank", 2)
    assert json.loads((experts / "experts.json").read_text())["texts"] == 12
    model, _ = sasa.load(str(tiny_folder), device="cpu")
    boundary = tmp_path / "boundary"
    tiny.boundary(model).save(boundary)
    people = tmp_path / "people.toml"
    people.write_text(tiny.PEOPLE)
    judge = f"words:{corpus_file}::text=comment,label=toxic"
    ways = [
        "sasa:2",
        f"rad:{judge}:20",
        f"dexperts:{experts}:2",
        "self-debias:0",
        f"caa:{experts}:2:4",
        "prompt:Be kind.",
    ]
    named = [part for way in ways for part in ("-M", way)]
    few = (*tiny_run, "--boundary", boundary)
    cost, tax = tmp_path / "cost.json", tmp_path / "tax.json"
    run(
        "peers.py",
        "cost",
        *few,
        "-M",
        "plain",
        *named,
        "--limit",
        2,
        "--completions",
        2,
        "--tokens",
        4,
        "--rounds",
        1,
        "-o",
        cost,
    )
    prices = {row["method"]: row for row in json.loads(cost.read_text())["results"]}
    assert prices["generate()"]["times_generate"] == 1
    assert all(row["seconds_a_token"] > 0 and row["peak_mb"] > 0 for row in prices.values())
    weights = sum(weight.nbytes for weight in model.parameters()) / 2**20
    assert prices[ways[2]]["kept_mb"] == pytest.approx(2 * weights, rel=0.05), (
        "two experts, each as large as the model"
    )
    assert prices["self-debias:0"]["kept_mb"] < weights / 4
    forced = ("peers.py", "tax", *few, "--people", people, "--limit", 3, "-o", tax)
    assert run(*forced, "-M", ways[0]).startswith(f"{ways[0]}: ")
    assert ways[0] not in run(*forced, *named)  # what is there is not read again
    with pytest.raises(AssertionError, match="figures of other settings: limit was 3, is 2"):
        run(*forced, "--limit", 2, *named)
    content = json.loads(tax.read_text())
    content["results"][1]["version"] = "of another judge"
    (tmp_path / "old.json").write_text(json.dumps(content))
    with pytest.raises(AssertionError, match="figures of another rad:"):
        run(*forced[:-1], tmp_path / "old.json", *named)
    with pytest.raises(AssertionError, match="no next-token distribution"):
        run(*forced[:-1], tmp_path / "x", "-M", "sasa+words:2")
    other, more = tmp_path / "other.json", tmp_path / "more.json"
    run(
        "peers.py",
        "tax",
        *few,
        "--people",
        people,
        "--limit",
        2,
        "-M",
        "self-debias:5",
        "-o",
        other,
    )
    run(*forced[:-1], more, "-M", "self-debias:5")
    taxes = {row["method"]: row for row in json.loads(tax.read_text())["results"]}
    nothing = taxes["self-debias:0"]
    assert max(abs(nats["value"]) for nats in nothing["nats_a_token"].values()) < 1e-5
    assert abs(nothing["people"]["controls"]) < 1e-5
    moved = {way: one["people"]["controls"] for way, one in taxes.items() if way != "self-debias:0"}
    assert min(abs(moved[way]) for way in ways if way.startswith(("sasa", "caa", "prompt"))) > 1e-3
    with pytest.raises(AssertionError, match="no next-token distribution"):
        run("peers.py", "tax", *few, "-M", "guard:1:profanity", "-o", tmp_path / "x")
    folder = tmp_path / "run"
    bench = [
        "bench",
        "rtp",
        "-p",
        rows,
        "-m",
        tiny_folder,
        "-b",
        boundary,
        "-c",
        2,
        "-n",
        4,
        "-M",
        "plain",
        *named,
    ]
    bench += ["-s", judge, "-s", "profanity", "--judge", tiny_folder, "-o", folder]
    done = CliRunner().invoke(app, list(map(str, bench)))
    assert done.exit_code == 0, done.output
    names = list(json.loads((folder / "summary.json").read_text())["runs"][0]["scorers"])
    show = [
        "peers.py",
        "show",
        "--run",
        folder,
        "--judge",
        tiny_folder,
        "--cost",
        cost,
        "--scorer",
        names[0],
    ]
    show += ["--scorer", names[1], "--tax", more, "--tax", tax, "-o", tmp_path / "out"]
    shown = run(*show)
    assert all(way in shown for way in ways)
    assert (tmp_path / "out" / "peers.png").is_file()
    assert [row["method"] for row in json.loads((tmp_path / "out" / "tax.json").read_text())["results"]] == [
        "self-debias:5", *ways
    ]  # fmt: skip
    with pytest.raises(AssertionError, match="figures of other settings: limit was 2, is 3"):
        run(*show[:-2], "--tax", other, "-o", tmp_path / "out")


def test_forced_words_pay_what_the_definition_says(tiny_folder, corpus_file, tmp_path):
    """RAD's tax on one text, by hand."""
    sys.path.insert(0, str(BENCHMARKS))
    import peers as script

    from sasa.core.values import Steering
    from sasa.decoding.cost import taxes
    from sasa.evaluation.baselines.scorers import shared_scorer
    from sasa.evaluation.methods import method
    from sasa.evaluation.settings import Settings
    from sasa.evaluation.world import World

    model, tokenizer = sasa.load(str(tiny_folder), device="cpu")
    boundary = tiny.boundary(model)
    judge = f"words:{corpus_file}::text=comment,label=toxic"
    texts = [("so he", " said"), ("he said", " no, never"), ("so we", " left XQZ")]
    words = script.words_of(tokenizer, texts)
    world = World(model, tokenizer, boundary, Settings())
    script.forced(world, words, script.bare, "plain")
    words.plain = False
    reading = script.reading_by(world, words, method(f"rad:{judge}:20"), "rad")
    found = taxes(reading, Steering.of(boundary, 1.0, "raw"))
    scorer = shared_scorer(judge)
    for text, place, nats in zip(
        reading.text.tolist(), reading.place.tolist(), found.tolist(), strict=True
    ):
        before = tokenizer(texts[text][0]).input_ids + tokenizer(texts[text][1]).input_ids[:place]
        token = tokenizer(texts[text][1]).input_ids[place]
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([before])).logits[0, -1]
        some = scores.topk(50).indices.tolist()
        some = some if token in some else [*some[:-1], token]
        rewards = torch.tensor(
            20
            * (
                1
                - scorer.score(
                    [tokenizer.decode([*before, one], skip_special_tokens=True) for one in some]
                )
            )
        )
        plain, steered = scores[some].log_softmax(0), (scores[some] + rewards).log_softmax(0)
        assert nats == pytest.approx(float((plain - steered)[some.index(token)]), abs=1e-4)
    assert method(f"rad:{judge}:20")


STAND_IN = {
    "algorithms/core/steering_pipeline.py": """
from transformers import AutoModelForCausalLM
class SteeringPipeline:
    def __init__(self, model_name_or_path, controls, device_map):
        self.name, self.controls = model_name_or_path, controls
    def steer(self):
        self.model = AutoModelForCausalLM.from_pretrained(self.name)
    def generate(self, input_ids, attention_mask, runtime_kwargs, **limits):
        written = self.model.generate(input_ids, attention_mask=attention_mask, **limits)
        return written[:, input_ids.shape[1] :]
""",
    "algorithms/output_control/sasa/control.py": """
from pathlib import Path
class Probe:
    def save(self, path):
        Path(path).write_text("{}")
class SASA:
    def __init__(self, beta, max_candidates, gen_wv_data=None, wv_path=None):
        assert (gen_wv_data is None) == Path(wv_path or "none").is_file()
        assert wv_path or (gen_wv_data["pos"] and gen_wv_data["neg"])
        self.probe = Probe()
""",
}
"""What the script calls of AISteer360, which is not installed here: no more than its shape."""


@pytest.mark.slow
def test_beside_aisteer360(tiny_folder, tmp_path):
    rows = rtp_rows(tmp_path / "rtp.jsonl")
    for name, text in STAND_IN.items():
        file = tmp_path / "source" / "aisteer360" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    model, _ = sasa.load(str(tiny_folder), device="cpu")
    tiny.boundary(model).save(tmp_path / "boundary")
    shown = run(
        *(
            "aisteer.py",
            "--source",
            tmp_path / "source",
            "--packages",
            tmp_path,
            "--prompts",
            rows,
            "--fit-rows",
            "0:12",
        ),
        *(
            "--rows",
            "12:",
            "--model",
            tiny_folder,
            "--boundary",
            tmp_path / "boundary",
            "--beta",
            1,
            "--beta",
            2,
        ),
        *(
            "--limit",
            2,
            "--rounds",
            2,
            "--tokens",
            3,
            "--scorer",
            "profanity",
            "--output",
            tmp_path / "sides.json",
        ),
    )
    assert "AISteer360, beta 2" in shown
    results = {
        row["side"]: row for row in json.loads((tmp_path / "sides.json").read_text())["results"]
    }
    assert len(results) == 5
    assert (
        results["plain, transformers 5"]["times_plain"]
        == results["plain, transformers 4"]["times_plain"]
        == 1
    )
    assert all(0 <= row["emt, profanity"]["value"] <= 1 for row in results.values())
