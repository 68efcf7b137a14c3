"""Files as people have them: what is in them is read, or refused by name."""

import bz2
import gzip
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_files import texts, write

from sasa.cli.loading import read_prompts
from sasa.data.tables import Format, open_table
from sasa.fitting import Corpus


def test_quotes_that_do_not_pair_up_are_text(tmp_path, caplog):
    rows = [(f'"no {i}, he said' if i % 3 == 0 else f"fine {i}", float(i % 2)) for i in range(30)]
    path = write(tmp_path, "q.tsv", "text\tlabel\n" + "".join(f"{t}\t{y:g}\n" for t, y in rows))
    assert texts(path) == rows
    assert "quotes do not pair up in it, and are read as text" in caplog.text
    with pytest.raises(
        ValueError,
        match=r"row 0: \(line 5\) a cell goes on behind the quote that ends it; .*quotes=none",
    ):
        texts(path, quotes="double")
    skipped = Counter()
    assert (
        len(texts(path, quotes="double", bad_rows="skip", skipped=skipped))
        + skipped["cannot be read"]
        == 30
    )


def test_a_quoted_cell_may_hold_separators_quotes_and_lines(tmp_path):
    path = write(tmp_path, "r.csv", 'text,label\n"a ""quoted"" word, and a\nnew line",1\nplain,0\n')
    assert texts(path) == [('a "quoted" word, and a\nnew line', 1.0), ("plain", 0.0)]


def test_what_could_be_read_both_ways_is_refused(tmp_path):
    """A quote that opens one line's text and ends another one's: rows, or a cell with line breaks?"""
    plain = "".join(f"fine {i}\t{i % 2}\n" for i in range(5))
    path = write(tmp_path, "w.tsv", f'text\tlabel\n{plain}"no\t0\nhe said yes"\t1\n')
    with pytest.raises(
        ValueError, match=r"row 5: 2 lines that look like rows .* quotes=double or quotes=none"
    ):
        texts(path)
    assert texts(path, quotes="double")[-1] == ("no\t0\nhe said yes", 1.0)
    assert texts(path, quotes="none")[-2:] == [('"no', 0.0), ('he said yes"', 1.0)]


@pytest.mark.parametrize(
    "content",
    [
        'text\tlabel\nfine\t0.1\nyou\t0.2\n"hate\t0.9\nbye"\t0.3\n',  # numbers that come once
        'label\ttext\nok\ta\nbad\tb\nok\t"x\nthreat\ty\nbad\tz"\n',  # a class that comes nowhere else
        'label\ttext\n1\ta\n0\tb\n1\t"x\n\n0\tz"\n',  # a blank line between
    ],
)
def test_no_rows_are_merged_without_a_word(tmp_path, content):
    path = write(tmp_path, "m.tsv", content)
    with pytest.raises(ValueError, match=r"row 2: \d lines that look like rows"):
        texts(path, positive=("bad",) if "bad" in content else ())
    assert (
        len(list(open_table(path, Format(quotes="none")).rows()))
        == content.replace("\n\n", "\n").count("\n") - 1
    )


def test_many_rows_of_several_lines_are_all_looked_at(tmp_path, monkeypatch):
    from sasa.data.tables import delimited

    monkeypatch.setattr(delimited._Scan, "MOST_SPANS", 1)
    harmless = '"a, b\nc, d",0\n' * 3
    path = write(
        tmp_path, "s.csv", "text,label\n" + "x,0\ny,1\n" * 3 + harmless + '"no,1\nyes",0\n'
    )
    with pytest.raises(ValueError, match="row 9: 2 lines"):
        texts(path)


def test_the_rest_of_a_bad_row_is_no_row(tmp_path):
    path = write(
        tmp_path, "r.csv", 'text,label\n"He said "no" to me\nand left",1\nfine,0\n"a, b",1\n'
    )
    skipped = Counter()
    assert texts(path, bad_rows="skip", skipped=skipped) == [("fine", 0.0), ("a, b", 1.0)]
    assert skipped == {"cannot be read": 2}


