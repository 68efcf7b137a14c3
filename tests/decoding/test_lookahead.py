"""The look-ahead against the definition in reference.py, on every family."""

import gc
import logging
import weakref

import pytest
import reference
import tiny
import torch
from helpers import PROMPTS, families, left_padded

from sasa import SASALogitsProcessor
from sasa.decoding.lookahead import Lookahead, LookaheadCache, packs
from sasa.decoding.lookahead.lookahead import READ_TOKENS

SPECS = [
    {},
    {"pooling": "mean"},
    {"pooling": "mean", "span": "response"},
    {"layer": 1},
    {"layer": -2, "pooling": "mean"},
    {"pooling": "ema", "half_life": 3.0},
    {"pooling": "ema", "span": "response", "layer": 1},
]


def run(model, boundary, steps=8, candidates=5):
    """Greatest difference between looked-ahead and reference margins as three padded texts grow, over their size."""
    ids, mask = left_padded(PROMPTS)
    texts = [list(p) for p in PROMPTS]
    processor = SASALogitsProcessor(model, boundary, attention_mask=mask)
    draw = torch.Generator().manual_seed(1)
    worst = 0.0
    for _ in range(steps):
        chosen = torch.randint(250, (len(texts), candidates), generator=draw)
        got = processor.margins(ids, chosen)[..., 0]
        for row, (text, prompt) in enumerate(zip(texts, PROMPTS, strict=True)):
            want = reference.margins(
                model, boundary, text, chosen[row].tolist(), [tiny.EOS], len(prompt)
            )
            worst = max(worst, float(((got[row] - want).abs() / want.abs().clamp(min=1)).max()))
        ids = torch.cat([ids, chosen[:, :1]], 1)
        for text, token in zip(texts, chosen[:, 0].tolist(), strict=True):
            text.append(token)
    return worst


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("family", families(tiny.FAMILIES))
def test_margins_equal_rereading_side_by_side(family, spec):
    model = tiny.model(family)
    assert packs(model), "this family must not need the slow path"
    boundary = tiny.boundary(model, **spec)
    # sliding windows of 6 tokens; texts grow to 17
    assert run(model, boundary) < 1e-4


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_eager_attention(family):
    model = tiny.model(family, attn_implementation="eager")
    assert packs(model)
    assert run(model, tiny.boundary(model)) < 1e-4


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("family", families(tiny.REREAD_FAMILIES))
def test_models_that_cannot_pack_reread_and_say_so_once(family, spec, caplog):
    model = tiny.model(family)
    boundary = tiny.boundary(model, **spec)
    with caplog.at_level(logging.WARNING, "sasa.decoding.lookahead"):
        first = run(model, boundary, steps=4, candidates=3)
        run(model, boundary, steps=1, candidates=2)
    assert first < 1e-4
    assert sum("re-reads its text" in record.message for record in caplog.records) == 1


