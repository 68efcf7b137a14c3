"""Names of groups of people: a fit that makes little of them, and what steering takes from harmless
sentences that say them.

Both take sentences that differ in nothing but such a name (`sasa/recipes/people.toml`, or a file of
one's own in that form), beside those with the names of groups to which no prejudice clings, the
controls. The fit's sentences and the audit's are not the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.boundary import Boundary
from sasa.core.embedding_spec import EmbeddingSpec, Text
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
"""What the sentences reply to, where a boundary is for chats."""
OPENING = "\n"
"""What stands before them elsewhere: something must, for their first word to be drawn."""
TOP_K = 20
MAX_TOKENS = 4096
Use: TypeAlias = Literal["fit", "audit"]


@dataclass(frozen=True)
class Sentences:
    """Templates with {} where a name goes, names of groups, and of controls."""

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
        found = tuple(Sentences(**{k: tuple(v) for k, v in part.items()}) for part in content[use])
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{file}: expected [[fit]] and [[audit]] tables of templates, groups and controls ({error})"
        ) from error
    return found


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
    """How a group's name moves an embedding: the mean of (h - c)(h - c)^T, float64 (d, d).

    h is the embedding of a sentence with the group's name, c the mean of those with the controls', at
    the same place: each token from the name's last one on with `prefixes`, else the last.
    """
    size = model.config.get_text_config().hidden_size * len(spec.layers)
    total, count = torch.zeros(size, size, dtype=torch.float64), 0
    templates = [(part, template) for part in sentences for template in part.templates]
    with progress_bar("names of groups", progress) as bar:
        task = bar.add_task("names of groups", total=len(templates))
        for part, template in templates:
            encoded = [
                tokenize(tokenizer, _said(text, spec), spec) for text in part.filled(template)
            ]
            places = _common_ending([ids for ids, _ in encoded]) + 1 if prefixes else 1
            states = torch.empty(len(encoded), places, size)
            for batch in length_batches([len(ids) for ids, _ in encoded], batch_size, MAX_TOKENS):
                ids, starts = [encoded[i][0] for i in batch], [encoded[i][1] for i in batch]
                firsts = [len(each) - places for each in ids]
                ((_, vectors),) = embed_each_prefix(model, ids, [starts], [spec], firsts)
                states[torch.tensor(batch)] = vectors.cpu().view(len(batch), places, size)
            moved = (
                (states[: len(part.groups)] - states[len(part.groups) :].mean(0))
                .flatten(0, 1)
                .double()
            )
            total += moved.T @ moved
            count += len(moved)
            bar.advance(task)
    return (total / count).numpy()


@dataclass(frozen=True)
class About:
    """Sentences about people as a boundary reads them, to be taxed: `texts`, and of each its template's
    number, the name in it, whether that is a control, and its length in tokens.
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
        made = cls([], [], [], [], [])
        templates = [(part, template) for part in sentences for template in part.templates]
        for number, (part, template) in enumerate(templates):
            for name, sentence in zip(part.names, part.filled(template), strict=True):
                made.texts.append(_said(sentence, spec))
                made.templates.append(number)
                made.names.append(name)
                made.controls.append(name in part.controls)
                made.lengths.append(len(tokenize(tokenizer, made.texts[-1], spec)[0]))
        return made

    def figures(self, reading: Reading, steering: Steering) -> dict[str, Any]:
        """What is taken from these texts, by group: see `identity_tax`.

        Args:
            reading: of `texts`, by the boundaries of `steering`.
        """
        nats = reading.per_text(taxes(reading, steering), len(self.texts))[0].tolist()
        rows = list(zip(self.templates, self.names, self.controls, self.lengths, nats, strict=True))
        controls: dict[int, list[tuple[int, float]]] = {}
        for number, _, control, length, tax in rows:
            if control:
                controls.setdefault(number, []).append((length, tax))
        found: dict[str, list[tuple[float, float]]] = {}
        for number, name, control, length, tax in rows:
            if not control:
                beside = [one for same, one in controls[number] if same == length] or [
                    one for _, one in controls[number]
                ]
                found.setdefault(name, []).append((tax, tax - float(np.mean(beside))))
        groups = {
            name: {
                "sentences": len(pairs),
                "tax": float(np.mean([tax for tax, _ in pairs])),
                "beyond": float(np.mean([beyond for _, beyond in pairs])),
            }
            for name, pairs in found.items()
        }
        groups = dict(sorted(groups.items(), key=lambda item: -item[1]["beyond"]))
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
) -> dict[str, Any]:
    """What steering takes from harmless sentences that name groups of people, in nats a sentence.

    Args:
        sentences: those of the audit that ship with the package where None.

    Returns:
        `settings`; `controls`, the mean of the controls' sentences; for each of `groups` its number of
        `sentences`, their mean `tax`, and `beyond`: the mean difference to the controls with as many
        tokens in the same template, or to all of them where none has as many; `worst`, the group with
        the greatest.

    Raises:
        ValueError: a setting out of range, or a boundary for another model.
    """
    steering = Steering.of(boundary, beta, value, prior)
    about = About.of(
        load_people("audit") if sentences is None else sentences, tokenizer, boundary.embedding
    )
    reading = read(model, tokenizer, about.texts, boundary, top_k=top_k, progress=progress)
    return {
        "settings": {"beta": beta, "value": value, "prior": prior, "top_k": top_k}
    } | about.figures(reading, steering)


def _said(sentence: str, spec: EmbeddingSpec) -> Text:
    return (PROMPT if spec.template == "chat" else OPENING, sentence)


def _common_ending(texts: Sequence[Sequence[int]]) -> int:
    """How many of their last tokens all texts have in common; what differs is not part of it."""
    count, shortest = 0, min(map(len, texts))
    while count < shortest - 1 and len({text[-1 - count] for text in texts}) == 1:
        count += 1
    return count
