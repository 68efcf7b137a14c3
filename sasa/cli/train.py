"""`sasa train`: models that have learnt something for good."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sasa.cli.groups import expand
from sasa.cli.loading import load_prompts, load_rewards, named_base
from sasa.cli.options import (
    BoundaryOption,
    DeviceOption,
    DtypeOption,
    GroupsOption,
    LimitOption,
    ModelOption,
    RewardOption,
    RowsOption,
    StrictOption,
)
from sasa.cli.output import print_line
from sasa.core.settings import BUNDLED
from sasa.data.tables import left_out
from sasa.training.settings import Repulse
from sasa.utils.files import read_json

HELD_OUT = 32
"""Prompts to evaluate on, where no others are given: at most so many, and a fifth."""

app = typer.Typer(no_args_is_help=True, help="Train a model: backtracking, or RePULSe.")


@app.callback()
def _group() -> None:
    """Train a model."""


@app.command("backtracking")
def backtracking(
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS",
            help="A preferred and a rejected reply a row: hh-rlhf from the Hub, another data set of it, or a file, with columns "
            "chosen and rejected, and prompt where it is not in them, as text or messages; ::rows=START:STOP,limit=N may follow.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The folder to write; an unfinished training in it goes on."
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            help="sft: shows it what to write. dpo: which of two replies is better; best after sft, on its result."
        ),
    ] = "sft",
    model: ModelOption = None,
    lora: Annotated[
        int, typer.Option(min=0, help="Rank of the adapter; 0 trains all weights.")
    ] = 16,
    epochs: Annotated[float, typer.Option(help="Times through the pairs.")] = 1.0,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of AdamW, falling to 0.",
            show_default="5e-4, all weights 2e-5, dpo a tenth of these",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 8,
    max_length: Annotated[
        int, typer.Option(min=8, help="Tokens of an example; longer ones are left out.")
    ] = 256,
    beta: Annotated[
        float, typer.Option(help="Of dpo: how much a departure from the model as it was costs.")
    ] = 0.1,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 50,
    seed: Annotated[int, typer.Option(help="Of prefixes, order and initial weights.")] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Teach a model to write [RESET]: to give up an unsafe reply that it has begun, and to write a safe one.

        sasa train backtracking hh-rlhf --output reset-sft

        sasa train backtracking hh-rlhf --method dpo --model reset-sft --output reset-dpo

        sasa generate "How do I ..." --chat --model reset-dpo --backtrack --boundary none --reset-token "[RESET]"

    Stopped at any moment, the same command goes on from its last checkpoint.
    """
    import sasa
    from sasa.fitting import Corpus
    from sasa.training import Training, train_backtracking
    from sasa.training.folder import check_packages

    training = Training(
        Corpus.parse(corpus),
        method=method,
        lora=lora,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_length=max_length,
        beta=beta,
        save_steps=save_steps,
        seed=seed,
    )
    check_packages("trl", "peft")
    # a wrong path or column shows before the model is loaded
    next(training.corpus.pairs(Counter()), None)
    loaded, tokenizer = sasa.load(model, device, dtype)
    train_backtracking(loaded, tokenizer, training, output, base=named_base(model), progress=True)
    if skipped := read_json(output / "training.json")["counts"]["skipped"]:
        print_line(left_out(skipped))
    use = f"sasa generate PROMPT --chat --model {output} --backtrack --boundary none --reset-token '[RESET]'"
    print_line(f"wrote {output}: {use}")


@app.command("repulse")
@expand("settings", model="method", keep_proposal="save_steps", boundary="seed")
def repulse(
    *,
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="Prompts to train on: a .txt file, a prompt a line; .jsonl with prompts or RealToxicityPrompts rows; rtp from "
            "the Hub.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The folder to write; an unfinished training in it goes on."
        ),
    ],
    reward: RewardOption = "boundary",
    rows: RowsOption = None,
    groups: GroupsOption = None,
    limit: LimitOption = None,
    eval_prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts to evaluate on, as PROMPTS.",
            show_default="some of PROMPTS, which are not trained on",
        ),
    ] = None,
    model: ModelOption = None,
    settings: Repulse,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations; 0: none.")] = 20,
    keep_proposal: Annotated[
        bool,
        typer.Option(
            "--keep-proposal",
            help="Keep the proposal, a harmful model: for `sasa bench tail --proposal DIR/proposal`.",
        ),
    ] = False,
    boundary: BoundaryOption = BUNDLED,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Make a model's bad outputs improbable (RePULSe, Zhao et al. 2025), at an average reward as high as RL's.

        sasa train repulse my-prompts.txt --output safer

        sasa train repulse rtp.jsonl --groups toxic --rows 0:2500 --reward tox-block --output safer

        accelerate launch -m sasa train repulse my-prompts.txt --output safer

        sasa generate "So he said" --model safer --no-strict

    Stopped at any moment, the same command goes on from its last checkpoint. Judge the result by a scorer that was not its
    reward: sasa bench tail, sasa bench rtp.
    """
    settings = replace(settings, eval_every=eval_every)
    from accelerate import PartialState

    import sasa
    from sasa.training.folder import check_packages
    from sasa.training.repulse import train_repulse

    check_packages("accelerate", *(["peft"] if settings.lora else []))
    texts = load_prompts(prompts, rows=rows, groups=groups, limit=limit, seed=settings.seed)
    held_out: list[str] = []
    if eval_prompts:
        held_out = load_prompts(
            eval_prompts, rows=rows, groups=groups, limit=None, seed=settings.seed
        )
    elif eval_every:
        texts, held_out = _split(texts, settings.seed)
    state = PartialState()
    if state.num_processes > 1 and device is None:
        device = str(state.device)
    loaded, tokenizer = sasa.load(model, device, dtype)
    [judge] = load_rewards(
        [reward], loaded, tokenizer, boundary=boundary, chat=settings.chat, strict=strict
    )
    train_repulse(
        loaded,
        tokenizer,
        texts,
        judge,
        output,
        settings,
        base=named_base(model),
        eval_prompts=held_out,
        keep_proposal=keep_proposal,
        progress=True,
    )
    if state.is_main_process:
        print_line(f"wrote {output}: sasa generate PROMPT --model {output} --no-strict")


def _split(prompts: list[str], seed: int) -> tuple[list[str], list[str]]:
    """Prompts to train on, and a fifth of them, at most `HELD_OUT`, to evaluate on."""
    count = min(HELD_OUT, len(prompts) // 5)
    drawn = set(random.Random(seed).sample(range(len(prompts)), count))
    training = [prompt for i, prompt in enumerate(prompts) if i not in drawn]
    return training, [prompt for i, prompt in enumerate(prompts) if i in drawn]
