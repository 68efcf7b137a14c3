"""Writes completions into a store and goes on where it stopped; then reads likelihoods and scores off what is there.

A run is a folder:

    run.json                     settings, model, boundary, versions: all that the completions depend on
    prompts.jsonl                the prompts in the order in which they are batched
    completions/METHOD.jsonl     one line a completion, appended batch by batch
    likelihood/METHOD.jsonl      one line a completion: nats and tokens under the generating model
    likelihood@JUDGE/METHOD.jsonl   and under a judge
    timings.jsonl                seconds of each batch
    scores/SCORER.json           the scores that the report shows

A batch is written at once, is seeded by its own prompts, and counts only when it is whole: whatever was cut off in the middle
is taken away and written anew. So a killed run ends up with the same completions as one that was left in peace.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import torch
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

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.model_info import ModelInfo
from sasa.core.settings import BETA, PRIOR, VALUE
from sasa.core.values import fingerprint_of
from sasa.decoding.completion import Completion
from sasa.decoding.prompts import encode_prompts
from sasa.decoding.sampling import log_probs
from sasa.evaluation.fingerprints import fingerprint
from sasa.evaluation.scorers import Scorer, scored
from sasa.evaluation.suites import Prompt, Suite
from sasa.evaluation.world import Method, World
from sasa.models.embedding import tokenize_prompt
from sasa.models.skinny import kernel
from sasa.models.states import context_window
from sasa.utils.files import differences, read_json, write_atomically
from sasa.utils.jsonl import alone, append, keep_lines, line, parse, read, whole_lines
from sasa.utils.parallel import Spread, here

LONGEST = 160
"""Characters of a method in a file's name."""
ROWS = 64
"""Completions at a time, unless a batch size is given."""


class SettingsDiffer(ValueError):
    """A store was made with other settings."""


