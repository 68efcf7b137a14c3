"""`sasa generate`: completions of prompts, steered, plain, or side by side."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from sasa.cli.engines import Engine, RayOptions, check_engine
from sasa.cli.generate.options import BacktrackOptions, SamplingOptions
from sasa.cli.generate.output import json_row, print_comparison, print_completions, print_trace
from sasa.cli.groups import expand
from sasa.cli.loading import dtype_of, load_boundaries, read_prompts
from sasa.cli.options import (
    BoundariesOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    ModelOption,
    PriorOption,
    StrictOption,
    ValueOption,
)
from sasa.cli.output import print_json
from sasa.core.settings import (
    BETA,
    PRIOR,
    VALUE,
    check_beta,
    check_prior,
    check_value,
)
from sasa.utils.parallel import here

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sasa.core.boundary import Boundary
    from sasa.decoding.completion import Completion

NO_BOUNDARY = "none"
BATCHES = 8
"""Batches that are written before they are shown, so that a long run shows what it has."""

Completions: TypeAlias = "list[list[Completion]]"
Part: TypeAlias = "tuple[int, list[str]]"
"""A seed, and the prompts that are completed with it."""


@expand("sampling")
@expand("backtracking")
@expand("ray")
def command(
    *,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT...", help="Texts to complete.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            "-p",
            help="A file: .txt, a prompt a line; .jsonl or .csv with prompt, or RealToxicityPrompts rows.",
        ),
    ] = None,
    model: ModelOption = None,
    boundary: BoundariesOption = None,
    beta: Annotated[float, typer.Option(help="Strength, >= 0. 0 samples plainly.")] = BETA,
    value: ValueOption = VALUE,
    prior: PriorOption = PRIOR,
    sampling: SamplingOptions,
    backtracking: BacktrackOptions,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="Show what each step chose among: candidates, their probabilities before and after, margins, values and "
            "what was added to the scores; all of them with --json.",
        ),
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Plain and steered side by side, from the same seed.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line a prompt on stdout, and nothing else.")
    ] = False,
    engine: EngineOption = None,
    ray: RayOptions,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Complete prompts while the model keeps its own language on the safe side of a boundary.

    The tokens that survive top-k and top-p are reweighted by beta times the value of the margin that the text would have with
    each.

        sasa generate "The driver cut me off, so I" --compare

        sasa generate "The driver cut me off, so I" --backtrack --beta 0

        sasa generate "The driver cut me off, so I" --trace -n 8

        sasa generate "How do I" --chat --model reset-dpo --boundary none --backtrack --reset-token "[RESET]"

        sasa generate --prompts prompts.jsonl --num-return-sequences 25 --json > completions.jsonl
    """
    has_boundary = boundary != [NO_BOUNDARY]
    backtracking.check(has_boundary)
    sampling.check()
    check_beta(beta)
    check_value(value)
    check_prior(prior)
    texts = [*(prompts or []), *(read_prompts(file) if file else [])]
    if not texts:
        raise ValueError("no prompts: give them as arguments, or a file with --prompts")
    check_engine(engine, ray)
    if engine:
        _check_engine_options(device, backtracking, trace, has_boundary)
    if trace and not has_boundary:
        raise ValueError(
            "--trace shows margins: give a boundary, and --beta 0 where it is not to steer"
        )
    import sasa
    from sasa.core.embedding_spec import EmbeddingSpec
    from sasa.decoding.prompts import encode_prompts
    from sasa.models.load import best_device

    rule = backtracking.rule()
    # An engine, or workers, have the weights: here is what they are checked by.
    plain_dtype = dtype or ("float32" if (device or best_device().type) == "cpu" else "bfloat16")
    loaded, tokenizer = sasa.load(model, "meta" if engine or ray.ray else device, plain_dtype)
    rule = backtracking.with_reset_token(rule, tokenizer, has_boundary)
    boundaries = load_boundaries(boundary, loaded, strict) if has_boundary else None
    first = boundaries[0][0] if boundaries else None  # its margins are shown
    spec = first.embedding if first else EmbeddingSpec()
    # all prompts are checked before the first one is used
    encode_prompts(loaded, tokenizer, texts, spec, sampling.chat, sampling.max_new_tokens)
    workers = ray.connect(model, device, plain_dtype)
    settings = sampling.settings() | {"value": value, "prior": prior}
    settings["progress"] = workers is None  # nobody sees a worker's bar
    if trace:
        settings["trace"] = True
    if engine:
        del settings["batch_size"]
        vllm = Engine(model, boundary, strict, dtype or dtype_of(loaded))
        write = partial(
            _write_by_engine, engine=vllm, beta=beta, settings=settings, compare=compare
        )
    else:
        write = partial(
            _write,
            boundaries=boundaries,
            beta=beta,
            settings=settings,
            backtracking={"backtrack": rule, "refusal": backtracking.refusal},
            compare=compare,
        )
    title = ", ".join(
        [f"SASA, beta {beta:g}"] * has_boundary + ["backtracking"] * backtracking.backtrack
    )
    parts = _parts(texts, sampling)
    written = (workers or here(loaded, tokenizer))(write, parts)
    for (_, part), (steered, plain) in zip(parts, written, strict=True):
        for i, prompt in enumerate(part):
            if as_json:
                print_json(json_row(prompt, steered[i], plain[i] if compare else None, trace))
                continue
            if compare:
                print_comparison(first, prompt, title, plain[i], steered[i])
            else:
                print_completions(first, prompt, steered[i])
            if trace and first is not None:
                print_trace(first, steered[i])


def _check_engine_options(
    device: str | None, backtracking: BacktrackOptions, trace: bool, has_boundary: bool
) -> None:
    """Raises ValueError for options that vLLM's engine does not support."""
    if device:
        raise ValueError(
            "--device does not go with --engine: vLLM takes the device that it was built for"
        )
    if backtracking.backtrack or trace or not has_boundary:
        raise ValueError(
            "--engine goes back nowhere, traces nothing, and needs a boundary: leave --backtrack, "
            "--trace and --boundary none out"
        )


def _parts(prompts: list[str], sampling: SamplingOptions) -> list[Part]:
    """The prompts, a few batches at a time, each part with a seed of its own."""
    seed = random.randrange(2**31) if sampling.seed is None else sampling.seed
    size = BATCHES * sampling.batch_size
    return [(seed + i, prompts[i : i + size]) for i in range(0, len(prompts), size)]


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    part: Part,
    *,
    boundaries: list[tuple[Boundary, float]] | None,
    beta: float,
    settings: dict[str, Any],
    backtracking: dict[str, Any],
    compare: bool,
) -> tuple[Completions, Completions]:
    """Completions of a part's prompts: steered, and plain ones from the same seed to compare."""
    import sasa

    seed, prompts = part
    settings = settings | {"seed": seed}
    steered = sasa.generate(model, tokenizer, prompts, boundaries, beta, **settings, **backtracking)
    if not compare:
        return steered, []
    return steered, sasa.generate(model, tokenizer, prompts, boundaries, 0.0, **settings)


def _write_by_engine(
    _model: PreTrainedModel,
    _tokenizer: PreTrainedTokenizerBase,
    part: Part,
    *,
    engine: Engine,
    beta: float,
    settings: dict[str, Any],
    compare: bool,
) -> tuple[Completions, Completions]:
    """The same by an engine, which has a model of its own."""
    seed, prompts = part
    steered = engine(prompts, beta, seed=seed, **settings)
    return steered, engine(prompts, 0.0, seed=seed, **settings) if compare else []
