"""The choice of tokens in an engine: each request's winner is the token with the greatest sum of key and value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from sasa import Boundary, EmbeddingSpec
from sasa.core.candidates import keyed_noise, select
from sasa.core.model_info import ModelInfo
from sasa.core.values import Steering
from sasa.serving.requests import Wanted
from sasa.serving.slots import SERIAL, Slots

V, D, LAYERS = 300, 6, (2, 4)
EOS = 7
INFO = ModelInfo("any", "engine", D, 4, V)


def boundaries() -> dict[str, Boundary]:
    generator = torch.Generator().manual_seed(1)
    spec = {"toxicity": EmbeddingSpec(layer=(2, -1)), "threat": EmbeddingSpec(layer=2)}
    return {
        name: Boundary(torch.randn(D * len(s.layers), generator=generator), 0.3, s, INFO, 0.7, 0.1)
        for name, s in spec.items()
    }


def texts(
    rows: int, seed: int, grain: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores (n, V), states of the texts (L, n, D), and states (L, n, V, D) with each candidate; scores in steps of `grain`."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, V, generator=generator) * 3
    if grain:
        scores = (scores / grain).round() * grain
    return scores, *(2 * torch.randn(2, rows, *more, D, generator=generator) for more in ((), (V,)))


def obvious(wanted: Wanted, row: int, world, *, seed, place, top_k, top_p, greedy) -> int:
    """The winner, with everything read."""
    scores, text, extended = world
    lines = boundaries()
    steering = Steering.of(
        [(lines[name], w) for name, w in wanted.boundaries], wanted.beta, wanted.value, wanted.prior
    )
    left = scores[row : row + 1]
    for k, p in ((top_k, top_p), wanted.limit(greedy) if wanted.beta else (0, 1.0)):
        found = select(left, k, p)
        left = torch.full_like(left, -torch.inf).scatter(
            1, found.ids, torch.where(found.mask, left.gather(1, found.ids), -torch.inf)
        )
    ids = torch.arange(V)[None]
    keys = (
        left
        if greedy
        else left - keyed_noise(torch.tensor([seed]), torch.tensor([place]), ids).log()
    )
    if wanted.beta:
        states = [
            b.embedding.of_layers(extended[:, row], [2, 4 if -1 not in b.embedding.layers else -1])
            for b, _ in steering.terms
        ]
        before = [
            b.embedding.of_layers(text[:, row], [2, 4 if -1 not in b.embedding.layers else -1])[
                None
            ]
            for b, _ in steering.terms
        ]
        margins = steering.margins(before, [s[None] for s in states], ids == EOS)
        keys = keys + steering.beta * steering.values(margins)
    return int(keys[0].argmax())


CASES = [
    (Wanted(), 0, 1.0),
    (Wanted(), 40, 0.9),
    (Wanted(4.0, (("toxicity", 1.0),)), 10, 1.0),
    (Wanted(2.0, (("toxicity", 1.0), ("threat", 0.5)), prior=0.5), 20, 0.8),
    (Wanted(8.0, (("threat", 1.0),), prior=0.9), 0, 1.0),
    (Wanted(3.0, (("threat", 1.0),), prior=0.9), 0, 0.95),
    (Wanted(30.0, (("toxicity", 1.0),), prior=0.99), 200, 1.0),
    (Wanted(1.0, (("toxicity", 1.0),), value="raw"), 12, 0.9),
    (Wanted(3.0, (("toxicity", 1.0),), top_k=5, top_p=0.7), 0, 1.0),
    (Wanted(3.0, (("toxicity", 1.0),), top_p=0.7), 30, 0.95),
    (Wanted(3.0, (("toxicity", 1.0),), top_k=5), 0, 0.6),
    (Wanted(3.0, (("toxicity", 1.0),), top_k=5), 100, 0.6),
]


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("grain", [0.0, 0.5])
def test_each_request_gets_what_a_full_look_would_give(fixed, greedy, grain):
    """Requests of all kinds side by side, each at its own place; candidates are read one at a time."""
    slots = Slots(boundaries(), LAYERS, 3 * len(CASES), V, fixed=fixed)
    generator, reads = np.random.default_rng(0), np.zeros(len(slots), int)
    where = generator.permutation(len(slots))[: len(CASES)]
    for round_ in range(4):
        world = texts(len(CASES), 10 * round_ + greedy, grain)
        seeds, places = (
            generator.integers(-(2**62), 2**62, len(CASES)),
            generator.integers(0, 900, len(CASES)),
        )
        for slot, (wanted, top_k, top_p), seed in zip(where, CASES, seeds, strict=True):
            slots.put(
                slot,
                wanted,
                seed=int(seed),
                temperature=float(not greedy),
                top_k=top_k,
                top_p=top_p,
                ends=[EOS],
            )
        index = torch.from_numpy(where)
        before = slots.values(index, world[1])
        slots.open(index, world[0], before, torch.from_numpy(places), where)
        going = np.arange(len(CASES))
        reads[:] = 0
        while len(going := going[~slots.choice.decided[where[going]].numpy()]):
            tokens = slots.choice.pending[where[going]]
            states = world[2][:, going, tokens]
            reads[where[going]] += 1
            slots.take(index[going], slots.values(index[going], states), where[going])
            assert reads.max() <= V
        for row, (wanted, top_k, top_p) in enumerate(CASES):
            wants = obvious(
                wanted,
                row,
                world,
                seed=seeds[row],
                place=places[row],
                top_k=top_k,
                top_p=top_p,
                greedy=greedy,
            )
            assert int(slots.choice.pending[where[row]]) == wants, (round_, row)
            assert not (wanted.beta == 0 and reads[where[row]]), (
                "plain requests are not read to be chosen"
            )
    assert not slots.steered(where[:2])
    assert slots.steered(where)


def test_more_candidates_than_are_kept_in_order_are_all_reached():
    """All values are the same but for one token's, whose key is among the last."""
    lines = {"toxicity": Boundary(torch.ones(D), 0.0, EmbeddingSpec(layer=2), INFO)}
    slots = Slots(lines, LAYERS, 1, V)
    slots.put(
        0,
        Wanted(1e4, (("toxicity", 1.0),), top_k=0),
        seed=0,
        temperature=0,
        top_k=0,
        top_p=1.0,
        ends=[],
    )
    scores = -torch.arange(V).float()[None]
    index, rows = torch.tensor([0]), np.array([0])
    slots.open(index, scores, torch.zeros(1), torch.tensor([3]), rows)
    for _ in range(V):
        if slots.choice.decided[0]:
            break
        good = slots.choice.pending[index] == V - 2
        slots.take(
            index,
            slots.values(index, torch.where(good, 5.0, -5.0)[None, :, None].expand(2, 1, D)),
            rows,
        )
    assert V > 4 * SERIAL
    assert int(slots.choice.winner[0]) == V - 2


