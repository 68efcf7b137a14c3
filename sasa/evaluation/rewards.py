"""Rewards of completions, from a boundary, a scorer, a reward model or the user's own function.

Most rewards are log-odds of being safe: at 0 the odds are even, and exp(-r) are the odds of being
unsafe. If unsafe text is rare, a distribution proportional to p(s) * exp(-r(s)) is then about p
conditioned on being unsafe.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.boundary import Boundary
from sasa.evaluation.registry import SCORERS
from sasa.evaluation.scorers.base import LONG_TEXT, Scorer, scorer
from sasa.evaluation.scorers.classifier import class_logits, load_classifier
from sasa.models.embedding import embed_ids, length_batches, tokenize_prompt

CERTAIN = 1e-6
"""Toxicities are clipped to this distance from 0 and 1, so that rewards are within 13.8 of 0."""
BATCH = 64


@dataclass(frozen=True)
class Reward:
    """A reward of completions; higher is better.

    Attributes:
        name: for settings and reports.
        version: identifies everything that rewards depend on; a new version means new rewards.
        function: maps N prompts and N completions to N numbers.
    """

    name: str
    version: str
    function: Callable[[Sequence[str], Sequence[str]], Any]

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        """The reward of each completion of its prompt, float64 (N,).

        Raises:
            ValueError: the function gave another number of rewards, or one that is not finite.
        """
        rewards = np.asarray(self.function(list(prompts), list(completions)), dtype=np.float64)
        if rewards.shape != (len(completions),):
            raise ValueError(
                f"the reward {self.name} gave an array of shape {rewards.shape} "
                f"for {len(completions)} completions: it must give one number for each"
            )
        if not np.isfinite(rewards).all():
            place = int((~np.isfinite(rewards)).argmax())
            raise ValueError(
                f"the reward {self.name} is not finite: "
                f"it gave {rewards[place]} for {completions[place]!r}"
            )
        return rewards


def boundary_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    boundary: Boundary,
    chat: bool = False,
) -> Reward:
    """Calibrated log-odds of being safe of a prompt with its completion, embedded as in decoding.

    They need no second model, but are computed from the states of `model`, which training must not
    change: a policy that is rewarded by its own states could change these instead of its words.
    """
    boundary.check(model)
    spec = replace(boundary.embedding, template="chat" if chat else "none")

    def function(prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        before = [tokenize_prompt(tokenizer, prompt, spec) for prompt in prompts]
        written = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in completions]
        texts = [[*prompt, *text] for prompt, text in zip(before, written, strict=True)]
        starts = [len(prompt) if spec.span == "response" else 0 for prompt in before]
        rewards = np.zeros(len(texts))
        for batch in length_batches([len(text) for text in texts], BATCH, 4096):
            vectors = embed_ids(model, [texts[i] for i in batch], [starts[i] for i in batch], spec)
            margins = boundary.margin(vectors.to(boundary.weight.device))
            rewards[batch] = boundary.log_odds(margins).double().cpu().numpy()
        return rewards

    return Reward("boundary", boundary.fingerprint, function)


def scorer_reward(scorer: Scorer) -> Reward:
    """logit(1 - toxicity) of the completion without its prompt, by a scorer of `sasa bench`."""

    def function(prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        toxicity = np.clip(scorer.score(completions), CERTAIN, 1 - CERTAIN)
        return np.log1p(-toxicity) - np.log(toxicity)

    return Reward(scorer.name, scorer.version, function)


def model_reward(name: str) -> Reward:
    """The logit of a reward model: a sequence classifier with one label, of the Hub or a folder.

    It reads prompt and completion as turns of its chat template, or without one as a pair of texts.
    """
    model, tokenizer, version = load_classifier(name)
    if model.config.num_labels != 1:
        labels = ", ".join(model.config.id2label.values())
        raise ValueError(
            f"{name} is not a reward model with one label, it has {labels}: say hf:{name}#LABEL"
        )

    def function(prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        if tokenizer.chat_template is None:
            return class_logits(model, tokenizer, prompts, completions)[:, 0]
        turns = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        texts = [str(tokenizer.apply_chat_template(each, tokenize=False)) for each in turns]
        return class_logits(model, tokenizer, texts, add_special_tokens=False)[:, 0]

    return Reward(f"hf:{name}", version, function)


def function_reward(
    function: Callable[[Sequence[str], Sequence[str]], Any], name: str | None = None
) -> Reward:
    """The user's function `reward(prompts, completions)`; its version is that of its source code."""
    name = name or str(getattr(function, "__name__", type(function).__name__))
    try:
        version = hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]
    except (OSError, TypeError):  # defined interactively, built in, or an object
        version = ""
    return Reward(name, version, function)


def reward(spec: str, boundary: Callable[[], Reward] | None = None) -> Reward:
    """Makes a reward from its name: `boundary`, a scorer, `hf:MODEL` or `MODULE:FUNCTION`.

    Args:
        spec: `hf:MODEL` is a reward model if it has one label, and a scorer of toxicity if it has
            several, or with `#LABEL`. MODULE may be in the working folder.
        boundary: makes the reward that is named `boundary`.

    Raises:
        ValueError: an unknown name, or a module without such a function; the message lists the
            known names.
        ImportError: a scorer's package is not installed.
    """
    if spec == "boundary" and boundary is not None:
        return boundary()
    if spec.startswith("hf:") and "#" not in spec:
        from transformers import AutoConfig

        name = spec.removeprefix("hf:")
        if AutoConfig.from_pretrained(name).num_labels == 1:
            return model_reward(name)
    if spec in SCORERS or spec.startswith(("hf:", "words:")):
        return scorer_reward(scorer(spec))
    if not is_function(spec):
        raise ValueError(
            f"unknown reward {spec!r}; there are: boundary, {', '.join(SCORERS)}, "
            "words:CORPUS, hf:MODEL, MODULE:FUNCTION"
        )
    return function_reward(named_function(spec, "reward"), spec)


def try_reward(reward: Reward) -> None:
    """Raises ValueError if a reward fails on a long or an empty completion."""
    try:
        reward(["Hello"] * 2, [LONG_TEXT, ""])
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(
            f"the reward {reward.name} failed on a long or an empty completion: {error}"
        ) from error


def is_function(spec: str) -> bool:
    """Whether a spec has the form `MODULE:FUNCTION`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec) is not None


def named_function(spec: str, what: str) -> Callable[..., Any]:
    """Imports the function `MODULE:FUNCTION`; MODULE may be in the working folder.

    Args:
        what: what the function is for, for the error.

    Raises:
        ValueError: there is no such function.
    """
    module, _, name = spec.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {spec!r}: {error}") from error
    return function
