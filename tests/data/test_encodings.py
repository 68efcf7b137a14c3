"""Encodings: bytes that are text, and bytes that are none."""

from collections import Counter

import pytest
from table_files import texts, write

from sasa.cli.loading import read_prompts
from sasa.data.tables import read_lines
from sasa.fitting import Corpus


def test_a_byte_that_is_no_text(tmp_path):
    rows = b"fine,0\nvile,1\n" * 20
    path = write(tmp_path, "b.csv", b"text,label\n" + rows + b"broken \xe2\x28 here,1\n")
    with pytest.raises(
        ValueError, match=r"row 40: \(line 42\) byte 0xe2 .*encoding=cp1252.*bad_rows=skip"
    ):
        texts(path)
    skipped = Counter()
    assert len(texts(path, bad_rows="skip", skipped=skipped)) == 40
    assert skipped == {"cannot be read": 1}
    assert texts(path, encoding="latin-1")[40][0] == "broken â( here"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.txt"])
def test_a_byte_order_mark_says_how_a_file_is_written(tmp_path, name, encoding):
    content = {
        "t.csv": "prompt,label\nschön,1\n",
        "t.jsonl": '{"prompt": "schön", "label": 1}\n',
        "t.txt": "schön\n",
    }[name]
    path = write(tmp_path, name, content, encoding)
    assert read_prompts(tmp_path / name) == ["schön"]
    if name != "t.txt":
        assert texts(path, text="prompt") == [("schön", 1.0)]


def test_encodings_by_name(tmp_path):
    path = write(tmp_path, "l.csv", "text,label\nschön,1\n", "latin-1")
    assert texts(path, encoding="latin-1") == [("schön", 1.0)]
    with pytest.raises(
        ValueError, match=r"encoding must be one that Python knows, .* got 'latin-99'"
    ):
        Corpus(path, encoding="latin-99")
    with pytest.raises(ValueError, match="encoding must be one that Python knows"):
        Corpus(path, encoding="base64")
    path = write(tmp_path, "w.csv", "text,label\nschön,1\n".encode("utf-16-le"))
    with pytest.raises(
        ValueError, match=r"NUL byte, .*if the file is in another encoding.*utf-16-le"
    ):
        texts(path)
    assert texts(path, encoding="utf-16-le") == [("schön", 1.0)]


def test_half_a_character(tmp_path):
    path = write(
        tmp_path,
        "h.jsonl",
        '{"text": "\\ud83d\\ude00", "label": 0}\n{"text": "\\ud83d", "label": 1}\n',
    )
    with pytest.raises(
        ValueError, match=r"row 1: \(line 2\) it holds \\ud83d, half of a surrogate pair"
    ):
        texts(path)
    assert texts(path, bad_rows="skip") == [("😀", 0.0)]
    with pytest.raises(ValueError, match=r"lines.txt, line 2: byte 0xff .*save the file as UTF-8"):
        list(read_lines(write(tmp_path, "lines.txt", b"fine\n\xff\n")))
