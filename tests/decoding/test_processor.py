import pytest
import reference
import tiny
import torch
from helpers import PROMPTS, families, generate, left_padded
from transformers import DynamicCache

from sasa import SASADecoder, SASALogitsProcessor
from sasa.decoding.lookahead import packs

ISSUE_FAMILIES = ["llama", "gpt2", "qwen2", "qwen3", "mistral", "gemma2", "gemma3"]


@pytest.mark.parametrize("family", families(ISSUE_FAMILIES))
@pytest.mark.parametrize("spec", [{}, {"pooling": "mean", "span": "response"}], ids=str)
@pytest.mark.parametrize("seed", [None, 3])
def test_generate_writes_what_the_reference_writes(family, spec, seed):
    model = tiny.model(family)
    boundary = tiny.boundary(model, **spec)
    processor = SASALogitsProcessor(model, boundary, beta=2.0, top_k=8, top_p=0.95)
    got = generate(model, PROMPTS[:1], processor=processor, seed=seed)[0].tolist()
    want = reference.decode(
        model, boundary, 2.0, PROMPTS[0], 10, [tiny.EOS], top_k=8, top_p=0.95, seed=seed
    )
    assert got[: len(want)] == want


@pytest.mark.parametrize("family", families(ISSUE_FAMILIES))
def test_distribution_equals_the_reference(family):
    model = tiny.model(family)
    boundary = tiny.boundary(model)
    ids, mask = left_padded(PROMPTS)
    scores = torch.stack([reference.logits(model, prompt) for prompt in PROMPTS])
    got = SASALogitsProcessor(model, boundary, beta=1.5, top_k=12, attention_mask=mask)(ids, scores)
    for row, prompt in enumerate(PROMPTS):
        want = reference.reweighted(model, boundary, 1.5, prompt, scores[row], [tiny.EOS], top_k=12)
        assert torch.equal(got[row].isfinite(), want.isfinite())
        torch.testing.assert_close(got[row].softmax(-1), want.softmax(-1), atol=1e-4, rtol=0)


def test_batch_greedy_equals_each_row_alone(model):
    boundary = tiny.boundary(model)
    together = generate(
        model, PROMPTS, processor=SASALogitsProcessor(model, boundary, 3.0, top_k=10)
    )
    for row, prompt in enumerate(PROMPTS):
        want = reference.decode(model, boundary, 3.0, prompt, 10, [tiny.EOS], top_k=10)
        assert together[row].tolist()[: len(want)] == want


def test_beta_zero_is_plain_sampling_bit_for_bit(model):
    processor = SASALogitsProcessor(model, tiny.boundary(model), beta=0)
    scores = torch.randn(2, tiny.VOCABULARY)
    assert processor(torch.tensor([[1, 2], [3, 4]]), scores) is scores
    assert torch.equal(
        generate(model, PROMPTS, seed=5), generate(model, PROMPTS, processor=processor, seed=5)
    )


def test_beta_pulls_towards_the_safe_side(model):
    boundary = tiny.boundary(model)
    ids = torch.tensor([PROMPTS[0]])
    scores = reference.logits(model, PROMPTS[0])[None]
    expected = []
    for beta in (0.01, 0.5, 4.0):
        processor = SASALogitsProcessor(model, boundary, beta, top_k=20)
        p = processor(ids, scores)[0].softmax(-1)
        chosen = p.nonzero()[:, 0]
        expected.append(float((p[chosen] * processor.margins(ids, chosen[None])[0, :, 0]).sum()))
    assert expected[0] < expected[1] < expected[2]


def test_num_return_sequences_with_the_mask_of_the_distinct_prompts(model):
    boundary = tiny.boundary(model, pooling="mean")
    _, mask = left_padded(PROMPTS)
    given = SASALogitsProcessor(model, boundary, top_k=5, attention_mask=mask)
    inferred = SASALogitsProcessor(model, boundary, top_k=5)
    one, other = (
        generate(model, PROMPTS, processor=p, seed=1, num_return_sequences=3)
        for p in (given, inferred)
    )
    assert one.shape[0] == 9
    assert torch.equal(one, other)