@dataclass(frozen=True)
class Run:
    """A store: its folder, what is in run.json, and the prompts in batches."""

    folder: Path
    about: dict[str, Any]
    prompts: tuple[Prompt, ...]

    @property
    def batches(self) -> list[tuple[Prompt, ...]]:
        size = self.about["batch_size"]
        return [self.prompts[i : i + size] for i in range(0, len(self.prompts), size)]

    @property
    def completions(self) -> int:
        """Completions of a prompt."""
        return int(self.about["settings"]["completions"])

    @property
    def methods(self) -> list[str]:
        """Methods whose completions are all there, in the order in which they were begun."""
        every = len(self.prompts) * self.completions
        begun = [name for name in self.about["methods"] if self.file(name).is_file()]
        return [name for name in begun if len(self.completed(name)) == every]

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        suite: Suite,
        world: World,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        write: bool = True,
    ) -> Run:
        """A new store, or the one that is there, if it was made with the same settings.

        Args:
            batch_size: prompts at a time; None for about 64 completions.
            write: False writes nothing, to see what a run would do.

        Raises:
            SettingsDiffer: it was made with others; the message names them.
            ValueError: no prompt fits the model's context window.
            OSError: the folder cannot be written.
        """
        folder = Path(folder)
        kept, skipped = _by_length(suite, world)
        settings = world.settings
        batch_size = batch_size or max(1, ROWS // settings.completions)
        about: dict[str, Any] = {
            "suite": suite.name,
            "sample": suite.sample,
            "prompt_count": len(kept),
            "prompts": hashlib.sha256(
                "\0".join(f"{p.id} {p.text}" for p in kept).encode()
            ).hexdigest()[:16],
            "settings": settings.to_dict(),
            "seed": seed,
            "batch_size": batch_size,
            "model": asdict(ModelInfo.of(world.model)),
            "weights": fingerprint(world.model),
            "dtype": str(world.model.dtype).removeprefix("torch."),
            "device": world.model.device.type,
            "boundary": fingerprint_of(world.boundary),
            "engine": world.engine and str(getattr(world.engine, "name", "another")),
            "default": f"sasa:{BETA:g}:{VALUE}:{PRIOR:g}",  # what sasa means
            "special_tokens": world.first.embedding.special_tokens,
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("sasa-decoding", "torch", "transformers")
            },
            "threads": torch.get_num_threads(),
            "kernel": world.model.device.type == "cpu" and kernel() is not None,
        }
        about = json.loads(json.dumps(about))
        file = folder / "run.json"
        if file.is_file():
            there = read_json(file)
            differ = differences({k: there.get(k) for k in about}, about)
            if differ:
                raise SettingsDiffer(
                    f"{folder} was made with other settings: {'; '.join(differ)}. Give the same ones, or another --output"
                )
            return cls(folder, there, tuple(kept))
        if any((folder / "completions").glob("*.jsonl")):
            raise SettingsDiffer(
                f"{folder} holds completions and no run.json: give another --output"
            )
        about |= {"source": suite.source, "skipped": skipped, "methods": []}
        if not write:
            return cls(folder, about, tuple(kept))
        write_atomically(
            folder / "prompts.jsonl", "".join(f"{line(asdict(p))}\n" for p in kept).encode()
        )
        write_atomically(file, (json.dumps(about, indent=1) + "\n").encode())
        return cls(folder, about, tuple(kept))

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """A store that is there.

        Raises:
            FileNotFoundError: none is.
            ValueError: it is damaged.
        """
        folder = Path(folder)
        if not (folder / "run.json").is_file():
            raise FileNotFoundError(f"{folder} is no folder of `sasa bench`: it has no run.json")
        about = read_json(folder / "run.json")
        try:
            prompts = tuple(Prompt(**row) for row in read(folder / "prompts.jsonl"))
            _ = [about[key] for key in ("suite", "seed", "source", "skipped")]
            if not (
                isinstance(about["methods"], list)
                and about["batch_size"] >= 1
                and about["settings"]["completions"] >= 1
            ):
                raise TypeError("methods, batch_size or settings are not what they were")
            if not all(isinstance(prompt.text, str) for prompt in prompts):
                raise TypeError("a prompt is no text")
            if len(prompts) != about.get("prompt_count", len(prompts)):
                raise TypeError(
                    f"prompts.jsonl has {len(prompts)} prompts of {about['prompt_count']}"
                )
        except (TypeError, KeyError) as error:
            raise ValueError(f"{folder} is damaged: {error}") from error
        return cls(folder, about, prompts)

    def note(self, method: str, version: str = "") -> None:
        """Writes down that a method has been begun, and of which version what it reads or scores by is.

        Raises:
            SettingsDiffer: it was begun with another version.
        """
        versions = self.about.setdefault("method_versions", {})
        before = versions.get(method, "")
        if method not in self.about["methods"]:
            self.about["methods"].append(method)
            if version:
                versions[method] = version
            write_atomically(
                self.folder / "run.json", (json.dumps(self.about, indent=1) + "\n").encode()
            )
        elif before != version:
            raise SettingsDiffer(
                f"{self.folder}: {method} was begun with {before or 'nothing of its own'}, and what it reads is now {version}. "
                "Give another --output"
            )

    def file(self, method: str, kind: str = "completions") -> Path:
        name = quote(method, safe=":+ ").replace(":", "@")
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{hashlib.sha256(method.encode()).hexdigest()[:16]}"
        return self.folder / kind / f"{name}.jsonl"

    def completed(self, method: str) -> list[dict[str, Any]]:
        """A method's completions, n of the first prompt, n of the second, and so on."""
        return read(self.file(method))


def file_name(name: str) -> str:
    """A judge's or a scorer's name in the name of a file or a figure."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name)


def generate_stage(
    run: Run,
    methods: dict[str, Method],
    world: World,
    *,
    progress: bool = False,
    spread: Spread | None = None,
) -> None:
    """Writes what is missing of each method's completions; by `spread` elsewhere, where it is given."""
    by = spread or here(world.model, world.tokenizer)
    with alone(run.folder), _bar(progress) as bar:
        todo = {name: _whole_batches(run, run.file(name)) for name in methods}
        for name, made in methods.items():
            run.note(name, made.version)
            task = bar.add_task(escape(name), total=len(run.prompts) * run.completions)
            left = run.batches[todo[name] :]
            bar.advance(task, sum(map(len, run.batches[: todo[name]])) * run.completions)
            jobs = [([p.text for p in batch], seed_of(run, batch)) for batch in left]
            # The model is where the work is done.
            written = by(
                partial(
                    _write, made, replace(world, model=cast(Any, None), tokenizer=cast(Any, None))
                ),
                jobs,
            )
            for number, (batch, (rows, seconds)) in enumerate(
                zip(left, written, strict=True), todo[name]
            ):
                size, seed = len(batch) * run.completions, seed_of(run, batch)
                lines = [
                    _record(prompt, index, completion, number, seed)
                    for prompt, row in zip(batch, rows, strict=True)
                    for index, completion in enumerate(row)
                ]
                if len(lines) != size:
                    raise ValueError(
                        f"method {name} wrote {len(lines)} completions where {size} were asked for"
                    )
                append(run.file(name), lines)
                timing = {
                    "method": name,
                    "batch": number,
                    "seconds": round(seconds, 3),
                    "completions": size,
                }
                append(run.folder / "timings.jsonl", [timing])
                bar.advance(task, size)


