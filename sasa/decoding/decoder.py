"""SASA as a decoding loop of its own, handed to `generate()` as `custom_generate`.

`generate()` prepares processors, stopping criteria and lengths as ever; `sasa.decoding.loop` does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from sasa.core.backtracking import Backtracking
from sasa.core.settings import BETA, PRIOR, VALUE, check_truncation
from sasa.core.values import Boundaries, Steering
from sasa.decoding.compat import streamer_of
from sasa.decoding.lookahead import packs
from sasa.decoding.loop import Decoding
from sasa.decoding.output import SASAOutput
from sasa.decoding.settings import DecoderSettings
from sasa.decoding.tracing import Tracer
from sasa.models.inputs import cache_of, check_model, inputs_beside_ids, is_filled


class SASADecoder:
    """Greedy decoding and sampling under SASA, as transformers' `custom_generate`.

        model.generate(**inputs, do_sample=True, top_k=50, top_p=0.9,
        custom_generate=SASADecoder(boundary, beta=1.0))

    All processors and warpers of `generate()` run first, in their usual order; what survives them
    is reweighted. A prompt is read once for all its `num_return_sequences`, and rows that have
    ended leave the forward pass.

    Args:
        boundary: fitted on the model that generates; or several with a weight each, [(boundary,
            weight), …], from the same pass; or None, with `beta=0` and a `backtrack` that waits for
            the model's own [RESET] alone.
        beta: strength, >= 0. At 0 it writes what plain `generate()` writes from the same seed.
        value: what a margin is worth: `log_sigmoid`, the log-probability of being safe, or `raw`,
            itself (the paper); see `sasa.core.values`.
        prior: the share of text that is unsafe, in (0, 1), for `log_sigmoid`: the lower, the surer
            the boundary has to be before it steers. 0.5 takes both classes for equally likely.
        top_k, top_p: a further limit to the candidates, after those of `generate()`. In greedy
            decoding, where `generate()` sets none, the candidates are the 20 likeliest unless top_k (0: no
            limit) or top_p is given.
        compiled: compiles the forward pass over the candidates, at its first call for each model
            and batch size, and has it replayed: on a GPU one launch a pass instead of hundreds.
            Rows that have ended stay in the pass, and attention goes over the whole room for the
            text, in steps of 256 tokens.
        backtrack: lets responses that have gone wrong go back, each row by itself; `max_new_tokens`
            is then what is delivered.
            Processors and stopping criteria see prompt and delivered response, which may get
            shorter from one step to the next: those that keep state of their own have to follow.
        refusal: with `backtrack`, token ids that a streamer gets in place of the rest of a response
            on which the budget was spent: behind a part that it has got, and from nothing.
        tracer: gets every step; all candidates of each are then read, and the tokens are the same.

    A streamer that is given to `generate()` gets every token; with `backtrack` what can no longer
    be taken back: the response up to its last safe point, and the rest at the end. Stop strings
    come as a `StopStringCriteria`, for `generate()` (5.23) hands a callable no tokenizer;
    `sasa.generate` sees to that.

    Raises:
        ValueError: a bad argument; in a call, a boundary for another model, or beams, assisted
            decoding, a cache that is already filled, inputs other than token ids, a model that is
            not on one device, or anything else that this loop does not do.
    """

    def __init__(
        self,
        boundary: Boundaries | None,
        beta: float = BETA,
        top_k: int | None = None,
        top_p: float | None = None,
        *,
        value: str = VALUE,
        prior: float = PRIOR,
        compiled: bool = False,
        backtrack: Backtracking | None = None,
        refusal: tuple[Sequence[int], Sequence[int]] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        check_truncation(top_k, top_p)
        self.steering = Steering.of(boundary, beta, value, prior)
        if not self.steering.terms and (backtrack is None or backtrack.threshold is not None):
            raise ValueError(
                "without a boundary there is only backtracking with threshold=None and a reset_token_id"
            )
        self.top_k = top_k
        self.top_p = top_p
        self.compiled = compiled
        self.backtrack = backtrack
        self.refusal = refusal
        self.tracer = tracer

    @property
    def settings(self) -> DecoderSettings:
        """The settings as they are now, for one call of the loop."""
        return DecoderSettings(
            steering=self.steering,
            top_k=self.top_k,
            top_p=self.top_p,
            compiled=self.compiled,
            backtrack=self.backtrack,
            refusal=self.refusal,
            tracer=self.tracer,
        )

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> Tensor | SASAOutput:
        """The loop; `generate()` calls it."""
        check_model(model, input_ids)
        self._refuse(model, generation_config, synced_gpus, model_kwargs)
        streamer = streamer or streamer_of(self)
        batch = Decoding(
            self.settings,
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            streamer,
        )
        batch.prefill(model_kwargs.get("attention_mask"))
        while batch.going_on():
            batch.advance()
        return batch.output()

    def _refuse(
        self,
        model: PreTrainedModel,
        config: GenerationConfig,
        synced_gpus: bool,
        model_kwargs: dict[str, Any],
    ) -> None:
        self.steering.check(model)
        why = {
            "beam search (use SASALogitsProcessor)": (config.num_beams or 1) > 1,
            "assisted decoding": config.prompt_lookup_num_tokens or config.assistant_early_exit,
            "encoder-decoder models": model.config.is_encoder_decoder,
            "synced_gpus": synced_gpus,
            "inputs_embeds": model_kwargs.get("inputs_embeds") is not None,
            "output_attentions and output_hidden_states": config.output_attentions
            or config.output_hidden_states,
            "a cache that is already filled": is_filled(cache_of(model_kwargs)),
        }
        why |= dict.fromkeys(inputs_beside_ids(model, model_kwargs), True)
        if self.tracer is not None:
            why |= {"a tracer and compiled=True": self.compiled}
        if self.backtrack is not None:
            why |= {
                "backtracking and compiled=True": self.compiled,
                "backtracking and scores or logits of each step": config.output_scores
                or config.output_logits,
                "backtracking and processors that keep what was written (guidance_scale, watermarking_config)": (
                    config.guidance_scale or 1
                )
                != 1
                or config.watermarking_config,
            }
        if self.compiled and not packs(model):
            raise ValueError(
                f"compiled=True needs candidates side by side, which {type(model).__name__} does not take"
            )
        if refused := [name for name, does in why.items() if does]:
            raise ValueError(f"SASADecoder cannot be used with {', '.join(refused)}")
