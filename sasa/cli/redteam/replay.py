"""`sasa redteam replay`: the hits of an attack again, against other defences and models."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from sasa.cli.groups import expand, given
from sasa.cli.loading import load_boundaries, load_scorers, read_prompts
from sasa.cli.options import BoundariesOption, DeviceOption, DtypeOption, StrictOption
from sasa.cli.output import out, print_line
from sasa.cli.redteam.options import (
    JUDGES,
    SAMPLING,
    ChatOption,
    ClustersOption,
    ThresholdOption,
)
from sasa.evaluation.settings import Settings
from sasa.redteam.settings import HIT

if TYPE_CHECKING:
    from sasa.redteam.store import Attempts


@dataclass(frozen=True)
class ReplyOptions:
    """How replies are sampled; None: as in the attack."""

    completions: Annotated[
        int, typer.Option("--completions", "-c", min=1, help="Replies to each prompt.")
    ] = 5
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "-n",
            min=1,
            help="Tokens a reply, at most.",
            show_default="as in the attack",
        ),
    ] = None
    temperature: Annotated[
        float | None, typer.Option(help="Of replies.", show_default="as in the attack")
    ] = None
    top_k: Annotated[
        int | None, typer.Option(help="Of replies; 0: no limit.", show_default="as in the attack")
    ] = None
    top_p: Annotated[
        float | None, typer.Option(help="Of replies.", show_default="as in the attack")
    ] = None
    chat: ChatOption = True

    def settings(self, store: Attempts | None) -> Settings:
        """The settings as given, else the attack's, if it was one on a model."""
        about = store.about["target"] if store is not None else {}
        attack = about["sampling"] if about.get("kind") == "model" else {}
        sampled = ("max_new_tokens", "temperature", "top_k", "top_p")
        chosen = {name: attack[name] for name in sampled if name in attack} | given(self)
        chosen["chat"] = self.chat and attack.get("chat", True)
        return replace(SAMPLING, **chosen)


@expand("replies")
def command(
    *,
    attacks: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="The folder of an attack; or a .txt or .jsonl file of prompts."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where the replay goes.", show_default="DIR/replay"),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Repeat for several, such as trained ones: the others are compared with the first one.",
            show_default="the default model, where that was attacked",
        ),
    ] = None,
    defences: Annotated[
        list[str] | None,
        typer.Option(
            "--defence",
            "-D",
            help="Repeat for several; plain is always there.",
            show_default="plain sasa",
        ),
    ] = None,
    boundary: BoundariesOption = None,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge", "-s", help="As in `sasa redteam run`.", show_default="those of the attack"
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Hits to replay: of each cluster one, then another.")
    ] = 100,
    clusters: ClustersOption = "all",
    harmless: Annotated[
        Path | None,
        typer.Option(
            help="Harmless prompts, .txt or .jsonl, as many as hits.",
            show_default="a hundred of our own",
        ),
    ] = None,
    replies: ReplyOptions,
    threshold: ThresholdOption = HIT,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts at a time.", show_default="64 replies' worth")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every batch.")] = 0,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Try the attacks that got through again: against other defences and models, several times each, beside harmless prompts.

    sasa redteam replay runs/attack -D sasa -D backtrack -D sasa+backtrack

    sasa redteam replay runs/attack --clusters odd -m HuggingFaceTB/SmolLM2-135M-Instruct -m safer --no-strict -D sasa
    """
    import sasa
    from sasa.core.settings import DEFAULT_MODEL
    from sasa.evaluation import methods
    from sasa.redteam.replays import replay, replay_suite
    from sasa.redteam.store import Attempts

    for defence in defences or []:
        methods.method(defence)
    store = None if attacks.is_file() else Attempts.open(attacks)
    harmless_prompts = read_prompts(harmless) if harmless else None
    suite = replay_suite(
        read_prompts(attacks) if store is None else store,
        limit=limit,
        clusters=clusters,
        threshold=threshold,
        harmless=harmless_prompts,
    )
    attacked = (
        store.about["target"].get("model", {}).get("id") if store is not None else DEFAULT_MODEL
    )
    if not models and attacked != DEFAULT_MODEL:
        raise ValueError(
            f"{attacks} attacked another model than the default one: say which to replay against, --model"
        )
    scorers = load_scorers(judges or _known_judges(store))
    names = list(dict.fromkeys(models or [DEFAULT_MODEL]))
    short = [Path(name).name for name in names]
    loaded = {}
    for name, last in zip(names, short, strict=True):
        model, tokenizer = sasa.load(name, device, dtype)
        lines = load_boundaries(boundary, model, strict)
        loaded[last if short.count(last) == 1 else name] = model, tokenizer, lines
    folder = output or (attacks / "replay" if store is not None else attacks.with_suffix(".replay"))
    report = replay(
        suite,
        loaded,
        defences or ["sasa"],
        scorers,
        folder,
        replies.settings(store),
        seed=seed,
        batch_size=batch_size,
        threshold=threshold,
        progress=True,
    )
    out.print(_table(report["rows"]))
    for name, reasons in report["left_out"].items():
        for reason in reasons.values():
            print_line(f"left out for {name}: {reason}")
    print_line(f"report, with intervals and a picture: {folder / 'replay.md'}")


def _known_judges(store: Attempts | None) -> list[str]:
    """The judges of an attack, which can be made again from their names, or the default ones."""
    from sasa.evaluation.registry import SCORERS

    if store is None:
        return list(JUDGES)
    lost = [name for name in store.judges if name not in SCORERS and not name.startswith("hf:")]
    if lost:
        raise ValueError(
            f"what {', '.join(lost)} was made from is not on record: name the judges again, --judge"
        )
    return store.judges


def _table(rows: list[dict[str, Any]]) -> Table:
    """The figures of each model and defence."""
    table = Table(
        "model", "defence", "attack success rate", "change", "p", "harmless: perplexity", "tokens"
    )
    for row in rows:
        test, success = row.get("test"), row["success"]
        change = ""
        if test:
            value = row["change"].value
            change = "–" if math.isnan(value) else f"{value:+.0%}"
        table.add_row(
            escape(row["model"]),
            escape(row["defence"]),
            f"{success.value:.3f} [{success.low:.3f}, {success.high:.3f}]",
            change,
            f"{test['p']:.2g}" if test else "",
            f"{row['perplexity'].value:.2f}",
            f"{row['tokens'].value:.1f}",
        )
    return table
