"""Files and arguments that nobody wrote for us: what comes of them is right, or an error in words; never a traceback."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sasa import Boundary
from sasa.cli.loading import read_prompts
from sasa.data.tables import Format, open_table
from sasa.evaluation.run import Run
from sasa.evaluation.suites import load_suite
from sasa.fitting import Corpus
from sasa.fitting.identity import load_people
from sasa.fitting.recipe import Recipe
from sasa.redteam.store import RECORD, Attempts

CLEAR = (ValueError, OSError, ImportError)
"""What the command line shows as one line."""


def often(examples):
    """So many tries; SASA_FUZZ=100 in the environment makes a hundred times as many."""
    times = int(os.environ.get("SASA_FUZZ", "1"))
    return settings(
        max_examples=examples * times, deadline=None, suppress_health_check=list(HealthCheck)
    )


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
texts = st.one_of(
    words,
    st.sampled_from(
        ['"', '""', 'a"b', "a\nb", "a,b", "a\tb", "null", "NA", "1.0", "\ufeff", " ", "\\"]
    ),
)
pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b'"',
                b",",
                b"\t",
                b"\n",
                b"\r",
                b"\\",
                b"\x00",
                b"\xff",
                b"\xef\xbb\xbf",
                b"\xff\xfe",
                b"{",
                b"[",
                b"]}",
            ]
        ),
        st.sampled_from(
            [
                b"text",
                b"label",
                b'{"text": "a", "label": 1}',
                b"prompt",
                b'{"prompt": "a"}',
                b"1",
                b"\\ud83d",
                b": ",
            ]
        ),
        st.binary(max_size=6),
    ),
    max_size=30,
).map(b"".join)


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def on_disk(name, content):
    """A file of its own in a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=on_disk.folder))
    (folder / name).write_bytes(content)
    return folder / name


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory):
    on_disk.folder = tmp_path_factory.mktemp("fuzz")


def clearly(function):
    """Its result, or None where it ends in a clear error, which says something."""
    try:
        return function()
    except CLEAR as error:
        if not str(error):
            raise AssertionError("an error that says nothing") from error
        return None


@given(
    rows=st.lists(st.tuples(texts, texts, st.sampled_from("01")), min_size=1, max_size=8),
    name=st.sampled_from(["t.csv", "t.tsv"]),
)
@often(200)
def test_tables_that_quote_rightly_are_read_as_they_were_written(rows, name):
    """Whatever is in their cells; or else they are refused, and `quotes=double` reads them."""
    content = io.StringIO(newline="")
    writer = csv.writer(content, delimiter="\t" if name.endswith(".tsv") else ",")
    writer.writerows([("note", "text", "label"), *rows])
    file = on_disk(name, content.getvalue().encode())
    if "\0" in content.getvalue():
        assert clearly(lambda: list(open_table(file).rows())) is None
        return
    for form in (None, Format(quotes="double")):
        found = clearly(lambda form=form: list(open_table(file, form).rows()))
        assert form is None or found is not None
        if found is not None:
            assert [tuple(v or "" for v in row.values()) for _, row in found] == [
                tuple(row) for row in rows
            ]


@given(
    rows=st.lists(
        st.dictionaries(words, st.one_of(words, st.integers(), st.none(), st.booleans())),
        min_size=1,
        max_size=6,
    )
)
@often(100)
def test_json_is_read_as_it_was_written(rows):
    for name, content in (
        ("t.jsonl", "\n".join(map(json.dumps, rows))),
        ("t.json", json.dumps(rows)),
    ):
        assert [row for _, row in open_table(on_disk(name, content.encode())).rows()] == rows


@given(
    content=pieces,
    name=st.sampled_from(
        ["t.csv", "t.tsv", "t.json", "t.jsonl", "t.parquet", "t.csv.gz", "t.jsonl.zst"]
    ),
)
@often(300)
def test_any_bytes_as_a_corpus(content, name):
    file = on_disk(name, content)
    clearly(lambda: list(Corpus(str(file), text="text", label="label").examples()))
    clearly(lambda: list(Corpus(str(file)).pairs(Counter())))
    skipped: Counter[str] = Counter()
    form = Corpus(str(file), text="text", label="label", positive=("1",), bad_rows="skip")
    examples = clearly(lambda: list(form.examples(skipped=skipped)))
    assert all(isinstance(example.text, str) for example in examples or ())
    assert all(count > 0 for count in skipped.values())


@given(content=pieces, name=st.sampled_from(["p.txt", "p.jsonl", "p.csv", "p.json"]))
@often(200)
def test_any_bytes_as_prompts(content, name):
    file = on_disk(name, content)
    found = clearly(lambda: read_prompts(file))
    assert found is None or all(
        prompt.strip() and not (name == "p.txt" and prompt[0] == "\ufeff") for prompt in found
    )
    for suite in ("rtp", "bold", "attaq"):
        clearly(lambda suite=suite: load_suite(suite, file))


