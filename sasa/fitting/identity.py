"""Names of groups of people: a fit whose margin depends little on them, and what steering takes
from harmless sentences that contain them (the identity tax).

Both use sentences that differ only in such a name (`sasa/recipes/people.toml`, or a user's file in
that form), and as controls the same sentences with names of groups that attract no prejudice. The
sentences of the fit and of the audit differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.boundary import Boundary
from sasa.core.embedding_spec import EmbeddingSpec, Text
from sasa.core.model_info import ModelInfo
from sasa.core.settings import BETA, PRIOR, VALUE
from sasa.core.values import Steering
from sasa.data.tables import local
from sasa.decoding.cost import Reading, read, taxes
from sasa.models.embedding import embed_each_prefix, length_batches, tokenize
from sasa.utils.progress import progress_bar

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PEOPLE = Path(__file__).parent.parent / "recipes" / "people.toml"
PROMPT = "Tell me about the people you know."
"""The prompt that the sentences reply to, for a boundary that reads chats."""
OPENING = "\n"
"""The text before the sentences otherwise: their first word needs one to be drawn after."""
TOP_K = 20
MAX_TOKENS = 4096
Use: TypeAlias = Literal["fit", "audit"]


@dataclass(frozen=True)
class Sentences:
    """Templates with {} in the place of a name, and names of groups and of controls."""

    templates: tuple[str, ...]
    groups: tuple[str, ...]
    controls: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("templates", "groups", "controls"):
            if not getattr(self, name):
                raise ValueError(f"sentences about people need {name}")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"a template has one {{}} where a group's name goes, got {template!r}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        return self.groups + self.controls

    def filled(self, template: str) -> list[str]:
        """One sentence for each of `names`."""
        return [
            template.format(name[0].upper() + name[1:] if template.startswith("{}") else name)
            for name in self.names
        ]


def load_people(use: Use, path: str | Path | None = None) -> tuple[Sentences, ...]:
    """The sentences of a TOML file; None for those that ship with the package, in English.

    Raises:
        FileNotFoundError, ValueError: no such file, or it has another form; the message says which.
    """
    file = local(path or PEOPLE)
    if not file.is_file():
        raise FileNotFoundError(f"no sentences about people at {file}")
    try:
        content = tomllib.loads(file.read_text("utf-8-sig"))
        return tuple(Sentences(**{k: tuple(v) for k, v in part.items()}) for part in content[use])
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{file}: expected [[fit]] and [[audit]] tables of templates, groups and controls "
            f"({error})"
        ) from error


def name_covariance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sentences],
    spec: EmbeddingSpec,
    *,
    prefixes: bool,
    batch_size: int = 64,
    progress: bool = False,
) -> NDArray[np.float64]:
    """The second moment of how a group's name moves an embedding, float64 (d, d).

    It is the mean of (h - c)(h - c)^T. h is the embedding of a sentence with the group's name, c
    the mean of those with the controls' names, both after the same token: the last one or, with
    `prefixes`, each from the last of the name on.
    """
    size = ModelInfo.of(model).hidden_size * len(spec.layers)
    total, count = torch.zeros(size, size, dtype=torch.float64), 0
    templates = [(part, template) for part in sentences for template in part.templates]
    with progress_bar("names of groups", progress) as bar:
        task = bar.add_task("names of groups", total=len(templates))
        for part, template in templates:
            encoded = [
                tokenize(tokenizer, _as_text(sentence, spec), spec)
                for sentence in part.filled(template)
            ]
            places = _common_ending([ids for ids, _ in encoded]) + 1 if prefixes else 1
            states = torch.empty(len(encoded), places, size)
            for batch in length_batches([len(ids) for ids, _ in encoded], batch_size, MAX_TOKENS):
                ids, starts = [encoded[i][0] for i in batch], [encoded[i][1] for i in batch]
                firsts = [len(each) - places for each in ids]
                ((_, vectors),) = embed_each_prefix(model, ids, [starts], [spec], firsts)
                states[torch.tensor(batch)] = vectors.cpu().view(len(batch), places, size)
            of_groups, of_controls = states.tensor_split([len(part.groups)])
            moved = (of_groups - of_controls.mean(0)).flatten(0, 1).double()
            total += moved.T @ moved
            count += len(moved)
            bar.advance(task)
    return (total / count).numpy()


class GroupTax(TypedDict):
    """What steering takes from the sentences with the name of one group.

    Attributes:
        sentences: their number.
        tax: their mean, in nats a sentence.
        beyond: the mean difference to the controls with as many tokens in the same template, or to
            all of its controls where none has as many.
    """

    sentences: int
    tax: float
    beyond: float


class WorstGroup(TypedDict):
    """The group with the greatest `beyond`."""

    group: str
    beyond: float


class TaxFigures(TypedDict):
    """What steering takes from sentences about people.

    Attributes:
        controls: the mean of the controls' sentences, in nats a sentence.
        worst: the group with the greatest difference to its controls.
        groups: by name, the greatest difference first.
    """

    controls: float
    worst: WorstGroup
    groups: dict[str, GroupTax]


class TaxSettings(TypedDict):
    """The steering whose tax is measured."""

    beta: float
    value: str
    prior: float
    top_k: int


class IdentityTax(TaxFigures):
    """What steering takes from sentences about people, with the settings of the steering."""

    settings: TaxSettings


@dataclass(frozen=True)
class About:
    """Sentences about people as a boundary reads them; each list has one entry for each sentence.

    Attributes:
        templates: the number of the sentence's template.
        names: the group's name in it.
        controls: whether that is a control.
        lengths: in tokens.
    """

    texts: list[Text]
    templates: list[int]
    names: list[str]
    controls: list[bool]
    lengths: list[int]

    @classmethod
    def of(
        cls, sentences: Sequence[Sentences], tokenizer: PreTrainedTokenizerBase, spec: EmbeddingSpec
    ) -> About:
        about = cls([], [], [], [], [])
        templates = [(part, template) for part in sentences for template in part.templates]
        for number, (part, template) in enumerate(templates):
            for name, sentence in zip(part.names, part.filled(template), strict=True):
                text = _as_text(sentence, spec)
                about.texts.append(text)
                about.templates.append(number)
                about.names.append(name)
                about.controls.append(name in part.controls)
                about.lengths.append(len(tokenize(tokenizer, text, spec)[0]))
        return about

    def figures(self, reading: Reading, steering: Steering) -> TaxFigures:
        """What steering takes from these texts, by group.

        Args:
            reading: of `texts`, by the boundaries of `steering`.
        """
        nats = reading.per_text(taxes(reading, steering), len(self.texts))[0].tolist()
        rows = list(zip(self.templates, self.names, self.controls, self.lengths, nats, strict=True))
        controls: dict[int, list[tuple[int, float]]] = defaultdict(list)  # length, tax
        for template, _, control, length, tax in rows:
            if control:
                controls[template].append((length, tax))
        pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)  # tax, beyond
        for template, name, control, length, tax in rows:
            if not control:
                same_length = [other for size, other in controls[template] if size == length]
                others = same_length or [other for _, other in controls[template]]
                pairs[name].append((tax, tax - float(np.mean(others))))
        by_name = {
            name: GroupTax(
                sentences=len(of_name),
                tax=float(np.mean([tax for tax, _ in of_name])),
                beyond=float(np.mean([beyond for _, beyond in of_name])),
            )
            for name, of_name in pairs.items()
        }
        groups = dict(sorted(by_name.items(), key=lambda item: -item[1]["beyond"]))
        worst = next(iter(groups))
        return {
            "controls": float(np.mean([tax for each in controls.values() for _, tax in each])),
            "worst": {"group": worst, "beyond": groups[worst]["beyond"]},
            "groups": groups,
        }


def identity_tax(
    boundary: Boundary,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sentences] | None = None,
    *,
    beta: float = BETA,
    value: str = VALUE,
    prior: float = PRIOR,
    top_k: int = TOP_K,
    progress: bool = False,
) -> IdentityTax:
    """What steering takes from harmless sentences that name groups of people, in nats a sentence.

    Args:
        sentences: None for those of the audit that ship with the package.

    Raises:
        ValueError: a setting out of range, or a boundary for another model.
    """
    steering = Steering.of(boundary, beta, value, prior)
    about = About.of(
        load_people("audit") if sentences is None else sentences, tokenizer, boundary.embedding
    )
    reading = read(model, tokenizer, about.texts, boundary, top_k=top_k, progress=progress)
    settings = TaxSettings(beta=beta, value=value, prior=prior, top_k=top_k)
    return {"settings": settings, **about.figures(reading, steering)}


def _as_text(sentence: str, spec: EmbeddingSpec) -> Text:
    return (PROMPT if spec.template == "chat" else OPENING, sentence)


def _common_ending(texts: Sequence[Sequence[int]]) -> int:
    """The number of last tokens that all texts share; at least one token of each is not counted."""
    count, shortest = 0, min(map(len, texts))
    while count < shortest - 1 and len({text[-1 - count] for text in texts}) == 1:
        count += 1
    return count
