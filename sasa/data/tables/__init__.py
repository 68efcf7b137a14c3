"""Tables as people keep them, CSV, TSV, JSON, JSON lines and Parquet files -> rows, one at a time.

A row is what the file says: text stays text, an empty cell of a CSV is None and nothing else is.
No row is lost silently: what cannot be read is an error that names it, or is left out and counted.
"""

from sasa.data.tables.files import KINDS, kind_of, open_table
from sasa.data.tables.table import (
    BAD_ROWS,
    QUOTES,
    Bad,
    Format,
    Row,
    Table,
    column_names,
    left_out,
    outer,
    value_of,
    warn_once,
)
from sasa.data.tables.text import check_characters, local, read_lines

__all__ = [
    "BAD_ROWS",
    "KINDS",
    "QUOTES",
    "Bad",
    "Format",
    "Row",
    "Table",
    "check_characters",
    "column_names",
    "kind_of",
    "left_out",
    "local",
    "open_table",
    "outer",
    "read_lines",
    "value_of",
    "warn_once",
]
