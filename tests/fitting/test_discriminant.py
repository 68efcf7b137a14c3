import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.covariance import OAS, EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from sasa.fitting import GaussianStatistics, linear_discriminant
from sasa.fitting.discriminant import oracle_approximating_shrinkage

D = 5


def sample(n=400, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    mixing = rng.normal(size=(D, D))
    return rng.normal(size=(n, D)) @ mixing + np.outer(y, np.arange(D) / 3) + offset, y


vectors = arrays(
    np.float64, st.tuples(st.integers(2, 30), st.just(D)), elements=st.floats(-100, 100)
)


@given(vectors, st.data())
def test_any_split_merges_into_the_whole(x, data):
    y = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(x), max_size=len(x))))
    cut = data.draw(st.integers(0, len(x)))
    whole = GaussianStatistics.empty(D).partial_fit(x, y)
    parts = GaussianStatistics.empty(D).partial_fit(x[:cut], y[:cut])
    parts.merge(GaussianStatistics.empty(D).partial_fit(x[cut:], y[cut:]))
    np.testing.assert_array_equal(parts.count, whole.count)
    np.testing.assert_allclose(parts.mean, whole.mean, atol=1e-8)
    np.testing.assert_allclose(parts.scatter, whole.scatter, atol=1e-6)
    for c in (0, 1):
        if (y == c).any():
            np.testing.assert_allclose(whole.mean[c], x[y == c].mean(0), atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_without_shrinkage_it_is_scikit_learns(offset):
    x, y = sample(offset=offset)
    weight, bias, _ = linear_discriminant(
        GaussianStatistics.empty(D).partial_fit(x, y), shrinkage=0.0
    )
    theirs = LinearDiscriminantAnalysis("lsqr").fit(x, y)
    # theirs divides the scatter by n, ours by n - 2, and theirs adds the log-odds of the classes' counts
    factor = len(x) / (len(x) - 2)
    np.testing.assert_allclose(weight * factor, theirs.coef_[0], rtol=1e-6)
    balance = np.log(y.mean() / (1 - y.mean()))
    np.testing.assert_allclose(bias * factor, theirs.intercept_[0] - balance, rtol=1e-6)


def test_the_margin_is_the_log_odds_of_the_two_gaussians():
    """Against the densities themselves, with both classes equally likely, whatever the corpus' balance."""
    from scipy.stats import multivariate_normal

    x, y = sample(4000)
    keep = (y == 0) | (np.arange(len(y)) % 5 == 0)  # one class is rare
    x, y = x[keep], y[keep]
    statistics = GaussianStatistics.empty(D).partial_fit(x, y)
    weight, bias, _ = linear_discriminant(statistics, 0.0)
    covariance = statistics.scatter / (len(x) - 2)
    log = [multivariate_normal(mean, covariance).logpdf(x[:50]) for mean in statistics.mean]
    np.testing.assert_allclose(x[:50] @ weight + bias, log[1] - log[0], atol=1e-6)


def test_automatic_shrinkage_is_oas():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 30))
    x -= x.mean(0)
    covariance = EmpiricalCovariance(assume_centered=True).fit(x).covariance_
    assert oracle_approximating_shrinkage(covariance, len(x)) == pytest.approx(
        OAS(assume_centered=True).fit(x).shrinkage_
    )


def test_shrinkage_makes_a_singular_covariance_usable():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(20, 50)), np.arange(20) % 2
    x[:, 0] = 1.0  # a constant dimension
    x[:, 1:] += y[:, None]
    weight, bias, shrinkage = linear_discriminant(GaussianStatistics.empty(50).partial_fit(x, y))
    assert 0 < shrinkage <= 1
    assert np.isfinite(weight).all()
    assert weight[0] == 0
    assert (((x @ weight + bias) > 0) == y).mean() > 0.9


def test_scale_of_a_dimension_does_not_matter():
    """Hidden states have dimensions a thousand times larger than the rest: shrinkage must not drown the others."""
    x, y = sample(60)
    scales = np.array([1e3, 1.0, 1.0, 1e-2, 1.0])
    one, _, _ = linear_discriminant(GaussianStatistics.empty(D).partial_fit(x, y))
    other, _, _ = linear_discriminant(GaussianStatistics.empty(D).partial_fit(x * scales, y))
    np.testing.assert_allclose(other * scales, one, rtol=1e-6)


def test_saved_statistics_come_back(tmp_path):
    x, y = sample()
    saved = GaussianStatistics.empty(D).partial_fit(x, y)
    (tmp_path / "s.safetensors").write_bytes(saved.to_bytes())
    loaded = GaussianStatistics.load(tmp_path / "s.safetensors")
    for name in ("count", "mean", "scatter"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, D + 1)), [0, 1, 0], r"expected vectors \(n, 5\)"),
        (np.zeros((3, D)), [0, 1], r"labels \(n,\)"),
        (np.zeros((3, D)), [0, 1, 2], "labels must be 0 or 1"),
        (np.full((3, D), np.nan), [0, 1, 0], "not finite"),
    ],
)
def test_bad_vectors(x, y, message):
    with pytest.raises(ValueError, match=message):
        GaussianStatistics.empty(D).partial_fit(x, y)


def test_too_little_to_fit_on():
    with pytest.raises(ValueError, match=r"at least two texts, got \[3, 1\]"):
        linear_discriminant(GaussianStatistics.empty(D).partial_fit(np.eye(4, D), [0, 0, 0, 1]))
    with pytest.raises(ValueError, match="shrinkage must be 'auto' or in"):
        linear_discriminant(GaussianStatistics.empty(D).partial_fit(*sample()), 1.5)
    with pytest.raises(ValueError, match="cannot merge statistics of 5 and 4"):
        GaussianStatistics.empty(D).merge(GaussianStatistics.empty(4))
