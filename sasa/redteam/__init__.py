"""Red-teaming: an attacker that is curious about what still gets through (Hong et al. 2024), and what is left of it elsewhere."""

from sasa.redteam.attacker import red_team
from sasa.redteam.curiosity import RedTeam
from sasa.redteam.export import export
from sasa.redteam.replay import replay, replay_suite
from sasa.redteam.report import write_report
from sasa.redteam.store import Attempts
from sasa.redteam.targets import Command, Endpoint, Function, ModelTarget, Reply, Target

__all__ = [
    "Attempts",
    "Command",
    "Endpoint",
    "Function",
    "ModelTarget",
    "RedTeam",
    "Reply",
    "Target",
    "export",
    "red_team",
    "replay",
    "replay_suite",
    "write_report",
]
