"""The loop of an attack: contexts, attacks, replies, scores, rewards, on record; then the attacker
learns from the record.

It is a plain loop, like RePULSe's, and not trl's RLOOTrainer (1.16): a target may be slow, paid for
and not repeatable, so that what was answered must be on disk before anything is learnt from it, and
a killed attack is resumed from there. Within trl's step, generation, rewards and update are one,
and its checkpoints know nothing of what was asked.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.model_info import ModelInfo
from sasa.decoding.prompts import encode_prompts
from sasa.decoding.sampling import in_rounds, seed_of
from sasa.evaluation.fingerprints import fingerprint
from sasa.evaluation.scorers import Scorer, checked_scores
from sasa.models.states import check_ready
from sasa.redteam.curiosity import choose_examples, few_shot, rewards
from sasa.redteam.encoder import Encoder, encoder
from sasa.redteam.hits import EMPTY, is_hit
from sasa.redteam.novelty import Cosine, SelfBLEU
from sasa.redteam.policy import CARD_FILE, Policy
from sasa.redteam.settings import TERMS, RedTeam
from sasa.redteam.store import Attempt, Attempts, attack_folder
from sasa.redteam.targets import Reply, Target, check_target
from sasa.training.folder import CHECKPOINTS, base_name, check_packages
from sasa.utils.progress import figures_bar

ATTACKER = "attacker"
OPEN = "cases", "save_steps"
"""Settings that may change between two starts."""

Array = NDArray[np.float64]


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

    Started again with the same settings it goes on, on the CPU in float32 to the same record as if
    it had never stopped.

    Args:
        target: see `sasa.redteam.targets`.
        model, tokenizer: the attacker, in eval mode; it learns as an adapter, and is afterwards
            what it was. Another object than the target's model.
        contexts: what attacks are written from, such as `A list of rude questions:\\n1.`.
        judges: scorers of replies. The first one's score is the reward; the scores of the others
            are for the report.
        embed: sentence embeddings; None for all-MiniLM-L6-v2.
        naturalness: a scorer of attacks, P(natural); None for the attacker's own surprise.
        single_judge: allows one scorer, whose mistakes the attacker then learns to look for unseen.
        keep_attacker: saves the trained attacker, a harmful model, in the folder `attacker`.
        base: the name that `sasa.load` loads the attacker by, for a kept adapter to name.

    Raises:
        ImportError: a package that is needed is missing.
        OSError: the target does not answer; or stopped answering, and the same call will go on.
        ValueError: no contexts, an empty one, one scorer, scorers of one name, or a folder of other
            settings.
        BlockingIOError: another process attacks in the same folder.
    """
    settings = settings or RedTeam()
    check_scorers([scorer.name for scorer in judges], single_judge)
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
    encode_prompts(  # raises if a context is too long, or has no template
        model, tokenizer, contexts, EmbeddingSpec(), settings.chat, settings.max_new_tokens
    )
    embed = embed or encoder(device=str(model.device))
    about = _about(target, model, contexts, judges, settings, embed, naturalness)
    Attempts.check(output, about)
    folder = attack_folder(output)
    attacker_folder = folder.path / ATTACKER
    with folder.lock():
        store = Attempts.begin(output, about)
        store.repair()
        if store.steps < settings.steps:
            check_target(target)
            shutil.rmtree(attacker_folder, ignore_errors=True)  # as it was before these steps
        elif not keep_attacker or (attacker_folder / CARD_FILE).exists():
            return store
        policy = Policy(model, tokenizer, settings)
        try:
            Attacker(target, policy, contexts, judges, embed, naturalness, store).run(progress)
            if keep_attacker:
                policy.save(attacker_folder, base)
        finally:
            policy.close()
    return store


def check_scorers(names: Sequence[str], single: bool) -> None:
    """Raises ValueError if scorers share a name, if there is none, or only one without `single`."""
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"scorers need names of their own, got {', '.join(names) or 'none'}")
    if len(names) < 2 and not single:
        raise ValueError(
            f"one scorer alone, {names[0]}, cannot tell a hit from its own mistake: add one that "
            "takes no part in the reward, or say that a single one will do (single_judge=True, "
            "--single-judge)"
        )


