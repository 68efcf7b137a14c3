"""How a model is trained by RePULSe: settings with their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sasa.core.settings import check_above_zero, check_at_least, option

METHODS = {
    "repulse": "RLOO, and the probability of bad outputs pushed down, which a learned proposal finds",
    "rloo": "REINFORCE with a leave-one-out baseline, alone",
    "rloo-transformed": "RLOO on r - alpha * exp(-beta * r), which punishes the worst beyond proportion",
    "p-proposal": "RLOO, and bad outputs among the policy's own samples pushed down",
}


@dataclass(frozen=True)
class Repulse:
    """How a model is trained.

    Attributes:
        method: one of `METHODS`.
        alpha: of the push against bad outputs (of the transformed reward's second part); 0 is RLOO.
        beta: bad outputs are drawn from a distribution proportional to p(s) * exp(-beta * r(s)): the higher, the more the
            worst of them count.
        beta_kl: the policy maximises r - KL / beta_kl: the higher, the further it may move from what it was. With a log-odds for
            a reward, 1 aims at what the model writes given that it is safe.
        samples: completions of a prompt in a step, from the policy and again as many from the proposal.
        prompts_per_step, steps, max_new_tokens: the size of it all.
        lora: the rank of the adapters; 0 trains all weights.
        learning_rate: of AdamW, constant; None takes 2e-4 for an adapter and 1e-5 for all weights.
        proposal_learning_rate: None takes five times `learning_rate`: the proposal has further to go, and is thrown away.
        max_norm: gradients are scaled down to this norm.
        eta: completions with a reward below count as bad, in the log and for nothing else.
        chat: prompts go through the chat template, as the user's turn.
        batch_size: completions in a forward pass with gradients.
        eval_every: steps between evaluations; 0 evaluates at the beginning and at the end, where there is what to evaluate.
        save_steps: steps between checkpoints.
        seed: of adapters, the order of prompts and samples.

    Raises:
        ValueError: a value outside its range.
    """

    method: str = field(
        default="repulse",
        metadata=option(
            "repulse: a learned proposal finds bad outputs, whose probability is pushed down. rloo: reinforcement learning "
            "alone. rloo-transformed: on r - alpha * exp(-beta * r). p-proposal: repulse, with the model as its own proposal."
        ),
    )
    alpha: float = field(
        default=0.1, metadata=option("How strongly bad outputs are pushed down; 0 is rloo.")
    )
    beta: float = field(
        default=1.0, metadata=option("How bad is bad: outputs count as exp(-beta * reward).")
    )
    beta_kl: float = field(
        default=2.0,
        metadata=option(
            "The model maximises reward - KL / beta_kl: how far it may move from what it was."
        ),
    )
    samples: int = field(
        default=8,
        metadata=option(
            "Of a prompt in a step; with repulse as many again from the proposal.",
            "--samples",
            "-c",
        ),
    )
    prompts_per_step: int = field(default=8, metadata=option("Prompts in a step."))
    steps: int = field(default=100, metadata=option("Updates in all."))
    max_new_tokens: int = field(
        default=20, metadata=option("Tokens a completion, at most.", "--max-new-tokens", "-n")
    )
    lora: int = field(default=16, metadata=option("Rank of the adapter; 0 trains all weights."))
    learning_rate: float | None = field(
        default=None, metadata=option("Of AdamW.", shown="2e-4, all weights 1e-5")
    )
    proposal_learning_rate: float | None = field(
        default=None, metadata=option("Of the proposal's.", shown="5 times --learning-rate")
    )
    max_norm: float = 1.0
    eta: float = field(
        default=0.0,
        metadata=option(
            "A reward below this is bad, in what is shown; of a scorer, 0 is a toxicity of 0.5."
        ),
    )
    chat: bool = field(
        default=False, metadata=option("Put prompts through the model's chat template.")
    )
    batch_size: int = field(
        default=64, metadata=option("Completions in a pass with gradients: fewer take less memory.")
    )
    eval_every: int = 0
    save_steps: int = field(default=20, metadata=option("Steps between checkpoints."))
    seed: int = field(
        default=0, metadata=option("Of initial weights, the prompts' order and samples.")
    )

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", 2e-4 if self.lora else 1e-5)
        if self.proposal_learning_rate is None:
            object.__setattr__(self, "proposal_learning_rate", 5 * (self.learning_rate or 0.0))
        check_at_least(self, alpha=0, beta=0)
        check_above_zero(self, "beta_kl", "learning_rate", "proposal_learning_rate", "max_norm")
        if not math.isfinite(self.eta):
            raise ValueError(f"eta must be a finite number, got {self.eta}")
        check_at_least(self, samples=2, prompts_per_step=1, steps=1, max_new_tokens=1, lora=0)
        check_at_least(self, batch_size=1, eval_every=0, save_steps=1)
