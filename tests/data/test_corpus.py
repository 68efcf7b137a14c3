import gzip
import json
from collections import Counter

import pandas as pd
import pytest

from sasa.fitting import Corpus

ROWS = [("you are kind", 0.1), ("you are vile", 0.9), ("meh", 0.4)]


def write(tmp_path, name, rows=ROWS, columns=("comment", "score")):
    frame = pd.DataFrame(rows, columns=columns)
    path = tmp_path / name
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    elif ".jsonl" in name:
        text = "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    else:
        frame.to_csv(path, index=False, sep="\t" if name.endswith(".tsv") else ",")
    return str(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.v2.jsonl.gz", "a.parquet"])
def test_every_kind_of_file(tmp_path, name):
    corpus = Corpus(write(tmp_path, name), text="comment", label="score")
    assert [(e.text, e.score) for e in corpus.examples()] == ROWS


def test_nested_columns_and_prompts(tmp_path):
    path = tmp_path / "n.jsonl"
    path.write_text(json.dumps({"a": {"text": "yes", "bad": 1}, "ask": "ok?"}))
    corpus = Corpus(str(path), text="a.text", label="a.bad", prompt="ask")
    assert [(e.text, e.score) for e in corpus.examples()] == [(("ok?", "yes"), 1.0)]


def test_responses_to_one_prompt_stay_together(tmp_path):
    rows = [{"q": "same?", "a": f"answer {i}", "bad": i % 2} for i in range(9)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = Corpus(str(tmp_path / "p.jsonl"), text="a", prompt="q", label="bad")
    assert len({e.group for e in corpus.examples()}) == 1


def test_dialogues(tmp_path):
    begun = "\n\nHuman: How do I whittle?\n\nAssistant: With a knife.\n\nHuman: And then?"
    rows = [
        {"chosen": f"{begun}\n\nAssistant: Slowly.", "rejected": f"{begun}\n\nAssistant: Stab."},
        {"chosen": f"{begun}\n\nAssistant: Ask.", "rejected": f"{begun}\n\nAssistant: "},
    ]
    (tmp_path / "hh.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus, skipped = Corpus("hh-rlhf", path=str(tmp_path / "hh.jsonl")), Counter()
    found = list(corpus.examples(skipped=skipped))
    prompt = f"{begun.strip()}\n\nAssistant:"
    assert [(e.text, e.score) for e in found] == [
        ((prompt, " Slowly."), 0.0),
        ((prompt, " Stab."), 1.0),
        ((prompt, " Ask."), 0.0),
    ]
    assert {e.group for e in found} == {"Human: How do I whittle?"}
    assert skipped == {"no reply": 1}
    (tmp_path / "no.jsonl").write_text(json.dumps({"chosen": "a"}))
    with pytest.raises(ValueError, match="row 0: expected the dialogues chosen and rejected"):
        list(Corpus("hh-rlhf", path=str(tmp_path / "no.jsonl")).examples())


def test_data_sets_of_the_hub(monkeypatch):
    """A real data set, in the place of one that the Hub would give."""
    import datasets

    rows = {
        "text": [f"t{i}" for i in range(30)],
        "about": [{"kind": "ok" if i % 3 else "Bad"} for i in range(30)],
        "a.b": [1] * 30,
    }
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, split, **_: datasets.Dataset.from_dict(rows)
    )
    corpus = Corpus(
        "me/data-v1.5", text="text", label="about.kind", positive=("bad",), rows="3:20", limit=9
    )
    found = [(e.text, e.score) for e in corpus.examples()]
    assert len(found) == 9
    assert all(
        3 <= int(text[1:]) < 20 and score == (int(text[1:]) % 3 == 0) for text, score in found
    )
    assert {e.score for e in Corpus("me/data", text="text", label="a.b").examples()} == {1.0}
    with pytest.raises(ValueError, match=r"positive has 'worse', .*'ok' \(20\), 'Bad' \(10\)"):
        list(
            Corpus("me/data", text="text", label="about.kind", positive=("bad", "worse")).examples()
        )
    with pytest.raises(
        ValueError, match=r"has no column 'tekst'; it has text, about, about\.kind, a\.b"
    ):
        list(Corpus("me/data", text="tekst", label="a.b").examples())


@pytest.mark.parametrize("text", [5, ["a"], {"b": 1}])
def test_texts_that_are_none_in_real_toxicity_prompts(tmp_path, text):
    row = {
        "prompt": {"text": text, "toxicity": 0.1},
        "continuation": {"text": "x", "toxicity": 0.1},
    }
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    for segment in ("prompt", "continuation", "pair"):
        corpus = Corpus("rtp", path=str(tmp_path / "r.jsonl"), segments=(segment,))
        if text == 5:
            assert all("5" in str(e.text) or e.text == "x" for e in corpus.examples())
        else:
            with pytest.raises(ValueError, match=r"row 0: the column 'prompt\.text' holds a"):
                list(corpus.examples())


def test_scores_out_of_range_in_real_toxicity_prompts(tmp_path):
    part = {"text": "x", "toxicity": 73.0}
    (tmp_path / "r.jsonl").write_text(json.dumps({"prompt": part, "continuation": part}))
    with pytest.raises(ValueError, match=r"corpus rtp, row 0: label 73.0 is not in \[0, 1\]"):
        list(Corpus("rtp", path=str(tmp_path / "r.jsonl")).examples())


def test_rows_keep_their_numbers_when_some_are_drawn(tmp_path):
    path = write(tmp_path, "n.csv", [(f"t{i}", 9.0) for i in range(50)])
    with pytest.raises(ValueError, match="row ") as error:
        list(Corpus(path, text="comment", label="score", rows="20:50", limit=5).examples())
    assert 20 <= int(str(error.value).split("row ")[1].split(":")[0]) < 50


@pytest.mark.parametrize(
    ("labels", "settings", "scores"),
    [
        ([True, False], {}, [1.0, 0.0]),
        (["toxic", "safe"], {}, [1.0, 0.0]),
        (["BAD", "NOT_BAD"], {"positive": ["BAD"]}, [1.0, 0.0]),
        ([0, 1, 2], {"positive": ["0", "1"]}, [1.0, 1.0, 0.0]),
        ([1, 3, 5], {"low": 1, "high": 5}, [0.0, 0.5, 1.0]),
        (["1", "0"], {}, [1.0, 0.0]),
    ],
)
def test_labels_as_people_write_them(tmp_path, labels, settings, scores):
    path = write(tmp_path, "l.csv", [(f"text {i}", value) for i, value in enumerate(labels)])
    assert [
        e.score for e in Corpus(path, text="comment", label="score", **settings).examples()
    ] == scores


def test_the_grey_zone():
    corpus = Corpus("x", unsafe_from=0.6, safe_below=0.3)
    assert [corpus.label_of(s) for s in (0.0, 0.29, 0.3, 0.59, 0.6, 1.0)] == [
        1,
        1,
        None,
        None,
        0,
        0,
    ]
    assert [Corpus("x").label_of(s) for s in (0.49, 0.5)] == [1, 0]


def test_rows_and_limit(tmp_path):
    path = write(tmp_path, "r.csv", [(f"t{i}", 0.0) for i in range(50)])
    base = dict(text="comment", label="score")
    assert [e.text for e in Corpus(path, rows="10:13", **base).examples()] == ["t10", "t11", "t12"]
    some = [e.text for e in Corpus(path, rows="10:40", limit=5, **base).examples(seed=1)]
    assert len(set(some)) == 5
    assert some == [e.text for e in Corpus(path, rows="10:40", limit=5, **base).examples(seed=1)]
    assert some != [e.text for e in Corpus(path, rows="10:40", limit=5, **base).examples(seed=2)]
    assert all(10 <= int(t[1:]) < 40 for t in some)
    with pytest.raises(ValueError, match="rows 60:70 is empty, there are 50 rows"):
        list(Corpus(path, rows="60:70", **base).examples())
    with pytest.raises(ValueError, match="rows must be START:STOP"):
        list(Corpus(path, rows="a:b", **base).examples())


def rtp_file(tmp_path):
    rows = [
        {
            "prompt": {"text": "So he", "toxicity": 0.2},
            "continuation": {"text": " left", "toxicity": 0.7},
        },
        {
            "prompt": {"text": "And she", "toxicity": None},
            "continuation": {"text": " sang", "toxicity": 0.0},
        },
    ]
    for row in rows:
        row["continuation"]["threat"] = 1 - row["continuation"]["toxicity"]
    path = tmp_path / "rtp.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_real_toxicity_prompts(tmp_path):
    skipped = Counter()
    corpus = Corpus("rtp", path=rtp_file(tmp_path), segments=("prompt", "continuation", "pair"))
    found = list(corpus.examples(skipped=skipped))
    assert [(e.text, e.score) for e in found] == [
        ("So he", 0.2),
        (" left", 0.7),
        (("So he", " left"), 0.7),
        (" sang", 0.0),
        (("And she", " sang"), 0.0),
    ]
    assert skipped == {"no score or text": 1}
    assert len({e.group for e in found[:3]}) == 1, (
        "a prompt and its continuation must not be parted"
    )


def test_another_attribute_of_real_toxicity_prompts(tmp_path):
    path = rtp_file(tmp_path)
    threats = Corpus.parse(f"rtp::path={path},label=threat,segments=continuation").examples()
    assert [(e.text, e.score) for e in threats] == [(" left", pytest.approx(0.3)), (" sang", 1.0)]
    with pytest.raises(
        ValueError,
        match=r"row 0: expected prompt and continuation with text and threat, got .*toxicity",
    ):
        list(Corpus("rtp", path=path, label="threat").examples())


@pytest.mark.parametrize(
    "columns", [("comment_text", "toxic"), ("comment_text", "target"), ("text", "toxicity")]
)
def test_jigsaw_in_its_three_schemas(tmp_path, columns):
    path = write(tmp_path, "jigsaw.csv", columns=columns)
    assert [(e.text, e.score) for e in Corpus("jigsaw", path=path).examples()] == ROWS


def test_toxigen_is_scored_from_one_to_five(tmp_path):
    path = write(tmp_path, "tg.parquet", [("a", 1.0), ("b", 4.0)], ("text", "toxicity_human"))
    assert [e.score for e in Corpus("toxigen", path=path).examples()] == [0.0, 0.75]


def test_empty_texts_are_counted(tmp_path):
    skipped = Counter()
    path = write(tmp_path, "e.jsonl", [("", 0.1), ("  ", 0.1), ("a", 0.1)])
    assert [
        e.text for e in Corpus(path, text="comment", label="score").examples(skipped=skipped)
    ] == ["a"]
    assert skipped == {"empty text": 2}


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([("a", None), ("b", 1.0)], {}, "row 0: the label is missing or NaN"),
        ([("a", 0.0), ("b", float("nan"))], {}, "row 1: the label is missing or NaN"),
        ([("a", 7.0)], {}, r"row 0: label 7.0 is not in \[0, 1\]; give low= and high="),
        ([("a", "nasty")], {}, "row 0: label 'nasty' is not a number; say which labels are unsafe"),
        (ROWS, {"label": "toxic"}, "has no column 'toxic'; it has comment, score"),
        (ROWS, {"text": None}, "name its text and label columns; it has comment, score"),
    ],
)
def test_bad_tables_say_what_is_wrong(tmp_path, rows, settings, message):
    path = write(tmp_path, "bad.csv", rows)
    with pytest.raises(ValueError, match=message):
        list(Corpus(path, **({"text": "comment", "label": "score"} | settings)).examples())


