"""fit_boundary(): corpora -> embeddings -> boundary -> calibration -> held-out report.

Every text is read once. What is kept is O(d^2) statistics in memory and, on disk, the embeddings of the held-out tenth
or two; both are saved as the fit goes on, so that a fit that is killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sklearn
import torch
import transformers
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    roc_auc_score,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.boundary import Boundary
from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.model_info import ModelInfo
from sasa.core.settings import check_beta
from sasa.core.shipped import FILE_NAME
from sasa.data.corpus import Corpus, Example
from sasa.fitting import fairness
from sasa.fitting.discriminant import GaussianStatistics, linear_discriminant
from sasa.fitting.identity import PEOPLE, identity_tax, load_people, name_covariance
from sasa.fitting.self_generated import Sources, own_statistics
from sasa.models.embedding import embed_stream
from sasa.models.states import check_ready
from sasa.utils.files import differences, read_json, write_atomically
from sasa.utils.jsonl import LOCK, alone
from sasa.utils.parallel import Spread, here
from sasa.utils.progress import progress_bar

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

WINDOW = 1024
"""Texts between two moments at which a fit can be saved."""
Part = Literal["fit", "calibration", "test"]
PARTS: tuple[Part, ...] = ("fit", "calibration", "test")


@dataclass(frozen=True)
class Recipe:
    """All that determines a fit: the same recipe on the same model gives the same boundary.

    Attributes:
        corpora: what to fit on.
        attribute: what the unsafe side is called.
        model: the name for `sasa.load`, None for the default; used by the command line.
        embedding: layer, pooling, span, template.
        depth: in place of the embedding's layer, for a recipe that serves any model: the share of the model's layers below
            it, in [0, 1]; or several.
        shrinkage: of the closed form: `auto`, or a number in [0, 1].
        calibration, test: shares of the groups of texts held out to calibrate the margin and to report on.
        prefixes: fits on every prefix of a text, of a pair every one that ends within the response, with the text's label:
            each token's part in where a text is heading. That is what decoding asks. It steers better and takes no further
            forward pass; long texts count for more, and shrinkage counts every prefix as a sample.
        seed: of sampling with `limit`, and of the assignment of texts to the three parts.
        identity: how dearly the fit pays for a margin that moves with the names of groups in harmless sentences
            (`sasa.fitting.identity`): their covariance counts so many times beside that within the classes. 0 does not care.
        people: a file of such sentences, in another language, say; None for those that ship with the package.
        own: share of the fit, in [0, 1), that what the model itself writes has (`sasa.fitting.self_generated`): it goes on from the
            openings of the texts, and a judge that has learnt from their scores labels what it wrote. Steering by
            it does more to what the model writes, for less perplexity (benchmarks/NOTES.md). 0 fits on people's texts alone.
        audit: labelled sentences that name identity terms, to measure on how the boundary treats them (`sasa.fitting.fairness`).
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
                f"people = {self.people!r} is for identity, which is 0 here: set it, or leave people out"
            )
        if not 0 <= self.own < 1:
            raise ValueError(
                f"own must be in [0, 1), the share of the model's own text in the fit, got {self.own}"
            )
        if isinstance(self.depth, (list, tuple)):
            object.__setattr__(self, "depth", tuple(self.depth))
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError(
                f"depth must be in [0, 1], the share of the layers below, got {self.depth}"
            )
        if self.embedding.template == "chat" and any(
            corpus.source == "hh-rlhf" for corpus in self.corpora
        ):
            raise ValueError(
                "hh-rlhf has dialogues with turns of their own: it does not go with template='chat'"
            )
        if self.audit is not None and self.embedding.template == "chat":
            raise ValueError("an audit reads plain texts: it does not go with template='chat'")
        if not self.corpora:
            raise ValueError("a fit needs at least one corpus")
        if not (self.calibration > 0 and self.test > 0 and self.calibration + self.test < 1):
            raise ValueError(
                f"calibration and test must be > 0 and leave something to fit on, got {self.calibration} and {self.test}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
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
        """From a TOML file, as `to_toml` writes it, or one that ships with the package, by its attribute: `shipped_recipes`.

        Paths of corpora are relative to the working directory.

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
        return (
            ()
            if self.depth is None
            else self.depth
            if isinstance(self.depth, tuple)
            else (self.depth,)
        )

    def for_model(self, model: PreTrainedModel) -> Recipe:
        """The recipe with the layer that `depth` means in this model."""
        if self.depth is None:
            return self
        layers = tuple(
            round(depth * ModelInfo.of(model).num_hidden_layers) for depth in self.depths
        )
        return replace(self, embedding=replace(self.embedding, layer=layers), depth=None)

    def to_dict(self) -> dict[str, Any]:
        own = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("corpora", "embedding")
        }
        own = {
            name: value for name, value in own.items() if value is not None and value is not False
        }
        for name in ("identity", "own"):
            if not own[name]:
                del own[name]
        if self.audit is not None:
            own["audit"] = self.audit.to_dict()
        return own | {
            "embedding": self.embedding.to_dict(),
            "corpus": [corpus.to_dict() for corpus in self.corpora],
        }

    def to_toml(self) -> str:
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    def part(self, group: str) -> Part:
        """Which part a group of texts belongs to: by its hash, so that a text never lies in two parts."""
        digest = hashlib.blake2b(
            f"{self.seed}\0{group}".encode(errors="replace"), digest_size=8
        ).digest()
        share = int.from_bytes(digest, "big") / 2**64
        if share < self.test:
            return "test"
        return "calibration" if share < self.test + self.calibration else "fit"

    def examples(self, skipped: Counter[str] | None = None) -> Iterator[tuple[int, Example, int]]:
        """(index of the corpus, example, label) of all texts outside the grey zone, in a fixed order."""
        skipped = Counter() if skipped is None else skipped
        for index, corpus in enumerate(self.corpora):
            for example in corpus.examples(self.seed, skipped):
                label = corpus.label_of(example.score)
                if label is None:
                    skipped["grey zone"] += 1
                else:
                    yield index, example, label


def shipped_recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by what they find: corpora of the Hub, for any model."""
    folder = Path(__file__).parent.parent / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.toml")) if file != PEOPLE}


def fit_boundary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    classifier: ClassifierMixin | None = None,
    batch_size: int = 64,
    save_every: float = 30.0,
    progress: bool = False,
    spread: Spread | None = None,
) -> Boundary:
    """Fits, calibrates and tests a boundary (Ko et al. 2025, section 3.2).

    Args:
        recipe: the corpora, the embedding and the split.
        output: a folder for the boundary, its recipe and card. An unfinished fit is kept there and taken up again by
            the same call. Where None, nothing is kept but what is returned.
        classifier: an unfitted scikit-learn linear classifier to use in place of the closed form. It needs the
            embeddings of all texts, or of all prefixes, at once, O(N d) memory.
        save_every: seconds between two saves of an unfinished fit.
        spread: reads and writes texts elsewhere, by the same model (`sasa.serving.ray`); None does it here. The result is
            the same to the last bit, wherever the arithmetic is.

    Returns:
        the boundary; `report` holds counts and held-out metrics.

    Raises:
        ValueError: one class only, a bad label, a folder with another recipe's unfinished fit, a boundary without
            signal, or too little of the model's own text of one class. All but the last two before anything is embedded.
        BlockingIOError: another process fits in the same folder.
    """
    recipe = recipe.for_model(model)
    check_ready(model, *recipe.embedding.layers)
    if classifier is None:
        linear_discriminant_check(recipe.shrinkage)
    sentences = fairness.read(recipe.audit, recipe.seed) if recipe.audit is not None else None
    named = (
        {use: load_people(use, recipe.people) for use in ("fit", "audit")}
        if recipe.identity
        else {}
    )
    for name in ("identity", "own"):
        if getattr(recipe, name) and classifier is not None:
            raise ValueError(f"{name} goes with the closed form, not with another classifier")
    counts, skipped, content = survey(recipe)
    sources = Sources.of(recipe) if recipe.own else None
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(output) if output is not None else Path(scratch)
        unfinished = folder / ".fit"
        unfinished.mkdir(parents=True, exist_ok=True)
        stack.enter_context(alone(unfinished))
        work = Workspace.open(unfinished, recipe, content, model, classifier)
        _embed_all(
            spread,
            model,
            tokenizer,
            recipe,
            work,
            sum(counts.values()),
            batch_size,
            save_every,
            progress,
        )
        statistics, own, nuisance = work.statistics, None, None
        if sources:
            work.save(sum(counts.values()))  # writing takes longer than reading
            found, own = own_statistics(
                *(model, tokenizer, recipe, sources, work.folder / "own.jsonl"),
                spread=spread,
                batch_size=batch_size,
                progress=progress,
            )
            statistics = statistics.blended(found, recipe.own)
        if recipe.identity:
            nuisance = recipe.identity * name_covariance(
                *(model, tokenizer, named["fit"], recipe.embedding),
                prefixes=recipe.prefixes,
                batch_size=batch_size,
                progress=progress,
            )
        weight, bias, settings = _separate(work, statistics, recipe, classifier, nuisance)
        held_out = {part: work.spilled(part) for part in ("calibration", "test")}
        margins = {part: _margins(rows, weight, bias) for part, rows in held_out.items()}
        scale, shift = calibrate(margins["calibration"], held_out["calibration"][:, 0])
        labels, index = held_out["test"][:, 0], held_out["test"][:, 1]
        by_corpus = {
            f"{number}: {corpus.source}": metrics(
                margins["test"][index == number], labels[index == number], scale, shift
            )
            for number, corpus in enumerate(recipe.corpora)
        }
        report = {
            "test": metrics(margins["test"], labels, scale, shift),
            "test_by_corpus": by_corpus,
            "texts": {
                f"{part}_{name}": counts[part, c]
                for part in PARTS
                for c, name in ((1, "safe"), (0, "unsafe"))
            },
            "skipped": dict(skipped),
            **settings,
            "recipe": recipe.to_dict(),
            "versions": {
                "sasa-decoding": version("sasa-decoding"),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "scikit-learn": sklearn.__version__,
            },
        }
        if own:
            report["own"] = own
        boundary = Boundary(
            weight=torch.tensor(weight, dtype=torch.float32),
            bias=bias,
            embedding=recipe.embedding,
            model=ModelInfo.of(model),
            scale=scale,
            shift=shift,
            attribute=recipe.attribute,
            report=report,
        )
        if sentences:
            report["audit"] = fairness.audit(
                *(boundary, model, tokenizer, sentences), batch_size=batch_size, progress=progress
            )
        if named:
            report["identity_tax"] = identity_tax(
                boundary, model, tokenizer, named["audit"], progress=progress
            )
        if output is not None:
            from sasa.fitting.card import card, plot

            write_atomically(folder / "recipe.toml", recipe.to_toml())
            plotted = plot(folder / "margins.png", margins["test"], labels, scale, shift)
            write_atomically(folder / "README.md", card(boundary, plotted))
            boundary.save(folder / FILE_NAME)  # last: where it is, the rest is
            work.remove()
    return boundary.to(model.device)