def _write(
    made: Method,
    world: World,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    job: tuple[list[str], int],
) -> tuple[list[list[Completion]], float]:
    """What a method writes after some prompts, from a seed, and the seconds it takes."""
    start = time.perf_counter()
    rows = made(replace(world, model=model, tokenizer=tokenizer), *job)
    return rows, time.perf_counter() - start


def check_methods(run: Run, methods: dict[str, Method], world: World) -> None:
    """Raises ValueError where a method cannot be used on this run's prompts; before any of them writes."""
    for error in refusals(run, methods, world).values():
        raise ValueError(error)


def refusals(run: Run, methods: dict[str, Method], world: World) -> dict[str, str]:
    """The methods that cannot be used on this run's prompts, and why."""
    longest = max(map(len, contexts(run, world.model, world.tokenizer)))
    window, found = context_window(world.model), {}
    for name, made in methods.items():
        if world.engine is not None and not made.served:
            found[name] = f"method {name}: an engine cannot write it, but plain and sasa alone"
            continue
        try:
            made.check(world)
            extra = made.extra_tokens(world)
        except ValueError as error:
            found[name] = f"method {name}: {error}"
            continue
        if window is not None and longest + extra + world.settings.max_new_tokens > window:
            found[name] = (
                f"method {name} puts {extra} tokens before a prompt, of which the longest has {longest}: with "
                f"max_new_tokens={world.settings.max_new_tokens} that is beyond the model's context window of {window}"
            )
    return found


def seed_of(run: Run, batch: Sequence[Prompt]) -> int:
    """A batch's own seed, the same for every method: they differ by what they do and not by the luck of the draw."""
    told = f"{run.about['seed']} {' '.join(p.id for p in batch)}"
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4], "big") >> 1


