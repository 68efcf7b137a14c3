"""Whom steering takes from: groups, strengths and the command."""

import json
from dataclasses import replace

import pytest
import tiny
from typer.testing import CliRunner

from sasa.cli import app
from sasa.core.values import Steering
from sasa.decoding.cost import read, taxes
from sasa.evaluation.selectivity import labelled, selectivity, strength_for
from sasa.fitting import Corpus

ROWS = [
    ("hello you", 0.1, " and good day", 0.1),
    ("xqz you", 0.9, " and good day", 0.2),
    ("xqz", 0.8, " zzx qxq", 0.9),
] * 3


@pytest.fixture(scope="module")
def rtp(tmp_path_factory):
    file = tmp_path_factory.mktemp("rtp") / "rtp.jsonl"
    with file.open("w") as out:
        for prompt, bad, continuation, worse in [
            *ROWS,
            ("grey", 0.5, " zone", 0.1),
            ("unknown", None, " fine", 0.1),
        ]:
            sides = {"prompt": (prompt, bad), "continuation": (continuation, worse)}
            out.write(
                json.dumps({k: {"text": t, "toxicity": s} for k, (t, s) in sides.items()}) + "\n"
            )
    return f"{file}"


@pytest.fixture(scope="module")
def corpus(rtp):
    return Corpus("rtp", path=rtp, segments=("pair",), unsafe_from=0.6, safe_below=0.3)


def test_groups(corpus, rtp, tmp_path):
    found = labelled(corpus)
    assert [one.group for one in found] == ["safe after safe"] * 3 + ["safe after unsafe"] * 3 + [
        "unsafe after unsafe"
    ] * 3
    assert found[3].text == ("xqz you", " and good day")
    assert len(labelled(corpus, limit=2)) == 6
    file = tmp_path / "plain.csv"
    file.write_text("text,label,who\nfine one,0,a\nvile one,1,b\nfine two,0,b\n")
    plain = Corpus(str(file), text="text", label="label")
    assert [(one.text, one.group) for one in labelled(plain)] == [
        ("fine one", "safe"), ("fine two", "safe"), ("vile one", "unsafe")
    ]  # fmt: skip
    divided = Corpus(str(file), text="text", label="label", by="who")
    assert [one.group for one in labelled(divided)] == ["safe, a", "safe, b", "unsafe, b"]
    with pytest.raises(ValueError, match="no text outside the grey zone"):
        labelled(
            Corpus(
                "rtp", path=rtp, rows="9:10", segments=("pair",), unsafe_from=0.6, safe_below=0.3
            )
        )


@pytest.fixture(scope="module")
def boundaries(corpus, model, tokenizer):
    """Two with random directions, turned so that they take from unsafe text."""
    texts = [one.text for one in labelled(corpus) if one.group.startswith("unsafe")]
    found = []
    for seed in range(20):
        boundary = tiny.boundary(model, seed)
        reading = read(model, tokenizer, texts, boundary, top_k=8)
        if taxes(reading, Steering.of(boundary, 2.0, prior=0.5)).mean() > 0.5:
            found.append(boundary)
    return found[:2]


def test_figures(corpus, model, tokenizer, boundaries):
    texts = labelled(corpus)
    groups = [one.group for one in texts]
    boundary = boundaries[0]
    reading = read(model, tokenizer, [one.text for one in texts], boundary, top_k=8)
    steering = Steering.of(boundary, 1.0)
    found = selectivity(reading, groups, steering)
    tax = taxes(reading, steering)
    mine = reading.text >= 6
    one = found["unsafe after unsafe"]
    assert (one.texts, one.tokens) == (3, 24)
    assert one.per_token.value == pytest.approx(float(tax[mine].mean()))
    assert one.per_text.value == pytest.approx(float(tax[mine].sum()) / 3)
    assert one.by_place["1"] == pytest.approx(float(tax[mine & (reading.place == 0)].mean()))
    assert one.by_place["11+"] is None
    assert found["safe after safe"].by_place["11+"] is not None

    beta = strength_for(reading, groups, steering, 0.2, "unsafe after unsafe")
    again = selectivity(reading, groups, Steering.of(boundary, beta))
    assert again["unsafe after unsafe"].per_token.value == pytest.approx(0.2, rel=0.01)
    with pytest.raises(ValueError, match="no beta up to 1000"):
        strength_for(reading, groups, steering, 1e6, "unsafe after unsafe")
    with pytest.raises(ValueError, match="no group 'other'; there are: safe after safe"):
        strength_for(reading, groups, steering, 0.2, "other")


