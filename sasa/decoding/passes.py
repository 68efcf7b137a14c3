"""How many candidates one forward pass of the loop reads, and how much cache that takes."""

from __future__ import annotations

from typing import NamedTuple

PASS = {"cpu": 16, "cuda": 256}
"""The fixed cost of a pass, counted in candidates. On two cores the weights and Python take as long
as a dozen of them, some more when the machine is slow (`benchmarks/lookahead.py`). On a GPU, where
it has not been measured yet, a few hundred rows are multiplied while the weights are read."""
RESERVED_CANDIDATES, RESERVED_LAZILY = 64, 24
"""Candidates per row that memory is reserved for: if all are read, and if few are."""
RESERVED_TOKENS = 1024
"""Up to this many new tokens, memory for all is reserved at once; for longer texts it grows."""
ROUNDED_ROOM = 256
"""The cache of a compiled pass grows in steps of this many positions: few lengths are compiled."""


def share(device: str, rows: int, first: bool) -> int:
    """Candidates that one pass reads for each of some rows.

    The pass reads as many candidates as its fixed cost is worth, over all rows, so it costs at most
    twice the minimum. Most rows are settled by their first candidate or two: a first pass reads at
    most a quarter of that for one row. Rows that are still open read at least two each. A compiled
    pass is always as wide as the first.
    """
    cost = PASS.get(device, 64)
    return max(1, cost // max(4, rows)) if first else max(2, cost // rows)


class Room(NamedTuple):
    """The size of the passes of one batch.

    Attributes:
        width: the most candidates of a row in one pass.
        positions: positions of cache to reserve for text and candidates; 0 if the cache grows,
            because a text may be long and end early.
    """

    width: int
    positions: int


def room(
    *,
    device: str,
    rows: int,
    prompt_length: int,
    max_length: int,
    limits: list[int],
    reads_everything: bool,
    compiled: bool,
) -> Room:
    """The room that a batch needs.

    Args:
        rows: rows of the batch.
        prompt_length, max_length: tokens of the padded prompts, and of the longest text.
        limits: the limits of top-k that are set.
        reads_everything: whether every pass reads all candidates.
    """
    most = min([*limits, RESERVED_CANDIDATES])
    width = most if reads_everything else min(most, share(device, rows, True))
    if compiled:  # all rows take part in every pass, so hard rows must not need many
        width = max(width, min(most, 4))
        return Room(width, -(-max_length // ROUNDED_ROOM) * ROUNDED_ROOM)
    if max_length - prompt_length > RESERVED_TOKENS:
        return Room(width, 0)
    beside = most if reads_everything else min(most, max(RESERVED_LAZILY, 2 * width))
    return Room(width, max_length + beside)
