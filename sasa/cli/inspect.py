"""`sasa inspect`: the margin of a text, token by token."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from sasa.cli.options import BoundaryOption, DeviceOption, DtypeOption, ModelOption, StrictOption
from sasa.cli.output import out, print_json, style
from sasa.core.settings import BUNDLED


def command(
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="The text to look into.", show_default=False)
    ],
    prompt: Annotated[
        str | None, typer.Option(help="A prompt to which TEXT is the response.")
    ] = None,
    model: ModelOption = None,
    boundary: BoundaryOption = BUNDLED,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Show where a text turns: the margin as the text grows, token by token, positive (green) on the safe side."""
    if not text.strip():
        raise ValueError("the text is empty")
    import sasa
    from sasa.core.boundary import Boundary
    from sasa.decoding.margins import turning_point

    loaded, tokenizer = sasa.load(model, device, dtype)
    line = Boundary.load(boundary, model=loaded, strict=strict)
    tokens, margins = line.trace(loaded, tokenizer, (prompt, text) if prompt else text)
    values = margins.tolist()
    p = line.p_safe(values[-1])
    if as_json:
        pairs = [
            {"token": token, "margin": margin} for token, margin in zip(tokens, values, strict=True)
        ]
        print_json({"text": text, "margin": values[-1], "p_safe": p, "tokens": pairs})
        return
    out.print(
        Text.assemble(
            *((token, style(line, margin)) for token, margin in zip(tokens, values, strict=True))
        ),
        soft_wrap=True,
    )
    lowest, turn = turning_point(tokens, values)
    out.print(
        f"margin {values[-1]:+.2f}, P(safe) {p:.2f}; lowest {lowest:+.2f} after the token {turn!r}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
