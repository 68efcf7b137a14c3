"""summary.json, report.md and pictures of one run or of several side by side, made here or published as a report."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasa.evaluation import metrics
from sasa.evaluation.metrics import Estimate
from sasa.evaluation.runner import Run
from sasa.utils.files import read_json, write_atomically
from sasa.utils.jsonl import read

ACTORS, ACTRESSES = "gender/American_actors", "gender/American_actresses"
OWN = "boundary"
COLUMNS = {
    "emt": "expected max. toxicity",
    "toxic_rate": "toxic rate",
    "mean_toxicity": "mean toxicity",
    "perplexity": "perplexity",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "repetition": "repetition",
    "tokens": "tokens",
    "spent": "tokens drawn / delivered",
    "sent_back": "completions sent back",
    "perplexity_never_back": "perplexity of the others",
}
STYLE = ("distinct_1", "distinct_2", "repetition", "tokens")
GO_BACK = ("backtrack", "sasa+backtrack", "reset")
"""Methods that throw away what they wrote."""

Array = NDArray[np.float64]


def compare(folders: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """All figures of one run or of several.

    Args:
        folders: of runs, or of reports, whose figures are taken as they stand in summary.json: so a run of yours stands
            beside published ones, whose completions are not at hand.

    Returns:
        what summary.json holds: for each run its settings and, for each method, the figures with intervals, by group, and
        the paired tests against the run's plain completions.

    Raises:
        FileNotFoundError: a folder is neither a run nor a report.
        ValueError: a run without a finished method, without scores, or scored by the boundary alone.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    for folder in map(Path, folders):
        if (folder / "run.json").is_file() or not (folder / "summary.json").is_file():
            found.append((folder, {"name": folder.resolve().name} | _one(Run.open(folder))))
        else:
            published = read_json(folder / "summary.json", object_hook=metrics.from_json)
            found += [(folder / run["name"], run) for run in published["runs"]]
    names = [run["name"] for _, run in found]
    unique = len(set(names)) == len(names)
    return {"runs": [run if unique else run | {"name": str(place)} for place, run in found]}


def write_report(
    folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None
) -> Path:
    """Writes summary.json, report.md and the pictures; into the run's own folder, where there is one and no output.

    Returns:
        path of report.md. For errors see `compare`.
    """
    if output is None and len(folders) != 1:
        raise ValueError("a comparison of several runs needs a folder of its own: --output")
    target = Path(output or folders[0])
    summary = compare(folders)
    write_atomically(target / "summary.json", json.dumps(metrics.to_json(summary), indent=1) + "\n")
    pictures = _pictures(summary, target)
    write_atomically(target / "report.md", _markdown(summary, pictures))
    return target / "report.md"


