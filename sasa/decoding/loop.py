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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from sasa.core.backtracking import History, Observer, Verdict, Watch
from sasa.core.candidates import Candidates, Race, noise, select
from sasa.core.settings import TOP_K
from sasa.core.values import reweight
from sasa.decoding.lookahead import Lookahead
from sasa.decoding.tracing import Draw, Tracer
from sasa.models.heads import token_ids
from sasa.models.states import context_window

if TYPE_CHECKING:
    from sasa.decoding.decoder import SASADecoder

PASS = {"cpu": 16, "cuda": 256}
"""What a pass costs whatever it reads, counted in candidates. On two cores the weights and Python
take as long as a dozen of them, when the machine is slow some more (`benchmarks/lookahead.py`). On a
GPU, where nobody has measured it yet, a few hundred rows are multiplied while the weights are read.
"""
RESERVED_CANDIDATES, RESERVED_LAZILY = 64, 24
"""Candidates of a row for which there is memory from the start: if all are read, and if few are."""
RESERVED_TOKENS = 1024
"""Up to so many new tokens, memory for all is taken at once; longer texts grow by and by."""
ROUNDED_ROOM = 256
"""Room for a compiled pass comes in steps of so many positions: few lengths are compiled."""


def share(device: str, rows: int, first: bool) -> int:
    """How many candidates of each of some rows one pass reads.

    As many as the pass costs by itself, all rows together, so that it is at most twice as dear as it
    has to be. Most rows are settled by their first candidate or two: a first pass reads no more than
    a quarter of that for one row. Rows that are still open read two each at least. (A compiled pass
    is always as wide as the first.)
    """
    cost = PASS.get(device, 64)
    return max(1, cost // max(4, rows)) if first else max(2, cost // rows)


@dataclass
class SASAOutput(GenerateDecoderOnlyOutput):
    """What `generate()` returns with `return_dict_in_generate`, and the margins.

    Attributes:
        margins: a tensor (B, S) a step: the margins, by each of S boundaries, of the text with the
            token that was chosen. Behind a text's end they mean nothing, and are NaN once the row
            has left the batch.
        candidates, candidate_margins: tensors (B, K) and (B, K, S) a step, with `output_scores`:
            the candidates' ids and margins. Where a row has fewer than K candidates, the rest are
            others that were computed along; their score is -inf.
        histories: with backtracking, one a row: what was thrown away, and why.
        candidates_read: int64 (B,), candidates that were read for each row, in all its steps, those
            included that filled up a pass with rows that had more.
        passes: forward passes over candidates.
    """

    margins: tuple[Tensor, ...] | None = None
    candidates: tuple[Tensor, ...] | None = None
    candidate_margins: tuple[Tensor, ...] | None = None
    histories: list[History] | None = None
    candidates_read: Tensor | None = None
    passes: int | None = None


@dataclass
class Step:
    """A step in the making.

    Attributes:
        rows: int64 (R,), the rows of the batch that are followed.
        race: which of their candidates wins.
        beta: the strength of each row, (R, 1), or of all.
        texts: the embeddings (R, d) of their texts as they are, for each boundary.
        margins: (R, S), of the texts with the winners so far.
        among, all_margins, added: where all candidates are recorded, these, their margins (R, K, S),
            and what was added to their keys (R, K).
        scores: with `output_scores`, (B, V); before: with a tracer, the candidates' own (R, K).
    """

    rows: Tensor
    race: Race
    beta: Tensor | float
    texts: list[Tensor]
    margins: Tensor
    among: Candidates | None = None
    all_margins: Tensor | None = None
    added: Tensor | None = None
    scores: Tensor | None = None
    before: Tensor | None = None


class Record(NamedTuple):
    """What is kept of a step for `SASAOutput`: see `Step`, and ids (R, K), logits (B, V)."""

    rows: Tensor
    margins: Tensor
    ids: Tensor | None
    all_margins: Tensor | None
    scores: Tensor | None
    logits: Tensor | None


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
        streamer: BaseStreamer | None,
    ) -> None:
        self.model, self.config, self.processors = model, config, processors
        self.constraints: list[_Constraint] = []
        self.compiled = decoder.compiled
        self.steering = decoder.steering.to(model.device)
        self.sampling = bool(config.do_sample)
        own_top_k = decoder.top_k
        if own_top_k is None and decoder.top_p is None and not self.sampling:
            own_top_k = TOP_K
        self.top_k, self.top_p = own_top_k or None, None if decoder.top_p == 1 else decoder.top_p
        self.tracer = decoder.tracer
        self.recording = bool(config.output_scores) or self.tracer is not None
        self.everything = self.recording or self.steering.bound is None
        self.pad = cast(Any, config)._pad_token_tensor
        self.fill = 0 if self.pad is None else int(self.pad)  # behind the end of a text
        self.streamer = streamer

        eos = token_ids(model, "eos_token_id", config.eos_token_id)
        self.observer = _observer(decoder, model, ids, config, eos)
        if self.observer.goes_back:  # in `ids`, what was thrown away leaves padding
            others = [
                criterion for criterion in criteria if not isinstance(criterion, MaxLengthCriteria)
            ]
            criteria = StoppingCriteriaList(others)
            wrapped = [
                _Constraint(p) if isinstance(p, PrefixConstrainedLogitsProcessor) else p
                for p in processors
            ]
            self.constraints = [p for p in wrapped if isinstance(p, _Constraint)]
            self.processors = LogitsProcessorList(wrapped)
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
        self.width, positions = self._room()
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

    def _room(self) -> tuple[int, int]:
        """Candidates of a row in one pass, and positions of cache for text and candidates.

        There are 0 positions where a text may be long, and end early.
        """
        longest, device = self.config.max_length, self.model.device.type
        limits = [k for k in (self.top_k, self.config.top_k if self.sampling else None) if k]
        most = min([*limits, RESERVED_CANDIDATES])
        width = most if self.everything else min(most, share(device, len(self.ids), True))
        if self.compiled:  # where all rows take part in every pass, hard ones must not need many
            width = max(width, min(most, 4))
            return width, -(-longest // ROUNDED_ROOM) * ROUNDED_ROOM
        if longest - self.ids.shape[1] > RESERVED_TOKENS:
            return width, 0
        return width, longest + (
            most if self.everything else min(most, max(RESERVED_LAZILY, 2 * width))
        )

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
        for rows, ids in self._delivered_texts():
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

    def _delivered_texts(self, last: Tensor | None = None) -> list[tuple[Tensor | None, Tensor]]:
        """The texts as processors and stopping criteria are to see them: prompts and what is
        delivered of the responses, and nothing that was thrown away.

        Args:
            last: int64 (B,), tokens that no observer knows yet.

        Returns:
            for each length that responses have, which rows are of it, bool (B,), and ids, int64
            (B, T), to be read of these rows alone; None for all rows at once. The others hold texts
            of that length, too: the beginning of their own, or another row's.
        """
        histories = self.observer.histories
        if histories is None or not any(row.attempts for row in histories):
            return [(None, self.ids)]
        responses = [row.tokens for row in histories]
        if last is not None:
            responses = [
                [*tokens, token] for tokens, token in zip(responses, last.tolist(), strict=True)
            ]
        going = self.unfinished.tolist()
        lengths = torch.tensor(list(map(len, responses)), device=self.ids.device)
        found: list[tuple[Tensor | None, Tensor]] = []
        for length in sorted(
            {len(tokens) for tokens, goes in zip(responses, going, strict=True) if goes}
        ):
            whose = lengths == length
            one = int(whose.nonzero()[0])
            cut = [
                (tokens if len(tokens) >= length else responses[one])[:length]
                for tokens in responses
            ]
            prompts = torch.where((lengths >= length)[:, None], self.prompts, self.prompts[one])
            found.append((whose, torch.cat([prompts, self.prompts.new_tensor(cut)], 1)))
        return found

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
        count = share(self.model.device.type, rows, race.read == 0)
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
            self.tracer.step(self._drawn(step))
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

    def _drawn(self, step: Step) -> Draw:
        """What a tracer gets of a step in which all candidates were read."""
        among = cast(Candidates, step.among)
        margins = cast(Tensor, step.all_margins)
        return Draw(
            rows=step.rows,
            going=self.unfinished[step.rows].bool(),
            tokens=step.race.winner,
            ids=among.ids,
            mask=among.mask,
            scores=cast(Tensor, step.before),
            margins=margins,
            values=self.steering.values(margins),
            shifts=cast(Tensor, step.added),
            beta=step.beta,
        )

    def stop(self, step: Step) -> None:
        """Finds out which rows have ended, or go back."""
        so_far = (
            tuple(record.scores for record in self.records) if self.config.output_scores else None
        )
        over = torch.zeros_like(self.unfinished, dtype=torch.bool)
        for rows, ids in self._delivered_texts(self.ids[:, -1]):
            found: Any = self.criteria(cast(torch.LongTensor, ids), cast(Any, so_far))
            over = found if rows is None else torch.where(rows, found, over)
        verdict = self.observer.record(
            step.rows, self.ids[:, -1], step.margins, self.unfinished, over
        )
        if self.tracer is not None:
            self._trace_back(step, verdict)
        if verdict.restart is not None:
            self.look.restart(verdict.restart)
        if verdict.back is not None:
            self.look.rewind(verdict.back)
            self.ids = self.ids.index_copy(0, self.rows, self.look.ids)
        if self.streamer is not None and len(verdict.stream):
            self.streamer.put(verdict.stream.cpu())
        self.unfinished = self.unfinished & ~verdict.over.to(self.unfinished.device)

    def _trace_back(self, step: Step, verdict: Verdict) -> None:
        """Reports to the tracer which rows go back."""
        tracer = cast(Tracer, self.tracer)
        if verdict.restart is not None:
            for row in step.rows[verdict.restart].tolist():
                tracer.back(row)
        if verdict.back is not None:
            for row, count in zip(step.rows.tolist(), verdict.back.tolist(), strict=True):
                if count:
                    tracer.back(row, count)

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
        written = self.prompts.new_full((len(histories), width), self.fill)
        margins = torch.full((len(histories), width, boundaries), torch.nan)
        for b, row in enumerate(histories):
            written[b, : len(row.tokens)] = self.prompts.new_tensor(row.tokens)
            margins[b, : len(row.tokens)] = torch.tensor(row.margins).view(
                len(row.tokens), boundaries
            )
        sequences = cast(torch.LongTensor, torch.cat([self.prompts, written], 1))
        return SASAOutput(
            sequences=sequences, margins=margins.to(self.ids.device).unbind(1), histories=histories
        )

    def _written(self) -> SASAOutput:
        """The texts, and each step's tensors over the whole batch."""
        records, batch = self.records, len(self.ids)

        def whole(record: Record, part: Tensor | None, fill: float) -> Tensor:
            assert part is not None
            return part.new_full((batch, *part.shape[1:]), fill).index_copy(0, record.rows, part)

        out = SASAOutput(
            sequences=cast(torch.LongTensor, self.ids),
            margins=tuple(whole(record, record.margins, torch.nan) for record in records),
        )
        if self.config.output_logits:
            out.logits = cast(Any, tuple(record.logits for record in records))
        if self.config.output_scores:
            out.scores = cast(Any, tuple(record.scores for record in records))
            out.candidates = tuple(whole(record, record.ids, 0) for record in records)
            out.candidate_margins = tuple(
                whole(record, record.all_margins, torch.nan) for record in records
            )
        return out


class _Constraint(LogitsProcessor):
    """A `prefix_allowed_tokens_fn`, asked about some of the rows.

    Attributes:
        rows: bool (B,), which ones; None for all.
    """

    def __init__(self, whole: PrefixConstrainedLogitsProcessor) -> None:
        self.allowed = whole._prefix_allowed_tokens_fn
        self.rows: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        asked = range(len(input_ids)) if self.rows is None else self.rows.nonzero()[:, 0].tolist()
        one = PrefixConstrainedLogitsProcessor(lambda _, ids: self.allowed(row, ids), 1)
        scores = scores.clone()
        for row in asked:
            scores[row] = one(input_ids[row : row + 1], scores[row : row + 1])[0]
        return scores


def _observer(
    decoder: SASADecoder,
    model: PreTrainedModel,
    ids: Tensor,
    config: GenerationConfig,
    eos: list[int],
) -> Observer:
    """What the loop reports to."""
    if decoder.backtrack is None:
        return Observer()
    boundaries = [boundary.to("cpu") for boundary, _ in decoder.steering.terms]
    window = context_window(model)
    beyond = None if window is None else window - config.max_length
    room = config.max_length - ids.shape[1]
    return Watch(decoder.backtrack, boundaries, len(ids), room, eos, beyond, decoder.refusal)
