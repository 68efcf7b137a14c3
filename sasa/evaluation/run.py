"""The folder of a benchmark run: prompts, completions, likelihoods and scores.

    run.json                        settings, model, boundary, versions: what completions depend on
    prompts.jsonl                   the prompts in the order in which they are batched
    completions/METHOD.jsonl        one line per completion, appended batch by batch
    likelihood/METHOD.jsonl         one line per completion: nats and tokens by the generating model
    likelihood@JUDGE/METHOD.jsonl   the same by a judge
    timings.jsonl                   seconds of each batch
    scores/SCORER.json              the scores that the report shows

A batch is appended at once, has a seed of its own, and counts only if it is whole: a torn batch is
cut off and written again. So a killed run ends with the same completions as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, cast
from urllib.parse import quote

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.model_info import ModelInfo
from sasa.core.settings import BETA, PRIOR, VALUE
from sasa.core.values import fingerprint_of
from sasa.decoding.prompts import encode_prompts
from sasa.evaluation.fingerprints import fingerprint
from sasa.evaluation.suites import Prompt, Suite
from sasa.evaluation.world import World
from sasa.models.embedding import tokenize_prompt
from sasa.models.skinny import kernel
from sasa.models.states import context_window
from sasa.utils.files import read_json, write_atomically
from sasa.utils.jsonl import keep_lines, line, parse, read, whole_lines
from sasa.utils.run_folder import RunFolder, SettingsDiffer

MAX_NAME = 160
"""Characters of a method in a file's name."""
ROWS = 64
"""Completions that are written at a time, unless a batch size is given."""


class CompletionRecord(TypedDict, total=False):
    """A line of completions/METHOD.jsonl; it has the other fields of `Completion`, too."""

    prompt: str
    index: int
    batch: int
    seed: int
    text: str
    tokens: list[int]
    spent: int
    attempts: list[object]


class LikelihoodRecord(TypedDict):
    """A line of likelihood*/METHOD.jsonl."""

    prompt: str
    index: int
    nats: float
    tokens: int


class Timing(TypedDict):
    """A line of timings.jsonl."""

    method: str
    batch: int
    seconds: float
    completions: int


