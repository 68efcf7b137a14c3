"""The texts of a batch as token ids: left-padded prompts, and what has been written behind them."""

from __future__ import annotations

import torch
from torch import Tensor


class Texts:
    """A batch of growing texts that end together.

    Args:
        prompt_mask: int64 (B, T), 0 at the padding on the left of the prompts.

    Attributes:
        ids: int64 (B, T'), the texts so far, padding included.
        prompt_length: T.
    """

    def __init__(self, prompt_mask: Tensor) -> None:
        self.prompt_mask = prompt_mask
        self.prompt_length = prompt_mask.shape[1]
        self.ids = prompt_mask.new_empty(len(prompt_mask), 0)

    @property
    def length(self) -> int:
        """T', padding included."""
        return self.ids.shape[1]

    def mask(self, length: int | None = None) -> Tensor:
        """Attention mask, int64 (B, length), of the first `length` tokens; of all where None.

        Behind the prompt there are ones only: what is written is never padding.
        """
        length = self.length if length is None else length
        written = self.prompt_mask.new_ones(
            len(self.prompt_mask), max(0, length - self.prompt_mask.shape[1])
        )
        return torch.cat([self.prompt_mask[:, :length], written], 1)

    def append(self, tokens: Tensor) -> None:
        """Appends tokens, int64 (B, n)."""
        self.ids = torch.cat([self.ids, tokens], 1)

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, int64 (B',), in this order; a row may come more than once."""
        self.ids, self.prompt_mask = self.ids[rows], self.prompt_mask[rows]

    def rewind(self, back: Tensor) -> None:
        """Drops the last tokens of each row, int64 (B,) of them, and moves what stays to the right.

        Texts still end together. They keep their positions, which are counted from the attention
        mask; what they leave on the left is padding.
        """
        width = self.length
        source = torch.arange(width, device=back.device) - back[:, None]
        mask = self.mask().gather(1, source.clamp(min=0))
        self.prompt_mask = mask * (source >= 0)
        self.ids = self.ids.gather(1, source.clamp(min=0))