def linear_discriminant_check(shrinkage: float | str) -> None:
    """Raises ValueError for a shrinkage out of range, before any text is read."""
    linear_discriminant(GaussianStatistics(np.full(2, 2.0), np.zeros((2, 1)), np.eye(1)), shrinkage)


def survey(recipe: Recipe) -> tuple[Counter[tuple[str, int]], Counter[str], str]:
    """Counts the texts by (part, label), and what is skipped by reason, without a model; last, a hash of it all.

    Raises:
        ValueError: a bad label, a plain text where the chat template needs a pair, or a part that lacks a class.
    """
    counts: Counter[tuple[str, int]] = Counter()
    skipped: Counter[str] = Counter()
    content = hashlib.blake2b(digest_size=8)
    for index, example, label in recipe.examples(skipped):
        if recipe.embedding.template == "chat" and isinstance(example.text, str):
            source = recipe.corpora[index].source
            raise ValueError(
                f"template='chat' needs (prompt, response) pairs, and corpus {source} has plain texts"
            )
        counts[recipe.part(example.group), label] += 1
        content.update(repr((index, example.text, label)).encode(errors="replace"))
    for part in PARTS:
        safe, unsafe = counts[part, 1], counts[part, 0]
        if min(safe, unsafe) < 2:
            total = sum(counts[p, 1] for p in PARTS), sum(counts[p, 0] for p in PARTS)
            raise ValueError(
                f"the corpora hold {total[0]} safe and {total[1]} unsafe texts, of which {safe} and {unsafe} fall into the "
                f"{part} part: each part needs two of either class. Give more texts of both classes"
                + (f" (left out: {dict(skipped)})" if skipped else "")
            )
    return counts, skipped, content.hexdigest()