@dataclass(frozen=True)
class StoredScores:
    """A file of scores/: for each method the scores of its completions, in their order."""

    name: str
    version: str
    scores: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run's folder, the content of its run.json, and its prompts."""

    folder: Path
    about: dict[str, Any]
    prompts: tuple[Prompt, ...]

    @property
    def store(self) -> RunFolder:
        return _store(self.folder)

    @property
    def batch_size(self) -> int:
        """Prompts that are completed together."""
        return int(self.about["batch_size"])

    @property
    def batches(self) -> list[tuple[Prompt, ...]]:
        size = self.batch_size
        return [self.prompts[i : i + size] for i in range(0, len(self.prompts), size)]

    @property
    def completions(self) -> int:
        """Completions of each prompt."""
        return int(self.about["settings"]["completions"])

    @property
    def methods(self) -> list[str]:
        """Methods whose completions are all written, in the order in which they were begun."""
        total = len(self.prompts) * self.completions
        begun = [name for name in self.about["methods"] if self.file(name).is_file()]
        return [name for name in begun if len(self.completed(name)) == total]

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
        """Creates a run, or opens the existing one if it has the same settings.

        Args:
            batch_size: prompts at a time; None for about 64 completions.
            write: False writes nothing, to see what a run would do.

        Raises:
            SettingsDiffer: the existing run has other settings; the message names them.
            ValueError: no prompt fits the model's context window.
            OSError: the folder cannot be written.
        """
        folder = Path(folder)
        prompts, skipped = _completable(suite, world)
        batch_size = batch_size or max(1, ROWS // world.settings.completions)
        about = _about(suite, prompts, world, seed, batch_size)
        store = _store(folder)
        if store.exists:
            return cls(folder, store.begin(about), prompts)
        if any((folder / "completions").glob("*.jsonl")):
            raise SettingsDiffer(f"{folder} holds completions and no run.json: give another folder")
        about |= {"source": suite.source, "skipped": skipped, "methods": []}
        if write:
            lines = "".join(f"{line(asdict(prompt))}\n" for prompt in prompts)
            write_atomically(folder / "prompts.jsonl", lines)
            store.write(about)
        return cls(folder, about, prompts)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Opens an existing run.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: it is damaged.
        """
        folder = Path(folder)
        store = _store(folder)
        if not store.exists:
            raise FileNotFoundError(f"{folder} is no folder of `sasa bench`: it has no run.json")
        about = store.read()
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

    def begin(self, method: str, version: str = "") -> None:
        """Records that a method has been begun, and the version of the files or scorer it uses.

        Raises:
            SettingsDiffer: it was begun with another version.
        """
        versions = self.about.setdefault("method_versions", {})
        before = versions.get(method, "")
        if method not in self.about["methods"]:
            self.about["methods"].append(method)
            if version:
                versions[method] = version
            self.store.write(self.about)
        elif before != version:
            raise SettingsDiffer(
                f"{self.folder}: {method} was begun with {before or 'nothing of its own'}, "
                f"and what it reads is now {version}. Give another --output"
            )

    def file(self, method: str, kind: str = "completions") -> Path:
        """A method's file of this kind: completions, or likelihood of some model."""
        name = quote(method, safe=":+ ").replace(":", "@")
        if len(name) > MAX_NAME:
            name = f"{name[:MAX_NAME]}-{hashlib.sha256(method.encode()).hexdigest()[:16]}"
        return self.folder / kind / f"{name}.jsonl"

    def completed(self, method: str) -> list[CompletionRecord]:
        """A method's completions, those of the first prompt first."""
        return cast(list[CompletionRecord], read(self.file(method)))

    def likelihoods(self, method: str, kind: str = "likelihood") -> list[LikelihoodRecord]:
        """The likelihoods of a method's completions, in the same order."""
        return cast(list[LikelihoodRecord], read(self.file(method, kind)))

    def timings(self) -> list[Timing]:
        """The time of each batch; the last record of a batch counts."""
        return cast(list[Timing], read(self.folder / "timings.jsonl"))

    def scores_file(self, scorer: str) -> Path:
        return self.folder / "scores" / f"{file_name(scorer)}.json"

    def scores(self) -> list[StoredScores]:
        """The scores by each scorer, in the order of their files."""
        files = sorted((self.folder / "scores").glob("*.json"))
        return [StoredScores(**read_json(file)) for file in files]

    def whole_batches(self, file: Path) -> int:
        """The number of whole batches at the start of a file; cuts off what follows them."""
        if not file.is_file():
            return 0
        lines = whole_lines(file)
        batches = count = 0
        for batch in self.batches:
            expected = [(prompt.id, i) for prompt in batch for i in range(self.completions)]
            records = parse(file, lines[count : count + len(expected)])
            if [(record["prompt"], record["index"]) for record in records] != expected:
                break
            batches, count = batches + 1, count + len(expected)
        keep_lines(file, lines[:count])
        return batches

    def batch_seed(self, batch: Sequence[Prompt]) -> int:
        """The seed of a batch, the same for every method: methods share their noise."""
        content = f"{self.about['seed']} {' '.join(prompt.id for prompt in batch)}"
        return int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big") >> 1

    def encoded_prompts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, judging: bool = False
    ) -> list[list[int]]:
        """Token ids of the prompts, as generation reads them or as a judge reads them.

        Raises:
            ValueError: a judge lacks a chat template that is needed, or its window is too short.
        """
        settings = self.about["settings"]
        # A judge may need more tokens for the same text.
        room = (2 if judging else 1) * settings["max_new_tokens"]
        spec = EmbeddingSpec(special_tokens=judging or self.about["special_tokens"])
        texts = [prompt.text for prompt in self.prompts]
        return encode_prompts(model, tokenizer, texts, spec, bool(settings["chat"]), room)


def file_name(name: str) -> str:
    """A scorer's or judge's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name)


def _store(folder: Path) -> RunFolder:
    return RunFolder(folder, "run.json", "a run of `sasa bench`")


def _about(
    suite: Suite, prompts: Sequence[Prompt], world: World, seed: int, batch_size: int
) -> dict[str, Any]:
    """All that the completions depend on, as JSON values."""
    texts = "\0".join(f"{prompt.id} {prompt.text}" for prompt in prompts)
    about = {
        "suite": suite.name,
        "sample": suite.sample,
        "prompt_count": len(prompts),
        "prompts": hashlib.sha256(texts.encode()).hexdigest()[:16],
        "settings": world.settings.to_dict(),
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
    return cast(dict[str, Any], json.loads(json.dumps(about)))


def _completable(suite: Suite, world: World) -> tuple[tuple[Prompt, ...], dict[str, int]]:
    """Prompts that the model can complete, shortest first so that batches have little padding; and
    how many were skipped, by reason."""
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
    prompts = [prompt for prompt in suite.prompts if prompt.id in lengths]
    prompts.sort(key=lambda prompt: (lengths[prompt.id], prompt.id))
    return tuple(prompts), dict(skipped)
