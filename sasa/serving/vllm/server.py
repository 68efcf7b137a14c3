"""vLLM's OpenAI-compatible server, with SASA in its engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from sasa.serving.vllm.options import engine_options


def serve(
    boundary: Sequence[str],
    arguments: Sequence[str],
    *,
    strict: bool = True,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Serves until it is stopped.

    Args:
        boundary, strict, defaults: see `engine_options`.
        arguments: what `vllm serve` would be given, the model among it.

    Raises:
        ValueError, FileNotFoundError: as `engine_options`, before anything is started.
    """
    parser = make_arg_parser(FlexibleArgumentParser(prog="sasa serve"))
    if any(each.split("=")[0] in ("--model", "--config") for each in arguments):
        raise ValueError(
            "name the model without --model, as in `sasa serve MODEL`, and options without a --config file"
        )
    given = parser.parse_args([*arguments])
    untouched = parser.parse_args([])
    changed = {
        name: value
        for name, value in vars(given).items()
        if value != getattr(untouched, name, None)
    }
    changed = {name: value for name, value in changed.items() if name not in ("model", "model_tag")}
    options = engine_options(given.model_tag, boundary, strict=strict, defaults=defaults, **changed)
    # A name of the caller's own stays.
    options["served_model_name"] = changed.get("served_model_name") or [
        options["served_model_name"]
    ]
    for name, value in options.items():
        setattr(given, name, value)
    given.model_tag = options["model"]
    validate_parsed_serve_args(given)
    ServeSubcommand.cmd(given)
