"""`sasa fit`: labelled texts -> a boundary, its recipe and its card in a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sasa.cli.engines import RayOptions
from sasa.cli.groups import expand, given
from sasa.cli.loading import dtype_of
from sasa.cli.options import DeviceOption, DtypeOption, ModelOption
from sasa.cli.output import out, print_line
from sasa.data.tables import left_out

if TYPE_CHECKING:
    from sasa.core.boundary import Boundary


@dataclass(frozen=True)
class CorpusOptions:
    """Settings of all corpora that do not have their own."""

    text: Annotated[
        str | None, typer.Option(help="Text column of all corpora that do not name their own.")
    ] = None
    label: Annotated[str | None, typer.Option(help="Label column, likewise.")] = None
    limit: Annotated[
        int | None, typer.Option(help="At most so many rows a corpus, drawn at random, likewise.")
    ] = None
    unsafe_from: Annotated[
        float | None, typer.Option(help="Scores at or above are unsafe.", show_default="0.5")
    ] = None
    safe_below: Annotated[
        float | None,
        typer.Option(
            help="Scores below are safe; the grey zone between is left out.",
            show_default="unsafe-from",
        ),
    ] = None


@dataclass(frozen=True)
class EmbeddingOptions:
    """How a text becomes a vector."""

    layer: Annotated[
        list[int] | None,
        typer.Option(
            help="Hidden state: 0 the embeddings, -1 the last. Repeat it for several at once.",
            show_default="-1",
        ),
    ] = None
    pooling: Annotated[str | None, typer.Option(help="last, mean or ema.", show_default="last")] = (
        None
    )
    half_life: Annotated[
        float | None,
        typer.Option(help="Of ema: tokens after which a state counts half.", show_default="8"),
    ] = None
    span: Annotated[
        str | None, typer.Option(help="What is averaged: text or response.", show_default="text")
    ] = None
    template: Annotated[str | None, typer.Option(help="none or chat.", show_default="none")] = None


@expand("corpus")
@expand("embedding")
@expand("ray")
def command(
    *,
    corpora: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CORPUS...",
            help="jigsaw, rtp, toxigen or hh-rlhf (from the Hub, or SOURCE::path=FILE); a CSV, TSV, JSON, JSONL or Parquet "
            "file; a Hub data set. Settings follow ::, as in tweets.csv::text=tweet,label=class,positive=0+1; of files also "
            "encoding=cp1252, separator=;, quotes=none and bad_rows=skip",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The folder to write; an unfinished fit in it goes on."
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="All settings, from a TOML file, or by name: toxicity or threat, with corpora of the Hub, for any "
            "model. Other options go before it, and a CORPUS takes the place of its own.",
        ),
    ] = None,
    model: ModelOption = None,
    attribute: Annotated[
        str | None, typer.Option(help="What the unsafe side is called.", show_default="toxicity")
    ] = None,
    corpus: CorpusOptions,
    embedding: EmbeddingOptions,
    classifier: Annotated[
        str, typer.Option(help="bayes (the closed form), or for comparison logistic, svm or ridge.")
    ] = "bayes",
    audit: Annotated[
        str | None,
        typer.Option(
            help="Sentences that name identity terms, as a CORPUS: how the boundary treats them goes on its card.",
            show_default="none",
        ),
    ] = None,
    prefixes: Annotated[
        bool | None,
        typer.Option(
            "--prefixes/--no-prefixes",
            help="Fit on every prefix of a text: steers better, and judges whole texts less well.",
            show_default="no-prefixes",
        ),
    ] = None,
    identity: Annotated[
        float | None,
        typer.Option(
            help="How dearly the fit pays for a margin that moves with the names of groups of people in harmless sentences; "
            "1 is much, 10 is most of what can be had. What steering takes from such sentences goes on the card.",
            show_default="0",
        ),
    ] = None,
    people: Annotated[
        str | None,
        typer.Option(
            help="Such sentences of your own, TOML.", show_default="English ones, embedded"
        ),
    ] = None,
    own: Annotated[
        float | None,
        typer.Option(
            help="Share of the fit, below 1, that the model's own text has: it goes on from the openings of the texts, a "
            "judge learnt from them labels what it wrote. Does more to what the model writes, for less perplexity.",
            show_default="0",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of sampling and of the split.", show_default="0")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts at a time.")] = 64,
    ray: RayOptions,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Fit a boundary between safe and unsafe text in a model's own hidden space, and report on held-out texts.

        sasa fit --recipe toxicity --model Qwen/Qwen3-0.6B --output qwen-toxicity

        sasa fit comments.csv --text comment --label toxic --output my-boundary

        sasa fit rtp::rows=0:90000 jigsaw::limit=50000 --model Qwen/Qwen3-0.6B --layer -7 --prefixes --output qwen-toxicity

    Stopped at any moment, the same command goes on where it was.
    """
    import sasa
    from sasa.fitting import Corpus, Recipe, fit_boundary

    own_corpora = tuple(map(Corpus.parse, corpora or []))
    if recipe is None and not own_corpora:
        raise ValueError("no corpus: name one or more, or give a --recipe")
    base = Recipe.load(recipe) if recipe else Recipe(own_corpora)
    defaults = given(corpus)
    used = tuple(  # a corpus's own settings come before the shared ones
        replace(one, **{k: v for k, v in defaults.items() if k not in one.to_dict()})
        for one in own_corpora or base.corpora
    )
    changes = {
        "model": model,
        "attribute": attribute,
        "seed": seed,
        "audit": Corpus.parse(audit) if audit else None,
        "prefixes": prefixes,
        "identity": identity,
        "people": people,
        "own": own,
    }
    spec = given(embedding)
    if embedding.layer:
        spec["layer"] = tuple(embedding.layer)
        base = replace(base, depth=None)
    full = replace(
        base,
        corpora=used,
        embedding=replace(base.embedding, **spec),
        **{name: value for name, value in changes.items() if value is not None},  # type: ignore[arg-type]
    )
    estimator = _classifier(classifier)
    for one in used:  # a wrong path or column shows before the model is loaded
        next(one.examples(full.seed), None)
    loaded, tokenizer = sasa.load(full.model, device, dtype)
    boundary = fit_boundary(
        loaded,
        tokenizer,
        full,
        output,
        classifier=estimator,
        batch_size=batch_size,
        progress=True,
        spread=ray.connect(full.model, device, dtype_of(loaded)),
    )
    out.print(_table(boundary))
    if skipped := boundary.report["skipped"]:
        print_line(left_out(skipped))
    out.print(
        f"wrote {output}: use it with --boundary {output}, or Boundary.load({str(output)!r})",
        soft_wrap=True,
    )


def _table(boundary: Boundary) -> Table:
    """The figures on held-out texts, of all and by corpus."""
    table = Table("held-out texts", "safe", "unsafe", "AUC", "avg. precision", "accuracy", "ECE")
    report = {"all": boundary.report["test"], **boundary.report["test_by_corpus"]}
    for name, figures in report.items():
        cells = (
            f"{figures[key]:.3f}" if key in figures else "–"
            for key in ("auc", "average_precision", "accuracy", "ece")
        )
        table.add_row(name, str(figures["safe"]), str(figures["unsafe"]), *cells)
    return table


def _classifier(name: str) -> Any:
    """A scikit-learn estimator, or None for the closed form."""
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.svm import LinearSVC

    known = {
        "bayes": None,
        "logistic": LogisticRegression(class_weight="balanced", max_iter=1000),
        "svm": LinearSVC(class_weight="balanced"),
        "ridge": RidgeClassifier(class_weight="balanced"),
    }
    if name not in known:
        raise ValueError(f"classifier must be one of {', '.join(known)}, got {name!r}")
    return known[name]
