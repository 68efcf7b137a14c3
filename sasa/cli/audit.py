"""`sasa audit`: does a boundary mistake identity for what it is meant to find, and who pays for it?"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from sasa.cli.options import (
    BoundaryOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    PriorOption,
    StrictOption,
    ValueOption,
)
from sasa.cli.output import out, print_json
from sasa.core.settings import BETA, BUNDLED, PRIOR, VALUE, check_beta, check_prior, check_value


def command(
    corpus: Annotated[
        str | None,
        typer.Argument(
            metavar="[CORPUS]",
            help="Labelled sentences that name identity terms, as for `sasa fit`, for Borkan's figures, too.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    boundary: BoundaryOption = BUNDLED,
    people: Annotated[
        str | None,
        typer.Option(
            help="Sentences about people of your own, a TOML file like sasa/recipes/people.toml.",
            show_default="English ones, embedded",
        ),
    ] = None,
    beta: Annotated[float, typer.Option(help="The strength at which steering is measured.")] = BETA,
    value: ValueOption = VALUE,
    prior: PriorOption = PRIOR,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Show what steering takes from harmless sentences that name groups of people, in nats a sentence.

        sasa audit

        sasa audit bias_madlibs_77k.csv::text=Text,label=Label,positive=BAD,limit=8000

    With a corpus, also how well the boundary tells apart sentences that differ only in an identity term (Borkan et al. 2019). A
    low BPSN AUC: harmless sentences with the term look unsafe. A low BNSP AUC: unsafe ones look harmless.
    """
    check_beta(beta)
    check_value(value)
    check_prior(prior)
    import sasa
    from sasa.core.boundary import Boundary
    from sasa.fitting import Corpus
    from sasa.fitting.fairness import audit, read
    from sasa.fitting.identity import identity_tax, load_people

    sentences = load_people("audit", people)
    texts = read(Corpus.parse(corpus)) if corpus else []
    loaded, tokenizer = sasa.load(model, device, dtype)
    line = Boundary.load(boundary, model=loaded, strict=strict)
    found: dict[str, Any] = {}
    if texts:
        found |= audit(line, loaded, tokenizer, texts, progress=True)
    found["identity_tax"] = identity_tax(
        line, loaded, tokenizer, sentences, beta=beta, value=value, prior=prior, progress=True
    )
    if as_json:
        print_json(found)
        return
    tax = found["identity_tax"]
    table = Table("group", "sentences", "nats a sentence", "beyond the controls'")
    for name, one in tax["groups"].items():
        table.add_row(name, str(one["sentences"]), f"{one['tax']:.2f}", f"{one['beyond']:+.2f}")
    out.print(table)
    out.print(
        f"controls, names to which no prejudice clings: {tax['controls']:.2f} nats a sentence at beta {beta:g}"
    )
    if texts:
        _borkan(found)


def _borkan(found: dict[str, Any]) -> None:
    """Prints the figures of a corpus."""
    from sasa.fitting.fairness import FIGURES

    table = Table("identity term", "texts", *FIGURES.values(), "harmless taken for unsafe")
    for term, one in sorted(found["terms"].items(), key=lambda item: item[1]["bpsn_auc"]):
        table.add_row(
            term, str(one["texts"]), *(f"{one[f]:.3f}" for f in FIGURES), f"{one['fpr']:.1%}"
        )
    out.print(table)
    out.print(
        f"all {found['texts']} texts: AUC {found['auc']:.3f}, harmless taken for unsafe {found['fpr']:.1%}, "
        f"from term to term within {found['fpr_gap']:.1%}"
    )
