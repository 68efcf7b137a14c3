"""One call of `generate()`: what all of its batches have in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from sasa.core.backtracking import History
from sasa.decoding.batches import reach_of
from sasa.decoding.completion import Completion
from sasa.decoding.decoder import SASADecoder
from sasa.decoding.limits import Limits, first_given
from sasa.decoding.prompts import completion_text
from sasa.models.embedding import pad
from sasa.models.heads import token_ids


@dataclass(frozen=True)
class _Row:
    """One row that was generated.

    Attributes:
        prompt, tokens: token ids; tokens end with an EOS, or where the row was stopped.
        stopped: whether a criterion or the model closed the text.
        margins: of the text, by each boundary; none without a boundary.
        candidates_read: candidates that the boundaries read.
        history: what backtracking did; None without backtracking.
    """

    prompt: list[int]
    tokens: list[int]
    stopped: bool
    margins: tuple[float, ...]
    candidates_read: int
    history: History | None


class Request:
    """Calls `model.generate` for one batch after another and makes completions of its output.

    Args:
        decoder: None leaves the loop to transformers.
        truncation: the arguments of `model.generate` that limit a draw.
        refusal: the text that takes the place of a response whose budget is spent.
        generate_kwargs: further arguments of `model.generate`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        decoder: SASADecoder | None,
        truncation: Mapping[str, Any],
        limits: Limits,
        max_new_tokens: int,
        num_return_sequences: int,
        refusal: str | None,
        generate_kwargs: Mapping[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.decoder = model, tokenizer, decoder
        self.max_new_tokens, self.num_return_sequences = max_new_tokens, num_return_sequences
        self.refusal = refusal
        self.tracer = None if decoder is None else decoder.tracer
        kwargs = dict(generate_kwargs)
        config = model.generation_config
        self.reach = reach_of(kwargs, config)
        self.beams = int(first_given(kwargs.get("num_beams"), config.num_beams, 1))
        self.streams = kwargs.get("streamer") is not None
        self.allowed = kwargs.pop("prefix_allowed_tokens_fn", None)
        self.eos = token_ids(model, "eos_token_id", kwargs.pop("eos_token_id", None))
        pad_id = kwargs.pop("pad_token_id", None)
        self.pad_id = first_given(pad_id, tokenizer.pad_token_id, *self.eos, 0)
        # What transformers keeps from a custom_generate callable: see SASADecoder.
        self.criteria = StoppingCriteriaList(kwargs.pop("stopping_criteria", None) or [])
        if stop_strings := kwargs.pop("stop_strings", None):
            self.criteria.append(StopStringCriteria(tokenizer, stop_strings))
        kwargs |= truncation
        kwargs["do_sample"] = limits.do_sample
        if decoder is not None:
            kwargs |= {"custom_generate": decoder, "return_dict_in_generate": True}
        else:
            kwargs["return_dict_in_generate"] = False
        self.kwargs = kwargs

    def complete(self, prompts: list[list[int]], numbers: list[int]) -> list[Completion]:
        """The completions of one batch, `num_return_sequences` of each prompt.

        Args:
            prompts: token ids.
            numbers: the prompts' places in the whole call.
        """
        prompt_of_row = [prompt for prompt in prompts for _ in range(self.num_return_sequences)]
        if self.tracer is not None:
            self.tracer.begin(prompt_of_row)
        rows = self._rows(prompts, prompt_of_row, numbers)
        completions = [self._completion(row) for row in rows]
        if self.tracer is None:
            return completions
        traces = self.tracer.finish([row.tokens for row in rows])
        return [
            replace(completion, trace=trace)
            for completion, trace in zip(completions, traces, strict=True)
        ]

    def _rows(
        self, prompts: list[list[int]], prompt_of_row: list[list[int]], numbers: list[int]
    ) -> list[_Row]:
        """Generates the rows of a batch, and finds where each of them ends."""
        ids, mask = pad(prompts, "left", self.model.device)
        ends = _Ends(self.criteria)
        output: Any = cast(Any, self.model).generate(
            ids,
            attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            num_return_sequences=self.num_return_sequences,
            eos_token_id=self.eos or None,
            pad_token_id=self.pad_id,
            output_scores=False,
            output_logits=False,
            stopping_criteria=[ends] if self.criteria and self.beams == 1 else self.criteria,
            prefix_allowed_tokens_fn=self._allowed(numbers),
            **self.kwargs,
        )
        sequences = output if self.decoder is None else output.sequences
        written = sequences[:, ids.shape[1] :].tolist()
        stops = ends.lengths(len(written), ids.shape[1])
        if self.beams > 1:  # beams take each other's places: what follows one's end is padding
            stops = [_without(row, self.pad_id) for row in written]
        histories = getattr(output, "histories", None) or [None] * len(written)
        tokens = [
            _cut(row, self.eos, stop) if history is None else history.tokens
            for row, stop, history in zip(written, stops, histories, strict=True)
        ]
        margins: list[tuple[float, ...]] = [()] * len(tokens)
        counts = [0] * len(tokens)
        if self.decoder is not None and self.decoder.steering.terms:
            # The text's margin is that with its last token; an EOS is not a text of its own.
            steps = torch.stack(output.margins, 1).tolist()
            margins = [
                tuple(step[len(row) - 1]) if row else ()
                for step, row in zip(steps, tokens, strict=True)
            ]
            counts = output.candidates_read.tolist()
        return [
            _Row(
                prompt=prompt_of_row[i],
                tokens=tokens[i],
                stopped=stops[i] == len(tokens[i]) if history is None else history.stopped,
                margins=margins[i],
                candidates_read=counts[i],
                history=history,
            )
            for i, history in enumerate(histories)
        ]

    def _allowed(self, numbers: list[int]) -> Callable[[int, Tensor], list[int]] | None:
        """The caller's `prefix_allowed_tokens_fn`, for the rows of a batch."""
        if self.allowed is None:
            return None
        allowed, each = self.allowed, self.num_return_sequences if self.beams == 1 else 1
        return lambda row, ids: allowed(numbers[row // each], ids)

    def _completion(self, row: _Row) -> Completion:
        """The completion of a row, with what backtracking did to it."""
        tokens, history = row.tokens, row.history
        closed = row.stopped or tokens[-1] in self.eos or len(tokens) < self.max_new_tokens
        completion = Completion(
            text=completion_text(self.tokenizer, row.prompt, tokens),
            tokens=tokens,
            margin=row.margins[0] if row.margins else None,
            finish_reason="stop" if closed else "length",
            margins=row.margins,
            spent=len(tokens),
            candidates_read=row.candidates_read,
        )
        if history is None:
            return completion
        attempts = tuple(
            replace(attempt, text=completion_text(self.tokenizer, row.prompt, list(attempt.tokens)))
            for attempt in history.attempts
        )
        completion = replace(completion, attempts=attempts, spent=history.spent)
        if not history.exhausted:
            return completion
        completion = replace(completion, finish_reason="unsafe")
        if self.refusal is None:
            return completion
        streamed = ""
        if self.streams:
            streamed = completion_text(self.tokenizer, row.prompt, tokens[: history.streamed])
        text = f"{streamed}\n{self.refusal}" if streamed else self.refusal
        return replace(completion, text=text)


class _Ends(StoppingCriteria):
    """A caller's criteria, and the length at which each row was first ended by them."""

    def __init__(self, criteria: StoppingCriteriaList) -> None:
        self.criteria = criteria
        self._ends: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        over: Any = self.criteria(input_ids, scores, **kwargs)
        never = torch.full_like(over, 0, dtype=torch.long) if self._ends is None else self._ends
        self._ends = torch.where((never == 0) & over, input_ids.shape[1], never)
        return over

    def lengths(self, rows: int, prompt: int) -> list[int | None]:
        """Tokens of each row behind a prompt of so many when it ended; None where it did not."""
        ends = [0] * rows if self._ends is None else self._ends.tolist()
        return [end - prompt if end else None for end in ends]


def _without(row: list[int], pad: int) -> int:
    """The length of a row without padding behind it."""
    return len(row) - len(list(itertools.takewhile(pad.__eq__, reversed(row))))


def _cut(row: list[int], eos: list[int], stop: int | None) -> list[int]:
    """A row of tokens up to its end: an EOS, or where a criterion stopped it."""
    row = row[:stop]
    return next((row[: place + 1] for place, token in enumerate(row) if token in eos), row)