AFTERWARDS = ("shrinkage", "attribute", "audit", "identity", "people", "own")
"""Settings that say what is done once the texts are read."""


class Workspace:
    """An unfinished fit on disk: the statistics, the held-out embeddings, and how many texts they stand for.

    The state file is the last to be written and says how much of every other file counts.
    """

    def __init__(
        self, folder: Path, dimension: int, spills: tuple[Part, ...], settings: dict[str, Any]
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.dimension = dimension
        self.spills = spills
        self.done = self.added = (
            0  # texts that count if the fit is stopped, and texts that have been taken in
        )
        self.rows = dict.fromkeys(spills, 0)
        self.statistics = GaussianStatistics.empty(dimension)

    @classmethod
    def open(
        cls,
        folder: Path,
        recipe: Recipe,
        content: str,
        model: PreTrainedModel,
        classifier: ClassifierMixin | None,
    ) -> Workspace:
        """A new workspace, or the one that an earlier call with the same settings has left."""
        spills: tuple[Part, ...] = ("calibration", "test") if classifier is None else PARTS
        settings = {
            "recipe": recipe.to_dict() | dict.fromkeys(AFTERWARDS),
            "texts": content,
            "model": ModelInfo.of(model).id,
            "dtype": str(model.dtype),
            "spills": list(spills),
        }
        settings = json.loads(json.dumps(settings))  # as they come back from the file
        work = cls(
            folder, ModelInfo.of(model).hidden_size * len(recipe.embedding.layers), spills, settings
        )
        state = folder / "state.json"
        if state.is_file():
            saved = read_json(state)
            if different := differences(saved["settings"], settings):
                raise ValueError(
                    f"{folder} holds an unfinished fit with other settings ({'; '.join(different)}): delete it to begin anew"
                )
            work.done, work.rows = saved["done"], saved["rows"]
            work.added = work.done
            if work.done:
                work.statistics = GaussianStatistics.load(
                    folder / f"statistics-{work.done}.safetensors"
                )
            for part in spills:  # rows that were written after the last save are read again
                with open(work._file(part), "ab") as file:
                    if file.tell() < work.rows[part] * work._row_bytes:
                        raise ValueError(
                            f"{work._file(part)} has lost rows: delete {folder} to begin anew"
                        )
                    file.truncate(work.rows[part] * work._row_bytes)
        else:  # what a fit left that was never saved does not count
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.iterdir():
                if left.name != LOCK:
                    left.unlink()
        return work

    @property
    def _row_bytes(self) -> int:
        return 4 * (self.dimension + 2)

    def _file(self, part: Part) -> Path:
        return self.folder / f"{part}.f32"

    def add(self, window: Read) -> None:
        """Takes in what a window of texts has given: statistics into memory, embeddings to disk."""
        self.statistics.merge(window.statistics)
        for part, batches in window.rows.items():
            with open(self._file(part), "ab") as file:
                for rows in batches:
                    file.write(rows.tobytes())
                    self.rows[part] += len(rows)
        self.added += WINDOW

    def save(self, done: int) -> None:
        """Makes all that was added so far count, at `done` texts of the stream."""
        for part in self.spills:
            with open(self._file(part), "ab") as file:
                os.fsync(file.fileno())
        write_atomically(self.folder / f"statistics-{done}.safetensors", self.statistics.to_bytes())
        state = {"settings": self.settings, "done": done, "rows": self.rows}
        write_atomically(self.folder / "state.json", json.dumps(state))
        if self.done < done:
            (self.folder / f"statistics-{self.done}.safetensors").unlink(missing_ok=True)
        self.done = done

    def remove(self) -> None:
        """Removes the workspace: first what makes the rest count."""
        (self.folder / "state.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    def spilled(self, part: Part) -> np.ndarray:
        """Rows (N, 2 + d) of label, corpus and embedding, float32, mapped from disk."""
        return np.memmap(self._file(part), np.float32, "r").reshape(-1, self.dimension + 2)


Window = list[tuple[int, Example, int]]
"""Texts, each with the index of its corpus and its label."""


@dataclass
class Read:
    """What one window of texts gives a fit.

    Attributes:
        statistics: of the vectors to be fitted on, unless they are kept as rows.
        rows: of parts that are kept, float32 (n, 2 + d): label, corpus and embedding.
    """

    statistics: GaussianStatistics
    rows: dict[Part, list[np.ndarray]]


def read_window(
    recipe: Recipe,
    spills: tuple[Part, ...],
    batch_size: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    window: Window,
    advance: Callable[[int], object] | None = None,
) -> Read:
    """Embeds a window of texts.

    Args:
        spills: the parts whose embeddings are kept.
        advance: is called with how many more texts have been read.
    """
    found = Read(
        GaussianStatistics.empty(ModelInfo.of(model).hidden_size * len(recipe.embedding.layers)), {}
    )
    stream = embed_stream(
        *(model, tokenizer, [example.text for _, example, _ in window], recipe.embedding),
        batch_size=batch_size,
        window=WINDOW,
        prefixes=recipe.prefixes,
    )
    for indices, vectors in stream:
        part_of = {i: recipe.part(window[i][1].group) for i in set(indices)}
        parts = [part_of[i] for i in indices]
        whole = [i != after for i, after in pairwise([*indices, -1])]
        # Prefixes are there to be fitted on; what is held out are whole texts.
        kept = [n for n, part in enumerate(parts) if part == "fit" or whole[n]]
        array, where = vectors[kept].cpu().numpy(), np.array([parts[n] for n in kept])
        label = np.array([window[indices[n]][2] for n in kept])
        corpus = np.array([window[indices[n]][0] for n in kept])
        for part in PARTS:
            if not (mine := where == part).any():
                continue
            if part in spills:
                rows = np.column_stack([label[mine], corpus[mine], array[mine]]).astype(np.float32)
                found.rows.setdefault(part, []).append(rows)
            else:
                found.statistics.partial_fit(array[mine], label[mine])
        if advance is not None:
            advance(sum(whole))
    return found


def _embed_all(
    spread: Spread | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    work: Workspace,
    total: int,
    batch_size: int,
    save_every: float,
    progress: bool,
) -> None:
    stream = islice(
        recipe.examples(), work.done, None
    )  # what comes before was read before the fit was stopped
    windows = iter(lambda: list(islice(stream, WINDOW)), [])
    saved = time.monotonic()
    with progress_bar("embedding", progress) as bar:
        bar_task = bar.add_task("embedding", total=total, completed=work.done)
        read = partial(read_window, recipe, work.spills, batch_size)
        if spread is None:
            read = partial(read, advance=partial(bar.advance, bar_task))
        for found in (spread or here(model, tokenizer))(read, windows):
            work.add(found)
            done = min(total, work.added)
            bar.update(bar_task, completed=done)
            if time.monotonic() - saved >= save_every:
                work.save(done)
                saved = time.monotonic()


def _separate(
    work: Workspace,
    statistics: GaussianStatistics,
    recipe: Recipe,
    classifier: ClassifierMixin | None,
    nuisance: np.ndarray | None,
) -> tuple[np.ndarray, float, dict[str, Any]]:
    """The weight (d,) and bias whose margin is positive on the safe side, and how they were found."""
    if classifier is None:
        weight, bias, shrinkage = linear_discriminant(statistics, recipe.shrinkage, nuisance)
        return weight, bias, {"classifier": "bayes", "shrinkage": shrinkage}
    rows = work.spilled("fit")
    classifier.fit(rows[:, 2:], rows[:, 0])
    if not hasattr(classifier, "coef_") or np.shape(classifier.coef_) != (1, work.dimension):
        raise ValueError(
            f"{type(classifier).__name__} is not a linear classifier of two classes: it has no coef_ of shape (1, d)"
        )
    return (
        np.asarray(classifier.coef_[0], np.float64),
        float(np.ravel(classifier.intercept_)[0]),
        {"classifier": str(classifier)},
    )


def _margins(rows: np.ndarray, weight: np.ndarray, bias: float) -> np.ndarray:
    return np.concatenate(
        [rows[i : i + 4096, 2:] @ weight + bias for i in range(0, len(rows), 4096)]
    )


def calibrate(margins: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Scale and shift that make margins log-odds of safe (Platt 1999), both classes weighing the same.

    Raises:
        ValueError: larger margins do not mean safer texts here: the boundary has no signal.
    """
    spread = float(margins.std()) or 1.0
    platt = LogisticRegression(C=1e3, class_weight="balanced").fit(
        margins[:, None] / spread, labels
    )
    scale, shift = float(platt.coef_[0, 0] / spread), float(platt.intercept_[0])
    if scale <= 0:
        auc = roc_auc_score(labels, margins)
        raise ValueError(
            f"the boundary does not separate the calibration texts (AUC {auc:.2f}): check the labels, or fit on more texts"
        )
    return scale, shift


def metrics(
    margins: np.ndarray, labels: np.ndarray, scale: float, shift: float
) -> dict[str, float | int]:
    """Held-out figures; unsafe is the class to be found. Accuracy, too, is that of the calibrated margin.

    The expected calibration error weighs both classes the same, as the calibration does.
    """
    counts: dict[str, float | int] = {
        "safe": int((labels == 1).sum()),
        "unsafe": int((labels == 0).sum()),
    }
    if not all(counts.values()):
        return counts
    log_odds = scale * margins + shift
    return {
        "auc": float(roc_auc_score(labels == 0, -margins)),
        "average_precision": float(average_precision_score(labels == 0, -margins)),
        "accuracy": float(accuracy_score(labels == 1, log_odds > 0)),
        "balanced_accuracy": float(balanced_accuracy_score(labels == 1, log_odds > 0)),
        "ece": expected_calibration_error(1 / (1 + np.exp(-log_odds)), labels),
        **counts,
    }


def expected_calibration_error(
    probability: np.ndarray, labels: np.ndarray, bins: int = 10
) -> float:
    """Mean |confidence - frequency| over equally wide bins of P(safe), both classes weighing the same (Guo et al. 2017)."""
    weight = np.where(
        labels == 1, 0.5 / max(1, (labels == 1).sum()), 0.5 / max(1, (labels == 0).sum())
    )
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weight * (probability - labels), bins)
    return float(np.abs(gaps).sum())
