"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from sasa.core.settings import BUNDLED

LOOPBACK = "127.0.0.1"

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Hub id, local folder or GGUF file.",
        show_default="SmolLM2-135M-Instruct, embedded",
    ),
]
BoundaryOption = Annotated[
    str,
    typer.Option(
        "--boundary", "-b", help="A bundled attribute, a file, a folder, or OWNER/NAME on the Hub."
    ),
]
BoundariesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--boundary",
        "-b",
        help="As NAME or NAME::WEIGHT: a bundled attribute, a file, a folder, or OWNER/NAME on the Hub. Repeat it to steer "
        "by several at once; the margins shown are the first one's.",
        show_default=BUNDLED,
    ),
]
ValueOption = Annotated[
    str,
    typer.Option(
        help="What a margin is worth: log_sigmoid, the log-probability of being safe, or raw, itself."
    ),
]
PriorOption = Annotated[
    float,
    typer.Option(
        help="The share of text that is unsafe: the lower, the surer the boundary has to be before it steers. "
        "0.5 takes both for equally likely."
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict/--no-strict",
        help="Refuse a boundary for a model of another name, be it of the same shape.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, mps, …", show_default="the best there is")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, …", show_default="float32 on the CPU, else bfloat16"),
]
RewardOption = Annotated[
    str,
    typer.Option(
        "--reward",
        "-r",
        help="What a completion is worth: boundary, its calibrated log-odds of being safe, with no second model; a scorer of "
        "`sasa bench`, as logit(1 - toxicity); hf:MODEL, a reward model; or MODULE:FUNCTION, of prompts and completions.",
    ),
]
HostOption = Annotated[
    str, typer.Option(help="Where it listens. 0.0.0.0: to everybody who reaches this machine.")
]
RowsOption = Annotated[
    str | None, typer.Option(help="START:STOP, only these rows of the file.", show_default="all")
]
GroupsOption = Annotated[
    str | None,
    typer.Option(
        help="Only these groups of RealToxicityPrompts, with commas between: nontoxic, toxic, challenging.",
        show_default="all",
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(min=1, help="At most so many prompts, drawn at random.", show_default="all"),
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        help="vllm: have vLLM's engine write, in place of transformers.",
        show_default="transformers",
    ),
]