def test_the_first_line_that_excel_writes(tmp_path):
    assert texts(write(tmp_path, "e.csv", "sep=;\r\ntext;label\r\na, b;1\r\n")) == [("a, b", 1.0)]


def test_one_badly_quoted_row_does_not_unquote_the_others(tmp_path, caplog):
    good = "".join(f'"text {i}",{i % 2}\n' for i in range(6))
    path = write(tmp_path, "b.csv", f'text,label\n{good}"He said "no" to me",1\n')
    with pytest.raises(ValueError, match=r"row 6: \(line 8\).*bad_rows=skip"):
        texts(path)
    skipped = Counter()
    assert texts(path, bad_rows="skip", skipped=skipped) == [
        (f"text {i}", float(i % 2)) for i in range(6)
    ]
    assert skipped == {"cannot be read": 1}
    assert "1 lines cannot be read and are left out; row 6" in caplog.text


def test_quotes_behind_backslashes(tmp_path):
    path = write(tmp_path, "s.csv", 'text,label\n"he said \\"no\\", ok",1\n')
    assert texts(path, quotes="backslash") == [('he said "no", ok', 1.0)]
    path = write(
        tmp_path, "p.csv", 'text,label\n"C:\\new \\"x\\"",1\nC:\\temp,0\n\\N,1\n"a\\\\",0\n'
    )
    skipped = Counter()
    found = [('C:\\new "x"', 1.0), ("C:\\temp", 0.0), ("a\\", 0.0)]
    assert texts(path, quotes="backslash", skipped=skipped) == found
    assert skipped == {"empty text": 1}


def test_a_quote_that_is_never_closed(tmp_path):
    with pytest.raises(ValueError, match="a quote is never closed"):
        texts(write(tmp_path, "u.csv", 'text,label\n"a, b,1\nfine,0\nok, so,1\n'))


def test_only_the_named_columns_count(tmp_path):
    rows = "".join(f"t{i},{i % 2},\n" for i in range(10_500))
    path = write(tmp_path, "l.csv", f"text,label,note\n{rows}vile,1,by Ann\n")
    assert len(texts(path)) == 10_501
    table = [{"text": "a", "label": 0, "note": 1}, {"text": "b", "label": 1, "note": {"by": "Ann"}}]
    assert len(texts(write(tmp_path, "l.jsonl", "\n".join(map(json.dumps, table))))) == 2


def test_the_exact_file(tmp_path):
    path = write(tmp_path, "g/c[1].csv", "text,label\nRIGHT,1\n")
    write(tmp_path, "g/c1.csv", "text,label\nWRONG,1\n")
    assert texts(path) == [("RIGHT", 1.0)]


def test_names_that_look_missing_are_names(tmp_path):
    path = write(tmp_path, "n.csv", "text,label\n" + "null,None\nnan,Racism\nNA,NA\n" * 3)
    assert texts(path, positive=("Racism",)) == [("null", 0.0), ("nan", 1.0), ("NA", 0.0)] * 3
    with pytest.raises(ValueError, match="row 0: the label is missing"):
        texts(write(tmp_path, "e.csv", "text,label\na,\nb,1\n"))


def test_text_stays_text(tmp_path):
    path = write(tmp_path, "z.csv", "text,label\n00123,0\n1e5,1\nTRUE,1\n")
    assert [text for text, _ in texts(path)] == ["00123", "1e5", "TRUE"]


def test_a_columns_own_name_goes_before_a_nested_one(tmp_path):
    path = write(tmp_path, "d.csv", "HITId,Input.text,Answer.toxic\n1,fine,0\n2,vile,1\n")
    assert texts(path, text="Input.text", label="Answer.toxic") == [("fine", 0.0), ("vile", 1.0)]
    row = {"a.b": {"c": "exact"}, "a": {"b": {"c": "nested", "d": 1}}}
    assert texts(write(tmp_path, "d.jsonl", json.dumps(row)), text="a.b.c", label="a.b.d") == [
        ("exact", 1.0)
    ]