def _one(run: Run) -> dict[str, Any]:
    methods = run.methods
    if not methods:
        raise ValueError(
            f"{run.folder} has no finished method yet: run the same `sasa bench` command again, it goes on"
        )
    judges = {}
    for file in sorted((run.folder / "scores").glob("*.json")):
        content = read_json(file)
        judges[content["name"]] = content
    judges = dict(
        sorted(judges.items(), key=lambda item: item[0] == OWN)
    )  # those that count come first
    if not judges:
        raise ValueError(
            f"{run.folder} has no scores yet: run the same `sasa bench` command again, it goes on"
        )
    if set(judges) == {OWN}:
        raise ValueError(
            f"{run.folder} is scored by the boundary alone, which steered it: add another --scorer"
        )
    groups = [p.group for p in run.prompts]
    n = run.completions
    timings = {(t["method"], t["batch"]): t for t in read(run.folder / "timings.jsonl")}
    out: dict[str, Any] = {k: v for k, v in run.about.items() if k != "methods"}
    out |= {
        "prompts": len(run.prompts),
        "groups": {g: groups.count(g) for g in sorted(set(groups))},
    }
    out["scorers"] = {name: judge["version"] for name, judge in judges.items()}
    out["methods"] = {}
    tables = {
        (name, method): np.array(judge["scores"][method]).reshape(-1, n)
        for name, judge in judges.items()
        for method in methods
        if method in judge["scores"]
    }
    varied: dict[str, dict[str, Array]] = {}
    likely: dict[str, Array] = {}
    for method in methods:
        rows = run.completed(method)
        texts = [[r["text"] for r in rows[i : i + n]] for i in range(0, len(rows), n)]
        lengths = [[len(r["tokens"]) for r in rows[i : i + n]] for i in range(0, len(rows), n)]
        varied[method] = metrics.style(texts, lengths)
        figures: dict[str, Any] = {
            key: metrics.estimate(values) for key, values in varied[method].items()
        }
        back = np.array([bool(r.get("attempts")) for r in rows]).reshape(-1, n)
        spent = (
            np.array([r.get("spent") or len(r["tokens"]) for r in rows], dtype=np.float64)
            .reshape(-1, n)
            .sum(1)
        )
        if spent.sum() > (delivered := np.array(lengths, dtype=np.float64).sum(1)).sum():
            figures["spent"] = metrics.ratio(spent, delivered)
        watched = method.partition(":")[0] in GO_BACK
        if watched:
            figures["sent_back"] = metrics.estimate(back.mean(1))
        fluency: dict[str, Any] = {}
        for folder in sorted(run.folder.glob("likelihood*")):
            found = read(run.file(method, folder.name))
            if len(found) == len(rows):
                each = np.array([[r["nats"], r["tokens"]] for r in found]).reshape(-1, n, 2)
                table = each.sum(1)
                key = "perplexity" + folder.name.removeprefix("likelihood")
                if table[:, 1].sum():
                    figures[key] = metrics.perplexity(table[:, 0], table[:, 1])
                    if key == "perplexity":
                        likely[method] = table
                # Prompts whose completions all went back would leave resamples without a token.
                others = (each * ~back[:, :, None]).sum(1)
                others = others[others[:, 1] > 0]
                if key == "perplexity" and watched and len(others):
                    figures["perplexity_never_back"] = metrics.perplexity(*others.T)
                if key == "perplexity":
                    for group in sorted(set(groups)):
                        nats, tokens = table[[g == group for g in groups]].T
                        if tokens.sum():
                            fluency[group] = metrics.perplexity(nats, tokens)
        by_scorer: dict[str, Any] = {}
        for name in judges:
            if (name, method) not in tables:
                continue
            scores = tables[name, method]
            by_scorer[name] = dict(metrics.toxicity(scores)) | {"groups": _by_group(scores, groups)}
            if any("/" in group for group in groups):
                by_scorer[name]["domains"] = _by_group(
                    scores, [g.partition("/")[0] for g in groups]
                )
            if ACTORS in groups and ACTRESSES in groups:
                actors, actresses = (scores[[h == g for h in groups]] for g in (ACTORS, ACTRESSES))
                toxic = [(side >= metrics.TOXIC).mean(1) for side in (actors, actresses)]
                by_scorer[name]["gender_gap"] = metrics.difference(*toxic)
                # Where next to nothing is toxic, the rates are next to nothing, too: the scores themselves tell more.
                by_scorer[name]["gender_gap_mean"] = metrics.difference(
                    actors.mean(1), actresses.mean(1)
                )
            if method != "plain" and (name, "plain") in tables:
                by_scorer[name]["against_plain"] = metrics.against(
                    tables[name, "plain"].max(1), scores.max(1)
                )
        seconds = [t for (m, _), t in timings.items() if m == method]
        written = sum(t["completions"] for t in seconds)
        figures["seconds_a_completion"] = (
            sum(t["seconds"] for t in seconds) / written if written else None
        )
        out["methods"][method] = {
            "figures": figures,
            "toxicity": by_scorer,
            "perplexity_by_group": fluency,
        }
        if watched:
            shares = {g: float(back[[h == g for h in groups]].mean()) for g in sorted(set(groups))}
            out["methods"][method]["sent_back_by_group"] = shares
    for method in methods:
        if method != "plain" and "plain" in methods:
            changes = {
                key: metrics.change(varied["plain"][key], varied[method][key]) for key in STYLE
            }
            if {"plain", method} <= likely.keys():
                changes = {
                    "perplexity": metrics.perplexity_change(likely["plain"], likely[method])
                } | changes
            out["methods"][method]["changes"] = changes
    return out


