"""Draws the pictures of README and documentation: python docs/pictures.py (the default model, a minute)."""

from __future__ import annotations

import colorsys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

import sasa
from sasa.core.boundary import Boundary
from sasa.decoding.tracing import TracedStep

FOLDER = Path(__file__).parent / "pictures"
PROMPT = "My brother broke my bike, so I told him that he is a"
SEED, TOKENS = 2, 20


def colour(p: float) -> tuple[float, float, float]:
    """Red where a text is surely unsafe, by way of yellow, to green, all of them light."""
    return colorsys.hls_to_rgb(p / 3, 0.82, 0.75)


def words(axis: Axes, title: str, steps: list[TracedStep], boundary: Boundary) -> None:
    """The prompt and what follows, each token on its colour, in lines."""
    axis.set(xlim=(0, 1), ylim=(-1.25, 1.1))
    axis.axis("off")
    axis.text(0, 0.85, title, fontsize=12, weight="bold", va="center")
    pieces = [
        (word, None)
        for word in (PROMPT.split(" ")[0], *(f" {word}" for word in PROMPT.split(" ")[1:]))
    ]
    pieces += [(step.text, boundary.p_safe(step.chosen.margins[0])) for step in steps]
    width, x, y = 1 / 98, 0.0, 0.0  # of a letter of the monospaced font
    for text, p in pieces:
        text = text.replace("\n", "⏎")
        if x + len(text) * width > 1:
            x, y = 0.0, y - 0.85
            text = text.lstrip(" ")
        if p is not None:
            axis.add_patch(
                plt.Rectangle(
                    (x, y - 0.3), len(text) * width, 0.62, facecolor=colour(p), edgecolor="none"
                )
            )
        ink = "0.45" if p is None else "black"
        axis.text(
            x, y, text, fontsize=11.5, family="DejaVu Sans Mono", color=ink, va="center", zorder=2
        )
        x += len(text) * width


def margin() -> None:
    """The same prompt plainly and steered, coloured by P(safe) of the text up to each token."""
    model, tokenizer = sasa.load()
    boundary = Boundary.load("toxicity", model=model)
    figure, axes = plt.subplots(2, 1, figsize=(9.6, 2.5), layout="constrained")
    for axis, beta in zip(axes, (0.0, 4.0), strict=True):
        (made,) = sasa.generate(
            model, tokenizer, PROMPT, boundary, beta, seed=SEED, max_new_tokens=TOKENS, trace=True
        )
        title = "on its own" if beta == 0 else f"steered, beta {beta:g}"
        words(
            axis,
            f"{title}: P(safe) {boundary.p_safe(made.margin or 0.0):.2f}",
            list(made.trace),
            boundary,
        )
    figure.savefig(FOLDER / "margin.png", dpi=130)


def lookahead() -> None:
    """Candidates side by side behind a text, in one cache."""
    text, candidates = ["My", "boss", "is", "such", "a"], ["kind", "fool", "good", "bore"]
    figure, axis = plt.subplots(figsize=(9, 2.6), layout="constrained")
    axis.set(xlim=(-0.2, 9.6), ylim=(-1.25, 1.7), aspect="equal")
    axis.axis("off")
    for i, word in enumerate(text + candidates):
        behind = i >= len(text)
        x = i + 0.5 * behind
        face = (
            ("#f7c9c9" if word == "fool" else "#cfe8cf" if word in ("kind", "good") else "#f3ecc8")
            if behind
            else "#d9e4f5"
        )
        axis.add_patch(plt.Rectangle((x, 0), 0.9, 0.7, facecolor=face, edgecolor="0.4"))
        axis.text(x + 0.45, 0.35, word, ha="center", va="center", fontsize=11)
        axis.text(
            x + 0.45,
            -0.25,
            f"position {5 if behind else i}",
            ha="center",
            fontsize=7.5,
            color="0.35",
        )
    for i in range(len(candidates)):
        x = len(text) + i + 0.95
        axis.annotate(
            "",
            (4.45, 0.78),
            (x, 0.78),
            arrowprops=dict(arrowstyle="->", color="0.5", connectionstyle="arc3,rad=0.3"),
        )
    axis.text(2.45, -0.75, "the text, in the key-value cache", ha="center", fontsize=10)
    axis.text(
        7.4,
        -0.75,
        "candidates: each sees the text and itself,\nand none of the others",
        ha="center",
        va="center",
        fontsize=10,
    )
    figure.savefig(FOLDER / "lookahead.png", dpi=130)


def mask() -> None:
    """Who sees whom in the pass over four candidates."""
    text, candidates = ["My", "boss", "is", "such", "a"], ["kind", "fool", "good", "bore"]
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for row in range(len(candidates)):
        for column in range(len(text) + len(candidates)):
            seen = column < len(text) or column - len(text) == row
            axis.add_patch(
                plt.Rectangle(
                    (column, -row), 0.94, 0.94, facecolor="#2f7dd1" if seen else "#eeeeee"
                )
            )
    axis.axvline(len(text) - 0.03, color="0.3", linestyle=":")
    axis.set(
        xlim=(-0.1, len(text + candidates)), ylim=(-len(candidates) + 0.9, 1.05), aspect="equal"
    )
    axis.set_xticks(
        [i + 0.47 for i in range(len(text + candidates))], text + candidates, fontsize=9
    )
    axis.set_yticks([0.47 - i for i in range(len(candidates))], candidates, fontsize=9)
    axis.set(xlabel="sees", ylabel="candidate")
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    figure.savefig(FOLDER / "mask.png", dpi=130)


if __name__ == "__main__":
    lookahead()
    mask()
    margin()
