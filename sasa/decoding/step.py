"""One step of the decoding loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from sasa.core.candidates import Candidates, Race
from sasa.core.values import Steering
from sasa.decoding.tracing import Draw


@dataclass
class Step:
    """A step in the making.

    Attributes:
        rows: int64 (R,), the rows of the batch that are followed.
        race: which of their candidates wins.
        beta: the strength of each row, (R, 1), or of all.
        texts: the embeddings (R, d) of their texts as they are, for each boundary.
        margins: (R, S), of the texts with the winners so far.
        among, all_margins, added: where all candidates are recorded, these, their margins (R, K, S),
            and what was added to their keys (R, K).
        scores: with `output_scores`, (B, V); before: with a tracer, the candidates' own (R, K).
    """

    rows: Tensor
    race: Race
    beta: Tensor | float
    texts: list[Tensor]
    margins: Tensor
    among: Candidates | None = None
    all_margins: Tensor | None = None
    added: Tensor | None = None
    scores: Tensor | None = None
    before: Tensor | None = None

    def drawn(self, steering: Steering, unfinished: Tensor) -> Draw:
        """The step for a tracer, once all candidates have been read.

        Args:
            unfinished: int64 (B,), 1 where a row of the batch has not ended.
        """
        among = cast(Candidates, self.among)
        margins = cast(Tensor, self.all_margins)
        return Draw(
            rows=self.rows,
            going=unfinished[self.rows].bool(),
            tokens=self.race.winner,
            ids=among.ids,
            mask=among.mask,
            scores=cast(Tensor, self.before),
            margins=margins,
            values=steering.values(margins),
            shifts=cast(Tensor, self.added),
            beta=self.beta,
        )
