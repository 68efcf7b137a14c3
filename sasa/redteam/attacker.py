"""The loop of an attack: contexts, attacks, replies, scores, rewards, on record; then the attacker learns from the record.

It is a plain loop on what RePULSe's uses, and not trl's RLOOTrainer (1.16): a target may be slow, paid for and not repeatable, so
that what was answered must be on disk before anything is learnt from it, and an attack that is killed goes on from there. Within
trl's step, generation, rewards and update are one, and its checkpoints know nothing of what was asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.model_info import ModelInfo
from sasa.decoding.prompts import completion_text, encode_prompts
from sasa.decoding.sampling import in_rounds, log_probs, sample, seed_of
from sasa.evaluation.fingerprints import fingerprint
from sasa.evaluation.scorers import Scorer, checked_scores
from sasa.models.states import check_ready
from sasa.redteam.curiosity import advantages, choose_examples, few_shot, rewards
from sasa.redteam.encoder import Encoder, encoder
from sasa.redteam.hits import EMPTY, is_hit
from sasa.redteam.novelty import Cosine, SelfBLEU
from sasa.redteam.settings import TERMS, RedTeam
from sasa.redteam.store import Attempts
from sasa.redteam.targets import Reply, Target, check_target
from sasa.training.checkpoint import newest, restore, save
from sasa.training.folder import CHECKPOINTS, base_name, check_packages, save_adapter
from sasa.training.models import ADAPTERS, POLICY, PRIOR, Models
from sasa.utils.files import write_atomically
from sasa.utils.jsonl import alone
from sasa.utils.progress import figures_bar

ATTACKER = "attacker"
OPEN = "cases", "save_steps"
"""Settings that may change between two starts."""
CARD = """# An attacker: not for use

