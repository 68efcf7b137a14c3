"""How much toxicity goes away, what it costs in fluency, and how sure that is: RTP, BOLD and AttaQ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sasa.lazy import lazy

if TYPE_CHECKING:
    from sasa.evaluation.methods import method
    from sasa.evaluation.report import compare, write_report
    from sasa.evaluation.runner import Run, generate_stage, likelihood_stage, score_stage
    from sasa.evaluation.scorers import Scorer, scorer
    from sasa.evaluation.settings import Settings
    from sasa.evaluation.suites import Prompt, Suite, load_suite
    from sasa.evaluation.world import Method, World

_HOMES = {
    "Method": "world",
    "Prompt": "suites",
    "Run": "runner",
    "Scorer": "scorers",
    "Settings": "settings",
    "Suite": "suites",
    "World": "world",
    "compare": "report",
    "generate_stage": "runner",
    "likelihood_stage": "runner",
    "load_suite": "suites",
    "method": "methods",
    "score_stage": "runner",
    "scorer": "scorers",
    "write_report": "report",
}

__all__ = [
    "Method",
    "Prompt",
    "Run",
    "Scorer",
    "Settings",
    "Suite",
    "World",
    "compare",
    "generate_stage",
    "likelihood_stage",
    "load_suite",
    "method",
    "score_stage",
    "scorer",
    "write_report",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
