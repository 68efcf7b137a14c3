"""SASA as a decoding loop of its own: one forward pass a token.

The look-ahead has already computed all about the token that is chosen: its keys and values, its hidden state and so the
next logits. The loop keeps them, instead of having `generate()` compute them again. It is handed to `generate()` as
`custom_generate`, which prepares processors, stopping criteria and lengths as ever.
"""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from sasa.backtracking import Backtracking, History, Watch
from sasa.candidates import check_truncation, select
from sasa.embedding import hidden_states
from sasa.lookahead import Lookahead, packs
from sasa.models.skinny import skinny_linears
from sasa.processor import DEFAULT_TOP_K, token_ids
from sasa.values import BETA, VALUE, Boundaries, Steering

logger = logging.getLogger(__name__)

RESERVED_CANDIDATES = 64
RESERVED_TOKENS = 1024
"""Up to so many new tokens, memory for all of them is taken at once; longer texts may end early, and grow by and by."""

ROUNDED_ROOM = 256
"""Room for a compiled pass comes in steps of so many positions, so that few lengths are compiled."""

_heads: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


@dataclass
class SASAOutput(GenerateDecoderOnlyOutput):
    """What `generate()` returns with `return_dict_in_generate`, and the margins.

    Attributes:
        margins: a tensor (B, S) a step: the margins, by each of S boundaries, of the text with the token that was chosen.
            Behind a text's end they mean nothing, and are NaN once the row has left the batch.
        candidates, candidate_margins: tensors (B, K) and (B, K, S) a step, with `output_scores`: the candidates' ids and
            margins. Where a row has fewer than K candidates, the rest are others that were computed along; their score is -inf.
        histories: with backtracking, one a row: what was thrown away, and why.
    """

    margins: tuple[Tensor, ...] | None = None
    candidates: tuple[Tensor, ...] | None = None
    candidate_margins: tuple[Tensor, ...] | None = None
    histories: list[History] | None = None