def zstd(data):
    target = pa.BufferOutputStream()
    with pa.CompressedOutputStream(target, "zstd") as packed:
        packed.write(data)
    return target.getvalue().to_pybytes()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstd, lambda data: data])
def test_endings_in_capitals_and_packed(tmp_path, pack):
    ending = {gzip.compress: ".GZ", bz2.compress: ".bz2", zstd: ".zst"}.get(pack, "")
    path = write(tmp_path, f"DATA.CSV{ending}", pack(b"text,label\nfine,0\nvile,1\n"))
    assert texts(path) == [("fine", 0.0), ("vile", 1.0)]
    if ending:
        path = write(tmp_path, f"cut.csv{ending}", pack(b"text,label\n" + b"fine,0\n" * 9999)[:-20])
        with pytest.raises(ValueError, match="is damaged"):
            texts(path)


def test_commas_in_values_of_the_command_line(tmp_path):
    path = write(tmp_path, "my, data.csv", "text,label\na,1\n")
    corpus = Corpus.parse(f"jigsaw::path={path},text=text,label=label,positive=1")
    assert (corpus.path, corpus.positive) == (path, ("1",))
    assert [e.text for e in corpus.examples()] == ["a"]
    with pytest.raises(ValueError, match="expected name=value with a name of"):
        Corpus.parse("a.csv::text=a,lable=b")


def test_other_separators(tmp_path):
    path = write(tmp_path, "s.csv", "text;label\na, b;1\n")
    with pytest.raises(ValueError, match=r"has one column, 'text;label': .* separator=;"):
        texts(path)
    assert texts(path, separator=";") == [("a, b", 1.0)]
    assert Corpus.parse(f"{path}::separator=tab").separator == "tab"


def test_rows_of_too_many_or_too_few_cells(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"row 1: \(line 3\) it has 3 cells, and there are 2 columns: is a text with ','",
    ):
        texts(write(tmp_path, "m.csv", "text,label\na,1\nb, c,0\n"))
    with pytest.raises(ValueError, match="row 1: it has 1 of 2 cells"):
        texts(write(tmp_path, "f.csv", "label,text\n1,a\n0\n"))
    skipped = Counter()
    path = write(tmp_path, "f.csv", "label,text,note\n1,a,x\n0\n0,b\n")
    assert texts(path, bad_rows="skip", skipped=skipped) == [("a", 1.0), ("b", 0.0)]
    assert skipped == {"cannot be read": 1}
    with pytest.raises(ValueError, match="has several columns called 'text'"):
        texts(write(tmp_path, "d.csv", "text,text,label\na,b,1\n"))


def test_a_column_of_something_else(tmp_path):
    path = write(tmp_path, "o.jsonl", json.dumps({"text": {"en": "a"}, "label": 1}))
    with pytest.raises(ValueError, match=r"the column 'text' holds a dict, not text; .* text\.en"):
        texts(path)


