"""The loop of SASA's decoder: one call of it, step by step.

The look-ahead has computed all about the token that is chosen: its keys and values, its hidden state
and so the next logits. The loop keeps them, where `generate()` would compute them again; and of the
candidates it looks at those alone that can still win.

One step is `Decoding.advance`, each part of it a method:

    process    scores of the next token, as generate()'s processors leave them
    order      the candidates, in the order in which they can win
    peek       a few of them are read, until none that is left can win
    commit     the winner becomes part of the text, without another pass
    stop       which rows have ended, or go back
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

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

from sasa.core.backtracking import Observer, Watch
from sasa.core.candidates import Candidates, Race, noise, select
from sasa.core.settings import TOP_K
from sasa.core.values import reweight
from sasa.decoding import passes
from sasa.decoding.delivered import Constraint, delivered_texts, with_constraints
from sasa.decoding.lookahead import Lookahead
from sasa.decoding.output import Record, SASAOutput, output_of_histories, output_of_records
from sasa.decoding.settings import DecoderSettings
from sasa.decoding.step import Step
from sasa.models.heads import token_ids
from sasa.models.states import context_window


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
        settings: DecoderSettings,
        model: PreTrainedModel,
        ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        streamer: BaseStreamer | None,
    ) -> None:
        self.model, self.config, self.processors = model, config, processors
        self.constraints: list[Constraint] = []
        self.compiled = settings.compiled
        self.steering = settings.steering.to(model.device)
        self.sampling = bool(config.do_sample)
        own_top_k = settings.top_k
        if own_top_k is None and settings.top_p is None and not self.sampling:
            own_top_k = TOP_K
        self.top_k, self.top_p = own_top_k or None, None if settings.top_p == 1 else settings.top_p
        self.tracer = settings.tracer
        self.recording = bool(config.output_scores) or self.tracer is not None
        self.everything = self.recording or self.steering.bound is None
        self.pad = cast(Any, config)._pad_token_tensor
        self.fill = 0 if self.pad is None else int(self.pad)  # behind the end of a text
        self.streamer = streamer

        eos = token_ids(model, "eos_token_id", config.eos_token_id)
        self.observer = _observer(settings, model, ids, config, eos)
        if self.observer.goes_back:  # in `ids`, what was thrown away leaves padding
            others = [
                criterion for criterion in criteria if not isinstance(criterion, MaxLengthCriteria)
            ]
            criteria = StoppingCriteriaList(others)
            self.processors, self.constraints = with_constraints(processors)
        self.criteria = criteria
        self.ends = torch.tensor(
            [*eos, *self.observer.no_text], dtype=torch.long, device=model.device
        )

        self.ids, self.prompts = ids, ids
        self.rows = torch.arange(len(ids), device=ids.device)
        self.unfinished = torch.ones_like(self.rows)
        self.candidates_read = torch.zeros_like(self.rows)
        self.logits = torch.empty(len(ids), 0, device=model.device)
        self.records: list[Record] = []

    def prefill(self, attention_mask: Tensor | None) -> None:
        """Reads each run of equal neighbours once, and goes on with a copy of it for every row."""
        ids = self.ids
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        new = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        new[1:] = (ids[1:] != ids[:-1]).any(1) | (mask[1:] != mask[:-1]).any(1)
        limits = [self.top_k, self.config.top_k if self.sampling else None]
        self.width, positions = passes.room(
            device=self.model.device.type,
            rows=len(ids),
            prompt_length=ids.shape[1],
            max_length=self.config.max_length,
            limits=[limit for limit in limits if limit],
            reads_everything=self.everything,
            compiled=self.compiled,
        )
        self.look = Lookahead(
            self.model,
            self.steering.specs,
            mask[new],
            rows=len(ids),
            positions=positions,
            compiled=self.width if self.compiled else 0,
            rewindable=self.observer.goes_back,
        )
        self.look.append(ids[new])
        if not bool(new.all()):
            self.look.select(new.cumsum(0) - 1)

    def going_on(self) -> bool:
        """Whether any row does.

        Those that have ended leave the look-ahead, several at a time: moving the cache costs something.
        """
        left = int(self.unfinished.sum())
        if 0 < left <= 0.75 * len(self.rows) and not self.compiled:
            going = self.unfinished[self.rows].bool()
            self.look.select(going.nonzero()[:, 0])
            self.rows = self.rows[going]
        return left > 0

    def advance(self) -> None:
        """One step: a token of every row."""
        step = self.order(self.process())
        while len(rows := self.unsettled(step)):
            self.peek(step, rows)
        self.commit(step)
        self.stop(step)

    def process(self) -> Tensor:
        """Scores, float (B, V), of the next token."""
        self.logits = self._whole(self.logits, self.look.logits())
        logits = self.observer.logits(self.logits)
        scores: Any = None
        for rows, ids in self._texts():
            given = logits if rows is None else logits.clone()  # processors may write into it
            for constraint in self.constraints:
                constraint.rows = rows
            found = self.processors(cast(torch.LongTensor, ids), cast(torch.FloatTensor, given))
            scores = (
                found
                if rows is None
                else torch.where(rows[:, None], found, logits if scores is None else scores)
            )
        return scores

    def _texts(self, last: Tensor | None = None) -> Sequence[tuple[Tensor | None, Tensor]]:
        """The texts for processors and criteria: (rows, ids) as `delivered_texts` groups them; with
        rows None, ids are those of all rows.

        Args:
            last: int64 (B,), tokens that the observer has not recorded yet.
        """
        histories = self.observer.histories
        if histories is None or not any(row.attempts for row in histories):
            return [(None, self.ids)]
        return delivered_texts(self.prompts, histories, self.unfinished, last)

    def order(self, scores: Tensor) -> Step:
        """Orders the candidates of the followed rows as they can win, from scores (B, V)."""
        followed = scores if len(self.rows) == len(scores) else scores[self.rows]
        beta = self.observer.beta(self.steering.beta, self.rows)
        steers = isinstance(beta, Tensor) or beta > 0 or self.tracer is not None
        among: Candidates | None = None
        if self.top_k or self.top_p or (steers and self.everything):
            among = select(followed, self.top_k, self.top_p)
        if steers:
            race = self._race(scores, followed, among, beta)
        else:  # what plain generate() writes, to be read and measured as it is
            if among is not None:
                scores = self._whole(
                    scores, reweight(followed, among, followed.new_zeros(among.ids.shape))
                )
            tokens = (
                torch.multinomial(scores.softmax(-1), 1)[:, 0]
                if self.sampling
                else scores.argmax(-1)
            )
            race, among = Race.won(tokens[self.rows]), None
        margins = self.logits.new_full((len(self.rows), len(self.steering.terms)), torch.nan)
        step = Step(self.rows, race, beta, self.look.embeddings(), margins)
        if self.recording:
            step.among = among
        if self.config.output_scores:
            step.scores = scores
        if self.tracer is not None and among is not None:
            step.before = followed.gather(1, among.ids)
        return step

    def _race(
        self, scores: Tensor, followed: Tensor, among: Candidates | None, beta: Tensor | float
    ) -> Race:
        """Between the candidates of the followed rows, whose scores are (R, V) of all, (B, V)."""
        # Drawn over all rows and the whole vocabulary, as plain generate() draws: equal seeds, equal
        # tokens.
        drawn = noise(scores) if self.sampling else None
        if drawn is not None and followed is not scores:
            drawn = drawn[self.rows]
        bound: Any = None if self.everything else beta * cast(float, self.steering.bound)
        bound = bound[:, 0] if isinstance(bound, Tensor) else bound
        return (
            Race.of_all(followed, drawn, bound)
            if among is None
            else Race.among(among, followed, drawn, bound)
        )

    def _whole(self, of_all: Tensor, of_rows: Tensor) -> Tensor:
        """What is known of all rows (B, …), with what is new of those that are followed (R, …)."""
        return of_rows if len(of_rows) == len(of_all) else of_all.index_copy(0, self.rows, of_rows)

    def unsettled(self, step: Step) -> Tensor:
        """The followed rows, int64 (R',), in which an unread candidate can still win."""
        if step.race.read == 0:  # the winner, too, has to be read
            return torch.arange(len(step.rows), device=step.rows.device)
        if step.race.over():
            return step.rows[:0]
        return (step.race.open() & self.unfinished[step.rows].bool()).nonzero()[:, 0]

    def peek(self, step: Step, rows: Tensor) -> None:
        """Reads the next candidates of some of the followed rows, int64 (R',)."""
        race, read = step.race, step.race.read
        some = len(rows) < len(step.rows)
        ids = race.take(self._count(race, len(rows)), rows)
        extended = self.look.peek(ids, rows if some else None)
        texts = [text[rows] for text in step.texts] if some else step.texts
        margins = self.steering.margins(texts, extended, torch.isin(ids, self.ends))
        added = self._added(step, margins, rows)
        race.value(added, rows)
        # Of the winners so far, some may be of an earlier pass.
        place = race.number[rows] - read
        here = margins[torch.arange(len(rows), device=rows.device), place.clamp(min=0)]
        best = torch.where((place >= 0)[:, None], here, step.margins[rows])
        step.margins = step.margins.index_copy(0, rows, best)
        of_batch = step.rows[rows]
        self.candidates_read = self.candidates_read.index_add(
            0, of_batch, self.unfinished[of_batch] * ids.shape[1]
        )
        if self.recording:  # this one pass has read all candidates
            step.all_margins, step.added = margins, added
            if step.scores is not None and step.among is not None:
                step.scores = self._whole(
                    step.scores, reweight(step.scores[step.rows], step.among, added)
                )

    def _added(self, step: Step, margins: Tensor, rows: Tensor) -> Tensor:
        """What steering adds to keys, (R', K), of margins (R', K, S) in rows int64 (R',)."""
        if isinstance(step.beta, Tensor):
            return step.beta[rows] * self.steering.values(margins)
        if step.beta == 0:  # margins that are not numbers change nothing here
            return margins.new_zeros(margins.shape[:2])
        return step.beta * self.steering.values(margins)

    def _count(self, race: Race, rows: int) -> int:
        """How many candidates of each of some rows the next pass reads."""
        if self.everything:
            return race.ids.shape[1]
        count = passes.share(self.model.device.type, rows, race.read == 0)
        return min(count, self.width) if self.compiled else count

    def commit(self, step: Step) -> None:
        """Appends the winners to the texts. Raises ValueError where a text cannot go on."""
        if (step.race.failed() & self.unfinished[step.rows].bool()).any():
            raise ValueError(
                "no token can come next: scores or margins are not numbers, or processors leave none"
            )
        self.look.commit(step.race.number)
        tokens = step.race.winner
        if self.tracer is not None:
            self.tracer.step(step.drawn(self.steering, self.unfinished))
        if len(tokens) < len(self.ids):
            tokens = self.ids.new_full((len(self.ids),), self.fill).index_copy(0, step.rows, tokens)
        tokens = tokens * self.unfinished + self.fill * (1 - self.unfinished)
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        if self.config.return_dict_in_generate and self.observer.histories is None:
            logits = self.logits if self.config.output_logits else None
            ids = None if step.scores is None else step.race.ids
            self.records.append(
                Record(step.rows, step.margins, ids, step.all_margins, step.scores, logits)
            )

    def stop(self, step: Step) -> None:
        """Finds out which rows have ended, or go back."""
        so_far = (
            tuple(record.scores for record in self.records) if self.config.output_scores else None
        )
        over = torch.zeros_like(self.unfinished, dtype=torch.bool)
        for rows, ids in self._texts(self.ids[:, -1]):
            found: Any = self.criteria(cast(torch.LongTensor, ids), cast(Any, so_far))
            over = found if rows is None else torch.where(rows, found, over)
        verdict = self.observer.record(
            step.rows, self.ids[:, -1], step.margins, self.unfinished, over
        )
        if self.tracer is not None:
            self.tracer.take_back(step.rows, verdict)
        if verdict.restart is not None:
            self.look.restart(verdict.restart)
        if verdict.back is not None:
            self.look.rewind(verdict.back)
            self.ids = self.ids.index_copy(0, self.rows, self.look.ids)
        if self.streamer is not None and len(verdict.stream):
            self.streamer.put(verdict.stream.cpu())
        self.unfinished = self.unfinished & ~verdict.over.to(self.unfinished.device)

    def output(self) -> Tensor | SASAOutput:
        """What `generate()` returns."""
        self.look.release()
        if self.streamer is not None:
            if (rest := self.observer.rest()) is not None:
                self.streamer.put(rest)
            self.streamer.end()
        if self.observer.histories is not None:
            boundaries = len(self.steering.terms)
            out = output_of_histories(self.observer.histories, self.prompts, boundaries, self.fill)
        elif self.config.return_dict_in_generate:
            out = output_of_records(self.records, self.ids, self.config)
        else:
            return self.ids
        out.candidates_read, out.passes = self.candidates_read, self.look.passes
        return out if self.config.return_dict_in_generate else cast(Tensor, out.sequences)


def _observer(
    settings: DecoderSettings,
    model: PreTrainedModel,
    ids: Tensor,
    config: GenerationConfig,
    eos: list[int],
) -> Observer:
    """The observer that the loop reports to; it does nothing without backtracking."""
    if settings.backtrack is None:
        return Observer()
    boundaries = [boundary.to("cpu") for boundary, _ in settings.steering.terms]
    window = context_window(model)
    beyond = None if window is None else window - config.max_length
    room = config.max_length - ids.shape[1]
    return Watch(settings.backtrack, boundaries, len(ids), room, eos, beyond, settings.refusal)
