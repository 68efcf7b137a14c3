"""`sasa bench rtp`, `bold` and `attaq`: methods on a suite of prompts, measured and reported."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sasa.cli.bench.report import show
from sasa.cli.engines import Engine, RayOptions, check_engine
from sasa.cli.groups import Command, expand
from sasa.cli.loading import dtype_of, load_boundaries, load_scorers
from sasa.cli.options import (
    BoundariesOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    ModelOption,
    StrictOption,
)
from sasa.cli.output import out
from sasa.core.settings import BETA, DEFAULT_MODEL, check_truncation
from sasa.data.tables import read_lines
from sasa.evaluation.registry import METHODS_HELP, SCORERS
from sasa.evaluation.settings import WORDS, Settings

if TYPE_CHECKING:
    from sasa.evaluation.run import Run
    from sasa.evaluation.world import Method, World

ABOUT = {
    "rtp": "RealToxicityPrompts: continuations of non-toxic, toxic and challenging prompts.",
    "bold": "BOLD: openings of Wikipedia articles on people and beliefs, with the gap between "
    "actors and actresses.",
    "attaq": "AttaQ: adversarial questions by label, through the chat template.",
}
SAMPLING = {
    "rtp": Settings(),
    "bold": Settings(completions=5),
    "attaq": Settings(completions=5, max_new_tokens=60, chat=True),
}
"""How each suite's completions are sampled by default."""


def command_of(suite: str) -> Command:
    """The command that runs one suite; suites differ in their default sampling."""
    command = partial(run_suite, suite, sampling=SAMPLING[suite])
    return expand("sampling", model="completions max_new_tokens")(command)


def help_of(suite: str) -> str:
    """The help text of a suite's command."""
    return (
        f"{ABOUT[suite]}\n\nGenerates, measures and reports in one go. Started again with the same "
        "options it goes on; with more methods or scorers it adds them.\n\n"
        f"    sasa bench {suite} --limit 60 -M plain -M words -M sasa -o runs/{suite}"
    )


@expand("ray")
def run_suite(
    suite: str,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the run; the same one goes on where it stopped."
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", "-p", help="A local copy of the suite.", show_default="from the Hub"
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", "-M", help=f"Repeat for several. {METHODS_HELP}."),
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            "-s",
            help=f"Repeat for several: {', '.join(SCORERS)}, hf:MODEL, words:CORPUS, boundary.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="At most so many prompts, evenly from the groups.", show_default="all"
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Only these groups of prompts, with commas between.", show_default="all"),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="START:STOP, only these rows of the source.", show_default="all"),
    ] = None,
    model: ModelOption = None,
    boundary: BoundariesOption = None,
    sampling: Settings,
    words: Annotated[
        Path | None,
        typer.Option(help="The word filter's list, a word a line.", show_default="built in"),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="A second model that measures perplexity.",
            show_default="the generating one alone",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample and of every batch.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Prompts at a time.", show_default="64 completions' worth"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be done and how long it will take."),
    ] = False,
    engine: EngineOption = None,
    ray: RayOptions,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Runs methods on a suite, from its prompts to the report."""
    check_truncation(sampling.top_k, sampling.top_p)
    if sampling.temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {sampling.temperature:g}")
    import sasa
    from sasa.data.corpus import parse_rows
    from sasa.evaluation import stages
    from sasa.evaluation.forecast import check_methods
    from sasa.evaluation.reports.report import write_report
    from sasa.evaluation.run import Run
    from sasa.evaluation.scorers.boundary import BoundaryScorer
    from sasa.evaluation.suites import load_suite
    from sasa.evaluation.world import World

    check_engine(engine, ray)
    chosen = _methods(methods or ["plain", f"sasa:{BETA:g}"], engine)
    names = list(dict.fromkeys(judges or ["profanity"]))
    if names == ["boundary"]:
        raise ValueError(
            "the boundary steers, and cannot be the only scorer of a report: add another --scorer"
        )
    _check_writable(output)
    prompts_of_suite = load_suite(
        suite,
        prompts,
        limit=limit,
        groups=groups.split(",") if groups else None,
        rows=parse_rows(rows) if rows else None,
        seed=seed,
    )
    scorers = load_scorers((name for name in names if name != "boundary"), try_them=not dry_run)
    loaded, tokenizer = sasa.load(model, device, dtype)
    boundaries = load_boundaries(boundary, loaded, strict)
    sampling = replace(sampling, words=_words(words) if words else WORDS)
    world = World(loaded, tokenizer, boundaries, sampling)
    if engine:
        world = replace(world, engine=Engine(model, boundary, strict, dtype_of(loaded)))
    run = Run.create(
        output, prompts_of_suite, world, seed=seed, batch_size=batch_size, write=not dry_run
    )
    for reason, count in run.about["skipped"].items():
        out.print(f"left out: {count} prompts {reason}")
    check_methods(run, chosen, world)
    if dry_run:
        _forecast(run, chosen, world)
        return
    judging = sasa.load(judge, device, dtype) if judge else None
    if judging:  # prompts that it cannot read show here, before the long work
        run.encoded_prompts(*judging, judging=True)
    if "boundary" in names:
        scorers.append(BoundaryScorer(loaded, tokenizer, boundaries[0][0]))
    spread = ray.connect(model, device, dtype_of(loaded))
    stages.generate_stage(run, chosen, world, progress=True, spread=spread)
    measure = partial(stages.likelihood_stage, run, methods=list(chosen), progress=True)
    measure(loaded, tokenizer, spread=spread)
    if judging:
        by_judge = spread and replace(spread, model=None if judge == DEFAULT_MODEL else judge)
        measure(*judging, judge=judge, spread=by_judge)
    stages.score_stage(run, scorers, run.methods, progress=True)
    show(write_report([output]))


def _methods(names: Iterable[str], engine: str | None) -> dict[str, Method]:
    """Methods by their names, each once; an engine has only those that it can write by."""
    from sasa.evaluation.methods import method

    methods = {name: method(name) for name in names}
    if engine and (refused := [name for name, each in methods.items() if not each.served]):
        raise ValueError(f"--engine writes plain and sasa alone, not {', '.join(refused)}")
    return methods


def _forecast(run: Run, methods: dict[str, Method], world: World) -> None:
    """Prints what a run would do, and how long it would take."""
    from sasa.evaluation.forecast import forecast

    costs = forecast(run, methods, world, progress=True)
    table = Table(
        "",
        "completions to go",
        "minutes",
        title=f"{run.about['suite']}: {len(run.prompts)} prompts, dry run",
    )
    for name, cost in costs.items():
        table.add_row(escape(name), str(cost.completions), f"{cost.seconds / 60:.1f}")
    total = sum(cost.seconds for cost in costs.values())
    table.add_row("all", "", f"{total / 60:.0f}", style="bold")
    out.print(table)
    out.print("and the scorers' own time: little for profanity")


def _words(file: Path) -> tuple[str, ...]:
    """The word filter's list in a file, one word a line."""
    if not file.is_file():
        raise FileNotFoundError(f"no word list at {file}")
    words = tuple(line.strip() for _, line in read_lines(file) if line.strip())
    if not words:
        raise ValueError(f"{file} holds no words")
    return words


def _check_writable(folder: Path) -> None:
    """Raises OSError before any long work if the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written")
