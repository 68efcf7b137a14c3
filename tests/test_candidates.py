import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from sasa.candidates import select

# Few distinct values, so that ties at the k-th place are common.
rows = st.lists(
    st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(float("-inf"))), min_size=7, max_size=7).filter(
        lambda row: max(row) > float("-inf")
    ),
    min_size=1,
    max_size=4,
)


@given(rows, st.sampled_from([None, 0, 1, 3, 7, 100]))
def test_top_k_keeps_what_transformers_keeps(values, top_k):
    scores = torch.tensor(values)
    expected = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    assert kept(select(scores, top_k)) == [set(row.isfinite().nonzero()[:, 0].tolist()) for row in expected]


@given(st.integers(0, 10_000), st.sampled_from([None, 3, 50]), st.floats(0.05, 1.0))
def test_top_k_then_top_p_keeps_what_transformers_keeps(seed, top_k, top_p):
    scores = torch.randn(3, 60, generator=torch.Generator().manual_seed(seed)) * 3
    expected = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, scores) if top_k else scores)
    found = select(scores, top_k, top_p)
    assert kept(found) == [set(row.isfinite().nonzero()[:, 0].tolist()) for row in expected]
    assert found.ids.shape[1] == max(map(len, kept(found))), "K must be no wider than the widest row"


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


def kept(candidates):
    return [set(ids[mask].tolist()) for ids, mask in zip(candidates.ids, candidates.mask, strict=True)]
