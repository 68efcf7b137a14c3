"""What the page does with a model: write side by side, inspect a text, fit a boundary. No page is needed for it."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.backtracking import Backtracking
from sasa.core.boundary import Boundary
from sasa.core.settings import BETA, BUNDLED, PRIOR, TOP_K, TOP_P
from sasa.core.shipped import FILE_NAME, about, bundled
from sasa.data.tables import open_table
from sasa.decoding.completion import Completion
from sasa.decoding.generate import generate
from sasa.decoding.tracing import TracedStep
from sasa.demo.turns import in_turns
from sasa.fitting import Corpus, Recipe, fit_boundary
from sasa.utils.progress import following

ROWS = 2000
"""Rows of an uploaded file that a fit reads, drawn at random."""
LABELS = ("label", "toxic", "class", "target", "unsafe", "is_toxic")
TEXTS = ("text", "comment", "comment_text", "tweet", "sentence", "body", "message")


@dataclass
class Side:
    """One of the texts that are written side by side.

    Attributes:
        steps: its trace so far. completion: what came of it, once it is done.
    """

    steps: list[TracedStep] = field(default_factory=list)
    completion: Completion | None = None


@dataclass(frozen=True)
class Wish:
    """How the steered side is to be written; the other one is the same with beta 0 and no way back.

    Attributes:
        weights: of each boundary that steers, by name; the first is the one whose margins colour the text.
        seed: None draws one.
        threshold: of backtracking; None goes back nowhere.
    """

    weights: Mapping[str, float]
    beta: float = BETA
    prior: float = PRIOR
    top_k: int = TOP_K
    top_p: float = TOP_P
    temperature: float = 1.0
    max_new_tokens: int = 40
    seed: int | None = None
    chat: bool = False
    threshold: float | None = None


class Studio:
    """A model with the boundaries that fit it.

    Args:
        names: further boundaries, as for `Boundary.load`.

    Attributes:
        boundaries: by name: those that are bundled for the model by attribute, and these.

    Raises:
        FileNotFoundError, ValueError: a name of which there is no boundary, or none for this model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        names: tuple[str, ...] = (),
        strict: bool = True,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.boundaries: dict[str, Boundary] = {}
        for name in names:
            path = Path(name)
            short = path.parent.name if path.name == FILE_NAME else path.name
            self.boundaries[name if not short or short in self.boundaries else short] = (
                Boundary.load(name, model=model, strict=strict)
            )
        shipped = [(str(about(file)["attribute"]), file) for file in bundled().values()]
        for attribute, file in sorted(
            shipped, key=lambda pair: pair[0] != BUNDLED
        ):  # first what steers by default
            try:
                boundary = Boundary.load(file, model=model, strict=strict)
            except ValueError:
                continue  # it is another model's
            self.boundaries.setdefault(attribute, boundary)

    def write(
        self, prompt: str, wish: Wish, more: Mapping[str, Boundary] | None = None
    ) -> Iterator[tuple[Side, Side, Boundary]]:
        """Writes plainly and steered, a token each in turn, from the same seed.

        Args:
            more: boundaries beside the studio's own, by name.

        Yields:
            both sides as they are, and the boundary whose margins they are coloured by.

        Raises:
            ValueError: an empty prompt, no boundary with a weight, or a setting outside its range.
        """
        known = {**self.boundaries, **(more or {})}
        lines = [(known[name], weight) for name, weight in wish.weights.items() if weight > 0]
        if not lines:
            raise ValueError("no boundary steers: give one a weight above 0, or fit one")
        seed = random.randrange(2**31) if wish.seed is None else wish.seed
        shared: dict[str, Any] = dict(
            prior=wish.prior, top_k=wish.top_k, top_p=wish.top_p, temperature=wish.temperature, chat=wish.chat, seed=seed,
            max_new_tokens=wish.max_new_tokens,
        )  # fmt: skip
        watch = None if wish.threshold is None else Backtracking(wish.threshold)
        sides = Side(), Side()

        def job(
            side: Side, beta: float, watch: Backtracking | None
        ) -> Callable[[Callable[[], None]], None]:
            def run(give_way: Callable[[], None]) -> None:
                def tell(traces: list[list[TracedStep]]) -> None:
                    side.steps = traces[0]
                    give_way()

                (side.completion,) = generate(
                    self.model,
                    self.tokenizer,
                    prompt,
                    lines,
                    beta,
                    backtrack=watch,
                    trace=tell,
                    **shared,
                )

            return run

        for _ in in_turns([job(sides[0], 0.0, None), job(sides[1], wish.beta, watch)]):
            yield *sides, lines[0][0]

    def fit(
        self,
        file: str | Path,
        text: str,
        label: str,
        positive: str = "",
        tell: Callable[[str, float, float | None], None] | None = None,
    ) -> tuple[Boundary, Path]:
        """Fits a boundary from a small table: four fifths of the way up the model, on every prefix.

        Args:
            text, label: columns. positive: the labels that mean unsafe, with commas between, where they are names.
            tell: gets what is being done, how much of it is done, and of how much.

        Returns:
            the boundary, and the file that it was written to.

        Raises:
            ValueError: what `sasa.fitting.fit_boundary` says of such a file.
        """
        names = tuple(name.strip() for name in positive.split(",") if name.strip())
        corpus = Corpus(str(file), text=text, label=label, positive=names, limit=ROWS)
        recipe = Recipe((corpus,), depth=0.8, prefixes=True, attribute=Path(file).stem)
        with following(tell):
            boundary = fit_boundary(self.model, self.tokenizer, recipe)
        return boundary, boundary.save(tempfile.mkdtemp(prefix="sasa-fit-"))


def columns_of(file: str | Path) -> tuple[list[str], str | None, str | None]:
    """The columns of a table, and which of them seem to be the text and the label."""
    names = list(open_table(Path(file)).columns)

    def guess(known: tuple[str, ...]) -> str | None:
        return next((name for wanted in known for name in names if name.lower() == wanted), None)

    return names, guess(TEXTS), guess(LABELS)
