"""Where the rows of a corpus come from: a file, or a data set of the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sasa.data.tables import (
    KINDS,
    Format,
    Row,
    Table,
    column_names,
    kind_of,
    local,
    open_table,
    outer,
    value_of,
)

HUB: dict[str, tuple[str, str | None]] = {
    "jigsaw": ("google/civil_comments", None),
    "rtp": ("allenai/real-toxicity-prompts", None),
    "hh-rlhf": ("Anthropic/hh-rlhf", "harmless-base"),
    "toxigen": ("toxigen/toxigen-data", "annotated"),
    "diasafety": ("thu-coai/diasafety", None),
}
"""The named sources: data sets of the Hub, each with its configuration or, of hh-rlhf, folder."""


def open_source(
    source: str, path: str | None, form: Format, split: str, config: str | None
) -> Table:
    """Opens the table of a source.

    Args:
        source: a name of `HUB`, a file, or a Hub data set `owner/name`.
        path: the file of a named source; None for the Hub's data set.
        form: of a file. split, config: of a Hub data set; None for the configuration in `HUB`.

    Raises:
        FileNotFoundError, ValueError: no such file or data set, or one that cannot be read.
    """
    file = path if source in HUB else source
    if file is None or not (kind_of(file) or local(file).exists()):
        return _from_hub(source, split, config)
    if not local(file).exists():
        raise FileNotFoundError(f"corpus {source}: no file at {file}")
    if kind_of(file) is None:
        raise ValueError(f"corpus {file}: expected one of {', '.join(KINDS)}")
    return open_table(file, form, f"corpus {source}")


def _from_hub(source: str, split: str, config: str | None) -> Table:
    name, default = HUB.get(source, (source, None))
    part = {"data_dir" if source == "hh-rlhf" else "name": config or default}
    try:
        import datasets

        return HubTable(datasets.load_dataset(name, split=split, **part), f"corpus {source}")
    except Exception as error:  # of a dozen types, none of which says what to do instead
        missing = f"corpus {source}: not a file here, and the Hub"
        raise FileNotFoundError(
            f"{missing}'s {name!r} cannot be had ({error}). Give a file: {source}::path=FILE"
            if source in HUB
            else f"{missing} has no data set of that name ({error})"
        ) from error


class HubTable(Table):
    """A data set of the Hub, in the cache of `datasets`."""

    def __init__(self, data: Any, name: str) -> None:
        columns = tuple(dict.fromkeys(column_names(data.features)))
        super().__init__(name, columns, len(data), lambda: (row for _, row in self.rows()))
        self.data = data

    def rows(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[int, Row]]:
        numbers = range(len(self.data)) if numbers is None else numbers
        data = self.data.select(numbers)
        if self.needed is not None:
            names = data.column_names
            outer_columns = dict.fromkeys(outer(column, names) for column in self.needed)
            data = data.select_columns(list(outer_columns))
        rows = (
            dict(zip(batch, values, strict=True))
            for batch in data.iter(1000)
            for values in zip(*batch.values(), strict=True)
        )
        yield from zip(numbers, rows, strict=True)

    def values(self, column: str) -> Iterator[Any]:
        for row in self.data.select_columns([outer(column, self.data.column_names)]):
            yield value_of(row, column)
