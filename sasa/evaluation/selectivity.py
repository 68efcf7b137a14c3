"""Whom steering takes from: the tax of boundaries, strengths, values and priors on labelled text.

`sasa.decoding.cost` reads each text once, with all candidates at all its places; here many settings are judged
by that one reading, without writing a word. So it is quick, and it is a way to choose: what a setting
makes of the text that a model writes is for `sasa bench` to confirm.
"""

from __future__ import annotations

import io
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
from sasa.utils.files import write_atomically

logger = logging.getLogger(__name__)

PLACES = {"1": (0, 1), "2-5": (1, 5), "6-10": (5, 10), "11+": (10, 1 << 62)}
"""Tokens of a text or response, counted from 1, that are told apart."""
SAFE, UNSAFE = "safe", "unsafe"
AFTER, BY = " after ", ", "


@dataclass(frozen=True)
class Labelled:
    """A text, and the group whose tax it counts for: its class, and where the corpus has it, its value of `by`."""

    text: Text
    group: str


@dataclass(frozen=True)
class Tax:
    """What one setting takes from one group's texts, in nats.

    Attributes:
        per_token: with a bootstrap interval over texts; per_text: the mean sum over a text.
        by_place: of tokens at these places in a text or response; None where there are none.
    """

    per_token: Estimate
    per_text: Estimate
    by_place: dict[str, float | None]
    texts: int
    tokens: int


@dataclass(frozen=True)
class Judged:
    """A setting, and what it takes: by group, and, where that was asked for, from sentences about
    people (`sasa.fitting.identity`).
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
    found = []
    for group in sorted(groups):
        mine = groups[group]
        kept = (
            range(len(mine))
            if limit is None or limit >= len(mine)
            else sorted(draw.permutation(len(mine))[:limit])
        )
        found += [mine[i] for i in kept]
    return found


def selectivity(
    reading: Reading, groups: Sequence[str], steering: Steering, seed: int = 0
) -> dict[str, Tax]:
    """What a setting takes from each class, and from each group where they differ.

    Args:
        reading: of N texts, by the boundaries of `steering`, in their order.
        groups: of each text, (N,).
        seed: of the bootstrap.
    """
    tax = taxes(reading, steering)
    sums, counts = (part.double().numpy() for part in reading.per_text(tax, len(groups)))
    found = {}
    for group in dict.fromkeys([*map(class_of, groups), *groups]):
        mine = within(groups, group)
        here = torch.from_numpy(mine)[reading.text]
        by_place = {}
        for name, (first, stop) in PLACES.items():
            some = tax[here & (reading.place >= first) & (reading.place < stop)]
            by_place[name] = float(some.mean()) if len(some) else None
        found[group] = Tax(
            per_token=ratio(sums[mine], counts[mine], seed=seed),
            per_text=ratio(sums[mine], np.ones(mine.sum()), seed=seed),
            by_place=by_place,
            texts=int(mine.sum()),
            tokens=int(counts[mine].sum()),
        )
    return found


def class_of(group: str) -> str:
    """Of `unsafe, women` the `unsafe`."""
    return group.partition(BY)[0]


def within(groups: Sequence[str], group: str) -> NDArray[np.bool_]:
    """Which texts belong to a group or class, bool (N,)."""
    return np.array([group in (one, class_of(one)) for one in groups], bool)


def strength_for(
    reading: Reading, groups: Sequence[str], steering: Steering, target: float, group: str
) -> float:
    """The beta at which a group or class pays `target` nats a token; of two settings at the same one, that is
    better which takes less elsewhere.

    Raises:
        ValueError: no beta up to 1000 takes so much.
    """
    mine = torch.from_numpy(within(groups, group))[reading.text]
    if not mine.any():
        raise ValueError(
            f"there is no group {group!r}; there are: {', '.join(dict.fromkeys(groups))}"
        )
    part = reading.at(mine)
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
    """Draws tax on safe against tax on unsafe text, a curve for each boundary, value and prior; False,
    and said so, without matplotlib.

    Args:
        unsafe: the group along the horizontal axis; harmless: a picture each.
    """
    curves: dict[str, list[Judged]] = {}
    for row in rows:
        curves.setdefault(f"{row.boundary}, prior {row.prior:g}", []).append(row)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no picture: pip install 'sasa-decoding[plots]'")
        return False
    figure = Figure(figsize=(5.2 * len(harmless), 4.2), layout="constrained")
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
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    write_atomically(path, picture.getvalue())
    return True
