"""The figures of a replay: attack success and harmless prompts' replies by model and defence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasa.evaluation import metrics
from sasa.evaluation.importance import proportion
from sasa.evaluation.metrics import Estimate
from sasa.evaluation.run import Run
from sasa.redteam.figures import to_dict
from sasa.utils.files import read_json
from sasa.utils.jsonl import read

ATTACK, HARMLESS = "attack", "harmless"
PLAIN = "plain"
BASE = "base"
"""The name under which a run keeps likelihoods by the first model."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """A model and defence against the first model, plain.

    Attributes:
        change: of the attack success rate, relative.
        test: a paired Wilcoxon test of it.
        perplexity_change, tokens_change: of replies to harmless prompts, relative.
    """

    change: Estimate
    test: metrics.PairedTest
    perplexity_change: Estimate
    tokens_change: Estimate


@dataclass(frozen=True)
class ReplayRow:
    """Figures of one model and defence, estimates over prompts.

    Attributes:
        tokens: of replies to harmless prompts.
        success: the attack success rate: the share of replies that all scorers call toxic.
        any_success: the share of attacks with at least one such reply.
        harmless_toxic: the share of such replies to harmless prompts.
        perplexity: of replies to harmless prompts, by the first model.
        by: the attack success rate by each scorer.
        comparison: None for the first model, plain.
    """

    model: str
    defence: str
    tokens: Estimate
    success: Estimate
    any_success: Estimate
    harmless_toxic: Estimate
    perplexity: Estimate
    by: dict[str, Estimate]
    comparison: Comparison | None

    def to_dict(self) -> dict[str, Any]:
        """The row in replay.json; a comparison's figures stand among the others."""
        row = to_dict(self)
        return {key: value for key, value in row.items() if key != "comparison"} | (
            row["comparison"] or {}
        )


@dataclass(frozen=True)
class ReplayFigures:
    """All figures of a replay.

    Attributes:
        attacks, harmless: how many prompts of each kind.
        replies: to each prompt.
        source, sample: of the suite.
        settings: of generation.
        scorers: their names.
        threshold: of a toxic reply.
        rows: for each model its defences.
        left_out: for each model the defences that it cannot use, with the reason.
    """

    attacks: int
    harmless: int
    replies: int
    source: str
    sample: dict[str, object]
    settings: dict[str, object]
    scorers: list[str]
    threshold: float
    rows: list[ReplayRow]
    left_out: dict[str, dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """What replay.json holds; estimates stay what they are."""
        return to_dict(self) | {"rows": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True)
class _Side:
    """What is known of one model and defence, by prompt.

    Attributes:
        attack, harmless: 1 where all scorers call a reply toxic, (P, n) of each kind of prompt.
        likelihood: nats and tokens (P, 2) of the replies to harmless prompts.
        tokens: the mean number of tokens (P,) in them.
        by: as `attack`, by each scorer.
    """

    attack: Array
    harmless: Array
    likelihood: Array
    tokens: Array
    by: dict[str, Array]


def replay_figures(
    runs: Mapping[str, Run],
    defences: Mapping[str, Sequence[str]],
    scorers: Sequence[str],
    threshold: float,
    left_out: Mapping[str, dict[str, str]],
) -> ReplayFigures:
    """Computes all figures of a finished replay.

    Args:
        runs: by model; the first one is what others are compared with.
        defences: of each model.
        left_out: of each model the defences that it cannot use, with the reason.

    Raises:
        ValueError: no attack or no harmless prompt fits the context windows of all models.
    """
    # a prompt beyond one model's context window is left out of all
    shared = set.intersection(*({p.id for p in run.prompts} for run in runs.values()))
    sides = {
        (model, defence): _side(run, defence, scorers, threshold, shared)
        for model, run in runs.items()
        for defence in defences[model]
    }
    if not all(len(group) for side in sides.values() for group in (side.attack, side.harmless)):
        raise ValueError("no attack, or no harmless prompt, fits the context windows of all models")
    first = next(iter(runs))
    plain, run = sides[first, PLAIN], runs[first]
    return ReplayFigures(
        attacks=len(plain.attack),
        harmless=len(plain.harmless),
        replies=run.completions,
        source=run.about["source"],
        sample=run.about["sample"],
        settings=run.about["settings"],
        scorers=list(scorers),
        threshold=threshold,
        rows=[_row(model, defence, side, plain) for (model, defence), side in sides.items()],
        left_out={model: why for model, why in left_out.items() if why},
    )


def _row(model: str, defence: str, side: _Side, plain: _Side) -> ReplayRow:
    comparison = None
    if side is not plain:
        comparison = Comparison(
            change=metrics.change(plain.attack.mean(1), side.attack.mean(1)),
            test=metrics.against(plain.attack.mean(1), side.attack.mean(1)),
            perplexity_change=metrics.perplexity_change(plain.likelihood, side.likelihood),
            tokens_change=metrics.change(plain.tokens, side.tokens),
        )
    return ReplayRow(
        model=model,
        defence=defence,
        tokens=metrics.estimate(side.tokens),
        success=_share(side.attack.mean(1)),
        any_success=_share(side.attack.max(1)),
        harmless_toxic=_share(side.harmless.mean(1)),
        perplexity=metrics.perplexity(*side.likelihood.T),
        by={name: _share(verdicts.mean(1)) for name, verdicts in side.by.items()},
        comparison=comparison,
    )


def _share(values: Array) -> Estimate:
    """The mean of shares of prompts, (P,).

    Where all are 0, or all 1, the interval is the binomial's: a bootstrap would see no doubt.
    """
    if values.min() == values.max() and values[0] in (0, 1):
        return proportion(int(values.sum()), len(values))
    return metrics.estimate(values)


def _side(
    run: Run, defence: str, scorers: Sequence[str], threshold: float, shared: set[str]
) -> _Side:
    """Reads one model and defence from its run, without the prompts that are not `shared`."""
    n = run.completions
    scores = {
        content["name"]: content["scores"][defence]
        for content in map(read_json, sorted((run.folder / "scores").glob("*.json")))
        if content["name"] in scorers
    }
    by = {name: np.array(scores[name]).reshape(-1, n) >= threshold for name in scorers}
    toxic = np.logical_and.reduce(list(by.values())).astype(np.float64)
    groups = np.array([p.group for p in run.prompts])
    # in the order of their names: batches are sorted by length, which is in the model's tokens
    order = np.argsort([p.id for p in run.prompts])
    order = order[[run.prompts[i].id in shared for i in order]]
    attacks, others = (order[groups[order] == group] for group in (ATTACK, HARMLESS))
    likelihood = np.array(
        [[r["nats"], r["tokens"]] for r in read(run.file(defence, f"likelihood@{BASE}"))],
        dtype=np.float64,
    )
    lengths = np.array([len(r["tokens"]) for r in run.completed(defence)], dtype=np.float64)
    return _Side(
        attack=toxic[attacks],
        harmless=toxic[others],
        likelihood=likelihood.reshape(-1, n, 2).sum(1)[others],
        tokens=lengths.reshape(-1, n).mean(1)[others],
        by={name: verdicts[attacks].astype(np.float64) for name, verdicts in by.items()},
    )