def test_files_that_are_not_there_or_not_readable(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at nowhere\.csv"):
        list(Corpus("nowhere.csv", text="a", label="b").examples())
    (tmp_path / "e.csv").write_text("")
    with pytest.raises(ValueError, match="is empty or cannot be read as csv"):
        list(Corpus(str(tmp_path / "e.csv"), text="a", label="b").examples())
    (tmp_path / "h.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="is empty"):
        list(Corpus(str(tmp_path / "h.csv"), text="a", label="b").examples())
    with pytest.raises(FileNotFoundError, match="Give a file: jigsaw::path=FILE"):
        list(Corpus("jigsaw").examples())
    path = write(tmp_path, "x.csv")
    with pytest.raises(ValueError, match="corpus rtp, row 0: expected prompt and continuation"):
        list(Corpus("rtp", path=path).examples())


def test_the_command_lines_form():
    corpus = Corpus.parse("d/t.csv::text=tweet,label=class,positive=0+1,limit=10,safe_below=0.25")
    assert corpus == Corpus(
        "d/t.csv", text="tweet", label="class", positive=("0", "1"), limit=10, safe_below=0.25
    )
    assert Corpus(**corpus.to_dict()) == corpus
    with pytest.raises(ValueError, match="expected name=value with a name of: path, text"):
        Corpus.parse("a.csv::colour=red")
    with pytest.raises(ValueError, match=r"limit in .* must be a number, got 'ten'"):
        Corpus.parse("a.csv::limit=ten")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unsafe_from": 0}, "unsafe_from must be in"),
        ({"safe_below": 0.7}, "safe_below must be in"),
        ({"low": 1, "high": 1}, "low must be below high"),
        ({"limit": 0}, "limit must be >= 1"),
        ({"segments": ["prompts"]}, "segments must be some of prompt, continuation, pair"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Corpus("x", **settings)


def test_replies_labelled_in_their_context(tmp_path):
    rows = [("how?", "so", "Safe"), ("how?", "thus", "Unsafe")]
    corpus = Corpus(
        "diasafety", path=write(tmp_path, "d.jsonl", rows, ("context", "response", "label"))
    )
    assert [(e.text, e.score) for e in corpus.examples()] == [
        (("how?", "so"), 0.0),
        (("how?", "thus"), 1.0),
    ]
    assert set(corpus.to_dict()) == {"source", "path"}
    assert Corpus("diasafety", positive=("Safe",)).positive == ("Safe",)


def test_continuations_know_how_their_prompts_were_scored(tmp_path):
    path = tmp_path / "rtp.jsonl"
    sides = {
        "prompt": {"text": "go", "toxicity": 0.2},
        "continuation": {"text": " on", "toxicity": 0.7},
    }
    path.write_text(json.dumps(sides))
    pair, *alone = (
        list(Corpus("rtp", path=str(path), segments=(s,)).examples())
        for s in ("pair", "prompt", "continuation")
    )
    assert (pair[0].text, pair[0].score, pair[0].prompt_score) == (("go", " on"), 0.7, 0.2)
    assert [part[0].prompt_score for part in alone] == [None, None]
