"""generate(): prompts in, completions out. What most users call."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, overload

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from sasa.core.backtracking import Attempt, Backtracking, History
from sasa.core.boundary import Boundary, EmbeddingSpec
from sasa.core.settings import BETA, BUNDLED, PRIOR, TOP_K, TOP_P, VALUE, check_truncation
from sasa.core.values import Boundaries, Steering
from sasa.decoding.decoder import SASADecoder
from sasa.decoding.sampling import random_state
from sasa.decoding.tracing import TracedStep, Tracer
from sasa.models.embedding import Prompt, length_batches, pad, tokenize_prompt
from sasa.models.heads import token_ids
from sasa.models.inputs import CACHES, check_model
from sasa.models.states import context_window
from sasa.utils.progress import progress_bar

logger = logging.getLogger(__name__)

OURS = (
    "generation_config",
    "custom_generate",
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "input_ids",
    "inputs",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    *CACHES,
)
LATER = ("typical_p", "epsilon_cutoff", "eta_cutoff", "watermarking_config")
"""What generate() applies after top-k and top-p."""
READERS = {
    "logits_processor": None,
    "prefix_allowed_tokens_fn": None,
    "stopping_criteria": None,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "watermarking_config": None,
}
"""What of generate() may read a whole text, or count its tokens, padding included; and what turns it off."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote after a prompt.

    Attributes:
        text: without special tokens.
        tokens: ids, the closing EOS included.
        margin: of the whole text, as the boundary embeds it; None without a boundary. Of several,
            the first one's.
        margins: by each of the boundaries.
        finish_reason: `stop`, the model closed the text (or a stop string or criterion did);
            `length`, it was cut off; `unsafe`, backtracking's budget was spent on it.
        attempts: what backtracking threw away; spent: tokens drawn in all, these included.
        candidates_read: how many candidate tokens the boundaries looked at in all; 0 without any.
        trace: with `trace`, what each step chose among.
    """

    text: str
    tokens: list[int]
    margin: float | None
    finish_reason: str
    margins: tuple[float, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    spent: int = 0
    candidates_read: int = 0
    trace: tuple[TracedStep, ...] = ()


@overload
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Sequence[Mapping[str, str]],
    boundary: Boundaries | str | None = ...,
    beta: float = ...,
    **kwargs: Any,
) -> list[Completion]: ...
@overload
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    boundary: Boundaries | str | None = ...,
    beta: float = ...,
    **kwargs: Any,
) -> list[list[Completion]]: ...
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompt | Sequence[Prompt],
    boundary: Boundaries | str | None = BUNDLED,
    beta: float = BETA,
    *,
    value: str = VALUE,
    prior: float = PRIOR,
    chat: bool = False,
    batch_size: int = 8,
    seed: int | None = None,
    progress: bool = False,
    max_new_tokens: int = 50,
    do_sample: bool = True,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    num_return_sequences: int = 1,
    compiled: bool = False,
    backtrack: Backtracking | None = None,
    refusal: str | None = None,
    trace: bool | Callable[[list[list[TracedStep]]], None] = False,
    **generate_kwargs: Any,
) -> list[Completion] | list[list[Completion]]:
    """Completes prompts under SASA: temperature, top-k, top-p and min-p as usual, then what
    survives is reweighted.

    Args:
        prompts: a string or several; with `chat` also a conversation, a list of messages with `role`
            and `content`, or several.
        boundary: the boundary to keep to; several with a weight each, [(boundary, weight), …]; a
            name for `Boundary.load`, by default `toxicity`, which is bundled for some models; None
            samples plainly.
        beta: strength, >= 0; 0 samples plainly, the same tokens from the same seed.
        value: what a margin is worth: `log_sigmoid`, the log-probability of being safe, or `raw`,
            itself (the paper); see `sasa.core.values`.
        prior: the share of text that is unsafe, in (0, 1), for `log_sigmoid`: the lower, the surer
            the boundary has to be before it steers. 0.5 takes both classes for equally likely.
        chat: puts each prompt through the tokenizer's chat template, a string as the user's turn.
        batch_size: prompts at a time; they are batched by length and come back in their own order.
            A completion does not depend on its neighbours: where a processor or criterion would
            read padding, only prompts of one length stand together.
        seed: for the same completions again, on the same machine with the same batch size. The
            global random state is left as it was.
        do_sample: False decodes greedily, and temperature and min_p do nothing.
        temperature, top_k, top_p, min_p: None takes the model's generation config, and where that
            has none, 1.0, 20, 0.9 and no limit; top_k=0 and top_p=1.0 set none.
        compiled: see `SASADecoder`: on a GPU, for many tokens in batches of one size.
        backtrack: lets responses that go wrong go back, see `Backtracking`; with `beta=0`, that
            alone. A model's own [RESET] needs no boundary beside it.
        refusal: the text of a response on which backtracking's budget was spent; its tokens and
            margins stay those of the safest attempt. A streamer has got what is safe by then, and
            gets the refusal on a new line behind it.
        trace: has completions say what each step chose among: candidates, their probabilities
            before and after, margins, values, see `sasa.decoding.tracing`. All candidates are then read,
            which takes longer; the tokens are the same. A function also gets the traces of a batch
            after each step, in the order of its rows, which batching by length has changed where
            there are several prompts; what it raises ends the generation.
        generate_kwargs: passed on to `model.generate`. A `prefix_allowed_tokens_fn` gets the number
            of the prompt in `prompts`. Processors and criteria are for all batches: one that keeps
            state of its own has to find out itself that a new one begins.

    Returns:
        completions, `num_return_sequences` of them for a string or a conversation, and a list of those
        for a list of prompts.

    Raises:
        FileNotFoundError: no boundary of that name, or none is bundled for the model; the message
            has the command that fits one.
        ValueError: an empty prompt, one longer than the context window, an argument outside its
            range, or a boundary for another model; all before anything is generated.
    """
    single = isinstance(prompts, str)
    if isinstance(prompts, Mapping):
        raise ValueError(
            "a conversation is a list of messages, and this is one message: put it into a list"
        )
    texts: list[Any] = [prompts] if single else list(prompts)
    if not single and texts and isinstance(texts[0], Mapping):
        single, texts = True, [texts]
    check_model(model)
    if isinstance(boundary, str):
        boundary = Boundary.load(boundary, model=model)
    limits = Limits.of(model.generation_config, do_sample, temperature, top_k, top_p, min_p)
    numbers = dict(
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        num_return_sequences=num_return_sequences,
    )
    _validate(limits, numbers, boundary, backtrack, refusal, generate_kwargs)
    if trace:
        _check_trace(boundary, limits, compiled)
    spec = EmbeddingSpec()
    if boundary is not None:
        spec = _check_boundaries(model, Steering.of(boundary, beta, value, prior), chat)
    encoded = encode_prompts(model, tokenizer, texts, spec, chat, max_new_tokens)
    if len(texts) > 1 and generate_kwargs.get("negative_prompt_ids") is not None:
        raise ValueError(
            "negative_prompt_ids are for one batch of model.generate: give prompts one at a time with them"
        )

    decoding: dict[str, Any] | None = None
    if boundary is not None or backtrack is not None:
        decoding = dict(
            boundary=boundary, beta=0.0 if boundary is None else beta, value=value, prior=prior
        )
        decoding |= dict(compiled=compiled, backtrack=backtrack)
        if trace:
            decoding["tracer"] = Tracer(tokenizer, trace if callable(trace) else None)
    request = _Request(
        model,
        tokenizer,
        limits,
        decoding,
        max_new_tokens,
        num_return_sequences,
        do_sample,
        refusal,
        generate_kwargs,
    )
    lengths = [len(ids) for ids in encoded]
    results: list[list[Completion]] = [[] for _ in texts]
    with random_state(seed, model.device), progress_bar("generating", progress) as bar:
        task = bar.add_task("generating", total=len(texts))
        for batch in _batches(lengths, batch_size, request.reach):
            made = request.complete([encoded[i] for i in batch], batch)
            for place, i in enumerate(batch):
                results[i] = made[place * num_return_sequences : (place + 1) * num_return_sequences]
            bar.advance(task, len(batch))
    return results[0] if single else results


@dataclass(frozen=True)
class Limits:
    """What a draw is limited to. Raises ValueError for one outside its range."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float | None

    @classmethod
    def of(
        cls,
        config: GenerationConfig,
        do_sample: bool,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        min_p: float | None,
    ) -> Limits:
        """What is asked for; for what is None the model's generation config, and where that has none, the defaults."""
        return cls(
            do_sample=do_sample,
            temperature=_first(temperature, config.temperature, 1.0),
            top_k=_first(top_k, config.top_k, TOP_K),
            top_p=_first(top_p, config.top_p, TOP_P),
            min_p=_first(min_p, config.min_p),
        )

    def __post_init__(self) -> None:
        check_truncation(self.top_k, self.top_p, self.min_p)
        if self.do_sample and not self.temperature > 0:
            hint = ": do_sample=False decodes greedily" if self.temperature == 0 else ""
            raise ValueError(f"temperature must be > 0, got {self.temperature}{hint}")