def test_beam_search_reads_moved_rows_again(model):
    """Beams reorder rows between steps: the margins must be those of the rows as they are now."""
    boundary = tiny.boundary(model, pooling="mean", span="response")
    calls = []

    class Checked(SASALogitsProcessor):
        def margins(self, input_ids, candidates):
            found = super().margins(input_ids, candidates)
            got = found[..., 0]
            for row in range(len(input_ids)):
                text = input_ids[row].tolist()
                want = reference.margins(
                    model, boundary, text, candidates[row].tolist(), [tiny.EOS], 9
                )
                torch.testing.assert_close(got[row], want, atol=1e-3, rtol=1e-3)
            calls.append(len(input_ids))
            return found

    generate(model, PROMPTS[:1], processor=Checked(model, boundary, top_k=6), num_beams=3)
    assert len(calls) > 5


def test_one_processor_serves_several_generations(model):
    boundary = tiny.boundary(model, pooling="mean", span="response")
    processor = SASALogitsProcessor(model, boundary, top_k=6)
    for prompts in ([PROMPTS[0]], PROMPTS, [PROMPTS[1]]):
        again = SASALogitsProcessor(model, boundary, top_k=6)
        assert torch.equal(
            generate(model, prompts, processor=processor), generate(model, prompts, processor=again)
        )


def test_eos_gets_the_margin_of_the_text_that_it_ends(model):
    boundary = tiny.boundary(model)
    got = SASALogitsProcessor(model, boundary).margins(
        torch.tensor([PROMPTS[0]]), torch.tensor([[tiny.EOS, 7]])
    )[..., 0]
    text = boundary.margin(reference.embedding(model, PROMPTS[0], boundary))
    assert float(got[0, 0]) == pytest.approx(float(text), abs=1e-4)
    assert float(got[0, 1]) != pytest.approx(float(text), abs=1e-2)


def test_several_eos_ids(model):
    processor = SASALogitsProcessor(model, tiny.boundary(model), eos_token_id=[7, 8])
    got = processor.margins(torch.tensor([PROMPTS[0]]), torch.tensor([[7, 8, tiny.EOS]]))[0, :, 0]
    assert got[0] == got[1] != got[2]


def test_leading_pads_are_padding_even_where_texts_open_with_the_same_token():
    """GPT-2 pads with the token that also opens texts; the longest row tells which is which."""
    model = tiny.model("gpt2")
    model.generation_config.pad_token_id = model.generation_config.bos_token_id = tiny.BOS
    boundary = tiny.boundary(model, pooling="mean")
    rows = [[tiny.BOS, 5, 6, 7], [tiny.BOS, tiny.BOS, tiny.BOS, 9]]
    got = SASALogitsProcessor(model, boundary).margins(
        torch.tensor(rows), torch.tensor([[1], [1]])
    )[..., 0]
    for row, text in enumerate([[tiny.BOS, 5, 6, 7], [tiny.BOS, 9]]):
        torch.testing.assert_close(
            got[row], reference.margins(model, boundary, text, [1], []), atol=1e-4, rtol=1e-4
        )


def test_padding_with_eos_where_the_model_knows_no_pad_token():
    """As generate() does, for GPT-2 and Llama base models."""
    model = tiny.model("gpt2")
    model.generation_config.pad_token_id = model.config.pad_token_id = None
    boundary = tiny.boundary(model, pooling="mean")
    rows = torch.tensor([[5, 6, 7], [tiny.EOS, tiny.EOS, 9]])
    got = SASALogitsProcessor(model, boundary).margins(rows, torch.tensor([[1], [1]]))[..., 0]
    torch.testing.assert_close(
        got[1], reference.margins(model, boundary, [9], [1], []), atol=1e-4, rtol=1e-4
    )


def test_default_truncation_is_bounded(model):
    scores = torch.randn(1, tiny.VOCABULARY)
    ids = torch.tensor([PROMPTS[0]])
    boundary = tiny.boundary(model)
    assert SASALogitsProcessor(model, boundary)(ids, scores).isfinite().sum() == 20
    assert (
        SASALogitsProcessor(model, boundary, top_k=0)(ids, scores).isfinite().sum()
        == tiny.VOCABULARY
    )


