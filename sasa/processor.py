"""SASA as a logits processor: a drop-in for any `generate()` (Ko et al. 2025, Algorithm 1).

It sees what every processor sees, token ids and scores, and listens to what `generate()` has the model read, so as to
look ahead from the same cache. It changes scores and nothing else.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel
from transformers.utils import ModelOutput

from sasa.candidates import check_truncation, select
from sasa.embedding import layers_of
from sasa.lookahead import BorrowedCache, Lookahead, packs
from sasa.values import BETA, VALUE, Boundaries, Steering

DEFAULT_TOP_K = 20


class SASALogitsProcessor(LogitsProcessor):
    """Adds beta times the value of `margin(text + candidate)` to the scores of the candidates; all others become impossible.

    This is the closest distribution to the model's own, in KL divergence, with a given expected value.

        model.generate(**inputs, do_sample=True, logits_processor=[SASALogitsProcessor(model, boundary, beta=1.0)])

    Where `generate()` keeps whole texts in a `DynamicCache`, as it does for most models, the look-ahead uses that cache;
    elsewhere (sliding windows, static and quantized caches) it reads the texts into one of its own.

    Beam search is followed, at the price of reading the texts again where beams move. Modes that take tokens back (assisted
    decoding, prompt lookup) are not.

    `generate()` applies temperature, top-k and top-p after its custom processors. To truncate before reweighting, as
    the method has it, give top_k and top_p here; `sasa.generate` also puts the temperature first.

    Args:
        model: the model that generates, in eval mode.
        boundary: fitted on that model; or several with a weight each, [(boundary, weight), …], from the same forward pass.
        beta: strength, >= 0. At 0 the scores are returned untouched.
        value: what a margin is worth: `log_sigmoid`, the log-probability of being safe, or `raw`, itself (the paper); see
            `sasa.values`.
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
        boundary: Boundaries,
        beta: float = BETA,
        top_k: int | None = None,
        top_p: float | None = None,
        *,
        value: str = VALUE,
        attention_mask: Tensor | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
    ) -> None:
        check_truncation(top_k, top_p)
        steering = Steering.of(boundary, beta, value)
        steering.check(model)
        self.model = model
        self.steering = steering.to(model.device)
        self.top_k = DEFAULT_TOP_K if top_k is None and top_p is None else top_k
        self.top_p = top_p
        self.attention_mask = attention_mask
        self.eos = torch.tensor(token_ids(model, "eos_token_id", eos_token_id), dtype=torch.long, device=model.device)
        # generate() pads with EOS where there is no pad token, and so do most tokenizers
        self.pad = token_ids(model, "pad_token_id", pad_token_id) or self.eos.tolist()
        self.bos = token_ids(model, "bos_token_id", None)
        self._look: Lookahead | None = None
        self._heard: Lookahead | None = None  # over the texts that generate() reads, from its own cache
        self._lender: weakref.ref[Any] | None = None  # that cache
        if beta:
            listen(self)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Reweighted scores, float (B, V), of ids (B, T) and scores (B, V)."""
        if self.steering.beta == 0:
            return scores
        candidates = select(scores, self.top_k, self.top_p)
        return self.steering.reweight(scores, candidates, self.margins(input_ids, candidates.ids))

    def margins(self, input_ids: Tensor, candidates: Tensor) -> Tensor:
        """Margins, float32 (B, K, S) by S boundaries, of the texts (B, T) extended by each candidate (B, K).

        Of an EOS it is the text's own.
        """
        look, new = self._follow(input_ids)
        return self.steering.margins(look, self.eos, new, candidates)

    def _follow(self, input_ids: Tensor) -> tuple[Lookahead, Tensor]:
        """The look-ahead over these texts, and the tokens that it has not read.

        Texts that extend those of the last call by one token go on with the same generation, all others begin a new one.
        """
        if (heard := self._overheard(input_ids)) is not None:
            self._look = heard
            return heard, input_ids[:, :0]
        look = self._look
        if look is not None and len(look.ids) == len(input_ids) and 0 <= input_ids.shape[1] - look.ids.shape[1] <= 1:
            kept = input_ids[:, : look.ids.shape[1]]
            if torch.equal(look.ids, kept):
                return look, input_ids[:, look.ids.shape[1] :]
            extends = (kept[:, None] == look.ids[None]).all(-1)
            if extends.any(1).all():  # the rows have moved, as in beam search: the texts are read again
                prompt_mask = look.prompt_mask[extends.int().argmax(1)]
                self._look = Lookahead(self.model, self.steering.specs, prompt_mask, margins_only=True)
                return self._look, input_ids
        self._look = Lookahead(self.model, self.steering.specs, self._prompt_mask(input_ids), margins_only=True)
        return self._look, input_ids

    def hear(self, ids: Tensor, cache: Any, mask: Tensor | None, states: Tensor) -> None:
        """Is told of a pass: tokens (B, n) that went into a cache, the mask of all in it, and the states (L, B, n, d)."""
        if self._lender is None or self._lender() is not cache:
            self._lender, self._heard = weakref.ref(cache), None
            begins = cache.get_seq_length() == ids.shape[1] and BorrowedCache.lends(cache)
            if begins and mask is not None and mask.shape == ids.shape and packs(self.model):
                lent = BorrowedCache(cache)
                self._heard = Lookahead(self.model, self.steering.specs, mask, cache=lent, margins_only=True)
        if self._heard is not None:
            self._heard.follow(ids, states)

    def _overheard(self, input_ids: Tensor) -> Lookahead | None:
        """What was heard, if it is just these texts; where it is not, it will not be later on."""
        heard = self._heard
        if heard is None or self._lender is None or self._lender() is None:
            return None
        same = torch.equal(heard.ids, input_ids)
        if same and heard is not self._look:  # it begins here
            same = heard.prompt_length == input_ids.shape[1]
            if self.attention_mask is not None:
                same = same and torch.equal(heard.prompt_mask, self._prompt_mask(input_ids).to(heard.prompt_mask))
        if not same:
            self._heard = None
        return self._heard

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


def listen(processor: SASALogitsProcessor) -> None:
    """Tells the processor of every pass that its model makes into a `DynamicCache`, for as long as the processor lives."""
    told = weakref.ref(processor)
    layers = list(layers_of(processor.steering.specs))  # known again by its identity: others may ask for states, too

    def before(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        heard = isinstance(kwargs.get("past_key_values"), DynamicCache) and kwargs.get("input_ids") is not None
        if heard and not kwargs.get("output_hidden_states") and not torch.compiler.is_compiling():
            kwargs = kwargs | {"output_hidden_states": layers}
        return args, kwargs

    def after(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if kwargs.get("output_hidden_states") is not layers or not isinstance(output, ModelOutput):
            return output
        listener = told()
        if listener is not None:
            states = torch.stack([output["hidden_states"][layer] for layer in layers])
            listener.hear(kwargs["input_ids"], kwargs["past_key_values"], kwargs.get("attention_mask"), states)
        return type(output)(**{name: value for name, value in output.items() if name != "hidden_states"})

    for handle in (
        processor.model.register_forward_pre_hook(before, with_kwargs=True),
        processor.model.register_forward_hook(after, with_kwargs=True),
    ):
        weakref.finalize(processor, handle.remove)


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