class SASADecoder:
    """Greedy decoding and sampling under SASA, as transformers' `custom_generate`.

        model.generate(**inputs, do_sample=True, top_k=50, top_p=0.9, custom_generate=SASADecoder(boundary, beta=1.0))

    All processors and warpers of `generate()` run first, in their usual order; what survives them is reweighted. A prompt is
    read once for all its `num_return_sequences`, and rows that have ended leave the forward pass.

    Args:
        boundary: fitted on the model that generates; or several with a weight each, [(boundary, weight), …], from the same pass;
            or None, with `beta=0` and a `backtrack` that waits for the model's own [RESET] alone.
        beta: strength, >= 0. At 0 it writes what plain `generate()` writes from the same seed.
        value: what a margin is worth: `log_sigmoid`, the log-probability of being safe, or `raw`, itself (the paper); see
            `sasa.values`.
        top_k, top_p: a further limit to the candidates, after those of `generate()`. In greedy decoding, where `generate()`
            sets none, 20 candidates are looked at unless top_k (0: no limit) or top_p is given.
        compiled: compiles the forward pass over the candidates, at its first call for each model, batch and number of candidates,
            and has it replayed: on a GPU one launch a step instead of hundreds. Rows that have ended stay in the pass, and
            attention goes over the whole room for the text, in steps of 256 tokens.
        backtrack: lets responses that have gone wrong go back, each row by itself; `max_new_tokens` is then what is delivered.
        streamer: the one that is given to `generate()`, too: transformers (5.23) hands a callable neither its streamer nor
            its tokenizer. For the same reason stop strings come as a `StopStringCriteria`. `sasa.generate` sees to both. With
            `backtrack` it gets what can no longer be taken back: the response up to its last safe point, and the rest at the end.

    Raises:
        ValueError: a bad argument; in a call, a boundary for another model, or beams, assisted decoding, a cache that is
            already filled, or anything else that this loop does not do.
    """

    def __init__(
        self,
        boundary: Boundaries | None,
        beta: float = BETA,
        top_k: int | None = None,
        top_p: float | None = None,
        *,
        value: str = VALUE,
        compiled: bool = False,
        backtrack: Backtracking | None = None,
        streamer: BaseStreamer | None = None,
    ) -> None:
        check_truncation(top_k, top_p)
        self.steering = Steering.of(boundary, beta, value)
        if not self.steering.terms and (backtrack is None or backtrack.threshold is not None):
            raise ValueError("without a boundary there is only backtracking with threshold=None and a reset_token_id")
        self.top_k = top_k
        self.top_p = top_p
        self.compiled = compiled
        self.backtrack = backtrack
        self.streamer = streamer

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
        self._refuse(model, generation_config, synced_gpus, model_kwargs)
        streamer = streamer or self.streamer
        steering = self.steering.to(model.device)
        eos_ids = token_ids(model, "eos_token_id", generation_config.eos_token_id)
        eos = torch.tensor(eos_ids, dtype=torch.long, device=model.device)
        pad = generation_config._pad_token_tensor
        has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        sampling = bool(generation_config.do_sample)
        top_k = DEFAULT_TOP_K if self.top_k is None and self.top_p is None and not sampling else self.top_k
        steps: list[Step] = []
        on_cpu = model.device.type == "cpu"
        prompts, shown = input_ids, 0
        watch: Watch | None = None
        if self.backtrack is not None:
            boundaries = [boundary.to("cpu") for boundary, _ in steering.terms]
            longest = generation_config.max_length - prompts.shape[1]
            window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            beyond = None if window is None else window - generation_config.max_length
            watch = Watch(self.backtrack, boundaries, len(prompts), longest, eos_ids, beyond)
            if self.backtrack.reset_token_id is not None:  # no text either: beta must not change how often it comes
                eos = torch.cat([eos, eos.new_tensor([self.backtrack.reset_token_id])])
            # Lengths are the watch's: in `input_ids`, what was thrown away leaves padding.
            others = [criterion for criterion in stopping_criteria if not isinstance(criterion, MaxLengthCriteria)]
            stopping_criteria = StoppingCriteriaList(others)

        limits = [k for k in (top_k, generation_config.top_k if sampling else None) if k]
        widest = min([*limits, RESERVED_CANDIDATES]) if self.steering.beta or watch else 1
        room = generation_config.max_length + widest
        if self.compiled:
            room = -(-room // ROUNDED_ROOM) * ROUNDED_ROOM
        elif generation_config.max_length - input_ids.shape[1] > RESERVED_TOKENS:
            room = 0
        look = self._read_prompts(model, input_ids, model_kwargs.get("attention_mask"), room, widest)
        rows = torch.arange(len(input_ids), device=input_ids.device)  # of the batch, that the look-ahead still follows
        unfinished = torch.ones_like(rows)
        logits = next_logits(model, look)
        while True:
            allowed = logits.clone() if watch is None else watch.logits(logits)
            scores = logits_processor(cast(torch.LongTensor, input_ids), cast(torch.FloatTensor, allowed))
            # The one time in a step that the host waits for the device: how many rows go on, and with how many tokens to
            # choose from at most.
            alive = (scores > -torch.inf).sum(-1) * unfinished
            left, most = torch.stack([unfinished.sum(), alive.max()]).tolist()
            if not left:
                break
            # Moving the cache costs something: not for every single row.
            if left <= 0.75 * len(rows) and not self.compiled:
                going = unfinished[rows].bool()
                look.select(going.nonzero()[:, 0])
                rows = rows[going]
            everyone = len(rows) == len(scores)
            nothing = input_ids[rows, :0]
            followed = scores if everyone else scores[rows]
            strength = watch.beta(steering.beta, rows.tolist()) if watch is not None else steering.beta
            steers = isinstance(strength, Tensor) or strength > 0
            if steers or self.top_k or self.top_p:
                candidates = select(followed, top_k, self.top_p, max(1, most))
                ids = candidates.ids
                margins = (
                    steering.margins(look, eos, nothing, ids)
                    if steers
                    else followed.new_zeros(*ids.shape, len(steering.terms))
                )
                followed = steering.reweight(followed, candidates, margins, strength)
                scores = followed if everyone else scores.index_copy(0, rows, followed)
            # Drawn over all rows and the whole vocabulary, as plain generate() draws: equal seeds, equal tokens.
            tokens = torch.multinomial(scores.softmax(-1), 1)[:, 0] if sampling else scores.argmax(-1)
            if not steers:
                ids = tokens[rows, None]
                margins = steering.margins(look, eos, nothing, ids)
            choice = (ids == tokens[rows, None]).int().argmax(1)
            look.keep(choice)
            if generation_config.return_dict_in_generate and watch is None:
                kept = (
                    scores if generation_config.output_scores else None,
                    logits if generation_config.output_logits else None,
                )
                steps.append(Step(*kept, rows, ids, margins, choice))
            if has_eos and pad is not None:
                tokens = tokens * unfinished + pad * (1 - unfinished)
            input_ids = torch.cat([input_ids, tokens[:, None]], 1)
            if streamer is not None and watch is None:
                streamer.put(tokens.cpu())
            so_far = tuple(step.scores for step in steps) if generation_config.output_scores else None
            over: Tensor = stopping_criteria(cast(torch.LongTensor, input_ids), cast(Any, so_far))
            if watch is not None:
                of_rows = margins[torch.arange(len(rows)), choice]
                back, over = watch.told(rows, tokens[rows], of_rows, unfinished, over)
                if watch.settings.reset_token_id is not None:
                    anew = (tokens[rows] == watch.settings.reset_token_id) & unfinished[rows].bool()
                    look.forget(anew.nonzero()[:, 0])
                if back.any():
                    look.rewind(back)
                    input_ids = input_ids.index_copy(0, rows, look.ids)
                if streamer is not None and (final := watch.final(0))[shown:]:
                    streamer.put(torch.tensor(final[shown:]))
                    shown = len(final)
            unfinished = unfinished & ~over.to(unfinished.device)
            # On a GPU the host does not wait for this here: processors may see texts that have all ended once more.
            full = watch is None and input_ids.shape[1] >= generation_config.max_length
            if full or ((on_cpu or watch is not None) and not unfinished.any()):
                break
            following = next_logits(model, look)
            logits = following if everyone else logits.index_copy(0, rows, following)
        look.release()
        if watch is not None:
            if streamer is not None and (rest := watch.rows[0].tokens[shown:]):
                streamer.put(torch.tensor(rest))
            if streamer is not None:
                streamer.end()
            found = self._delivered(prompts, watch.rows, len(steering.terms), 0 if pad is None else int(pad))
            return found if generation_config.return_dict_in_generate else cast(Tensor, found.sequences)
        if streamer is not None:
            streamer.end()
        return self._output(input_ids, steps, generation_config) if steps else input_ids

    def _refuse(
        self, model: PreTrainedModel, config: GenerationConfig, synced_gpus: bool, model_kwargs: dict[str, Any]
    ) -> None:
        self.steering.check(model)
        cache = model_kwargs.get("past_key_values")
        why = {
            "beam search (use SASALogitsProcessor)": (config.num_beams or 1) > 1,
            "assisted decoding": config.prompt_lookup_num_tokens or config.assistant_early_exit,
            "encoder-decoder models": model.config.is_encoder_decoder,
            "synced_gpus": synced_gpus,
            "inputs_embeds": model_kwargs.get("inputs_embeds") is not None,
            "output_attentions and output_hidden_states": config.output_attentions or config.output_hidden_states,
            "a cache that is already filled": cache is not None and cache.get_seq_length() > 0,
        }
        if self.backtrack is not None:
            why |= {
                "backtracking and compiled=True": self.compiled,
                "backtracking and scores or logits of each step": config.output_scores or config.output_logits,
                "backtracking and limits that count tokens (min_new_tokens, min_length, forced_eos_token_id, "
                "exponential_decay_length_penalty)": config.min_new_tokens
                or config.min_length
                or config.forced_eos_token_id
                or config.exponential_decay_length_penalty,
                "backtracking and processors that keep count of what was written (guidance_scale, begin_suppress_tokens, "
                "watermarking_config)": (config.guidance_scale or 1) != 1
                or config.begin_suppress_tokens
                or config.watermarking_config,
            }
        if self.compiled and not packs(model):
            raise ValueError(f"compiled=True needs candidates side by side, which {type(model).__name__} does not take")
        if found := [name for name, does in why.items() if does]:
            raise ValueError(f"SASADecoder cannot be used with {', '.join(found)}")

    def _read_prompts(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, room: int, widest: int
    ) -> Lookahead:
        """Reads each run of equal neighbours once, and goes on with as many copies of it as there are rows.

        Args:
            room: positions of cache that the longest text and its candidates take; 0 where nobody can tell.
            widest: candidates of a row in one pass.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        new = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        new[1:] = (input_ids[1:] != input_ids[:-1]).any(1) | (mask[1:] != mask[:-1]).any(1)
        replay = widest if self.compiled else 0
        look = Lookahead(
            model, self.steering.specs, mask[new], rows=len(input_ids), positions=room, replay=replay,
            rewindable=self.backtrack is not None,
        )  # fmt: skip
        look.look(input_ids[new], input_ids[new][:, :0])
        if not bool(new.all()):
            look.select(new.cumsum(0) - 1)
        return look

    @staticmethod
    def _delivered(prompts: Tensor, histories: list[History], boundaries: int, fill: int) -> SASAOutput:
        """What is left of the responses behind their prompts (B, T), `fill` behind the shorter ones."""
        width = max(len(row.tokens) for row in histories)
        written = prompts.new_full((len(histories), width), fill)
        margins = torch.full((len(histories), width, boundaries), torch.nan)
        for b, row in enumerate(histories):
            written[b, : len(row.tokens)] = prompts.new_tensor(row.tokens)
            margins[b, : len(row.tokens)] = torch.tensor(row.margins).view(len(row.tokens), boundaries)
        sequences = cast(torch.LongTensor, torch.cat([prompts, written], 1))
        return SASAOutput(sequences=sequences, margins=margins.to(prompts.device).unbind(1), histories=histories)

    @staticmethod
    def _output(sequences: Tensor, steps: list[Step], config: GenerationConfig) -> SASAOutput:
        """Everything that was asked for, each step's tensors over the whole batch."""
        batch = len(sequences)

        def whole(rows: Tensor, part: Tensor, fill: float) -> Tensor:
            return part.new_full((batch, *part.shape[1:]), fill).index_copy(0, rows, part)

        chosen = (whole(s.rows, s.margins[torch.arange(len(s.rows)), s.choice], torch.nan) for s in steps)
        out = SASAOutput(sequences=cast(torch.LongTensor, sequences), margins=tuple(chosen))
        if config.output_logits:
            out.logits = cast(Any, tuple(s.logits for s in steps))
        if config.output_scores:
            out.scores = cast(Any, tuple(s.scores for s in steps))
            out.candidates = tuple(whole(s.rows, s.ids, 0) for s in steps)
            out.candidate_margins = tuple(whole(s.rows, s.margins, torch.nan) for s in steps)
        return out


class Step(NamedTuple):
    """What one step computed: scores and logits (B, V) where asked for; of the rows (R,) followed, (R, K), (R, K, S) and (R,)."""

    scores: Tensor | None
    logits: Tensor | None
    rows: Tensor
    ids: Tensor
    margins: Tensor
    choice: Tensor


def next_logits(model: PreTrainedModel, look: Lookahead) -> Tensor:
    """Next-token logits, float32 (B, V), at the ends of the texts.

    From the last states and the model's head where that is all there is to it; a model that does more to its logits than
    its config tells reads the texts once more.
    """
    if has_plain_head(model):
        with skinny_linears(model):
            return head(model, look.last)
    length = look.ids.shape[1]
    inputs = {"attention_mask": look.mask(length), "use_cache": False}
    return model(input_ids=look.ids, **inputs).logits[:, -1].float()


def head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits, float32, of last-layer states (…, d): the head and the scalings that configs know."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits.float()


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether `head` gives the model's own logits: asked once a model, on a few tokens."""
    if model not in _heads:
        ids = torch.arange(1, 6, device=model.device)[None]
        mask = torch.ones_like(ids)
        _, last = hidden_states(model, ids, attention_mask=mask)
        ours, own = head(model, last), model(input_ids=ids, attention_mask=mask).logits.float()
        tolerance = 1e-3 if torch.finfo(model.dtype).eps < 1e-6 else 3e-2
        _heads[model] = bool((ours - own).norm() <= tolerance * own.norm())
        if not _heads[model]:
            logger.warning(
                "%s does more to its logits than its config tells: each token takes a second pass over its text",
                type(model).__name__,
            )
    return _heads[model]
