"""Selectivity: the steering cost of boundaries, strengths, values and priors on labelled text.

`sasa.decoding.cost` reads each text once, with all candidates at all positions. From that reading,
the cost of many settings follows without generating text. This is a quick way to choose settings;
`sasa bench` confirms them on generated text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sasa.core.embedding_spec import Text
from sasa.core.values import Steering
from sasa.data.corpus import Corpus
from sasa.decoding.cost import Reading, taxes
from sasa.evaluation.metrics import Estimate, ratio
from sasa.fitting.identity import TaxFigures
from sasa.utils.plots import new_figure, save_figure, tidy

logger = logging.getLogger(__name__)

PLACES = {"1": (0, 1), "2-5": (1, 5), "6-10": (5, 10), "11+": (10, 1 << 62)}
"""Ranges of positions in a text or response, counted from 1: name -> (first, stop), from 0."""
SAFE, UNSAFE = "safe", "unsafe"
AFTER, BY = " after ", ", "


@dataclass(frozen=True)
class Labelled:
    """A text and its group: its class and, if the corpus has one, its value of the column `by`."""

    text: Text
    group: str


@dataclass(frozen=True)
class Tax:
    """The steering cost of one setting on one group's texts, in nats.

    Attributes:
        per_token: with a bootstrap interval over texts; per_text: the mean sum over a text.
        by_place: per token in each range of positions; None if there are no tokens.
    """

    per_token: Estimate
    per_text: Estimate
    by_place: dict[str, float | None]
    texts: int
    tokens: int


@dataclass(frozen=True)
class Judged:
    """A setting and its steering cost by group and, if requested, on sentences about people
    (`sasa.fitting.identity`).
    """

    boundary: str
    beta: float
    value: str
    prior: float
    groups: dict[str, Tax]
    people: TaxFigures | None = None

    @property
    def cells(self) -> tuple[str, str, str]:
        """The setting, for a table."""
        return self.boundary, f"{self.prior:g}", f"{self.beta:.3g}"


def labelled(corpus: Corpus, limit: int | None = None, seed: int = 0) -> list[Labelled]:
    """The texts of a corpus outside the grey zone, by class; responses to prompts of
    RealToxicityPrompts also by the class of the prompt: `safe after unsafe`. Where the corpus names
    a column `by`, by its values, too: `safe, women`.

    Args:
        limit: of each group, drawn at random.

    Raises:
        FileNotFoundError, ValueError: as `Corpus.examples`; nothing is left.
    """
    groups: dict[str, list[Labelled]] = {}
    examples = list(corpus.examples(seed))
    paired = any(example.prompt_score is not None for example in examples)
    for example in examples:
        if paired and example.prompt_score is None:
            continue  # whether it answers a harmless prompt is not known
        classes = [corpus.label_of(example.score)]
        if example.prompt_score is not None:
            classes.append(corpus.label_of(example.prompt_score))
        if None not in classes:
            group = AFTER.join(SAFE if one else UNSAFE for one in classes)
            group += f"{BY}{example.by}" if example.by else ""
            groups.setdefault(group, []).append(Labelled(example.text, group))
    if not groups:
        raise ValueError(f"corpus {corpus.source} has no text outside the grey zone")
    draw = np.random.default_rng(seed)
    texts: list[Labelled] = []
    for group in sorted(groups):
        members = groups[group]
        if limit is not None and limit < len(members):
            members = [members[i] for i in sorted(draw.permutation(len(members))[:limit])]
        texts += members
    return texts


def selectivity(
    reading: Reading, groups: Sequence[str], steering: Steering, seed: int = 0
) -> dict[str, Tax]:
    """The steering cost of a setting on each class, and on each group if they differ.

    Args:
        reading: of N texts, by the boundaries of `steering`, in their order.
        groups: of each text, (N,).
        seed: of the bootstrap.
    """
    tax = taxes(reading, steering)
    sums, counts = (part.double().numpy() for part in reading.per_text(tax, len(groups)))
    costs = {}
    for group in dict.fromkeys([*map(class_of, groups), *groups]):
        members = within(groups, group)
        tokens = torch.from_numpy(members)[reading.text]
        by_place = {}
        for name, (first, stop) in PLACES.items():
            part = tax[tokens & (reading.place >= first) & (reading.place < stop)]
            by_place[name] = float(part.mean()) if len(part) else None
        costs[group] = Tax(
            per_token=ratio(sums[members], counts[members], seed=seed),
            per_text=ratio(sums[members], np.ones(members.sum()), seed=seed),
            by_place=by_place,
            texts=int(members.sum()),
            tokens=int(counts[members].sum()),
        )
    return costs


def class_of(group: str) -> str:
    """The class of a group, such as `unsafe` of `unsafe, women`."""
    return group.partition(BY)[0]


def within(groups: Sequence[str], group: str) -> NDArray[np.bool_]:
    """Whether each of N texts belongs to a group or class, bool (N,)."""
    return np.array([group in (one, class_of(one)) for one in groups], bool)


def strength_for(
    reading: Reading, groups: Sequence[str], steering: Steering, target: float, group: str
) -> float:
    """The beta at which a group or class costs `target` nats per token.

    Of two settings at the same cost, the better one costs less on other groups.

    Raises:
        ValueError: no beta up to 1000 takes so much.
    """
    members = torch.from_numpy(within(groups, group))[reading.text]
    if not members.any():
        raise ValueError(
            f"there is no group {group!r}; there are: {', '.join(dict.fromkeys(groups))}"
        )
    part = reading.at(members)
    low, high = 1e-3, 1e3
    if float(taxes(part, replace(steering, beta=high)).mean()) < target:
        raise ValueError(f"no beta up to {high:g} takes {target:g} nats a token from {group} text")
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        if float(taxes(part, replace(steering, beta=middle)).mean()) < target:
            low = middle
        else:
            high = middle
    return high


def draw(path: Path, rows: Sequence[Judged], unsafe: str, harmless: Sequence[str]) -> bool:
    """Plots cost on safe against cost on unsafe text, a curve for each boundary, value and prior.

    Args:
        unsafe: the group along the horizontal axis.
        harmless: the groups along the vertical axes, a panel each.

    Returns:
        False, with a warning, if matplotlib is not installed.
    """
    curves: dict[str, list[Judged]] = {}
    for row in rows:
        curves.setdefault(f"{row.boundary}, prior {row.prior:g}", []).append(row)
    figure = new_figure(figsize=(5.2 * len(harmless), 4.2), layout="constrained")
    if figure is None:
        logger.warning("no picture: pip install 'sasa-decoding[plots]'")
        return False
    for axes, group in zip(
        figure.subplots(1, len(harmless), squeeze=False)[0], harmless, strict=True
    ):
        for name, points in curves.items():
            across = [row.groups[unsafe].per_token.value for row in points]
            up = [row.groups[group].per_token for row in points]
            (line,) = axes.plot(
                across, [one.value for one in up], marker="o", markersize=4, label=name
            )
            axes.fill_between(
                across,
                [one.low for one in up],
                [one.high for one in up],
                alpha=0.15,
                color=line.get_color(),
            )
            for x, one, row in zip(across, up, points, strict=True):
                axes.annotate(
                    f"{row.beta:.3g}",
                    (x, one.value),
                    xytext=(3, -10),
                    textcoords="offset points",
                    fontsize=7,
                )
        axes.set(
            xlabel=f"nats a token, {unsafe} (right: better)",
            ylabel=f"nats a token, {group} (down: better)",
        )
        axes.set_xlim(left=0)
        tidy(axes)
    save_figure(figure, path, dpi=130)
    return True
