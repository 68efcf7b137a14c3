"""`sasa serve`: vLLM's OpenAI-compatible server, whose requests may be steered."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sasa.cli.options import LOOPBACK, HostOption, StrictOption
from sasa.cli.output import out
from sasa.core.settings import BETA, BUNDLED, PRIOR, VALUE, check_beta, check_prior, check_value

OPTIONS = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "options_metavar": "[MODEL] [OPTIONS]",
}
"""Of the command. What is not ours goes to vLLM, the model among it, for only vLLM knows which of its options have values."""


def command(
    context: typer.Context,
    boundary: Annotated[
        list[str] | None,
        typer.Option(
            "--boundary",
            "-b",
            help="One that requests may name: a bundled attribute, a file, a folder, or OWNER/NAME on the Hub; NAME=WHERE "
            "gives it another name. Repeat it for several; the first holds where a request names none.",
            show_default=BUNDLED,
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help="Steers requests that do not say how, at this strength. Without it they are plain.",
            show_default="plain",
        ),
    ] = None,
    value: Annotated[
        str | None, typer.Option(help="Of those requests: log_sigmoid or raw.", show_default=VALUE)
    ] = None,
    prior: Annotated[
        float | None,
        typer.Option(
            help="Of those requests: the share of text that is unsafe.", show_default=f"{PRIOR:g}"
        ),
    ] = None,
    host: HostOption = LOOPBACK,
    strict: StrictOption = True,
) -> None:
    """Serve a model by vLLM, with SASA in its engine. All of `vllm serve`'s options work here, too. MODEL is a Hub id, a
    local folder or a GGUF file; without it, SmolLM2-135M-Instruct, embedded.

        sasa serve Qwen/Qwen3-0.6B --boundary qwen-toxicity --port 8000 --max-model-len 4096

        curl localhost:8000/v1/completions -H "Content-Type: application/json" -d '{"model": "Qwen/Qwen3-0.6B", "prompt": "My
        boss is", "max_tokens": 20, "vllm_xargs": {"sasa_beta": 4.0}}'

    A request says what it wants in `vllm_xargs`: sasa_beta, sasa_boundary (a name, NAME::WEIGHT, or a list), sasa_prior,
    sasa_value, sasa_top_k and sasa_top_p. With any of them it is steered, without it is as --beta says. It is served on this
    machine alone unless --host says otherwise, and asks for no key unless --api-key is given.
    """
    defaults: dict[str, Any] = {"beta": beta, "value": value, "prior": prior}
    defaults = {name: given for name, given in defaults.items() if given is not None}
    if defaults and beta is None:
        raise ValueError(
            f"--{' and --'.join(defaults)} are for requests that do not say how they are steered: give --beta"
        )
    check_beta(BETA if beta is None else beta)
    check_value(VALUE if value is None else value)
    check_prior(PRIOR if prior is None else prior)
    from sasa.serving.vllm.server import serve

    out.print(
        f"starting vLLM on {host}; a request is steered by vllm_xargs, as in {{'sasa_beta': {BETA:g}}}",
        markup=False,
    )
    serve(boundary or [BUNDLED], ["--host", host, *context.args], strict=strict, defaults=defaults)
