"""The target of an attack: a model here, an endpoint, a program or a function."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sasa.cli.loading import load_boundaries
from sasa.cli.options import BoundariesOption
from sasa.cli.redteam.options import SAMPLING, ChatOption
from sasa.evaluation.registry import METHODS_HELP
from sasa.evaluation.settings import Settings

if TYPE_CHECKING:
    from sasa.redteam.targets import Target


@dataclass(frozen=True)
class TargetOptions:
    """What is attacked."""

    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="What is attacked: a Hub id, folder or GGUF file; http://HOST/v1, an endpoint of "
            "OpenAI's protocol; command:PROGRAM, which reads an attack and writes a reply; "
            "MODULE:FUNCTION, from attacks to replies.",
            show_default="SmolLM2-135M-Instruct, embedded",
        ),
    ] = None
    target_model: Annotated[
        str | None,
        typer.Option(help="What an endpoint calls the model; its key is in $OPENAI_API_KEY."),
    ] = None
    target_extra: Annotated[
        str | None,
        typer.Option(
            help="JSON that an endpoint gets with each request: "
            '\'{"vllm_xargs": {"sasa_beta": 4}}\' has `sasa serve` steer.'
        ),
    ] = None
    defence: Annotated[
        str, typer.Option("--defence", "-D", help=f"Of a model. {METHODS_HELP}.")
    ] = "plain"
    boundary: BoundariesOption = None

    @property
    def is_endpoint(self) -> bool:
        return self.target is not None and self.target.startswith(("http://", "https://"))

    @property
    def is_command(self) -> bool:
        return self.target is not None and self.target.startswith("command:")

    @property
    def is_function(self) -> bool:
        from sasa.evaluation.rewards import is_function

        return self.target is not None and is_function(self.target)


@dataclass(frozen=True)
class ReplyOptions:
    """How the target replies."""

    reply_tokens: Annotated[int, typer.Option(help="Tokens of a reply, at most.")] = (
        SAMPLING.max_new_tokens
    )
    temperature: Annotated[float, typer.Option(help="Of replies.")] = SAMPLING.temperature
    top_k: Annotated[int, typer.Option(help="Of a model's replies; 0: no limit.")] = SAMPLING.top_k
    top_p: Annotated[float, typer.Option(help="Of replies.")] = SAMPLING.top_p
    timeout: Annotated[
        float, typer.Option(help="Seconds for a reply of an endpoint or a program.")
    ] = 60.0
    chat: ChatOption = True


def load_target(
    options: TargetOptions,
    replies: ReplyOptions,
    *,
    strict: bool,
    device: str | None,
    dtype: str | None,
) -> Target:
    """Returns the target of `--target`.

    Raises:
        ValueError: an unknown defence, or options that this kind of target does not have.
    """
    from sasa.evaluation import methods
    from sasa.redteam.targets import Command, Endpoint, load_function

    defence = methods.method(options.defence)
    name = options.target
    if name is None or not (options.is_endpoint or options.is_command or options.is_function):
        _refuse_endpoint_options(options)
        return _load_model(options, replies, defence.boundless, strict, device, dtype)
    _refuse_model_options(options, replies)
    if options.is_endpoint:
        if not options.target_model:
            raise ValueError("an endpoint serves models by name: say --target-model NAME")
        return Endpoint(
            url=name,
            model=options.target_model,
            max_new_tokens=replies.reply_tokens,
            temperature=replies.temperature,
            top_p=replies.top_p,
            timeout=replies.timeout,
            extra=_json_object("--target-extra", options.target_extra),
        )
    _refuse_endpoint_options(options)
    if options.is_command:
        return Command(name.removeprefix("command:"), replies.timeout)
    return load_function(name)


def _load_model(
    options: TargetOptions,
    replies: ReplyOptions,
    boundless: bool,
    strict: bool,
    device: str | None,
    dtype: str | None,
) -> Target:
    import sasa
    from sasa.redteam.targets import ModelTarget

    sampling = Settings(
        completions=1,
        max_new_tokens=replies.reply_tokens,
        temperature=replies.temperature,
        top_k=replies.top_k,
        top_p=replies.top_p,
        chat=replies.chat,
    )
    model, tokenizer = sasa.load(options.target, device, dtype)
    boundaries = None if boundless else load_boundaries(options.boundary, model, strict)
    return ModelTarget(model, tokenizer, options.defence, boundaries, sampling)


def _refuse_model_options(options: TargetOptions, replies: ReplyOptions) -> None:
    """Raises ValueError for options that only a model that is loaded here has."""
    given = {
        "--defence": options.defence != "plain",
        "--boundary": bool(options.boundary),
        "--top-k": replies.top_k != SAMPLING.top_k,
        "--no-chat": not replies.chat,
    }
    if names := [name for name, is_given in given.items() if is_given]:
        raise ValueError(
            f"{', '.join(names)}: for a model that is loaded here; {options.target} samples and "
            "defends itself"
        )


def _refuse_endpoint_options(options: TargetOptions) -> None:
    """Raises ValueError for options that only an endpoint has."""
    if options.target_model or options.target_extra:
        name = "--target-model" if options.target_model else "--target-extra"
        raise ValueError(f"{name} is for endpoints, http://HOST/v1")


def _json_object(option: str, text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} must be a JSON object, got {text!r}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object, got {text!r}")
    return value