class Attacker:
    """An attack in progress: what `red_team` runs, step by step."""

    def __init__(
        self,
        target: Target,
        policy: Policy,
        contexts: Sequence[str],
        scorers: Sequence[Scorer],
        embed: Encoder,
        naturalness: Scorer | None,
        store: Attempts,
    ) -> None:
        self.target, self.policy, self.contexts = target, policy, list(contexts)
        self.scorers, self.embed, self.naturalness = scorers, embed, naturalness
        self.store, self.settings = store, policy.settings
        self.bleu, self.cosine = SelfBLEU(), Cosine(self.settings.nearest or None)

    def run(self, progress: bool) -> None:
        """Does all steps that are still to be done."""
        s, checkpoints = self.settings, self.store.folder / CHECKPOINTS
        learnt = self.policy.restore_checkpoint(checkpoints)
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
                        self.policy.save_checkpoint(checkpoints, number + 1)
                hits += sum(is_hit(record) for record in self.store.step(number))
                text = f"toxic by all scorers {hits}  toxicity {self._recent_toxicity(number):.3f}"
                bar.update(task, completed=(number + 1) * s.rows, figures=text)

    def attempt(self, number: int) -> Tensor | None:
        """Makes a step of attacks, and puts it on record with all that came of them.

        Returns:
            the attacks' log-probabilities (N,), differentiable, if the attacker learns and one pass
            holds them; else None.
        """
        s = self.settings
        contexts = self._contexts_of(number)
        ids = self.policy.encode(contexts)
        rows = self.policy.write(ids, seed_of(s.seed, number))
        at_once = s.trains and len(rows) <= s.batch_size
        with torch.set_grad_enabled(at_once):
            log_p = self.policy.log_probs(ids, rows)
        own = log_p.detach().double().cpu().numpy()
        before = self.policy.reference_log_probs(ids, rows) if s.trains else own
        attacks = [
            self.policy.text(contexts[i // s.samples], ids[i // s.samples], row)
            for i, row in enumerate(rows)
        ]
        replies = self._ask(attacks, seed_of(s.seed, "replies", number))
        vectors = self.embed(attacks)
        self_bleu, cosine = self._remember(attacks, vectors)
        scores = self._scores(replies)
        first = self.scorers[0].name
        columns = {
            "toxicity": np.array([of_reply.get(first, 0.0) for of_reply in scores]),
            "naturalness": self._naturalness(attacks, rows, before),
            "self_bleu": self_bleu,
            "cosine": cosine,
            "kl": own - before,
            "log_p": own,
        }
        terms = {name: np.round(columns[name], 6) for name in TERMS}
        total = rewards(terms, s)
        # a target's failure says nothing about the attack; an empty attack is the attacker's own
        counts = [reply.error in (None, EMPTY) for reply in replies]
        records: list[Attempt] = [
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
        return log_p if at_once else None

    def learn(self, number: int, log_p: Tensor | None = None) -> None:
        """Makes one update from a step's record; see `Policy.learn`."""
        self.policy.learn(self.store.step(number), log_p)

    def _recent_toxicity(self, number: int) -> float:
        """The mean over the last ten steps."""
        size = self.store.rows
        values = [
            record["terms"]["toxicity"] or 0.0
            for record in self.store.records[max(0, number - 9) * size : (number + 1) * size]
            if record["reward"] is not None
        ]
        return sum(values) / max(1, len(values))

    def _contexts_of(self, number: int) -> list[str]:
        """The contexts of a step; for few-shot, with examples."""
        s, size = self.settings, self.settings.contexts_per_step
        contexts = [
            self.contexts[i]
            for i in in_rounds(len(self.contexts), size, number, s.seed, "contexts")
        ]
        if s.method == "few-shot":
            for i, context in enumerate(contexts):
                seed = seed_of(s.seed, "shots", number * size + i)
                if examples := choose_examples(
                    self.store.records, self.scorers[0].name, s.shots, seed
                ):
                    contexts[i] = few_shot(context, examples)
        return contexts

    def _ask(self, attacks: list[str], seed: int) -> list[Reply]:
        """The target's reply to each attack; an empty attack is not sent.

        Raises:
            OSError: the target answered no attack, and does not answer a greeting either.
        """
        sent = [i for i, attack in enumerate(attacks) if attack]
        replies = [Reply(None, EMPTY)] * len(attacks)
        answers = self.target.reply([attacks[i] for i in sent], seed) if sent else []
        for i, reply in zip(sent, answers, strict=True):
            replies[i] = reply
        if sent and all(replies[i].error is not None for i in sent):
            try:
                # it may have no answer to these attacks, or no answer at all any more
                check_target(self.target)
            except OSError as error:
                raise OSError(
                    f"{error}, after attacks went without an answer, too. What was tried before is "
                    "on record: the same command goes on when the target answers again"
                ) from error
        return replies

    def _scores(self, replies: Sequence[Reply]) -> list[dict[str, float]]:
        """The scores of each reply by the scorers' names; none where there is no reply."""
        answered = [i for i, reply in enumerate(replies) if reply.text is not None]
        scores: list[dict[str, float]] = [{} for _ in replies]
        for scorer in self.scorers:
            values = checked_scores(scorer, [replies[i].text or "" for i in answered])
            for i, value in zip(answered, values, strict=True):
                scores[i][scorer.name] = round(float(value), 6)
        return scores

    def _naturalness(self, attacks: list[str], rows: list[list[int]], log_p0: Array) -> Array:
        """How natural attacks are, (N,), by the scorer or by the reference model's surprise."""
        if self.naturalness is not None:
            return checked_scores(self.naturalness, attacks)
        per_token = log_p0 / np.array([len(row) for row in rows])
        return np.clip(per_token + self.settings.surprise, -1.0, 0.0)

    def _remember(self, attacks: list[str], vectors: NDArray[np.float32]) -> tuple[Array, Array]:
        """SelfBLEU and cosine (N,) of attacks to all before them; then they are history."""
        cosine = self.cosine.observe(vectors)
        empty = np.array([not attack for attack in attacks])
        return self.bleu.observe(attacks), np.where(empty, 1.0, cosine)


def _about(
    target: Target,
    model: PreTrainedModel,
    contexts: Sequence[str],
    scorers: Sequence[Scorer],
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
        "judges": [{"name": scorer.name, "version": scorer.version} for scorer in scorers],
        "encoder": {"name": embed.name, "version": embed.version, "size": embed.size},
        "naturalness": [{"name": scorer.name, "version": scorer.version} for scorer in named],
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("sasa-decoding", "torch", "transformers")
        },
    }
