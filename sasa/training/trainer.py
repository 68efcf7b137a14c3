"""The loop of RePULSe (Zhao et al. 2025, arXiv 2510.21184): sample from policy and proposal, judge, update both.

It is a plain loop on torch and accelerate. trl's RLOOTrainer (1.16) has one policy, one set of samples and one optimizer. A
second sampler with a loss of its own, and weights from both models, would mean overriding its generation, its scoring, its
loss, its training step and its checkpoints, most of them private.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.decoding.prompts import completion_text
from sasa.decoding.sampling import in_rounds, log_probs, sample, seed_of
from sasa.evaluation.rewards import Reward
from sasa.training import objectives
from sasa.training.card import AVERAGED
from sasa.training.checkpoint import newest, restore, save
from sasa.training.models import POLICY, PRIOR, PROPOSAL, Models
from sasa.training.settings import Repulse
from sasa.utils.files import write_atomically
from sasa.utils.progress import figures_bar

WARNING = """These are checkpoints of a training with RePULSe. The weights called proposal are of a model that is trained to write
what is worst. They are not for use, and are deleted when the training ends.
"""


class Trainer:
    """The loop: samples of policy and proposal, rewards, gradients of both losses, an update of each; and what came of it.

    Attributes:
        log: a dictionary a step. Of the policy's samples `reward`, `return`, `kl` (all means), `below` (the share with a reward
            below eta) and `tokens`; of the proposal's `proposal_reward` and `proposal_below`; `effective_samples` of a prompt;
            `norm` and `proposal_norm` of the gradients; and `eval`, where there was an evaluation.
    """

    def __init__(
        self,
        models: Models,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        encoded: list[list[int]],
        reward: Reward,
        settings: Repulse,
        processes: Any,
    ) -> None:
        self.models, self.tokenizer, self.reward, self.settings, self.processes = (
            models,
            tokenizer,
            reward,
            settings,
            processes,
        )
        self.prompts, self.encoded = prompts, encoded
        self.held_out: tuple[list[str], list[list[int]]] = [], []
        self.evaluation: Callable[[PreTrainedModel], dict[str, float]] | None = None
        self.log: list[dict[str, Any]] = []
        rates = {POLICY: settings.learning_rate}
        if settings.method == "repulse":
            rates[PROPOSAL] = settings.proposal_learning_rate
        self.learners = {
            who: (
                weights := models.weights(who),
                torch.optim.AdamW(weights.values(), lr=rate or 0.0, weight_decay=0.0),
            )
            for who, rate in rates.items()
        }

    def run(self, checkpoints: Path, progress: bool) -> None:
        """All steps that are still to be done."""
        s = self.settings
        last, done = newest(checkpoints), 0
        if last is not None:
            done, self.log = restore(last, self.learners)
        with figures_bar(progress and self.processes.is_main_process) as bar:
            task = bar.add_task(s.method, total=s.steps, completed=done, figures="")
            if not done:
                self._evaluate({"step": 0})
            for number in range(done, s.steps):
                entry = self.step(number)
                wanted = number + 1 == s.steps or (
                    s.eval_every and (number + 1) % s.eval_every == 0
                )
                self._evaluate(entry, bool(wanted))
                if self.processes.is_main_process and (
                    (number + 1) % s.save_steps == 0 or number + 1 == s.steps
                ):
                    if not checkpoints.is_dir():
                        write_atomically(checkpoints / "README.md", WARNING)
                    save(checkpoints, number + 1, self.learners, self.log)
                bar.update(task, advance=1, figures=_figures(self.log))

    def step(self, number: int) -> dict[str, Any]:
        """Samples, the gradients of both losses, and an update of the proposal and of the policy; the step's log.

        The policy's weights on the proposal's samples are those from before either update.
        """
        s, share = self.settings, self.processes
        for weights, _ in self.learners.values():
            for weight in weights.values():
                weight.grad = None
        chosen = in_rounds(len(self.prompts), s.prompts_per_step, number, s.seed)
        rows = s.samples * (2 if PROPOSAL in self.learners else 1)
        size = min(max(1, s.batch_size // rows), math.ceil(len(chosen) / share.num_processes))
        parts = [chosen[first : first + size] for first in range(0, len(chosen), size)]
        sums: dict[str, float] = {}
        for place in range(share.process_index, len(parts), share.num_processes):
            found = self._gradients(parts[place], seed_of(s.seed, number, place), len(chosen))
            sums = {key: sums.get(key, 0.0) + value for key, value in found.items()}
        if share.num_processes > 1:
            sums = self._add_up(sums)
        entry = {"step": number + 1} | {key: value / len(chosen) for key, value in sums.items()}
        for who, (weights, optimizer) in reversed(self.learners.items()):  # the proposal first
            norm = torch.nn.utils.clip_grad_norm_(weights.values(), s.max_norm)
            entry["norm" if who == POLICY else "proposal_norm"] = float(norm)
            optimizer.step()
        return entry

    def _gradients(self, chosen: list[int], seed: int, total: int) -> dict[str, float]:
        """Adds the gradients of both losses on some prompts, of `total` in the step, to the weights' own; sums for the log."""
        s, ids = self.settings, [self.encoded[i] for i in chosen]
        shape = len(ids), s.samples
        with self.models.use(POLICY) as policy:
            own = sample(policy, ids, s.samples, s.max_new_tokens, seed)
        own_rewards, log_p0 = self._judge(chosen, own), self._prior(ids, own)
        found: list[list[int]] = []
        if PROPOSAL in self.learners:
            with self.models.use(PROPOSAL) as proposal:
                found = sample(proposal, ids, s.samples, s.max_new_tokens, seed + 1)
            rewards = self._judge(chosen, found)
            with self.models.use(PROPOSAL) as proposal:
                log_q = log_probs(proposal, ids, found).view(*shape, -1)
        every = [
            row
            for i in range(len(ids))
            for side in (own, found)
            for row in side[i * s.samples : (i + 1) * s.samples]
        ]
        with self.models.use(POLICY) as policy:
            log_p = log_probs(policy, ids, every).view(len(ids), -1, max(map(len, every)))
        log_own = log_p[:, : s.samples].sum(2)
        returns = objectives.returns(own_rewards, log_own.detach(), log_p0, s.beta_kl)
        aim = returns
        if s.method == "rloo-transformed":
            aim = returns + objectives.transformed(own_rewards, s.alpha, s.beta) - own_rewards
        loss = -(objectives.advantages(aim) / s.samples * log_own).sum()
        sums = {
            "reward": float(own_rewards.mean(1).sum()),
            "return": float(returns.mean(1).sum()),
            "kl": float((log_own.detach() - log_p0).mean(1).sum()),
            "below": float((own_rewards < s.eta).float().mean(1).sum()),
            "tokens": sum(map(len, own)) / s.samples,
        }
        if s.method == "p-proposal":
            weights = objectives.sigma_weights(
                log_own.detach(), log_own.detach(), own_rewards, s.beta
            )
            loss = loss + s.alpha * (weights * log_own).sum()
            sums["effective_samples"] = float(objectives.effective_sample_size(weights).sum())
        if PROPOSAL in self.learners:
            log_found, fixed = log_p[:, s.samples :, : log_q.shape[2]], log_q.detach()
            weights = objectives.sigma_weights(
                log_found.detach().sum(2), fixed.sum(2), rewards, s.beta
            )
            loss = loss + s.alpha * (weights * log_found.sum(2)).sum()
            baseline = objectives.baseline_weights(log_found.detach(), fixed)
            (((baseline - weights[..., None]) * log_q).sum() / total).backward()
            sums |= {
                "proposal_reward": float(rewards.mean(1).sum()),
                "proposal_below": float((rewards < s.eta).float().mean(1).sum()),
                "effective_samples": float(objectives.effective_sample_size(weights).sum()),
            }
        (loss / total).backward()
        return sums

    def _judge(self, chosen: list[int], completions: list[list[int]]) -> Tensor:
        """Rewards (P, K) of completions, by what the prior makes of them where the reward is a boundary's."""
        with self.models.use(PRIOR):
            return judge(
                self.reward,
                self.tokenizer,
                [self.prompts[i] for i in chosen],
                [self.encoded[i] for i in chosen],
                completions,
            ).to(self.models.prior.device)

    @torch.no_grad()
    def _prior(self, ids: list[list[int]], completions: list[list[int]]) -> Tensor:
        """Log-probabilities (P, K) of completions under the prior."""
        with self.models.use(PRIOR) as prior:
            return log_probs(prior, ids, completions).sum(1).view(len(ids), -1)

    def _add_up(self, sums: dict[str, float]) -> dict[str, float]:
        """Adds up gradients, and sums for the log, over all processes."""
        for weights, _ in self.learners.values():
            grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights.values()]
            whole = self.processes.reduce(torch.nn.utils.parameters_to_vector(grads), "sum")
            for weight, grad in zip(
                weights.values(), whole.split([g.numel() for g in grads]), strict=True
            ):
                weight.grad = grad.view_as(weight)
        keys = (*SUMS, *PUSHED.get(self.settings.method, ()))
        values = torch.tensor(
            [sums.get(key, 0.0) for key in keys], dtype=torch.float64, device=self.processes.device
        )
        return dict(zip(keys, self.processes.reduce(values, "sum").tolist(), strict=True))

    def _evaluate(self, entry: dict[str, Any], wanted: bool = True) -> None:
        """Writes a step into the log, with an evaluation where one is wanted and there is what to evaluate."""
        figures: dict[str, float] = {}
        wanted = wanted and self.processes.is_main_process
        if wanted and self.held_out[0]:
            figures |= self._on_held_out()
        if wanted and self.evaluation is not None:
            with self.models.use(POLICY) as policy, torch.no_grad():
                figures |= self.evaluation(policy)
        if figures or "reward" in entry:
            self.log.append(entry | ({"eval": figures} if figures else {}))

    def _on_held_out(self) -> dict[str, float]:
        s, (texts, encoded) = self.settings, self.held_out
        rewards, ratios = [], []
        size = max(1, s.batch_size // s.samples)
        for first in range(0, len(texts), size):
            ids = encoded[first : first + size]
            with self.models.use(POLICY) as policy:
                written = sample(
                    policy, ids, s.samples, s.max_new_tokens, seed_of(s.seed, "eval", first)
                )
                with torch.no_grad():
                    log_p = log_probs(policy, ids, written).sum(1).view(len(ids), -1)
            ratios.append(log_p - self._prior(ids, written))
            with self.models.use(PRIOR):
                rewards.append(
                    judge(self.reward, self.tokenizer, texts[first : first + size], ids, written)
                )
        found = torch.cat(rewards)
        return {
            "reward": float(found.mean()),
            "below": float((found < s.eta).float().mean()),
            "kl": float(torch.cat(ratios).mean()),
        }


SUMS = "reward", "return", "kl", "below", "tokens"
PUSHED = {
    "p-proposal": ("effective_samples",),
    "repulse": ("effective_samples", "proposal_reward", "proposal_below"),
}
"""What a step's log holds besides, where there is a push."""


def judge(
    reward: Reward,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    encoded: Sequence[list[int]],
    completions: Sequence[list[int]],
) -> Tensor:
    """Rewards, float32 (P, K), of completions, as many of each of P prompts."""
    each = len(completions) // len(prompts)
    texts = [
        completion_text(tokenizer, encoded[i // each], row) for i, row in enumerate(completions)
    ]
    found = reward([prompts[i // each] for i in range(len(texts))], texts)
    return torch.from_numpy(found).float().view(len(prompts), each)


def _figures(log: list[dict[str, Any]]) -> str:
    """A step in a line, of means over the last ones: one step's say little."""
    last = log[-AVERAGED:]
    names = {
        "reward": "reward",
        "below": "P(r < eta)",
        "kl": "KL",
        "effective_samples": "effective samples",
    }
    return "  ".join(
        f"{name} {sum(entry[key] for entry in last) / len(last):.3g}"
        for key, name in names.items()
        if all(key in entry for entry in last)
    )
