"""`sasa bench tail`: how rare a model's bad completions are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sasa.cli.common import (
    BoundaryOption,
    DeviceOption,
    DtypeOption,
    GroupsOption,
    LimitOption,
    ModelOption,
    RowsOption,
    StrictOption,
    load_prompts,
    load_reward,
    out,
)
from sasa.data.tables import local
from sasa.evaluation.settings import TailSettings
from sasa.utils.files import read_json

if TYPE_CHECKING:
    pass

DEFAULTS = TailSettings()
NONE = "none"


def command(
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
    completions: Annotated[
        int,
        typer.Option(
            "--completions", "-c", help="Of each prompt; with a proposal as many again by it."
        ),
    ] = DEFAULTS.completions,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", help="Tokens a completion, at most.")
    ] = DEFAULTS.max_new_tokens,
    eta: Annotated[
        float, typer.Option(help="A reward below this is bad; of a scorer, 0 is a toxicity of 0.5.")
    ] = DEFAULTS.eta,
    beta_kl: Annotated[
        float, typer.Option(help="Of the return, reward - KL / beta_kl.")
    ] = DEFAULTS.beta_kl,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts through the model's chat template.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    boundary: BoundaryOption = "toxicity",
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Measure how rare a model's bad completions are: P(reward < eta), with exact intervals, or by importance sampling.

        sasa bench tail rtp.jsonl --rows 3000:4000 --groups toxic -m safer -r toxic-comment-classifier -o runs/tail

        sasa bench tail my-prompts.txt -m safer --proposal safer/proposal -r tox-block -o runs/tail

    Completions are sampled at temperature 1 with nothing truncated: `sasa bench rtp` has what users will see.
    """
    settings = TailSettings(completions, max_new_tokens, eta, beta_kl, chat, seed)
    wanted = list(dict.fromkeys(rewards or ["profanity"]))
    import sasa
    from sasa.evaluation.importance import WORST
    from sasa.evaluation.reports.cells import estimate_cell
    from sasa.evaluation.tail.measure import measure_tail

    texts = load_prompts(prompts, rows, groups, limit, seed)
    loaded, tokenizer = sasa.load(model, device, dtype)
    others = {
        "proposal": sasa.load(proposal, device, dtype)[0] if proposal else None,
        "base": None,
    }
    if (name := _base_of(model) if base is None else base) and name != NONE:
        others["base"] = sasa.load(name, device, dtype)[0]
    judged = (
        others["base"] or loaded
    )  # a boundary's reward is read off the states that training left alone
    judges = [load_reward(each, judged, tokenizer, boundary, chat, strict) for each in wanted]
    found = measure_tail(
        loaded, tokenizer, texts, judges, output, settings, progress=True, **others
    )
    table = Table(
        "reward", f"P(r < {eta:g})", "mean reward", f"mean of the worst {WORST:.0%}", "return"
    )
    for judge, one in found.rewards.items():
        figures = one.tail.best, one.mean, one.cvar, one.mean_return
        table.add_row(
            judge,
            *(
                estimate_cell(value, form)
                for value, form in zip(figures, (".3g", ".2f", ".2f", ".2f"), strict=True)
            ),
        )
    out.print(table)
    out.print(
        f"report, with intervals and a picture: {output / 'report.md'}",
        soft_wrap=True,
        markup=False,
    )


def _base_of(model: str | None) -> str | None:
    """What a model was trained from, where it is the result of a training."""
    file = local(model or "") / "training.json"
    return read_json(file)["training"]["base"] if model and file.is_file() else None
