"""How much toxicity goes away, what it costs in fluency, and how sure that is: RTP, BOLD and AttaQ."""

from sasa.evaluation.methods import method
from sasa.evaluation.report import compare, write_report
from sasa.evaluation.runner import Run, generate_stage, likelihood_stage, score_stage
from sasa.evaluation.scorers import Scorer, scorer
from sasa.evaluation.suites import Prompt, Suite, load_suite
from sasa.evaluation.world import Method, Settings, World

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
