"""The benchmark harness: prompts, methods, scorers, metrics, the store, and the report."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from helpers import families

from sasa import Backtracking
from sasa.core.settings import PRIOR
from sasa.evaluation import metrics, registry, scorers, stages
from sasa.evaluation.likelihood import negative_log_likelihood
from sasa.evaluation.methods import method
from sasa.evaluation.reports.report import compare, write_report
from sasa.evaluation.run import Run
from sasa.evaluation.scorers import jigsaw
from sasa.evaluation.scorers.boundary import BoundaryScorer
from sasa.evaluation.settings import Settings
from sasa.evaluation.suites import FIRST_TURNS, Prompt, Suite, load_suite
from sasa.evaluation.world import World
from sasa.utils.jsonl import read
from sasa.utils.run_folder import SettingsDiffer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Scores of one test must not serve another."""
    monkeypatch.setenv("SASA_CACHE", str(tmp_path_factory.mktemp("cache")))


# Suites


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rtp_row(text, toxicity, challenging=False):
    return {"prompt": {"text": text, "toxicity": toxicity}, "challenging": challenging}


def test_rtp_groups_and_what_it_skips(tmp_path):
    rows = [
        rtp_row("a", 0.1),
        rtp_row("b", 0.5),
        rtp_row("c", None),
        rtp_row(" ", 0.9),
        rtp_row("d", 0.9, True),
    ]
    suite = load_suite("rtp", jsonl(tmp_path / "rtp.jsonl", rows))
    assert [(p.text, p.group) for p in suite.prompts] == [
        ("a", "nontoxic"),
        ("b", "toxic"),
        ("d", "challenging"),
    ]
    assert suite.skipped == {"without a toxicity score": 1, "with an empty prompt": 1}
    assert [p.text for p in load_suite("rtp", tmp_path / "rtp.jsonl", rows=(1, 3)).prompts] == ["b"]


def test_samples_are_even_seeded_and_in_order(tmp_path):
    rows = [rtp_row(f"{i}", 0.9 if i % 10 == 0 else 0.1) for i in range(100)]
    file = jsonl(tmp_path / "rtp.jsonl", rows)
    draw = load_suite("rtp", file, limit=30, seed=3).prompts
    assert sum(p.group == "toxic" for p in draw) == 10  # all that there are
    assert len(draw) == 30
    assert [int(p.text) for p in draw] == sorted(int(p.text) for p in draw)
    assert draw == load_suite("rtp", file, limit=30, seed=3).prompts
    assert draw != load_suite("rtp", file, limit=30, seed=4).prompts
    assert {p.group for p in load_suite("rtp", file, groups=["toxic"]).prompts} == {"toxic"}


def test_bold_from_the_files_of_its_release(tmp_path):
    (tmp_path / "gender_prompt.json").write_text(
        json.dumps(
            {"American_actors": {"A": ["A is an "]}, "American_actresses": {"B": ["B was ", " "]}}
        )
    )
    (tmp_path / "race_prompt.json").write_text(json.dumps({"Asian": {"C": ["C is "]}}))
    suite = load_suite("bold", tmp_path)
    assert {(p.text, p.group) for p in suite.prompts} == {
        ("A is an", "gender/American_actors"),
        ("B was", "gender/American_actresses"),
        ("C is", "race/Asian"),
    }
    assert len(load_suite("bold", tmp_path, groups=["gender"]).prompts) == 2


def test_attaq_and_the_dialogues_that_stand_in_for_it(tmp_path):
    (tmp_path / "attaq.csv").write_text("label,input\npii,Where does she live?\nviolence,\n")
    suite = load_suite("attaq", tmp_path / "attaq.csv")
    assert [(p.text, p.group) for p in suite.prompts] == [("Where does she live?", "pii")]
    with gzip.open(tmp_path / "hh.jsonl.gz", "wt") as file:
        file.write(
            json.dumps({"chosen": "\n\nHuman: How\n\nso?\n\nAssistant: Thus.\n\nHuman: Oh."}) + "\n"
        )
    suite = load_suite("attaq", tmp_path / "hh.jsonl.gz")
    assert [(p.text, p.group) for p in suite.prompts] == [("How\n\nso?", FIRST_TURNS)]
    assert "in AttaQ's place" in suite.source


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "a"}], {}, "row 0 has no 'prompt'; it has: text"),
        (
            [rtp_row("a", 0.1)],
            {"groups": ["harmful"]},
            "no group harmful in this source; there are: nontoxic",
        ),
        ([rtp_row("a", None)], {}, "1 rows without a toxicity score"),
        ([rtp_row("a", 0.1)], {"limit": 0}, "limit must be >= 1"),
    ],
)
def test_bad_sources_are_named(tmp_path, rows, options, message):
    with pytest.raises(ValueError, match=message):
        load_suite("rtp", jsonl(tmp_path / "x.jsonl", rows), **options)


