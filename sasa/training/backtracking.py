"""Teaching a model to write [RESET]: to discard an unsafe reply and to write a safe one.

The method is that of Zhang et al. (ICLR 2025, arXiv 2409.14586).

From dialogues with a preferred and a rejected reply come examples as token ids; trl trains on them,
peft keeps what it learns in an adapter. What such a model does at inference, `sasa.Backtracking`
knows.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.backtracking import RESET
from sasa.core.model_info import ModelInfo
from sasa.core.settings import check_above_zero, check_at_least
from sasa.data.corpus import Corpus, Pair
from sasa.models.load import fit_vocabulary
from sasa.training.folder import (
    CHECKPOINTS,
    base_name,
    check_packages,
    finish,
    is_done,
    save_adapter,
    training_folder,
)

METHODS = ("sft", "dpo")
Example = dict[str, list[int]]
"""Token ids by the names of the columns that trl's trainers read."""


@dataclass(frozen=True)
class Training:
    """How a model is taught to write [RESET].

    Attributes:
        corpus: pairs of dialogues in the schema of hh-rlhf, from the Hub or a file.
        method: `sft`: after a random prefix of the unsafe reply, [RESET] and the safe reply, and
            from nothing the safe reply; no loss on the prefix. `dpo`: after a prefix of the unsafe
            reply, [RESET] and the safe reply are preferred to going on; after a prefix of the safe
            reply, going on is preferred to [RESET] and the unsafe reply.
        lora: the rank of the adapter; 0 trains all weights.
        epochs, learning_rate: None takes 5e-4 for an adapter and 2e-5 for all weights, a tenth of
            these for `dpo`.
        batch_size: examples in a step.
        max_length: tokens of an example; longer ones are left out, and counted.
        beta: of DPO: how much a departure from the model as it was costs.
        save_steps: steps between checkpoints.
        seed: of prefixes, order and initial weights.

    Raises:
        ValueError: a value outside its range.
    """

    corpus: Corpus
    method: str = "sft"
    lora: int = 16
    epochs: float = 1.0
    learning_rate: float | None = None
    batch_size: int = 8
    max_length: int = 256
    beta: float = 0.1
    save_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.learning_rate is None:
            rate = (5e-4 if self.lora else 2e-5) / (10 if self.method == "dpo" else 1)
            object.__setattr__(self, "learning_rate", rate)
        check_above_zero(self, "epochs", "learning_rate", "beta")
        check_at_least(self, lora=0, batch_size=1, max_length=8, save_steps=1)


