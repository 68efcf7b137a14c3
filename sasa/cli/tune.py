"""`sasa tune`: the strength that a given loss of fluency buys."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sasa.cli.loading import load_boundaries, read_prompts
from sasa.cli.options import (
    BoundariesOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    PriorOption,
    StrictOption,
    ValueOption,
)
from sasa.cli.output import out, print_json
from sasa.core.settings import PRIOR, VALUE, check_prior, check_value


def command(
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Prompts to tune on, .txt or .jsonl; not those you report on.",
            show_default=False,
        ),
    ],
    budget: Annotated[
        float,
        typer.Option("--ppl-budget", help="How many times plain's perplexity the text may have."),
    ] = 1.05,
    variety: Annotated[
        float,
        typer.Option(
            help="How much of plain's distinct-2 the text must keep, 0 to 1: monotonous text is fluent, too."
        ),
    ] = 0.95,
    rows: Annotated[
        str | None, typer.Option(help="START:STOP, only these prompts.", show_default="all")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="At most so many prompts, evenly spread over the file.")
    ] = 32,
    completions: Annotated[
        int, typer.Option("--completions", "-c", min=1, help="Of each prompt.")
    ] = 8,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens a completion.")
    ] = 20,
    model: ModelOption = None,
    boundary: BoundariesOption = None,
    value: ValueOption = VALUE,
    prior: PriorOption = PRIOR,
    temperature: Annotated[float, typer.Option(help="As you are going to sample.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="As you are going to sample.")] = 10,
    top_p: Annotated[float, typer.Option(help="As you are going to sample.")] = 0.9,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts through the model's chat template.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the completions.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout, and nothing else.")
    ] = False,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Find the largest beta whose text is as fluent, and as varied, as it is asked to be.

        sasa tune my-prompts.txt --ppl-budget 1.05

    Perplexity is that of the completions given their prompts, under the model itself; distinct-2 counts word pairs among a
    prompt's completions.
    """
    import sasa
    from sasa.data.corpus import parse_rows
    from sasa.evaluation.settings import Settings
    from sasa.evaluation.tuning import Trial, check_budget, tune
    from sasa.evaluation.world import World

    check_budget(budget, variety)
    check_value(value)
    check_prior(prior)
    texts = read_prompts(prompts)[slice(*parse_rows(rows)) if rows else slice(None)]
    if not texts:
        raise ValueError(f"{prompts} has no rows {rows}")
    texts = [texts[i * len(texts) // min(limit, len(texts))] for i in range(min(limit, len(texts)))]
    loaded, tokenizer = sasa.load(model, device, dtype)
    settings = Settings(
        completions=completions,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        chat=chat,
    )
    world = World(loaded, tokenizer, load_boundaries(boundary, loaded, strict), settings)
    stderr = Console(stderr=True, highlight=False)

    def tell(trial: Trial) -> None:
        stderr.print(
            f"beta {trial.beta:8.3g}   perplexity {trial.perplexity:.3f} (x{trial.ratio:.3f})   "
            f"P(safe) {trial.p_safe:.3f}   tokens {trial.tokens:.1f}   distinct-2 {trial.distinct_2:.3f}   "
            f"repetition {trial.repetition:.3f}",
            soft_wrap=True,
        )

    limits = f"within {budget:g} times plain's perplexity" + (
        f" and {variety:g} times its distinct-2" if variety else ""
    )
    beta, trials = tune(
        world, texts, budget, variety=variety, value=value, prior=prior, seed=seed, tell=tell
    )
    if as_json:
        print_json({"beta": beta, "trials": [asdict(trial) for trial in trials]})
    elif beta:
        out.print(
            f"--beta {beta:.3g} --value {value} --prior {prior:g}: the largest found {limits}"
        )
    else:
        out.print(f"no beta that was tried stays {limits}")
