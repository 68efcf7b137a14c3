"""`sasa generate`: completions of prompts, steered, plain, or side by side."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sasa.cli.common import (
    AddressOption,
    BoundariesOption,
    DeviceOption,
    DtypeOption,
    Engine,
    EngineOption,
    ModelOption,
    PriorOption,
    RayOption,
    StrictOption,
    ValueOption,
    WorkersOption,
    check_engine,
    dtype_of,
    in_unicode,
    load_boundaries,
    out,
    print_json,
    read_prompts,
    spread_by_ray,
    style,
)
from sasa.core.settings import (
    BETA,
    MAX_RESETS,
    PRIOR,
    THRESHOLD,
    VALUE,
    check_beta,
    check_prior,
    check_truncation,
    check_value,
)
from sasa.utils.parallel import Spread, here

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sasa.core.boundary import Boundary
    from sasa.decoding.completion import Completion

NO_BOUNDARY = "none"
SHOWN = 5
"""Candidates of a step in the table of --trace, and the one that was drawn."""


def command(
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
    top_k: Annotated[
        int | None,
        typer.Option(
            help="At most the k likeliest tokens; 0: no limit.", show_default="the model's, else 20"
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="The likeliest tokens of this total probability.",
            show_default="the model's, else 0.9",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Below 1 sharper, above 1 flatter.", show_default="the model's, else 1"),
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy",
            help="Take the best token each time and draw none; --temperature does nothing.",
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens a completion, at most.")
    ] = 50,
    num_return_sequences: Annotated[int, typer.Option(min=1, help="Completions a prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(help="For the same completions again.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 8,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts through the model's chat template.")
    ] = False,
    backtrack: Annotated[
        bool,
        typer.Option(
            "--backtrack",
            help="A completion that goes wrong goes back and is written anew from there.",
        ),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="P(unsafe), in (0, 1), from which it goes back.", show_default=f"{THRESHOLD:g}"
        ),
    ] = None,
    max_resets: Annotated[
        int | None,
        typer.Option(
            min=1, help="How often one completion may go back.", show_default=f"{MAX_RESETS}"
        ),
    ] = None,
    refusal: Annotated[
        str | None,
        typer.Option(
            help="Said in place of a completion that is still unsafe then.",
            show_default="its safest try",
        ),
    ] = None,
    reset_token: Annotated[
        str | None,
        typer.Option(
            help="With --backtrack: [RESET], of a model trained to write it; what is before it is dropped, too. "
            "--boundary none leaves it to the model alone."
        ),
    ] = None,
    reset_bias: Annotated[
        float | None,
        typer.Option(
            help="Added to the logit of [RESET]: above 0 safer, below 0 faster.", show_default="0"
        ),
    ] = None,
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
    ray: RayOption = False,
    ray_address: AddressOption = None,
    ray_workers: WorkersOption = None,
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
    alone = boundary == [NO_BOUNDARY]
    options = {
        "--threshold": threshold,
        "--max-resets": max_resets,
        "--refusal": refusal,
        "--reset-token": reset_token,
        "--reset-bias": reset_bias,
    }
    given = [name for name, option in options.items() if option is not None]
    if given and not backtrack:
        raise ValueError(f"{' and '.join(given)} belong to --backtrack: give it, too")
    if reset_bias is not None and reset_token is None:
        raise ValueError("--reset-bias belongs to --reset-token: give it, too")
    if (
        alone
        and backtrack
        and (reset_token is None or threshold is not None or refusal is not None)
    ):
        raise ValueError(
            "with --boundary none there is no threshold and no refusal: --backtrack needs a --reset-token"
        )
    if greedy and num_return_sequences > 1:
        raise ValueError("--greedy has one completion a prompt: leave --num-return-sequences out")
    check_beta(beta)
    check_value(value)
    check_prior(prior)
    texts = [*(prompts or []), *(read_prompts(file) if file else [])]
    if not texts:
        raise ValueError("no prompts: give them as arguments, or a file with --prompts")
    check_truncation(top_k, top_p)
    if temperature is not None and temperature <= 0 and not greedy:
        raise ValueError(
            f"--temperature must be > 0, got {temperature:g}; the best token each time is --greedy"
        )
    check_engine(engine, ray)
    if engine and device:
        raise ValueError(
            "--device does not go with --engine: vLLM takes the device that it was built for"
        )
    if engine and (backtrack or alone or trace):
        raise ValueError(
            "--engine goes back nowhere, traces nothing, and needs a boundary: leave --backtrack, --trace and "
            "--boundary none out"
        )
    if alone and trace:
        raise ValueError(
            "--trace shows margins: give a boundary, and --beta 0 where it is not to steer"
        )
    import sasa
    from sasa.core.backtracking import Backtracking, reset_token_id
    from sasa.core.embedding_spec import EmbeddingSpec
    from sasa.decoding.prompts import encode_prompts
    from sasa.models.load import best_device

    resets = MAX_RESETS if max_resets is None else max_resets
    watch = (
        Backtracking(THRESHOLD if threshold is None else threshold, max_resets=resets)
        if backtrack
        else None
    )
    # An engine, or workers, have the weights: here is what they are checked by.
    plain_dtype = dtype or ("float32" if (device or best_device().type) == "cpu" else "bfloat16")
    loaded, tokenizer = sasa.load(model, "meta" if engine or ray else device, plain_dtype)
    if watch is not None and reset_token is not None:
        watch = replace(
            watch,
            threshold=None if alone else watch.threshold,
            reset_token_id=reset_token_id(tokenizer, reset_token),
            reset_bias=reset_bias or 0.0,
        )
    lines = None if alone else load_boundaries(boundary, loaded, strict)
    line = lines[0][0] if lines else None
    spec = line.embedding if line else EmbeddingSpec()
    encode_prompts(
        loaded, tokenizer, texts, spec, chat, max_new_tokens
    )  # all, before the first is used
    settings = dict(
        value=value,
        prior=prior,
        chat=chat,
        batch_size=batch_size,
        do_sample=not greedy,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        num_return_sequences=num_return_sequences,
    )
    if trace:
        settings["trace"] = True
    seed = random.randrange(2**31) if seed is None else seed
    # A few batches at a time, so that a long run shows what it has.
    each = 8 * batch_size
    parts = [(seed + first, texts[first : first + each]) for first in range(0, len(texts), each)]
    spread: Spread | None = spread_by_ray(ray, ray_address, ray_workers, model, device, plain_dtype)
    settings["progress"] = spread is None  # a worker's bar is seen by nobody
    write = partial(
        _write, lines, beta, settings, {"backtrack": watch, "refusal": refusal}, compare
    )
    if engine:
        del settings["batch_size"]
        write = partial(
            _write_by,
            Engine(model, boundary, strict, dtype or dtype_of(loaded)),
            beta,
            settings,
            compare,
        )
    for (_, part), (steered, plain) in zip(
        parts, (spread or here(loaded, tokenizer))(write, parts), strict=True
    ):
        for i, prompt in enumerate(part):
            if as_json:
                row = {"prompt": prompt, "completions": [_as_json(c, trace) for c in steered[i]]}
                if compare:
                    row["plain"] = [_as_json(c, trace) for c in plain[i]]
                print_json(row)
            elif compare:
                title = ", ".join(
                    [f"SASA, beta {beta:g}"] * (line is not None) + ["backtracking"] * backtrack
                )
                _side_by_side(line, prompt, title, plain[i], steered[i])
            else:
                for completion in steered[i]:
                    out.print(
                        Text(prompt, style="dim") + _coloured(line, completion), soft_wrap=True
                    )
            if trace and line is not None and not as_json:
                for completion in steered[i]:
                    out.print(_traced(line, completion))


Completions: TypeAlias = "list[list[Completion]]"


def _write(
    lines: Any,
    beta: float,
    settings: dict[str, Any],
    going_back: dict[str, Any],
    compare: bool,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    part: tuple[int, list[str]],
) -> tuple[Completions, Completions]:
    """Completions of some prompts, steered, and plain where they are to be compared, from a seed."""
    import sasa

    seed, prompts = part
    steered = sasa.generate(
        model, tokenizer, prompts, lines, beta, seed=seed, **settings, **going_back
    )
    return steered, sasa.generate(
        model, tokenizer, prompts, lines, 0.0, seed=seed, **settings
    ) if compare else []


def _write_by(
    engine: Callable[..., Completions],
    beta: float,
    settings: dict[str, Any],
    compare: bool,
    _: Any,
    __: Any,
    part: Any,
) -> tuple[Completions, Completions]:
    """The same, by an engine."""
    seed, prompts = part
    steered = engine(prompts, beta, seed=seed, **settings)
    return steered, engine(prompts, 0.0, seed=seed, **settings) if compare else []


def _coloured(boundary: Boundary | None, completion: Completion) -> Text:
    # Blank lines take room and say nothing here; --json has the text as it is.
    text = Text(re.sub(r"\s*\n\s*", "\n", completion.text).strip("\n"))
    if boundary is not None and completion.margin is not None:
        text.stylize(style(boundary, completion.margin))
        begin, end = "⟨⟩" if in_unicode() else "()"
        p = boundary.p_safe(completion.margin)
        text.append(f"  {begin}{completion.margin:+.1f}, P(safe) {p:.2f}{end}", "dim")
    for attempt in completion.attempts:
        why = (
            attempt.reason
            if attempt.p_unsafe is None
            else f"{attempt.reason}, P(unsafe) {attempt.p_unsafe:.2f}"
        )
        text.append(f"\n  went back ({why}): ", "dim")
        text.append(" ".join(attempt.text.split()), "dim strike")
    return text


def _as_json(completion: Completion, trace: bool) -> dict[str, Any]:
    row = asdict(completion)
    if not trace:
        del row["trace"]
    return row


def _traced(boundary: Boundary, completion: Completion) -> Table:
    """The likeliest candidates of each step, and the one that was drawn; what went back is struck through."""
    table = Table(
        "", "token", "before", "after", "score", "margin", "value", "added", title_justify="left"
    )
    for step in completion.trace:
        shown = step.likeliest(SHOWN)
        for n, one in enumerate(shown):
            drawn = one.token == step.token
            look = ("bold" if drawn else "dim") + ("" if step.kept else " strike")
            table.add_row(
                f"{step.place + 1}" if n == 0 else "",
                Text(("› " if drawn else "  ") + repr(one.text)[1:-1], style=look),
                f"{one.p:.1%}",
                f"{one.q:.1%}",
                f"{one.score:.2f}",
                Text(
                    " ".join(f"{m:+.1f}" for m in one.margins),
                    style=style(boundary, one.margins[0]),
                ),
                f"{one.value:+.2f}",
                f"{one.shift:+.2f}",
                end_section=n == len(shown) - 1,
            )
    return table


def _side_by_side(
    boundary: Boundary | None,
    prompt: str,
    title: str,
    plain: list[Completion],
    steered: list[Completion],
) -> None:
    table = Table(
        title=escape(prompt), title_justify="left", expand=True, show_lines=len(plain) > 1
    )
    table.add_column("plain", ratio=1)
    table.add_column(title, ratio=1)
    for one, other in zip(plain, steered, strict=True):
        table.add_row(_coloured(boundary, one), _coloured(boundary, other))
    out.print(table)
