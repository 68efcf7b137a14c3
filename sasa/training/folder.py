"""The folder of a training: its settings, checkpoints, and the result that `sasa.load` loads.

training.json     settings, counts, and when all is done versions and the log
checkpoints/      while it lasts
adapter_config.json, adapter_model.safetensors, or a whole model
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.models.load import ADAPTER
from sasa.utils.files import read_json, write_atomically
from sasa.utils.run_folder import RunFolder

ABOUT = "training.json"
CHECKPOINTS = "checkpoints"


def check_packages(*names: str, extra: str = "train") -> None:
    """Raises ImportError if a package is missing; `extra` is the extra that installs it."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        old = (
            "; trl needs Python 3.11 or later"
            if "trl" in missing and sys.version_info < (3, 11)
            else ""
        )
        raise ImportError(
            f"training needs {' and '.join(missing)}: pip install 'sasa-decoding[{extra}]'{old}"
        )


def base_name(model: PreTrainedModel, base: str | None, lora: int) -> str:
    """The name of an adapter's base for `sasa.load`: as given, else the model's own name.

    Raises:
        ValueError: an adapter is to be trained, and that name is none that `sasa.load` could load.
    """
    if base is not None:
        return base
    name = str(model.config._name_or_path or "")
    if lora and not ((name and Path(name).is_dir()) or re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        raise ValueError(
            f"the model goes by {name!r}, which sasa.load does not know: "
            "give base=, for the adapter to name"
        )
    return name


def training_folder(path: str | os.PathLike[str]) -> RunFolder:
    """The run folder of a training; `training` and `model` of training.json are its settings."""
    return RunFolder(Path(path), ABOUT, "a training", sections=("training", "model"))


def is_done(about: dict[str, Any]) -> bool:
    """Whether the training that training.json, `about`, belongs to is done."""
    return "log" in about


def save_adapter(
    adapted: Any, folder: str | os.PathLike[str], base: str, name: str = "default"
) -> None:
    """Saves one adapter of a peft model into a folder, as one on top of `base`."""
    # Embeddings of new tokens are not trained: `sasa.models.load.fit_vocabulary` draws them again.
    adapted.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
    place = Path(folder) if name == "default" else Path(folder) / name
    # what peft writes is where the weights were, such as a cache folder
    settings = read_json(place / ADAPTER) | {"base_model_name_or_path": base}
    write_atomically(place / ADAPTER, json.dumps(settings, indent=2) + "\n")


def finish(
    folder: RunFolder,
    about: dict[str, Any],
    log: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    packages: Sequence[str],
) -> None:
    """Saves the tokenizer and, last of all, the log: with it a training is done."""
    tokenizer.save_pretrained(folder.path)
    versions = {name: importlib.metadata.version(name) for name in packages}
    folder.write(about | {"versions": versions, "log": list(log)})
