"""The recipe of a fit: corpora, embedding and settings, as Python objects and as TOML."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.model_info import ModelInfo
from sasa.core.settings import check_beta
from sasa.data.corpus import Corpus
from sasa.data.examples import Example
from sasa.fitting.identity import PEOPLE

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

Part = Literal["fit", "calibration", "test"]
PARTS: tuple[Part, ...] = ("fit", "calibration", "test")


@dataclass(frozen=True)
class Recipe:
    """All that determines a fit: the same recipe on the same model gives the same boundary.

    Attributes:
        corpora: labelled texts to fit on.
        attribute: the name of the unsafe side.
        model: the name for `sasa.load`, None for the default; used by the command line.
        embedding: layer, pooling, span, template.
        depth: replaces the embedding's layer in a recipe that serves any model: the share of the
            model's layers below it, in [0, 1]; or several.
        shrinkage: of the closed form: `auto`, or a number in [0, 1].
        calibration, test: shares of the groups of texts that are held out to calibrate the margin
            and to report on.
        prefixes: fits on every prefix of a text (of a pair, every prefix that ends within the
            response) with the text's label. So each token contributes to where a text is heading,
            which is what decoding asks. It steers better and needs no further forward pass; long
            texts count for more, and shrinkage counts every prefix as a sample.
        seed: of sampling with `limit`, and of the assignment of texts to the three parts.
        identity: the weight of the covariance that names of groups of people cause in harmless
            sentences (`sasa.fitting.identity`), beside the covariance within the classes. 0 leaves
            it out.
        people: a file of such sentences, in another language, say; None for those that ship with
            the package.
        own: the share of the fit, in [0, 1), that text written by the model itself has
            (`sasa.fitting.self_generated`). The model continues the openings of the texts, and a
            judge that is fitted on their scores labels the completions. Such a boundary steers
            further at less perplexity (benchmarks/NOTES.md). 0 fits on people's texts alone.
        audit: labelled sentences that name identity terms, for bias metrics
            (`sasa.fitting.fairness`).
    """

    corpora: tuple[Corpus, ...]
    attribute: str = "toxicity"
    model: str | None = None
    embedding: EmbeddingSpec = field(default_factory=EmbeddingSpec)
    depth: float | tuple[float, ...] | None = None
    shrinkage: float | str = "auto"
    calibration: float = 0.1
    test: float = 0.1
    prefixes: bool = False
    seed: int = 0
    identity: float = 0.0
    people: str | None = None
    own: float = 0.0
    audit: Corpus | None = None

    def __post_init__(self) -> None:
        check_beta(self.identity, "identity")
        if self.people is not None and not self.identity:
            raise ValueError(
                f"people = {self.people!r} is for identity, which is 0 here: set it, or leave "
                "people out"
            )
        if not 0 <= self.own < 1:
            raise ValueError(
                "own must be in [0, 1), the share of the model's own text in the fit, got "
                f"{self.own}"
            )
        if isinstance(self.depth, (list, tuple)):
            object.__setattr__(self, "depth", tuple(self.depth))
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError(
                f"depth must be in [0, 1], the share of the layers below, got {self.depth}"
            )
        self._check_template()
        if not self.corpora:
            raise ValueError("a fit needs at least one corpus")
        if not (self.calibration > 0 and self.test > 0 and self.calibration + self.test < 1):
            raise ValueError(
                "calibration and test must be > 0 and leave something to fit on, got "
                f"{self.calibration} and {self.test}"
            )

    def _check_template(self) -> None:
        if self.embedding.template != "chat":
            return
        if any(corpus.source == "hh-rlhf" for corpus in self.corpora):
            raise ValueError(
                "hh-rlhf has dialogues with turns of their own: it does not go with template='chat'"
            )
        if self.audit is not None:
            raise ValueError("an audit reads plain texts: it does not go with template='chat'")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`. Raises ValueError for a name or a value that is not allowed."""
        values = dict(values)
        names = {f.name for f in fields(cls)} - {"corpora"} | {"corpus"}
        if unknown := set(values) - names:
            raise ValueError(
                f"recipe: unknown {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(names))}"
            )
        try:
            corpora = tuple(Corpus(**corpus) for corpus in values.pop("corpus", ()))
            if "audit" in values:
                values["audit"] = Corpus(**values["audit"])
            embedding = EmbeddingSpec(**values.pop("embedding", {}))
            return cls(corpora, embedding=embedding, **values)
        except TypeError as error:
            raise ValueError(f"recipe: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Reads a TOML file, as `to_toml` writes it, or a recipe that ships with the package.

        Args:
            path: the file, or the attribute of one of `shipped_recipes`. Paths of corpora in the
                file are relative to the working directory.

        Raises:
            FileNotFoundError, ValueError: no such file, or it is no recipe; the message says why.
        """
        shipped = shipped_recipes()
        path = shipped.get(str(path), Path(path))
        if not path.is_file():
            raise FileNotFoundError(f"no recipe at {path}; by name there are: {', '.join(shipped)}")
        try:
            return cls.from_dict(tomllib.loads(path.read_text("utf-8-sig")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"recipe {path} is not valid TOML: {error}") from error

    @property
    def depths(self) -> tuple[float, ...]:
        if self.depth is None:
            return ()
        return self.depth if isinstance(self.depth, tuple) else (self.depth,)

    def for_model(self, model: PreTrainedModel) -> Recipe:
        """The recipe with the layers of this model that `depth` stands for."""
        if self.depth is None:
            return self
        count = ModelInfo.of(model).num_hidden_layers
        layers = tuple(round(depth * count) for depth in self.depths)
        return replace(self, embedding=replace(self.embedding, layer=layers), depth=None)

    def dimension(self, model: PreTrainedModel) -> int:
        """The number d of entries of this model's embeddings."""
        return ModelInfo.of(model).hidden_size * len(self.embedding.layers)

    def to_dict(self) -> dict[str, Any]:
        """The settings that are not None, False, or a strength of 0, as JSON and TOML take them."""
        settings: dict[str, Any] = {}
        for name in (f.name for f in fields(self) if f.name not in ("corpora", "embedding")):
            value = getattr(self, name)
            if value is None or value is False or (name in ("identity", "own") and not value):
                continue
            settings[name] = value.to_dict() if isinstance(value, Corpus) else value
        settings["embedding"] = self.embedding.to_dict()
        settings["corpus"] = [corpus.to_dict() for corpus in self.corpora]
        return settings

    def to_toml(self) -> str:
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    def part(self, group: str) -> Part:
        """The part that a group of texts belongs to, by its hash: a text is never in two parts."""
        digest = hashlib.blake2b(
            f"{self.seed}\0{group}".encode(errors="replace"), digest_size=8
        ).digest()
        share = int.from_bytes(digest, "big") / 2**64
        if share < self.test:
            return "test"
        return "calibration" if share < self.test + self.calibration else "fit"

    def examples(self, skipped: Counter[str] | None = None) -> Iterator[tuple[int, Example, int]]:
        """Yields (index of the corpus, example, label) of all texts outside the grey zone.

        The order is fixed. `skipped` counts the rows that are left out, by reason.
        """
        skipped = Counter() if skipped is None else skipped
        for index, corpus in enumerate(self.corpora):
            for example in corpus.examples(self.seed, skipped):
                label = corpus.label_of(example.score)
                if label is None:
                    skipped["grey zone"] += 1
                else:
                    yield index, example, label


def shipped_recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by attribute: Hub corpora, for any model."""
    folder = Path(__file__).parent.parent / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.toml")) if file != PEOPLE}
