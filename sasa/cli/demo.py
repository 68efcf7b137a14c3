"""`sasa demo`: a page to play with."""

from __future__ import annotations

from typing import Annotated

import typer

from sasa.cli.options import (
    LOOPBACK,
    DeviceOption,
    DtypeOption,
    HostOption,
    ModelOption,
    StrictOption,
)
from sasa.cli.output import out, print_line
from sasa.core.settings import DEFAULT_MODEL


def command(
    model: ModelOption = None,
    boundaries: Annotated[
        list[str] | None,
        typer.Option(
            "--boundary",
            "-b",
            help="A file, a folder, or OWNER/NAME on the Hub; repeat it for several.",
            show_default="those that are bundled for the model",
        ),
    ] = None,
    host: HostOption = LOOPBACK,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Its port.", show_default="the first free one from 7860"
        ),
    ] = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share", help="Also at a public address of Gradio's, for a week: anybody may use it."
        ),
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Serve a page that shows a model on its own and steered, side by side, each token coloured by its margin.

        sasa demo

        sasa demo -m Qwen/Qwen3-0.6B -b qwen-toxicity --open

    It also goes through texts of yours, and fits a boundary from a small table. It is served on this machine alone unless --host
    or --share says otherwise, and asks for no password.
    """
    import sasa
    from sasa.demo.page import launch
    from sasa.demo.studio import Studio

    loaded, tokenizer = sasa.load(model, device, dtype)
    studio = Studio(loaded, tokenizer, tuple(boundaries or ()), strict)
    if host != LOOPBACK or share:
        out.print(
            "everybody who can reach this address may use the model, and see what it writes",
            style="yellow",
        )
    page, address = launch(
        studio,
        name=model or DEFAULT_MODEL,
        host=host,
        port=port,
        share=share,
        open_=open_,
        wait=False,
    )
    where = (
        "on this machine alone; --host or --share opens it to others"
        if host == LOOPBACK and not share
        else host
    )
    print_line(f"{address}  ({where}; stop it with Ctrl+C)")
    page.block_thread()