def forecast(
    run: Run, methods: dict[str, Method], world: World, *, progress: bool = False
) -> dict[str, tuple[int, float]]:
    """For each method, and for the likelihoods of all, how many completions are missing and the seconds that they take.

    From one batch of middling length a method, which is thrown away.
    """
    batches = run.batches
    texts = [p.text for p in batches[len(batches) // 2]]
    prompts = encode_prompts(
        world.model, world.tokenizer, texts, world.first.embedding, world.settings.chat, 0
    )
    found: dict[str, tuple[int, float]] = {}
    reading = 0.0
    with _bar(progress) as bar:
        task = bar.add_task("trying each method", total=len(methods))
        for name, made in methods.items():
            left = len(batches) - _whole_batches(run, run.file(name))
            made(world, texts[:1], 0)  # whatever is slow the first time
            start = time.perf_counter()
            rows = made(world, texts, 0)
            middle = time.perf_counter()
            negative_log_likelihood(world.model, prompts, [c.tokens for row in rows for c in row])
            reading += left * (time.perf_counter() - middle)
            count = min(left * run.about["batch_size"], len(run.prompts)) * run.completions
            found[name] = count, left * (middle - start)
            bar.advance(task)
    return found | {"likelihoods": (sum(count for count, _ in found.values()), reading)}


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
    """Nats and tokens of each completion given its prompt.

    Args:
        model, tokenizer: that generated, or a judge's.
        judge: the judge's name. A judge reads the texts with its own tokenizer; the generating model the tokens it wrote, the
            closing EOS among them.
    """
    kind = f"likelihood@{file_name(judge)}" if judge else "likelihood"
    encoded = contexts(run, model, tokenizer, judge is not None)
    prompts = {p.id: ids for p, ids in zip(run.prompts, encoded, strict=True)}
    n, size = run.completions, run.about["batch_size"]
    with _bar(progress) as bar:
        for name in methods:
            rows = run.completed(name)
            file = run.file(name, kind)
            done = _whole_batches(run, file)
            task = bar.add_task(escape(f"{name}, likelihood"), total=len(rows))
            bar.advance(task, min(done * size * n, len(rows)))
            jobs = []
            for first in range(done * size * n, len(rows), size * n):
                part = rows[first : first + size * n]
                written = [
                    r["tokens"]
                    if judge is None
                    else tokenizer(r["text"], add_special_tokens=False).input_ids
                    for r in part
                ]
                jobs.append((part, [prompts[r["prompt"]] for r in part[::n]], written))
            found = (spread or here(model, tokenizer))(_likelihoods, [job[1:] for job in jobs])
            for (part, _, written), nats in zip(jobs, found, strict=True):
                lines = [
                    {
                        "prompt": r["prompt"],
                        "index": r["index"],
                        "nats": round(nat, 5),
                        "tokens": len(ids),
                    }
                    for r, nat, ids in zip(part, nats, written, strict=True)
                ]
                append(file, lines)
                bar.advance(task, len(part))


def _likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    job: tuple[list[list[int]], list[list[int]]],
) -> list[float]:
    return negative_log_likelihood(model, *job)


def contexts(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, judging: bool = False
) -> list[list[int]]:
    """Token ids of a run's prompts, as generation read them or as a judge reads them.

    Raises:
        ValueError: a judge without a chat template where one is needed, or with too short a window.
    """
    settings = run.about["settings"]
    # A judge may need more tokens for the same text.
    room = (2 if judging else 1) * settings["max_new_tokens"]
    spec = EmbeddingSpec(special_tokens=judging or run.about["special_tokens"])
    return encode_prompts(
        model, tokenizer, [p.text for p in run.prompts], spec, bool(settings["chat"]), room
    )


@torch.no_grad()
def negative_log_likelihood(
    model: PreTrainedModel, contexts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[float]:
    """Nats of completions given their contexts, float32 log-probabilities summed, each context read once.

    Args:
        contexts: token ids of the prompts.
        completions: token ids, the same number of each context, one context's after the other's. Empty ones cost nothing.
    """
    return (-log_probs(model, contexts, completions).sum(1)).tolist()


def score_stage(
    run: Run, judges: Sequence[Scorer], methods: Sequence[str], *, progress: bool = False
) -> None:
    """Scores what is there; scores are kept in sasa's cache folder, and with the run for its report."""
    with _bar(progress) as bar:
        for judge in judges:
            texts = {name: [r["text"] for r in run.completed(name)] for name in methods}
            every = [text for rows in texts.values() for text in rows]
            task = bar.add_task(escape(f"scoring by {judge.name}"), total=len(set(every)))
            scores = iter(scored(judge, every, lambda n, task=task: bar.advance(task, n)))  # type: ignore[misc]
            found = {
                name: [round(float(next(scores)), 6) for _ in rows] for name, rows in texts.items()
            }
            file = run.folder / "scores" / f"{file_name(judge.name)}.json"
            old = read_json(file) if file.is_file() else {}
            kept = old["scores"] if old.get("version") == judge.version else {}
            content = {"name": judge.name, "version": judge.version, "scores": kept | found}
            write_atomically(file, (json.dumps(content) + "\n").encode())


def _whole_batches(run: Run, file: Path) -> int:
    """How many batches of a file are whole and stand where they belong; what stands behind them is cut off."""
    if not file.is_file():
        return 0
    lines = whole_lines(file)
    done = count = 0
    for batch in run.batches:
        expected = [(p.id, i) for p in batch for i in range(run.completions)]
        found = parse(file, lines[count : count + len(expected)])
        if [(r["prompt"], r["index"]) for r in found] != expected:
            break
        done, count = done + 1, count + len(expected)
    keep_lines(file, lines[:count])
    return done


def _record(
    prompt: Prompt, index: int, completion: Completion, batch: int, seed: int
) -> dict[str, Any]:
    return {"prompt": prompt.id, "index": index, "batch": batch, "seed": seed, **asdict(completion)}


def _by_length(suite: Suite, world: World) -> tuple[list[Prompt], dict[str, int]]:
    """Prompts that the model can complete, shortest first, so that a batch has little padding; and what was skipped."""
    skipped = Counter(suite.skipped)
    settings, window = world.settings, context_window(world.model)
    spec = replace(world.first.embedding, template="chat" if settings.chat else "none")
    lengths: dict[str, int] = {}
    for prompt in suite.prompts:
        if not prompt.text.strip():
            skipped["with an empty prompt"] += 1
            continue
        length = len(tokenize_prompt(world.tokenizer, prompt.text, spec))
        if window is not None and length + settings.max_new_tokens > window:
            skipped["beyond the context window"] += 1
        else:
            lengths[prompt.id] = length
    if not lengths:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise ValueError(f"no prompt of {suite.source} can be completed: {reasons}")
    return sorted(
        (p for p in suite.prompts if p.id in lengths), key=lambda p: (lengths[p.id], p.id)
    ), dict(skipped)


class _Rate(ProgressColumn):
    """Completions a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


def _bar(show: bool) -> Progress:
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
