"""`sasa selectivity`: whom steering takes from, on text that people wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sasa.cli.common import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    StrictOption,
    ValueOption,
    load_boundaries,
    out,
    print_json,
)
from sasa.core.settings import BETA, PRIOR, VALUE, check_beta, check_prior, check_value

if TYPE_CHECKING:
    from sasa.evaluation.selectivity import Judged

GROWTH = (0.5, 1.0, 1.5)
"""Of the default strength: what is tried where none is named."""
BUNDLED = "bundled"


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
            show_default="toxicity",
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
    import sasa
    from sasa.core.values import Steering
    from sasa.data.corpus import Corpus
    from sasa.decoding.cost import Reading, read, readable, tokenized_as
    from sasa.evaluation.metrics import to_json
    from sasa.evaluation.selectivity import (
        UNSAFE,
        Judged,
        class_of,
        draw,
        labelled,
        selectivity,
        strength_for,
    )
    from sasa.fitting.identity import About, load_people
    from sasa.utils.files import write_atomically

    if at is not None and (betas or at <= 0):
        raise ValueError("--at is a number of nats > 0, in place of --beta")
    names = boundaries or ["toxicity"]
    strengths = betas or [BETA * x for x in GROWTH] if at is None else [at]
    wanted = [(prior, beta) for prior in priors or [PRIOR] for beta in strengths]
    for prior, beta in wanted:  # what is out of range shows before anything is read
        check_prior(prior)
        check_beta(beta)
    sentences = load_people("audit", None if people == BUNDLED else people) if people else ()
    texts = []
    for given in corpora:
        corpus = Corpus.parse(given)
        corpus = replace(corpus, segments=("pair",)) if corpus.source == "rtp" else corpus
        texts += labelled(corpus, limit, seed)
    # of RealToxicityPrompts that is unsafe text behind unsafe prompts
    classes = dict.fromkeys(class_of(one.group) for one in texts)
    unsafe = max((name for name in classes if name.startswith(UNSAFE)), key=len, default=None)
    if at is not None and unsafe is None:
        raise ValueError("--at needs unsafe texts, and the corpora hold none")
    loaded, tokenizer = sasa.load(model, device, dtype)
    lines = load_boundaries(names, loaded, strict)
    if any(weight != 1 for _, weight in lines):
        raise ValueError(
            "here each boundary is judged by itself: give it without ::WEIGHT, and vary --beta"
        )
    ways: dict[tuple[str, bool], list[int]] = {}  # boundaries to which a text is the same tokens
    for number, (line, _) in enumerate(lines):
        ways.setdefault(tokenized_as(line.embedding), []).append(number)
    specs = [lines[numbers[0]][0].embedding for numbers in ways.values()]
    kept = [one for one in texts if all(readable(tokenizer, one.text, spec) for spec in specs)]
    if len(kept) < len(texts):
        one_token = f"left out: {len(texts) - len(kept)} texts of one token, before which there is nothing to go by"
        Console(stderr=True).print(one_token, soft_wrap=True)
    written, groups = [one.text for one in kept], [one.group for one in kept]
    readings: dict[int, Reading] = {}
    said: dict[int, tuple[About, Reading]] = {}
    for numbers, spec in zip(ways.values(), specs, strict=True):  # one pass serves them all
        by = [lines[number] for number in numbers]
        reading = read(
            loaded, tokenizer, written, by, top_k=top_k, max_tokens=max_tokens, progress=True
        )
        readings |= {number: reading.by(place) for place, number in enumerate(numbers)}
        if people:
            about = About.of(sentences, tokenizer, spec)
            reading = read(loaded, tokenizer, about.texts, by, top_k=top_k, progress=True)
            said |= {number: (about, reading.by(place)) for place, number in enumerate(numbers)}
    rows: list[Judged] = []
    for number, (name, (line, _)) in enumerate(zip(names, lines, strict=True)):
        mine = readings[number]
        for prior, beta in wanted:
            steering = Steering.of(line, beta, value, prior)
            if at is not None and unsafe is not None:
                steering = replace(steering, beta=strength_for(mine, groups, steering, at, unsafe))
            found = selectivity(mine, groups, steering, seed)
            figures = said[number][0].figures(said[number][1], steering) if number in said else None
            rows.append(Judged(name, steering.beta, value, prior, found, figures))
    report = to_json(
        {
            "texts": len(kept),
            "top_k": top_k,
            "max_tokens": max_tokens,
            "settings": list(map(asdict, rows)),
        }
    )
    if output is not None:
        write_atomically(output / "selectivity.json", json.dumps(report, indent=1) + "\n")
        harmless = [
            name for name in classes if name in rows[0].groups and not name.startswith(UNSAFE)
        ]
        if unsafe in rows[0].groups and harmless:
            draw(output / "selectivity.png", rows, unsafe, harmless)
    if as_json:
        print_json(report)
        return
    for table in _tables(rows, by_place):
        out.print(table)
    if output is not None:
        Console(stderr=True).print(f"figures and picture: {output}", soft_wrap=True, markup=False)


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
