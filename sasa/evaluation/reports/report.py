"""summary.json, report.md and plots of one run or of several side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sasa.evaluation import metrics
from sasa.evaluation.reports.figures import RunFigures
from sasa.evaluation.reports.markdown import markdown
from sasa.evaluation.reports.measure import run_summary
from sasa.evaluation.reports.plots import write_plots
from sasa.evaluation.run import Run
from sasa.utils.files import read_json, write_atomically


def compare(folders: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """All figures of one run or of several.

    Args:
        folders: runs, or reports, whose figures are taken from their summary.json. So a run can be
            compared with published ones whose completions are not at hand.

    Returns:
        the content of summary.json: for each run its settings and, for each method, the figures
        with intervals, by group, and the paired tests against the run's plain completions.

    Raises:
        FileNotFoundError: a folder is neither a run nor a report.
        ValueError: a run has no finished method, no scores, or scores by the boundary alone.
    """
    runs: list[tuple[Path, dict[str, Any]]] = []
    for folder in map(Path, folders):
        if (folder / "run.json").is_file() or not (folder / "summary.json").is_file():
            runs.append((folder, {"name": folder.resolve().name} | run_summary(Run.open(folder))))
        else:
            published = read_json(folder / "summary.json", object_hook=metrics.from_json)
            runs += [(folder / run["name"], run) for run in published["runs"]]
    names = [run["name"] for _, run in runs]
    unique = len(set(names)) == len(names)
    return {"runs": [run if unique else run | {"name": str(place)} for place, run in runs]}


def write_report(
    folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None
) -> Path:
    """Writes summary.json, report.md and the plots.

    Args:
        folders: see `compare`.
        output: the report's folder; None for the run's own folder if there is one run.

    Returns:
        the path of report.md.

    Raises:
        FileNotFoundError, ValueError: as `compare`; ValueError if several runs have no output.
    """
    if output is None and len(folders) != 1:
        raise ValueError("a comparison of several runs needs a folder of its own: --output")
    target = Path(output or folders[0])
    summary = compare(folders)
    write_atomically(target / "summary.json", json.dumps(metrics.to_json(summary), indent=1) + "\n")
    runs = [RunFigures.parse(run) for run in summary["runs"]]
    plots = write_plots(runs, target)
    write_atomically(target / "report.md", markdown(runs, plots))
    return target / "report.md"
