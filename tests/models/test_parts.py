"""The first layers of a model, and the rest of them, against the whole."""

import pytest
import tiny
import torch
from helpers import families

from sasa import EmbeddingSpec
from sasa.decoding.lookahead import Lookahead
from sasa.models.embedding import embed
from sasa.models.parts import first_layers, last_layers
from sasa.models.states import hidden_states

POSITIONS_WITH_THE_EMBEDDINGS = {
    "gpt2",
    "opt",
    "bloom",
}  # these are added, or normed, before the first layer
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13]])


@pytest.mark.parametrize("family", families(tiny.FAMILIES))
def test_both_parts_together_are_the_whole(family):
    model = tiny.model(family)
    mask = torch.ones_like(IDS)
    (state,), last = hidden_states(model, IDS, (2,), attention_mask=mask)
    torch.testing.assert_close(
        first_layers(model, 2)(IDS, attention_mask=mask, use_cache=False).last_hidden_state, state
    )
    rest = last_layers(model, 2)
    assert (rest is None) == (family in POSITIONS_WITH_THE_EMBEDDINGS)
    if rest is not None:
        torch.testing.assert_close(
            rest(inputs_embeds=state, attention_mask=mask, use_cache=False).last_hidden_state, last
        )


def test_the_model_stays_as_it_is(model):
    before = model.generate(
        IDS,
        max_new_tokens=5,
        do_sample=False,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    part = first_layers(model, 1)
    assert len(part.layers) == 1
    assert part.layers[0] is model.model.layers[0]
    after = model.generate(
        IDS,
        max_new_tokens=5,
        do_sample=False,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(before.sequences, after.sequences)
    assert len(after.hidden_states[0]) == len(before.hidden_states[0]) == 4


@pytest.mark.parametrize("depth", [0, 3])
def test_no_part_is_the_whole_or_nothing(model, depth):
    assert first_layers(model, depth) is None
    assert last_layers(model, depth) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda decoder: setattr(decoder, "forward", decoder.forward),
        lambda decoder: decoder.register_forward_hook(lambda *_: None),
        lambda decoder: decoder.register_forward_pre_hook(lambda *_: None),
    ],
)
def test_a_decoder_that_somebody_has_changed_is_read_whole(change):
    """Also where it came apart before: what was done to the whole must not be done to a part, or be left out."""
    model = tiny.model("llama")
    assert first_layers(model, 1) is not None
    change(model.get_decoder())
    assert first_layers(model, 1) is None
    assert last_layers(model, 1) is None


def test_layers_above_the_boundary_do_not_run_for_an_embedding():
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    ids = torch.tensor([tokenizer("so he said").input_ids])
    (state,), _ = hidden_states(model, ids, (1,), attention_mask=torch.ones_like(ids))
    assert first_layers(model, 1) is not None
    ran = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, *_: ran.append(module))
    found = embed(model, tokenizer, ["so he said"], EmbeddingSpec(layer=1))
    assert ran == [model.model.layers[0]]
    torch.testing.assert_close(found, state[:, -1])


@pytest.mark.parametrize("family", families(tiny.FAMILIES))
def test_layers_above_the_boundary_run_for_the_chosen_candidate_only(family):
    model = tiny.model(family)
    look = Lookahead(model, EmbeddingSpec(layer=1), torch.ones_like(IDS))
    look.append(IDS)
    assert look.last.shape == (1, model.config.hidden_size)
    widths = []
    (layers,) = (
        child for child in model.get_decoder().children() if isinstance(child, torch.nn.ModuleList)
    )
    layers[2].register_forward_hook(lambda module, args, output: widths.append(args[0].shape[1]))
    look.peek(IDS[:, :4])
    look.commit(torch.tensor([2]))
    assert widths == ([4] if family in POSITIONS_WITH_THE_EMBEDDINGS else [1])
