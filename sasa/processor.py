"""SASA as a logits processor: a drop-in for any `generate()` (Ko et al. 2025, Algorithm 1).

It sees what every processor sees, token ids and scores, and keeps its own look-ahead over the ids. It changes scores
and nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from sasa.boundary import Boundary
from sasa.candidates import Candidates, check_truncation, select
from sasa.lookahead import Lookahead

DEFAULT_TOP_K = 20


class SASALogitsProcessor(LogitsProcessor):
    """Adds `beta * margin(text + candidate)` to the scores of the candidates; all other tokens become impossible.

    This is the closest distribution to the model's own, in KL divergence, with a given expected margin.

        model.generate(**inputs, do_sample=True, logits_processor=[SASALogitsProcessor(model, boundary, beta=1.0)])

    Beam search is followed, at the price of reading the texts again where beams move. Modes that take tokens back (assisted
    decoding, prompt lookup) are not.

    `generate()` applies temperature, top-k and top-p after its custom processors. To truncate before reweighting, as
    the method has it, give top_k and top_p here; `sasa.generate` also puts the temperature first.

    Args:
        model: the model that generates, in eval mode.
        boundary: fitted on that model.
        beta: strength, >= 0. At 0 the scores are returned untouched.
        top_k: the candidates are at most the k likeliest; 0 for no limit; None for 20, or for no limit where top_p is given.
        top_p: the candidates are the likeliest with this total probability, in (0, 1].
        attention_mask: (B, T) of the prompts, or of the distinct prompts where `num_return_sequences` repeats them.
            Where None, leading pad tokens are padding.
        eos_token_id, pad_token_id: where they are not those of the model's generation config.

    Raises:
        ValueError: an argument outside its range, or a boundary that was not fitted for the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        boundary: Boundary,
        beta: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        *,
        attention_mask: Tensor | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
    ) -> None:
        check_beta(beta)
        check_truncation(top_k, top_p)
        boundary.check(model)
        self.model = model
        self.boundary = boundary.to(model.device)
        self.beta = float(beta)
        self.top_k = DEFAULT_TOP_K if top_k is None and top_p is None else top_k
        self.top_p = top_p
        self.attention_mask = attention_mask
        self.eos = torch.tensor(token_ids(model, "eos_token_id", eos_token_id), dtype=torch.long, device=model.device)
        # generate() pads with EOS where there is no pad token, and so do most tokenizers
        self.pad = token_ids(model, "pad_token_id", pad_token_id) or self.eos.tolist()
        self.bos = token_ids(model, "bos_token_id", None)
        self._look: Lookahead | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Reweighted scores, float (B, V), of ids (B, T) and scores (B, V)."""
        if self.beta == 0:
            return scores
        candidates = select(scores, self.top_k, self.top_p)
        return reweight(scores, candidates, self.margins(input_ids, candidates.ids), self.beta)

    def margins(self, input_ids: Tensor, candidates: Tensor) -> Tensor:
        """Margins, float32 (B, K), of the texts (B, T) extended by each candidate (B, K); of an EOS, the text's own."""
        look, new = self._follow(input_ids)
        return candidate_margins(look, self.boundary, self.eos, new, candidates)

    def _follow(self, input_ids: Tensor) -> tuple[Lookahead, Tensor]:
        """The look-ahead over these texts, and the tokens that it has not read.

        Texts that extend those of the last call by one token go on with the same generation, all others begin a new one.
        """
        look = self._look
        if look is not None and len(look.ids) == len(input_ids) and 0 <= input_ids.shape[1] - look.ids.shape[1] <= 1:
            kept = input_ids[:, : look.ids.shape[1]]
            if torch.equal(look.ids, kept):
                return look, input_ids[:, look.ids.shape[1] :]
            extends = (kept[:, None] == look.ids[None]).all(-1)
            if extends.any(1).all():  # the rows have moved, as in beam search: the texts are read again
                prompt_mask = look.prompt_mask[extends.int().argmax(1)]
                self._look = Lookahead(self.model, self.boundary.embedding, prompt_mask)
                return self._look, input_ids
        self._look = Lookahead(self.model, self.boundary.embedding, self._prompt_mask(input_ids))
        return self._look, input_ids

    def _prompt_mask(self, input_ids: Tensor) -> Tensor:
        """Attention mask of the prompts, as given or read off the leading pad tokens."""
        if self.attention_mask is not None:
            mask = self.attention_mask.to(input_ids.device)
            if mask.shape[1] == input_ids.shape[1] and len(input_ids) % len(mask) == 0:
                return mask.repeat_interleave(len(input_ids) // len(mask), 0)
            raise ValueError(f"attention_mask is {tuple(mask.shape)}, the prompts are {tuple(input_ids.shape)}")
        if not self.pad:
            return torch.ones_like(input_ids)
        leading = (input_ids == self.pad[0]).long().cumprod(1)
        if self.pad[0] in self.bos:
            # Texts that open with this very token: the longest one has no padding, so what it opens with is text.
            count = leading.sum(1, keepdim=True)
            place = torch.arange(input_ids.shape[1], device=input_ids.device)
            leading = (place < count - count.min()).long()
        leading[:, -1] = 0
        return 1 - leading


def candidate_margins(look: Lookahead, boundary: Boundary, eos: Tensor, new: Tensor, candidates: Tensor) -> Tensor:
    """Appends tokens `new` (B, n) to the texts; margins, float32 (B, K), of the texts with each candidate (B, K).

    EOS is a candidate but not a text: it gets the margin of the text that it would end.
    """
    text, ahead = look.look(new, candidates)
    ends = (candidates[..., None] == eos).any(-1)
    return torch.where(ends, boundary.margin(text)[:, None], boundary.margin(ahead))


def reweight(scores: Tensor, candidates: Candidates, margins: Tensor, beta: float) -> Tensor:
    """z'(v) = z(v) + beta * margin(v) for the candidates of scores (B, V), -inf for all else."""
    values = scores.gather(1, candidates.ids) + beta * margins.to(scores.dtype)
    values = values.masked_fill(~candidates.mask, -torch.inf)
    return torch.full_like(scores, -torch.inf).scatter_(1, candidates.ids, values)


def check_beta(beta: float) -> None:
    """Raises ValueError where beta is not a finite number >= 0."""
    if not math.isfinite(beta) or beta < 0:
        raise ValueError(f"beta must be >= 0, got {beta}")


def token_ids(model: PreTrainedModel, name: str, given: Any) -> list[int]:
    """A special token's ids: as given, else the generation config's, else the model config's, else none."""
    for source in (
        given,
        getattr(model.generation_config, name, None),
        getattr(model.config.get_text_config(), name, None),
    ):
        if source is not None:
            return [int(i) for i in (source if isinstance(source, (list, tuple)) else [source])]
    return []
