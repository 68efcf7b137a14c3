"""`sasa bench tail`: how rare a model's bad completions are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sasa.cli.groups import expand
from sasa.cli.loading import load_prompts, load_rewards
from sasa.cli.options import (
    BoundaryOption,
    DeviceOption,
    DtypeOption,
    GroupsOption,
    LimitOption,
    ModelOption,
    RowsOption,
    StrictOption,
)
from sasa.cli.output import out, print_line
from sasa.core.settings import BUNDLED
from sasa.data.tables import local
from sasa.evaluation.settings import TailSettings
from sasa.utils.files import read_json

if TYPE_CHECKING:
    from sasa.evaluation.tail.figures import RewardFigures

NONE = "none"


@expand("settings")
def command(
    *,
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="A .txt file, a prompt a line; .jsonl with prompts or RealToxicityPrompts rows; rtp from the Hub.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the measurement; the same one goes on where it stopped.",
        ),
    ],
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            "-r",
            help="As in `sasa train repulse`; repeat it for several. One that the model was trained for is no judge of it.",
            show_default="profanity",
        ),
    ] = None,
    rows: RowsOption = None,
    groups: GroupsOption = None,
    limit: LimitOption = None,
    model: ModelOption = None,
    proposal: Annotated[
        str | None,
        typer.Option(
            help="A model that writes what is bad, such as DIR/proposal of a training: for importance sampling."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The model that it was trained from, for KL, return and perplexity; none: without.",
            show_default="as its training says",
        ),
    ] = None,
    settings: TailSettings,
    boundary: BoundaryOption = BUNDLED,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Measure how rare a model's bad completions are: P(reward < eta), with exact intervals, or by importance sampling.

        sasa bench tail rtp.jsonl --rows 3000:4000 --groups toxic -m safer -r toxic-comment-classifier -o runs/tail

        sasa bench tail my-prompts.txt -m safer --proposal safer/proposal -r tox-block -o runs/tail

    Completions are sampled at temperature 1 with nothing truncated: `sasa bench rtp` has what users will see.
    """
    names = list(dict.fromkeys(rewards or ["profanity"]))
    import sasa
    from sasa.evaluation.tail.measure import measure_tail

    texts = load_prompts(prompts, rows=rows, groups=groups, limit=limit, seed=settings.seed)
    loaded, tokenizer = sasa.load(model, device, dtype)
    proposal_model = sasa.load(proposal, device, dtype)[0] if proposal else None
    base = _base_of(model) if base is None else base
    base_model = sasa.load(base, device, dtype)[0] if base and base != NONE else None
    # a boundary's reward is read off the states that training left alone
    judged = base_model or loaded
    judges = load_rewards(
        names, judged, tokenizer, boundary=boundary, chat=settings.chat, strict=strict
    )
    figures = measure_tail(
        loaded,
        tokenizer,
        texts,
        judges,
        output,
        settings,
        proposal=proposal_model,
        base=base_model,
        progress=True,
    )
    out.print(_table(figures.rewards, settings.eta))
    print_line(f"report, with intervals and a picture: {output / 'report.md'}")


def _table(rewards: Mapping[str, RewardFigures], eta: float) -> Table:
    """The figures of each reward."""
    from sasa.evaluation.importance import WORST
    from sasa.evaluation.reports.cells import estimate_cell

    table = Table(
        "reward", f"P(r < {eta:g})", "mean reward", f"mean of the worst {WORST:.0%}", "return"
    )
    for name, figures in rewards.items():
        table.add_row(
            name,
            estimate_cell(figures.tail.best, ".3g"),
            estimate_cell(figures.mean, ".2f"),
            estimate_cell(figures.cvar, ".2f"),
            estimate_cell(figures.mean_return, ".2f"),
        )
    return table


def _base_of(model: str | None) -> str | None:
    """What a model was trained from, where it is the result of a training."""
    file = local(model or "") / "training.json"
    return read_json(file)["training"]["base"] if model and file.is_file() else None
