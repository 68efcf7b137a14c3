"""`sasa train`: models that have learnt something for good."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from sasa.cli.common import (
    BoundaryOption,
    DeviceOption,
    DtypeOption,
    GroupsOption,
    LimitOption,
    ModelOption,
    RewardOption,
    RowsOption,
    StrictOption,
    load_prompts,
    load_reward,
    named_base,
    out,
)
from sasa.data.tables import left_out
from sasa.training.settings import Repulse
from sasa.utils.files import read_json

DEFAULTS = Repulse()
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
        method,
        lora,
        epochs,
        learning_rate,
        batch_size,
        max_length,
        beta,
        save_steps,
        seed,
    )
    check_packages("trl", "peft")
    next(
        training.corpus.pairs(Counter()), None
    )  # a wrong path or column shows before the model is loaded
    loaded, tokenizer = sasa.load(model, device, dtype)
    train_backtracking(loaded, tokenizer, training, output, base=named_base(model), progress=True)
    if skipped := read_json(output / "training.json")["counts"]["skipped"]:
        out.print(left_out(skipped), soft_wrap=True, markup=False)
    use = f"sasa generate PROMPT --chat --model {output} --backtrack --boundary none --reset-token '[RESET]'"
    out.print(f"wrote {output}: {use}", soft_wrap=True, markup=False)


@app.command("repulse")
def repulse(
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
    method: Annotated[
        str,
        typer.Option(
            help="repulse: a learned proposal finds bad outputs, whose probability is pushed down. rloo: reinforcement learning "
            "alone. rloo-transformed: on r - alpha * exp(-beta * r). p-proposal: repulse, with the model as its own proposal."
        ),
    ] = "repulse",
    model: ModelOption = None,
    alpha: Annotated[
        float, typer.Option(help="How strongly bad outputs are pushed down; 0 is rloo.")
    ] = DEFAULTS.alpha,
    beta: Annotated[
        float, typer.Option(help="How bad is bad: outputs count as exp(-beta * reward).")
    ] = DEFAULTS.beta,
    beta_kl: Annotated[
        float,
        typer.Option(
            help="The model maximises reward - KL / beta_kl: how far it may move from what it was."
        ),
    ] = DEFAULTS.beta_kl,
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            "-c",
            help="Of a prompt in a step; with repulse as many again from the proposal.",
        ),
    ] = DEFAULTS.samples,
    prompts_per_step: Annotated[
        int, typer.Option(help="Prompts in a step.")
    ] = DEFAULTS.prompts_per_step,
    steps: Annotated[int, typer.Option(help="Updates in all.")] = DEFAULTS.steps,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", help="Tokens a completion, at most.")
    ] = DEFAULTS.max_new_tokens,
    lora: Annotated[
        int, typer.Option(help="Rank of the adapter; 0 trains all weights.")
    ] = DEFAULTS.lora,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW.", show_default="2e-4, all weights 1e-5")
    ] = None,
    proposal_learning_rate: Annotated[
        float | None,
        typer.Option(help="Of the proposal's.", show_default="5 times --learning-rate"),
    ] = None,
    eta: Annotated[
        float,
        typer.Option(
            help="A reward below this is bad, in what is shown; of a scorer, 0 is a toxicity of 0.5."
        ),
    ] = DEFAULTS.eta,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts through the model's chat template.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(help="Completions in a pass with gradients: fewer take less memory.")
    ] = DEFAULTS.batch_size,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations; 0: none.")] = 20,
    save_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints.")
    ] = DEFAULTS.save_steps,
    keep_proposal: Annotated[
        bool,
        typer.Option(
            "--keep-proposal",
            help="Keep the proposal, a harmful model: for `sasa bench tail --proposal DIR/proposal`.",
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Of initial weights, the prompts' order and samples.")
    ] = 0,
    boundary: BoundaryOption = "toxicity",
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
    settings = Repulse(
        method, alpha, beta, beta_kl, samples, prompts_per_step, steps, max_new_tokens, lora, learning_rate,
        proposal_learning_rate, eta=eta, chat=chat, batch_size=batch_size, eval_every=eval_every,
        save_steps=save_steps, seed=seed,
    )  # fmt: skip
    from accelerate import PartialState

    import sasa
    from sasa.training.folder import check_packages
    from sasa.training.repulse import train_repulse

    check_packages("accelerate", *(["peft"] if lora else []))
    texts = load_prompts(prompts, rows, groups, limit, seed)
    held_out: list[str] = []
    if eval_prompts:
        held_out = load_prompts(eval_prompts, rows, groups, None, seed)
    elif eval_every:
        count = min(HELD_OUT, len(texts) // 5)
        drawn = set(random.Random(seed).sample(range(len(texts)), count))
        held_out = [text for i, text in enumerate(texts) if i in drawn]
        texts = [text for i, text in enumerate(texts) if i not in drawn]
    state = PartialState()
    if state.num_processes > 1 and device is None:
        device = str(state.device)
    loaded, tokenizer = sasa.load(model, device, dtype)
    judge = load_reward(reward, loaded, tokenizer, boundary, chat, strict)
    train_repulse(
        loaded, tokenizer, texts, judge, output, settings, base=named_base(model), eval_prompts=held_out,
        keep_proposal=keep_proposal, progress=True,
    )  # fmt: skip
    if state.is_main_process:
        out.print(
            f"wrote {output}: sasa generate PROMPT --model {output} --no-strict",
            soft_wrap=True,
            markup=False,
        )
