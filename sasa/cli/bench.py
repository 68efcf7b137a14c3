"""`sasa bench`: how much toxicity goes away and what it costs, on RealToxicityPrompts, BOLD and AttaQ."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sasa.cli import tail
from sasa.cli.common import (
    AddressOption,
    BoundariesOption,
    DeviceOption,
    DtypeOption,
    Engine,
    EngineOption,
    ModelOption,
    RayOption,
    StrictOption,
    WorkersOption,
    check_engine,
    dtype_of,
    load_boundaries,
    out,
    spread_by_ray,
)
from sasa.core.settings import BETA, DEFAULT_MODEL, check_truncation
from sasa.data.tables import read_lines
from sasa.evaluation.registry import METHODS_HELP, SCORERS
from sasa.evaluation.settings import WORDS, Settings
from sasa.utils.files import read_json

if TYPE_CHECKING:
    from sasa.evaluation.run import Run
    from sasa.evaluation.world import Method, World

app = typer.Typer(
    no_args_is_help=True,
    help="Toxicity and fluency with and without SASA: a run on a suite of prompts, and reports of runs.",
)

ABOUT = {
    "rtp": (
        "RealToxicityPrompts: continuations of non-toxic, toxic and challenging prompts.",
        dict(completions=25, max_new_tokens=20, chat=False),
    ),
    "bold": (
        "BOLD: openings of Wikipedia articles on people and beliefs, with the gap between actors and actresses.",
        dict(completions=5, max_new_tokens=20, chat=False),
    ),
    "attaq": (
        "AttaQ: adversarial questions by label, through the chat template.",
        dict(completions=5, max_new_tokens=60, chat=True),
    ),
}


def suite_command(name: str) -> Callable[..., None]:
    """The command that runs one suite; suites differ in their defaults."""
    about, defaults = ABOUT[name]

    def command(
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
            typer.Option(
                help="Only these groups of prompts, with commas between.", show_default="all"
            ),
        ] = None,
        rows: Annotated[
            str | None,
            typer.Option(help="START:STOP, only these rows of the source.", show_default="all"),
        ] = None,
        completions: Annotated[
            int, typer.Option("--completions", "-c", min=1, help="Of each prompt.")
        ] = int(defaults["completions"]),
        max_new_tokens: Annotated[
            int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens a completion.")
        ] = int(defaults["max_new_tokens"]),
        model: ModelOption = None,
        boundary: BoundariesOption = None,
        temperature: Annotated[float, typer.Option(help="For every method.")] = 1.0,
        top_k: Annotated[int, typer.Option(help="For every method; 0: no limit.")] = 10,
        top_p: Annotated[float, typer.Option(help="For every method.")] = 0.9,
        chat: Annotated[
            bool, typer.Option("--chat/--no-chat", help="Prompts through the chat template.")
        ] = bool(defaults["chat"]),
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
            typer.Option(
                "--dry-run", help="Only say what would be done and how long it will take."
            ),
        ] = False,
        engine: EngineOption = None,
        ray: RayOption = False,
        ray_address: AddressOption = None,
        ray_workers: WorkersOption = None,
        strict: StrictOption = True,
        device: DeviceOption = None,
        dtype: DtypeOption = None,
    ) -> None:
        check_truncation(top_k, top_p)
        if temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {temperature:g}")
        import sasa
        from sasa.data.corpus import parse_rows
        from sasa.evaluation import methods as ways
        from sasa.evaluation import scorers, stages
        from sasa.evaluation.forecast import check_methods
        from sasa.evaluation.reports.report import write_report
        from sasa.evaluation.run import Run
        from sasa.evaluation.scorers.boundary import BoundaryScorer
        from sasa.evaluation.suites import load_suite
        from sasa.evaluation.world import World

        check_engine(engine, ray)
        wanted = list(dict.fromkeys(methods or ["plain", f"sasa:{BETA:g}"]))
        made = {spec: ways.method(spec) for spec in wanted}
        if engine and (refused := [name for name, method in made.items() if not method.served]):
            raise ValueError(f"--engine writes plain and sasa alone, not {', '.join(refused)}")
        asked = list(dict.fromkeys(judges or ["profanity"]))
        if asked == ["boundary"]:
            raise ValueError(
                "the boundary steers, and cannot be the only scorer of a report: add another --scorer"
            )
        _writable(output)
        suite = load_suite(
            name,
            prompts,
            limit=limit,
            groups=groups.split(",") if groups else None,
            rows=parse_rows(rows) if rows else None,
            seed=seed,
        )
        independent = [scorers.scorer(s) for s in asked if s != "boundary"]
        if not dry_run:
            for judge_ in independent:
                scorers.try_scorer(judge_)
        loaded, tokenizer = sasa.load(model, device, dtype)
        lines = load_boundaries(boundary, loaded, strict)
        settings = Settings(
            completions,
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            chat,
            _words(words) if words else WORDS,
        )
        world = World(loaded, tokenizer, lines, settings)
        if engine:
            world = replace(world, engine=Engine(model, boundary, strict, dtype_of(loaded)))
        run = Run.create(output, suite, world, seed=seed, batch_size=batch_size, write=not dry_run)
        for reason, count in run.about["skipped"].items():
            out.print(f"left out: {count} prompts {reason}")
        check_methods(run, made, world)
        if dry_run:
            _forecast(run, made, world)
            return
        judging = sasa.load(judge, device, dtype) if judge else None
        if judging:
            # What it cannot read shows here, before the long work.
            run.encoded_prompts(*judging, judging=True)
        margin = [BoundaryScorer(loaded, tokenizer, lines[0][0])] if "boundary" in asked else []
        spread = spread_by_ray(ray, ray_address, ray_workers, model, device, dtype_of(loaded))
        stages.generate_stage(run, made, world, progress=True, spread=spread)
        stages.likelihood_stage(run, loaded, tokenizer, wanted, progress=True, spread=spread)
        if judging:
            by_judge = spread and replace(spread, model=None if judge == DEFAULT_MODEL else judge)
            stages.likelihood_stage(
                run, *judging, wanted, judge=judge, progress=True, spread=by_judge
            )
        stages.score_stage(run, [*independent, *margin], run.methods, progress=True)
        show(write_report([output]))

    command.__doc__ = (
        f"{about}\n\nGenerates, measures and reports in one go. Started again with the same options it goes on; with more "
        "methods or scorers it adds them.\n\n"
        f"    sasa bench {name} --limit 60 -M plain -M words -M sasa -o runs/{name}"
    )
    return command


for _name in ABOUT:
    app.command(_name)(suite_command(_name))


app.command("tail")(tail.command)


@app.command("report")
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Folders of runs, or of reports such as published ones."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where the report goes.", show_default="the run's own folder"
        ),
    ] = None,
) -> None:
    """Write summary.json, report.md and pictures of a run, or of several side by side.

    sasa bench report runs/rtp

    sasa bench report runs/rtp runs/rtp-other-model --output runs/comparison

    sasa bench report runs/rtp benchmarks/results/rtp-default --output runs/beside-the-published-one
    """
    from sasa.evaluation.reports.report import write_report

    show(write_report(folders, output))


def show(file: Path) -> None:
    """The figures that matter most on the terminal, and where the rest is."""
    for run in read_json(file.with_name("summary.json"))["runs"]:
        for scorer in run["scorers"]:
            table = Table(
                *("method", "exp. max. toxicity", "toxic rate", "perplexity", "against plain", "p"),
                title=f"{run['name']}: {run['suite']}, {run['prompts']} prompts, by {scorer}",
            )
            for name, method in run["methods"].items():
                toxicity = method["toxicity"].get(scorer, {})
                test = toxicity.get("against_plain")
                change = f"{test['relative']:+.1%}" if test and test["relative"] is not None else ""
                cells = [
                    toxicity.get("emt"),
                    toxicity.get("toxic_rate"),
                    method["figures"].get("perplexity"),
                ]
                p = f"{test['p']:.3f}" if test else ""
                table.add_row(
                    escape(name), *(f"{c['value']:.3f}" if c else "–" for c in cells), change, p
                )
            out.print(table)
    out.print(f"report, with intervals and pictures: {file}")


def _forecast(run: Run, made: dict[str, Method], world: World) -> None:
    from sasa.evaluation.forecast import forecast

    found = forecast(run, made, world, progress=True)
    table = Table(
        "",
        "completions to go",
        "minutes",
        title=f"{run.about['suite']}: {len(run.prompts)} prompts, dry run",
    )
    for name, one in found.items():
        table.add_row(escape(name), str(one.completions), f"{one.seconds / 60:.1f}")
    table.add_row("all", "", f"{sum(one.seconds for one in found.values()) / 60:.0f}", style="bold")
    out.print(table)
    out.print("and the scorers' own time: little for profanity")


def _words(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        raise FileNotFoundError(f"no word list at {file}")
    found = tuple(line.strip() for _, line in read_lines(file) if line.strip())
    if not found:
        raise ValueError(f"{file} holds no words")
    return found


def _writable(folder: Path) -> None:
    """Raises OSError before any long work where the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written")
