"""The loop of RePULSe (Zhao et al. 2025, arXiv 2510.21184).

A step samples from policy and proposal, scores the samples and updates both models.

It is a plain loop on torch and accelerate. trl's RLOOTrainer (1.16) has one policy, one set of
samples and one optimizer. A second sampler with a loss of its own, and weights from both models,
would mean overriding its generation, its scoring, its loss, its training step and its checkpoints,
most of them private.
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
from sasa.training.learners import Learners
from sasa.training.models import POLICY, PROPOSAL, REFERENCE, Models
from sasa.training.settings import Repulse
from sasa.utils.files import write_atomically
from sasa.utils.progress import figures_bar

WARNING = """These are checkpoints of a training with RePULSe. The weights called proposal are of a model that is trained to write
what is worst. They are not for use, and are deleted when the training ends.
"""


class Trainer:
    """The loop: samples of policy and proposal, rewards, gradients of both losses, updates, a log.

    Attributes:
        log: a dictionary a step. Of the policy's samples `reward`, `return`, `kl` (all means),
            `below` (the share with a reward below eta) and `tokens`; of the proposal's
            `proposal_reward` and `proposal_below`; `effective_samples` of a prompt; `norm` and
            `proposal_norm` of the gradients; and `eval`, where there was an evaluation.
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
        rates = {POLICY: settings.learning_rate or 0.0}
        if settings.method == "repulse":
            rates[PROPOSAL] = settings.proposal_learning_rate or 0.0
        self.learners = Learners(models, rates, settings.max_norm)

    def run(self, checkpoints: Path, progress: bool) -> None:
        """Does all steps that are still to be done."""
        s = self.settings
        done, self.log = self.learners.restore(checkpoints)
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
                    self.learners.save(checkpoints, number + 1, self.log)
                bar.update(task, advance=1, figures=_figures(self.log))

    def step(self, number: int) -> dict[str, Any]:
        """Makes one update of the proposal and of the policy, and returns the step's log.

        The policy's weights on the proposal's samples are those from before either update.
        """
        s, share = self.settings, self.processes
        self.learners.zero_grad()
        chosen = in_rounds(len(self.prompts), s.prompts_per_step, number, s.seed)
        rows = s.samples * (2 if PROPOSAL in self.learners else 1)
        size = min(max(1, s.batch_size // rows), math.ceil(len(chosen) / share.num_processes))
        parts = [chosen[first : first + size] for first in range(0, len(chosen), size)]
        sums: dict[str, float] = {}
        for place in range(share.process_index, len(parts), share.num_processes):
            more = self._gradients(parts[place], seed_of(s.seed, number, place), len(chosen))
            sums = {key: sums.get(key, 0.0) + value for key, value in more.items()}
        if share.num_processes > 1:
            sums = self._add_up(sums)
        entry = {"step": number + 1} | {key: value / len(chosen) for key, value in sums.items()}
        for name, norm in self.learners.step().items():
            entry["norm" if name == POLICY else "proposal_norm"] = norm
        return entry

    def _gradients(self, chosen: list[int], seed: int, total: int) -> dict[str, float]:
        """Adds both losses' gradients on some of the step's `total` prompts to the weights' own.

        Returns:
            sums over these prompts, for the log.
        """
        s, ids = self.settings, [self.encoded[i] for i in chosen]
        with self.models.use(POLICY) as policy:
            own = sample(policy, ids, s.samples, s.max_new_tokens, seed)
        rewards, log_p0 = self._rewards(chosen, own), self._prior(ids, own)
        proposed: list[list[int]] = []
        if PROPOSAL in self.learners:
            with self.models.use(PROPOSAL) as proposal:
                proposed = sample(proposal, ids, s.samples, s.max_new_tokens, seed + 1)
            proposed_rewards = self._rewards(chosen, proposed)
            with self.models.use(PROPOSAL) as proposal:
                log_q = log_probs(proposal, ids, proposed).view(len(ids), s.samples, -1)
        rows = [  # of each prompt the policy's samples and then the proposal's
            row
            for i in range(len(ids))
            for side in (own, proposed)
            for row in side[i * s.samples : (i + 1) * s.samples]
        ]
        with self.models.use(POLICY) as policy:
            log_p = log_probs(policy, ids, rows).view(len(ids), -1, max(map(len, rows)))
        log_own = log_p[:, : s.samples].sum(2)
        loss, sums = self._own_loss(log_own, log_p0, rewards)
        sums["tokens"] = sum(map(len, own)) / s.samples
        if s.method == "p-proposal":
            push, weights = self._push(log_own, log_own.detach(), rewards)
            loss = loss + push
            sums["effective_samples"] = float(objectives.effective_sample_size(weights).sum())
        if PROPOSAL in self.learners:
            log_proposed, fixed = log_p[:, s.samples :, : log_q.shape[2]], log_q.detach()
            push, weights = self._push(log_proposed.sum(2), fixed.sum(2), proposed_rewards)
            loss = loss + push
            baseline = objectives.baseline_weights(log_proposed.detach(), fixed)
            (((baseline - weights[..., None]) * log_q).sum() / total).backward()
            sums |= {
                "proposal_reward": float(proposed_rewards.mean(1).sum()),
                "proposal_below": float((proposed_rewards < s.eta).float().mean(1).sum()),
                "effective_samples": float(objectives.effective_sample_size(weights).sum()),
            }
        (loss / total).backward()
        return sums

    def _own_loss(
        self, log_p: Tensor, log_p0: Tensor, rewards: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The policy's loss on its own samples, and sums for the log; all arguments are (P, K)."""
        s = self.settings
        returns = objectives.returns(rewards, log_p.detach(), log_p0, s.beta_kl)
        aim = returns
        if s.method == "rloo-transformed":
            aim = returns + objectives.transformed(rewards, s.alpha, s.beta) - rewards
        loss = -(objectives.advantages(aim) / s.samples * log_p).sum()
        sums = {
            "reward": float(rewards.mean(1).sum()),
            "return": float(returns.mean(1).sum()),
            "kl": float((log_p.detach() - log_p0).mean(1).sum()),
            "below": float((rewards < s.eta).float().mean(1).sum()),
        }
        return loss, sums

    def _push(self, log_p: Tensor, log_q: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """The loss that makes bad samples less probable, and the samples' weights (P, K).

        Args:
            log_p: log-probabilities (P, K) of samples under the policy, differentiable.
            log_q: the same under the model that drew them, not differentiable.
            rewards: (P, K).
        """
        s = self.settings
        weights = objectives.sigma_weights(log_p.detach(), log_q, rewards, s.beta)
        return s.alpha * (weights * log_p).sum(), weights

    def _rewards(self, chosen: list[int], completions: list[list[int]]) -> Tensor:
        """Rewards (P, K) of completions; a boundary's reward reads them with the prior."""
        with self.models.use(REFERENCE):
            return score_completions(
                self.reward,
                self.tokenizer,
                [self.prompts[i] for i in chosen],
                [self.encoded[i] for i in chosen],
                completions,
            ).to(self.models.prior.device)

    @torch.no_grad()
    def _prior(self, ids: list[list[int]], completions: list[list[int]]) -> Tensor:
        """Log-probabilities (P, K) of completions under the prior."""
        with self.models.use(REFERENCE) as prior:
            return log_probs(prior, ids, completions).sum(1).view(len(ids), -1)

    def _add_up(self, sums: dict[str, float]) -> dict[str, float]:
        """Adds up gradients, and sums for the log, over all processes."""
        for weights in self.learners.weights():
            grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
            whole = self.processes.reduce(torch.nn.utils.parameters_to_vector(grads), "sum")
            for weight, grad in zip(weights, whole.split([g.numel() for g in grads]), strict=True):
                weight.grad = grad.view_as(weight)
        keys = (*SUMS, *PUSHED.get(self.settings.method, ()))
        values = torch.tensor(
            [sums.get(key, 0.0) for key in keys], dtype=torch.float64, device=self.processes.device
        )
        return dict(zip(keys, self.processes.reduce(values, "sum").tolist(), strict=True))

    def _evaluate(self, entry: dict[str, Any], wanted: bool = True) -> None:
        """Adds a step to the log, with an evaluation if one is wanted and possible."""
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
            with self.models.use(REFERENCE):
                rewards.append(
                    score_completions(
                        self.reward, self.tokenizer, texts[first : first + size], ids, written
                    )
                )
        every = torch.cat(rewards)
        return {
            "reward": float(every.mean()),
            "below": float((every < s.eta).float().mean()),
            "kl": float(torch.cat(ratios).mean()),
        }


SUMS = "reward", "return", "kl", "below", "tokens"
PUSHED = {
    "p-proposal": ("effective_samples",),
    "repulse": ("effective_samples", "proposal_reward", "proposal_below"),
}
"""What a step's log holds besides, where there is a push."""


def score_completions(
    reward: Reward,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    encoded: Sequence[list[int]],
    completions: Sequence[list[int]],
) -> Tensor:
    """Rewards, float32 (P, K), of completions, K of each of P prompts."""
    count = len(completions) // len(prompts)
    texts = [
        completion_text(tokenizer, encoded[i // count], row) for i, row in enumerate(completions)
    ]
    rewards = reward([prompts[i // count] for i in range(len(texts))], texts)
    return torch.from_numpy(rewards).float().view(len(prompts), count)


def _figures(log: list[dict[str, Any]]) -> str:
    """The log's last entries in a line, as means: one step says little."""
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
