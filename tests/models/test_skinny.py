"""Products with few rows: PyTorch's results, wherever the kernel takes over and wherever it does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from sasa.models import skinny

needs_kernel = pytest.mark.skipif(skinny.kernel() is None, reason="no C compiler, or not Linux")


@needs_kernel
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 10, 13, 50, 64, 65])
@pytest.mark.parametrize(("k", "n"), [(64, 96), (576, 192), (37, 4), (7, 8), (130, 36)])
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_pytorch(rows, k, n, threads):
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, k), torch.randn(n, k), torch.randn(n)
    torch.set_num_threads(threads)
    try:
        for b in (None, bias):
            expected = linear(x.double(), weight.double(), None if b is None else b.double())
            torch.testing.assert_close(
                skinny.skinny_linear(x, weight, b).double(), expected, atol=1e-4 * k**0.5, rtol=1e-5
            )
    finally:
        torch.set_num_threads(1)


@needs_kernel
def test_a_row_does_not_depend_on_the_others():
    x, weight = torch.randn(3, 17, 96), torch.randn(40, 96)
    together = skinny.skinny_linear(x, weight)
    assert together.shape == (3, 17, 40)
    assert torch.equal(skinny.skinny_linear(x[1:2, 3:7], weight), together[1:2, 3:7])


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.randn(3, 8, dtype=torch.bfloat16), torch.randn(4, 8, dtype=torch.bfloat16)),
        (torch.randn(3, 8), torch.randn(5, 8)),  # 5 columns
        (torch.randn(3, 8), torch.randn(8, 4).T),  # not in order
        (torch.randn(8, 3).T, torch.randn(4, 8)),
        (torch.randn(0, 8), torch.randn(4, 8)),
    ],
)
def test_what_it_is_not_made_for(x, weight):
    with torch.no_grad():
        torch.testing.assert_close(skinny.skinny_linear(x, weight), linear(x, weight))


def test_gradients_are_pytorchs():
    layer = nn.Linear(8, 4)
    model = nn.Sequential(layer)
    x = torch.randn(3, 8)
    with skinny.skinny_linears(model):
        model(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, 8))


@needs_kernel
def test_layers_are_as_before_afterwards(monkeypatch):
    calls = []
    monkeypatch.setattr(
        skinny, "skinny_linear", lambda x, w, b: calls.append(len(x)) or linear(x, w, b)
    )
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    own = lambda x: x[:, :4]  # noqa: E731, someone else's forward stays
    model[1].forward = own
    with torch.no_grad(), pytest.raises(RuntimeError), skinny.skinny_linears(model):
        model(torch.randn(3, 9))  # nine columns do not fit
    assert calls == [3]
    assert "forward" not in model[0].__dict__
    assert model[1].forward is own


@needs_kernel
def test_layers_that_came_later_are_found_once_the_model_is_forgotten():
    model = nn.Sequential(nn.Linear(8, 8))
    with skinny.skinny_linears(model):
        assert "forward" in model[0].__dict__
    model.append(nn.Linear(8, 4))
    skinny.forget(model)
    with skinny.skinny_linears(model):
        assert all("forward" in layer.__dict__ for layer in model)


def test_without_a_compiler_it_is_pytorch(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("SASA_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "missing"))
    monkeypatch.setenv("PATH", "")
    skinny.kernel.cache_clear()
    try:
        assert skinny.kernel() is None
        assert "no C compiler" in caplog.text
        x, weight = torch.randn(3, 8), torch.randn(4, 8)
        torch.testing.assert_close(skinny.skinny_linear(x, weight), linear(x, weight))
    finally:
        skinny.kernel.cache_clear()


@needs_kernel
def test_it_can_be_switched_off(monkeypatch):
    layer = nn.Linear(8, 4)
    forwards = []
    for value in ("1", "0"):
        monkeypatch.setenv("SASA_SKINNY", value)
        skinny.kernel.cache_clear()
        try:
            with skinny.skinny_linears(layer):
                forwards.append("forward" in layer.__dict__)
        finally:
            skinny.kernel.cache_clear()
    assert forwards == [True, False]
