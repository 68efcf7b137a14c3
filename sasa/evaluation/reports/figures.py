"""The figures of a run, as they stand in summary.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

from sasa.evaluation.metrics import Estimate, PairedTest

ACTORS, ACTRESSES = "gender/American_actors", "gender/American_actresses"
OWN = "boundary"
"""The scorer that is the boundary which steered; its scores are no evidence of their own."""

T = TypeVar("T")


@dataclass(frozen=True)
class GroupToxicity:
    """The toxicity of one group of prompts.

    Attributes:
        prompts: their number.
        completion_toxic_rate: the share of toxic completions. It is BOLD's rate, which does not
            grow with the number of completions of a prompt.
        emt, toxic_rate, mean_toxicity: see `metrics.toxicity`.
    """

    prompts: int
    completion_toxic_rate: Estimate
    emt: Estimate
    toxic_rate: Estimate
    mean_toxicity: Estimate


@dataclass(frozen=True)
class Toxicity:
    """The toxicity of one method by one scorer.

    Attributes:
        emt, toxic_rate, mean_toxicity: see `metrics.toxicity`.
        groups: by group of prompts.
        domains: by the part of the groups' names before a slash, if they have one.
        gender_gap, gender_gap_mean: share of toxic completions, and mean toxicity, of BOLD's
            actors minus those of its actresses.
        against_plain: paired test of the highest scores.
    """

    emt: Estimate
    toxic_rate: Estimate
    mean_toxicity: Estimate
    groups: dict[str, GroupToxicity]
    domains: dict[str, GroupToxicity] | None = None
    gender_gap: Estimate | None = None
    gender_gap_mean: Estimate | None = None
    against_plain: PairedTest | None = None

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Toxicity:
        nested: dict[str, Any] = {
            key: {name: _known(GroupToxicity, group) for name, group in content[key].items()}
            for key in ("groups", "domains")
            if key in content
        }
        if "against_plain" in content:  # early reports lack `relative`
            nested["against_plain"] = {"relative": math.nan, **content["against_plain"]}
        return _known(cls, {**content, **nested})

    def emt_of(self, group: str) -> Estimate | None:
        """The expected maximum toxicity of a group or domain."""
        found = self.groups.get(group) or (self.domains or {}).get(group)
        return found.emt if found else None


@dataclass(frozen=True)
class MethodFigures:
    """The figures of one method.

    Attributes:
        figures: style, perplexity and what backtracking cost, by name.
        seconds_per_completion: None if no batch was timed.
        toxicity: by scorer.
        perplexity_by_group: under the generating model.
        sent_back_by_group: share of completions that were sent back; for backtracking methods.
        changes: relative, against plain.
    """

    figures: dict[str, Estimate]
    seconds_per_completion: float | None
    toxicity: dict[str, Toxicity]
    perplexity_by_group: dict[str, Estimate]
    sent_back_by_group: dict[str, float] | None = None
    changes: dict[str, Estimate] | None = None

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> MethodFigures:
        figures = dict(content["figures"])
        return cls(
            seconds_per_completion=figures.pop("seconds_a_completion"),
            figures=figures,
            toxicity={name: Toxicity.parse(one) for name, one in content["toxicity"].items()},
            perplexity_by_group=content.get("perplexity_by_group", {}),
            sent_back_by_group=content.get("sent_back_by_group"),
            changes=content.get("changes"),
        )

    def summary(self) -> dict[str, Any]:
        """The method's object in summary.json, with estimates as they are."""
        content: dict[str, Any] = {
            "figures": self.figures | {"seconds_a_completion": self.seconds_per_completion},
            "toxicity": _summary(self.toxicity),
            "perplexity_by_group": self.perplexity_by_group,
            "sent_back_by_group": self.sent_back_by_group,
            "changes": self.changes,
        }
        return {key: value for key, value in content.items() if value is not None}


@dataclass(frozen=True)
class SamplingSettings:
    """How the completions were sampled; see `sasa.evaluation.Settings`."""

    completions: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    chat: bool


@dataclass(frozen=True)
class RunFigures:
    """What a report shows of a run.

    Attributes:
        name: the folder's name, or its path if several have the same name.
        prompts, groups: the number of prompts, in all and by group.
        skipped: the number of prompts that were left out, by reason.
        model: its id.
        scorers: the version of each.
    """

    name: str
    suite: str
    source: str
    prompts: int
    groups: dict[str, int]
    skipped: dict[str, int]
    settings: SamplingSettings
    seed: int
    model: str
    dtype: str
    device: str
    scorers: dict[str, str]
    methods: dict[str, MethodFigures]

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> RunFigures:
        """Reads an object of `runs` in summary.json."""
        nested = {
            "settings": _known(SamplingSettings, content["settings"]),
            "model": content["model"]["id"],
            "methods": {
                name: MethodFigures.parse(method) for name, method in content["methods"].items()
            },
        }
        return _known(cls, {**content, **nested})

    @property
    def figure_names(self) -> list[str]:
        """The figures that any method has."""
        return list(dict.fromkeys(key for one in self.methods.values() for key in one.figures))


def _known(kind: type[T], content: Mapping[str, Any]) -> T:
    """A dataclass from the keys that are its fields."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in content.items() if key in names})


def _summary(content: Any) -> Any:
    """Dataclasses other than estimates as dictionaries, without the fields that are None."""
    if is_dataclass(content) and not isinstance(content, (type, Estimate)):
        content = {key: value for key, value in vars(content).items() if value is not None}
    if isinstance(content, dict):
        return {key: _summary(value) for key, value in content.items()}
    return content
