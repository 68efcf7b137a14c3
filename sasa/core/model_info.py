"""ModelInfo: the facts by which a boundary recognizes its model."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class ModelInfo:
    """What must agree between the model that a boundary was fitted on and any that it serves."""

    id: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int

    def __post_init__(self) -> None:
        for name, kind in (("id", str), ("model_type", str), *((n, int) for n in SIZES)):
            if not isinstance(value := getattr(self, name), kind):
                raise ValueError(f"the model's {name} must be {kind.__name__}, got {value!r}")

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelInfo:
        config = model.config.get_text_config()
        return cls(
            id=str(model.config._name_or_path or ""),
            model_type=config.model_type,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            vocab_size=config.vocab_size,
        )

    def differences(self, other: ModelInfo, strict: bool = True) -> list[str]:
        """The fields in which two models differ, as text. Ids count by their last part.

        If not `strict`, neither they nor the vocabulary count: a fine-tune may have gained tokens.
        """
        found = []
        for name, mine in asdict(self).items():
            theirs = getattr(other, name)
            if name == "id":
                a, b = (re.split(r"[/\\]", x.rstrip("/\\"))[-1].lower() for x in (mine, theirs))
                if not strict or not a or not b or a == b:
                    continue
            elif mine == theirs or (name == "vocab_size" and not strict):
                continue
            found.append(f"{name}: fitted on {mine!r}, this model has {theirs!r}")
        return found
