"""generate(): prompts in, completions out. Most users call this."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.backtracking import Backtracking
from sasa.core.boundary import Boundary
from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.settings import BETA, BUNDLED, PRIOR, VALUE
from sasa.core.values import Boundaries, Steering
from sasa.decoding.batches import batches
from sasa.decoding.completion import Completion
from sasa.decoding.decoder import SASADecoder
from sasa.decoding.limits import LATER, Limits, first_given
from sasa.decoding.prompts import encode_prompts
from sasa.decoding.request import Request
from sasa.decoding.sampling import random_state
from sasa.decoding.tracing import TracedStep, Tracer
from sasa.models.embedding import Prompt
from sasa.models.inputs import CACHES, check_model
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
"""Arguments of `model.generate` that cannot be given to `generate`."""


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

    steers = boundary is not None or backtrack is not None
    config = model.generation_config
    later = any(first_given(generate_kwargs.get(n), getattr(config, n, None)) for n in LATER)
    by_decoder = steers and model.device.type == "cpu" and not later
    truncation, further_truncation = limits.divided(by_decoder)
    decoder = None
    if steers:
        decoder = SASADecoder(
            boundary,
            0.0 if boundary is None else beta,
            **further_truncation,
            value=value,
            prior=prior,
            compiled=compiled,
            backtrack=backtrack,
            refusal=None if refusal is None else _refusal_ids(tokenizer, refusal),
            tracer=Tracer(tokenizer, trace if callable(trace) else None) if trace else None,
        )
    request = Request(
        model,
        tokenizer,
        decoder=decoder,
        truncation=truncation,
        limits=limits,
        max_new_tokens=max_new_tokens,
        num_return_sequences=num_return_sequences,
        refusal=refusal,
        generate_kwargs=generate_kwargs,
    )
    with random_state(seed, model.device):
        results = _complete(request, encoded, batch_size, progress)
    return results[0] if single else results


def _complete(
    request: Request, encoded: list[list[int]], batch_size: int, progress: bool
) -> list[list[Completion]]:
    """The completions of each prompt, batch by batch."""
    results: list[list[Completion]] = [[] for _ in encoded]
    each = request.num_return_sequences
    with progress_bar("generating", progress) as bar:
        task = bar.add_task("generating", total=len(encoded))
        for batch in batches([len(ids) for ids in encoded], batch_size, request.reach):
            completions = request.complete([encoded[i] for i in batch], batch)
            for place, i in enumerate(batch):
                results[i] = completions[place * each : (place + 1) * each]
            bar.advance(task, len(batch))
    return results


def _refusal_ids(tokenizer: PreTrainedTokenizerBase, refusal: str) -> tuple[list[int], list[int]]:
    """Token ids of a refusal after text that was streamed, and of one on its own."""
    after, alone = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"\n{refusal}", refusal)
    )
    return after, alone


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


@functools.cache  # said once, and not for every batch of a long run
def _check_template(fitted: str, chat: bool) -> None:
    """A boundary that was fitted on plain texts does its work in a chat as well: measured on the default model, see
    benchmarks/README.md, Chats.
    """
    if fitted == "chat" and not chat:
        logger.warning(
            "the boundary was fitted with a chat template and decodes without one: its margins mean less"
        )
