"""The model's own text in a fit, beside people's texts.

While a model writes, a boundary judges texts that no person has written. So the model continues the
openings of a fit's texts, a judge that has learnt from the texts' scores labels the completions,
and each prefix counts with the label of the whole (Yang & Klein 2021, section 3; Mudgal et al.
2024, section 3.2, also learn from a model's own samples).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.candidates import select
from sasa.core.embedding_spec import Text
from sasa.core.values import reweight
from sasa.decoding.sampling import random_state, seed_of
from sasa.fitting.discriminant import GaussianStatistics
from sasa.fitting.openings import Sources
from sasa.fitting.recipe import Recipe
from sasa.models.embedding import embed_stream, pad, tokenize_prompt
from sasa.models.heads import token_ids
from sasa.utils.jsonl import append, keep_lines, whole_lines
from sasa.utils.parallel import Spread, here
from sasa.utils.progress import progress_bar

COMPLETIONS = 2
"""Completions of each opening."""
TOP_K, TOP_P = 50, 0.9
"""Roughly as text is decoded: a boundary never judges what only the whole vocabulary has."""
TOKENS = {"none": 20, "chat": 40}
"""The most tokens of a completion, by template."""
MAX_OPENING = 128
"""The most tokens of an opening; longer ones are left out."""
BATCH = 20
"""Openings that are continued together, from one seed."""
READ = 1024
"""Completions that are read together."""
FEWEST = 20
"""The fewest completions of each class to learn from."""

Completed = tuple[str, list[str]]
"""An opening and its completions."""


class OwnText(TypedDict):
    """Figures of the model's own text.

    Attributes:
        openings, completions: their numbers.
        unsafe: how many completions the judge finds unsafe.
        judge_auc: of the judge on held-out texts; None if they are of one class.
    """

    openings: int
    completions: int
    unsafe: int
    judge_auc: float | None


def own_statistics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    sources: Sources,
    file: Path,
    *,
    spread: Spread | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> tuple[GaussianStatistics, OwnText]:
    """Statistics of what the model writes, each prefix labelled as the judge labels the whole.

    Args:
        recipe: its embedding gives the vectors.
        sources: of the recipe's corpora.
        file: JSON lines of what has been written; what an earlier call wrote is not written again.
        spread: workers that write and read; None for this process.

    Returns:
        the statistics, and figures for the report.

    Raises:
        ValueError: the completions of one class are too few to learn from.
    """
    spread = spread or here(model, tokenizer)
    written = write(
        model, tokenizer, sources.openings, recipe, file, spread=spread, progress=progress
    )
    texts: list[Text] = [
        (opening, text) for opening, completions in written for text in completions if text.strip()
    ]
    unsafe = sources.judge([text[1] for text in texts]) >= 0
    if min(int(unsafe.sum()), int((~unsafe).sum())) < FEWEST:
        raise ValueError(
            f"of {len(texts)} completions that the model wrote itself the judge finds "
            f"{int(unsafe.sum())} unsafe: too few of one class to learn from. Fit without its own "
            "text (own = 0); what is read already is kept"
        )
    labelled = list(zip(texts, (1 - unsafe.astype(int)).tolist(), strict=True))
    statistics = GaussianStatistics.empty(recipe.dimension(model))
    windows = [labelled[i : i + READ] for i in range(0, len(labelled), READ)]
    with progress_bar("own text", progress) as bar:
        task = bar.add_task("reading own text", total=len(texts))
        results = spread(partial(_read, recipe, batch_size), windows)
        for window, of_window in zip(windows, results, strict=True):
            statistics.merge(of_window)
            bar.advance(task, len(window))
    return statistics, {
        "openings": len({opening for opening, _ in written}),
        "completions": len(texts),
        "unsafe": int(unsafe.sum()),
        "judge_auc": sources.judge_auc(),
    }


def _read(
    recipe: Recipe,
    batch_size: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    window: list[tuple[Text, int]],
) -> GaussianStatistics:
    """Statistics of some texts with their labels."""
    statistics = GaussianStatistics.empty(recipe.dimension(model))
    labels = np.array([label for _, label in window])
    stream = embed_stream(
        *(model, tokenizer, [text for text, _ in window], recipe.embedding),
        batch_size=batch_size,
        prefixes=recipe.prefixes,
    )
    for indices, vectors in stream:
        statistics.partial_fit(vectors.cpu().numpy(), labels[indices])
    return statistics


@dataclass(frozen=True)
class Batch:
    """Openings that are continued together.

    Attributes:
        first: the number of the first one among all openings; it gives the seed.
        openings: each with its token ids.
    """

    first: int
    openings: list[tuple[str, list[int]]]


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    openings: Sequence[str],
    recipe: Recipe,
    file: Path,
    *,
    spread: Spread | None = None,
    progress: bool = False,
) -> list[Completed]:
    """Completions of each opening by the unsteered model, of at most `TOKENS` tokens each.

    They are appended to a file as they come, so that a fit that is stopped resumes.
    """
    prompts = [
        (opening, tokenize_prompt(tokenizer, opening, recipe.embedding)) for opening in openings
    ]
    prompts = [(opening, ids) for opening, ids in prompts if len(ids) <= MAX_OPENING]
    prompts.sort(key=lambda prompt: len(prompt[1]))  # little padding
    written = _resumed(file, [opening for opening, _ in prompts])
    starts = range(len(written), len(prompts), BATCH)
    batches = [Batch(first, prompts[first : first + BATCH]) for first in starts]
    with progress_bar("own text", progress) as bar:
        task = bar.add_task("writing own text", total=len(prompts), completed=len(written))
        for rows in (spread or here(model, tokenizer))(partial(_write_batch, recipe), batches):
            append(file, rows)
            written += rows
            bar.advance(task, len(rows))
    return written


def _resumed(file: Path, openings: Sequence[str]) -> list[Completed]:
    """What an earlier call wrote for these openings; the file is cut off after it."""
    if not file.is_file():
        return []
    lines = whole_lines(file)
    written = [(opening, texts) for opening, texts in map(json.loads, lines)]
    pairs = zip((opening for opening, _ in written), openings, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    keep = same // BATCH * BATCH  # whole batches: each has a seed
    keep_lines(file, lines[:keep])
    return written[:keep]


def _write_batch(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> list[Completed]:
    """The completions of a batch of openings."""
    prompts = [ids for _, ids in batch.openings]
    length = TOKENS[recipe.embedding.template]
    tokens = _sample(model, prompts, length, seed_of(recipe.seed, batch.first))
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    completions = (texts[i : i + COMPLETIONS] for i in range(0, len(texts), COMPLETIONS))
    openings = (opening for opening, _ in batch.openings)
    return list(zip(openings, completions, strict=True))


def _sample(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int
) -> Tensor:
    """Completions (P * COMPLETIONS, T), drawn as `TOP_K` and `TOP_P` say."""
    ids, mask = pad(prompts, "left", model.device)
    ends = token_ids(model, "eos_token_id", None)
    with random_state(seed, model.device):
        tokens: Tensor = cast(Any, model).generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            logits_processor=[_truncated],
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=max_new_tokens,
            num_return_sequences=COMPLETIONS,
            pad_token_id=ends[0] if ends else None,
        )
    return tokens[:, ids.shape[1] :]


def _truncated(ids: Tensor, scores: Tensor) -> Tensor:
    """Truncated scores; transformers' own truncation sorts the vocabulary, which takes a fifth of
    the time if it is large.
    """
    kept = select(scores, TOP_K, TOP_P)
    return reweight(scores, kept, torch.zeros(kept.ids.shape, device=scores.device))
