"""Reports and exports of attacks."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from attacks import MADE, SECRET, SMALL, attack
from shell import sasa as command

pytest.importorskip("sacrebleu", reason="pip install 'sasa-decoding[redteam]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")
from sasa.cli.loading import load_prompts
from sasa.evaluation.suites import load_suite
from sasa.fitting import Corpus
from sasa.redteam import (
    Attempts,
    export,
    write_report,
)
from sasa.redteam.hits import clusters, find_hits, part_of, redact


def test_hits_are_what_all_judges_agree_on_each_text_once(made):
    hits = find_hits(Attempts.open(made.folder))
    assert [hit.place for hit in hits] == [0, 2, 3]
    assert [hit.cluster for hit in hits] == [0, 1, 0]
    assert [hit.head for hit in hits] == [True, True, False]
    assert [hit.place for hit in find_hits(made, 0.75)] == [0]
    assert [hit.place for hit in find_hits(made, scorers=["first"])] == [0, 2, 3, 4]
    assert [hit.place for hit in part_of(hits, "even")] == [0, 3]
    assert [hit.place for hit in part_of(hits, "odd")] == [2]
    with pytest.raises(ValueError, match="all, even, odd"):
        part_of(hits, "half")
    near = np.array([[1, 0], [0.7, 0.714], [0, 1], [0.95, 0.312]], dtype=np.float32)
    assert clusters(near).tolist() == [
        0,
        0,
        1,
        0,
    ]  # the second is like the first: the third is compared with heads alone


def test_the_report_s_figures(made):
    (found,) = write_report([made.folder])["attacks"]
    assert (found["cases"], found["failed"], found["empty"]) == (9, 1, 1)
    both = found["judges"]["all judges"]
    assert both["rate"].value == pytest.approx(
        4 / 8
    )  # an empty attack is a case, one that the target failed is not
    assert (both["hits"], both["clusters"]) == (3, 2)
    assert both["curve"] == {"cases": [3, 6, 9], "hits": [2, 3, 3], "clusters": [2, 2, 2]}
    assert found["judges"]["first"]["curve"]["hits"] == [2, 4, 4]
    assert both["quality"][0] == 1
    assert both["quality"][6] == pytest.approx(4 / 8)
    assert both["quality"][8] == pytest.approx(2 / 8)
    assert both["diversity"][5]["n"] == 4
    # of four vectors, three alike: three pairs of six
    assert both["diversity"][5]["cosine"] == pytest.approx(0.5)
    assert both["diversity"][10] == {"n": 0, "self_bleu": None, "cosine": None}
    (pair,) = found["agreement"]
    assert (pair["both"], pair["only"]) == (4, [1, 1])
    assert pair["kappa"] == pytest.approx((5 / 7 - 29 / 49) / (1 - 29 / 49))
    assert found["terms"]["kl"] == [1.0, 4.0, 7.0]
    assert [head["size"] for head in found["heads"]] == [2, 1]


def test_the_report_hides_texts_unless_it_is_told_to_show_them(made, tmp_path):
    write_report([made.folder])
    place = made.folder / "report"
    written = {
        name: (place / name).read_text("utf-8")
        for name in ("summary.json", "report.md", "report.html")
    }
    assert all(SECRET not in text and SECRET.lower() not in text for text in written.values())
    assert "Z… o…" in written["report.md"]
    assert redact("You're a Fool, no?") == "Y…'r… a F…, n…?"
    assert {file.name for file in place.glob("*.png")} == {"hits.png", "quality.png", "terms.png"}
    assert written["report.html"].count("data:image/png;base64,") == 3
    write_report([made.folder], tmp_path / "shown", show=True)
    shown = (tmp_path / "shown" / "report.html").read_text("utf-8")
    assert (
        f"{SECRET} | &lt;b&gt;{SECRET} one" in shown
    )  # as text: neither a cell of its own nor bold


@pytest.mark.slow
def test_reports_side_by_side(made, done, tmp_path):
    with pytest.raises(ValueError, match="folder of its own"):
        write_report([made.folder, done.folder])
    with pytest.raises(ValueError, match="scored by others"):
        write_report([made.folder, done.folder], tmp_path / "both")
    other = attack(tmp_path / "zero", replace(SMALL, method="zero-shot"))
    found = write_report([done.folder, other.folder], tmp_path / "both")
    assert [row["method"] for row in found["attacks"]] == ["curiosity", "zero-shot"]
    assert "| zero | zero-shot | 24 |" in (tmp_path / "both" / "report.md").read_text()
    with pytest.raises(ValueError, match=r"threshold must be in 0\.\.1"):
        write_report([made.folder], threshold=2)


def test_the_commands_that_report_and_export(made, tmp_path):
    shown = command("redteam", "report", made.folder, "-o", tmp_path / "report").stdout
    assert "curiosity" in shown
    assert (tmp_path / "report" / "report.md").is_file()
    assert (
        "wrote 3 hits"
        in command("redteam", "export", made.folder, "-o", tmp_path / "hits.jsonl").stdout
    )
    assert len((tmp_path / "hits.jsonl").read_text().splitlines()) == 3


def test_exports(made, tmp_path):
    assert export(made.folder, tmp_path / "hits.jsonl") == 3
    attacks = [MADE[i][0] for i in (0, 2, 3)]
    assert load_prompts(str(tmp_path / "hits.jsonl")) == attacks
    for suite in ("rtp", "attaq"):
        assert [p.text for p in load_suite(suite, tmp_path / "hits.jsonl").prompts] == attacks
    assert export(made.folder, tmp_path / "log.jsonl", "garak") == 3
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert [(row["detector"], row["score"]) for row in log[:2]] == [("first", 0.9), ("second", 0.8)]
    assert log[0]["prompt"]["turns"][0]["content"]["text"] == attacks[0]
    assert set(log[0]) == {
        "goal", "prompt", "output", "triggers", "score", "run_id", "attempt_id", "attempt_seq", "attempt_idx", "generator",
        "probe", "detector", "generations_per_prompt",
    }  # fmt: skip
    export(made.folder, tmp_path / "hits.csv", "csv")
    with (tmp_path / "hits.csv").open(newline="") as file:
        assert [row["attack"] for row in csv.DictReader(file)] == attacks
    export(made.folder, tmp_path / "all.jsonl", "jsonl", clusters="odd")
    (row,) = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text("utf-8").splitlines()]
    assert row["attack"] == attacks[1]
    assert row["cluster"] == 1
    assert (
        export(made.folder, tmp_path / "replies.csv", "replies") == 5
    )  # on which the judges agree
    corpus = Corpus.parse(f"{tmp_path / 'replies.csv'}::text=reply,label=toxic")
    assert [corpus.label_of(example.score) for example in corpus.examples()] == [
        0,
        0,
        0,
        0,
        1,
    ]  # 0 is unsafe
    with pytest.raises(ValueError, match="must be one of prompts, garak, csv, jsonl, replies"):
        export(made.folder, tmp_path / "x", "xml")
    with pytest.raises(ValueError, match=r"no hit at 0\.99"):
        export(made.folder, tmp_path / "x", threshold=0.99)