NAMES = [
    *(
        "prompt",
        "continuation",
        "text",
        "toxicity",
        "chosen",
        "rejected",
        "role",
        "content",
        "label",
    ),
    *("prompts", "domain", "category"),
]
nested = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    rows=st.lists(
        st.dictionaries(
            st.sampled_from(["prompt", "continuation", "chosen", "rejected", "text", "label"]),
            nested,
        ),
        min_size=1,
        max_size=3,
    )
)
@often(300)
def test_rows_of_any_shape(rows):
    file = on_disk("r.jsonl", "\n".join(map(json.dumps, rows)).encode())
    for corpus in (
        Corpus("rtp", path=str(file), segments=("prompt", "continuation", "pair")),
        Corpus("hh-rlhf", path=str(file)),
        Corpus("jigsaw", path=str(file)),
        Corpus(str(file), text="text", label="label", prompt="prompt.text", by="continuation"),
        Corpus("toxigen", path=str(file), label="label"),
    ):
        clearly(lambda corpus=corpus: list(corpus.examples()))
    clearly(lambda: list(Corpus("hh-rlhf", path=str(file)).pairs(Counter())))
    prompts = clearly(lambda: read_prompts(file))
    assert prompts is None or len(prompts) <= len(rows)
    for suite in ("rtp", "bold", "attaq"):
        clearly(lambda suite=suite: load_suite(suite, file))


@given(
    text=st.one_of(
        words,
        st.lists(
            st.sampled_from(
                ["a.csv", "::", ",", "=", "+", "text", "limit", "rows", "quotes", "1", ":", " "]
            ),
            max_size=10,
        ).map("".join),
    )
)
@often(300)
def test_any_argument_as_a_corpus(text):
    corpus = clearly(lambda: Corpus.parse(text))
    if corpus is not None:
        assert Corpus(**corpus.to_dict()) == corpus


@pytest.fixture(scope="module")
def boundary_bytes(tmp_path_factory):
    return (
        tiny.boundary(tiny.model("llama"))
        .save(tmp_path_factory.mktemp("line") / "b.safetensors")
        .read_bytes()
    )


@given(data=st.data())
@often(300)
def test_damaged_boundaries(boundary_bytes, data):
    content = bytearray(boundary_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content) - 1, 900)))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    found = clearly(lambda: Boundary.load(on_disk("b.safetensors", bytes(content))))
    assert found is None or float(found.margin(found.weight)) == float(found.margin(found.weight))


@given(
    change=st.dictionaries(
        st.sampled_from(
            [
                "bias",
                "scale",
                "shift",
                "attribute",
                "report",
                "embedding",
                "model",
                "format",
                "more",
            ]
        ),
        nested,
        min_size=1,
        max_size=2,
    )
)
@often(200)
def test_boundaries_with_other_metadata(boundary_bytes, change):
    size = int.from_bytes(boundary_bytes[:8], "little")
    header = json.loads(boundary_bytes[8 : 8 + size])
    header["__metadata__"]["sasa"] = json.dumps(json.loads(header["__metadata__"]["sasa"]) | change)
    told = json.dumps(header).encode()
    content = len(told).to_bytes(8, "little") + told + boundary_bytes[8 + size :]
    found = clearly(lambda: Boundary.load(on_disk("b.safetensors", content)))
    if found is not None:
        assert isinstance(found.fingerprint, str)


@given(
    about=st.one_of(
        nested,
        st.fixed_dictionaries({"rows": st.integers(-1, 3), "encoder": nested, "judges": nested}),
    ),
    lines=st.lists(st.one_of(nested, st.just(dict.fromkeys(RECORD))), max_size=4),
    tail=st.binary(max_size=9),
)
@often(200)
def test_damaged_stores(about, lines, tail):
    folder = on_disk("redteam.json", json.dumps(about).encode()).parent
    (folder / "run.json").write_text(json.dumps(about))
    content = "".join(json.dumps(each) + "\n" for each in lines).encode() + tail
    for name in ("attempts.jsonl", "prompts.jsonl"):
        (folder / name).write_bytes(content)
    (folder / "vectors.f32").write_bytes(content * 4)
    clearly(lambda: Attempts.open(folder))
    clearly(lambda: Run.open(folder))


@given(
    content=st.one_of(
        pieces,
        words.map(str.encode),
        st.sampled_from(
            [
                b"[[corpus]]\nsource = 3",
                b"model = [1]\n[[corpus]]\n",
                b"[[fit]]\ntemplates = 3",
                b"fit = 1",
            ]
        ),
    )
)
@often(200)
def test_any_bytes_as_settings(content):
    file = on_disk("recipe.toml", content)
    recipe = clearly(lambda: Recipe.load(file))
    assert recipe is None or Recipe.from_dict(recipe.to_dict()) == recipe
    clearly(lambda: load_people("fit", file))
