"""Choosing tokens for requests that come, go and wait, each at a place of its own: a race of one candidate at a time.

An engine reads one token of a request in a step. For a steered request that is a candidate: the state behind it gives
the candidate's value, and its logits are those of the next place, if it wins. If it does not, the next candidate is
read at the same place. `sasa.core.candidates.Race` has the rule, for rows that go in step; here each row goes its own way, and
everything is a tensor operation whose shape does not depend on what is found, so that a device never has to be waited
for. Noise is a function of the request's seed, the place and the token: a request that is interrupted and read again
draws what it would have drawn.

Nothing here knows an engine, a model or a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sasa.core.boundary import Boundary
from sasa.core.candidates import keyed_noise, survivors
from sasa.core.values import FUNCTIONS
from sasa.serving.requests import SERIAL, Wanted

ENDS = 64
"""Tokens that may end a request: they are no texts, and get the value of the text that they would end."""
FIRST = SERIAL - 16
"""Up to so many candidates of a request are found among the `SERIAL` likeliest tokens, ties with the last included."""
AT_ONCE = 1 << 22
"""Tokens of the vocabulary, of all requests together, whose keys are worked out at a time: they take some of 50 bytes each."""
KINDS = tuple(FUNCTIONS)
FIND = ("all", "likeliest", "sorted")
"""How a request's candidates are found: all tokens are, or some of the likeliest, or what a limit leaves of all."""


@dataclass
class Choice:
    """A race in each slot; R slots, K candidates.

    Attributes:
        ids, keys: (R, K + 1), candidates that must be read to be valued, the greatest key first; -inf behind the last.
        at: int64 (R,), which of them is read next.
        best, winner: (R,), the greatest sum of key and value so far, and the token that it belongs to.
        value: (R,), what steering adds to the winner's key, which is the value of the text with it.
        decided: bool (R,), whether nothing that is left can win.
        pending: int64 (R,), the token to be read next: a candidate, or, once it is decided, the winner.
        place: int64 (R,), how many tokens the text has before it.
    """

    ids: Tensor
    keys: Tensor
    at: Tensor
    best: Tensor
    winner: Tensor
    value: Tensor
    decided: Tensor
    pending: Tensor
    place: Tensor


