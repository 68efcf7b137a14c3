"""SASA as a logits processor: a drop-in for any `generate()` (Ko et al. 2025, Algorithm 1).

It gets what every processor gets, token ids and scores. A hook on the model's forward passes lets
it look ahead from the cache that `generate()` keeps. It changes scores and nothing else.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel
from transformers.utils import ModelOutput

from sasa.core.candidates import select
from sasa.core.embedding_spec import layers_of
from sasa.core.settings import BETA, PRIOR, TOP_K, VALUE, check_truncation
from sasa.core.values import Boundaries, Steering
from sasa.decoding.lookahead import BorrowedCache, Lookahead, packs
from sasa.models.heads import token_ids
from sasa.models.inputs import cache_of, check_model, inputs_beside_ids, is_filled, other_maker
from sasa.models.parts import some_states


class SASALogitsProcessor(LogitsProcessor):
    """Adds beta times the value of `margin(text + candidate)` to the scores of the candidates; all
    others become impossible.

    This is the closest distribution to the model's own, in KL divergence, with a given expected
    value.

        model.generate(**inputs, do_sample=True, logits_processor=[SASALogitsProcessor(model,
        boundary, beta=1.0)])

    Where `generate()` keeps whole texts in a `DynamicCache`, as it does for most models, the
    look-ahead uses that cache; elsewhere (sliding windows, static and quantized caches) it reads
    the texts into one of its own.

    Beam search is followed, at the price of reading the texts again where beams move. Modes that
    take tokens back (assisted decoding, prompt lookup) are not.

    `generate()` applies temperature, top-k and top-p after its custom processors. To truncate
    before reweighting, as the method has it, give top_k and top_p here; `sasa.generate` also puts
    the temperature first.

    Args:
        model: the model that generates, in eval mode.
        boundary: fitted on that model; or several with a weight each, [(boundary, weight), …], from
            the same forward pass.
        beta: strength, >= 0. At 0 the scores are returned untouched.
        value: what a margin is worth: `log_sigmoid`, the log-probability of being safe, or `raw`,
            itself (the paper); see `sasa.core.values`.
        prior: the share of text that is unsafe, in (0, 1), for `log_sigmoid`: the lower, the surer
            the boundary has to be before it steers. 0.5 takes both classes for equally likely.
        top_k: the candidates are at most the k likeliest; 0 for no limit; None for 20, or for no
            limit where top_p is given.
        top_p: the candidates are the likeliest with this total probability, in (0, 1].
        attention_mask: (B, T) of the prompts, or of the distinct prompts where
            `num_return_sequences` repeats them. Where None, leading pad tokens are padding.
        eos_token_id, pad_token_id: where they are not those of the model's generation config.

    Raises:
        ValueError: an argument outside its range, a boundary that was not fitted for the model, or a
            model that is not on one device; in a call, inputs other than token ids.
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
        prior: float = PRIOR,
        attention_mask: Tensor | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
    ) -> None:
        check_truncation(top_k, top_p)
        check_model(model)
        steering = Steering.of(boundary, beta, value, prior)
        steering.check(model)
        self.model = model
        self.steering = steering.to(model.device)
        self.top_k = TOP_K if top_k is None and top_p is None else top_k
        self.top_p = top_p
        self.attention_mask = attention_mask
        self.eos = torch.tensor(
            token_ids(model, "eos_token_id", eos_token_id), dtype=torch.long, device=model.device
        )
        # generate() pads with EOS where there is no pad token, and so do most tokenizers
        self.pad = token_ids(model, "pad_token_id", pad_token_id) or self.eos.tolist()
        self.bos = token_ids(model, "bos_token_id", None)
        self._look: Lookahead | None = None
        self._before: tuple[Tensor, Tensor] | None = (
            None  # the texts of the last call, and their prompts' mask
        )
        self._shared: Lookahead | None = (
            None  # over the texts that generate() reads, from its own cache
        )
        self._owner: weakref.ref[Any] | None = None  # that cache
        # Inputs of a text's first pass that the look-ahead cannot follow, and the cache that they are in.
        self._beside: tuple[list[str], weakref.ref[Any] | None] = [], None
        if beta:
            watch_passes(self)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Reweighted scores, float (B, V), of ids (B, T) and scores (B, V)."""
        if self.steering.beta == 0:
            return scores
        candidates = select(scores, self.top_k, self.top_p)
        return self.steering.reweight(scores, candidates, self.margins(input_ids, candidates.ids))

    def margins(self, input_ids: Tensor, candidates: Tensor) -> Tensor:
        """Margins, float32 (B, K, S) by S boundaries, of the texts (B, T) extended by each
        candidate (B, K).

        Of an EOS it is the text's own.
        """
        beside, cache = self._beside
        if beside and cache is not None and cache() is not None:
            raise ValueError(
                f"SASALogitsProcessor reads token ids, and the model was given {', '.join(beside)} beside them"
            )
        given, device = candidates.device, self.model.device
        input_ids, candidates = input_ids.to(device), candidates.to(device)
        look = self._follow(input_ids)
        extended = look.peek(candidates)
        return self.steering.margins(
            look.embeddings(), extended, torch.isin(candidates, self.eos)
        ).to(given)

    def _follow(self, input_ids: Tensor) -> Lookahead:
        """The look-ahead over these texts.

        Texts that extend those of the last call by one token go on with the same generation, all
        others begin a new one.
        """
        before = self._before
        self._look = self._shared_look(input_ids) or self._going_on(input_ids, before)
        self._before = input_ids.clone(), self._look.prompt_mask
        return self._look

    def _going_on(self, input_ids: Tensor, before: tuple[Tensor, Tensor] | None) -> Lookahead:
        """The look-ahead with a cache of its own, over texts that were `before`, with their prompts' mask, or over others."""
        if before is not None:
            ids, prompt_mask = before
            if len(ids) == len(input_ids) and 0 <= input_ids.shape[1] - ids.shape[1] <= 1:
                kept, look = input_ids[:, : ids.shape[1]], self._look
                if look is not None and torch.equal(look.ids, kept):
                    look.append(input_ids[:, ids.shape[1] :])
                    return look
                extends = (kept[:, None] == ids[None]).all(-1)
                if extends.any(
                    1
                ).all():  # the rows have moved, as in beam search: the texts are read again
                    return self._begin(input_ids, prompt_mask[extends.int().argmax(1)])
        return self._begin(input_ids, self._prompt_mask(input_ids))

    def _begin(self, input_ids: Tensor, prompt_mask: Tensor) -> Lookahead:
        """A look-ahead with a cache of its own."""
        look = Lookahead(self.model, self.steering.specs, prompt_mask, margins_only=True)
        look.append(input_ids)
        return look

    def on_inputs(self, inputs: dict[str, Any]) -> None:
        """Takes down what a pass of `generate()` gives the model, where a text begins."""
        cache, ids = cache_of(inputs), inputs.get("input_ids")
        # A static cache knows its length on the device alone, for which nothing waits at each token.
        goes_on = ids is not None and ids.shape[1] == 1 and not isinstance(cache, DynamicCache)
        if cache is None or goes_on or (is_filled(cache) and other_maker(self.model) is None):
            return
        names = inputs_beside_ids(
            self.model, {k: v for k, v in inputs.items() if not k.startswith("output_")}
        )
        self._beside = names, weakref.ref(cache)

    def on_forward(self, ids: Tensor, cache: Any, mask: Tensor | None, states: Tensor) -> None:
        """Follows a pass of the model.

        Args:
            ids: int64 (B, n), what went into the cache; mask: (B, T), of all that is in it.
            states: (L, B, n, d), of the layers that the boundaries look at.
        """
        if self._owner is None or self._owner() is not cache:
            self._owner, self._shared = weakref.ref(cache), None
            begins = cache.get_seq_length() == ids.shape[1] and BorrowedCache.can_borrow(cache)
            if begins and mask is not None and mask.shape == ids.shape and packs(self.model):
                borrowed = BorrowedCache(cache)
                self._shared = Lookahead(
                    self.model, self.steering.specs, mask, cache=borrowed, margins_only=True
                )
        if self._shared is not None:
            self._shared.follow(ids, states)

    def _shared_look(self, input_ids: Tensor) -> Lookahead | None:
        """The look-ahead on `generate()`'s own cache, if it holds just these texts; where not, it
        will not later on.
        """
        shared = self._shared
        if shared is None or self._owner is None or self._owner() is None:
            return None
        same = torch.equal(shared.ids, input_ids)
        if same and shared is not self._look:  # it begins here
            same = shared.prompt_length == input_ids.shape[1]
            if self.attention_mask is not None:
                same = same and torch.equal(
                    shared.prompt_mask, self._prompt_mask(input_ids).to(shared.prompt_mask)
                )
        if not same:
            self._shared = None
        return self._shared

    def _prompt_mask(self, input_ids: Tensor) -> Tensor:
        """Attention mask of the prompts, as given or read off the leading pad tokens."""
        if self.attention_mask is not None:
            mask = self.attention_mask.to(input_ids.device)
            if mask.shape[1] == input_ids.shape[1] and len(input_ids) % len(mask) == 0:
                return mask.repeat_interleave(len(input_ids) // len(mask), 0)
            raise ValueError(
                f"attention_mask is {tuple(mask.shape)}, the prompts are {tuple(input_ids.shape)}"
            )
        if not self.pad:
            return torch.ones_like(input_ids)
        leading = (input_ids == self.pad[0]).long().cumprod(1)
        if self.pad[0] in self.bos:
            # Texts that open with this very token: the longest one has no padding, so what it opens
            # with is text.
            count = leading.sum(1, keepdim=True)
            place = torch.arange(input_ids.shape[1], device=input_ids.device)
            leading = (place < count - count.min()).long()
        leading[:, -1] = 0
        return 1 - leading


def watch_passes(processor: SASALogitsProcessor) -> None:
    """Has `on_forward` called for every pass of the model into a `DynamicCache`, for as long as the
    processor lives.
    """
    living = weakref.ref(processor)
    layers = list(layers_of(processor.steering.specs))
    ours = False  # whether it is this processor alone that wants the states of the pass under way

    def before(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        nonlocal ours
        if torch.compiler.is_compiling():
            return args, kwargs
        if (follower := living()) is not None:
            follower.on_inputs(kwargs)
        cached = isinstance(cache_of(kwargs), DynamicCache) and kwargs.get("input_ids") is not None
        ours = cached and not kwargs.get("output_hidden_states")
        return args, kwargs | {"output_hidden_states": some_states(layers)} if ours else kwargs

    def after(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if torch.compiler.is_compiling() or not ours or not isinstance(output, ModelOutput):
            return output
        follower = living()
        if follower is not None:
            states = torch.stack([output["hidden_states"][layer] for layer in layers])
            follower.on_forward(
                kwargs["input_ids"], cache_of(kwargs), kwargs.get("attention_mask"), states
            )
        return type(output)(
            **{name: value for name, value in output.items() if name != "hidden_states"}
        )

    for handle in (
        processor.model.register_forward_pre_hook(before, with_kwargs=True),
        processor.model.register_forward_hook(after, with_kwargs=True),
    ):
        weakref.finalize(processor, handle.remove)