def _validate(
    limits: Limits,
    numbers: dict[str, int],
    boundary: Boundaries | None,
    backtrack: Backtracking | None,
    refusal: str | None,
    generate_kwargs: dict[str, Any],
) -> None:
    """Raises ValueError for arguments that no completion could come of."""
    if backtrack is not None and boundary is None and backtrack.threshold is not None:
        raise ValueError(
            "backtracking by a threshold needs a boundary to watch the text; beta=0 keeps it from steering"
        )
    if refusal is not None and (backtrack is None or backtrack.threshold is None):
        raise ValueError(
            "refusal is what backtracking by a threshold says in the end: give backtrack, too"
        )
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be > 0, got {number}")
    if refused := [name for name in OURS if name in generate_kwargs]:
        raise ValueError(
            f"{', '.join(refused)} cannot be given to sasa.generate: use SASALogitsProcessor with model.generate"
        )


def _check_trace(boundary: Boundaries | None, limits: Limits, compiled: bool) -> None:
    """Raises ValueError where there is nothing to trace, or too much."""
    if boundary is None:
        raise ValueError("trace has margins: give a boundary, and beta=0 where it is not to steer")
    if compiled:
        raise ValueError("trace reads all candidates: leave compiled out")
    if not limits.top_k and limits.top_p == 1 and not limits.min_p:
        raise ValueError(
            "trace reads all candidates at every step: limit them by top_k, top_p or min_p"
        )


