"""The second step of a fit: the model reads each text once, in windows that workers can share."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import islice, pairwise

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.data.examples import Example
from sasa.fitting.context import FitContext
from sasa.fitting.discriminant import GaussianStatistics
from sasa.fitting.recipe import PARTS, Part, Recipe
from sasa.fitting.workspace import WindowEmbeddings, Workspace
from sasa.models.embedding import embed_stream
from sasa.utils.parallel import here
from sasa.utils.progress import progress_bar

WINDOW = 1024
"""Texts that are read together: a fit can be saved after each window."""

Window = list[tuple[int, Example, int]]
"""Texts, each with the index of its corpus and its label."""


def read_texts(context: FitContext, workspace: Workspace, total: int, save_every: float) -> None:
    """Embeds the texts of a recipe that the workspace does not have yet.

    Args:
        total: the number of texts.
        save_every: seconds between two saves.
    """
    recipe = context.recipe
    stream = islice(recipe.examples(), workspace.saved, None)
    windows = iter(lambda: list(islice(stream, WINDOW)), [])
    last_save = time.monotonic()
    with progress_bar("embedding", context.progress) as bar:
        task = bar.add_task("embedding", total=total, completed=workspace.saved)
        read = partial(read_window, recipe, context.kept, context.batch_size)
        if context.spread is None:
            read = partial(read, advance=partial(bar.advance, task))
        spread = context.spread or here(context.model, context.tokenizer)
        for window in spread(read, windows):
            workspace.add(window)
            bar.update(task, completed=workspace.added)
            if time.monotonic() - last_save >= save_every:
                workspace.save()
                last_save = time.monotonic()


def read_window(
    recipe: Recipe,
    kept: tuple[Part, ...],
    batch_size: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    window: Window,
    advance: Callable[[int], object] | None = None,
) -> WindowEmbeddings:
    """Embeds a window of texts.

    Args:
        kept: the parts whose embeddings are kept; of the others there are statistics.
        advance: is called with the number of texts that have been read since its last call.
    """
    result = WindowEmbeddings(len(window), GaussianStatistics.empty(recipe.dimension(model)), {})
    stream = embed_stream(
        *(model, tokenizer, [example.text for _, example, _ in window], recipe.embedding),
        batch_size=batch_size,
        window=WINDOW,
        prefixes=recipe.prefixes,
    )
    for indices, vectors in stream:
        part_of = {i: recipe.part(window[i][1].group) for i in set(indices)}
        whole = [i != following for i, following in pairwise([*indices, -1])]
        # Prefixes are there to be fitted on; texts are held out whole.
        used = [n for n, i in enumerate(indices) if part_of[i] == "fit" or whole[n]]
        embeddings = vectors[used].cpu().numpy()
        parts = np.array([part_of[indices[n]] for n in used])
        labels = np.array([window[indices[n]][2] for n in used])
        corpora = np.array([window[indices[n]][0] for n in used])
        for part in PARTS:
            mask = parts == part
            if not mask.any():
                continue
            if part in kept:
                rows = np.column_stack([labels[mask], corpora[mask], embeddings[mask]])
                result.rows.setdefault(part, []).append(rows.astype(np.float32))
            else:
                result.statistics.partial_fit(embeddings[mask], labels[mask])
        if advance is not None:
            advance(sum(whole))
    return result
