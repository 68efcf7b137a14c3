"""Drawing from a model as it is, and how likely it is to write what was drawn: against reading each text alone."""

import pytest
import reference_repulse as exact
import tiny
import torch
from helpers import families
from scipy import stats

from sasa.decoding.sampling import log_probs, sample

PROMPTS = [[5, 6, 7, 8, 9], [70, 71]]


@torch.no_grad()
def drawn_one_by_one(model, prompts, count, max_new_tokens, seed, temperature):
    """The definition: each text read alone from its first token, and the token at which the distribution passes the noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = [
        torch.rand(len(prompts) * count, generator=generator, dtype=torch.float64)
        for _ in range(max_new_tokens)
    ]
    found = []
    for row in range(len(prompts) * count):
        text = list(prompts[row // count])
        for step in range(max_new_tokens):
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].float()
            passed = (logits / temperature).softmax(-1).double().cumsum(-1) > noise[step][row]
            text.append(int(passed.int().argmax()))
            if text[-1] == tiny.EOS:
                break
        found.append(text[len(prompts[row // count]) :])
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("family", families())
def test_samples_are_those_of_reading_each_text_alone(family, temperature):
    model = tiny.model(family)
    with torch.no_grad():  # that some texts end early, and others go on
        model.get_output_embeddings().weight[tiny.EOS] *= 2
    found = sample(model, PROMPTS, 5, 8, seed=3, temperature=temperature)
    assert found == drawn_one_by_one(model, PROMPTS, 5, 8, 3, temperature)
    assert sample(model, PROMPTS, 5, 8, seed=4, temperature=temperature) != found


def test_a_text_ends_with_its_eos():
    model = tiny.model("llama")
    model.generation_config.eos_token_id = list(range(40))
    found = sample(model, PROMPTS, 20, 6, seed=0)
    assert {len(row) for row in found} >= {1, 2, 6}
    for row in found:
        assert all(token >= 40 for token in row[:-1])
        assert row[-1] < 40 or len(row) == 6


def test_samples_come_as_often_as_they_are_probable():
    model = exact.model()
    want = exact.log_probs(model).detach().exp()
    rows = sample(model, [exact.tokenizer()(exact.PROMPT).input_ids], 40_000, exact.LENGTH, seed=1)
    index = torch.tensor([(a * exact.WORDS + b) * exact.WORDS + c for a, b, c in rows])
    order = want.argsort(descending=True)
    bins = torch.empty_like(order)
    bins[order] = (
        (want[order].cumsum(0) - want[order]) * 100
    ).long()  # each holds about a hundredth
    expected = torch.zeros(100, dtype=torch.float64).index_add(0, bins, want)
    found = torch.bincount(bins[index], minlength=100)
    assert (
        stats.chisquare(found.numpy(), (expected / expected.sum() * len(rows)).numpy()).pvalue
        > 0.001
    )


def test_generation_settings_change_nothing():
    """A repetition penalty or a top-k in a model's config would make samples that are not the model's own."""
    model = tiny.model("llama")
    want = sample(model, PROMPTS, 4, 8, seed=0)
    model.generation_config.update(
        repetition_penalty=5.0, top_k=1, temperature=0.1, do_sample=False
    )
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert sample(model, PROMPTS, 4, 8, seed=0) == want
    assert torch.equal(torch.random.get_rng_state(), state)


def by_hand(model, prompts, completions, temperature):
    each, found = len(completions) // len(prompts), []
    for i, row in enumerate(completions):
        prompt = prompts[i // each]
        logits = (
            model(input_ids=torch.tensor([[*prompt, *row]])).logits[0, len(prompt) - 1 : -1].float()
        )
        found.append((logits / temperature).log_softmax(-1)[torch.arange(len(row)), row])
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("family", families(["llama", "gemma3", "qwen2", "olmoe", "mamba"]))
def test_log_probabilities_and_their_gradients(family, temperature):
    model = tiny.model(family)
    completions = [[1, 2, 3], [], [4, 5, 6, 7], [8]]
    want = by_hand(model, PROMPTS, completions, temperature)
    weights = torch.linspace(-1, 2, 4)
    sum(w * one.sum() for w, one in zip(weights, want, strict=True)).backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = log_probs(model, PROMPTS, completions, temperature)
    assert found.shape == (4, 4)
    for row, one in zip(found, want, strict=True):
        torch.testing.assert_close(row[: len(one)], one, atol=2e-4, rtol=2e-4)
        assert not row[len(one) :].any()
    (weights * found.sum(1)).sum().backward()
    for name, p in model.named_parameters():
        if name in gradient:
            scale = max(1e-3, float(gradient[name].abs().max()))
            torch.testing.assert_close(p.grad / scale, gradient[name] / scale, atol=2e-3, rtol=0)


def test_nothing_written_has_no_log_probabilities():
    assert log_probs(tiny.model("llama"), PROMPTS, [[], []]).shape == (2, 0)
