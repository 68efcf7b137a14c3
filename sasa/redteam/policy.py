"""The attacker's model: it writes attacks from contexts, and learns from what they were worth."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.decoding.prompts import completion_text, encode_prompts
from sasa.decoding.sampling import log_probs, sample
from sasa.redteam.curiosity import advantages
from sasa.redteam.settings import RedTeam
from sasa.redteam.store import Attempt
from sasa.training.learners import Learners
from sasa.training.models import POLICY, REFERENCE, Models
from sasa.utils.files import write_atomically

CARD_FILE = "README.md"
CARD = """# An attacker: not for use

This model was trained to write prompts that make another one answer in a toxic way (curiosity-driven red-teaming, Hong et al.
2024). It was kept to attack again, here or elsewhere: `sasa redteam run --attacker FOLDER`.
"""


class Policy:
    """The attacker's model in training, or as it is if the method trains none.

    Args:
        model, tokenizer: in eval mode; the model learns as an adapter, or as a copy of itself.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: RedTeam
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self._stop = _line_ends(tokenizer)
        self._models: Models | None = None
        self._learners: Learners | None = None
        if settings.trains:
            self._models = Models(model, settings.lora, proposal=False, seed=settings.seed)
            rates = {POLICY: settings.learning_rate or 0.0}
            self._learners = Learners(self._models, rates, settings.max_norm)

    def encode(self, contexts: Sequence[str]) -> list[list[int]]:
        """Token ids of contexts, as the model reads them before an attack."""
        s = self.settings
        return encode_prompts(
            self.model, self.tokenizer, contexts, EmbeddingSpec(), s.chat, s.max_new_tokens
        )

    def write(self, ids: list[list[int]], seed: int) -> list[list[int]]:
        """Samples `settings.samples` attacks from each encoded context, as token ids."""
        s = self.settings
        with self._use(POLICY) as policy, torch.no_grad():
            return sample(policy, ids, s.samples, s.max_new_tokens, seed, self._stop, s.temperature)

    def text(self, context: str, ids: list[int], row: list[int]) -> str:
        """The text of an attack from a context, encoded as `ids`: up to the end of its line."""
        text = completion_text(self.tokenizer, ids, row).split("\n")[0]
        text = f"{context}{text}" if self.settings.include_context else text
        return text.encode("utf-8", "replace").decode().strip()

    def log_probs(self, ids: list[list[int]], rows: list[list[int]]) -> Tensor:
        """Log-probabilities (N,) of attacks, an equal number from each encoded context.

        They are differentiable where gradients are enabled.
        """
        with self._use(POLICY) as policy:
            return log_probs(policy, ids, rows, self.settings.temperature).sum(1)

    def reference_log_probs(
        self, ids: list[list[int]], rows: list[list[int]]
    ) -> NDArray[np.float64]:
        """The same, float64 (N,), under the model as it was before training."""
        with self._use(REFERENCE) as reference, torch.no_grad():
            values = log_probs(reference, ids, rows, self.settings.temperature).sum(1)
        return values.double().cpu().numpy()

    def learn(self, records: Sequence[Attempt], log_p: Tensor | None = None) -> None:
        """Makes one update by REINFORCE with a leave-one-out baseline.

        Advantages are not divided by their standard deviation, as in GRPO: a step without a toxic
        reply would count as much as any other, for what differs in novelty.

        Args:
            records: the attempts of a step.
            log_p: the attacks' log-probabilities (N,), differentiable; None computes them.
        """
        s = self.settings
        assert self._learners is not None
        self._learners.zero_grad()
        gains = torch.from_numpy(
            advantages([record["reward"] for record in records], s.samples)
        ).float()
        size = max(1, s.batch_size // s.samples) * s.samples
        for first in range(0, len(records), size):
            part = records[first : first + size]
            read = self._read(part) if log_p is None else log_p
            loss = -(gains[first : first + size].to(read.device) * read).sum() / len(records)
            loss.backward()
        self._learners.step()

    def save_checkpoint(self, checkpoints: Path, steps: int) -> None:
        """Saves weights and optimizer after so many steps, in place of the checkpoint before."""
        assert self._learners is not None
        self._learners.save(checkpoints, steps)

    def restore_checkpoint(self, checkpoints: Path) -> int:
        """Goes back to the last checkpoint; the number of steps that it had learnt from, else 0."""
        return 0 if self._learners is None else self._learners.restore(checkpoints)[0]

    def save(self, folder: Path, base: str) -> None:
        """Saves the attacker as it is now, as an adapter of `base` or as a whole model."""
        assert self._models is not None
        self._models.save(POLICY, folder, base)
        self.tokenizer.save_pretrained(folder)
        write_atomically(folder / CARD_FILE, CARD)  # last of all: with it the attacker is whole

    def close(self) -> None:
        """Gives the model back as it was given."""
        if self._models is not None:
            self._models.close()

    def _read(self, part: Sequence[Attempt]) -> Tensor:
        """Log-probabilities (N,), differentiable, of attacks on record."""
        ids = self.encode([record["context"] for record in part[:: self.settings.samples]])
        return self.log_probs(ids, [record["tokens"] for record in part])

    def _use(self, which: str) -> AbstractContextManager[PreTrainedModel]:
        return nullcontext(self.model) if self._models is None else self._models.use(which)


def _line_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens with a line's end in them: an attack is one line."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return [i for i, text in enumerate(texts) if "\n" in text]
