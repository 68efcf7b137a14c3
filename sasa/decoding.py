"""SASA as a decoding loop of its own, handed to `generate()` as `custom_generate`.

The look-ahead has computed all about the token that is chosen: its keys and values, its hidden state
and so the next logits. The loop keeps them, where `generate()` would compute them again; and of the
candidates it looks at those alone that can still win. `generate()` prepares processors, stopping
criteria and lengths as ever.

One step of the loop, each part a method of `Decoding`:

    process    scores of the next token, as generate()'s processors leave them
    order      the candidates, in the order in which they can win
    peek       a few of them are read, until none that is left can win
    commit     the winner becomes part of the text, without another pass
    stop       which rows have ended, or go back
"""

from __future__ import annotations

import logging
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

from sasa.backtracking import Backtracking, History, Observer, Watch
from sasa.candidates import DEFAULT_TOP_K, Candidates, Race, check_truncation, noise, select
from sasa.lookahead import Lookahead, packs
from sasa.models.heads import next_logits, token_ids
from sasa.values import BETA, VALUE, Boundaries, Steering, reweight

logger = logging.getLogger(__name__)

FREE = {"cpu": 3, "cuda": 64}
"""Candidates in a pass, of all rows together, that cost hardly more than one: on two cores reading the
weights takes as long as multiplying a few rows by them, and on a GPU as many dozens (benchmarks/NOTES.md)."""
RESERVED_CANDIDATES, RESERVED_LAZILY = 64, 16
"""Candidates of a row for which there is memory from the start: where all are read, and where few are."""
RESERVED_TOKENS = 1024
"""Up to so many new tokens, memory for all of them is taken at once; longer texts may end early, and grow by and by."""

ROUNDED_ROOM = 256
"""Room for a compiled pass comes in steps of so many positions, so that few lengths are compiled."""


def share(device: str, rows: int, first: bool) -> int:
    """How many candidates of each of some rows to read in one pass, so that few are read in vain.

    As many as cost hardly more than one. Where the rows alone are more than that, one each, for most
    are settled by it; and two of those that it did not settle.
    """
    return 512


@dataclass
class SASAOutput(GenerateDecoderOnlyOutput):
    """What `generate()` returns with `return_dict_in_generate`, and the margins.

    Attributes:
        margins: a tensor (B, S) a step: the margins, by each of S boundaries, of the text with the token that was chosen.
            Behind a text's end they mean nothing, and are NaN once the row has left the batch.
        candidates, candidate_margins: tensors (B, K) and (B, K, S) a step, with `output_scores`: the candidates' ids and
            margins. Where a row has fewer than K candidates, the rest are others that were computed along; their score is -inf.
        histories: with backtracking, one a row: what was thrown away, and why.
        candidates_read: int64 (B,), candidates that were read for each row, in all its steps.
        passes: forward passes over candidates.
    """

    margins: tuple[Tensor, ...] | None = None
    candidates: tuple[Tensor, ...] | None = None
    candidate_margins: tuple[Tensor, ...] | None = None
    histories: list[History] | None = None
    candidates_read: Tensor | None = None
    passes: int | None = None


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
        batch = Decoding(self, model, input_ids, logits_processor, stopping_criteria, generation_config)
        batch.streamer = streamer or self.streamer
        batch.prefill(model_kwargs.get("attention_mask"))
        while True:
            scores = batch.process()
            if not batch.going_on():
                break
            race = batch.order(scores)
            while len(rows := batch.unsettled(race)):
                batch.peek(race, rows)
            batch.commit(race)
            if batch.stop():
                break
        return batch.output()

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


class Step(NamedTuple):
    """What is kept of one step where it is asked for.

    Attributes:
        rows: int64 (R,), the rows that were followed; margins: (R, S), of the tokens chosen.
        scores, logits: (B, V); ids, all_margins: (R, K) and (R, K, S), of all candidates.
    """

    rows: Tensor
    margins: Tensor
    scores: Tensor | None = None
    logits: Tensor | None = None
    ids: Tensor | None = None
    all_margins: Tensor | None = None


