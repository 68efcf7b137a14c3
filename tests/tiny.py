"""Tiny models with random weights, one of each family, and a tokenizer that knows bytes: nothing is downloaded."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sasa import Boundary, EmbeddingSpec
from sasa.core.model_info import ModelInfo

VOCABULARY = 260  # 256 bytes and four special tokens
PAD, BOS, EOS, UNKNOWN = 256, 257, 258, 259

_LLAMA = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
FAMILIES: dict[str, dict] = {
    "llama": dict(model_type="llama", **_LLAMA),
    "gpt2": dict(model_type="gpt2", n_embd=32, n_layer=3, n_head=4, n_positions=256),
    "qwen2": dict(
        model_type="qwen2", **_LLAMA, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3": dict(model_type="qwen3", **_LLAMA),
    "mistral": dict(model_type="mistral", **_LLAMA, sliding_window=6),
    "gemma2": dict(model_type="gemma2", **_LLAMA, sliding_window=6, query_pre_attn_scalar=8),
    "gemma3": dict(
        model_type="gemma3_text",
        **_LLAMA,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
    ),
    "gpt_neox": dict(
        model_type="gpt_neox",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
    ),
    "opt": dict(
        model_type="opt",
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    ),
    "falcon": dict(model_type="falcon", hidden_size=32, num_hidden_layers=3, num_attention_heads=4),
    "phi3": dict(model_type="phi3", **_LLAMA),
    "olmoe": dict(model_type="olmoe", **_LLAMA, num_experts=4, num_experts_per_tok=2),
}
REREAD_FAMILIES: dict[str, dict] = {
    "bloom": dict(model_type="bloom", hidden_size=32, n_layer=3, n_head=4),
    "mamba": dict(model_type="mamba", hidden_size=32, num_hidden_layers=3, state_size=4),
}


def model(family: str, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A tiny model in eval mode, the same weights every time, scaled up so that contexts matter."""
    settings = (
        {**FAMILIES, **REREAD_FAMILIES}[family]
        | {"vocab_size": VOCABULARY, "max_position_embeddings": 256}
        | changes
    )
    config = AutoConfig.for_model(**settings, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config).eval()
    scale = (
        2 if family == "mamba" else 6
    )  # what it multiplies with each other grows beyond what float32 holds apart
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim > 1 and "A_log" not in name:
                weight.mul_(scale)
    return made.to(dtype)


def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer; a chat turn is <user> or <assistant> by name."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    made.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return made


def boundary(model: PreTrainedModel, seed: int = 0, **spec: object) -> Boundary:
    """A boundary with a random direction, for tests that do not care what it means."""
    info = ModelInfo.of(model)
    embedding = EmbeddingSpec(**spec)
    size = info.hidden_size * len(embedding.layers)
    weight = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return Boundary(weight=weight, bias=0.3, embedding=embedding, model=info)


PEOPLE = """
[[fit]]
templates = ["We like {}.", "{} sing."]
groups = ["cats", "old owls"]
controls = ["dogs", "ants"]

[[audit]]
templates = ["Two {} came."]
groups = ["cats"]
controls = ["dogs", "mice"]
"""
"""Sentences about groups, as `sasa/recipes/people.toml` has them."""