def test_unknown_suites_and_files(tmp_path):
    with pytest.raises(ValueError, match="there are: rtp, bold, attaq"):
        load_suite("real", tmp_path)
    with pytest.raises(FileNotFoundError):
        load_suite("rtp", tmp_path / "missing.jsonl")
    (tmp_path / "broken.jsonl").write_text(json.dumps(rtp_row("a", 0.1)) + "\nnot json\n")
    with pytest.raises(ValueError, match=r"row 1: \(line 2\) not JSON"):
        load_suite("rtp", tmp_path / "broken.jsonl")


# Metrics, against sums done by hand


def test_toxicity_by_hand():
    found = metrics.toxicity(
        np.array([[0.1, 0.6, 0.2], [0.3, 0.1, 0.2], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
    )
    assert found["emt"].value == pytest.approx((0.6 + 0.3 + 0.5 + 0.0) / 4)
    assert found["toxic_rate"].value == 0.5
    assert found["mean_toxicity"].value == pytest.approx((0.3 + 0.2 + 0.5 + 0.0) / 4)


def test_perplexity_by_hand():
    found = metrics.perplexity(np.array([2.0, 4.0]), np.array([1, 2]))
    assert found.value == pytest.approx(math.exp(2.0))


def test_words_by_hand():
    texts = ["a b a b", "a b c"]
    assert metrics.distinct(texts, 1) == 3 / 7
    assert metrics.distinct(texts, 2) == 3 / 7  # ab ba bc
    assert metrics.distinct(texts, 3) == 3 / 7  # aba bab abc
    assert metrics.repetition("a b a b") == pytest.approx(1 / 3)
    assert metrics.repetition("word") == 0
    assert metrics.distinct(["", ""], 2) == 0


def test_intervals_cover():
    """Of 95 % intervals for the mean of skewed values, close to 95 % hold the truth."""
    draw = np.random.default_rng(0)
    held = 0
    for i in range(200):
        found = metrics.estimate(draw.beta(0.5, 1.5, 80), seed=i)
        held += found.low <= 0.25 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_intervals_of_ratios_and_differences_cover():
    draw = np.random.default_rng(0)
    ratios = gaps = 0
    for i in range(100):
        tokens = draw.integers(5, 40, 60)
        found = metrics.perplexity(draw.normal(2, 0.5, 60) * tokens, tokens)
        ratios += found.low <= math.exp(2) <= found.high
        gap = metrics.difference(draw.binomial(1, 0.3, 90), draw.binomial(1, 0.2, 60), seed=i)
        gaps += gap.low <= 0.1 <= gap.high
    assert ratios >= 88
    assert gaps >= 88


def test_paired_tests():
    draw = np.random.default_rng(0)
    plain = draw.uniform(0.4, 0.9, 40)
    assert metrics.against(plain, plain) == {"change": 0.0, "relative": 0.0, "p": 1.0}
    better = metrics.against(plain, plain - draw.uniform(0.05, 0.2, 40))
    assert better["p"] < 1e-4
    assert better["relative"] == pytest.approx(better["change"] / plain.mean())
    assert math.isnan(metrics.against(plain * 0, plain)["relative"])
    assert better["change"] < 0


def test_relative_changes_are_of_pairs():
    draw = np.random.default_rng(0)
    plain = draw.uniform(0.1, 0.9, 40)
    found = metrics.change(
        plain, 1.2 * plain
    )  # a fifth more for every prompt, however far apart prompts are
    assert [found.value, found.low, found.high] == pytest.approx([0.2] * 3)
    tokens = draw.integers(5, 40, 40)
    before = np.stack([draw.normal(2, 0.5, 40) * tokens, tokens], 1)
    after = np.stack([before[:, 0] + 0.1 * tokens, tokens], 1)
    found = metrics.perplexity_change(before, after)
    assert [found.value, found.low, found.high] == pytest.approx([math.exp(0.1) - 1] * 3)
    longer = np.array([[4.0, 4], [2.0, 1]])  # exp(6 / 5) for exp(4 / 2)
    assert metrics.perplexity_change(np.array([[2.0, 1], [2.0, 1]]), longer).value == pytest.approx(
        math.exp(-0.8) - 1
    )
    assert math.isnan(metrics.change(plain * 0, plain).value)
    rare = metrics.change(np.array([1.0, 0.0, 0.0]), np.array([2.0, 0.0, 0.0]))
    assert rare.value == 1
    assert math.isnan(rare.low)


# Scorers


class Counting:
    name, version = "counting", "1"

    def __init__(self):
        self.seen = []

    def score(self, texts):
        self.seen += texts
        return np.array([len(t) / 10 for t in texts])


def test_no_text_is_scored_twice():
    judge = Counting()
    assert scorers.scored(judge, ["a", "bb", "a"]).tolist() == [0.1, 0.2, 0.1]
    assert scorers.scored(judge, ["bb", "ccc"]).tolist() == [0.2, pytest.approx(0.3)]
    assert sorted(judge.seen) == ["a", "bb", "ccc"]
    judge.version = "2"  # other scores: everything anew
    scorers.scored(judge, ["a"])
    assert judge.seen[-1] == "a"


def test_scores_outside_of_0_to_1_are_refused():
    with pytest.raises(ValueError, match="outside"):
        scorers.scored(Counting(), ["a" * 11])


@pytest.mark.parametrize(
    ("name", "told"),
    [("tox-block", None), ("toxic-comment-classifier", 0.9889402985572815)],
    ids=lambda x: str(x)[:9],
)
def test_judges_of_the_package_index(name, told):
    wheel = jigsaw.WHEELS[name]
    if importlib.util.find_spec(wheel.module) is None:
        pytest.skip(f"{wheel.package} is not installed: make setup installs it")
    judge = scorers.scorer(name)
    texts = [
        "You are so dumb and stupid!",
        "Good morning my friend, have a fantastic day",
        "",
    ] * 100
    scores = judge.score(texts)
    assert scores.dtype == np.float64
    assert scores.shape == (300,)
    assert scores[0] > 0.95
    assert (scores[1:3] < 0.1).all()
    if (
        told is not None
    ):  # what the package's own documentation says of this sentence, by its own code
        assert scores[0] == pytest.approx(told, abs=1e-6)
    np.testing.assert_allclose(
        scores.reshape(-1, 3), np.broadcast_to(scores[:3], (100, 3)), atol=1e-6
    )
    assert judge.score([]).shape == (0,)


def test_judge_of_another_version(monkeypatch):
    wheel = replace(jigsaw.WHEELS["tox-block"], package="numpy==0.1", module="numpy")
    monkeypatch.setitem(jigsaw.WHEELS, "tox-block", wheel)
    with pytest.raises(ValueError, match=r"reads numpy==0\.1, installed is"):
        scorers.scorer("tox-block")


def test_judge_that_is_not_installed(monkeypatch):
    wheel = replace(jigsaw.WHEELS["tox-block"], module="no_such_module")
    monkeypatch.setitem(jigsaw.WHEELS, "tox-block", wheel)
    with pytest.raises(ImportError, match="pip install h5py && pip install --no-deps tox-block=="):
        scorers.scorer("tox-block")


def test_profanity():
    pytest.importorskip("profanity_check")
    low, high = scorers.scored(
        scorers.scorer("profanity"), ["good morning", "you stupid fucking bitch"]
    )
    assert low < 0.2 < 0.8 < high


def test_a_judge_from_labels_of_ones_own(corpus_file, tmp_path):
    judge = scorers.scorer(f"words:{corpus_file}::text=comment,label=toxic")
    bad, good = judge.score(["XQZ QXQ ZZX", "calm and bright and kind"])
    assert bad > 0.8
    assert good < 0.2
    assert judge.name == "words:comments.csv"
    assert len(judge.score([])) == 0
    assert (
        scorers.scorer(f"words:{corpus_file}::text=comment,label=toxic,rows=0:100").version
        != judge.version
    )
    with pytest.raises(ValueError, match="both classes"):
        scorers.scorer(f"words:{corpus_file}::text=comment,label=toxic,rows=1:3")


def test_any_classifier_of_transformers(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "fine", 1: "Toxic"}, label2id={"fine": 0, "Toxic": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    texts = ["abc", "a longer text"]
    toxic = scorers.scorer(f"hf:{tmp_path}").score(texts)
    fine = scorers.scorer(f"hf:{tmp_path}#fine").score(texts)
    np.testing.assert_allclose(toxic + fine, 1, atol=1e-6)
    with pytest.raises(ValueError, match="one of: fine, Toxic"):
        scorers.scorer(f"hf:{tmp_path}#rude")


def test_a_classifier_without_positions_reads_texts_of_any_length(tmp_path):
    from transformers import XLNetConfig, XLNetForSequenceClassification

    config = XLNetConfig(
        vocab_size=tiny.VOCABULARY,
        d_model=16,
        n_layer=1,
        n_head=2,
        d_inner=16,
        id2label={0: "fine", 1: "toxic"},
    )
    XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert scorers.scorer(f"hf:{tmp_path}").score(["a" * 600]).shape == (1,)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_classifier_reads_texts_of_any_length(tmp_path, kind):
    """Though its tokenizer names no limit: as many tokens as it has positions for."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        kind, vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34, pad_token_id=1, id2label={0: "fine", 1: "toxic"},
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    judge = scorers.scorer(f"hf:{tmp_path}")
    scorers.try_scorer(judge)
    fits = "a" * (34 if kind == "bert" else 32)
    long, cut, empty = judge.score([fits + "bcd", fits, ""])
    assert long == pytest.approx(cut)
    assert empty == 0


def test_judges_are_tried_before_the_long_work(monkeypatch, tiny_folder, tmp_path):
    class Fragile:
        name, version = "fragile", "1"

        def score(self, texts):
            return np.array([1 / len(text) for text in texts])

    monkeypatch.setitem(registry.SCORERS, "fragile", SimpleNamespace(make=Fragile))
    monkeypatch.setattr("sasa.load", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setenv("SASA_CACHE", str(tmp_path / "cache"))
    from typer.testing import CliRunner

    from sasa.cli import app

    file = jsonl(tmp_path / "p.jsonl", [rtp_row("a", 0.1)])
    done = CliRunner().invoke(
        app, ["bench", "rtp", "-p", str(file), "-s", "fragile", "-o", str(tmp_path / "run")]
    )
    assert "fragile failed on a long or an empty text: division by zero" in str(done.exception)


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


def test_attaq_of_other_forms(tmp_path):
    (tmp_path / "a.csv").write_text("label,input\npii,fine?\n,why?\n")
    suite = load_suite("attaq", tmp_path / "a.csv")
    assert [p.text for p in suite.prompts] == ["fine?"]
    assert suite.skipped == {"without a label": 1}
    rows = [
        {"chosen": [{"role": "user", "content": "How?"}]},
        {"chosen": "\r\n\r\nHuman: yes\r\n\r\nAssistant: b"},
    ]
    assert [p.text for p in load_suite("attaq", jsonl(tmp_path / "d.jsonl", rows)).prompts] == [
        "How?",
        "yes",
    ]


def test_a_cache_of_scores_that_is_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("SASA_CACHE", str(tmp_path))
    judge = scorers.scorer("profanity")
    scorers.scored(judge, ["a"])
    (file,) = (tmp_path / "scores").iterdir()
    file.write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match=f"the cache of scores {file} is damaged"):
        scorers.scored(judge, ["a"])


def test_blank_lines_between_prompts(tmp_path):
    rows = [json.dumps(rtp_row("a", 0.1)), "", json.dumps(rtp_row("b", 0.1)), ""]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    assert [p.text for p in load_suite("rtp", tmp_path / "p.jsonl").prompts] == ["a", "b"]


def test_unknown_scorers_and_methods_say_what_there_is():
    with pytest.raises(
        ValueError,
        match=r"profanity, tox-block, toxic-comment-classifier, detoxify, hap-38m, .*, hf:MODEL",
    ):
        scorers.scorer("gut feeling")
    with pytest.raises(ValueError, match="unknown scorer 'perspective'"):
        scorers.scorer("perspective")
    with pytest.raises(ValueError, match="best-of:N"):
        method("pray")
    for bad in (
        "sasa:-1",
        "sasa:x",
        "sasa:2:cubed",
        "sasa:2:raw:1",
        "sasa:2::x",
        "best-of:1",
        "plain:2",
        "backtrack:1",
        "sasa+backtrack:2:x",
        "sasa+backtrack:-1",
    ):
        with pytest.raises(ValueError, match=re.escape(bad)):
            method(bad)


# Methods and the store


@pytest.fixture
def world(model, tokenizer):
    return World(
        model,
        tokenizer,
        tiny.boundary(model, pooling="mean"),
        Settings(3, 6, 1.0, 10, 0.95, words=("the",)),
    )


SUITE = Suite(
    "rtp",
    "here",
    tuple(
        Prompt(f"p{i}", "abcdefgh "[: 2 + i % 5] * 2, "toxic" if i % 2 else "nontoxic")
        for i in range(7)
    ),
    {"without a toxicity score": 1},
)


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


# The command line


@pytest.fixture(scope="module")
def command_line(tiny_folder, tmp_path_factory):
    """A boundary for the tiny model and prompts, and the options that name them."""
    from sasa.models.load import load

    folder = tmp_path_factory.mktemp("bench")
    model, _ = load(tiny_folder, "cpu")
    tiny.boundary(model).save(folder / "boundary")
    rows = [rtp_row(f"prompt number {i}", 0.9 if i % 2 else 0.1) for i in range(40)]
    jsonl(folder / "rtp.jsonl", rows)
    options = [
        "rtp",
        "-p",
        folder / "rtp.jsonl",
        "-m",
        tiny_folder,
        "-b",
        folder / "boundary",
        "-c",
        3,
        "-n",
        8,
    ]
    return [*options, "--device", "cpu", "--batch-size", 2, "-M", "plain", "-M", "sasa:3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-s", "boundary"], "cannot be the only scorer"),
        (["-s", "nobody"], "unknown scorer"),
        (["-M", "nothing"], "unknown method"),
        (["--rows", "9"], "START:STOP"),
        (["--groups", "rude"], "there are: nontoxic, toxic"),
    ],
)
def test_bad_options_before_any_work(command_line, tmp_path, options, message):
    from typer.testing import CliRunner

    from sasa.cli import app

    result = CliRunner().invoke(
        app, ["bench", *map(str, command_line), "-o", str(tmp_path / "x"), *options]
    )
    assert message in str(result.exception)
    assert not (tmp_path / "x" / "run.json").exists()


def test_a_word_list_and_a_judge_of_the_users_own(command_line, tiny_folder, tmp_path):
    pytest.importorskip("profanity_check")
    from typer.testing import CliRunner

    from sasa.cli import app

    (tmp_path / "words.txt").write_text("bright\n\ncalm\n")
    run = [
        "bench",
        *map(str, command_line),
        "-M",
        "words",
        "--limit",
        "4",
        "-o",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(
        app, [*run, "--words", str(tmp_path / "words.txt"), "--judge", str(tiny_folder)]
    )
    assert result.exit_code == 0, result.exception
    words = json.loads((tmp_path / "run" / "summary.json").read_text())["runs"][0]["methods"][
        "words"
    ]["figures"]
    figures = [value["value"] for name, value in words.items() if name.startswith("perplexity")]
    assert len(figures) == 2
    assert min(figures) > 1
    texts = (tmp_path / "run" / "completions" / "words.jsonl").read_text().lower()
    assert "bright" not in texts
    again = CliRunner().invoke(
        app, ["bench", "report", str(tmp_path / "run"), "-o", str(tmp_path / "again")]
    )
    assert again.exit_code == 0, again.exception
    assert "words" in (tmp_path / "again" / "report.md").read_text()
    for missing in (tmp_path / "none.txt", tmp_path / "empty.txt"):
        (tmp_path / "empty.txt").write_text("\n")
        result = CliRunner().invoke(app, [*run, "--words", str(missing)])
        assert isinstance(result.exception, FileNotFoundError | ValueError)


def test_a_folder_that_cannot_be_written(command_line, tmp_path):
    from typer.testing import CliRunner

    from sasa.cli import app

    (tmp_path / "file").touch()
    result = CliRunner().invoke(
        app, ["bench", *map(str, command_line), "-o", str(tmp_path / "file" / "run")]
    )
    assert isinstance(result.exception, OSError)


def test_the_weight_of_one_boundary_counts(command_line, tmp_path):
    pytest.importorskip("profanity_check")
    from typer.testing import CliRunner

    from sasa.cli import app

    at = command_line.index("-b") + 1
    written = {}
    for weight, strength in (("", "sasa:1"), ("::3", "sasa:1"), ("", "sasa:3")):
        line = [
            *command_line[:-4],
            "-M",
            strength,
            "--limit",
            "4",
            "-o",
            tmp_path / f"{weight}{strength}",
        ]
        line[at] = f"{line[at]}{weight}"
        result = CliRunner().invoke(app, ["bench", *map(str, line)])
        assert result.exit_code == 0, result.exception
        rows = (
            tmp_path / f"{weight}{strength}" / "completions" / f"{strength.replace(':', '@')}.jsonl"
        ).read_text()
        written[weight, strength] = [json.loads(row)["tokens"] for row in rows.splitlines()]
    assert written["::3", "sasa:1"] == written["", "sasa:3"] != written["", "sasa:1"]


def test_dry_runs_fix_nothing(command_line, tmp_path):
    pytest.importorskip("profanity_check")
    from typer.testing import CliRunner

    from sasa.cli import app

    result = CliRunner().invoke(
        app, ["bench", *map(str, command_line), "-o", str(tmp_path), "--dry-run"]
    )
    assert result.exit_code == 0, result.exception
    assert "minutes" in result.output
    assert not list(tmp_path.iterdir())
