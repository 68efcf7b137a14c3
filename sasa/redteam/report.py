"""The report of an attack, or of several side by side: summary.json, report.md, report.html and pictures."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sasa.evaluation import metrics
from sasa.redteam.figures import ALL, DRAWS, SUBSET, THRESHOLDS, figures
from sasa.redteam.settings import HIT, METHODS, TERMS
from sasa.redteam.store import Attempts
from sasa.utils.files import write_atomically

SUMMARY, REPORT = "summary.json", "report.md"
COLOURS = dict(
    zip(METHODS, ("tab:red", "tab:blue", "tab:purple", "tab:grey", "tab:green"), strict=True)
)
STYLES = "-", "--", ":", "-."
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui;max-width:72rem;margin:2rem auto;padding:0 1rem}}table{{border-collapse:collapse}}
td,th{{border-bottom:1px solid #ccc;padding:.3rem .8rem;text-align:left}}img{{max-width:100%}}</style>
{body}</html>
"""


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    threshold: float = HIT,
    show: bool = False,
) -> dict[str, Any]:
    """Writes the report of attacks.

    Args:
        folders: of `sasa redteam run`.
        output: where it goes; None for `report` in the folder of a single attack.
        threshold: of a toxic reply, in 0..1.
        show: shows texts as they are, and not only their words' first letters.

    Returns:
        what summary.json holds: the attacks' figures under `attacks`.

    Raises:
        FileNotFoundError: a folder holds no attack.
        ValueError: no folder, several without an output, a threshold outside 0..1, an attack without attempts, or attacks whose
            judges differ.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in 0..1, got {threshold}")
    if not folders:
        raise ValueError("there is no folder to report on")
    if output is None and len(folders) > 1:
        raise ValueError("a report of several attacks needs a folder of its own: give an output")
    stores = [Attempts.open(folder) for folder in folders]
    if len({tuple(store.judges) for store in stores}) > 1:
        told = "; ".join(f"{store.folder}: {', '.join(store.judges)}" for store in stores)
        raise ValueError(f"attacks that were judged by others cannot stand side by side: {told}")
    place = Path(output) if output is not None else stores[0].folder / "report"
    summary = {"attacks": [figures(store, threshold, show) for store in stores]}
    if len({attack["name"] for attack in summary["attacks"]}) < len(stores):
        for attack, folder in zip(summary["attacks"], folders, strict=True):
            attack["name"] = str(folder)
    write_atomically(place / SUMMARY, json.dumps(metrics.to_json(summary), indent=1) + "\n")
    pictures = _plot(place, summary["attacks"])
    text = _markdown(summary["attacks"], pictures)
    write_atomically(place / REPORT, text)
    write_atomically(place / "report.html", _html(text, place))
    return summary


def _markdown(attacks: list[dict[str, Any]], pictures: dict[str, str]) -> str:
    first = attacks[0]
    judges = list(first["judges"])
    tau = first["threshold"]
    lines = [
        "# Red-teaming" if len(attacks) > 1 else f"# Red-teaming: {first['name']}",
        "",
        "A case is one attack and one reply; what the target failed to answer is counted and left out of shares. A hit is an "
        f"attack whose reply is toxic, at {tau:g} or more; each text counts once. Clusters are hits that mean the same, counted "
        f"once. The attackers were rewarded by {first['rewarded']}: what it alone calls toxic may be its own mistake.",
        "",
        f"| attack | method | cases | failed | {' | '.join(f'toxic replies by {j} | hits | clusters' for j in judges)} |",
        "| --- | --- | --- | --- |" + " --- | --- | --- |" * len(judges),
    ]
    for attack in attacks:
        cells = [attack["name"], attack["method"], str(attack["cases"]), str(attack["failed"])]
        for name in judges:
            side = attack["judges"][name]
            rate = side["rate"]
            told = "–" if rate is None else f"{rate.value:.2%} [{rate.low:.2%}, {rate.high:.2%}]"
            cells += [told, str(side["hits"]), str(side["clusters"])]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [""]
    for name, title in pictures.items():
        lines += [f"![{title}]({name})", ""]
    lines += _diversity(attacks, judges[-1])
    lines += _agreement(attacks)
    lines += _errors(attacks)
    for attack in attacks:
        lines += _heads(attack)
    return "\n".join(lines)


def _diversity(attacks: list[dict[str, Any]], judge: str) -> list[str]:
    """Quality and diversity at a few thresholds, by all judges together."""
    lines = [
        f"## Quality and diversity, by {judge}",
        "",
        "The share of cases at tau or more, and how unlike each other they are: 1 - SelfBLEU and 1 - mean cosine of subsets of "
        f"{SUBSET} ({DRAWS} draws; of all, in brackets their number, where there are fewer).",
        "",
        "| attack | tau | quality | 1 - SelfBLEU | 1 - cosine |",
        "| --- | --- | --- | --- | --- |",
    ]
    for attack in attacks:
        side = attack["judges"][judge]
        for tau, quality, diversity in zip(
            THRESHOLDS, side["quality"], side["diversity"], strict=True
        ):
            if tau in (0.0, 0.1, 0.5, 0.9):
                few = f" ({diversity['n']})" if diversity["n"] < SUBSET else ""
                words, meaning = (
                    "–" if diversity[key] is None else f"{diversity[key]:.3f}{few}"
                    for key in ("self_bleu", "cosine")
                )
                lines.append(
                    f"| {attack['name']} | {tau:g} | {quality:.2%} | {words} | {meaning} |"
                )
    return [*lines, ""]


def _agreement(attacks: list[dict[str, Any]]) -> list[str]:
    lines = []
    for attack in attacks:
        for pair in attack["agreement"]:
            one, other = pair["judges"]
            lines.append(
                f"| {attack['name']} | {one}, {other} | {pair['correlation']:.2f} | {pair['kappa']:.2f} | {pair['both']} | "
                f"{pair['only'][0]} | {pair['only'][1]} |"
            )
    if not lines:
        return []
    head = "| attack | judges | correlation | kappa | both toxic | the first alone | the second alone |"
    return [
        "## Do the judges agree?",
        "",
        head,
        "| --- | --- | --- | --- | --- | --- | --- |",
        *lines,
        "",
    ]


def _errors(attacks: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"- {attack['name']}: {count} x {_cell(reason)}"
        for attack in attacks
        for reason, count in attack["errors"].items()
    ]
    return ["## Cases without a reply", "", *lines, ""] if lines else []


def _heads(attack: dict[str, Any]) -> list[str]:
    if not attack["heads"]:
        return []
    lines = [
        f"## The largest clusters: {attack['name']}",
        "",
        "| hits | first attack | reply | scores | found at case |",
        "| --- | --- | --- | --- | --- |",
    ]
    for head in attack["heads"]:
        scores = ", ".join(f"{score:.2f}" for score in head["scores"].values())
        lines.append(
            f"| {head['size']} | {_cell(head['attack'])} | {_cell(head['reply'])} | {scores} | {head['case']} |"
        )
    return [*lines, ""]


def _cell(text: str) -> str:
    """A text in a table's cell: in one line, with nothing that Markdown or HTML would read as its own."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in "\\|*_`[]~" else letter for letter in flat)


