"""The limits of a draw, and which of them transformers applies and which the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from sasa.core.settings import TOP_K, TOP_P, check_truncation

LATER = ("typical_p", "epsilon_cutoff", "eta_cutoff", "watermarking_config")
"""Arguments of `model.generate` that it applies after top-k and top-p."""


def first_given(*values: Any) -> Any:
    """The first value that is not None; None if there is none."""
    return next((value for value in values if value is not None), None)


@dataclass(frozen=True)
class Limits:
    """The limits of a draw. Raises ValueError for one outside its range."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float | None

    @classmethod
    def of(
        cls,
        config: GenerationConfig,
        do_sample: bool,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        min_p: float | None,
    ) -> Limits:
        """The limits given; for None the model's generation config, and where that has none, the defaults."""
        return cls(
            do_sample=do_sample,
            temperature=first_given(temperature, config.temperature, 1.0),
            top_k=first_given(top_k, config.top_k, TOP_K),
            top_p=first_given(top_p, config.top_p, TOP_P),
            min_p=first_given(min_p, config.min_p),
        )

    def __post_init__(self) -> None:
        check_truncation(self.top_k, self.top_p, self.min_p)
        if self.do_sample and not self.temperature > 0:
            hint = ": do_sample=False decodes greedily" if self.temperature == 0 else ""
            raise ValueError(f"temperature must be > 0, got {self.temperature}{hint}")

    def divided(self, by_decoder: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments of `model.generate` and those of `SASADecoder` by which the same candidates
        survive.

        Args:
            by_decoder: whether the decoder may truncate. It sorts the tokens that top-k left, where
                transformers sorts the vocabulary. On a GPU sorting is quick, and the decoder would
                wait for the device.
        """
        ours = {"top_k": self.top_k, "top_p": self.top_p}
        if not self.do_sample:
            # Greedy decoding truncates nothing, but SASA has to choose the tokens that it reads.
            # transformers gets its defaults: it warns about other values.
            return {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}, ours
        theirs: dict[str, Any] = {
            "temperature": float(self.temperature),
            "min_p": self.min_p or None,
        }
        if by_decoder and not self.min_p:
            return theirs | {"top_k": 0, "top_p": 1.0}, ours
        return theirs | ours, {"top_k": 0}
