"""Models and inputs that the fused loop follows, and those that it refuses."""

import pytest
import reference
import tiny
import torch
from helpers import PROMPTS, generate

import sasa
from sasa import SASADecoder, SASALogitsProcessor


def test_a_head_that_the_config_does_not_tell_of_is_found_out(monkeypatch, caplog):
    model = tiny.model("llama")
    boundary = tiny.boundary(model)
    forward = model.forward

    def odd(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits.flip(-1)
        return out

    monkeypatch.setattr(model, "forward", odd)
    got = generate(model, PROMPTS[:1], SASADecoder(boundary, 2.0, top_k=6))[0].tolist()
    assert got == reference.decode(model, boundary, 2.0, PROMPTS[0], 10, [tiny.EOS], top_k=6)
    assert "does more to its logits than its config tells" in caplog.text


def test_an_unknown_logit_cap_is_found_out_in_half_precision(monkeypatch):
    from sasa.models.heads import has_plain_head

    model = tiny.model("llama", torch.bfloat16)
    assert has_plain_head(model)
    model, forward = tiny.model("llama", torch.bfloat16), type(model).forward

    def capped(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        cap = out.logits.abs().mean()
        out.logits = torch.tanh(out.logits / cap) * cap
        return out

    monkeypatch.setattr(type(model), "forward", capped)
    assert not has_plain_head(model)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 2}, "cannot be used with beam search"),
        (
            {"output_hidden_states": True, "return_dict_in_generate": True},
            "output_attentions and output_hidden_states",
        ),
    ],
)
def test_what_it_does_not_do_is_refused(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        generate(model, PROMPTS, SASADecoder(tiny.boundary(model)), **kwargs)


def test_inputs_beside_token_ids_are_refused_by_name(model, tokenizer):
    """By the decoder and by the processor: neither sees them."""
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    ids = torch.tensor([PROMPTS[0]])
    gpt2 = tiny.model("gpt2")
    settings = dict(max_new_tokens=2, do_sample=False)
    kinds = dict(input_ids=ids, token_type_ids=torch.ones_like(ids))
    with pytest.raises(ValueError, match="cannot be used with the input token_type_ids"):
        gpt2.generate(**kinds, **settings, custom_generate=SASADecoder(tiny.boundary(gpt2)))
    with pytest.raises(
        ValueError, match="the model was given the input token_type_ids beside them"
    ):
        gpt2.generate(
            **kinds, **settings, logits_processor=[SASALogitsProcessor(gpt2, tiny.boundary(gpt2))]
        )
    places = torch.arange(ids.shape[1])[None] + 5
    with pytest.raises(ValueError, match="position_ids of one's own"):
        model.generate(
            ids, position_ids=places, **settings, custom_generate=SASADecoder(tiny.boundary(model))
        )
    with pytest.raises(ValueError, match="position_ids of one's own"):
        model.generate(
            ids,
            position_ids=places,
            **settings,
            logits_processor=[SASALogitsProcessor(model, tiny.boundary(model))],
        )
    embeds = model.get_input_embeddings()(ids)
    processor = SASALogitsProcessor(model, tiny.boundary(model))
    with pytest.raises(ValueError, match="the model was given the input inputs_embeds"):
        model.generate(inputs_embeds=embeds, **settings, logits_processor=[processor])
    model.generate(ids, **settings, logits_processor=[processor])  # the next text has none
    base = tiny.model("llama")
    boundary = tiny.boundary(base)
    tuned = get_peft_model(
        base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).eval()
    for use in (
        lambda: sasa.generate(tuned, tokenizer, "abc", boundary),
        lambda: boundary.score(tuned, tokenizer, ["abc"]),
        lambda: SASALogitsProcessor(tuned, boundary),
    ):
        with pytest.raises(ValueError, match="the model puts virtual tokens before a text"):
            use()
    with pytest.raises(
        ValueError, match="PeftModelForCausalLM makes, such as the virtual tokens of prompt tuning"
    ):
        tuned.generate(input_ids=ids, **settings, custom_generate=SASADecoder(boundary))
    with pytest.raises(ValueError, match="the model was given the input inputs_embeds"):
        tuned.generate(
            input_ids=ids, **settings, logits_processor=[SASALogitsProcessor(base, boundary)]
        )
    base = tiny.model("llama")
    prefixed = get_peft_model(
        base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).eval()
    with pytest.raises(ValueError, match="inputs that PeftModelForCausalLM makes"):
        prefixed.generate(
            input_ids=ids, **settings, logits_processor=[SASALogitsProcessor(base, boundary)]
        )


def pictures():
    """A tiny model that takes pictures, too."""
    from transformers import AutoConfig, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma3",
        text_config=tiny.FAMILIES["gemma3"] | dict(model_type="gemma3_text", vocab_size=tiny.VOCABULARY),
        vision_config=dict(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
        ),
        mm_tokens_per_image=4, image_token_index=250, boi_token_index=251, eoi_token_index=252,
        pad_token_id=tiny.PAD, bos_token_id=tiny.BOS, eos_token_id=tiny.EOS,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config).eval()


