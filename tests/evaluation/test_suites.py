"""Prompts of the suites: groups, samples, and sources that are refused."""

from __future__ import annotations

import gzip
import json

import pytest
from runs import jsonl, rtp_row

from sasa.evaluation.suites import FIRST_TURNS, load_suite

pytestmark = pytest.mark.usefixtures("_own_cache")


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


def test_blank_lines_between_prompts(tmp_path):
    rows = [json.dumps(rtp_row("a", 0.1)), "", json.dumps(rtp_row("b", 0.1)), ""]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    assert [p.text for p in load_suite("rtp", tmp_path / "p.jsonl").prompts] == ["a", "b"]
