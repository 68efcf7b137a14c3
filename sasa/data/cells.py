"""The text or the score that a cell of a table holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from sasa.data.tables import Table

TRUE, FALSE = {"true", "yes", "toxic"}, {"false", "no", "safe", "non-toxic"}


def text_of(value: Any, column: str, where: str) -> str:
    """The text of a cell; "" for a missing one.

    Args:
        where: the source and the row, for errors.

    Raises:
        ValueError: the cell holds other cells, or bytes that are no UTF-8.
    """
    if isinstance(value, bytes):  # strings in older Parquet files
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: the column {column!r} is no UTF-8: {error}") from None
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, (dict, list)):
        inside = ""
        if isinstance(value, dict) and value:
            inside = f"; name one inside it, such as {column}.{next(iter(value))}"
        raise ValueError(
            f"{where}: the column {column!r} holds a {type(value).__name__}, not text{inside}"
        )
    return "" if value is None else str(value)


def score_of(
    value: Any, where: str, low: float = 0.0, high: float = 1.0, unsafe: Collection[str] = ()
) -> float:
    """The score of a label, in [0, 1], 1 the unsafe end.

    Args:
        where: the source and the row, for errors.
        low, high: the range of a number.
        unsafe: the classes of the labels that mean unsafe, as `unsafe_classes` gives them; if there
            are any, all other labels mean safe.

    Raises:
        ValueError: the label is missing, NaN, no label, or out of range.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"{where}: the label is missing or NaN")
    if isinstance(value, (dict, list)):
        kind = type(value).__name__
        raise ValueError(f"{where}: the label is a {kind}, not one name or number: {value!r}"[:300])
    if isinstance(value, bytes):
        value = text_of(value, "label", where)
    if unsafe:
        return float(_class(value) in unsafe)
    name = str(value).strip().lower() if isinstance(value, (bool, str)) else ""
    if name in TRUE or name in FALSE:
        return float(name in TRUE)
    try:
        score = (float(value) - low) / (high - low)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{where}: label {value!r} is not a number; say which labels are unsafe with positive=…"
        ) from None
    if not 0 <= score <= 1:
        raise ValueError(
            f"{where}: label {value} is not in [{low:g}, {high:g}]; give low= and high=, or "
            "positive=…"
        )
    return score


def unsafe_classes(table: Table, label: str, positive: Sequence[str]) -> frozenset[str]:
    """The classes of the labels that mean unsafe.

    Args:
        label: the column of labels. positive: unsafe labels, as a user writes them.

    Raises:
        ValueError: some of `positive` never occur: a typo must not make texts safe.
    """
    wanted = {_class(value): value for value in positive}
    if not wanted:
        return frozenset()
    counts: Counter[str] = Counter()
    missing = set(wanted)
    for value in table.values(label):
        if value is not None:
            counts[label_name(value)] += 1
            missing.discard(_class(value))
    if missing:
        typos = ", ".join(repr(wanted[each]) for each in sorted(missing))
        known = ", ".join(f"{name!r} ({count:,})" for name, count in counts.most_common(20))
        raise ValueError(
            f"{table.name}: positive has {typos}, which no row has as its {label}; there are: "
            f"{known}{', …' if len(counts) > 20 else ''}. Several are written with a + between"
        )
    return frozenset(wanted)


def label_name(value: Any) -> str:
    """A label as a person would write it: 1.0 as 1."""
    value = value.decode(errors="replace") if isinstance(value, bytes) else value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _class(value: Any) -> str:
    """The same text for equal labels: 1.0 and 1, True and true, "hate " and "Hate"."""
    name = label_name(value).casefold()
    if isinstance(value, bool):
        return name
    if name.isdecimal():  # a float holds no more than 16 digits
        return name.lstrip("0") or "0"
    try:
        return label_name(float(name))
    except (ValueError, OverflowError):
        return name
