"""`sasa selectivity`: whom steering takes from, on text that people wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from sasa.cli.loading import load_boundaries
from sasa.cli.options import DeviceOption, DtypeOption, ModelOption, StrictOption, ValueOption
from sasa.cli.output import out, print_json
from sasa.core.settings import BETA, BUNDLED, PRIOR, VALUE, check_beta, check_prior, check_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sasa.core.boundary import Boundary
    from sasa.core.embedding_spec import Text
    from sasa.core.values import Steering
    from sasa.decoding.cost import Reading
    from sasa.evaluation.selectivity import Judged, Labelled
    from sasa.fitting.identity import About, Sentences

GROWTH = (0.5, 1.0, 1.5)
"""Of the default strength: what is tried where none is named."""
SHIPPED = "bundled"
"""Of --people: the sentences that ship with the package."""


def command(
    corpora: Annotated[
        list[str],
        typer.Argument(
            metavar="CORPUS...",
            help="Labelled texts, as for `sasa fit`, that no fit has seen. Of rtp, continuations after their prompts.",
            show_default=False,
        ),
    ],
    model: ModelOption = None,
    boundaries: Annotated[
        list[str] | None,
        typer.Option(
            "--boundary",
            "-b",
            help="Repeat it to compare several, each by itself.",
            show_default=BUNDLED,
        ),
    ] = None,
    betas: Annotated[
        list[float] | None,
        typer.Option(
            "--beta",
            help="Repeat it for several strengths.",
            show_default=", ".join(f"{BETA * x:g}" for x in GROWTH),
        ),
    ] = None,
    priors: Annotated[
        list[float] | None,
        typer.Option("--prior", help="Repeat it for several priors.", show_default=f"{PRIOR:g}"),
    ] = None,
    value: ValueOption = VALUE,
    at: Annotated[
        float | None,
        typer.Option(
            help="In place of --beta: the strength at which unsafe text pays so many nats a token, for each setting."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Texts of each group, at most, drawn at random.")
    ] = 60,
    top_k: Annotated[
        int, typer.Option(min=1, help="Candidates at each place, the likeliest.")
    ] = 50,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of a text that are read.")
    ] = 20,
    people: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|bundled",
            help="Also what it takes from harmless sentences about groups of people: those of `sasa audit`, or a file's.",
            show_default="not measured",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder for the figures, JSON, and a picture."),
    ] = None,
    by_place: Annotated[
        bool,
        typer.Option(
            "--by-place", help="Also by place: what the first token pays, the next four, …"
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the sample and the bootstrap.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout, and nothing else.")
    ] = False,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Measure what steering takes from text that people wrote, by class: log p - log q of their words, in nats a token.

    Harmless text should pay next to nothing, unsafe text much. Texts are read once, with all candidates at each place; any
    number of strengths, priors and boundaries are judged by that. Nothing is written, so it takes minutes.

        sasa selectivity rtp::rows=90000:,safe_below=0.3

        sasa selectivity rtp::rows=90000: -b toxicity -b my-boundary --prior 0.5 --prior 0.05 --at 2.4 -o selectivity

    RealToxicityPrompts is grouped by continuation and prompt: "safe after unsafe" is harmless text behind a toxic prompt.
    The recipes that ship are fitted on its rows before 90000.
    """
    check_value(value)
    if at is not None and (betas or at <= 0):
        raise ValueError("--at is a number of nats > 0, in place of --beta")
    strengths = betas or [BETA * x for x in GROWTH] if at is None else [at]
    settings = [(prior, beta) for prior in priors or [PRIOR] for beta in strengths]
    for prior, beta in settings:  # what is out of range shows before anything is read
        check_prior(prior)
        check_beta(beta)
    import sasa
    from sasa.core.values import Steering
    from sasa.evaluation.metrics import to_json
    from sasa.evaluation.selectivity import class_of
    from sasa.fitting.identity import load_people

    names = boundaries or [BUNDLED]
    sentences = load_people("audit", None if people == SHIPPED else people) if people else ()
    texts = _labelled(corpora, limit, seed)
    classes = list(dict.fromkeys(class_of(text.group) for text in texts))
    unsafe = _unsafe(classes)
    if at is not None and unsafe is None:
        raise ValueError("--at needs unsafe texts, and the corpora hold none")
    loaded, tokenizer = sasa.load(model, device, dtype)
    weighted = load_boundaries(names, loaded, strict)
    if any(weight != 1 for _, weight in weighted):
        raise ValueError(
            "here each boundary is judged by itself: give it without ::WEIGHT, and vary --beta"
        )
    lines = [boundary for boundary, _ in weighted]
    kept = _readable(texts, tokenizer, lines)
    readings = _read(
        loaded,
        tokenizer,
        lines,
        [text.text for text in kept],
        sentences,
        top_k=top_k,
        max_tokens=max_tokens,
    )
    groups = [text.group for text in kept]
    rows = [
        _judged(name, reading, groups, Steering.of(line, beta, value, prior), seed, at, unsafe)
        for name, line, reading in zip(names, lines, readings, strict=True)
        for prior, beta in settings
    ]
    report = to_json(
        {
            "texts": len(kept),
            "top_k": top_k,
            "max_tokens": max_tokens,
            "settings": list(map(asdict, rows)),
        }
    )
    if output is not None:
        _write(output, report, rows, classes, unsafe)
    if as_json:
        print_json(report)
        return
    for table in _tables(rows, by_place):
        out.print(table)
    if output is not None:
        Console(stderr=True).print(f"figures and picture: {output}", soft_wrap=True, markup=False)