def test_noise_is_exponential_and_a_function_of_what_it_is_given():
    ids = torch.arange(20_000)[None]
    drawn = keyed_noise(torch.tensor([5]), torch.tensor([1]), ids)
    assert abs(float(drawn.mean()) - 1) < 0.03
    assert abs(float(drawn.var()) - 1) < 0.1
    assert torch.equal(
        drawn[:, 40:50], keyed_noise(torch.tensor([5]), torch.tensor([1]), ids[:, 40:50])
    )
    for seed, place in ((6, 1), (5, 2), (-5, 1)):
        other = keyed_noise(torch.tensor([seed]), torch.tensor([place]), ids)
        assert abs(float(np.corrcoef(drawn[0], other[0])[0, 1])) < 0.03


def test_draws_have_the_steered_distribution():
    """20,000 first tokens of one text, each from a seed of its own."""
    wanted, count = Wanted(2.0, (("toxicity", 1.0),)), 20_000
    world = texts(1, 3)
    slots = Slots(boundaries(), LAYERS, count, V, fixed=False)
    for slot in range(count):
        slots.put(slot, wanted, seed=slot, temperature=1.0, top_k=12, top_p=0.95, ends=[EOS])
    rows, index = np.arange(count), torch.arange(count)
    text = world[1].expand(-1, count, -1)
    slots.open(
        index, world[0].expand(count, -1), slots.values(index, text), torch.full((count,), 9), rows
    )
    while len(rows := rows[~slots.choice.decided[rows].numpy()]):
        index = torch.from_numpy(rows)
        states = world[2][:, 0, slots.choice.pending[rows]]
        slots.take(index, slots.values(index, states), rows)
    steering = Steering.of(boundaries()["toxicity"], 2.0)
    found = select(world[0], 12, 0.95)
    extended = world[2][:, 0, found.ids[0]].transpose(0, 1).reshape(1, -1, 2 * D)
    margins = steering.margins([world[1][:, 0].reshape(1, -1)], [extended], found.ids == EOS)
    exact = steering.reweight(world[0], found, margins).softmax(-1)[0].double().numpy()
    counts = np.bincount(slots.choice.winner.numpy(), minlength=V)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(exact))
    kept = exact * count >= 5
    assert (
        chisquare(counts[kept], exact[kept] / exact[kept].sum() * counts[kept].sum()).pvalue > 0.001
    )


def test_a_text_whose_values_are_no_numbers_still_ends():
    slots = Slots(boundaries(), LAYERS, 1, V)
    slots.put(
        0, Wanted(4.0, (("toxicity", 1.0),)), seed=0, temperature=1.0, top_k=5, top_p=1.0, ends=[]
    )
    index, rows = torch.tensor([0]), np.array([0])
    slots.open(index, texts(1, 0)[0], torch.full((1,), torch.nan), torch.tensor([3]), rows)
    for _ in range(5):
        over, _ = slots.take(index, torch.full((1,), torch.nan), rows)
    assert bool(over)
    assert 0 <= int(slots.choice.pending[0]) < V


def test_a_boundary_of_another_pooling_is_refused():
    mean = Boundary(torch.ones(D), 0.0, EmbeddingSpec(pooling="mean"), INFO)
    with pytest.raises(ValueError, match="boundary calm has mean pooling"):
        Slots({"calm": mean}, (4,), 1, V)