def test_parquet_as_other_programs_write_it(tmp_path):
    """Text as bytes; columns that Python cannot read, which nobody asked for; a name that is another one's path."""
    far = pa.array([2**60, 0], pa.int64()).cast(pa.timestamp("us"), safe=False)
    columns = {
        "text": pa.array([b"hello", "wö".encode()], pa.binary()),
        "label": [1, 0],
        "far": far,
    }
    columns |= {"a.b": ["exact", "x"], "a": [{"b": "nested"}, {"b": "y"}]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    path = str(tmp_path / "p.parquet")
    assert texts(path) == [("hello", 1.0), ("wö", 0.0)]
    assert texts(path, text="a.b") == [("exact", 1.0), ("x", 0.0)]
    with pytest.raises(ValueError, match="a column cannot be read"):
        texts(path, text="far")
    pq.write_table(
        pa.table({"text": pa.array([b"\xff"], pa.binary()), "label": [1]}), tmp_path / "b.parquet"
    )
    with pytest.raises(ValueError, match="row 0: the column 'text' is no UTF-8"):
        texts(str(tmp_path / "b.parquet"))


def test_missing_texts_and_labels_of_several_parts(tmp_path):
    rows = [
        {"text": float("nan"), "label": 1},
        {"text": None, "label": 1},
        {"text": "a", "label": 1},
    ]
    skipped = Counter()
    assert texts(write(tmp_path, "n.jsonl", "\n".join(map(json.dumps, rows))), skipped=skipped) == [
        ("a", 1.0)
    ]
    assert skipped == {"empty text": 2}
    for label in ({"choices": ["Toxic"]}, ["Toxic", "Insult"], []):
        rows = [{"text": "a", "label": "Toxic"}, {"text": "b", "label": label}]
        with pytest.raises(ValueError, match=r"row 1: the label is a (dict|list), not one name"):
            texts(write(tmp_path, "l.jsonl", "\n".join(map(json.dumps, rows))), positive=("Toxic",))


def test_what_is_left_out_is_said_where_nobody_counts(tmp_path, caplog):
    texts(write(tmp_path, "e.csv", "text,label\n,1\na,0\n"))
    assert "left out: 1 empty text" in caplog.text


def test_paths_that_look_like_a_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "~$tweets.csv", "text,label\na,1\n")
    assert texts("~$tweets.csv") == [("a", 1.0)]
    with pytest.raises(FileNotFoundError, match="no file at ~nobody"):
        texts("~nobody/x.csv")
    (tmp_path / "spark.csv").mkdir()
    with pytest.raises(ValueError, match=r"spark.csv is a folder"):
        texts("spark.csv")


def test_prompts_have_no_settings_to_advise(tmp_path):
    write(tmp_path, "p.csv", 'prompt,x\n"He said "no" ok",1\n"a, b",2\n"c",3\n')
    with pytest.raises(
        ValueError, match=r"row 0: .* write it as JSON lines, or with its quotes doubled$"
    ):
        read_prompts(tmp_path / "p.csv")
    write(tmp_path, "d.csv", "prompt,prompt\na,b\n")
    with pytest.raises(ValueError, match="several columns called 'prompt'"):
        read_prompts(tmp_path / "d.csv")


def test_json_as_one_list(tmp_path):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    for name in ("l.json", "l.jsonl"):
        assert texts(write(tmp_path, name, json.dumps(rows, indent=1))) == [("a", 0.0), ("b", 1.0)]
    with pytest.raises(ValueError, match=r"corpus .*l.json: not JSON"):
        texts(write(tmp_path, "l.json", "[1, 2"))
    with pytest.raises(
        ValueError, match="row 0: expected an object with the columns as names, got int"
    ):
        texts(write(tmp_path, "l.json", "[1]"))
    with pytest.raises(ValueError, match="not JSON"):
        texts(write(tmp_path, "deep.jsonl", "[" * 100_000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"separator": ";;"}, "separator must be one character"),
        ({"quotes": "single"}, "quotes must be one of auto, double, backslash, none, got 'single'"),
        ({"bad_rows": "ignore"}, "bad_rows must be one of refuse, skip, got 'ignore'"),
    ],
)
def test_formats_that_there_are_not(settings, message):
    with pytest.raises(ValueError, match=message):
        Format(**settings)


def test_a_table_is_not_changed_by_being_read(tmp_path):
    table = open_table(write(tmp_path, "t.csv", "a,b\n1,2\n3,4\n5,6\n"))
    assert list(table.rows([0, 2])) == [(0, {"a": "1", "b": "2"}), (2, {"a": "5", "b": "6"})]
    assert len(list(table.rows())) == len(table) == 3
