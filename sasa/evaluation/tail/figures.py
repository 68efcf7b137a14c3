"""The figures of a measurement of a tail, computed from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import numpy as np

from sasa.evaluation import metrics
from sasa.evaluation.importance import Tail, cvar, tail
from sasa.evaluation.metrics import Array, Estimate
from sasa.evaluation.settings import TailSettings
from sasa.utils.files import read_json
from sasa.utils.jsonl import read

SETTINGS, SAMPLES = "tail.json", "samples.jsonl"
MODEL, PROPOSAL = "model", "proposal"
"""Who wrote a sample."""
POINTS = 17
"""Points of the curve of P(r < eta) against eta."""

LogProbability = Literal["log_p", "log_q", "log_p0"]
"""Log-probability of a completion under the model, the proposal, and the base."""


class TailAbout(TypedDict):
    """The content of tail.json: all that the samples depend on."""

    settings: dict[str, object]
    prompts: int
    texts: str
    model: dict[str, object]
    weights: dict[str, str | None]
    dtype: str


class SampleRecord(TypedDict, total=False):
    """A line of samples.jsonl."""

    prompt: int
    by: str
    text: str
    tokens: list[int]
    log_p: float
    log_q: float
    log_p0: float


@dataclass(frozen=True)
class StoredRewards:
    """A file of rewards/: the reward of each sample."""

    name: str
    version: str
    rewards: list[float]


@dataclass(frozen=True)
class RewardFigures:
    """The figures of one reward.

    Attributes:
        version: the reward's.
        mean: over the model's own completions.
        cvar: mean of the worst; see `importance.cvar`.
        tail: P(r < eta) at the settings' eta.
        curve: P(r < eta) at quantiles of the rewards.
        mean_return: mean of r - log(p / p0) / beta_kl; None without a base.
    """

    version: str
    mean: Estimate
    cvar: Estimate
    tail: Tail
    curve: list[Tail]
    mean_return: Estimate | None


@dataclass(frozen=True)
class TailFigures:
    """The content of figures.json.

    Attributes:
        tokens: mean number of a completion's tokens.
        distinct_2: see `metrics.distinct`.
        rewards: by the reward's name.
        kl: to the base, in nats per completion; None without a base.
        perplexity: of the completions under the base; None without a base.
    """

    about: TailAbout
    tokens: Estimate
    distinct_2: Estimate
    rewards: dict[str, RewardFigures]
    kl: Estimate | None
    perplexity: Estimate | None

    @property
    def settings(self) -> TailSettings:
        return TailSettings(**cast(Any, self.about["settings"]))

    def to_json(self) -> Any:
        """figures.json, without the figures that are None."""
        rewards = {
            name: _present({"return" if k == "mean_return" else k: v for k, v in vars(one).items()})
            for name, one in self.rewards.items()
        }
        return metrics.to_json(_present(vars(self) | {"rewards": rewards}))


@dataclass(frozen=True)
class Samples:
    """The samples that one model wrote: n of each of P prompts.

    Attributes:
        rows: their places among all samples, int64 (P * n,).
        log_p, log_q, log_p0: log-probabilities, (P, n); None if there is no such model.
    """

    rows: Array
    log_p: Array
    log_q: Array | None
    log_p0: Array | None

    @classmethod
    def of(cls, records: Sequence[SampleRecord], by: str, n: int) -> Samples | None:
        """The samples by a model; None if it wrote none."""
        rows = np.array([i for i, record in enumerate(records) if record["by"] == by], dtype=int)
        if not len(rows):
            return None

        def column(key: LogProbability) -> Array | None:
            if key not in records[rows[0]]:
                return None
            values = [records[i][key] for i in rows]
            return np.array(values, dtype=np.float64).reshape(-1, n)

        log_p = column("log_p")
        assert log_p is not None
        return cls(rows, log_p, column("log_q"), column("log_p0"))

    @property
    def log_ratio(self) -> Array | None:
        """log p - log q, (P, n)."""
        return None if self.log_q is None else self.log_p - self.log_q

    def of_all(self, values: Array) -> Array:
        """This model's part, (P, n), of values of all samples."""
        return values[self.rows].reshape(self.log_p.shape)


def tail_figures(folder: Path) -> TailFigures:
    """Computes the figures of a finished measurement."""
    about = cast(TailAbout, read_json(folder / SETTINGS))
    settings = TailSettings(**cast(Any, about["settings"]))
    records, n = cast(list[SampleRecord], read(folder / SAMPLES)), settings.completions
    model, proposal = (Samples.of(records, by, n) for by in (MODEL, PROPOSAL))
    assert model is not None
    own = [records[i] for i in model.rows]
    texts = [[record["text"] for record in own[i : i + n]] for i in range(0, len(own), n)]
    lengths = np.array([len(record["tokens"]) for record in own], dtype=np.float64).reshape(-1, n)
    files = sorted((folder / "rewards").glob("*.json"))
    stored = [StoredRewards(**read_json(file)) for file in files]
    kl = perplexity = None
    if model.log_p0 is not None:
        kl = metrics.estimate((model.log_p - model.log_p0).mean(1))
        perplexity = metrics.perplexity(-model.log_p0.sum(1), lengths.sum(1))
    return TailFigures(
        about=about,
        tokens=metrics.estimate(lengths.mean(1)),
        distinct_2=metrics.estimate(np.array([metrics.distinct(row, 2) for row in texts])),
        rewards={one.name: _reward_figures(one, model, proposal, settings) for one in stored},
        kl=kl,
        perplexity=perplexity,
    )


def _reward_figures(
    stored: StoredRewards, model: Samples, proposal: Samples | None, settings: TailSettings
) -> RewardFigures:
    values = np.array(stored.rewards)
    rewards = model.of_all(values)
    proposed = None if proposal is None else proposal.of_all(values)
    ratio = None if proposal is None else proposal.log_ratio

    def probability(eta: float) -> Tail:
        return tail(eta, rewards, model.log_ratio, proposed, ratio)

    mean_return = None
    if model.log_p0 is not None:
        kl = model.log_p - model.log_p0
        mean_return = metrics.estimate((rewards - kl / settings.beta_kl).mean(1))
    etas = np.quantile(rewards, np.linspace(0, 1, POINTS))
    return RewardFigures(
        version=stored.version,
        mean=metrics.estimate(rewards.mean(1)),
        cvar=cvar(rewards),
        tail=probability(settings.eta),
        curve=[probability(float(eta)) for eta in etas],
        mean_return=mean_return,
    )


def _present(content: dict[str, Any]) -> dict[str, Any]:
    """The entries that are not None."""
    return {key: value for key, value in content.items() if value is not None}
