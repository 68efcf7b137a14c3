"""Labels as tables have them."""

import json

import pytest
from table_files import texts, write


def test_a_typo_among_the_unsafe_labels(tmp_path):
    path = write(tmp_path, "p.csv", "text,label\n" + "a,normal\nb,hate\nc,offensive\n" * 3)
    with pytest.raises(
        ValueError,
        match=r"positive has 'offensve', .*'normal' \(3\), 'hate' \(3\), 'offensive' \(3\)",
    ):
        texts(path, positive=("hate", "offensve"))
    assert [s for _, s in texts(path, positive=("hate", "offensive"))] == [0.0, 1.0, 1.0] * 3
    with pytest.raises(
        ValueError, match=r"'hate\+offensive'.*Several are written with a \+ between"
    ):
        texts(path, positive="hate+offensive")


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (["normal", "hate "], ("hate",)),
        (["normal", "Hate"], ("hate ",)),
        ([0.0, 1.0], ("1",)),
        ([0, 1], ("1.0",)),
        (["0", "1.0"], ("1",)),
        ([False, True], ("true",)),
        (["FALSE", "TRUE"], ("True",)),
        (["12345678901234567891", "12345678901234567890"], ("12345678901234567890",)),
    ],
)
def test_labels_are_equal_however_they_are_written(tmp_path, labels, positive):
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]
    path = write(tmp_path, "l.jsonl", "\n".join(map(json.dumps, rows)))
    assert [s for _, s in texts(path, positive=positive)] == [0.0, 1.0]


def test_all_rows_count_for_which_labels_there_are(tmp_path):
    path = write(tmp_path, "s.csv", "text,label\na,ok\nb,ok\nc,bad\n")
    assert texts(path, positive=("bad",), rows="0:2") == [("a", 0.0), ("b", 0.0)]


def test_numbers_beyond_any_range(tmp_path):
    path = write(tmp_path, "n.jsonl", '{"text": "a", "label": 1' + "0" * 400 + "}")
    with pytest.raises(ValueError, match=r"row 0: label 10+ is not a number"):
        texts(path)
