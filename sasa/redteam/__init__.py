"""Red-teaming: an attacker that is curious about what still gets through (Hong et al. 2024), and what is left of it elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sasa.lazy import lazy

if TYPE_CHECKING:
    from sasa.redteam.attacker import red_team
    from sasa.redteam.exports import export
    from sasa.redteam.replays import replay, replay_suite
    from sasa.redteam.report import write_report
    from sasa.redteam.settings import RedTeam
    from sasa.redteam.store import Attempts
    from sasa.redteam.targets import Command, Endpoint, Function, ModelTarget, Reply, Target

_HOMES = {
    "Attempts": "store",
    "Command": "targets",
    "Endpoint": "targets",
    "Function": "targets",
    "ModelTarget": "targets",
    "RedTeam": "settings",
    "Reply": "targets",
    "Target": "targets",
    "export": "exports",
    "red_team": "attacker",
    "replay": "replays",
    "replay_suite": "replays",
    "write_report": "report",
}

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

__getattr__, __dir__ = lazy(__name__, _HOMES)
