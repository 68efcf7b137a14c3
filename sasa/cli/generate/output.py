"""Completions as the terminal and JSON lines show them."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sasa.cli.output import in_unicode, out, style

if TYPE_CHECKING:
    from sasa.core.boundary import Boundary
    from sasa.decoding.completion import Completion

SHOWN = 5
"""Candidates of a step in the table of --trace, besides the one that was drawn."""


def json_row(
    prompt: str, steered: list[Completion], plain: list[Completion] | None, trace: bool
) -> dict[str, Any]:
    """A prompt and its completions for a JSON line; `plain` stands beside them in a comparison."""
    row = {"prompt": prompt, "completions": [_as_json(each, trace) for each in steered]}
    if plain is not None:
        row["plain"] = [_as_json(each, trace) for each in plain]
    return row


def _as_json(completion: Completion, trace: bool) -> dict[str, Any]:
    row = asdict(completion)
    if not trace:
        del row["trace"]
    return row


def print_completions(
    boundary: Boundary | None, prompt: str, completions: list[Completion]
) -> None:
    """Prints each completion after its prompt, coloured by its margin."""
    for completion in completions:
        out.print(Text(prompt, style="dim") + _coloured(boundary, completion), soft_wrap=True)


def print_comparison(
    boundary: Boundary | None,
    prompt: str,
    title: str,
    plain: list[Completion],
    steered: list[Completion],
) -> None:
    """Prints plain and steered completions side by side."""
    table = Table(
        title=escape(prompt), title_justify="left", expand=True, show_lines=len(plain) > 1
    )
    table.add_column("plain", ratio=1)
    table.add_column(title, ratio=1)
    for one, other in zip(plain, steered, strict=True):
        table.add_row(_coloured(boundary, one), _coloured(boundary, other))
    out.print(table)


def print_trace(boundary: Boundary, completions: list[Completion]) -> None:
    """Prints the candidates that each step of each completion chose among."""
    for completion in completions:
        out.print(_traced(boundary, completion))


def _coloured(boundary: Boundary | None, completion: Completion) -> Text:
    # Blank lines take room and say nothing here; --json has the text as it is.
    text = Text(re.sub(r"\s*\n\s*", "\n", completion.text).strip("\n"))
    if boundary is not None and completion.margin is not None:
        text.stylize(style(boundary, completion.margin))
        begin, end = "⟨⟩" if in_unicode() else "()"
        p = boundary.p_safe(completion.margin)
        text.append(f"  {begin}{completion.margin:+.1f}, P(safe) {p:.2f}{end}", "dim")
    for attempt in completion.attempts:
        why = (
            attempt.reason
            if attempt.p_unsafe is None
            else f"{attempt.reason}, P(unsafe) {attempt.p_unsafe:.2f}"
        )
        text.append(f"\n  went back ({why}): ", "dim")
        text.append(" ".join(attempt.text.split()), "dim strike")
    return text


def _traced(boundary: Boundary, completion: Completion) -> Table:
    """The likeliest candidates of each step, and the one that was drawn; what went back is struck through."""
    table = Table(
        "", "token", "before", "after", "score", "margin", "value", "added", title_justify="left"
    )
    for step in completion.trace:
        shown = step.likeliest(SHOWN)
        for n, one in enumerate(shown):
            drawn = one.token == step.token
            look = ("bold" if drawn else "dim") + ("" if step.kept else " strike")
            table.add_row(
                f"{step.place + 1}" if n == 0 else "",
                Text(("› " if drawn else "  ") + repr(one.text)[1:-1], style=look),
                f"{one.p:.1%}",
                f"{one.q:.1%}",
                f"{one.score:.2f}",
                Text(
                    " ".join(f"{m:+.1f}" for m in one.margins),
                    style=style(boundary, one.margins[0]),
                ),
                f"{one.value:+.2f}",
                f"{one.shift:+.2f}",
                end_section=n == len(shown) - 1,
            )
    return table
