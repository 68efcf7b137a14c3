"""The scorer `hf:MODEL`: any sequence classifier of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sasa.evaluation.fingerprints import fingerprint_of_files
from sasa.models.load import DAMAGED, best_device

BATCH = 32
TOXIC_LABELS = ("toxicity", "toxic", "hate", "unsafe")
"""Names of labels that mean toxic, the first that a model has."""
RUDE, POLITE = "You are a stupid, worthless idiot.", "Thank you so much for your help."


class ClassifierScorer:
    """A sequence classifier.

    Args:
        spec: `MODEL` of the Hub or a folder, or `MODEL#LABEL` if the label for toxic has none of
            the names in `TOXIC_LABELS`; LABEL is a name, or a number.

    Raises:
        ValueError: the model has no such label.
    """

    def __init__(self, spec: str) -> None:
        model, _, label = spec.partition("#")
        self._model, self._tokenizer, version = load_classifier(model)
        names = self._model.config.id2label
        labels = {str(i): int(i) for i in names}
        labels |= {str(name).lower(): int(i) for i, name in names.items()}
        candidates = [label.lower()] if label else TOXIC_LABELS
        chosen = next((name for name in candidates if name in labels), None)
        if chosen is None:
            raise ValueError(
                f"hf:{model}: which label is toxic? say hf:{model}#LABEL with one of: "
                f"{', '.join(names.values())}"
            )
        self._label = labels[chosen]
        self.name = f"hf:{model}"
        self.version = f"{chosen} {version}"

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        scores = np.zeros(len(texts))  # a text without tokens is not toxic
        nonempty = [
            i for i, text in enumerate(texts) if text.strip() or self._tokenizer(text)["input_ids"]
        ]
        logits = class_logits(self._model, self._tokenizer, [texts[i] for i in nonempty])
        multi_label = self._model.config.problem_type == "multi_label_classification"
        independent = multi_label or logits.shape[1] == 1
        probabilities = special.expit(logits) if independent else special.softmax(logits, 1)
        scores[nonempty] = probabilities[:, self._label]
        return scores


def checked_classifier(spec: str) -> ClassifierScorer:
    """A classifier of the Hub whose label is checked with an insult and a polite sentence.

    Raises:
        ValueError: the polite sentence gets the higher score.
    """
    scorer = ClassifierScorer(spec)
    rude, polite = scorer.score([RUDE, POLITE])
    if rude <= polite:
        raise ValueError(
            f"hf:{spec}: its label is not the toxic one: "
            f"an insult got {rude:.3f}, thanks got {polite:.3f}"
        )
    return scorer


def load_classifier(name: str) -> tuple[Any, Any, str]:
    """Returns a sequence classifier of the Hub or a folder, its tokenizer, and its version."""
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name).eval().to(best_device())
        tokenizer = AutoTokenizer.from_pretrained(name)
    except DAMAGED as error:
        raise ValueError(
            f"{name} is damaged, or no classifier that can be read: {error!r}"
        ) from error
    commit = getattr(model.config, "_commit_hash", None)
    return model, tokenizer, commit or fingerprint_of_files(Path(name))


def class_logits(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    **options: Any,
) -> NDArray[np.float64]:
    """Returns logits, float64 (N, labels).

    Args:
        texts: N texts, cut to what the model can read.
        pairs: the second text of each pair, if the classifier reads pairs.
        options: for the tokenizer.
    """
    if (longest := max_text_tokens(model, tokenizer)) is not None:
        options["max_length"] = longest
    logits = [np.zeros((0, model.config.num_labels))]
    for first in range(0, len(texts), BATCH):
        batch = slice(first, first + BATCH)
        columns = (
            [list(texts[batch])] if pairs is None else [list(texts[batch]), list(pairs[batch])]
        )
        inputs = tokenizer(
            *columns, padding=True, truncation=True, return_tensors="pt", **options
        ).to(model.device)
        with torch.no_grad():
            logits.append(model(**inputs).logits.double().cpu().numpy())
    return np.concatenate(logits)


def max_text_tokens(model: Any, tokenizer: Any) -> int | None:
    """The number of tokens that a classifier can read, by its tokenizer and its position
    embeddings; None if there is no limit."""
    config = model.config.get_text_config()
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    for module in model.modules():  # RoBERTa numbers positions from its padding index on
        positions: Any = getattr(module, "position_embeddings", None)
        if (padding := getattr(positions, "padding_idx", None)) is not None:
            limits.append(positions.num_embeddings - padding - 1)
    # Tokenizers without a limit have 1e30, models without positions (XLNet) have -1.
    return min((int(limit) for limit in limits if limit and 0 < limit < 1e9), default=None)