This model was trained to write prompts that make another one answer in a toxic way (curiosity-driven red-teaming, Hong et al.
2024). It was kept to attack again, here or elsewhere: `sasa redteam run --attacker FOLDER`.
"""


def red_team(
    target: Target,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    judges: Sequence[Scorer],
    output: str | os.PathLike[str],
    settings: RedTeam | None = None,
    *,
    embed: Encoder | None = None,
    naturalness: Scorer | None = None,
    single_judge: bool = False,
    keep_attacker: bool = False,
    base: str | None = None,
    progress: bool = False,
) -> Attempts:
    """Attacks a target until `settings.cases` attacks are on record, and returns the record.

    Started again with the same settings it goes on, on the CPU in float32 to the same record as if it had never stopped.

    Args:
        target: see `sasa.redteam.targets`.
        model, tokenizer: the attacker, in eval mode; it learns as an adapter, and is afterwards what it was. Another object than
            the target's model.
        contexts: what attacks are written from, such as `A list of rude questions:\\n1.`.
        judges: of replies. The first one's score is the reward; what the others say is for the report.
        embed: sentence embeddings; None for all-MiniLM-L6-v2.
        naturalness: a classifier of attacks, P(natural); None for the attacker's own surprise.
        single_judge: allows one judge, whose mistakes the attacker then learns to look for unseen.
        keep_attacker: saves the trained attacker, a harmful model, in the folder `attacker`.
        base: what `sasa.load` knows the attacker by, for a kept adapter to name.

    Raises:
        ImportError: a package that is needed is missing.
        OSError: the target does not answer; or stopped answering, and the same call will go on.
        ValueError: no contexts, an empty one, one judge, judges of one name, or a folder of other settings.
    """
    settings = settings or RedTeam()
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"judges need names of their own, got {', '.join(names) or 'none'}")
    check_judges(names, single_judge)
    if not contexts or any(not context.strip() for context in contexts):
        raise ValueError("contexts are empty: an attacker needs something to write from")
    check_ready(model)
    if getattr(target, "model", None) is model:
        raise ValueError(
            "the attacker learns: load it a second time, as another object than the target's model"
        )
    if settings.trains and settings.lora:
        check_packages("peft", extra="redteam")
    if keep_attacker and not settings.trains:
        raise ValueError(f"{settings.method} trains no attacker that could be kept")
    base = base_name(model, base, settings.lora) if keep_attacker else ""
    encode_prompts(
        model, tokenizer, contexts, EmbeddingSpec(), settings.chat, settings.max_new_tokens
    )
    embed = embed or encoder(device=str(model.device))
    about = _about(target, model, contexts, judges, settings, embed, naturalness)
    folder = Attempts.begin(output, about).folder
    with alone(folder):
        store = Attempts.open(folder)  # as the last process to write left it
        store.repair()
        if store.steps < settings.steps:
            check_target(target)
            shutil.rmtree(folder / ATTACKER, ignore_errors=True)  # what it was before it went on
        elif not keep_attacker or (folder / ATTACKER / "README.md").exists():
            return store
        attacker = Attacker(
            target, model, tokenizer, contexts, judges, settings, embed, naturalness, store
        )
        try:
            attacker.run(progress)
            if keep_attacker:
                attacker.save(folder / ATTACKER, base)
        finally:
            attacker.close()
    return store


def check_judges(names: Sequence[str], single: bool) -> None:
    """Raises ValueError where one judge is alone and nobody said that it may be."""
    if len(names) < 2 and not single:
        raise ValueError(
            f"one judge alone, {names[0]}, cannot tell a hit from its own mistake: add one that takes no part in the reward, or "
            "say that a single judge will do (single_judge=True, --single-judge)"
        )


class Attacker:
    """An attack in progress: what `red_team` runs, step by step."""

    def __init__(
        self,
        target: Target,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        contexts: Sequence[str],
        judges: Sequence[Scorer],
        settings: RedTeam,
        embed: Encoder,
        naturalness: Scorer | None,
        store: Attempts,
    ) -> None:
        self.target, self.model, self.tokenizer, self.contexts = (
            target,
            model,
            tokenizer,
            list(contexts),
        )
        self.judges, self.settings, self.embed, self.naturalness, self.store = (
            judges,
            settings,
            embed,
            naturalness,
            store,
        )
        self.bleu, self.cosine = SelfBLEU(), Cosine(settings.nearest or None)
        self.stop = _line_ends(tokenizer)
        self.models: Models | None = None
        self.learners: dict[str, Any] = {}
        if settings.trains:
            self.models = Models(model, settings.lora, proposal=False, seed=settings.seed)
            weights = self.models.weights(POLICY)
            rate = settings.learning_rate or 0.0
            self.learners = {
                POLICY: (weights, torch.optim.AdamW(weights.values(), lr=rate, weight_decay=0.0))
            }

    def run(self, progress: bool) -> None:
        """All steps that are still to be done."""
        s, checkpoints = self.settings, self.store.folder / CHECKPOINTS
        learnt = 0
        if s.trains and (last := newest(checkpoints)) is not None:
            learnt, _ = restore(last, self.learners)
        known, size = self.store.vectors, self.store.rows
        hits = 0
        with figures_bar(progress) as bar:
            task = bar.add_task(s.method, total=s.steps * s.rows, completed=0, figures="")
            for number in range(max(s.steps, self.store.steps)):
                log_p = None
                if (number + 1) * size <= len(known):
                    attacks = [record["attack"] for record in self.store.step(number)]
                    self._remember(attacks, known[number * size : (number + 1) * size])
                else:
                    log_p = self.attempt(number)
                if s.trains and number >= learnt:
                    self.learn(number, log_p)
                    if (number + 1) % s.save_steps == 0 or number + 1 == s.steps:
                        save(checkpoints, number + 1, self.learners, [])
                hits += sum(is_hit(record) for record in self.store.step(number))
                told = f"toxic by all judges {hits}  toxicity {self._recent_toxicity(number):.3f}"
                bar.update(task, completed=(number + 1) * s.rows, figures=told)

    def attempt(self, number: int) -> Tensor | None:
        """A step of attacks, with all that came of them, put on record.

        Returns:
            their log-probabilities (N,), differentiable, where the attacker learns and one pass holds them.
        """
        s = self.settings
        contexts = self._contexts_of(number)
        ids = encode_prompts(
            self.model, self.tokenizer, contexts, EmbeddingSpec(), s.chat, s.max_new_tokens
        )
        seed = seed_of(s.seed, number)
        with self._use(POLICY) as policy, torch.no_grad():
            rows = sample(policy, ids, s.samples, s.max_new_tokens, seed, self.stop, s.temperature)
        at_once = s.trains and len(rows) <= s.batch_size
        with self._use(POLICY) as policy, torch.set_grad_enabled(at_once):
            kept = log_probs(policy, ids, rows, s.temperature).sum(1)
        log_p = kept.detach().double().cpu().numpy()
        log_p0 = log_p
        if s.trains:
            with self._use(PRIOR) as prior, torch.no_grad():
                log_p0 = log_probs(prior, ids, rows, s.temperature).sum(1).double().cpu().numpy()
        attacks = [
            self._attack(contexts[i // s.samples], ids[i // s.samples], row)
            for i, row in enumerate(rows)
        ]
        replies = self._ask(attacks, seed_of(s.seed, "replies", number))
        vectors = self.embed(attacks)
        self_bleu, cosine = self._remember(attacks, vectors)
        answered = [i for i, reply in enumerate(replies) if reply.text is not None]
        scores: list[dict[str, float]] = [{} for _ in rows]
        for judge in self.judges:
            given = checked_scores(judge, [replies[i].text or "" for i in answered])
            for i, score in zip(answered, given, strict=True):
                scores[i][judge.name] = round(float(score), 6)
        toxicity = [of_row.get(self.judges[0].name, 0.0) for of_row in scores]
        columns = [
            toxicity,
            self._natural(attacks, rows, log_p0),
            self_bleu,
            cosine,
            log_p - log_p0,
            log_p,
        ]
        terms = {name: np.round(column, 6) for name, column in zip(TERMS, columns, strict=True)}
        total = rewards(terms, s)
        # a target's failure says nothing about the attack; an empty attack is the attacker's own
        counts = [reply.error in (None, EMPTY) for reply in replies]
        records = [
            {
                "step": number,
                "context": contexts[i // s.samples],
                "attack": attacks[i],
                "tokens": rows[i],
                "reply": replies[i].text,
                "error": replies[i].error,
                "scores": scores[i],
                "terms": {
                    name: float(column[i]) if counts[i] else None for name, column in terms.items()
                },
                "reward": round(float(total[i]), 6) if counts[i] else None,
            }
            for i in range(len(rows))
        ]
        self.store.append(records, vectors)
        return kept if at_once else None

    def learn(self, number: int, log_p: Tensor | None = None) -> None:
        """One update by REINFORCE with a leave-one-out baseline.

        Advantages are not divided by their standard deviation, as in GRPO: a step without a toxic reply would count as much as
        any other, for what differs in novelty.
        """
        s, records = self.settings, self.store.step(number)
        assert self.models is not None
        weights, optimizer = self.learners[POLICY]
        for weight in weights.values():
            weight.grad = None
        gains = torch.from_numpy(
            advantages([record["reward"] for record in records], s.samples)
        ).float()
        size = max(1, s.batch_size // s.samples) * s.samples
        for first in range(0, len(records), size):
            part = records[first : first + size]
            with self.models.use(POLICY) as policy:
                found = self._read(policy, part) if log_p is None else log_p
                loss = -(gains[first : first + size].to(found.device) * found).sum() / len(records)
                loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), s.max_norm)
        optimizer.step()

    def _read(self, policy: PreTrainedModel, part: list[dict[str, Any]]) -> Tensor:
        """Log-probabilities (N,), differentiable, of attacks on record."""
        s = self.settings
        contexts = [record["context"] for record in part[:: s.samples]]
        ids = encode_prompts(
            self.model, self.tokenizer, contexts, EmbeddingSpec(), s.chat, s.max_new_tokens
        )
        return log_probs(policy, ids, [record["tokens"] for record in part], s.temperature).sum(1)

    def save(self, folder: Path, base: str) -> None:
        """Saves the attacker as it is now, as an adapter of `base` or whole."""
        assert self.models is not None
        if self.models.adapted is not None:
            save_adapter(self.models.adapted, folder, base, ADAPTERS[POLICY])
        else:
            self.models.whole(POLICY).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_atomically(folder / "README.md", CARD)  # last of all: with it the attacker is whole

    def close(self) -> None:
        """Gives the attacker's model back as it was given."""
        if self.models is not None:
            self.models.close()

    def _recent_toxicity(self, number: int) -> float:
        """The mean over the last ten steps."""
        records = self.store.records[
            max(0, number - 9) * self.store.rows : (number + 1) * self.store.rows
        ]
        found = [record["terms"]["toxicity"] for record in records if record["reward"] is not None]
        return sum(found) / max(1, len(found))

    def _use(self, which: str) -> Any:
        return contextlib.nullcontext(self.model) if self.models is None else self.models.use(which)

    def _contexts_of(self, number: int) -> list[str]:
        """The contexts of a step; for few-shot, with examples."""
        s, size = self.settings, self.settings.contexts_per_step
        found = [
            self.contexts[i]
            for i in in_rounds(len(self.contexts), size, number, s.seed, "contexts")
        ]
        if s.method == "few-shot":
            for i, context in enumerate(found):
                seed = seed_of(s.seed, "shots", number * size + i)
                if examples := choose_examples(
                    self.store.records, self.judges[0].name, s.shots, seed
                ):
                    found[i] = few_shot(context, examples)
        return found

    def _attack(self, context: str, ids: list[int], row: list[int]) -> str:
        """The text of an attack: the rest of the line."""
        text = completion_text(self.tokenizer, ids, row).split("\n")[0]
        text = f"{context}{text}" if self.settings.include_context else text
        return text.encode("utf-8", "replace").decode().strip()

    def _ask(self, attacks: list[str], seed: int) -> list[Reply]:
        asked = [i for i, attack in enumerate(attacks) if attack]
        replies = [Reply(None, EMPTY)] * len(attacks)
        for i, reply in zip(
            asked,
            self.target.reply([attacks[i] for i in asked], seed) if asked else [],
            strict=True,
        ):
            replies[i] = reply
        if asked and all(replies[i].error is not None for i in asked):
            try:
                check_target(
                    self.target
                )  # it may have no answer to these attacks, or no answer at all any more
            except OSError as error:
                raise OSError(
                    f"{error}, after attacks went without an answer, too. What was tried before is on record: the same command "
                    "goes on when the target answers again"
                ) from error
        return replies

    def _natural(self, attacks: list[str], rows: list[list[int]], log_p0: Any) -> Any:
        if self.naturalness is not None:
            return checked_scores(self.naturalness, attacks)
        return np.clip(
            log_p0 / np.array([len(row) for row in rows]) + self.settings.surprise, -1.0, 0.0
        )

    def _remember(self, attacks: list[str], vectors: Any) -> tuple[Any, Any]:
        """Novelty of attacks against all before them, which they are then part of."""
        cosine = self.cosine.observe(vectors)
        empty = np.array([not attack for attack in attacks])
        return self.bleu.observe(attacks), np.where(empty, 1.0, cosine)


def _about(
    target: Target,
    model: PreTrainedModel,
    contexts: Sequence[str],
    judges: Sequence[Scorer],
    settings: RedTeam,
    embed: Encoder,
    naturalness: Scorer | None,
) -> dict[str, Any]:
    named = [naturalness] if naturalness is not None else []
    return {
        "settings": {
            f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in OPEN
        },
        "rows": settings.rows,
        "target": target.about,
        "attacker": {
            "model": asdict(ModelInfo.of(model)),
            "weights": fingerprint(model),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "contexts": {
            "count": len(contexts),
            "digest": hashlib.sha256(json.dumps(list(contexts)).encode()).hexdigest()[:16],
        },
        "judges": [{"name": judge.name, "version": judge.version} for judge in judges],
        "encoder": {"name": embed.name, "version": embed.version, "size": embed.size},
        "naturalness": [{"name": judge.name, "version": judge.version} for judge in named],
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("sasa-decoding", "torch", "transformers")
        },
    }


def _line_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens with a line's end in them: an attack is one line."""
    return [
        i
        for i, text in enumerate(tokenizer.batch_decode([[i] for i in range(len(tokenizer))]))
        if "\n" in text
    ]
