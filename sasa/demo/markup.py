"""Traces and margins as HTML: each token coloured by its margin, with what it was chosen among."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from sasa.core.boundary import Boundary
from sasa.decoding.margins import turning_point
from sasa.decoding.tracing import TracedStep
from sasa.demo.studio import Side

SHOWN = 8
"""Candidates of a step on its card; and the one that was drawn."""
STYLE = Path(__file__).parent / "style.css"
LEGEND = (
    '<div class="sasa-figures">P(safe) of the text so far: 0 <span class="sasa-legend"></span> 1. '
    "Point at a token, or click it.</div>"
)


def hue(boundary: Boundary, margin: float) -> int:
    """0, red, where a text is surely unsafe, to 120, green."""
    return 0 if math.isnan(margin) else round(120 * boundary.p_safe(margin))


def side(prompt: str, side: Side, boundary: Boundary, cards: bool = True) -> str:
    """One of two texts: what was thrown away is struck through where it stood.

    Args:
        cards: whether each token has its candidates on a card.
    """
    tokens = "".join(_token(step, boundary, cards) for step in side.steps)
    return (
        f'<div class="sasa-text"><span class="sasa-prompt">{_text(prompt)}</span>{tokens}</div>'
        f'<div class="sasa-figures">{_figures(side, boundary)}</div>'
    )


def inspected(tokens: Sequence[str], margins: Sequence[float], boundary: Boundary) -> str:
    """A text with the margin that it had after each of its tokens."""
    spans = []
    for token, margin in zip(tokens, margins, strict=True):
        if token:
            card = f"margin {margin:+.2f}, P(safe) {boundary.p_safe(margin):.2f}"
            spans.append(
                _span(token, hue(boundary, margin), f'<span class="sasa-card">{card}</span>')
            )
    lowest, turn = turning_point(tokens, margins)
    told = (
        f"margin {margins[-1]:+.2f}, P(safe) {boundary.p_safe(margins[-1]):.2f}; lowest {lowest:+.2f} after "
        f"the token “{html.escape(turn.strip())}”"
    )
    return f'<div class="sasa-text">{"".join(spans)}</div><div class="sasa-figures">{told}</div>'


def _figures(side: Side, boundary: Boundary) -> str:
    kept = [step for step in side.steps if step.kept]
    if not kept:
        return ""
    gone = len(side.steps) - len(kept)
    told = f"{len(kept)} token{'s' * (len(kept) != 1)}" + (f", {gone} taken back" if gone else "")
    made = side.completion
    if made is None or made.margin is None:
        return told
    ends = {"unsafe": ", ended as unsafe: the budget of resets was spent"}
    return f"margin {made.margin:+.2f}, P(safe) {boundary.p_safe(made.margin):.2f}; {told}{ends.get(made.finish_reason, '')}"


def _token(step: TracedStep, boundary: Boundary, cards: bool) -> str:
    if not step.text:
        return ""
    card = _card(step, boundary) if cards else ""
    return _span(
        step.text, hue(boundary, step.chosen.margins[0]), card, "" if step.kept else " sasa-gone"
    )


def _span(text: str, hue: int, card: str, more: str = "") -> str:
    return f'<span class="sasa-token{more}" tabindex="0" style="--hue:{hue}">{_text(text)}{card}</span>'


def _card(step: TracedStep, boundary: Boundary) -> str:
    shown = step.likeliest(SHOWN)
    rows = "".join(
        f'<tr class="{"sasa-drawn" if one.token == step.token else ""}"><td>{_visible(one.text)}</td>'
        f"<td>{_bar(one.p, '')}{one.p:.0%}</td><td>{_bar(one.q, ' sasa-after')}{one.q:.0%}</td>"
        f"<td>{boundary.p_safe(one.margins[0]):.2f}</td></tr>"
        for one in shown
    )
    left = len(step.candidates) - len(shown)
    more = f"<tr><td>{left} more</td><td></td><td></td><td></td></tr>" if left else ""
    head = "<tr><th></th><th>before</th><th>after</th><th>P(safe)</th></tr>"
    gone = "" if step.kept else "<div>taken back</div>"
    return f'<span class="sasa-card">{gone}<table>{head}{rows}{more}</table></span>'


def _bar(share: float, kind: str) -> str:
    return f'<span class="sasa-bar{kind}" style="width:{share * 4:.2f}rem"></span> '


def _visible(text: str) -> str:
    """A candidate as HTML in which spaces and lines' ends can be seen."""
    return html.escape(text.replace(" ", "·").replace("\n", "↵")) or "…"


def _text(text: str) -> str:
    """Text as HTML, in which a line's end can be pointed at, too."""
    return html.escape(text).replace("\n", '<span class="sasa-line">↵</span>\n')
