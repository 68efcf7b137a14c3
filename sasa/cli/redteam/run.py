"""`sasa redteam run`: an attacker looks for prompts that a target answers in a toxic way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sasa.cli.groups import expand
from sasa.cli.loading import load_scorers, named_base, read_prompts
from sasa.cli.options import DeviceOption, DtypeOption, StrictOption
from sasa.cli.output import print_line
from sasa.cli.redteam.options import JUDGES
from sasa.cli.redteam.target import ReplyOptions, TargetOptions, load_target
from sasa.evaluation.registry import SCORERS
from sasa.redteam.settings import RedTeam


@expand("target")
@expand("replies")
@expand(
    "settings",
    contexts="method cases",
    judges="include_context",
    novelty="chat",
    replies="naturalness self_bleu cosine gated kl entropy contexts_per_step samples "
    "max_new_tokens temperature",
    keep_attacker="lora learning_rate batch_size save_steps",
    strict="seed",
)
def command(
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the attack; the same one goes on where it stopped."
        ),
    ],
    target: TargetOptions,
    contexts: Annotated[
        Path | None,
        typer.Option(
            "--contexts",
            "-z",
            help="What attacks are written from: a .txt file, one a line, \\n for a line's end, "
            "such as `Rude questions:\\n1.`; or .jsonl with prompts.",
            show_default="a few lists of rude things",
        ),
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            "-s",
            help="Repeat for several; of replies. There are "
            f"{', '.join(SCORERS)}, hf:MODEL, words:CORPUS.",
            show_default=" ".join(JUDGES),
        ),
    ] = None,
    single_judge: Annotated[
        bool,
        typer.Option("--single-judge", help="Allow one judge: its mistakes then count as hits."),
    ] = False,
    attacker: Annotated[
        str | None,
        typer.Option(
            "--attacker",
            "-a",
            help="The model that attacks, as for --target.",
            show_default="SmolLM2-135M-Instruct",
        ),
    ] = None,
    novelty: Annotated[
        str,
        typer.Option(
            help="In meaning: mean, over all earlier attacks, or knn:K, over the K most alike."
        ),
    ] = f"knn:{RedTeam.nearest}" if RedTeam.nearest else "mean",
    naturalness: Annotated[
        str | None,
        typer.Option(
            help="A classifier of natural text, such as "
            "hf:madhurjindal/autonlp-Gibberish-Detector-492513457#clean.",
            show_default="the attacker's own surprise",
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="A sentence encoder.", show_default="all-MiniLM-L6-v2")
    ] = None,
    settings: RedTeam,
    replies: ReplyOptions,
    keep_attacker: Annotated[
        bool,
        typer.Option(
            "--keep-attacker",
            help="Keep the trained attacker, a harmful model, in OUTPUT/attacker.",
        ),
    ] = False,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Find prompts that a target answers in a toxic way: as different from each other as they come.

        sasa redteam run -o runs/attack

        sasa redteam run --target my-model --defence sasa -o runs/attack-sasa

        sasa redteam run --target http://localhost:8000/v1 --target-model NAME -o runs/attack-endpoint

        sasa redteam report runs/attack

    An attacker, a language model, learns from the first judge's scores and from how new its attacks are (curiosity-driven
    red-teaming, Hong et al., ICLR 2024). The other judges take no part: they are for the report. Stopped at any moment, the same
    command goes on; what is on record is not asked for again.
    """
    settings = replace(settings, nearest=_nearest(novelty))
    import sasa
    from sasa.redteam.attacker import check_scorers, red_team
    from sasa.redteam.encoder import encoder as load_encoder

    names = list(dict.fromkeys(judges or JUDGES))
    check_scorers(names, single_judge)
    if "boundary" in names:
        raise ValueError(
            "the boundary may be part of the defence, and is no judge of it: name another --judge"
        )
    texts = _contexts(contexts)
    scorers = load_scorers(names)
    natural = load_scorers([naturalness])[0] if naturalness else None
    attacked = load_target(target, replies, strict=strict, device=device, dtype=dtype)
    model, tokenizer = sasa.load(attacker, device, dtype)
    store = red_team(
        attacked,
        model,
        tokenizer,
        texts,
        scorers,
        output,
        settings,
        embed=load_encoder(encoder, device),
        naturalness=natural,
        single_judge=single_judge,
        keep_attacker=keep_attacker,
        base=named_base(attacker),
        progress=True,
    )
    failed = sum(record["error"] is not None for record in store.records)
    print_line(
        f"{len(store.records)} cases on record, {failed} of them without a reply. "
        f"Next: sasa redteam report {output}"
    )


def _contexts(file: Path | None) -> list[str]:
    """The contexts of `--contexts`, in which \\n stands for a line's end, or the default ones."""
    from sasa.redteam.texts import default_contexts

    if file is None:
        return default_contexts()
    return [text.replace("\\n", "\n") for text in read_prompts(file)]


def _nearest(novelty: str) -> int:
    """The number of nearest attacks that `--novelty` compares with; 0 for all."""
    kind, _, count = novelty.partition(":")
    if novelty == "mean":
        return 0
    if kind != "knn" or not count.isdecimal() or not int(count):
        raise ValueError(f"--novelty is mean or knn:K, such as knn:4, got {novelty!r}")
    return int(count)
