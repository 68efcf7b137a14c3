"""Computes the figures of a run from its completions, likelihoods and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasa.evaluation import metrics
from sasa.evaluation.metrics import Array, Estimate
from sasa.evaluation.reports.figures import (
    ACTORS,
    ACTRESSES,
    OWN,
    GroupToxicity,
    MethodFigures,
    Toxicity,
)
from sasa.evaluation.run import Run, StoredScores

STYLE = ("distinct_1", "distinct_2", "repetition", "tokens")
"""Figures whose change against plain is shown: a method may lower toxicity by shorter, emptier or
more monotonous text."""
BACKTRACKING = ("backtrack", "sasa+backtrack", "reset")
"""Methods that discard some of what they wrote."""


@dataclass(frozen=True)
class Measurements:
    """Measurements of one method's completions: n of each of P prompts.

    Attributes:
        style: see `metrics.style`, each (P,).
        delivered, drawn: tokens of a prompt's completions, and tokens drawn for them, each (P,).
        sent_back: completions that were sent back at least once, (P, n).
        likelihoods: nats and tokens, (P, n, 2), by `perplexity` or `perplexity@JUDGE`.
    """

    style: dict[str, Array]
    delivered: Array
    drawn: Array
    sent_back: NDArray[np.bool_]
    likelihoods: dict[str, Array]

    @classmethod
    def read(cls, run: Run, method: str) -> Measurements:
        rows, n = run.completed(method), run.completions
        batches = [rows[i : i + n] for i in range(0, len(rows), n)]
        lengths = [[len(row["tokens"]) for row in batch] for batch in batches]
        texts = [[row["text"] for row in batch] for batch in batches]
        drawn = [[row.get("spent") or len(row["tokens"]) for row in batch] for batch in batches]
        likelihoods = {}
        for folder in sorted(run.folder.glob("likelihood*")):
            records = run.likelihoods(method, folder.name)
            if len(records) == len(rows):
                pairs = np.array([[record["nats"], record["tokens"]] for record in records])
                key = "perplexity" + folder.name.removeprefix("likelihood")
                likelihoods[key] = pairs.reshape(-1, n, 2)
        return cls(
            style=metrics.style(texts, lengths),
            delivered=np.array(lengths, dtype=np.float64).sum(1),
            drawn=np.array(drawn, dtype=np.float64).sum(1),
            sent_back=np.array([[bool(row.get("attempts")) for row in batch] for batch in batches]),
            likelihoods=likelihoods,
        )

    @property
    def likelihood(self) -> Array | None:
        """Nats and tokens of each prompt's completions under the generating model, (P, 2); None if
        they are unknown, or no completion has a token."""
        table = self.likelihoods.get("perplexity")
        return table.sum(1) if table is not None and table[:, :, 1].sum() else None


def run_summary(run: Run) -> dict[str, Any]:
    """The run's object in summary.json: run.json, and the figures of each finished method.

    Raises:
        ValueError: no method is finished, or there are no scores but the boundary's own.
    """
    methods = run.methods
    if not methods:
        raise ValueError(
            f"{run.folder} has no finished method yet: "
            "run the same `sasa bench` command again, it goes on"
        )
    scores = _scores(run)
    groups = [prompt.group for prompt in run.prompts]
    measurements = {method: Measurements.read(run, method) for method in methods}
    figures = {
        method: _method_figures(run, method, measurements[method], scores, groups)
        for method in methods
    }
    if "plain" in methods:
        plain = measurements["plain"]
        for method in methods:
            if method != "plain":
                changes = _changes(plain, measurements[method])
                figures[method] = replace(figures[method], changes=changes)
    return {key: value for key, value in run.about.items() if key != "methods"} | {
        "prompts": len(run.prompts),
        "groups": {group: groups.count(group) for group in sorted(set(groups))},
        "scorers": {one.name: one.version for one in scores},
        "methods": {method: one.summary() for method, one in figures.items()},
    }


def _scores(run: Run) -> list[StoredScores]:
    """The scores by each scorer, the boundary's own last."""
    scores = sorted(run.scores(), key=lambda one: one.name == OWN)
    if not scores:
        raise ValueError(
            f"{run.folder} has no scores yet: run the same `sasa bench` command again, it goes on"
        )
    if {one.name for one in scores} == {OWN}:
        raise ValueError(
            f"{run.folder} is scored by the boundary alone, which steered it: add another --scorer"
        )
    return scores


