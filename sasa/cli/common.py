"""Options that several commands share, and how a margin looks on a terminal."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.color import Color
from rich.console import Console
from rich.style import Style

from sasa.core.settings import BUNDLED, DEFAULT_MODEL, weighted
from sasa.data.tables import KINDS, kind_of, local, open_table, read_lines, warn_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sasa.core.boundary import Boundary
    from sasa.decoding.completion import Completion
    from sasa.evaluation.rewards import Reward
    from sasa.serving.ray import Ray

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
        show_default="toxicity",
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
LOOPBACK = "127.0.0.1"
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

out = Console(highlight=False)


RayOption = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Spread the work over workers that each hold the model, one a GPU, else one a core.",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="With --ray: auto, the cluster that this machine is in, or HOST:PORT.",
        show_default="workers here",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--ray-workers",
        min=1,
        help="With --ray: at most so many.",
        show_default="all there is room for",
    ),
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        help="vllm: have vLLM's engine write, in place of transformers.",
        show_default="transformers",
    ),
]


def spread_by_ray(
    ray: bool,
    address: str | None,
    workers: int | None,
    model: str | None,
    device: str | None,
    dtype: str | None,
) -> Ray | None:
    """The workers of `--ray`, which join or start the cluster now; None where nobody asks for any."""
    if not ray:
        if address is not None or workers is not None:
            raise ValueError("--ray-address and --ray-workers belong to --ray: give it, too")
        return None
    from sasa.serving.ray import LOCAL, Ray

    made = Ray(model, device, dtype, address or LOCAL, workers)
    made.connect()
    return made


def check_engine(engine: str | None, ray: bool) -> None:
    """Raises ValueError where there is no such engine, or what else is asked for does not go with one."""
    if engine not in (None, "vllm"):
        raise ValueError(f"--engine must be vllm, got {engine!r}")
    if engine:
        import sasa.serving.vllm  # noqa: F401  # says what is missing
    if engine and ray:
        raise ValueError("--ray does not go with --engine: an engine has workers of its own")


class Engine:
    """vLLM's engine with the boundaries of `--boundary`, as what `World.engine` is: `sasa.generate` from the prompts on.

    It starts when it is first used, once all else has been checked.
    """

    def __init__(
        self, model: str | None, boundaries: list[str] | None, strict: bool, dtype: str
    ) -> None:
        import vllm

        self.name = f"vllm {vllm.__version__}"
        self._names = boundaries or ["toxicity"]
        self._options: dict[str, Any] = dict(model=model, strict=strict, dtype=dtype)
        self._engine: Any = None

    def __call__(self, prompts: list[str], beta: float, **settings: Any) -> list[list[Completion]]:
        from sasa.serving.vllm import LLM

        if self._engine is None:
            self._engine = LLM(
                boundary=[weighted(name, "--boundary")[0] for name in self._names], **self._options
            )
        return self._engine.complete(prompts, beta, boundary=self._names, **settings)


def dtype_of(model: PreTrainedModel) -> str:
    """As `--dtype` has it."""
    return str(model.dtype).removeprefix("torch.")


def load_boundaries(
    names: list[str] | None, model: PreTrainedModel, strict: bool
) -> list[tuple[Boundary, float]]:
    """The boundaries of `--boundary`, each with its weight."""
    from sasa.core.values import load_terms

    return load_terms(names or [BUNDLED], model, strict, "--boundary")


def load_reward(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    boundary: str,
    chat: bool,
    strict: bool,
) -> Reward:
    """The reward of `--reward`; `boundary` is the one of `--boundary`, read off `model`."""
    from sasa.core.boundary import Boundary
    from sasa.evaluation.rewards import boundary_reward, reward, try_reward

    def of_boundary() -> Reward:
        return boundary_reward(
            model, tokenizer, Boundary.load(boundary, model=model, strict=strict), chat
        )

    found = reward(name, of_boundary)
    if name != "boundary":
        try_reward(found)
    return found


def load_prompts(
    source: str, rows: str | None, groups: str | None, limit: int | None, seed: int
) -> list[str]:
    """Prompts of a .txt or .jsonl file, or of RealToxicityPrompts where groups of it are asked for, or it is named: `rtp`."""
    from sasa.data.corpus import parse_rows
    from sasa.evaluation.suites import load_suite

    part = parse_rows(rows) if rows else None
    if source == "rtp" or groups:
        path = None if source == "rtp" else source
        suite = load_suite("rtp", path, rows=part, groups=groups.split(",") if groups else None)
        found = [p.text for p in suite.prompts]
        if suite.skipped:
            told = ", ".join(f"{count:,} rows {reason}" for reason, count in suite.skipped.items())
            warn_once(f"{suite.source}: left out: {told}")
    else:
        found = read_prompts(Path(source))
        found = found[slice(*part)] if part else found
        if not found:
            raise ValueError(f"{source} has no rows {rows}")
    if limit is not None and limit < len(found):
        found = [found[i] for i in sorted(random.Random(seed).sample(range(len(found)), limit))]
    return found


def read_prompts(file: Path) -> list[str]:
    """Prompts of a text file, a line each, or of a table's column `prompt`; blank lines are left out, errors name the row."""
    if not local(file).is_file():
        raise FileNotFoundError(f"no prompts file at {file}")
    if kind_of(file) is None:
        if file.suffix.lower() not in (".txt", ""):
            raise ValueError(f"{file}: prompts come as .txt or {', '.join(KINDS)}")
        found = [line for _, line in read_lines(file) if line.strip()]
    else:
        found, table = [], open_table(file)
        if "prompt" in table.columns:
            table.require(["prompt"])
        for number, row in table.rows():
            prompt = row.get("prompt")
            prompt = prompt.get("text") if isinstance(prompt, dict) else prompt
            if not isinstance(prompt, str):
                raise ValueError(
                    f'{file}, row {number}: expected {{"prompt": "…"}} or a RealToxicityPrompts row, got {", ".join(row)}'
                )
            if not prompt.strip():
                raise ValueError(f"{file}, row {number}: the prompt is empty")
            found.append(prompt)
    if not found:
        raise ValueError(f"{file} holds no prompts")
    return found


def print_json(value: Any) -> None:
    """A line of JSON on stdout, in characters that its encoding has."""
    print(json.dumps(value, ensure_ascii=not in_unicode()), flush=True)


def in_unicode() -> bool:
    """Whether stdout has every character."""
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def style(boundary: Boundary, margin: float) -> Style:
    """Red where a text is surely unsafe, by way of yellow, to green where it is surely safe."""
    p = boundary.p_safe(margin)
    red, green = min(1.0, 2 * (1 - p)), min(1.0, 2 * p)
    return Style(color=Color.from_rgb(60 + 195 * red, 60 + 160 * green, 60))


def named_base(model: str | None) -> str:
    """What an adapter names the model by that it was trained on."""
    name = model or DEFAULT_MODEL
    return str(local(name).resolve()) if local(name).exists() else name