def train_backtracking(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: Training,
    output: str | os.PathLike[str],
    *,
    base: str | None = None,
    progress: bool = False,
) -> Path:
    """Teaches a model to write [RESET], and saves an adapter, or the whole model, for `sasa.load`.

    Started again with the same settings, it goes on from its last checkpoint.

    Args:
        model: is changed: it gets the token, and is trained.
        output: a folder, for checkpoints, the result and `training.json`: settings, counts and what
            trl logged.
        base: what `sasa.load` knows the model by, for the adapter to name; None takes the model's
            own name.

    Returns:
        the folder.

    Raises:
        ImportError: trl or peft is missing.
        ValueError: no pair can be trained on; the model's own name is none that `sasa.load` knows;
            or the folder holds a training with other settings or of other texts; the message names
            them.
        BlockingIOError: another process trains in the same folder.
    """
    check_packages("trl", "peft")
    base = base_name(model, base, training.lora)
    model_info = asdict(ModelInfo.of(model))
    reset = add_reset_token(model, tokenizer)
    skipped: Counter[str] = Counter()
    rows = examples(training, tokenizer, reset, skipped)
    if not rows:
        raise ValueError(
            f"corpus {training.corpus.source}: no pair can be trained on: "
            + (", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "it has none")
        )
    texts = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    settings = json.loads(json.dumps(asdict(training) | {"corpus": training.corpus.to_dict()}))
    about: dict[str, Any] = {
        "training": settings | {"base": base, "texts": texts},
        "model": model_info,
        "counts": {"examples": len(rows), "skipped": dict(skipped)},
    }
    folder = training_folder(output)
    folder.check(about)
    with folder.lock():
        if not is_done(folder.begin(about)):
            trainer = _train(model, tokenizer, training, rows, folder.path / CHECKPOINTS, progress)
            if training.lora:
                # [RESET]'s embedding is not trained: the layers learn to write and to read it.
                # peft's trainable tokens would do more, but trl (1.16) bypasses them in the head.
                save_adapter(trainer.model, folder.path, base)
            else:
                trainer.save_model(str(folder.path))
            packages = "trl", "peft", "transformers", "torch"
            finish(folder, about, trainer.state.log_history, tokenizer, packages)
    return folder.path


def add_reset_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Gives a model and its tokenizer [RESET], where they have none; its id."""
    if RESET not in tokenizer.get_vocab():
        known = len(tokenizer)
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [RESET]}, replace_extra_special_tokens=False
        )
        fit_vocabulary(model, tokenizer, known)
    return int(tokenizer.get_vocab()[RESET])


def examples(
    training: Training, tokenizer: PreTrainedTokenizerBase, reset: int, skipped: Counter[str]
) -> list[Example]:
    """The examples as token ids, with the columns that trl's trainers read.

    Of each pair come two: for `sft` one that goes back and one that has no need to; for `dpo` one
    in which going back is preferred, and one in which it is rejected.
    """
    draw = random.Random(training.seed)
    rows: list[Example] = []
    for pair in training.corpus.pairs(skipped):
        if not pair.turns:
            skipped["without a question"] += 1
            continue
        try:
            prompt, safe, unsafe = encode_pair(tokenizer, pair)
        except TemplateError as error:  # strict templates want turns to alternate, or no system's
            skipped[f"that the chat template refuses ({error})"] += 1
            continue
        cut = draw.randint(1, max(1, len(unsafe) - 2))  # at least one token of it, and not its end
        if training.method == "sft":
            pair_rows = [
                _row(prompt + unsafe[:cut], [reset, *safe]),
                _row(prompt, safe),
            ]
        else:
            at = draw.randint(0, max(0, len(safe) - 2))
            pair_rows = [
                {
                    "prompt_ids": prompt + unsafe[:cut],
                    "chosen_ids": [reset, *safe],
                    "rejected_ids": unsafe[cut:],
                },
                {
                    "prompt_ids": prompt + safe[:at],
                    "chosen_ids": safe[at:],
                    "rejected_ids": [reset, *unsafe],
                },
            ]
        if max(map(_length, pair_rows)) > training.max_length:
            skipped[f"longer than {training.max_length} tokens"] += 1
            continue
        rows += pair_rows
    return rows


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, pair: Pair
) -> tuple[list[int], list[int], list[int]]:
    """Token ids of the prompt, as in decoding, and of the safe and the unsafe reply with their EOS.

    A tokenizer with a chat template gets turns; one without gets the dialogue as it stands in
    hh-rlhf.
    """
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    chat = tokenizer.chat_template is not None
    if chat:
        encoded: Any = tokenizer.apply_chat_template(
            list(pair.turns), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        prompt = list(encoded["input_ids"])
    else:
        prompt = list(tokenizer(pair.prompt)["input_ids"])
    replies = [reply.strip() if chat else reply for reply in (pair.safe, pair.unsafe)]
    safe, unsafe = (
        list(tokenizer(reply, add_special_tokens=False)["input_ids"]) + end for reply in replies
    )
    return prompt, safe, unsafe


def _row(before: Sequence[int], after: Sequence[int]) -> Example:
    return {"input_ids": [*before, *after], "completion_mask": [0] * len(before) + [1] * len(after)}


def _length(row: Example) -> int:
    if "input_ids" in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: Training,
    rows: list[Example],
    checkpoints: Path,
    progress: bool,
) -> Any:
    """Trains, from the last whole checkpoint if there is one, and returns trl's trainer."""
    trainer = _trainer(model, tokenizer, training, rows, checkpoints, progress)
    # A checkpoint is whole when its state is there, which is written last.
    whole = [folder.parent for folder in checkpoints.glob("checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return trainer


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: Training,
    rows: list[Example],
    checkpoints: Path,
    progress: bool,
) -> Any:
    import datasets
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    class PairsOfIds(DPOTrainer):
        """trl's trainer on token ids: in text, prefix and rest would be tokenized as one."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    cuda = model.device.type == "cuda"
    common: dict[str, Any] = dict(
        output_dir=str(checkpoints),
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        per_device_train_batch_size=training.batch_size,
        max_length=training.max_length,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        logging_steps=5,
        save_steps=training.save_steps,
        save_total_limit=1,
        report_to="none",
        seed=training.seed,
        bf16=cuda,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=cuda,
        disable_tqdm=not progress,
    )
    adapter = None
    if training.lora:
        adapter = LoraConfig(
            r=training.lora,
            lora_alpha=2 * training.lora,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    else:
        model.float()  # in half precision most steps would be too small to change a weight
    table = datasets.Dataset.from_list(rows)
    model.train()
    if training.method == "sft":
        sft = SFTConfig(**common, completion_only_loss=True)
        return SFTTrainer(
            model, sft, train_dataset=table, processing_class=tokenizer, peft_config=adapter
        )
    dpo = DPOConfig(**common, beta=training.beta, precompute_ref_log_probs=True)
    return PairsOfIds(
        model, args=dpo, train_dataset=table, processing_class=tokenizer, peft_config=adapter
    )