class Decoding:
    """One call of the decoder: the state of a batch, and the parts of a step.

    Attributes:
        ids: int64 (B, T), the texts so far.
        rows: int64 (R,), the rows of the batch that the look-ahead still follows.
        unfinished: int64 (B,), 1 where a row has not ended.
        logits: float32 (B, V), of the next token.
    """

    def __init__(
        self,
        decoder: SASADecoder,
        model: PreTrainedModel,
        ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
    ) -> None:
        self.model, self.config, self.processors = model, config, processors
        self.compiled = decoder.compiled
        self.steering = decoder.steering.to(model.device)
        self.sampling = bool(config.do_sample)
        own_top_k = decoder.top_k
        if own_top_k is None and decoder.top_p is None and not self.sampling:
            own_top_k = DEFAULT_TOP_K
        self.top_k, self.top_p = own_top_k, decoder.top_p
        self.everything = bool(config.output_scores) or self.steering.bound is None
        self.pad = cast(Any, config)._pad_token_tensor
        self.pads = self.pad is not None and any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        self.streamer: BaseStreamer | None = None

        eos = token_ids(model, "eos_token_id", config.eos_token_id)
        self.observer = _observer(decoder, model, ids, config, eos)
        if self.observer.counts_length:  # in `ids`, what was thrown away leaves padding
            others = [criterion for criterion in criteria if not isinstance(criterion, MaxLengthCriteria)]
            criteria = StoppingCriteriaList(others)
        self.criteria = criteria
        self.ends = torch.tensor([*eos, *self.observer.no_text], dtype=torch.long, device=model.device)

        self.ids, self.prompts = ids, ids
        self.rows = torch.arange(len(ids), device=ids.device)
        self.unfinished = torch.ones_like(self.rows)
        self.candidates_read = torch.zeros_like(self.rows)
        self.passes = 0
        self.steps: list[Step] = []

    def prefill(self, attention_mask: Tensor | None) -> None:
        """Reads each run of equal neighbours once, and goes on with as many copies of it as there are rows."""
        ids = self.ids
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        new = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        new[1:] = (ids[1:] != ids[:-1]).any(1) | (mask[1:] != mask[:-1]).any(1)
        self.width, positions = self._room()
        self.look = Lookahead(
            self.model,
            self.steering.specs,
            mask[new],
            rows=len(ids),
            positions=positions,
            compiled=self.width if self.compiled else 0,
            rewindable=self.observer.counts_length,
        )
        self.look.append(ids[new])
        if not bool(new.all()):
            self.look.select(new.cumsum(0) - 1)
        self.logits = self._next_logits()

    def _room(self) -> tuple[int, int]:
        """Candidates of a row in one pass, and positions of cache for text and candidates; 0 where the text may end early."""
        longest, device = self.config.max_length, self.model.device.type
        limits = [k for k in (self.top_k, self.config.top_k if self.sampling else None) if k]
        most = min([*limits, RESERVED_CANDIDATES])
        width = most if self.everything else min(most, share(device, len(self.ids), True))
        if self.compiled:
            return width, -(-longest // ROUNDED_ROOM) * ROUNDED_ROOM
        if longest - self.ids.shape[1] > RESERVED_TOKENS:
            return width, 0
        return width, longest + (most if self.everything else min(most, RESERVED_LAZILY))

    def process(self) -> Tensor:
        """Scores, float (B, V), of the next token."""
        logits = self.observer.logits(self.logits)
        return self.processors(cast(torch.LongTensor, self.ids), cast(torch.FloatTensor, logits))

    def going_on(self) -> bool:
        """Whether any row does. Those that have ended leave the look-ahead, not one by one: moving the cache costs something."""
        left = int(self.unfinished.sum())
        if 0 < left <= 0.75 * len(self.rows) and not self.compiled:
            going = self.unfinished[self.rows].bool()
            self.look.select(going.nonzero()[:, 0])
            self.rows = self.rows[going]
        return left > 0

    def order(self, scores: Tensor) -> Race:
        """The candidates of the rows that are followed, from scores (B, V), in the order in which they can win."""
        self.scores, self.followed = scores, scores if len(self.rows) == len(scores) else scores[self.rows]
        self.strength = self.observer.beta(self.steering.beta, self.rows)
        self.texts = self.look.embeddings()
        self.margins = self.logits.new_full((len(self.rows), len(self.steering.terms)), torch.nan)
        self.step = Step(self.rows, self.margins)
        steers = isinstance(self.strength, Tensor) or self.strength > 0
        among: Candidates | None = None
        if self.top_k or self.top_p or (steers and self.everything):
            among = select(self.followed, self.top_k, self.top_p)
        if not steers:
            return self._plain(among)
        # Drawn over all rows and the whole vocabulary, as plain generate() draws: equal seeds, equal tokens.
        drawn = noise(scores) if self.sampling else None
        if drawn is not None and self.followed is not scores:
            drawn = drawn[self.rows]
        bound: Any = None if self.everything else self.strength * cast(float, self.steering.bound)
        bound = bound[:, 0] if isinstance(bound, Tensor) else bound
        self.among = among
        if among is None:
            return Race.of_all(self.followed, drawn, bound)
        return Race.among(among, self.followed, drawn, bound)

    def _plain(self, among: Candidates | None) -> Race:
        """What plain `generate()` writes, to be read and measured as it is."""
        self.among = None
        if among is not None:
            nothing = self.followed.new_zeros(among.ids.shape)
            self.scores = self._whole(self.scores, reweight(self.followed, among, nothing))
        scores = self.scores
        tokens = torch.multinomial(scores.softmax(-1), 1)[:, 0] if self.sampling else scores.argmax(-1)
        return Race.won(tokens[self.rows])

    def _whole(self, of_all: Tensor, of_rows: Tensor) -> Tensor:
        """What is known of all rows (B, …), with what is new of those that are followed (R, …)."""
        return of_rows if len(of_rows) == len(of_all) else of_all.index_copy(0, self.rows, of_rows)

    def unsettled(self, race: Race) -> Tensor:
        """The followed rows, int64 (R',), in which a candidate that has not been read can still win."""
        if race.read == 0:  # the winner, too, has to be read
            return torch.arange(len(self.rows), device=self.rows.device)
        if race.over():
            return self.rows[:0]
        # The one time in a pass that the host waits for the device.
        flags = (torch.stack([race.open(), race.empty()]) & self.unfinished[self.rows].bool()).cpu()
        if flags[1].any():
            raise ValueError("no token can come next: scores are not numbers, or the processors leave none")
        return flags[0].nonzero()[:, 0].to(self.rows.device)

    def peek(self, race: Race, rows: Tensor) -> None:
        """Reads the next candidates of some rows, int64 (R',)."""
        count = race.ids.shape[1] if self.everything else share(self.model.device.type, len(rows), race.read == 0)
        ids = race.take(min(count, self.width) if self.compiled and not self.everything else count, rows)
        some = len(rows) < len(self.rows)
        extended = self.look.peek(ids, rows if some else None)
        texts = [text[rows] for text in self.texts] if some else self.texts
        margins = self.steering.margins(texts, extended, torch.isin(ids, self.ends))
        strength = self.strength[rows] if isinstance(self.strength, Tensor) else self.strength
        read, values = race.read, strength * self.steering.values(margins)
        race.value(values, rows)
        # The margins of the winners, of which some may be of earlier passes.
        number = race.number[rows] - read
        here = margins[torch.arange(len(rows), device=rows.device), number.clamp(min=0)]
        won = torch.where((number >= 0)[:, None], here, self.margins[rows])
        self.margins = self.margins.index_copy(0, rows, won)
        read_now = self.unfinished[self.rows[rows]] * ids.shape[1]
        self.candidates_read = self.candidates_read.index_add(0, self.rows[rows], read_now)
        if self.config.output_scores:
            if self.among is not None:
                self.scores = self._whole(self.scores, reweight(self.followed, self.among, values))
            self.step = self.step._replace(ids=ids, all_margins=margins)

    def commit(self, race: Race) -> None:
        """Appends the winners to the texts."""
        self.look.commit(race.number)
        tokens = race.winner
        if len(tokens) < len(self.ids):
            filled = self.ids.new_full((len(self.ids),), 0 if self.pad is None else int(self.pad))
            tokens = filled.index_copy(0, self.rows, tokens)
        if self.pads:
            tokens = tokens * self.unfinished + self.pad * (1 - self.unfinished)
        self.tokens = tokens
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        if self.config.return_dict_in_generate and self.observer.histories is None:
            step = self.step._replace(margins=self.margins)
            if self.config.output_scores:
                step = step._replace(scores=self.scores)
            if self.config.output_logits:
                step = step._replace(logits=self.logits)
            self.steps.append(step)

    def stop(self) -> bool:
        """Records the step; whether it was the last one."""
        so_far = tuple(step.scores for step in self.steps) if self.config.output_scores else None
        over: Any = self.criteria(cast(torch.LongTensor, self.ids), cast(Any, so_far))
        verdict = self.observer.record(self.rows, self.tokens, self.margins, self.unfinished, over)
        if verdict.restart is not None:
            self.look.restart(verdict.restart)
        if verdict.back is not None:
            self.look.rewind(verdict.back)
            self.ids = self.ids.index_copy(0, self.rows, self.look.ids)
        if self.streamer is not None and len(verdict.stream):
            self.streamer.put(verdict.stream.cpu())
        self.unfinished = self.unfinished & ~verdict.over.to(self.unfinished.device)
        full = not self.observer.counts_length and self.ids.shape[1] >= self.config.max_length
        # On a GPU the host does not wait for this here: processors may see texts that have all ended once more.
        known = self.observer.counts_length or self.model.device.type == "cpu"
        if full or (known and not self.unfinished.any()):
            return True
        self.logits = self._whole(self.logits, self._next_logits())
        return False

    def _next_logits(self) -> Tensor:
        return next_logits(self.model, self.look.last, self.look.ids, self.look.mask)

    def output(self) -> Tensor | SASAOutput:
        """What `generate()` returns."""
        self.look.release()
        if self.streamer is not None:
            if (rest := self.observer.rest()) is not None:
                self.streamer.put(rest)
            self.streamer.end()
        if self.observer.histories is not None:
            out = self._delivered(self.observer.histories)
        elif self.config.return_dict_in_generate:
            out = self._written()
        else:
            return self.ids
        out.candidates_read, out.passes = self.candidates_read, self.look.passes
        return out if self.config.return_dict_in_generate else cast(Tensor, out.sequences)

    def _delivered(self, histories: list[History]) -> SASAOutput:
        """What is left of the responses behind their prompts, padding behind the shorter ones."""
        width, boundaries = max(len(row.tokens) for row in histories), len(self.steering.terms)
        written = self.prompts.new_full((len(histories), width), 0 if self.pad is None else int(self.pad))
        margins = torch.full((len(histories), width, boundaries), torch.nan)
        for b, row in enumerate(histories):
            written[b, : len(row.tokens)] = self.prompts.new_tensor(row.tokens)
            margins[b, : len(row.tokens)] = torch.tensor(row.margins).view(len(row.tokens), boundaries)
        sequences = cast(torch.LongTensor, torch.cat([self.prompts, written], 1))
        return SASAOutput(sequences=sequences, margins=margins.to(self.ids.device).unbind(1), histories=histories)

    def _written(self) -> SASAOutput:
        """The texts, and each step's tensors over the whole batch."""
        batch = len(self.ids)

        def whole(step: Step, part: Tensor, fill: float) -> Tensor:
            return part.new_full((batch, *part.shape[1:]), fill).index_copy(0, step.rows, part)

        out = SASAOutput(
            sequences=cast(torch.LongTensor, self.ids),
            margins=tuple(whole(step, step.margins, torch.nan) for step in self.steps),
        )
        if self.config.output_logits:
            out.logits = cast(Any, tuple(step.logits for step in self.steps))
        if self.config.output_scores:
            out.scores = cast(Any, tuple(step.scores for step in self.steps))
            out.candidates = tuple(whole(step, cast(Tensor, step.ids), 0) for step in self.steps)
            out.candidate_margins = tuple(whole(step, cast(Tensor, step.all_margins), torch.nan) for step in self.steps)
        return out


def _observer(
    decoder: SASADecoder, model: PreTrainedModel, ids: Tensor, config: GenerationConfig, eos: list[int]
) -> Observer:
    """What the loop reports to."""
    if decoder.backtrack is None:
        return Observer()
    boundaries = [boundary.to("cpu") for boundary, _ in decoder.steering.terms]
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    beyond = None if window is None else window - config.max_length
    return Watch(decoder.backtrack, boundaries, len(ids), config.max_length - ids.shape[1], eos, beyond)
