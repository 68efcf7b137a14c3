"""`sasa train`: models that have learnt something for good."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from sasa.cli.common import DeviceOption, DtypeOption, ModelOption, out

app = typer.Typer(no_args_is_help=True, help="Train a model: backtracking, for now.")


@app.callback()
def _group() -> None:
    """Train a model."""


@app.command("backtracking")
def backtracking(
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS",
            help="Dialogues with a preferred and a rejected reply: hh-rlhf from the Hub, or hh-rlhf::path=FILE in its schema; "
            "rows=START:STOP and limit=N follow a comma.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write; an unfinished training in it goes on.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="sft: shows it what to write. dpo: which of two replies is better; best after sft, on its result."
        ),
    ] = "sft",
    model: ModelOption = None,
    lora: Annotated[int, typer.Option(min=0, help="Rank of the adapter; 0 trains all weights.")] = 16,
    epochs: Annotated[float, typer.Option(help="Times through the pairs.")] = 1.0,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of AdamW, falling to 0.", show_default="5e-4, all weights 2e-5, dpo a tenth of these"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 8,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of an example; longer ones are left out.")] = 256,
    beta: Annotated[float, typer.Option(help="Of dpo: how much a departure from the model as it was costs.")] = 0.1,
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
    from sasa.models import DEFAULT_MODEL
    from sasa.training import Training, train_backtracking
    from sasa.training.backtracking import check_packages

    training = Training(
        Corpus.parse(corpus), method, lora, epochs, learning_rate, batch_size, max_length, beta, save_steps, seed
    )
    check_packages()
    next(training.corpus.pairs(Counter()), None)  # a wrong path or column shows before the model is loaded
    loaded, tokenizer = sasa.load(model, device, dtype)
    base = model or DEFAULT_MODEL
    base = str(Path(base).expanduser().resolve()) if Path(base).expanduser().exists() else base
    train_backtracking(loaded, tokenizer, training, output, base=base, progress=True)
    use = f"sasa generate PROMPT --chat --model {output} --backtrack --boundary none --reset-token '[RESET]'"
    out.print(f"wrote {output}: {use}", soft_wrap=True, markup=False)
