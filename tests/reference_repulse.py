"""RePULSe on a model small enough to know everything of: 32 words, three of them, 32,768 sequences, enumerated in float64.

The definition that `sasa.training` and `sasa.evaluation.tail` are held to: slow, obvious, and without a sample.
"""

from __future__ import annotations

import copy
import functools
import itertools

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

WORDS, LENGTH = 32, 3
SEQUENCES = list(itertools.product(range(WORDS), repeat=LENGTH))
PROMPT = "w1 w2"
BAD = -2.0
"""Sequences with a reward below are bad."""


def model(seed: int = 0) -> PreTrainedModel:
    """A random model whose next word depends on the text, in eval mode. It has no end-of-sequence token."""
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
        made.lm_head.weight.mul_(1.5)
    made.config._name_or_path = "me/exact"
    return made


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def log_probs(model: PreTrainedModel, prompt: str = PROMPT) -> Tensor:
    """Log-probability of every sequence, float64 (32768,), differentiable where the model is in float64."""
    ids = tokenizer()(prompt).input_ids
    total = torch.zeros(1, dtype=torch.float64)
    for length in range(LENGTH):
        texts = torch.tensor(
            [[*ids, *words] for words in itertools.product(range(WORDS), repeat=length)]
        )
        logits = model(input_ids=texts, use_cache=False).logits[:, -1].double()
        total = (total[:, None] + logits.log_softmax(-1)).flatten()
    return total


def doubled(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).double().requires_grad_(True)


@functools.cache
def rewards() -> Tensor:
    """Of every sequence, float64 (32768,): each word is worth something, and some pairs of words in a row are bad, some worse."""
    draw = torch.Generator().manual_seed(5)
    worth = torch.rand(WORDS, generator=draw, dtype=torch.float64)
    pairs = map(tuple, torch.randint(WORDS, (8, 2), generator=draw).tolist())
    costs = dict(zip(pairs, torch.linspace(3.5, 9, 8).tolist(), strict=True))
    return torch.stack(
        [
            worth[list(words)].sum()
            - max(costs.get(pair, 0.0) for pair in itertools.pairwise(words))
            for words in SEQUENCES
        ]
    )


def reward(prompts: list[str], completions: list[str]) -> list[float]:
    """The same of texts."""
    known = _by_text()
    return [known[" ".join(text.split())] for text in completions]


@functools.cache
def _by_text() -> dict[str, float]:
    return {
        " ".join(f"w{i}" for i in words): float(r)
        for words, r in zip(SEQUENCES, rewards(), strict=True)
    }


def sigma(log_p: Tensor, beta: float) -> Tensor:
    """Log-probabilities of the bad outputs' distribution, proportional to p(s) * exp(-beta * r(s))."""
    return (log_p - beta * rewards()).log_softmax(0)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum()


def p_bad(log_p: Tensor) -> Tensor:
    return log_p.exp()[rewards() < BAD].sum()


def mean_return(log_p: Tensor, log_p0: Tensor, beta_kl: float) -> Tensor:
    return (log_p.exp() * (rewards() - (log_p - log_p0) / beta_kl)).sum()
