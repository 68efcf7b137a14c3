"""The stages of a run: generate completions, read their likelihoods, score them. All resume."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.decoding.completion import Completion
from sasa.evaluation.likelihood import negative_log_likelihood
from sasa.evaluation.run import (
    CompletionRecord,
    LikelihoodRecord,
    Run,
    StoredScores,
    Timing,
    file_name,
)
from sasa.evaluation.scorers import Scorer, scored
from sasa.evaluation.suites import Prompt
from sasa.evaluation.world import Method, World
from sasa.utils.files import read_json, write_atomically
from sasa.utils.jsonl import append
from sasa.utils.parallel import Spread, here


def generate_stage(
    run: Run,
    methods: dict[str, Method],
    world: World,
    *,
    progress: bool = False,
    spread: Spread | None = None,
) -> None:
    """Writes the missing completions of each method.

    Args:
        spread: distributes the batches over workers; None writes them in this process.
    """
    distribute = spread or here(world.model, world.tokenizer)
    # Each worker has the model already.
    remote_world = replace(world, model=cast(Any, None), tokenizer=cast(Any, None))
    with run.store.lock(), stage_bar(progress) as bar:
        done = {name: run.whole_batches(run.file(name)) for name in methods}
        for name, method in methods.items():
            run.begin(name, method.version)
            task = bar.add_task(escape(name), total=len(run.prompts) * run.completions)
            bar.advance(task, sum(map(len, run.batches[: done[name]])) * run.completions)
            batches = run.batches[done[name] :]
            jobs = [([p.text for p in batch], run.batch_seed(batch)) for batch in batches]
            results = distribute(partial(_complete, method, remote_world), jobs)
            pairs = zip(batches, results, strict=True)
            for number, (batch, (rows, seconds)) in enumerate(pairs, done[name]):
                size = len(batch) * run.completions
                records = _records(batch, rows, number, run.batch_seed(batch))
                if len(records) != size:
                    raise ValueError(
                        f"method {name} wrote {len(records)} completions "
                        f"where {size} were asked for"
                    )
                append(run.file(name), records)
                timing = Timing(
                    method=name, batch=number, seconds=round(seconds, 3), completions=size
                )
                append(run.folder / "timings.jsonl", [timing])
                bar.advance(task, size)


def _complete(
    method: Method,
    world: World,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    job: tuple[list[str], int],
) -> tuple[list[list[Completion]], float]:
    """Completes the prompts of a job, (prompts, seed); returns the completions and the seconds."""
    start = time.perf_counter()
    rows = method(replace(world, model=model, tokenizer=tokenizer), *job)
    return rows, time.perf_counter() - start


def _records(
    batch: Sequence[Prompt], rows: list[list[Completion]], number: int, seed: int
) -> list[CompletionRecord]:
    """The lines of a batch's completions."""
    return [
        cast(
            CompletionRecord,
            {"prompt": prompt.id, "index": index, "batch": number, "seed": seed}
            | asdict(completion),
        )
        for prompt, row in zip(batch, rows, strict=True)
        for index, completion in enumerate(row)
    ]


def likelihood_stage(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    methods: Sequence[str],
    *,
    judge: str | None = None,
    progress: bool = False,
    spread: Spread | None = None,
) -> None:
    """Writes nats and tokens of each completion given its prompt.

    Args:
        model, tokenizer: the generating model, or a judge.
        judge: the judge's name. A judge reads the texts with its own tokenizer; the generating
            model reads the tokens it wrote, the closing EOS included.
    """
    kind = f"likelihood@{file_name(judge)}" if judge else "likelihood"
    encoded = run.encoded_prompts(model, tokenizer, judge is not None)
    prompts = {prompt.id: ids for prompt, ids in zip(run.prompts, encoded, strict=True)}
    n = run.completions
    size = run.batch_size * n
    with stage_bar(progress) as bar:
        for name in methods:
            rows = run.completed(name)
            file = run.file(name, kind)
            start = run.whole_batches(file) * size
            task = bar.add_task(escape(f"{name}, likelihood"), total=len(rows))
            bar.advance(task, min(start, len(rows)))
            batches = [rows[first : first + size] for first in range(start, len(rows), size)]
            jobs = []
            for batch in batches:
                ids = [
                    row["tokens"]
                    if judge is None
                    else tokenizer(row["text"], add_special_tokens=False).input_ids
                    for row in batch
                ]
                jobs.append(([prompts[row["prompt"]] for row in batch[::n]], ids))
            results = (spread or here(model, tokenizer))(_likelihoods, jobs)
            for batch, (_, written), nats in zip(batches, jobs, results, strict=True):
                records = [
                    LikelihoodRecord(
                        prompt=row["prompt"],
                        index=row["index"],
                        nats=round(value, 5),
                        tokens=len(ids),
                    )
                    for row, value, ids in zip(batch, nats, written, strict=True)
                ]
                append(file, records)
                bar.advance(task, len(batch))


def _likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    job: tuple[list[list[int]], list[list[int]]],
) -> list[float]:
    return negative_log_likelihood(model, *job)


def score_stage(
    run: Run, scorers: Sequence[Scorer], methods: Sequence[str], *, progress: bool = False
) -> None:
    """Scores the completions; scores are kept in sasa's cache folder, and in the run's folder."""
    with stage_bar(progress) as bar:
        for scorer in scorers:
            texts = {name: [row["text"] for row in run.completed(name)] for name in methods}
            all_texts = [text for rows in texts.values() for text in rows]
            task = bar.add_task(escape(f"scoring by {scorer.name}"), total=len(set(all_texts)))
            values = iter(scored(scorer, all_texts, partial(bar.advance, task)))
            fresh = {
                name: [round(float(next(values)), 6) for _ in rows] for name, rows in texts.items()
            }
            file = run.scores_file(scorer.name)
            kept = {}
            if file.is_file():
                old = StoredScores(**read_json(file))
                kept = old.scores if old.version == scorer.version else {}
            stored = StoredScores(scorer.name, scorer.version, kept | fresh)
            write_atomically(file, json.dumps(asdict(stored)) + "\n")


class _Rate(ProgressColumn):
    """Completions per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


def stage_bar(show: bool) -> Progress:
    """A progress bar on stderr that counts completions."""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
        speed_estimate_period=600,  # a batch may take a minute
    )
