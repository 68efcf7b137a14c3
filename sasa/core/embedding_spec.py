"""EmbeddingSpec: how a text becomes one vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Text: TypeAlias = "str | tuple[str, str]"
"""A text, or a (prompt, response) pair."""

POOLINGS = ("last", "mean", "ema")
SPANS = ("text", "response")
TEMPLATES = ("none", "chat")


@dataclass(frozen=True)
class EmbeddingSpec:
    """How a text becomes one vector. A boundary carries the one that it was fitted with.

    Attributes:
        layer: index into the model's hidden states: 0 the token embeddings, -1 the last (after the
            final norm). Of several, the vector is one layer's states behind the other's.
        pooling: `last`, the state at the last token, `mean`, the average over the span, or `ema`,
            its exponential moving average.
        half_life: of `ema`: a state counts half as much as one so many tokens later.
        span: what is averaged: the whole `text`, or only the `response` of a (prompt, response)
            pair.
        template: `none`, or `chat`: the prompt is put through the tokenizer's chat template as the
            user's turn.
        special_tokens: whether the tokenizer adds its special tokens (BOS) to a text without a chat
            template.
        max_length: in tokens; longer texts lose their end, longer pairs first the start of the
            prompt.
    """

    layer: int | tuple[int, ...] = -1
    pooling: Literal["last", "mean", "ema"] = "last"
    half_life: float = 8.0
    span: Literal["text", "response"] = "text"
    template: Literal["none", "chat"] = "none"
    special_tokens: bool = True
    max_length: int = 512

    def __post_init__(self) -> None:
        if not isinstance(self.layer, int):
            object.__setattr__(
                self, "layer", tuple(self.layer) if len(self.layer) != 1 else self.layer[0]
            )
        if not self.layers or not all(type(layer) is int for layer in self.layers):
            raise ValueError(f"layer must be an integer or several, got {self.layer!r}")
        if type(self.max_length) is not int or type(self.special_tokens) is not bool:
            raise ValueError(
                f"max_length must be an integer and special_tokens True or False, got {self}"
            )
        for name, allowed in (("pooling", POOLINGS), ("span", SPANS), ("template", TEMPLATES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.max_length < 1:
            raise ValueError(f"max_length must be >= 1, got {self.max_length}")
        if not self.half_life > 0:
            raise ValueError(f"half_life must be > 0, got {self.half_life}")

    @property
    def layers(self) -> tuple[int, ...]:
        """`layer`, be it one or several."""
        return (self.layer,) if isinstance(self.layer, int) else self.layer

    def of_layers(self, states: Tensor, layers: Sequence[int]) -> Tensor:
        """This spec's states (..., d), of states (L, ..., hidden size) of several layers."""
        found = [states[layers.index(layer)] for layer in self.layers]
        return found[0] if len(found) == 1 else torch.cat(found, -1)

    @property
    def decay(self) -> float:
        """What a state's weight in an average is multiplied by with each token after it."""
        return 0.5 ** (1 / self.half_life) if self.pooling == "ema" else 1.0

    def to_dict(self) -> dict[str, Any]:
        own = asdict(self)
        if self.pooling != "ema":
            del own["half_life"]
        return own


def layers_of(specs: Sequence[EmbeddingSpec]) -> tuple[int, ...]:
    """The layers that embeddings come from, each once."""
    return tuple(dict.fromkeys(layer for spec in specs for layer in spec.layers))