def test_a_model_that_misreads_the_mask_is_found_out(monkeypatch):
    """A model that takes the 4-D mask and then ignores it must not pass for one that packs."""
    model = tiny.model("llama")
    decoder = model.get_decoder()
    forward = decoder.forward

    def ignores_the_mask(*args, attention_mask=None, position_ids=None, **kwargs):
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = None
        return forward(*args, attention_mask=attention_mask, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(decoder, "forward", ignores_the_mask)
    assert not packs(model)


def test_an_interrupted_probe_is_asked_again(monkeypatch):
    model = tiny.model("bloom")
    with monkeypatch.context() as patch:
        patch.setattr(
            "sasa.decoding.lookahead.packing._disagreement",
            lambda _: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            packs(model)
    assert not packs(model)


def test_half_precision_stays_close():
    model = tiny.model("llama", torch.bfloat16)
    assert packs(model)
    boundary = tiny.boundary(model)
    assert run(model, boundary, steps=4) < 0.2


def test_batched_equals_one_by_one(model):
    boundary = tiny.boundary(model, pooling="mean")
    ids, mask = left_padded(PROMPTS)
    candidates = torch.tensor([[1, 2, 3]] * 3)
    together = SASALogitsProcessor(model, boundary, attention_mask=mask).margins(ids, candidates)
    for row, prompt in enumerate(PROMPTS):
        alone = SASALogitsProcessor(model, boundary).margins(torch.tensor([prompt]), candidates[:1])
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)


def test_many_candidates_take_several_passes(model, monkeypatch):
    boundary = tiny.boundary(model)
    ids, candidates = torch.tensor([PROMPTS[0]]), torch.arange(250)[None]
    at_once = SASALogitsProcessor(model, boundary).margins(ids, candidates)
    monkeypatch.setattr("sasa.decoding.lookahead.readers.CHUNK", 64)
    torch.testing.assert_close(
        SASALogitsProcessor(model, boundary).margins(ids, candidates), at_once, atol=1e-4, rtol=1e-4
    )


def test_the_text_is_kept_once_whatever_k_is(model):
    """Memory: keys and values (2) of B rows, layers and heads, for the text and one pass of candidates."""
    ids, mask = left_padded(PROMPTS)
    room = ids.shape[1] + 4 + 40
    look = Lookahead(model, tiny.boundary(model).embedding, mask, rows=3, positions=room)
    look.append(ids)
    look.peek(torch.randint(250, (3, 40)))
    config = model.config
    bytes_each = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    for _ in range(4):
        look.commit(torch.tensor([0, 17, 39]))
        look.peek(torch.randint(250, (3, 40)))
        assert look.nbytes == 3 * room * bytes_each
    assert look.ids.shape[1] == ids.shape[1] + 4


def test_memory_is_free_as_soon_as_nobody_needs_it(model):
    ids, mask = left_padded(PROMPTS)
    gc.disable()
    try:
        look = Lookahead(model, tiny.boundary(model).embedding, mask)
        look.append(ids)
        look.peek(ids[:, :3])
        cache = weakref.ref(look._reader.cache)
        del look
        assert cache() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("rows", [[0, 2], [0, 0, 0, 1, 1, 2], [2, 0, 1], [1]])
@pytest.mark.parametrize("reserved", [0, 6])
def test_rows_leave_multiply_and_move(model, rows, reserved):
    boundary = tiny.boundary(model, pooling="mean")
    ids, mask = left_padded(PROMPTS)
    candidates = torch.tensor([[5, 6]] * 3)
    look = Lookahead(model, boundary.embedding, mask, rows=reserved)
    look.append(ids)
    look.peek(candidates)
    look.commit(torch.tensor([0, 1, 0]))
    expected = look.peek(candidates)[0][rows]
    look.select(torch.tensor(rows))
    torch.testing.assert_close(look.peek(candidates[:1].repeat(len(rows), 1))[0], expected)


def test_layers_of_different_shapes(model):
    """Heads may differ from layer to layer, and keys may be wider than values."""
    cache = LookaheadCache(3)
    shapes = [(2, 8, 8), (4, 8, 4), (2, 8, 8)]
    states = [(torch.randn(1, h, 5, k), torch.randn(1, h, 5, v)) for h, k, v in shapes]
    for layer, (keys, values) in enumerate(states):
        cache.update(keys, values, layer)
    cache.commit(2)
    cache.move(torch.tensor([1]))
    cache.commit(1)
    for layer, (keys, values) in enumerate(states):
        new = keys[:, :, :1], values[:, :, :1]
        for before, after, own in zip((keys, values), cache.update(*new, layer), new, strict=True):
            torch.testing.assert_close(after, torch.cat([before[:, :, [0, 1, 3]], own], 2))


def test_a_cache_grows_by_and_by_beyond_its_room():
    """By so much that texts longer than was thought, as backtracking makes them, are not copied again and again."""
    cache, token = LookaheadCache(1, positions=20), torch.zeros(1, 1, 1, 4)
    sizes = set()
    for _ in range(300):
        cache.update(token, token, 0)
        cache.commit(1)
        sizes.add(cache.nbytes)
    assert 1 < len(sizes) <= 6


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in tiny.FAMILIES),
        ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 32}),
    ],
)
def test_long_prompts_take_several_passes(family, changes, monkeypatch):
    """Also where a pass holds nothing but padding of a row, and not where a part of the text would be read otherwise."""
    model = tiny.model(family, **changes)
    specs = [tiny.boundary(model, **spec).embedding for spec in SPECS]
    ids = torch.randint(250, (2, 50), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :21] = 0
    candidates = torch.tensor([[1, 2, 3], [4, 5, 6]])

    def read():
        look = Lookahead(model, specs, mask)
        look.append(ids)
        return look.peek(candidates), look.embeddings()

    at_once = read()
    monkeypatch.setitem(READ_TOKENS, "cpu", 32)
    torch.testing.assert_close(read(), at_once, atol=1e-4, rtol=1e-4)
