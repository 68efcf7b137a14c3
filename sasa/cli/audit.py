"""`sasa audit`: does a boundary mistake identity for what it is meant to find?"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

import sasa
from sasa.boundary import Boundary
from sasa.cli.common import BoundaryOption, DeviceOption, DtypeOption, ModelOption, StrictOption, out


def command(
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS",
            help="Labelled sentences that name identity terms, as for `sasa fit`.",
            show_default=False,
        ),
    ],
    model: ModelOption = None,
    boundary: BoundaryOption = "toxicity",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Show how a boundary treats sentences that differ only in an identity term (Borkan et al. 2019).

    A low BPSN AUC: harmless sentences with the term look unsafe. A low BNSP AUC: unsafe ones look harmless.

        sasa audit bias_madlibs_77k.csv::text=Text,label=Label,positive=BAD,limit=8000
    """
    from sasa.fitting import Corpus
    from sasa.fitting.fairness import FIGURES, audit, read

    texts = read(Corpus.parse(corpus))
    loaded, tokenizer = sasa.load(model, device, dtype)
    line = Boundary.load(boundary, model=loaded, strict=strict)
    found = audit(line, loaded, tokenizer, texts, progress=True)
    if as_json:
        print(json.dumps(found))
        return
    table = Table("identity term", "texts", *FIGURES.values(), "harmless taken for unsafe")
    for term, one in sorted(found["terms"].items(), key=lambda item: item[1]["bpsn_auc"]):
        table.add_row(term, str(one["texts"]), *(f"{one[f]:.3f}" for f in FIGURES), f"{one['fpr']:.1%}")
    out.print(table)
    out.print(
        f"all {found['texts']} texts: AUC {found['auc']:.3f}, harmless taken for unsafe {found['fpr']:.1%}, "
        f"from term to term within {found['fpr_gap']:.1%}"
    )