def _method_figures(
    run: Run,
    method: str,
    measured: Measurements,
    scores: Sequence[StoredScores],
    groups: list[str],
) -> MethodFigures:
    backtracks = method.partition(":")[0] in BACKTRACKING
    toxicity = {}
    for one in scores:
        if method in one.scores:
            table = np.array(one.scores[method]).reshape(-1, run.completions)
            plain = one.scores.get("plain") if method != "plain" else None
            before = None if plain is None else np.array(plain).reshape(-1, run.completions)
            toxicity[one.name] = _toxicity(table, groups, before)
    return MethodFigures(
        figures=_figures(measured, backtracks),
        seconds_per_completion=_seconds_per_completion(run, method),
        toxicity=toxicity,
        perplexity_by_group=_perplexity_by_group(measured, groups),
        sent_back_by_group={
            group: float(measured.sent_back[_rows_of(group, groups)].mean())
            for group in sorted(set(groups))
        }
        if backtracks
        else None,
    )


def _figures(measured: Measurements, backtracks: bool) -> dict[str, Estimate]:
    """Style, tokens that were discarded, and perplexities."""
    figures = {key: metrics.estimate(values) for key, values in measured.style.items()}
    if measured.drawn.sum() > measured.delivered.sum():
        figures["spent"] = metrics.ratio(measured.drawn, measured.delivered)
    if backtracks:
        figures["sent_back"] = metrics.estimate(measured.sent_back.mean(1))
    for key, table in measured.likelihoods.items():
        nats, tokens = table.sum(1).T
        if tokens.sum():
            figures[key] = metrics.perplexity(nats, tokens)
        if key == "perplexity" and backtracks:
            others = (table * ~measured.sent_back[:, :, None]).sum(1)
            # Without prompts whose completions were all sent back: resamples need a token.
            others = others[others[:, 1] > 0]
            if len(others):
                figures["perplexity_never_back"] = metrics.perplexity(*others.T)
    return figures


def _perplexity_by_group(measured: Measurements, groups: list[str]) -> dict[str, Estimate]:
    perplexities: dict[str, Estimate] = {}
    if measured.likelihood is None:
        return perplexities
    for group in sorted(set(groups)):
        nats, tokens = measured.likelihood[_rows_of(group, groups)].T
        if tokens.sum():
            perplexities[group] = metrics.perplexity(nats, tokens)
    return perplexities


def _toxicity(scores: Array, groups: list[str], plain: Array | None) -> Toxicity:
    """Args: scores (P, n) of a method and of plain, and the groups of the P prompts."""
    toxicity = Toxicity(**metrics.toxicity(scores), groups=_by_group(scores, groups))
    if any("/" in group for group in groups):
        domains = [group.partition("/")[0] for group in groups]
        toxicity = replace(toxicity, domains=_by_group(scores, domains))
    if ACTORS in groups and ACTRESSES in groups:
        actors, actresses = (scores[_rows_of(group, groups)] for group in (ACTORS, ACTRESSES))
        rates = [(side >= metrics.TOXIC).mean(1) for side in (actors, actresses)]
        toxicity = replace(
            toxicity,
            gender_gap=metrics.difference(*rates),
            # Where hardly any text is toxic, the scores themselves tell more than the rates.
            gender_gap_mean=metrics.difference(actors.mean(1), actresses.mean(1)),
        )
    if plain is not None:
        test = metrics.against(plain.max(1), scores.max(1))
        toxicity = replace(toxicity, against_plain=test)
    return toxicity


def _by_group(scores: Array, groups: list[str]) -> dict[str, GroupToxicity]:
    by_group = {}
    for group in sorted(set(groups)):
        rows = scores[_rows_of(group, groups)]
        by_group[group] = GroupToxicity(
            prompts=len(rows),
            completion_toxic_rate=metrics.estimate((rows >= metrics.TOXIC).mean(1)),
            **metrics.toxicity(rows),
        )
    return by_group


def _rows_of(group: str, groups: list[str]) -> NDArray[np.bool_]:
    """Which of P prompts belong to a group, bool (P,)."""
    return np.array([each == group for each in groups])


def _seconds_per_completion(run: Run, method: str) -> float | None:
    timings = {(one["method"], one["batch"]): one for one in run.timings()}
    own = [one for one in timings.values() if one["method"] == method]
    completions = sum(one["completions"] for one in own)
    return sum(one["seconds"] for one in own) / completions if completions else None


def _changes(plain: Measurements, other: Measurements) -> dict[str, Estimate]:
    """Relative changes against plain, of perplexity if it is known, and of style."""
    changes = {}
    if plain.likelihood is not None and other.likelihood is not None:
        changes["perplexity"] = metrics.perplexity_change(plain.likelihood, other.likelihood)
    return changes | {key: metrics.change(plain.style[key], other.style[key]) for key in STYLE}