def _check_boundaries(model: PreTrainedModel, steering: Steering, chat: bool) -> EmbeddingSpec:
    """A spec that says how the boundaries' texts are tokenized.

    Raises ValueError where they do not fit the model.
    """
    steering.check(model)
    for spec in steering.specs:
        _check_template(spec.template, chat)
    if len({spec.special_tokens for spec in steering.specs}) > 1:
        raise ValueError(
            "the boundaries were fitted with different special_tokens: they cannot steer one text"
        )
    return steering.specs[-1] if steering.specs else EmbeddingSpec()


class _Request:
    """What all batches of one call have in common: what `model.generate` is given.

    Args:
        decoding: the arguments of `SASADecoder` but for the truncation; None leaves the loop to
            transformers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        decoding: dict[str, Any] | None,
        max_new_tokens: int,
        num_return_sequences: int,
        do_sample: bool,
        refusal: str | None,
        generate_kwargs: dict[str, Any],
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.num_return_sequences, self.refusal = (
            max_new_tokens,
            num_return_sequences,
            refusal,
        )
        kwargs = dict(generate_kwargs)
        self.reach = _reach(kwargs, model.generation_config)
        self.beams = int(_first(kwargs.get("num_beams"), model.generation_config.num_beams, 1))
        self.streams = kwargs.get("streamer") is not None
        self.allowed = kwargs.pop("prefix_allowed_tokens_fn", None)
        self.ours = decoding is not None
        self.tracer: Tracer | None = (decoding or {}).get("tracer")
        self.measured = self.ours and cast(Any, decoding)["boundary"] is not None
        self.eos = token_ids(self.model, "eos_token_id", kwargs.pop("eos_token_id", None))
        self.pad_id = _first(
            kwargs.pop("pad_token_id", None), self.tokenizer.pad_token_id, *self.eos, 0
        )
        # What transformers keeps from a custom_generate callable: see SASADecoder.
        self.criteria = StoppingCriteriaList(kwargs.pop("stopping_criteria", None) or [])
        if stop_strings := kwargs.pop("stop_strings", None):
            self.criteria.append(StopStringCriteria(self.tokenizer, stop_strings))
        later = any(
            _first(kwargs.get(n), getattr(self.model.generation_config, n, None)) for n in LATER
        )
        theirs, own = _truncation(
            limits, do_sample, self.ours and self.model.device.type == "cpu" and not later
        )
        if decoding is not None:
            told = None
            if refusal is not None:
                behind, alone = (
                    self.tokenizer(text, add_special_tokens=False)
                    for text in (f"\n{refusal}", refusal)
                )
                told = behind["input_ids"], alone["input_ids"]
            kwargs["custom_generate"] = SASADecoder(**decoding, **own, refusal=told)
        self.kwargs = kwargs | theirs | dict(do_sample=do_sample, return_dict_in_generate=self.ours)

    def complete(self, prompts: list[list[int]], numbers: list[int]) -> list[Completion]:
        """Completions of one batch, `num_return_sequences` of each prompt; `numbers` are the prompts'
        own.
        """
        ids, mask = pad(prompts, "left", self.model.device)
        ends = _Ends(self.criteria)
        if self.tracer is not None:
            self.tracer.begin(
                [prompt for prompt in prompts for _ in range(self.num_return_sequences)]
            )
        written: Any = cast(Any, self.model).generate(
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
        sequences = written.sequences if self.ours else written
        written_rows = sequences[:, ids.shape[1] :].tolist()
        stops = ends.lengths(len(written_rows), ids.shape[1])
        if (
            self.beams > 1
        ):  # beams take each other's places: what stands behind one's end is padding
            stops = [_without(row, self.pad_id) for row in written_rows]
        histories = getattr(written, "histories", None) or [None] * len(written_rows)
        rows = [
            _cut(row, self.eos, stop) if history is None else history.tokens
            for row, stop, history in zip(written_rows, stops, histories, strict=True)
        ]
        stopped = [
            stop == len(row) if history is None else history.stopped
            for row, stop, history in zip(rows, stops, histories, strict=True)
        ]
        margins: Any = [()] * len(rows)
        counts = [0] * len(rows)
        if self.measured:
            # The text's margin is what it was with its last token; an EOS is no text of its own.
            steps = torch.stack(written.margins, 1).tolist()
            margins = [
                tuple(step[len(row) - 1]) if row else ()
                for step, row in zip(steps, rows, strict=True)
            ]
            counts = written.candidates_read.tolist()
        of = [prompt for prompt in prompts for _ in range(self.num_return_sequences)]
        made = [
            self._completion(*parts)
            for parts in zip(of, rows, stopped, margins, counts, histories, strict=True)
        ]
        if self.tracer is None:
            return made
        return [
            replace(one, trace=steps)
            for one, steps in zip(made, self.tracer.finish(rows), strict=True)
        ]

    def _allowed(self, numbers: list[int]) -> Callable[[int, Tensor], list[int]] | None:
        """The caller's `prefix_allowed_tokens_fn`, of the rows of a batch."""
        if self.allowed is None:
            return None
        allowed, each = self.allowed, self.num_return_sequences if self.beams == 1 else 1
        return lambda row, ids: allowed(numbers[row // each], ids)

    def _completion(
        self,
        prompt: list[int],
        row: list[int],
        stopped: bool,
        margins: tuple[float, ...],
        count: int,
        history: History | None,
    ) -> Completion:
        """One completion, with what backtracking did to it."""
        made = Completion(
            text=completion_text(self.tokenizer, prompt, row),
            tokens=row,
            margin=margins[0] if margins else None,
            finish_reason="stop"
            if stopped or row[-1] in self.eos or len(row) < self.max_new_tokens
            else "length",
            margins=margins,
            spent=len(row),
            candidates_read=count,
        )
        if history is None:
            return made
        attempts = (
            replace(a, text=completion_text(self.tokenizer, prompt, list(a.tokens)))
            for a in history.attempts
        )
        made = replace(made, attempts=tuple(attempts), spent=history.spent)
        if not history.exhausted:
            return made
        made = replace(made, finish_reason="unsafe")
        if self.refusal is None:
            return made
        got = (
            completion_text(self.tokenizer, prompt, row[: history.streamed]) if self.streams else ""
        )
        return replace(made, text=f"{got}\n{self.refusal}" if got else self.refusal)


class _Ends(StoppingCriteria):
    """A caller's criteria, and at what length each row was first ended by them."""

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


def _reach(kwargs: dict[str, Any], config: Any) -> int:
    """How many of a text's last tokens processors and criteria may read; 0 where none does."""

    def given(name: str) -> Any:
        return _first(kwargs.get(name), getattr(config, name, None))

    if any(given(name) not in (None, neutral) for name, neutral in READERS.items()):
        return 1 << 62
    bias = given("sequence_bias") or []
    sequences = [
        *(given("bad_words_ids") or []),
        *(bias if isinstance(bias, dict) else (pair[0] for pair in bias)),
    ]
    strings = given("stop_strings") or []
    strings = [strings] if isinstance(strings, str) else strings
    first = 2 * (given("forced_bos_token_id") is not None)  # where the text has one token
    return max(
        0,
        first,
        *(len(words) - 1 for words in sequences),
        *(len(text.encode()) for text in strings),
    )


def _batches(lengths: Sequence[int], batch_size: int, reach: int) -> Iterator[list[int]]:
    """Prompts in batches; those shorter than `reach` only with others of their length."""
    for batch in length_batches(lengths, batch_size, 1 << 62):
        if lengths[batch[-1]] >= reach or lengths[batch[0]] == lengths[batch[-1]]:
            yield batch
        else:
            for length in dict.fromkeys(lengths[i] for i in batch):
                yield [i for i in batch if lengths[i] == length]


def _truncation(
    limits: Limits, do_sample: bool, by_decoder: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `model.generate` truncates by, and what the decoder does, so that the same tokens
    survive.

    Args:
        by_decoder: whether the decoder may truncate. It sorts those that top-k left, where
            transformers sorts the vocabulary. On a GPU that is quick, and it is the decoder's
            waiting for the device that takes time.
    """
    own = {"top_k": limits.top_k, "top_p": limits.top_p}
    if (
        not do_sample
    ):  # greedy decoding truncates nothing, but SASA has to look at some tokens and not at others
        return {
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "min_p": None,
        }, own  # its defaults: of others it warns
    theirs: dict[str, Any] = {
        "temperature": float(limits.temperature),
        "min_p": limits.min_p or None,
    }
    if by_decoder and not limits.min_p:
        return theirs | {"top_k": 0, "top_p": 1.0}, own
    return theirs | own, {"top_k": 0}


@functools.cache  # said once, and not for every batch of a long run
def _check_template(fitted: str, chat: bool) -> None:
    """A boundary that was fitted on plain texts does its work in a chat as well: measured on the default model, see
    benchmarks/README.md, Chats.
    """
    if fitted == "chat" and not chat:
        logger.warning(
            "the boundary was fitted with a chat template and decodes without one: its margins mean less"
        )


def encode_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    spec: EmbeddingSpec,
    chat: bool,
    room: int,
) -> list[list[int]]:
    """Token ids of the prompts, all checked before the first of them is used.

    Raises:
        ValueError: no prompts, an empty one, one that leaves no `room` in the context window (it is
            named by its index), or a chat without a template.
    """
    spec = replace(spec, template="chat" if chat else "none")
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to complete")
    if chat and tokenizer.chat_template is None:
        raise ValueError("chat: the model's tokenizer has no chat template")
    window = context_window(model)
    encoded = []
    for number, prompt in enumerate(prompts):
        _check_prompt(number, prompt, chat)
        try:
            ids = tokenize_prompt(tokenizer, prompt, spec)
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        if window is not None and len(ids) + room > window:
            raise ValueError(
                f"prompt {number} has {len(ids)} tokens: with max_new_tokens={room} that is beyond the model's context "
                f"window of {window}"
            )
        encoded.append(ids)
    return encoded


def _check_prompt(number: int, prompt: Prompt, chat: bool) -> None:
    """Raises ValueError for a prompt that holds nothing, or that is a conversation and none is wanted."""
    if prompt is None or (
        isinstance(prompt, Sequence) and not (prompt.strip() if isinstance(prompt, str) else prompt)
    ):
        raise ValueError(f"prompt {number} is empty: a completion needs something to complete")
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, Sequence):
        raise ValueError(
            f"prompt {number} is of type {type(prompt).__name__}: it must be a text or a list of messages"
        )
    if not chat:
        raise ValueError(f"prompt {number} is a conversation: give chat=True")
    for turn in prompt:
        if not (
            isinstance(turn, Mapping)
            and all(isinstance(turn.get(name), str) for name in ("role", "content"))
        ):
            raise ValueError(
                f"prompt {number}: a conversation is messages with role and content, got {turn!r}"
            )


def completion_text(tokenizer: PreTrainedTokenizerBase, prompt: list[int], row: list[int]) -> str:
    """What a row of tokens adds to its prompt: alone, SentencePiece would drop the space that it
    begins with.
    """
    before, whole = (
        str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, [*prompt, *row])
    )
    if whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode(row, skip_special_tokens=True))


def _without(row: list[int], pad: int) -> int:
    """The length of a row without padding behind it."""
    return len(row) - len(list(itertools.takewhile(pad.__eq__, reversed(row))))


def _cut(row: list[int], eos: list[int], stop: int | None) -> list[int]:
    """A row of tokens up to its end: an EOS, or where a criterion stopped it."""
    row = row[:stop]
    return next((row[: place + 1] for place, token in enumerate(row) if token in eos), row)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