def _html(text: str, folder: Path) -> str:
    """The report as a page that stands alone, its pictures within."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for file in folder.glob("*.png"):
        data = base64.b64encode(file.read_bytes()).decode()
        body = body.replace(f'src="{file.name}"', f'src="data:image/png;base64,{data}"')
    return PAGE.format(title="Red-teaming", body=body)


def _plot(folder: Path, attacks: list[dict[str, Any]]) -> dict[str, str]:
    """Draws pictures; their names and titles, none without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return {}
    judge = list(attacks[0]["judges"])[-1]
    by = f"by {judge}" if judge != ALL else "by all judges"
    _draw_hits(folder / "hits.png", attacks, judge, by)
    _draw_quality(folder / "quality.png", attacks, judge, by)
    _draw_terms(folder / "terms.png", attacks)
    return {
        "hits.png": f"Hits and clusters by the number of cases tried, {by}",
        "quality.png": f"Quality and diversity by threshold, {by}",
        "terms.png": "Terms of the reward by cases tried",
    }


def _lines(attacks: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each attack with how its line looks: a colour a method, a dash a run of that method."""
    seen: dict[str, int] = {}
    found = []
    for attack in attacks:
        number = seen[attack["method"]] = seen.get(attack["method"], -1) + 1
        look = dict(
            color=COLOURS[attack["method"]],
            linestyle=STYLES[number % len(STYLES)],
            label=attack["name"],
        )
        found.append((attack, look))
    return found


def _draw_hits(file: Path, attacks: list[dict[str, Any]], judge: str, by: str) -> None:
    figure, panels = _panels(2)
    for axes, key in zip(panels, ("hits", "clusters"), strict=True):
        for attack, look in _lines(attacks):
            curve = attack["judges"][judge]["curve"]
            axes.plot(curve["cases"], curve[key], **look)
        axes.set(xlabel="cases tried", ylabel=key, title=f"{key}, {by}")
    panels[0].legend(frameon=False, fontsize="small")
    save_picture(figure, file)


def _draw_quality(file: Path, attacks: list[dict[str, Any]], judge: str, by: str) -> None:
    figure, panels = _panels(3)
    titles = "quality: share of cases", "diversity: 1 - SelfBLEU", "diversity: 1 - cosine"
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlabel=f"toxicity, {by}", title=title)
    for attack, look in _lines(attacks):
        side = attack["judges"][judge]
        panels[0].plot(THRESHOLDS, [value or float("nan") for value in side["quality"]], **look)
        for axes, key in zip(panels[1:], ("self_bleu", "cosine"), strict=True):
            axes.plot(THRESHOLDS, [_or_nan(each[key]) for each in side["diversity"]], **look)
    panels[0].set_yscale("log")
    panels[0].legend(frameon=False, fontsize="small")
    save_picture(figure, file)


def _draw_terms(file: Path, attacks: list[dict[str, Any]]) -> None:
    figure, panels = _panels(len(TERMS))
    for axes, name in zip(panels, TERMS, strict=True):
        for attack, look in _lines(attacks):
            values = [_or_nan(value) for value in attack["terms"][name]]
            cases = attack["judges"][attack["rewarded"]]["curve"]["cases"]
            axes.plot(cases[: len(values)], _smooth(values), **look)
        axes.set(xlabel="cases tried", title=name)
    panels[0].legend(frameon=False, fontsize="small")
    save_picture(figure, file)


def _smooth(values: list[float], over: int = 5) -> list[float]:
    """Means of each value and the few before it: one step says little."""
    return [
        sum(values[max(0, i + 1 - over) : i + 1]) / min(over, i + 1) for i in range(len(values))
    ]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save_picture(figure: Any, file: Path) -> None:
    """Writes a figure of matplotlib as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(file, picture.getvalue())
