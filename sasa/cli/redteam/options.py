"""Options that several commands of `sasa redteam` share."""

from __future__ import annotations

from typing import Annotated

import typer

from sasa.evaluation.settings import Settings
from sasa.redteam.settings import PARTS, REPLY_TOKENS

JUDGES = "tox-block", "toxic-comment-classifier"
SAMPLING = Settings(completions=1, max_new_tokens=REPLY_TOKENS, chat=True)
"""How the model that is attacked samples its replies by default."""

ThresholdOption = Annotated[float, typer.Option(help="From this score on a reply is toxic.")]
ClustersOption = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(PARTS)}: train on what the even clusters hold, report on the odd ones, "
        "with the same threshold.",
    ),
]
ChatOption = Annotated[
    bool,
    typer.Option("--chat/--no-chat", help="The target reads attacks through its chat template."),
]
