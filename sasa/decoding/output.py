"""The output of the decoding loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput

from sasa.core.backtracking import History


@dataclass
class SASAOutput(GenerateDecoderOnlyOutput):
    """The result of `generate()` with `return_dict_in_generate`, and the margins.

    Attributes:
        margins: a tensor (B, S) per step: the margins, by each of S boundaries, of the text with the
            token that was chosen. After a text's end they have no meaning, and are NaN once the row
            has left the batch.
        candidates, candidate_margins: tensors (B, K) and (B, K, S) per step, with `output_scores`:
            the candidates' ids and margins. Where a row has fewer than K candidates, the rest are
            others that were computed along; their score is -inf.
        histories: with backtracking, one per row: what was discarded, and why.
        candidates_read: int64 (B,), candidates that were read for each row in all its steps,
            including those that filled up a pass for rows that had more.
        passes: forward passes over candidates.
    """

    margins: tuple[Tensor, ...] | None = None
    candidates: tuple[Tensor, ...] | None = None
    candidate_margins: tuple[Tensor, ...] | None = None
    histories: list[History] | None = None
    candidates_read: Tensor | None = None
    passes: int | None = None


class Record(NamedTuple):
    """One step's tensors for `SASAOutput`.

    Attributes:
        rows: int64 (R,), the rows of the batch that were followed.
        margins: (R, S), of the texts with the chosen tokens.
        ids, all_margins: (R, K) and (R, K, S), of all candidates, if these are recorded.
        scores, logits: (B, V), if these are recorded.
    """

    rows: Tensor
    margins: Tensor
    ids: Tensor | None
    all_margins: Tensor | None
    scores: Tensor | None
    logits: Tensor | None


def output_of_histories(
    histories: list[History], prompts: Tensor, boundaries: int, fill: int
) -> SASAOutput:
    """The delivered responses after their prompts, with padding after the shorter ones.

    Args:
        prompts: int64 (B, T).
        boundaries: the number S of boundaries.
        fill: the token id of the padding.
    """
    width = max(len(row.tokens) for row in histories)
    written = prompts.new_full((len(histories), width), fill)
    margins = torch.full((len(histories), width, boundaries), torch.nan)
    for b, row in enumerate(histories):
        written[b, : len(row.tokens)] = prompts.new_tensor(row.tokens)
        margins[b, : len(row.tokens)] = torch.tensor(row.margins).view(len(row.tokens), boundaries)
    return SASAOutput(
        sequences=cast(torch.LongTensor, torch.cat([prompts, written], 1)),
        margins=margins.to(prompts.device).unbind(1),
        histories=histories,
    )


def output_of_records(
    records: Sequence[Record], ids: Tensor, config: GenerationConfig
) -> SASAOutput:
    """The texts, int64 (B, T), and each step's tensors over the whole batch."""

    def whole(record: Record, part: Tensor | None, fill: float) -> Tensor:
        assert part is not None
        return part.new_full((len(ids), *part.shape[1:]), fill).index_copy(0, record.rows, part)

    out = SASAOutput(
        sequences=cast(torch.LongTensor, ids),
        margins=tuple(whole(record, record.margins, torch.nan) for record in records),
    )
    if config.output_logits:
        out.logits = cast(Any, tuple(record.logits for record in records))
    if config.output_scores:
        out.scores = cast(Any, tuple(record.scores for record in records))
        out.candidates = tuple(whole(record, record.ids, 0) for record in records)
        out.candidate_margins = tuple(
            whole(record, record.all_margins, torch.nan) for record in records
        )
    return out
