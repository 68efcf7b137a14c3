"""Checkpoints of a training loop: a safetensors file of weights, AdamW's state, step and log.

A file is written beside its place and moved there, and the one before it is deleted only then:
killed at any moment, a training finds a whole one.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Learner = tuple[dict[str, nn.Parameter], torch.optim.Optimizer]
"""Weights by name, and the optimizer that was made of their values in this order."""


def save(
    folder: Path, step: int, learners: Mapping[str, Learner], log: Sequence[dict[str, Any]]
) -> None:
    """Writes a checkpoint in place of the ones before it."""
    tensors: dict[str, Tensor] = {}
    for who, (weights, optimizer) in learners.items():
        known = optimizer.state_dict()["state"]
        for number, (name, weight) in enumerate(weights.items()):
            tensors[f"{who}/weight/{name}"] = weight.detach()
            tensors |= {
                f"{who}/{key}/{name}": value for key, value in known.get(number, {}).items()
            }
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".step-")
    os.close(handle)
    try:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, temporary, {"sasa": json.dumps({"step": step, "log": list(log)})})
        os.replace(temporary, folder / f"step-{step:06d}.safetensors")
    except BaseException:
        os.unlink(temporary)
        raise
    for file in folder.glob("step-*.safetensors"):
        if _step(file) < step:
            file.unlink()
    for file in folder.glob(".step-*"):  # what was killed while it was written
        file.unlink()


def newest(folder: Path) -> Path | None:
    """The last checkpoint in a folder."""
    return max(folder.glob("step-*.safetensors"), key=_step, default=None)


def restore(file: Path, learners: Mapping[str, Learner]) -> tuple[int, list[dict[str, Any]]]:
    """Takes weights and optimizers back to a checkpoint; its step and log."""
    with safetensors.safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["sasa"])
        keys = {key: tuple(key.split("/", 2)) for key in opened.keys()}  # noqa: SIM118
        for who, (weights, optimizer) in learners.items():
            state: dict[int, dict[str, Tensor]] = {}
            numbers = {name: number for number, name in enumerate(weights)}
            with torch.no_grad():
                for key, (owner, kind, name) in keys.items():
                    if owner != who:
                        continue
                    if kind == "weight":
                        weights[name].copy_(opened.get_tensor(key))
                    else:
                        state.setdefault(numbers[name], {})[kind] = opened.get_tensor(key)
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return about["step"], about["log"]


def _step(file: Path) -> int:
    return int(re.sub(r"\D", "", file.stem))
