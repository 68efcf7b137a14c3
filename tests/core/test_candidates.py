import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from sasa.core.candidates import AHEAD, Race, noise, select

# Few distinct values, so that ties at the k-th place are common.
rows = st.lists(
    st.lists(
        st.one_of(st.integers(-3, 3).map(float), st.just(float("-inf"))), min_size=7, max_size=7
    ).filter(lambda row: max(row) > float("-inf")),
    min_size=1,
    max_size=4,
)


@given(rows, st.sampled_from([None, 0, 1, 3, 7, 100]))
def test_top_k_keeps_what_transformers_keeps(values, top_k):
    scores = torch.tensor(values)
    expected = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    assert kept(select(scores, top_k)) == [
        set(row.isfinite().nonzero()[:, 0].tolist()) for row in expected
    ]


@given(st.integers(0, 10_000), st.sampled_from([None, 3, 50]), st.floats(0.05, 1.0))
def test_top_k_then_top_p_keeps_what_transformers_keeps(seed, top_k, top_p):
    scores = torch.randn(3, 60, generator=torch.Generator().manual_seed(seed)) * 3
    expected = TopPLogitsWarper(top_p)(
        None, TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    )
    found = select(scores, top_k, top_p)
    assert kept(found) == [set(row.isfinite().nonzero()[:, 0].tolist()) for row in expected]
    assert found.ids.shape[1] == max(map(len, kept(found))), (
        "K must be no wider than the widest row"
    )


@given(rows, st.sampled_from([None, 2]), st.sampled_from([None, 0.5]))
def test_rows_are_distinct_and_sorted(values, top_k, top_p):
    scores = torch.tensor(values)
    found = select(scores, top_k, top_p)
    for row in range(len(values)):
        ids = found.ids[row].tolist()
        assert len(set(ids)) == len(ids)
        chosen = scores[row][found.ids[row][found.mask[row]]]
        assert (chosen[:-1] >= chosen[1:]).all()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"top_k": -1}, "top_k must be an integer >= 0"),
        ({"top_k": 2.5}, "top_k must be an integer"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
    ],
)
def test_limits_out_of_range(limits, message):
    with pytest.raises(ValueError, match=message):
        select(torch.zeros(1, 5), **limits)


def test_the_noise_is_what_multinomial_draws():
    scores = torch.randn(3, 500)
    torch.manual_seed(5)
    want = torch.multinomial(scores.softmax(-1), 1)[:, 0]
    torch.manual_seed(5)
    assert torch.equal((scores.softmax(-1) / noise(scores)).argmax(-1), want)


def run(race, values, counts):
    """The race's winners, with values (R, V), and how many candidates of each row were valued."""
    valued, rows = torch.zeros(len(values), dtype=torch.long), torch.arange(len(values))
    while len(rows):
        ids = race.take(next(counts), rows)
        assert ids.shape[1]
        valued[rows] += ids.shape[1]
        race.value(values[rows].gather(1, ids), rows)
        rows = rows[:0] if race.over() else race.open().nonzero()[:, 0]
    return race.winner, valued


few = st.sampled_from([-3.0, -2.0, -1.0, 0.0])  # ties are common


@given(
    st.lists(st.lists(st.tuples(few, few), min_size=6, max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(1, 3), min_size=6, max_size=6),
)
def test_what_wins_is_what_would_win_had_all_been_valued(pairs, counts):
    keys, values = torch.tensor(pairs).unbind(-1)
    want = (keys + values).argmax(1)  # of equals, the lowest id
    for race in (
        Race.of_all(keys, None),
        Race.among(select(keys), keys, None),
        Race.among(select(keys), keys, None, bound=None),
    ):
        winner, valued = run(race, values, iter(counts))
        assert winner.tolist() == want.tolist()
        assert race.ids.gather(1, race.number[:, None])[:, 0].tolist() == want.tolist()
    assert (valued == 6).all(), "without a bound, everything"


@given(st.integers(0, 1000))
def test_no_more_are_valued_than_can_win(seed):
    """One at a time, a row is done when the next key is less than the best sum so far."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(4, 50, generator=generator), -torch.rand(4, 50, generator=generator)
    winner, valued = run(Race.of_all(keys, None), values, iter([1] * 50))
    assert torch.equal(winner, (keys + values).argmax(1))
    for row in range(4):
        best = float((keys + values)[row].max())
        assert int(valued[row]) == max(1, int((keys[row] >= best).sum()))


def test_a_vocabulary_is_put_in_order_by_and_by():
    keys = torch.randn(2, 3 * AHEAD)
    values = torch.full_like(keys, -100.0)
    values[0, keys[0].argmin()] = (
        0.0  # the last one of all wins in one row, the first one in the other
    )
    values[1, keys[1].argmax()] = 0.0
    winner, valued = run(Race.of_all(keys, None), values, iter([7] * 100))
    assert torch.equal(winner, (keys + values).argmax(1))
    assert valued[0] == 3 * AHEAD
    assert valued[1] == 7


def test_a_bound_is_what_it_says():
    """Values above 0 need a bound above 0, a number or one for each row."""
    keys, values = torch.tensor([[1.0, 0.5, -3.0]] * 2), torch.tensor([[0.0, 0.6, 0.0]] * 2)
    for bound in (0.6, torch.tensor([0.6, 0.6])):
        winner, valued = run(Race.of_all(keys, None, bound), values, iter([1] * 4))
        assert winner.tolist() == [1, 1]
        assert valued.tolist() == [2, 2]


def test_what_cannot_win():
    """Nothing wins where no token is left, or where a key or a value is not a number."""
    keys = torch.tensor([[0.0, 1.0], [-torch.inf, -torch.inf], [0.0, torch.nan], [0.0, 1.0]])
    values = torch.zeros(4, 2)
    values[3, 1] = torch.nan
    race = Race.of_all(keys, None)
    run(race, values, iter([1] * 4))
    assert race.failed().tolist() == [False, True, True, True]


def kept(candidates):
    return [
        set(ids[mask].tolist()) for ids, mask in zip(candidates.ids, candidates.mask, strict=True)
    ]
