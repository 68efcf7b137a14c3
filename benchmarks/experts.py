"""What two peers need: an expert and an anti-expert for `dexperts`, and steering vectors for `caa`, of one model.

    python benchmarks/experts.py --prompts ../shared/data/rtp/prompts.jsonl --rows 0:2500 --output runs/experts
    sasa bench rtp … -M dexperts:runs/experts:1 -M caa:runs/experts:18:2

From rows of RealToxicityPrompts, prompt and continuation as one text: toxic where either half is by Perspective, non-toxic where
neither is at 0.3. The experts are adapters of the model, fine-tuned (trl) on as many texts of either kind; the vectors are, for
each hidden state, the mean over the tokens of non-toxic texts less that of toxic ones. Started again, it makes what is missing.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor
from trl import SFTConfig, SFTTrainer

import sasa
from sasa.core.settings import DEFAULT_MODEL
from sasa.data.corpus import parse_rows
from sasa.evaluation.baselines.caa import VECTORS
from sasa.evaluation.baselines.dexperts import ANTI_EXPERT, EXPERT
from sasa.evaluation.metrics import TOXIC
from sasa.models.embedding import pad
from sasa.models.states import hidden_states, numbered
from sasa.training.folder import save_adapter
from sasa.utils.files import write_atomically

SAFE_BELOW = 0.3


def texts_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """As many non-toxic texts, the expert's, as toxic ones, the anti-expert's."""
    rows = [json.loads(line) for line in args.prompts.read_text("utf-8").splitlines()][
        slice(*parse_rows(args.rows))
    ]
    found: dict[str, list[str]] = {EXPERT: [], ANTI_EXPERT: []}
    for row in rows:
        halves = row["prompt"], row["continuation"]
        scores = [half["toxicity"] for half in halves if half["toxicity"] is not None]
        if scores and max(scores) >= TOXIC:
            found[ANTI_EXPERT].append("".join(half["text"] for half in halves))
        elif len(scores) == 2 and max(scores) < SAFE_BELOW:
            found[EXPERT].append("".join(half["text"] for half in halves))
    count = min(map(len, found.values()))
    if not count:
        raise SystemExit(f"{args.prompts}: the rows {args.rows} have no texts of both kinds")
    return {name: random.Random(args.seed).sample(texts, count) for name, texts in found.items()}


def train(texts: list[str], folder: Path, args: argparse.Namespace) -> None:
    """Fine-tunes an adapter on texts and saves it."""
    model, tokenizer = sasa.load(args.model)
    cuda = model.device.type == "cuda"
    settings = SFTConfig(
        output_dir=str(folder / "checkpoints"), num_train_epochs=args.epochs, learning_rate=args.learning_rate,
        per_device_train_batch_size=args.batch_size, max_length=64, lr_scheduler_type="linear", warmup_steps=0.1,
        logging_steps=10, save_strategy="no", report_to="none", seed=args.seed, bf16=cuda, use_cpu=not cuda,
        gradient_checkpointing=cuda, dataloader_pin_memory=cuda,
    )  # fmt: skip
    adapter = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    table = datasets.Dataset.from_list([{"text": text} for text in texts])
    trainer = SFTTrainer(
        model, settings, train_dataset=table, processing_class=tokenizer, peft_config=adapter
    )
    trainer.train()
    save_adapter(trainer.model, folder, args.model or DEFAULT_MODEL)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def means(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Mean of each hidden state over all tokens but a text's first, which is a sink of attention: float64 (layers + 1, d)."""
    layers = numbered(model, range(model.config.get_text_config().num_hidden_layers + 1))
    total, count = (
        torch.zeros(len(layers), model.config.get_text_config().hidden_size, dtype=torch.float64),
        0,
    )
    for first in range(0, len(texts), 16):
        ids, mask = pad(
            [tokenizer(text).input_ids for text in texts[first : first + 16]], "right", model.device
        )
        states, _ = hidden_states(model, ids, layers, attention_mask=mask)
        mask[:, 0] = 0
        total += (states.double() * mask[None, :, :, None]).sum((1, 2)).cpu()
        count += int(mask.sum())
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, help="RealToxicityPrompts rows, JSONL"
    )
    parser.add_argument("--rows", default=":", help="START:STOP, rows that nothing is measured on")
    parser.add_argument("--model")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    texts = texts_of(args)
    print(f"{len(texts[EXPERT])} texts of either kind")
    for name, written in texts.items():
        if not (args.output / name / "adapter_config.json").is_file():
            train(written, args.output / name, args)
    if not (args.output / VECTORS).is_file():
        model, tokenizer = sasa.load(args.model)
        vectors = (
            means(model, tokenizer, texts[EXPERT]) - means(model, tokenizer, texts[ANTI_EXPERT])
        ).float()
        write_atomically(args.output / VECTORS, save({"vectors": vectors}))
    settings = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
    }
    about = {"settings": settings, "texts": len(texts[EXPERT])}
    write_atomically(args.output / "experts.json", json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
