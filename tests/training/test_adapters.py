"""New tokens, and adapters that are saved, loaded, or refused."""

from __future__ import annotations

import importlib.util
import json

import pytest
import tiny
import torch

import sasa
from sasa.training import Training, train_backtracking
from sasa.training.backtracking import add_reset_token
from sasa.training.folder import check_packages

trl = pytest.importorskip("trl", reason="pip install 'sasa-decoding[train]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")


def test_new_tokens_are_drawn_where_the_others_are():
    for tied in (False, True):
        model, tokenizer = tiny.model("llama", tie_word_embeddings=tied), tiny.tokenizer()
        old = model.get_output_embeddings().weight.detach().clone()
        reset = add_reset_token(model, tokenizer)
        assert reset == tiny.VOCABULARY == add_reset_token(model, tokenizer)
        new = model.get_output_embeddings().weight.detach()
        assert torch.equal(new[:-1], old)
        assert (
            0.5
            < float((new[-1] - old.mean(0)).norm() / (old - old.mean(0)).norm(dim=1).mean())
            < 1.5
        )
        again = tiny.model("llama", tie_word_embeddings=tied)
        add_reset_token(again, tiny.tokenizer())
        for one, other in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, other)


def test_rows_that_fill_up_a_vocabulary_are_drawn_anew():
    model, tokenizer = tiny.model("llama", vocab_size=272), tiny.tokenizer()
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny.VOCABULARY :] = 0.5
    reset = add_reset_token(model, tokenizer)
    table = model.get_input_embeddings().weight.detach()
    assert len(table) == 272
    assert table[reset].std() > 0.5 * table[:reset].std()
    assert (table[reset + 1 :] == 0.5).all()


@pytest.mark.slow
def test_an_adapter_gives_what_was_trained(corpus, fresh, tmp_path):
    """Loaded again, the merged weights write what the trained model wrote."""
    model, tokenizer = fresh
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    training = Training(corpus, lora=4, epochs=2, learning_rate=1e-2, max_length=200)
    out = train_backtracking(
        model, tokenizer, training, tmp_path / "out", base=str(tmp_path / "base")
    )
    loaded, words = sasa.load(str(out), device="cpu")
    ids = torch.tensor([words("Any 0.").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(ids).logits, model.eval()(ids).logits, atol=1e-3, rtol=1e-3
        )
    # a second training on top of the first
    again = Training(corpus, "dpo", lora=4, epochs=1, max_length=200)
    on_top = train_backtracking(loaded, words, again, tmp_path / "dpo", base=str(out))
    assert sasa.load(str(on_top), device="cpu")[0].config.vocab_size == tiny.VOCABULARY + 1


def test_an_adapter_without_a_tokenizer_has_its_models(tmp_path):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    tiny.model("llama").save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    kinds = {
        "lora": LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False
        ),
        "soft": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    }
    for name, config in kinds.items():
        base = sasa.load(tmp_path / "base", device="cpu")[0]
        get_peft_model(base, config).save_pretrained(tmp_path / name)
    model, tokenizer = sasa.load(tmp_path / "lora", device="cpu")
    assert tokenizer("abc").input_ids == tiny.tokenizer()("abc").input_ids
    ids = torch.tensor([[3, 4]])
    assert not torch.allclose(model(ids).logits, tiny.model("llama")(ids).logits)
    with pytest.raises(
        ValueError, match="of the kind PROMPT_TUNING: it puts virtual tokens before a text"
    ):
        sasa.load(tmp_path / "soft", device="cpu")
    tiny.model("llama", hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"does not go with .*base"):
        sasa.load(tmp_path / "lora", device="cpu")
    (tmp_path / "lora" / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"adapter_config\.json cannot be read"):
        sasa.load(tmp_path / "lora", device="cpu")
    for change in ({"peft_type": ["LORA"]}, {"base_model_name_or_path": 5}, {"r": "x"}):
        tiny.model("llama").save_pretrained(tmp_path / "base")
        settings = {
            "peft_type": "LORA",
            "base_model_name_or_path": str(tmp_path / "base"),
            "task_type": "CAUSAL_LM",
        } | change
        (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match="adapter"):
            sasa.load(tmp_path / "lora", device="cpu")


def test_weights_that_are_damaged(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="is damaged, or no model that can be read"):
        sasa.load(tmp_path, device="cpu")


def test_an_adapter_of_other_layers_is_no_adapter(tmp_path):
    from peft import LoraConfig, get_peft_model

    tiny.model("llama").save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    base = sasa.load(tmp_path / "base", device="cpu")[0]
    get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    ).save_pretrained(tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["k_proj"]}))
    with pytest.raises(ValueError, match="missing adapter keys"):
        sasa.load(tmp_path / "lora", device="cpu")


def test_adapters_that_cannot_be_read(tmp_path, monkeypatch):
    settings = tmp_path / "adapter_config.json"
    settings.write_text("{}")
    with pytest.raises(ValueError, match="does not say what model it was trained on"):
        sasa.load(str(tmp_path), device="cpu")
    settings.write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    with pytest.raises(ValueError, match="names itself"):
        sasa.load(f"~/{tmp_path.name}", device="cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="reading it needs peft"):
        sasa.load(str(tmp_path), device="cpu")
    with pytest.raises(ImportError, match="training needs trl and peft"):
        check_packages("trl", "peft")
