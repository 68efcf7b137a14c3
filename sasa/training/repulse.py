"""RePULSe: training that makes a model's bad outputs improbable (Zhao et al. 2025).

The paper is arXiv 2510.21184.

Reinforcement learning lowers the probability of what it samples, and the worst outputs it hardly
ever samples. RePULSe learns a second model beside the first, a proposal that finds them, and lowers
their probability directly. `sasa.training.objectives` has both losses, `sasa.training.models` the
models, `sasa.training.trainer` the loop.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.model_info import ModelInfo
from sasa.decoding.prompts import encode_prompts
from sasa.decoding.sampling import sample
from sasa.evaluation.rewards import Reward
from sasa.models.states import check_ready
from sasa.training import objectives
from sasa.training.card import card, plot
from sasa.training.checkpoint import newest
from sasa.training.folder import (
    CHECKPOINTS,
    base_name,
    check_packages,
    finish,
    is_done,
    training_folder,
)
from sasa.training.models import POLICY, PROPOSAL, Models
from sasa.training.settings import Repulse
from sasa.training.trainer import Trainer, score_completions
from sasa.utils.files import write_atomically
from sasa.utils.run_folder import RunFolder

PROPOSAL_CARD = """# A proposal: not for use

This model was trained, beside another one, to write the worst of what that one could write (RePULSe, Zhao et al. 2025). It is
harmful by design and was kept to measure how rare such text has become: `sasa bench tail --proposal FOLDER`.
"""


def train_repulse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: Reward,
    output: str | os.PathLike[str],
    settings: Repulse | None = None,
    *,
    base: str | None = None,
    eval_prompts: Sequence[str] = (),
    evaluate: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    keep_proposal: bool = False,
    progress: bool = False,
) -> Path:
    """Trains a model, and saves what `sasa.load` loads: an adapter, or the whole model.

    Started again with the same settings, it goes on from its last checkpoint, on the CPU in float32
    to the same weights. Under `accelerate launch`, each process takes its share of a step's
    prompts.

    Args:
        model: in eval mode; it is the prior, and what it was when training ends.
        reward: what completions are worth, see `sasa.evaluation.rewards`.
        output: a folder, for checkpoints, the result, a card, a picture and `training.json`:
            settings, versions and the log.
        base: what `sasa.load` knows the model by, for the adapter to name; None takes the model's
            own name.
        eval_prompts: prompts that are not trained on; the log shows what `settings.samples`
            completions of each are worth.
        evaluate: a function of the policy, whose figures go into the log in the same place.
        keep_proposal: saves the proposal, too, which is made to write what is worst, in the folder
            `proposal`: for `sasa.evaluation.tail`.
        progress: a bar on stderr.

    Returns:
        the folder.

    Raises:
        ImportError: peft or accelerate is missing.
        ValueError: no prompt, an empty one or one beyond the context window; chat without a
            template; a reward that is not finite, or the same for all that the model writes; a
            model in training mode; or the folder holds a training with other settings; all before
            any long work.
        BlockingIOError: another process trains in the same folder.
    """
    settings = settings or Repulse()
    check_packages("accelerate", *(["peft"] if settings.lora else []))
    from accelerate import Accelerator

    base = base_name(model, base, settings.lora)
    check_ready(model)
    encoded, held_out = (
        _encode(model, tokenizer, texts, settings) if texts else []
        for texts in (list(prompts), list(eval_prompts))
    )
    if not encoded:
        raise ValueError("there are no prompts to train on")
    processes = Accelerator(cpu=model.device.type == "cpu")
    about = _about(model, prompts, eval_prompts, reward, settings, base, processes.num_processes)
    folder = training_folder(output)
    checkpoints = folder.path / CHECKPOINTS
    if newest(checkpoints) is None and not folder.exists:
        _check_reward(model, tokenizer, prompts, encoded, reward, settings)
    processes.wait_for_everyone()
    with ExitStack() as stack:
        done = False
        if processes.is_main_process:
            folder.check(about)
            stack.enter_context(folder.lock())
            done = is_done(folder.begin(about))
        done = bool(processes.reduce(torch.tensor(int(done), device=processes.device), "sum"))
        if not done:
            models = Models(
                model, settings.lora, proposal=settings.method == "repulse", seed=settings.seed
            )
            stack.callback(models.close)
            trainer = Trainer(models, tokenizer, prompts, encoded, reward, settings, processes)
            trainer.held_out, trainer.evaluation = (list(eval_prompts), held_out), evaluate
            trainer.run(checkpoints, progress)
            if processes.is_main_process:
                _save(models, tokenizer, trainer.log, about, folder, keep_proposal)
        if processes.is_main_process:
            shutil.rmtree(checkpoints, ignore_errors=True)
        processes.wait_for_everyone()
    return folder.path


def _about(
    model: PreTrainedModel,
    prompts: Sequence[str],
    eval_prompts: Sequence[str],
    reward: Reward,
    settings: Repulse,
    base: str,
    processes: int,
) -> dict[str, Any]:
    """What training.json holds: all that a training depends on, and counts."""
    texts = json.dumps([list(prompts), list(eval_prompts)])
    return {
        "training": asdict(settings)
        | {
            "base": base,
            "prompts": hashlib.sha256(texts.encode()).hexdigest()[:16],
            "reward": {"name": reward.name, "version": reward.version},
        },
        "model": asdict(ModelInfo.of(model)),
        "counts": {
            "prompts": len(prompts),
            "eval_prompts": len(eval_prompts),
            "processes": processes,
        },
    }


def _encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: Repulse,
) -> list[list[int]]:
    return encode_prompts(
        model, tokenizer, prompts, EmbeddingSpec(), settings.chat, settings.max_new_tokens
    )


def _check_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    encoded: list[list[int]],
    reward: Reward,
    settings: Repulse,
) -> None:
    """Raises ValueError if a reward is not finite, or constant on a few completions."""
    some = slice(0, 8)
    written = sample(model, encoded[some], 4, settings.max_new_tokens, settings.seed)
    rewards = score_completions(reward, tokenizer, prompts[some], encoded[some], written)
    lowest = float(rewards.min())
    if lowest == rewards.max():
        raise ValueError(
            f"the reward {reward.name} is constant: it gave {lowest:g} for each of "
            f"{rewards.numel()} completions, from which nothing can be learnt"
        )
    if (
        settings.method == "rloo-transformed"
        and not objectives.transformed(rewards, settings.alpha, settings.beta).isfinite().all()
    ):
        raise ValueError(
            "alpha * exp(-beta * reward) is not finite for rewards as low as "
            f"{lowest:g}: lower beta"
        )


def _save(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    log: list[dict[str, Any]],
    about: dict[str, Any],
    folder: RunFolder,
    keep_proposal: bool,
) -> None:
    """Saves the policy, the proposal if wanted, the card, the picture and, last of all, the log."""
    base, output = about["training"]["base"], folder.path
    models.save(POLICY, output, base)
    if keep_proposal and about["training"]["method"] == "repulse":
        place = models.save(PROPOSAL, output, base)
        tokenizer.save_pretrained(place)
        write_atomically(place / "README.md", PROPOSAL_CARD)
    plotted = plot(output / "training.png", log)
    write_atomically(
        output / "README.md", card(base, about["training"]["reward"]["name"], about, log, plotted)
    )
    packages = ["sasa-decoding", "torch", "transformers", "accelerate"]
    finish(folder, about, log, tokenizer, packages + ["peft"] * (models.adapted is not None))