def test_a_model_that_takes_pictures_is_followed_where_it_is_given_none():
    model = pictures()
    boundary = tiny.boundary(model)
    ids = torch.tensor([PROMPTS[0]])
    settings = dict(max_new_tokens=4, do_sample=False, top_k=5)
    plain = model.generate(ids, **settings)
    for kinds in ({}, {"token_type_ids": torch.zeros_like(ids)}):
        found = model.generate(ids, **kinds, **settings, custom_generate=SASADecoder(boundary, 0.0))
        assert found.tolist() == plain.tolist()
        steered = [
            model.generate(ids, **kinds, **settings, **way).tolist()
            for way in (
                {"custom_generate": SASADecoder(boundary, 2.0, top_k=5)},
                {"logits_processor": [SASALogitsProcessor(model, boundary, 2.0, top_k=5)]},
            )
        ]
        assert steered[0] == steered[1]
    shown = torch.cat([torch.tensor([[251, 250, 250, 250, 250, 252]]), ids], 1)
    picture = dict(pixel_values=torch.randn(1, 3, 16, 16), token_type_ids=(shown == 250).long())
    for kinds in (picture, {"pixel_values": picture["pixel_values"]}):
        with pytest.raises(ValueError, match="cannot be used with the input"):
            model.generate(shown, **kinds, **settings, custom_generate=SASADecoder(boundary))
        with pytest.raises(ValueError, match="reads token ids, and the model was given the input"):
            model.generate(
                shown, **kinds, **settings, logits_processor=[SASALogitsProcessor(model, boundary)]
            )


def test_what_others_give_the_model_is_not_held_against_a_text(model):
    boundary = tiny.boundary(model)
    processor = SASALogitsProcessor(model, boundary)
    ids = torch.tensor([PROMPTS[0]])
    model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=True)
    assert processor.margins(ids, torch.tensor([[3, 4]])).shape == (1, 2, 1)
    olmoe = tiny.model("olmoe")
    olmoe.generate(
        ids,
        output_router_logits=False,
        max_new_tokens=2,
        custom_generate=SASADecoder(tiny.boundary(olmoe)),
    )


def test_an_adapter_that_is_not_merged_is_followed():
    """peft's own generate(), of layers that it has changed: what the reference writes with them."""
    from peft import LoraConfig, get_peft_model

    base = tiny.model("llama")
    boundary = tiny.boundary(base)
    tuned = get_peft_model(
        base,
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False),
    )
    ids = torch.tensor([PROMPTS[0]])
    out = tuned.eval().generate(
        input_ids=ids,
        max_new_tokens=6,
        do_sample=False,
        custom_generate=SASADecoder(boundary, 2.0, top_k=10),
    )
    want = reference.decode(base, boundary, 2.0, PROMPTS[0], 6, [tiny.EOS], top_k=10)
    assert out[0, ids.shape[1] :].tolist()[: len(want)] == want


def test_a_model_that_is_not_on_one_device_is_refused(tokenizer):
    from accelerate import cpu_offload

    from sasa.models.inputs import check_model

    model = tiny.model("llama")
    boundary = tiny.boundary(model)
    ids = torch.tensor([PROMPTS[0]])
    with pytest.raises(
        ValueError, match=r"input_ids are on meta and the model is on cpu: give ids\.to"
    ):
        check_model(model, ids.to("meta"))
    cpu_offload(model, execution_device="cpu")
    for use in (
        lambda: sasa.generate(model, tokenizer, "abc", boundary),
        lambda: model.generate(ids, custom_generate=SASADecoder(boundary)),
        lambda: SASALogitsProcessor(model, boundary),
        lambda: boundary.score(model, tokenizer, ["abc"]),
        lambda: sasa.embed(model, tokenizer, ["abc"]),
    ):
        with pytest.raises(ValueError, match="the model is offloaded"):
            use()


def test_a_cache_that_is_already_filled_is_refused(model):
    mamba = tiny.model("mamba")
    states = mamba(torch.tensor([PROMPTS[0]]), use_cache=True).cache_params
    with pytest.raises(ValueError, match="a cache that is already filled"):
        mamba.generate(
            torch.tensor([PROMPTS[0] + [3]]),
            cache_params=states,
            custom_generate=SASADecoder(tiny.boundary(mamba)),
        )
    filled = model(torch.tensor([PROMPTS[0]]), use_cache=True).past_key_values
    ids = torch.tensor([PROMPTS[0] + [3]])
    with pytest.raises(ValueError, match="a cache that is already filled"):
        model.generate(
            ids,
            past_key_values=filled,
            custom_generate=SASADecoder(tiny.boundary(model)),
            max_new_tokens=2,
        )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta": -2}, "beta must be >= 0, got -2"),
        ({"top_p": 2.0}, "top_p must be"),
        ({"top_k": -1}, "top_k must be"),
    ],
)
def test_bad_arguments(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        SASADecoder(tiny.boundary(model), **kwargs)
    with pytest.raises(ValueError, match="hidden_size: fitted on 48"):
        generate(model, PROMPTS, SASADecoder(tiny.boundary(tiny.model("llama", hidden_size=48))))