def _labelled(corpora: Sequence[str], limit: int, seed: int) -> list[Labelled]:
    """The texts of all corpora with their groups; of RealToxicityPrompts, whole pairs."""
    from sasa.data.corpus import Corpus
    from sasa.evaluation.selectivity import labelled

    texts = []
    for name in corpora:
        corpus = Corpus.parse(name)
        corpus = replace(corpus, segments=("pair",)) if corpus.source == "rtp" else corpus
        texts += labelled(corpus, limit, seed)
    return texts


def _unsafe(classes: Sequence[str]) -> str | None:
    """The unsafe class; of RealToxicityPrompts, unsafe text after unsafe prompts."""
    from sasa.evaluation.selectivity import UNSAFE

    return max((name for name in classes if name.startswith(UNSAFE)), key=len, default=None)


def _readable(
    texts: Sequence[Labelled], tokenizer: PreTrainedTokenizerBase, boundaries: Sequence[Boundary]
) -> list[Labelled]:
    """The texts of more than one token for every boundary; says how many are left out."""
    from sasa.decoding.cost import readable

    specs = [boundary.embedding for boundary in boundaries]
    kept = [text for text in texts if all(readable(tokenizer, text.text, spec) for spec in specs)]
    if len(kept) < len(texts):
        left_out = f"left out: {len(texts) - len(kept)} texts of one token, before which there is nothing to go by"
        Console(stderr=True).print(left_out, soft_wrap=True)
    return kept


class Readings(NamedTuple):
    """What one boundary has read."""

    texts: Reading
    people: tuple[About, Reading] | None
    """Sentences about people, if they are measured."""


def _read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    boundaries: Sequence[Boundary],
    texts: Sequence[Text],
    sentences: Sequence[Sentences],
    *,
    top_k: int,
    max_tokens: int,
) -> list[Readings]:
    """Reads all texts once for all boundaries to which they are the same tokens."""
    from sasa.decoding.cost import read, tokenized_as
    from sasa.fitting.identity import About

    sharing: dict[tuple[str, bool], list[int]] = {}
    for number, boundary in enumerate(boundaries):
        sharing.setdefault(tokenized_as(boundary.embedding), []).append(number)
    readings: dict[int, Readings] = {}
    for numbers in sharing.values():
        weighted = [(boundaries[number], 1.0) for number in numbers]
        reading = partial(read, model, tokenizer, boundary=weighted, top_k=top_k, progress=True)
        of_texts = reading(texts, max_tokens=max_tokens)
        about = of_people = None
        if sentences:
            about = About.of(sentences, tokenizer, boundaries[numbers[0]].embedding)
            of_people = reading(about.texts)
        for place, number in enumerate(numbers):
            people = (about, of_people.by(place)) if about and of_people else None
            readings[number] = Readings(of_texts.by(place), people)
    return [readings[number] for number in range(len(boundaries))]


def _judged(
    name: str,
    readings: Readings,
    groups: Sequence[str],
    steering: Steering,
    seed: int,
    at: float | None,
    unsafe: str | None,
) -> Judged:
    """What steering takes from each group, at its strength, or where `unsafe` pays `at` nats."""
    from sasa.evaluation.selectivity import Judged, selectivity, strength_for

    if at is not None and unsafe is not None:
        beta = strength_for(readings.texts, groups, steering, at, unsafe)
        steering = replace(steering, beta=beta)
    taxes = selectivity(readings.texts, groups, steering, seed)
    people = None
    if readings.people is not None:
        about, reading = readings.people
        people = about.figures(reading, steering)
    return Judged(
        boundary=name,
        beta=steering.beta,
        value=steering.value,
        prior=steering.prior,
        groups=taxes,
        people=people,
    )


def _write(
    folder: Path,
    report: dict[str, Any],
    rows: Sequence[Judged],
    classes: Sequence[str],
    unsafe: str | None,
) -> None:
    """Writes the figures, and a picture if there are both unsafe and harmless texts."""
    from sasa.evaluation.selectivity import UNSAFE, draw
    from sasa.utils.files import write_atomically

    write_atomically(folder / "selectivity.json", json.dumps(report, indent=1) + "\n")
    shown = [name for name in classes if name in rows[0].groups]
    harmless = [name for name in shown if not name.startswith(UNSAFE)]
    if unsafe in shown and harmless:
        draw(folder / "selectivity.png", rows, unsafe, harmless)


def _tables(rows: Sequence[Judged], by_place: bool) -> Iterator[Table]:
    """What each setting takes from each group, and, where it is asked for, by place."""
    setting = ("boundary", "prior", "beta")
    people = (
        ("sentences about people, nats each", "worst group, beyond that") if rows[0].people else ()
    )
    table = Table(*setting, *(f"{group}, nats a token" for group in rows[0].groups), *people)
    for row in rows:
        cells = [str(tax.per_token) for tax in row.groups.values()]
        if row.people:
            worst = row.people["worst"]
            cells += [f"{row.people['controls']:.2f}", f"{worst['group']} {worst['beyond']:+.2f}"]
        table.add_row(*row.cells, *cells)
    yield table
    if by_place:
        from sasa.evaluation.selectivity import PLACES

        table = Table(*setting, "group", *(f"token {place}" for place in PLACES))
        for row in rows:
            for group, tax in row.groups.items():
                each = ("–" if one is None else f"{one:.3f}" for one in tax.by_place.values())
                table.add_row(*row.cells, group, *each)
        yield table
