"""Methods and scorers by name. Adding one takes the file that defines it and one line here.

This file imports no model library: the command line lists the names before torch is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from sasa.core.settings import PRIOR, THRESHOLD, VALUE, VALUES

GUARD_SCORER = "toxic-comment-classifier"
"""The scorer of the method `guard` if none is named."""


@dataclass(frozen=True)
class Entry:
    """A method or scorer that is known by name.

    Attributes:
        help: one line; for methods it starts with the syntax of their arguments.
        factory: `MODULE:NAME` of a callable, MODULE relative to `sasa.evaluation`.
        argument: the factory's first argument, for factories that serve several names.
    """

    help: str
    factory: str
    argument: str | None = None

    def resolve(self) -> Callable[..., Any]:
        """Imports the factory."""
        module, _, name = self.factory.partition(":")
        imported: Any = importlib.import_module(f"sasa.evaluation.{module}")
        factory: Callable[..., Any] = reduce(getattr, name.split("."), imported)
        return factory

    def make(self, *arguments: str) -> Any:
        """Calls the factory."""
        return self.resolve()(*([] if self.argument is None else [self.argument]), *arguments)


METHODS = {
    "plain": Entry("the model on its own", "methods:Plain"),
    "words": Entry("the word filter", "methods:Words"),
    "sasa": Entry(
        "sasa:BETA[:VALUE[:PRIOR]], SASA at that strength; "
        f"VALUE is {' or '.join(VALUES)}, by default {VALUE}, "
        f"PRIOR the share of unsafe text, by default {PRIOR:g}",
        "methods:SASA.parse",
    ),
    "sasa+words": Entry(
        "sasa+words:BETA[:VALUE[:PRIOR]], SASA and the word filter", "methods:SASA.parse_with_words"
    ),
    "backtrack": Entry(
        f"backtrack:THRESHOLD, back from where P(unsafe) reaches it, by default {THRESHOLD:g}",
        "methods:Backtrack.parse_threshold",
    ),
    "sasa+backtrack": Entry(
        "sasa+backtrack:BETA[:THRESHOLD], SASA, and back where it was not enough",
        "methods:Backtrack.parse",
    ),
    "reset": Entry(
        "reset:BIAS, back where the model writes [RESET], having been trained to; "
        "BIAS is added to its logit, by default 0",
        "methods:Reset.parse",
    ),
    "best-of": Entry(
        "best-of:N, the one of N completions with the greatest margin", "methods:BestOf.parse"
    ),
    "rad": Entry(
        "rad:JUDGE:BETA, reward-augmented decoding, JUDGE a scorer", "baselines.rad:RAD.parse"
    ),
    "dexperts": Entry(
        "dexperts:DIR:ALPHA, an expert's logits less an anti-expert's, of benchmarks/experts.py",
        "baselines.dexperts:DExperts.parse",
    ),
    "self-debias": Entry(
        "self-debias:LAMBDA, less of what it would say if asked to be toxic",
        "baselines.debias:SelfDebias.parse",
    ),
    "caa": Entry(
        "caa:DIR:LAYER:SCALE, a steering vector, of benchmarks/experts.py",
        "baselines.caa:CAA.parse",
    ),
    "prompt": Entry(
        "prompt[:TEXT], behind an instruction to be polite, or another", "baselines.prompt:Prompted"
    ),
    "guard": Entry(
        f"guard:N[:JUDGE], what a scorer ({GUARD_SCORER}) stops is written again, up to N times",
        "baselines.guard:Guard.parse",
    ),
}
"""Ways to complete prompts; `sasa.evaluation.methods.method` makes one from `NAME:ARGUMENTS`."""
METHODS_HELP = "; ".join(f"{name}: {entry.help}" for name, entry in METHODS.items())

SCORERS = {
    "profanity": Entry(
        "alt-profanity-check, linear over words", "scorers.profanity:ProfanityScorer"
    ),
    "tox-block": Entry(
        "LSTM on Jigsaw comments (2020)", "scorers.jigsaw:JigsawScorer", "tox-block"
    ),
    "toxic-comment-classifier": Entry(
        "LSTM on Jigsaw comments (2025)", "scorers.jigsaw:JigsawScorer", "toxic-comment-classifier"
    ),
    "detoxify": Entry("BERT on Jigsaw comments", "scorers.detoxify:DetoxifyScorer"),
    "hap-38m": Entry(
        "IBM Granite Guardian HAP, 38M",
        "scorers.classifier:checked_classifier",
        "ibm-granite/granite-guardian-hap-38m#1",
    ),
    "hap-125m": Entry(
        "IBM Granite Guardian HAP, 125M",
        "scorers.classifier:checked_classifier",
        "ibm-granite/granite-guardian-hap-125m#1",
    ),
    "deberta-rtp": Entry(
        "DeBERTa on the Perspective scores of 90,000 rows of RealToxicityPrompts",
        "scorers.classifier:checked_classifier",
        "cooperleong00/deberta-v3-large_toxicity-scorer#1",
    ),
    "roberta-jigsaw": Entry(
        "RoBERTa on Jigsaw's labels",
        "scorers.classifier:checked_classifier",
        "s-nlp/roberta_toxicity_classifier#toxic",
    ),
    "qwen3guard-0.6b": Entry(
        "Qwen3Guard-Gen, 0.6B",
        "scorers.qwen3guard:Qwen3GuardScorer",
        "Qwen/Qwen3Guard-Gen-0.6B",
    ),
    "qwen3guard-4b": Entry(
        "Qwen3Guard-Gen, 4B", "scorers.qwen3guard:Qwen3GuardScorer", "Qwen/Qwen3Guard-Gen-4B"
    ),
    "qwen3guard-8b": Entry(
        "Qwen3Guard-Gen, 8B", "scorers.qwen3guard:Qwen3GuardScorer", "Qwen/Qwen3Guard-Gen-8B"
    ),
}
"""Scorers that need no argument; `sasa.evaluation.scorers.scorer` makes one."""
