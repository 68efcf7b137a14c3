"""Boundary: the one fitted line through a language model's hidden space that everything shares.

It holds what it was fitted on (`ModelInfo`), how a text becomes the vector that it measures
(`EmbeddingSpec`), and the line itself. Nothing here reads a text or runs a model: this file needs
torch and safetensors only. `sasa.score` and `sasa.trace` measure texts, `sasa.push_to_hub` uploads.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import numbers
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors
from safetensors.torch import save as to_bytes
from torch import Tensor

from sasa.core.embedding_spec import EmbeddingSpec, Text
from sasa.core.model_info import ModelInfo
from sasa.core.shipped import FILE_NAME, FORMAT, about, bundled
from sasa.utils.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Boundary:
    """A linear boundary between safe and unsafe text in a model's hidden space.

    Attributes:
        weight: float32 (d,), d the hidden size, or of several layers the sum of theirs; the margin
            of an embedding h is weight @ h + bias, positive on the safe side.
        bias: in the margin's unit: the log-odds of the fitted Gaussians with both classes equally
            likely.
        embedding: how a text becomes the h that was fitted.
        model: the model whose hidden space this is.
        scale, shift: the calibration; scale * margin + shift are log-odds of safe as held-out data
            has them, the classes weighted equally. scale > 0, so that calibrated and raw margins
            agree on every order.
        attribute: what the unsafe side is: `toxicity`, …
        report: the provenance: corpora, counts, held-out metrics, versions. Plain JSON values.
    """

    weight: Tensor
    bias: float
    embedding: EmbeddingSpec
    model: ModelInfo
    scale: float = 1.0
    shift: float = 0.0
    attribute: str = "toxicity"
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weight.ndim != 1 or not self.weight.isfinite().all() or not self.weight.any():
            raise ValueError("weight must be a finite, non-zero vector")
        if len(self.weight) != self.model.hidden_size * len(self.embedding.layers):
            raise ValueError(
                f"weight has {len(self.weight)} entries, hidden_size is {self.model.hidden_size}"
                + (
                    f" in each of {len(self.embedding.layers)} layers"
                    if len(self.embedding.layers) > 1
                    else ""
                )
            )
        for name in ("bias", "scale", "shift"):
            if not isinstance(number := getattr(self, name), numbers.Real) or not math.isfinite(
                number
            ):
                raise ValueError(f"{name} must be a finite number, got {number!r}")
        for name, kind in (("attribute", str), ("report", dict)):
            if not isinstance(value := getattr(self, name), kind):
                raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
        if not self.scale > 0:
            raise ValueError(f"the calibration's scale must be > 0, got {self.scale}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What was unpickled may lie anywhere in memory, and the last bit of a product depends on where.
        self.__dict__.update(state | {"weight": state["weight"].clone()})

    def margin(self, hidden: Tensor) -> Tensor:
        """Signed margins, float32 (...), of embeddings (..., d); positive is safe."""
        return hidden.float() @ self.weight.to(hidden.device) + self.bias

    def log_odds(self, margin: Tensor, prior: float | Tensor = 0.5) -> Tensor:
        """Calibrated log-odds of being safe, of margins of any shape.

        Args:
            prior: the share of text that is unsafe, in (0, 1), by Bayes' rule; at 0.5 both classes
                are equally likely, as the calibration has them. A tensor has one for each margin.
        """
        odds = (1 - prior) / prior
        return self.scale * margin + (
            self.shift + (odds.log() if isinstance(odds, Tensor) else math.log(odds))
        )

    def p_safe(self, margin: float) -> float:
        """Calibrated probability of being safe, both classes equally likely, of one margin."""
        return 1 / (1 + math.exp(-max(-700.0, self.scale * margin + self.shift)))

    @property
    def fingerprint(self) -> str:
        """16 hex digits of weight, bias, calibration and embedding spec."""
        told = f"{self.bias!r} {self.scale!r} {self.shift!r} {self.embedding}".encode()
        return hashlib.sha256(told + self.weight.cpu().numpy().tobytes()).hexdigest()[:16]

    def to(self, device: Any) -> Boundary:
        return replace(self, weight=self.weight.to(device))

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[Text],
        *,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Margins, float32 (N,), of whole texts or (prompt, response) pairs: `sasa.score`."""
        return _public("score")(
            model, tokenizer, texts, self, batch_size=batch_size, progress=progress
        )

    def trace(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Text
    ) -> tuple[list[str], Tensor]:
        """The margin of a text as it grows, T tokens as strings and float32 (T,): `sasa.trace`."""
        return _public("trace")(model, tokenizer, text, self)

    def check(self, model: PreTrainedModel, strict: bool = True) -> None:
        """Raises ValueError with every field that differs, if it was fitted for another model.

        `strict=False` lets another model id pass where the architecture agrees: a fine-tune, a
        renamed folder.
        """
        different = self.model.differences(ModelInfo.of(model), strict)
        if different:
            hint = (
                ""
                if self.model.differences(ModelInfo.of(model), False)
                else (
                    "; if it is the same model under another name, or a fine-tune of it, load the boundary with strict=False"
                )
            )
            raise ValueError(
                f"this {self.attribute} boundary does not fit the model: {'; '.join(different)}{hint}"
            )

    # --- files ---

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the boundary, atomically, as safetensors with JSON metadata.

        A path without that ending is a folder.
        """
        path = Path(path)
        path = path if path.suffix == ".safetensors" else path / FILE_NAME
        told = {
            "format": FORMAT,
            "attribute": self.attribute,
            "bias": self.bias,
            "scale": self.scale,
            "shift": self.shift,
            "embedding": self.embedding.to_dict(),
            "model": asdict(self.model),
            "report": self.report,
        }
        weight = self.weight.detach().cpu().contiguous()
        write_atomically(path, to_bytes({"weight": weight}, {"sasa": json.dumps(told)}))
        return path

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        model: PreTrainedModel | None = None,
        *,
        strict: bool = True,
        device: Any = None,
    ) -> Boundary:
        """A boundary from a file, a folder, the bundled ones (by attribute, with `model`) or the
        Hub (`owner/name`).

        Args:
            model: checked against the boundary, which moves to the model's device.
            strict: see `check`.

        Raises:
            FileNotFoundError: nothing of that name, with what there is.
            ValueError: the file is damaged or not a boundary, or it does not fit the model.
        """
        boundary = cls._read(cls.find(name, model, strict))
        if model is not None:
            boundary.check(model, strict)
            if not strict:  # settled here once, so that no later check asks again
                boundary = replace(boundary, model=replace(ModelInfo.of(model), id=""))
            if device is None and model.device.type != "meta":
                device = model.device
        return boundary if device is None else boundary.to(device)

    @classmethod
    def find(
        cls, name: str | os.PathLike[str], model: PreTrainedModel | None = None, strict: bool = True
    ) -> Path:
        """The file of what `load` would load, fetched from the Hub where it is there; errors as there."""
        path = Path(name)
        if path.is_dir() and (path / FILE_NAME).is_file():
            return path / FILE_NAME
        if path.is_file():
            return path
        name = str(name)
        shipped = bundled()
        if name in shipped:
            return shipped[name]
        of_attribute = {
            key: made
            for key, file in shipped.items()
            if (made := cls._read(file)).attribute == name
        }
        if of_attribute:
            if model is None:
                raise ValueError(
                    f"which {name!r} boundary? Give model=, or one of: {', '.join(of_attribute)}"
                )
            info, reasons = ModelInfo.of(model), []
            for key, made in of_attribute.items():
                different = made.model.differences(info, strict)
                if not different:
                    return shipped[key]
                reasons.append(different[0])
            hint = (
                "If it is one of these under another name, give strict=False (--no-strict). "
                if strict
                else ""
            )
            raise FileNotFoundError(
                f"no bundled {name!r} boundary for this model ({'; '.join(reasons)}). "
                f"{hint}Fit one: sasa fit --recipe {name} --model {info.id or 'MODEL'} --output DIR"
            )
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix != ".safetensors":
            from huggingface_hub import hf_hub_download

            try:
                return Path(hf_hub_download(name, FILE_NAME))
            except Exception as error:
                raise FileNotFoundError(
                    f"no boundary at {name!r}: not a local path, and the Hub says: {error}"
                ) from error
        raise FileNotFoundError(
            f"no boundary {name!r}: not a file, not a folder with {FILE_NAME}, not bundled ({', '.join(shipped)})"
        )

    @classmethod
    def _read(cls, path: Path) -> Boundary:
        told = about(path)
        try:
            with safetensors.safe_open(path, "pt") as file:
                weight = file.get_tensor("weight").float().clone()  # see __setstate__
        except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged or not a boundary file: {error}") from error
        try:
            told["embedding"] = EmbeddingSpec(**told["embedding"])
            told["model"] = ModelInfo(**told["model"])
            return cls(weight=weight, **told)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} does not hold a valid boundary: {error}") from error

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None
    ) -> str:
        """Uploads the boundary and its card to a Hub model repository: `sasa.push_to_hub`."""
        return _public("push_to_hub")(self, repo_id, private=private, token=token)


def _public(name: str) -> Callable[..., Any]:
    """A public function of `sasa` by its name, imported when it is called: the rule itself needs no model."""
    return cast(Callable[..., Any], getattr(importlib.import_module("sasa"), name))
