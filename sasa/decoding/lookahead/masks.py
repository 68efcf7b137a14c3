"""Attention masks under which the candidates of a text stand side by side behind it.

A row of the picture is a token of the pass, a column is a key in the cache, and an x says that the
token sees the key. K = 4 candidates behind a text of L = 9 tokens, in a first pass:

                the text, L keys        the candidates, K keys
    K tokens    . . x x x x x x x       x . . .
                . . x x x x x x x       . x . .
                . . x x x x x x x       . . x .
                . . x x x x x x x       . . . x

Each candidate sees the text and itself. The dots on the left are padding, or what has left a
sliding window: they are those of one ordinary next token, whose mask transformers makes. A later
pass for the same text writes its keys behind those of the first one, and does not see them:

                the text                first pass      second pass
    2 tokens    . . x x x x x x x       . . . .         x .
                . . x x x x x x x       . . . .         . x

Where n tokens that belong to the text are read along with the candidates, they come first, and the
mask has n ordinary rows above the picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from sasa.models.states import positions


def side_by_side(
    model: PreTrainedModel,
    cache: Any,
    mask: Tensor,
    n: int,
    k: int,
    first: int | None = None,
    width: int | None = None,
) -> Tensor | dict[str, Tensor]:
    """Masks (B, 1, n + k, W) of n tokens of the text and k candidates, for each kind of layer.

    Args:
        cache: holds the L tokens before these.
        mask: int64 (B, L + n + 1), the texts' own attention mask and a 1 for the candidate.
        first: the key at which the candidates' begin; right behind the text where None.
        width: W, how many keys there are; first + k where None.
    """
    # Of this, shape and dtype count and nothing else.
    like = torch.empty(len(mask), n + 1, 1, dtype=model.dtype, device=mask.device)
    place = positions(mask)[:, -n - 1 :]
    ordinary = create_masks_for_generate(model.config, like, mask, cache, place)
    length = mask.shape[1]
    first = length - 1 if first is None else first
    width = first + k if width is None else width
    if isinstance(ordinary, dict):
        return {kind: _pack(one, mask, n, k, first, width) for kind, one in ordinary.items()}
    return _pack(ordinary, mask, n, k, first, width)


def _pack(ordinary: Tensor | None, mask: Tensor, n: int, k: int, first: int, width: int) -> Tensor:
    """The masks of one kind of layer, from that of n + 1 ordinary tokens, (B, 1, n + 1, L + n + 1)."""
    rows, length = mask.shape
    if ordinary is None:  # transformers leaves plain causal attention to the kernel
        query = torch.arange(length - n - 1, length, device=mask.device)
        sees = torch.arange(length, device=mask.device) <= query[:, None]
        ordinary = sees.expand(rows, 1, -1, -1)
    sees = ordinary if ordinary.dtype == torch.bool else ordinary == 0
    packed = sees.new_zeros(rows, 1, n + k, width)
    packed[:, :, :n, : length - 1] = sees[:, :, :n, :-1]
    packed[:, :, n:, : length - 1] = sees[:, :, n:, :-1]
    # Every token sees itself; for padding this is all it sees, which keeps its softmax finite.
    packed[:, :, :n].diagonal(offset=length - 1 - n, dim1=2, dim2=3).fill_(True)
    packed[:, :, n:].diagonal(offset=first, dim1=2, dim2=3).fill_(True)
    if ordinary.dtype == torch.bool:
        return packed
    lowest = torch.finfo(ordinary.dtype).min
    return torch.where(packed, ordinary.new_zeros(()), lowest)
