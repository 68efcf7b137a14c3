"""Compiled steps write what the plain ones write."""

import functools
from dataclasses import replace

import pytest
import tiny
import torch
from helpers import PROMPTS, families, generate

from sasa import SASADecoder
from sasa.decoding import passes
from sasa.decoding.lookahead import replay


@pytest.fixture
def graphs(monkeypatch):
    """Compiles without generating code, which takes half a minute, and counts the graphs."""
    replay._compiled.cache_clear()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setitem(torch._dynamo.utils.counters["stats"], "unique_graphs", 0)
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    replay._compiled.cache_clear()


@pytest.mark.parametrize("spec", [{}, {"layer": 1, "pooling": "mean"}], ids=str)
@pytest.mark.parametrize(
    "family", families(["llama", "gpt2", "mistral", "gemma3", "falcon", "olmoe"], quick=["llama"])
)
def test_a_compiled_step_writes_the_same(family, spec, graphs):
    model = tiny.model(family)
    boundary = tiny.boundary(model, **spec)
    for new in (10, 14, 14):  # the third takes over the second's memory
        got, want = (
            generate(
                model, PROMPTS, SASADecoder(boundary, 2.0, top_k=8, top_p=0.9, compiled=c), 3, new
            )
            for c in (True, False)
        )
        assert torch.equal(got, want)
    if family != "olmoe":  # whose experts ask for values
        assert graphs() == 1, "texts, lengths and numbers of candidates must not be compiled in"


@pytest.mark.slow
def test_a_model_that_was_cast_does_not_take_over_its_old_memory(graphs):
    model = tiny.model("llama")
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        got, want = (
            generate(
                model, PROMPTS, SASADecoder(tiny.boundary(model), 2.0, top_k=8, compiled=c), 3, 10
            )
            for c in (True, False)
        )
        assert torch.equal(got, want)


@pytest.mark.slow
def test_more_candidates_than_a_compiled_step_takes(model, graphs, monkeypatch):
    boundary = tiny.boundary(model, pooling="mean")
    for value, reserved in (("raw", 100), ("raw", 30), ("log_sigmoid", 64)):
        monkeypatch.setattr("sasa.decoding.passes.RESERVED_CANDIDATES", reserved)
        got, want = (
            generate(model, PROMPTS, SASADecoder(boundary, 2.0, value=value, compiled=c), 3)
            for c in (True, False)
        )
        assert torch.equal(got, want)


@pytest.mark.slow
def test_compiled_passes_of_an_odd_width(model, graphs, monkeypatch):
    """The order of a vocabulary comes in blocks that the width does not divide, and hard steps read many."""
    monkeypatch.setitem(passes.PASS, "cpu", 4 * 21)  # 21 of each row
    boundary = replace(tiny.boundary(model), scale=3.0, bias=-20.0)  # hardly anything is safe
    settings = dict(temperature=20.0, top_k=0, new=6, return_dict_in_generate=True)
    got, want = (
        generate(model, PROMPTS, SASADecoder(boundary, 5.0, compiled=c), 3, **settings)
        for c in (True, False)
    )
    assert torch.equal(got.sequences, want.sequences)
    assert got.candidates_read.max() > 6 * 85, "more in a step than there is room for"


def test_what_cannot_be_compiled_is_refused():
    model = tiny.model("bloom")
    with pytest.raises(ValueError, match="compiled=True needs candidates side by side"):
        generate(model, PROMPTS, SASADecoder(tiny.boundary(model), compiled=True))