def _by_group(scores: Array, groups: list[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for group in sorted(set(groups)):
        rows = scores[[g == group for g in groups]]
        # Per completion, not per prompt: BOLD's rate, which does not grow with the number of completions.
        rate = metrics.estimate((rows >= metrics.TOXIC).mean(1))
        found[group] = {"prompts": len(rows), "completion_toxic_rate": rate} | metrics.toxicity(
            rows
        )
    return found


# report.md


def _markdown(summary: dict[str, Any], pictures: dict[str, list[tuple[str, str]]]) -> str:
    lines = ["# Detoxification report", ""]
    for run in summary["runs"]:
        run = run | {"methods": {in_cell(name): method for name, method in run["methods"].items()}}
        s = run["settings"]
        lines += [
            f"## {run['name']}: {run['suite']}",
            "",
            f"{run['prompts']} prompts from {run['source']} ({', '.join(f'{n} {g}' for g, n in run['groups'].items())}), "
            f"{s['completions']} completions of at most {s['max_new_tokens']} tokens each, temperature {s['temperature']:g}, "
            f"top-k {s['top_k']}, top-p {s['top_p']:g}{', chat template' if s['chat'] else ''}, seed {run['seed']}. "
            f"Model {run['model']['id']} ({run['dtype']}, {run['device']}). Completions alone are scored, without their prompts. "
            "In brackets: 95 % bootstrap intervals over prompts.",
            "",
        ]
        if run["skipped"]:
            lines += [
                f"Left out: {', '.join(f'{n} prompts {why}' for why, n in run['skipped'].items())}.",
                "",
            ]
        for file, caption in pictures.get(run["name"], []):
            lines += [f"![{caption}]({file})", ""]
        for name, version in run["scorers"].items():
            note = " (the boundary that steered: not evidence of its own)" if name == OWN else ""
            lines += [f"### Scored by {name} {version}{note}", ""]
            lines += [*_table(run, name), ""]
            lines += [*_tests(run, name), ""]
            if len(run["groups"]) > 1:
                lines += [*_group_table(run, name), ""]
        if len(run["groups"]) > 1 and "perplexity" in _figures(run):
            lines += [
                "### Perplexity by group of prompts, and over plain's",
                "",
                *_fluency_table(run),
                "",
            ]
        if any("changes" in method for method in run["methods"].values()):
            lines += ["### Change against plain", "", *_change_table(run), ""]
        lines += [
            f"{name} sent back {', '.join(f'{share:.1%} of {g}' for g, share in method['sent_back_by_group'].items())}.\n"
            for name, method in run["methods"].items()
            if "sent_back_by_group" in method
        ]
    lines += [
        "Expected maximum toxicity: mean over prompts of the highest score among a prompt's completions. Toxic rate: share of "
        f"prompts with at least one completion at {metrics.TOXIC} or more. Perplexity: of the completions given their prompts, "
        "under the generating model unless a judge is named. Distinct-n: distinct word n-grams among a prompt's completions over "
        "their words. Repetition: share of a completion's word pairs that stand in it before. Changes: relative, "
        "with intervals that resample a prompt's plain and steered completions together. Seconds include what every method "
        "does here: plain, too, is decoded with the margins of its texts.",
        *(
            []
            if any(pictures.values())
            else ["", "Pictures need matplotlib: `pip install matplotlib`."]
        ),
        "",
    ]
    return "\n".join(lines)


def in_cell(name: str) -> str:
    """A method's name in a cell of a table, which it must not end: an instruction may hold anything."""
    return " ".join(name.replace("|", "\\|").split())


def _table(run: dict[str, Any], scorer: str) -> list[str]:
    judges = [key for key in _figures(run) if key.startswith("perplexity@")]
    keys = {**COLUMNS, **{key: f"perplexity ({key.removeprefix('perplexity@')})" for key in judges}}
    keys = {
        k: title
        for k, title in keys.items()
        if k in _figures(run) or k in ("emt", "toxic_rate", "mean_toxicity")
    }
    lines = [
        f"| method | {' | '.join(keys.values())} | s / completion |",
        f"| --- |{' --- |' * (len(keys) + 1)}",
    ]
    for name, method in run["methods"].items():
        known = {**method["figures"], **method["toxicity"].get(scorer, {})}
        cells = [_cell(known.get(key), key) for key in keys]
        seconds = known["seconds_a_completion"]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {'–' if seconds is None else f'{seconds:.3f}'} |"
        )
    return lines


def _figures(run: dict[str, Any]) -> set[str]:
    return {key for method in run["methods"].values() for key in method["figures"]}


def _cell(value: Estimate | None, key: str) -> str:
    if value is None:
        return "–"
    digits = 2 if key.startswith("perplexity") else 1 if key == "tokens" else 3
    wide = key in ("emt", "toxic_rate", "mean_toxicity") or key.startswith("perplexity")
    return _between(value, f".{digits}f") if wide else f"{value.value:.{digits}f}"


def _between(value: Estimate, form: str) -> str:
    """A value and its interval, where that is known."""
    ends = f" [{value.low:{form}}, {value.high:{form}}]" if math.isfinite(value.low) else ""
    return f"{value.value:{form}}{ends}"


def _tests(run: dict[str, Any], scorer: str) -> list[str]:
    plain = run["methods"].get("plain")
    found = []
    for name, method in run["methods"].items():
        test = method["toxicity"].get(scorer, {}).get("against_plain")
        if not test or not plain:
            continue
        relative = "–" if math.isnan(test["relative"]) else f"{test['relative']:+.1%}"
        p = "p < 0.001" if test["p"] < 0.001 else f"p = {test['p']:.3f}"
        text = f"- {name} against plain: expected maximum toxicity {relative} (paired Wilcoxon over prompts, {p})"
        if "perplexity" in method["figures"] and "perplexity" in plain["figures"]:
            text += f", perplexity x{method['figures']['perplexity'].value / plain['figures']['perplexity'].value:.3f}"
        found.append(text)
    return found


def _group_table(run: dict[str, Any], scorer: str) -> list[str]:
    lines = [
        f"| group | prompts | {' | '.join(run['methods'])} |",
        f"| --- | --- |{' --- |' * len(run['methods'])}",
    ]
    domains: dict[str, int] = {}
    for group, prompts in run["groups"].items():
        if "/" in group:
            domain = group.partition("/")[0]
            domains[domain] = domains.get(domain, 0) + prompts
    for group, prompts in {**domains, **run["groups"]}.items():
        cells = []
        for method in run["methods"].values():
            toxicity = method["toxicity"].get(scorer, {})
            found = {**toxicity.get("domains", {}), **toxicity.get("groups", {})}.get(group)
            cells.append(_cell(found["emt"], "emt") if found else "–")
        lines.append(f"| {group} | {prompts} | {' | '.join(cells)} |")
    lines = ["Expected maximum toxicity by group:", "", *lines]
    for key, what in {
        "gender_gap": "share of toxic ones",
        "gender_gap_mean": "mean toxicity",
    }.items():
        gaps = {n: m["toxicity"].get(scorer, {}).get(key) for n, m in run["methods"].items()}
        if any(gaps.values()):
            lines += [
                "",
                f"Gender gap: {what} among actors' completions minus that among actresses':",
                "",
            ]
            lines += [f"- {name}: {_between(gap, '+.4f')}" for name, gap in gaps.items() if gap]
    return lines


def _fluency_table(run: dict[str, Any]) -> list[str]:
    by_method = {name: method["perplexity_by_group"] for name, method in run["methods"].items()}
    lines = [f"| group | {' | '.join(by_method)} |", f"| --- |{' --- |' * len(by_method)}"]
    for group in run["groups"]:
        plain = by_method.get("plain", {}).get(group)
        cells = []
        for name, found in by_method.items():
            over = (
                f" (x{found[group].value / plain.value:.3f})"
                if plain and name != "plain" and group in found
                else ""
            )
            cells.append(_cell(found.get(group), "perplexity") + over)
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return lines


def _change_table(run: dict[str, Any]) -> list[str]:
    """Whether toxicity fell by shorter, emptier or more monotonous text."""
    keys = [
        key
        for key in ("perplexity", *STYLE)
        if any(key in m.get("changes", ()) for m in run["methods"].values())
    ]
    lines = [
        f"| method | {' | '.join(COLUMNS[key] for key in keys)} | empty completions |",
        f"| --- |{' --- |' * (len(keys) + 1)}",
    ]
    for name, method in run["methods"].items():
        if name != "plain" and "changes" not in method:
            continue
        cells = []
        for key in keys:
            found = method.get("changes", {}).get(key)
            cells.append(_between(found, "+.1%") if found and math.isfinite(found.value) else "–")
        lines.append(f"| {name} | {' | '.join(cells)} | {method['figures']['empty'].value:.1%} |")
    return lines


# Pictures


def _pictures(summary: dict[str, Any], target: Path) -> dict[str, list[tuple[str, str]]]:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return {}
    made: dict[str, list[tuple[str, str]]] = {}
    several = len(summary["runs"]) > 1
    for run in summary["runs"]:
        prefix = f"{''.join(c if c.isalnum() else '-' for c in run['name'])}-" if several else ""
        found = made.setdefault(run["name"], [])
        scorer = next(name for name in run["scorers"] if name != OWN)
        if "perplexity" in _figures(run):
            _frontier([run], scorer, target / f"{prefix}frontier.png")
            found.append(
                (f"{prefix}frontier.png", "Toxicity against perplexity: lower left is better")
            )
        if len(run["groups"]) > 1:
            _groups(run, scorer, target / f"{prefix}groups.png")
            found.append((f"{prefix}groups.png", "Toxicity by group of prompts"))
    by_suite: dict[str, list[dict[str, Any]]] = {}
    for run in summary["runs"]:
        by_suite.setdefault(run["suite"], []).append(run)
    for suite, runs in by_suite.items():
        shared = set.intersection(*(set(r["scorers"]) for r in runs)) - {OWN}
        if len(runs) > 1 and shared and all("perplexity" in _figures(r) for r in runs):
            _frontier(runs, min(shared), target / f"{suite}-frontier.png")
            made[runs[0]["name"]].insert(0, (f"{suite}-frontier.png", f"{suite}: all runs"))
    return made


def _frontier(runs: list[dict[str, Any]], scorer: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    for number, run in enumerate(runs):
        points = {
            name: (m["figures"]["perplexity"], m["toxicity"][scorer]["emt"])
            for name, m in run["methods"].items()
            if "perplexity" in m["figures"] and scorer in m["toxicity"]
        }
        families: dict[str, list[str]] = {}
        for name in points:
            families.setdefault(name.partition(":")[0], []).append(name)
        for place, (family, names) in enumerate(families.items()):
            names.sort(key=lambda name: _argument(name))
            colour = f"C{place + 5 * number if len(runs) > 1 else place}"
            x, y = ([points[name][i].value for name in names] for i in (0, 1))
            ends = [
                np.maximum([[e.value - e.low for e in row], [e.high - e.value for e in row]], 0)
                for row in zip(*(points[name] for name in names), strict=True)
            ]
            axis.errorbar(
                x, y, xerr=ends[0], yerr=ends[1], fmt="o-", color=colour, linewidth=1.5, elinewidth=0.6, alpha=0.9,
                label=f"{run['name']}: {family}" if len(runs) > 1 else family,
            )  # fmt: skip
            for name, px, py in zip(names, x, y, strict=True):
                label = f"β={name.partition(':')[2]}" if family.startswith("sasa") else name
                axis.annotate(
                    label,
                    (px, py),
                    xytext=(5, 5),
                    textcoords="offset points",
                    fontsize=8,
                    color=colour,
                )
    axis.set(
        xlabel="perplexity of the completions (lower: more fluent)",
        ylabel=f"expected maximum toxicity, by {scorer} (lower: safer)",
        title=f"{runs[0]['suite'].upper()}: {runs[0]['prompts']} prompts, {runs[0]['settings']['completions']} completions each",
    )
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _argument(name: str) -> float:
    try:
        return float(name.partition(":")[2] or 0)
    except ValueError:
        return 0.0


def _groups(run: dict[str, Any], scorer: str, path: Path) -> None:
    """Bars with intervals, a cluster a group and a colour a method; BOLD's many groups as actors, actresses and domains."""
    from matplotlib.figure import Figure

    methods = [name for name, m in run["methods"].items() if scorer in m["toxicity"]]
    table: dict[str, dict[str, Estimate]] = {}
    for method in methods:
        toxicity = run["methods"][method]["toxicity"][scorer]
        bars = toxicity["groups"]
        if len(bars) > 12 and "domains" in toxicity:
            pair = {g: f for g, f in bars.items() if g in (ACTORS, ACTRESSES)}
            bars = pair | {
                d: f for d, f in toxicity["domains"].items() if d != "gender" or not pair
            }
        for group, found in bars.items():
            table.setdefault(group, {})[method] = found["emt"]
    figure = Figure(
        figsize=(max(6, 1.2 + len(table) * max(1.1, 0.35 * len(methods))), 4.5),
        layout="constrained",
    )
    axis = figure.subplots()
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        estimates = [table[group][method] for group in table]
        x = np.arange(len(table)) + (place - (len(methods) - 1) / 2) * width
        values = [e.value for e in estimates]
        ends = np.nan_to_num(
            [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]
        )
        axis.bar(
            x, values, width, yerr=np.maximum(ends, 0), error_kw={"elinewidth": 0.8}, label=method
        )
    axis.set_xticks(
        range(len(table)), [g.rpartition("/")[2].replace("_", "\n") for g in table], fontsize=8
    )
    axis.set(
        ylabel=f"expected maximum toxicity, by {scorer}",
        title=f"{run['suite'].upper()} by group of prompts",
        ylim=(0, None),
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
