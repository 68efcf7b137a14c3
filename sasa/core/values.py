"""Values: what the margins of candidates count for, and what that does to their scores.

For each value function v, the reweighted scores z'(c) = z(c) + beta * v(m(c)) are the closed form
of a question to which they are the answer: the distribution q over the candidates with the greatest
E_q[v] - KL(q || p) / beta, where p is the model's own. The value functions differ in what they
want:

    raw           v = m. Margins as large as they can be had: text that is safe already is pushed on
                  (Ko et al. 2025, eq. 6). Nothing bounds it.
    log_sigmoid   v = log P(safe) = log sigmoid(log-odds), of the calibrated margin, where a share
                  `prior` of all text is unsafe; the default. At beta = 1 this is Bayes' rule,
                  p(c | text, safe). At most 0, so that text which is surely safe is left alone, and
                  most candidates need not be looked at (`sasa.core.candidates`).

This file is functions of boundaries and tensors: no model is needed, and any engine can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sasa.core.boundary import Boundary
from sasa.core.candidates import Candidates
from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.settings import PRIOR, VALUE, check_beta, check_prior, check_value, weighted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Boundaries: TypeAlias = "Boundary | Sequence[tuple[Boundary, float]]"
"""One boundary, or several, each with its weight beside the others."""


class Value(NamedTuple):
    """A function of boundary, margins and prior, and the most that it can give; None where nothing
    bounds it.
    """

    of: Callable[[Boundary, Tensor, float | Tensor], Tensor]
    bound: float | None


FUNCTIONS = {
    "raw": Value(lambda boundary, margin, prior: margin, None),
    "log_sigmoid": Value(
        lambda boundary, margin, prior: logsigmoid(boundary.log_odds(margin, prior)), 0.0
    ),
}


@dataclass(frozen=True)
class Steering:
    """Boundaries, their weights, and how strongly their values count.

    Attributes:
        prior: the share of text that is unsafe, which `log_sigmoid` reckons with; `raw` has no use
            for it.

    Raises:
        ValueError: no boundary, a weight or a beta below 0 or not finite, an unknown value, a prior
            that is no share.
    """

    terms: tuple[tuple[Boundary, float], ...]
    beta: float
    value: str = VALUE
    prior: float = PRIOR

    def __post_init__(self) -> None:
        check_beta(self.beta)
        check_value(self.value)
        check_prior(self.prior)
        for _, weight in self.terms:
            check_beta(weight, "a boundary's weight")
        if not self.terms and self.beta:
            raise ValueError("there is no boundary to steer by")

    @classmethod
    def of(
        cls, boundary: Boundaries | None, beta: float, value: str = VALUE, prior: float = PRIOR
    ) -> Steering:
        return cls(terms(boundary), float(beta), value, float(prior))

    @property
    def specs(self) -> tuple[EmbeddingSpec, ...]:
        return tuple(boundary.embedding for boundary, _ in self.terms)

    @property
    def bound(self) -> float | None:
        """The most that `values` can give; None where nothing bounds it."""
        bound = FUNCTIONS[self.value].bound
        return None if bound is None else bound * sum(weight for _, weight in self.terms)

    def check(self, model: PreTrainedModel) -> None:
        """Raises ValueError where a boundary was not fitted for the model."""
        for boundary, _ in self.terms:
            boundary.check(model)

    def to(self, device: Any) -> Steering:
        return replace(
            self, terms=tuple((boundary.to(device), weight) for boundary, weight in self.terms)
        )

    def margins(self, texts: Sequence[Tensor], extended: Sequence[Tensor], ends: Tensor) -> Tensor:
        """Margins, float32 (B, K, S), of B texts with each of K candidates, by S boundaries.

        Args:
            texts: for each boundary, embeddings (B, d) of the texts as they are.
            extended: for each boundary, embeddings (B, K, d) of the texts with each candidate.
            ends: bool (B, K), where a candidate is an end of sequence. That is no text of its own:
                it gets the margin of the text that it would end.
        """
        found = [
            torch.where(ends, boundary.margin(text)[:, None], boundary.margin(ahead))
            for (boundary, _), text, ahead in zip(self.terms, texts, extended, strict=True)
        ]
        return torch.stack(found, -1) if found else torch.zeros(*ends.shape, 0, device=ends.device)

    def values(self, margins: Tensor) -> Tensor:
        """What margins (..., S) count for together, (...)."""
        value = FUNCTIONS[self.value].of
        found = [
            weight * value(boundary, margins[..., i], self.prior)
            for i, (boundary, weight) in enumerate(self.terms)
        ]
        return sum(found) if found else margins.new_zeros(margins.shape[:-1])  # type: ignore[return-value]

    def reweight(self, scores: Tensor, candidates: Candidates, margins: Tensor) -> Tensor:
        """Scores (B, V) with beta times the values of the margins (B, K, S) for the candidates,
        -inf for all else.
        """
        return reweight(scores, candidates, self.beta * self.values(margins))


def reweight(scores: Tensor, candidates: Candidates, values: Tensor) -> Tensor:
    """Scores (B, V) with values (B, K) added to those of the candidates, and -inf for all else."""
    found = scores.gather(1, candidates.ids) + values.to(scores.dtype)
    found = found.masked_fill(~candidates.mask, -torch.inf)
    return torch.full_like(scores, -torch.inf).scatter_(1, candidates.ids, found)


def terms(boundary: Boundaries | None) -> tuple[tuple[Boundary, float], ...]:
    """One boundary or several, or none, as (boundary, weight) pairs."""
    if boundary is None:
        return ()
    return ((boundary, 1.0),) if isinstance(boundary, Boundary) else tuple(boundary)


def load_terms(
    names: Sequence[str | tuple[Boundary | str, float]],
    model: PreTrainedModel,
    strict: bool = True,
    what: str = "boundary",
) -> list[tuple[Boundary, float]]:
    """Boundaries by name, each with its weight.

    Args:
        names: as for `Boundary.load`, NAME or NAME::WEIGHT; or pairs of a boundary, or its name, and a weight.
        what: what errors call them.

    Raises:
        FileNotFoundError, ValueError: as `Boundary.load`; a weight that is none.
    """
    found = []
    for given in names:
        name, number = weighted(given, what) if isinstance(given, str) else given
        check_beta(number, "a boundary's weight")
        line = (
            name if isinstance(name, Boundary) else Boundary.load(name, model=model, strict=strict)
        )
        found.append((line, number))
    return found


def fingerprint_of(boundary: Boundaries | None) -> str:
    """A text that boundaries and their weights share with no others."""
    return " ".join(
        one.fingerprint + (f"*{weight:g}" if weight != 1 else "") for one, weight in terms(boundary)
    )