def test_tokens_that_are_already_out_stay_out(model):
    scores = torch.randn(2, tiny.VOCABULARY)
    scores[:, 10:] = -torch.inf
    scores[1, 3:] = -torch.inf
    out = SASALogitsProcessor(model, tiny.boundary(model), top_k=5)(
        torch.tensor([[1, 2], [3, 4]]), scores
    )
    assert out.isfinite().sum(1).tolist() == [5, 3]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta": -1.0}, "beta must be >= 0, got -1.0"),
        ({"beta": float("nan")}, "beta must be >= 0, got nan"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\]"),
        ({"top_k": -3}, "top_k must be"),
    ],
)
def test_bad_arguments(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        SASALogitsProcessor(model, tiny.boundary(model), **kwargs)


def test_a_boundary_for_another_model_is_refused(model):
    other = tiny.model("llama", hidden_size=48, num_attention_heads=4)
    with pytest.raises(ValueError, match="hidden_size: fitted on 48, this model has 32"):
        SASALogitsProcessor(model, tiny.boundary(other))


def test_training_mode_is_refused():
    model = tiny.model("llama")
    boundary = tiny.boundary(model)
    model.train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        SASALogitsProcessor(model, boundary)(
            torch.tensor([[1, 2]]), torch.zeros(1, tiny.VOCABULARY)
        )


def test_a_mask_of_another_shape_is_refused(model):
    processor = SASALogitsProcessor(model, tiny.boundary(model), attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"attention_mask is \(1, 3\), the prompts are \(1, 4\)"):
        processor(torch.tensor([[1, 2, 3, 4]]), torch.zeros(1, tiny.VOCABULARY))


@pytest.mark.parametrize(("family", "passes"), [("llama", 1), ("mistral", 2)])
def test_the_prompt_is_read_once_where_the_cache_of_generate_can_be_seen(
    family, passes, monkeypatch
):
    """Whole texts in generate()'s cache serve the look-ahead, too; a sliding window's do not."""
    model = tiny.model(family)
    boundary = tiny.boundary(model, pooling="mean")
    packs(model)
    widths = []
    decoder = model.get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    processor = SASALogitsProcessor(model, boundary, 2.0, top_k=5)
    got = generate(model, PROMPTS, processor=processor, seed=5)
    handle.remove()
    assert sum(width >= len(PROMPTS[0]) for width in widths) == passes
    plain_cache = SASALogitsProcessor(model, boundary, 2.0, top_k=5)
    monkeypatch.setattr(plain_cache, "on_forward", lambda *_: None)
    assert torch.equal(got, generate(model, PROMPTS, processor=plain_cache, seed=5))


def test_a_model_is_as_it_was_once_its_processor_is_gone():
    model = tiny.model("llama")
    processor = SASALogitsProcessor(model, tiny.boundary(model), 2.0, top_k=5)
    cached = {
        "input_ids": torch.tensor(PROMPTS[:1]),
        "past_key_values": DynamicCache(config=model.config),
    }
    assert "hidden_states" not in model(**cached)
    assert (
        len(model(**cached, output_hidden_states=True).hidden_states)
        == model.config.num_hidden_layers + 1
    )
    del processor
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_releases_of_transformers_that_number_layers_otherwise(family, monkeypatch):
    """Before 5.23 a pass took a list of layers for something else, or for True: there, all states are asked for."""
    monkeypatch.setattr("sasa.models.parts.STATES_BY_NUMBER", False)
    model = tiny.model(family)
    boundary = tiny.boundary(model, pooling="mean", layer=(1, 2))
    asked = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: asked.append(kwargs.get("output_hidden_states")), with_kwargs=True
    )
    want = reference.decode(model, boundary, 2.0, PROMPTS[0], 10, [tiny.EOS], top_k=8, seed=3)
    asked.clear()
    processor = SASALogitsProcessor(model, boundary, 2.0, top_k=8)
    assert (
        generate(model, PROMPTS[:1], processor=processor, seed=3)[0].tolist()[: len(want)] == want
    )
    decoder = generate(
        model, PROMPTS[:1], seed=3, custom_generate=SASADecoder(boundary, 2.0, top_k=8)
    )
    assert decoder[0].tolist()[: len(want)] == want
    assert not any(isinstance(one, list) for one in asked)
    assert any(asked)