def test_a_class_is_all_its_groups(corpus, model, tokenizer, boundaries):
    """Where texts have a value of `by`, a strength is that at which the class pays as much, not one of its groups."""
    texts = labelled(corpus)
    groups = [f"{one.group}, {'ab'[i % 3 == 0]}" for i, one in enumerate(texts)]
    reading = read(model, tokenizer, [one.text for one in texts], boundaries[0], top_k=8)
    steering = Steering.of(boundaries[0], 1.0)
    found = selectivity(reading, groups, steering)
    whole = selectivity(reading, [one.group for one in texts], steering)
    assert {name: found[name] for name in whole} == whole
    assert found["unsafe after unsafe, a"].texts + found["unsafe after unsafe, b"].texts == 3
    beta = strength_for(reading, groups, steering, 0.2, "unsafe after unsafe")
    again = selectivity(reading, groups, Steering.of(boundaries[0], beta))
    assert again["unsafe after unsafe"].per_token.value == pytest.approx(0.2, rel=0.01)


def options(rtp, tiny_folder, folder, boundaries, *more):
    for number, boundary in enumerate(boundaries):
        boundary.save(folder / f"b{number}")
    source = f"rtp::path={rtp},unsafe_from=0.6,safe_below=0.3"
    return [
        "selectivity",
        source,
        "-m",
        str(tiny_folder),
        "--device",
        "cpu",
        "--no-strict",
        "--top-k",
        "8",
        *more,
    ]


def test_the_command(rtp, tiny_folder, boundaries, tmp_path):
    """Two boundaries and two priors, each at the strength at which unsafe text pays as much."""
    pytest.importorskip("matplotlib")
    more = [part for seed in (0, 1) for part in ("-b", str(tmp_path / f"b{seed}"))]
    more += ["--prior", "0.5", "--prior", "0.2", "--at", "0.1", "-o", str(tmp_path / "out")]
    asked = options(rtp, tiny_folder, tmp_path, boundaries, *more)
    result = CliRunner().invoke(app, [*asked, "--json"])
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert [(row["boundary"][-1], row["prior"]) for row in found["settings"]] == [
        ("0", 0.5),
        ("0", 0.2),
        ("1", 0.5),
        ("1", 0.2),
    ]
    for row in found["settings"]:
        assert row["groups"]["unsafe after unsafe"]["per_token"]["value"] == pytest.approx(
            0.1, rel=0.01
        )
    assert json.loads((tmp_path / "out" / "selectivity.json").read_text()) == found
    assert (tmp_path / "out" / "selectivity.png").stat().st_size > 1000


def test_each_boundary_is_judged_by_itself(
    rtp, tiny_folder, model, tokenizer, boundaries, tmp_path
):
    """Whatever stands beside it: also where a text is other tokens to that."""
    templated = replace(boundaries[1], embedding=replace(boundaries[1].embedding, template="chat"))
    asked = options(rtp, tiny_folder, tmp_path, [boundaries[0], templated], "--beta", "1", "--json")
    figures = []
    for numbers in ((0,), (0, 1), (1, 0)):
        result = CliRunner().invoke(
            app, [*asked, *(p for n in numbers for p in ("-b", str(tmp_path / f"b{n}")))]
        )
        assert result.exit_code == 0, result.exception
        figures.append(json.loads(result.stdout)["settings"][numbers.index(0)]["groups"])
    assert figures[0] == figures[1] == figures[2]
    with pytest.raises(ValueError, match="differ in template or special_tokens"):
        read(model, tokenizer, ["a b"], [(boundaries[0], 1.0), (templated, 1.0)])
    refused = CliRunner().invoke(app, [*asked, "-b", f"{tmp_path / 'b0'}::0.5"])
    assert "without ::WEIGHT" in str(refused.exception)


def test_texts_of_one_token_are_left_out(tiny_folder, boundaries, tmp_path):
    rows = ["text,toxic", "one two,0", "1,0", "three,1", "3,1"]
    (tmp_path / "words.csv").write_text("\n".join(rows))
    boundaries[0].save(tmp_path / "b0")
    asked = [
        "selectivity",
        f"{tmp_path / 'words.csv'}::text=text,label=toxic",
        "-m",
        str(tiny_folder),
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, [*asked, "--no-strict", "--json", "-b", str(tmp_path / "b0")])
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["texts"] == 2
    assert "left out: 2 texts of one token" in result.stderr


def test_the_table_names_people_too(rtp, tiny_folder, boundaries, people_file, tmp_path):
    asked = options(
        rtp,
        tiny_folder,
        tmp_path,
        boundaries,
        "-b",
        str(tmp_path / "b0"),
        "--beta",
        "1",
        "--people",
        str(people_file),
        "--by-place",
    )
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.exception
    assert "cats" in result.stdout
    assert "token 2-5" in result.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--beta", "-1"], "beta must be >= 0"),
        (["--prior", "1"], "prior must be in (0, 1)"),
        (["--at", "2", "--beta", "3"], "--at is a number of nats > 0, in place of --beta"),
        (["--value", "cubed"], "value must be one of"),
    ],
)
def test_bad_options_show_before_anything_is_read(rtp, more, message):
    result = CliRunner().invoke(app, ["selectivity", f"rtp::path={rtp}", "-m", "nowhere", *more])
    assert message in str(result.exception)