class Slots:
    """What requests ask for, and how far the choice of each one's next token has got.

    Args:
        boundaries: those that requests may name, all with `last` pooling.
        layers: the layers whose states `values` is going to be given, counted from the token embeddings, 0.
        room: slots.
        vocabulary: tokens.
        fixed: whether shapes must not depend on what is found, as on a device that is not to be waited for.

    Raises:
        ValueError: a boundary of another pooling.
    """

    def __init__(
        self,
        boundaries: Mapping[str, Boundary],
        layers: Sequence[int],
        room: int,
        vocabulary: int,
        device: torch.device | str = "cpu",
        fixed: bool = True,
    ) -> None:
        for name, boundary in boundaries.items():
            if boundary.embedding.pooling != "last":
                raise ValueError(
                    f"boundary {name} has {boundary.embedding.pooling} pooling: an engine keeps no states of texts that it "
                    "has read. Fit one with last pooling"
                )
        self.names = tuple(boundaries)
        self.layers = tuple(layers)
        self.boundaries = [_numbered(boundary).to(device) for boundary in boundaries.values()]
        self.device, self.fixed, self.vocabulary = torch.device(device), fixed, vocabulary
        self._asked = np.zeros((room, 9 + len(self.names)))  # a row each of `_Asked`
        self._whole = np.zeros((room, 2 + ENDS), np.int64)  # seed, steered or not, ends
        self._on_device: tuple[Tensor, Tensor] | None = None

        def full(*shape: int, fill: float = 0, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.full((room, *shape), fill, dtype=dtype, device=device)

        floats = torch.float32
        self.choice = Choice(
            ids=full(SERIAL + 1), keys=full(SERIAL + 1, fill=-torch.inf, dtype=floats), at=full(), best=full(dtype=floats),
            winner=full(), value=full(dtype=floats), decided=full(dtype=torch.bool), pending=full(), place=full(fill=-1),
        )  # fmt: skip
        # Of requests without a limit to their candidates, the keys of those that are not in order yet.
        self._rest = full(vocabulary, fill=-torch.inf, dtype=floats)
        bounds = [
            torch.inf if FUNCTIONS[name].bound is None else float(FUNCTIONS[name].bound or 0)
            for name in KINDS
        ]
        self._bounds = torch.tensor(bounds, device=device)

    def __len__(self) -> int:
        return len(self._asked)

    def take_over(self, other: Slots) -> None:
        """Takes the first slots from another one, which had fewer."""
        count = len(other)
        self._asked[:count], self._whole[:count], self._rest[:count] = (
            other._asked,
            other._whole,
            other._rest,
        )
        for name, theirs in vars(other.choice).items():
            getattr(self.choice, name)[:count] = theirs
        self._on_device = None

    def put(
        self,
        slot: int,
        wanted: Wanted,
        *,
        seed: int,
        temperature: float,
        top_k: int,
        top_p: float,
        ends: Sequence[int],
    ) -> None:
        """Gives a slot to a request.

        Args:
            seed: 64 bits, signed.
            temperature: 0 decodes greedily.
            top_k, top_p: the request's own limits; 0 and 1 for none.
            ends: tokens that end it.
        """
        greedy = temperature == 0
        further_k, further_p = wanted.limit(greedy) if wanted.beta else (0, 1.0)
        weights = dict(wanted.boundaries)
        self._asked[slot] = [
            wanted.beta, wanted.prior, KINDS.index(wanted.value), temperature or 1.0, greedy,
            top_k if top_k > 0 else self.vocabulary, top_p, further_k or self.vocabulary, further_p,
            *(weights.get(name, 0.0) for name in self.names),
        ]  # fmt: skip
        kept = [*ends][:ENDS]
        self._whole[slot] = [seed, wanted.beta > 0, *kept, *[-1] * (ENDS - len(kept))]
        self._on_device = None

    def steered(self, slots: np.ndarray) -> bool:
        """Whether any of these slots' requests is."""
        return bool(self._whole[slots, 1].any())

    def settings(self) -> tuple[Tensor, Tensor]:
        """What requests ask for, on the device; copied there when it has changed."""
        if self._on_device is None:
            self._on_device = (
                there(self._asked.copy(), self.device),
                there(self._whole.copy(), self.device),
            )
        return self._on_device

    def values(self, slots: Tensor, states: Tensor) -> Tensor:
        """What steering adds to the keys of texts, beta times their values, float32 (n,).

        Args:
            slots: int64 (n,). states: (L, n, d), of `layers`, at the texts' last tokens.
        """
        asked = self.settings()[0][slots]
        beta, prior, kind, weights = (
            asked[:, 0],
            asked[:, 1].float(),
            asked[:, 2].long(),
            asked[:, 9:],
        )
        total = torch.zeros(len(slots), dtype=torch.float32, device=self.device)
        for column, boundary in enumerate(self.boundaries):
            margin = boundary.margin(boundary.embedding.of_layers(states, self.layers))
            each = torch.stack([FUNCTIONS[name].of(boundary, margin, prior) for name in KINDS])
            total = total + weights[:, column].float() * each.gather(0, kind[None])[0]
        return torch.where(beta > 0, beta.float() * total, 0.0)

    def open(
        self,
        slots: Tensor,
        scores: Tensor,
        value: Tensor,
        place: Tensor,
        rows: np.ndarray,
        where: Tensor | None = None,
    ) -> None:
        """Begins the choice of the tokens behind some texts.

        Args:
            slots: int64 (n,). rows: the same, on the host.
            scores: float32 (n, V), logits as an engine's processors leave them, divided by the temperature.
            value: float32 (n,), what steering adds to the texts as they are.
            place: int64 (n,), tokens of the texts.
            where: bool (n,), only there; None for everywhere.
        """
        host, few = self._asked[rows, 5:9], self._few(rows)
        limited = (host != [self.vocabulary, 1, self.vocabulary, 1]).any(1)
        kinds = few + 2 * (
            limited & ~few
        )  # what is known on the host decides about shapes, and nothing else
        for kind in np.unique(kinds):
            of_kind = np.flatnonzero(kinds == kind)
            most = len(of_kind) if FIND[kind] == "likeliest" else max(1, AT_ONCE // self.vocabulary)
            for part in np.split(of_kind, range(most, len(of_kind), most)):
                if len(part) == len(rows):
                    self._open(slots, scores, value, place, host, where, FIND[kind])
                    continue
                i = there(part, self.device)
                inside = None if where is None else where[i]
                self._open(slots[i], scores[i], value[i], place[i], host[part], inside, FIND[kind])

    def _open(
        self,
        slots: Tensor,
        scores: Tensor,
        value: Tensor,
        place: Tensor,
        host: np.ndarray,
        where: Tensor | None,
        find: str,
    ) -> None:
        """`open` for rows whose candidates are found in one way, one of `FIND`; `host` is their limits (n, 4)."""
        asked, whole = (part[slots] for part in self.settings())
        if find == "likeliest":
            scores, ids = scores.topk(min(SERIAL, scores.shape[1]))
        elif find == "sorted":
            scores, ids = scores.sort(descending=True)
        else:
            ids = torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
        for k in (0, 2):  # the request's own limits, then the further ones
            if (host[:, k] < self.vocabulary).any() or (host[:, k + 1] < 1).any():
                limit = asked[:, 5 + k : 7 + k]
                kept = survivors(scores, limit[:, :1].long(), limit[:, 1:].float())
                scores = scores.masked_fill(~kept, -torch.inf)
        greedy, ends = asked[:, 4:5] > 0, whole[:, 2:]
        keys = scores - keyed_noise(whole[:, 0], place, ids).log().masked_fill(greedy, 0.0)

        # An end of sequence is no text: it is valued without a read. Of a plain request, everything is.
        plain = whole[:, 1:2] == 0
        closing = torch.zeros(len(ids), self.vocabulary + 1, dtype=torch.bool, device=ids.device)
        closing.scatter_(1, torch.where(ends < 0, self.vocabulary, ends), True)
        valued = closing.gather(1, ids) | plain
        added = value[:, None].masked_fill(plain, 0.0)
        best, winner = _greatest(keys.masked_fill(~valued, -torch.inf) + added, ids)
        likeliest = ids.gather(1, keys.argmax(1, keepdim=True))[:, 0]
        keys = keys.masked_fill(valued, -torch.inf)
        if find != "likeliest":
            rest = torch.full((len(keys), self.vocabulary), -torch.inf, device=keys.device).scatter(
                1, ids, keys
            )
            self._rest[slots] = (
                rest if where is None else torch.where(where[:, None], rest, self._rest[slots])
            )
        keys, order = keys.topk(min(SERIAL, keys.shape[1]))
        ids = ids.gather(1, order)
        if find != "likeliest":
            self._taken(slots, ids, where)
        short = SERIAL + 1 - keys.shape[1]
        keys, ids = pad(keys, (0, short), value=-torch.inf), pad(ids, (0, short))
        # Where sums are no numbers, nothing can win, and the likeliest stands for it.
        winner = torch.where(best > -torch.inf, winner, likeliest)
        decided = ~self._can_win(slots, keys[:, 0], best)
        new = Choice(
            ids=ids, keys=keys, at=torch.zeros_like(place), best=best, winner=winner, value=added[:, 0], decided=decided,
            pending=torch.where(decided, winner, ids[:, 0]), place=place,
        )  # fmt: skip
        self._write(slots, new, where)

    def take(self, slots: Tensor, value: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Takes in what steering adds to the tokens that have just been read, `pending` of these slots.

        Args:
            slots: int64 (n,). rows: the same, on the host. value: float32 (n,).

        Returns:
            whether the winner is known, bool (n,); whether the token just read is the best so far, bool (n,).
        """
        now = Choice(*(part[slots] for part in vars(self.choice).values()))
        token, line = now.pending, torch.arange(len(slots), device=self.device)
        sum_ = torch.where(now.decided, -torch.inf, now.keys[line, now.at] + value)
        # Of equals, the token with the lower id wins, as in argmax.
        better = (sum_ > now.best) | ((sum_ == now.best) & (token < now.winner) & ~now.decided)
        now.best, now.winner = (
            torch.where(better, sum_, now.best),
            torch.where(better, token, now.winner),
        )
        now.value = torch.where(better, value, now.value)
        now.at = torch.where(now.decided, now.at, now.at + 1)
        now = self._refilled(slots, now, rows)
        # A value that is no number: what is left would have none either, and the best so far is taken.
        now.decided = (
            now.decided | value.isnan() | ~self._can_win(slots, now.keys[line, now.at], now.best)
        )
        now.pending = torch.where(now.decided, now.winner, now.ids[line, now.at])
        self._write(slots, now, None)
        return now.decided, better | (now.winner == token)

    def _few(self, rows: np.ndarray) -> np.ndarray:
        """Whether all candidates of these slots' requests are among the `SERIAL` likeliest tokens, bool (n,)."""
        own_k, own_p, further_k, _ = self._asked[rows, 5:9].T
        # The request's own top-p is of what its own top-k leaves, and must not be taken of less.
        return (own_k <= FIRST) | ((own_p >= 1) & (further_k <= FIRST))

    def _can_win(self, slots: Tensor, key: Tensor, best: Tensor) -> Tensor:
        """Whether candidates with keys (n,), which nobody has read, can still win."""
        asked = self.settings()[0][slots]
        bound = self._bounds[asked[:, 2].long()]
        bound = torch.where(
            bound.isinf(), bound, bound * (asked[:, 0] * asked[:, 9:].sum(1)).float()
        )
        return (key > -torch.inf) & (key + bound >= best)

    def _refilled(self, slots: Tensor, now: Choice, rows: np.ndarray) -> Choice:
        """Puts more candidates in order where all that were have been read."""
        unlimited = ~self._few(rows) & (self._whole[rows, 1] > 0)
        if not unlimited.any():
            return now
        empty = (now.at == SERIAL) & ~now.decided & there(unlimited, self.device)
        if not self.fixed and not empty.any():
            return now
        keys, ids = self._rest[slots].topk(min(SERIAL, self.vocabulary))
        self._taken(slots, ids, empty)
        short = SERIAL + 1 - keys.shape[1]
        now.keys = torch.where(empty[:, None], pad(keys, (0, short), value=-torch.inf), now.keys)
        now.ids = torch.where(empty[:, None], pad(ids, (0, short)), now.ids)
        now.at = torch.where(empty, 0, now.at)
        return now

    def _taken(self, slots: Tensor, ids: Tensor, where: Tensor | None) -> None:
        """Leaves candidates that are in order out of the rest."""
        left = self._rest[slots].scatter(1, ids, -torch.inf)
        self._rest[slots] = (
            left if where is None else torch.where(where[:, None], left, self._rest[slots])
        )

    def _write(self, slots: Tensor, new: Choice, where: Tensor | None) -> None:
        for name, fresh in vars(new).items():
            kept = getattr(self.choice, name)
            if where is not None:
                fresh = torch.where(where.view(-1, *[1] * (fresh.ndim - 1)), fresh, kept[slots])
            kept[slots] = fresh


def there(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device, without waiting for the device: only pinned memory is copied so."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def _greatest(sums: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest sum of each row, (n,), and its token: of equals, the one with the lowest id."""
    best = sums.amax(1)
    tied = ids.masked_fill(sums < best[:, None], torch.iinfo(ids.dtype).max)
    return best, tied.amin(1)


def _numbered(boundary: Boundary) -> Boundary:
    """With layers counted from the token embeddings."""
    every = boundary.model.num_hidden_layers + 1
    layers = tuple(layer % every for layer in boundary.embedding.layers)
    return replace(boundary, embedding=replace(boundary.embedding, layer=layers))


def layers_of(boundaries: Mapping[str, Boundary]) -> tuple[int, ...]:
    """The layers that boundaries need, counted from the token embeddings, each once, in order."""
    return tuple(
        sorted({layer for one in boundaries.values() for layer in _numbered(one).embedding.layers})
    )
