"""Logits of another model, or of the same one after a prefix, for texts as they are generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sasa.models.states import cache_name


class Stream:
    """Next-token logits for growing texts; each text is read once, with a cache.

    Rows must have the same length: `sasa.generate` batches only prompts of the same length if a
    logits processor reads texts.

    Args:
        prefix: token ids before every text, but after its first token if that is `bos`.
        bos: the token with which the tokenizer starts texts.
    """

    def __init__(
        self, model: PreTrainedModel, prefix: Sequence[int] = (), bos: int | None = None
    ) -> None:
        self._model: Any = model
        self._prefix, self._bos = list(prefix), bos
        self._read: Tensor | None = None
        self._cache: Any = None
        self._cache_name = cache_name(model)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Logits (B, V) after texts, int64 (B, T).

        The texts are those of the last call with one more token each, or new ones.
        """
        read = self._read
        if (
            read is not None
            and ids.shape == (len(read), read.shape[1] + 1)
            and torch.equal(ids[:, :-1], read)
        ):
            out = self._model(
                input_ids=ids[:, -1:], use_cache=True, **{self._cache_name: self._cache}
            )
            logits = out.logits[:, -1]
        else:
            # Completions of one prompt start alike: each prompt is read once.
            different, of = torch.unique(ids, dim=0, return_inverse=True)
            out = self._model(
                input_ids=self._with_prefix(different), use_cache=True, logits_to_keep=1
            )
            layers = getattr(getattr(out, self._cache_name, None), "layers", None)
            if not layers or not all(hasattr(layer, "batch_select_indices") for layer in layers):
                return out.logits[of, -1]  # a recurrent model re-reads texts each time
            out[self._cache_name].batch_select_indices(of)
            logits = out.logits[of, -1]
        self._cache, self._read = out[self._cache_name], ids.clone()
        return logits

    def _with_prefix(self, ids: Tensor) -> Tensor:
        prefix = torch.tensor(self._prefix, dtype=torch.long, device=ids.device).expand(
            len(ids), -1
        )
        opening = 1 if self._bos is not None and bool((ids[:, 0] == self._bos).all()) else 0
        return torch.cat([ids[:, :opening], prefix, ids[:, opening:]], 1)
