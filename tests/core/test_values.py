"""What margins are worth, and several boundaries at once, against the definition in reference.py."""

from dataclasses import replace

import pytest
import reference
import tiny
import torch
from helpers import PROMPTS, families, left_padded

import sasa
from sasa import SASADecoder, SASALogitsProcessor
from sasa.core.values import load_terms

SEVERAL = [
    dict(seed=1),
    dict(seed=2, layer=1, pooling="mean"),
    dict(seed=3, layer=(1, -1), pooling="ema", span="response", half_life=2.0),
]
WEIGHTS = [1.0, 0.5, 2.0]


def boundaries(model):
    made = [tiny.boundary(model, **settings) for settings in SEVERAL]
    return [
        (replace(b, scale=0.3 + i, shift=0.2), w)
        for i, (b, w) in enumerate(zip(made, WEIGHTS, strict=True))
    ]


@pytest.mark.parametrize(
    ("value", "prior"), [("raw", 0.05), ("log_sigmoid", 0.05), ("log_sigmoid", 0.5)]
)
@pytest.mark.parametrize("family", families(["llama", "gemma3", "bloom"], quick=["llama"]))
def test_several_boundaries_steer_as_the_reference_has_it(family, value, prior):
    """In one forward pass, at layers and poolings of their own."""
    model = tiny.model(family)
    several = boundaries(model)
    ids = torch.tensor([PROMPTS[0]])
    settings = dict(top_k=8, top_p=0.95)
    for seed in (None, 3):
        want = reference.decode(
            model,
            several,
            1.5,
            PROMPTS[0],
            10,
            [tiny.EOS],
            **settings,
            seed=seed,
            value=value,
            prior=prior,
        )
        for how in (
            {"custom_generate": SASADecoder(several, 1.5, value=value, prior=prior, **settings)},
            {
                "logits_processor": [
                    SASALogitsProcessor(model, several, 1.5, value=value, prior=prior, **settings)
                ]
            },
        ):
            if seed is not None:
                torch.manual_seed(seed)
            sampling = dict(
                do_sample=seed is not None, top_k=0, max_new_tokens=10, pad_token_id=tiny.PAD
            )
            got = model.generate(ids, **sampling, **how)[0, len(PROMPTS[0]) :].tolist()
            assert got[: len(want)] == want


def test_several_margins_come_with_a_text(model, tokenizer):
    several = boundaries(model)
    (made,) = sasa.generate(model, tokenizer, "abc def", several, 0.5, seed=0, max_new_tokens=6)
    assert made.margin == made.margins[0]
    for (boundary, _), margin in zip(several, made.margins, strict=True):
        ids = tokenizer("abc def")["input_ids"]
        text = reference.embedding(
            model, [*ids, *(t for t in made.tokens if t != tiny.EOS)], boundary, len(ids)
        )
        assert margin == pytest.approx(float(boundary.margin(text)), abs=1e-3)


def test_one_boundary_and_weights(model):
    """A list of one is that one, and weights scale as beta does."""
    boundary = tiny.boundary(model)
    ids, mask = left_padded(PROMPTS)
    scores = torch.randn(3, tiny.VOCABULARY, generator=torch.Generator().manual_seed(0))
    made = [
        SASALogitsProcessor(model, given, beta, attention_mask=mask, value="log_sigmoid")(
            ids, scores
        )
        for given, beta in ((boundary, 2.0), ([(boundary, 1.0)], 2.0), ([(boundary, 4.0)], 0.5))
    ]
    torch.testing.assert_close(made[0], made[1])
    torch.testing.assert_close(made[0], made[2])


def test_the_log_probability_of_being_safe_is_bayes_rule(model):
    """At beta = 1: proportional to p(token) * P(safe | text and token), a tenth of all text being unsafe."""
    boundary = replace(tiny.boundary(model), scale=0.7, shift=-0.4)
    ids = torch.tensor([PROMPTS[0]])
    scores = reference.logits(model, PROMPTS[0])[None]
    processor = SASALogitsProcessor(model, boundary, 1.0, top_k=12, value="log_sigmoid", prior=0.1)
    got = processor(ids, scores)[0].softmax(-1)
    likeliest = scores[0].topk(12).indices
    odds = boundary.log_odds(
        processor.margins(ids, likeliest[None])[0, :, 0]
    ).exp()  # of classes as large as each other
    safe = 0.9 * odds / (0.9 * odds + 0.1)
    want = scores[0, likeliest].softmax(-1) * safe
    torch.testing.assert_close(got[likeliest], want / want.sum(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(value="cubed"), "value must be one of raw, log_sigmoid, got 'cubed'"),
        (dict(boundary=[]), "no boundary"),
        (dict(prior=0.0), r"prior must be in \(0, 1\), the share of text that is unsafe, got 0.0"),
        (dict(prior=5), "got 5"),
        (dict(boundary="weight"), "a boundary's weight must be >= 0, got -1.0"),
    ],
)
def test_bad_arguments(model, given, message):
    boundary = tiny.boundary(model)
    if given.get("boundary") == "weight":
        given = dict(boundary=[(boundary, -1.0)])
    for make in (lambda **g: SASADecoder(**g), lambda **g: SASALogitsProcessor(model, **g)):
        with pytest.raises(ValueError, match=message):
            make(**(dict(boundary=boundary) | given))


def test_boundaries_that_read_a_text_differently_are_refused(model, tokenizer):
    pair = [(tiny.boundary(model), 1.0), (tiny.boundary(model, special_tokens=False), 1.0)]
    with pytest.raises(ValueError, match="different special_tokens"):
        sasa.generate(model, tokenizer, "abc", pair)


def test_boundaries_by_name_with_weights(model, tmp_path):
    boundary = tiny.boundary(model)
    name = str(boundary.save(tmp_path / "line").parent)
    found = load_terms([name, f"{name}::0.5", (boundary, 2.0), (name, 0.0)], model, strict=False)
    assert [weight for _, weight in found] == [1.0, 0.5, 2.0, 0.0]
    assert {line.fingerprint for line, _ in found} == {boundary.fingerprint}
    for bad in ("toxicity::", "toxicity::much"):
        with pytest.raises(ValueError, match="--boundary is NAME or NAME::WEIGHT"):
            load_terms([bad], model, what="--boundary")
    with pytest.raises(ValueError, match="weight must be >= 0"):
        load_terms([(boundary, -1.0)], model)
