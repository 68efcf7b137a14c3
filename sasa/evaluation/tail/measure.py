"""Measures a tail: samples completions, scores them, and writes the report."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.model_info import ModelInfo
from sasa.decoding.prompts import completion_text, encode_prompts
from sasa.decoding.sampling import log_probs, sample, seed_of
from sasa.evaluation.fingerprints import fingerprint
from sasa.evaluation.rewards import Reward
from sasa.evaluation.settings import TailSettings
from sasa.evaluation.tail.figures import (
    MODEL,
    PROPOSAL,
    SAMPLES,
    SETTINGS,
    LogProbability,
    SampleRecord,
    StoredRewards,
    TailAbout,
    TailFigures,
    tail_figures,
)
from sasa.evaluation.tail.plot import write_plot
from sasa.evaluation.tail.report import markdown
from sasa.utils.files import read_json, write_atomically
from sasa.utils.progress import progress_bar
from sasa.utils.run_folder import RunFolder

ROWS = 64
"""Completions that are sampled at a time."""


def measure_tail(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    rewards: Sequence[Reward],
    output: str | os.PathLike[str],
    settings: TailSettings | None = None,
    *,
    proposal: PreTrainedModel | None = None,
    base: PreTrainedModel | None = None,
    progress: bool = False,
) -> TailFigures:
    """Samples completions, scores them, and writes figures, a report and a plot; it resumes a
    measurement that was stopped.

    Args:
        model: the model whose tail is measured.
        rewards: each gets figures of its own.
        output: the measurement's folder.
        proposal: a model that often writes bad completions, with the same tokens, for importance
            sampling.
        base: the model that this one was trained from, with the same tokens, for KL, return and
            perplexity.

    Returns:
        the content of figures.json.

    Raises:
        ValueError: no prompts or no reward, two rewards of one name, a model in training mode,
            models that differ in their tokens, or a folder of other settings.
    """
    settings, folder = settings or TailSettings(), Path(output)
    names = [reward.name for reward in rewards]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"a tail needs rewards, each of a name of its own, got {', '.join(names) or 'none'}"
        )
    size = model.config.get_text_config().vocab_size
    for name, other in (("proposal", proposal), ("base", base)):
        if other is not None and (tokens := other.config.get_text_config().vocab_size) != size:
            raise ValueError(
                f"the {name} has {tokens} tokens, the model {size}: "
                "their probabilities cannot be compared"
            )
    encoded = encode_prompts(
        model, tokenizer, prompts, EmbeddingSpec(), settings.chat, settings.max_new_tokens
    )
    store = RunFolder(folder, SETTINGS, "a tail measurement")
    store.begin(_about(model, prompts, settings, proposal, base))
    readers: dict[LogProbability, PreTrainedModel] = {"log_p": model}
    if proposal is not None:
        readers["log_q"] = proposal
    if base is not None:
        readers["log_p0"] = base
    with store.lock():
        _sample(readers, tokenizer, encoded, settings, store, progress)
        records: list[SampleRecord] = store.records(SAMPLES)  # type: ignore[assignment]
        for reward in rewards:
            _score(reward, prompts, records, folder)
        figures = tail_figures(folder)
        write_atomically(folder / "figures.json", json.dumps(figures.to_json(), indent=1) + "\n")
        plotted = write_plot(folder / "tail.png", figures.rewards)
        write_atomically(folder / "report.md", markdown(figures, plotted))
    return figures


def _about(
    model: PreTrainedModel,
    prompts: Sequence[str],
    settings: TailSettings,
    proposal: PreTrainedModel | None,
    base: PreTrainedModel | None,
) -> TailAbout:
    return {
        "settings": asdict(settings),
        "prompts": len(prompts),
        "texts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16],
        "model": asdict(ModelInfo.of(model)),
        "weights": {
            name: None if one is None else fingerprint(one)
            for name, one in (("model", model), ("proposal", proposal), ("base", base))
        },
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _sample(
    readers: Mapping[LogProbability, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[list[int]],
    settings: TailSettings,
    store: RunFolder,
    progress: bool,
) -> None:
    """Writes the missing samples, a batch of prompts by one model at a time."""
    n = settings.completions
    size = max(1, ROWS // n)
    writers = {MODEL: readers["log_p"]}
    if "log_q" in readers:
        writers[PROPOSAL] = readers["log_q"]
    # The models take turns, so that the samples at any time stand for the whole.
    batches = [(by, first) for first in range(0, len(encoded), size) for by in writers]
    counts = [n * len(encoded[first : first + size]) for _, first in batches]
    existing = len(store.records(SAMPLES))
    done = int((np.cumsum(counts) <= existing).sum())
    store.keep(SAMPLES, sum(counts[:done]))
    with progress_bar("sampling", progress) as bar:
        task = bar.add_task("sampling", total=sum(counts), completed=sum(counts[:done]))
        for (by, first), count in list(zip(batches, counts, strict=True))[done:]:
            ids = encoded[first : first + size]
            seed = seed_of(settings.seed, by, first)
            tokens = sample(writers[by], ids, n, settings.max_new_tokens, seed)
            records: list[SampleRecord] = [
                {
                    "prompt": first + i // n,
                    "by": by,
                    "text": completion_text(tokenizer, ids[i // n], row),
                    "tokens": row,
                }
                for i, row in enumerate(tokens)
            ]
            for key, reader in readers.items():
                with torch.no_grad():
                    values = log_probs(reader, ids, tokens).double().sum(1).tolist()
                for record, value in zip(records, values, strict=True):
                    record[key] = round(value, 5)
            store.append(SAMPLES, records)
            bar.advance(task, count)


def _score(
    reward: Reward, prompts: Sequence[str], records: Sequence[SampleRecord], folder: Path
) -> None:
    """Writes the rewards of all samples, unless they are there already."""
    file = folder / "rewards" / (hashlib.sha256(reward.name.encode()).hexdigest()[:12] + ".json")
    if file.is_file():
        stored = StoredRewards(**read_json(file))
        if stored.version == reward.version and len(stored.rewards) == len(records):
            return
    values = reward([prompts[r["prompt"]] for r in records], [r["text"] for r in records])
    fresh = StoredRewards(reward.name, reward.version, values.tolist())
    write_atomically(file, json.dumps(asdict(fresh)) + "\n")
