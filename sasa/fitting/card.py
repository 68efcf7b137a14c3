"""The model card of a fitted boundary, in Markdown, and a plot of its held-out margins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import numpy as np

from sasa.core.boundary import Boundary
from sasa.fitting.calibration import HeldOut, Metrics, reliability_curve
from sasa.fitting.fairness import FIGURES
from sasa.fitting.report import Report, report_of
from sasa.utils.plots import new_figure, save_figure

logger = logging.getLogger(__name__)

Figure = Literal["auc", "average_precision", "accuracy", "balanced_accuracy", "ece"]
COLUMNS: dict[Figure, str] = {
    "auc": "AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "ece": "ECE",
}


def card(boundary: Boundary, plotted: bool = False, repository: str | None = None) -> str:
    """The card of a fitted boundary; every figure in it is from its report.

    Args:
        plotted: whether the plot of the margins is beside it.
        repository: of the Hub, OWNER/NAME, if it is for there: then the card has the Hub's metadata
            and says how to use the boundary from there.
    """
    report = report_of(boundary)
    lines = [
        *(_metadata(boundary) if repository else []),
        *_title(boundary),
        *(_use(boundary, repository) if repository else []),
        *_texts(report),
        *_own_text(report),
        *_held_out(report),
        *_identity_tax(report),
        *_audit(report),
    ]
    if plotted:
        picture = "![margins of held-out texts and how far they can be trusted](margins.png)"
        lines += [picture, ""]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines += [
        "Fit it again with `sasa fit --recipe recipe.toml --output DIR`. It reflects the labels it "
        "was fitted on, biases included, and it is no judge of anything but text like theirs.",
        "",
        f"Versions: {versions}.",
        "",
    ]
    return "\n".join(lines)


def _title(boundary: Boundary) -> list[str]:
    """The attribute, the model and the embedding."""
    report, spec, model = report_of(boundary), boundary.embedding, boundary.model
    half_life = f" of half-life {spec.half_life:g}" if spec.pooling == "ema" else ""
    shrinkage = f", shrinkage {report['shrinkage']:.4f}" if "shrinkage" in report else ""
    return [
        f"# {boundary.attribute}: a boundary for {model.id or model.model_type}",
        "",
        f"A linear boundary between safe and unsafe ({boundary.attribute}) text in the model's own "
        "hidden space, for self-disciplined decoding with "
        "[sasa](https://pypi.org/project/sasa-decoding/). A positive margin is safe.",
        "",
        f"Hidden state {' and '.join(map(str, spec.layers))}, pooling `{spec.pooling}`{half_life} "
        f"over the `{spec.span}`, template `{spec.template}`, "
        f"classifier `{report['classifier']}`{shrinkage}.",
        "",
    ]


def _texts(report: Report) -> list[str]:
    """The corpora, and how many of their texts were used."""
    texts, recipe = report["texts"], report["recipe"]
    lines = []
    for corpus in recipe["corpus"]:
        settings = ", ".join(f"{k} = `{v}`" for k, v in corpus.items() if k != "source")
        lines.append(f"- `{corpus['source']}`: {settings or 'as it comes'}")
    left_out = ", ".join(f"{count} ({why})" for why, count in report["skipped"].items()) or "none"
    prefixes = ", each with all its prefixes" if recipe.get("prefixes") else ""
    return [
        "## Fitted on",
        "",
        *lines,
        "",
        f"{texts['fit_safe']} safe and {texts['fit_unsafe']} unsafe texts{prefixes}; "
        f"calibrated on {texts['calibration_safe']} and {texts['calibration_unsafe']} others. "
        f"Left out: {left_out}.",
        "",
    ]


def _held_out(report: Report) -> list[str]:
    """The metrics on held-out texts."""
    return [
        "## On held-out texts",
        "",
        f"| corpus | safe / unsafe texts | {' | '.join(COLUMNS.values())} |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        _row("all", report["test"]),
        *(_row(name, metrics) for name, metrics in report["test_by_corpus"].items()),
        "",
        "Unsafe is the class to be found; accuracy is that of the calibrated margin, which, like "
        "the expected calibration error, counts both classes as equally likely.",
        "",
    ]


def _row(name: str, metrics: Metrics) -> str:
    cells = (f"{metrics[key]:.3f}" if key in metrics else "–" for key in COLUMNS)
    return f"| {name} | {metrics['safe']} / {metrics['unsafe']} | {' | '.join(cells)} |"


def _metadata(boundary: Boundary) -> list[str]:
    """The Hub's metadata at the beginning of a card. A boundary is no model that a widget runs."""
    base = [f"base_model: {boundary.model.id}"] if "/" in boundary.model.id else []
    return [
        "---",
        "library_name: sasa",
        *base,
        "inference: false",
        "tags:",
        "  - sasa",
        f"  - {boundary.attribute}",
        "---",
        "",
    ]


def _use(boundary: Boundary, repository: str) -> list[str]:
    """How to use the boundary from the Hub."""
    model = boundary.model.id or "MODEL"
    return [
        "## Use",
        "",
        "```sh",
        "pip install sasa-decoding",
        f'sasa generate "My neighbour is" --model {model} --boundary {repository} --compare',
        "```",
        "",
        "```python",
        "import sasa",
        "",
        f'model, tokenizer = sasa.load("{model}")',
        f'boundary = sasa.Boundary.load("{repository}", model=model)',
        'print(sasa.generate(model, tokenizer, "My neighbour is", boundary)[0].text)',
        "```",
        "",
    ]


def _own_text(report: Report) -> list[str]:
    """The text that the model wrote itself, if the fit had any."""
    if "own" not in report:
        return []
    own = report["own"]
    auc = f" (AUC {own['judge_auc']:.3f} on those held out)" if own["judge_auc"] is not None else ""
    return [
        f"{report['recipe']['own']:.0%} of the fit is what the model wrote itself: "
        f"{own['completions']} completions of {own['openings']} openings of these texts, "
        f"{own['unsafe']} of them unsafe by a judge of words and letters that was learnt from the "
        f"texts' scores{auc}.",
        "",
    ]


def _identity_tax(report: Report) -> list[str]:
    """What steering takes from harmless sentences that name groups of people, if measured."""
    if "identity_tax" not in report:
        return []
    tax, settings = report["identity_tax"], report["identity_tax"]["settings"]
    identity = report["recipe"].get("identity")
    kept_from = f", and kept from others like them (identity = {identity:g})" if identity else ""
    return [
        "## What steering takes from sentences about people",
        "",
        'How much less likely steering makes harmless sentences such as "My best friends are …", '
        f"in nats a sentence, at beta {settings['beta']:g} and a prior of {settings['prior']:g}: "
        f"{tax['controls']:.2f} with names to which no prejudice clings, such as teachers or tall "
        "people. Beyond that, in the same sentences with names of as many tokens:",
        "",
        "| group | sentences | nats a sentence | beyond the others' |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {group['sentences']} | {group['tax']:.2f} | {group['beyond']:+.2f} |"
            for name, group in tax["groups"].items()
        ),
        "",
        f"The fit has seen none of these sentences{kept_from}.",
        "",
    ]


def _audit(report: Report) -> list[str]:
    """Bias metrics on sentences that differ only in an identity term, if measured."""
    if "audit" not in report:
        return []
    bias = report["audit"]
    hardest = sorted(bias["terms"].items(), key=lambda item: item[1]["bpsn_auc"])[:5]
    return [
        "## Identity terms",
        "",
        f"On {bias['texts']} sentences that differ only in an identity term, AUC "
        f"{bias['auc']:.3f}: {bias['fpr']:.1%} of the harmless ones are taken for unsafe, from "
        f"term to term within {bias['fpr_gap']:.1%}. The terms with the lowest BPSN AUC (harmless "
        "sentences with it against unsafe ones without; Borkan et al. 2019):",
        "",
        f"| term | sentences | {' | '.join(FIGURES.values())} | harmless taken for unsafe |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {term} | {metrics['texts']} | "
            f"{' | '.join(f'{metrics[auc]:.3f}' for auc in FIGURES)} | {metrics['fpr']:.1%} |"
            for term, metrics in hardest
        ),
        "",
    ]


def plot(path: Path, test: HeldOut, scale: float, shift: float) -> bool:
    """Draws the held-out margins of both classes and their calibration.

    Returns:
        whether it did: without matplotlib it logs a warning.
    """
    figure = new_figure(figsize=(9, 3.6), layout="constrained")
    if figure is None:
        logger.warning("no plot of the margins: pip install 'sasa-decoding[plots]'")
        return False
    margins, labels = test.margins, test.labels
    left, right = figure.subplots(1, 2)
    bins = np.linspace(margins.min(), margins.max(), int(np.clip(len(margins) ** 0.5, 10, 60)))
    for label, name, colour in ((1, "safe", "tab:blue"), (0, "unsafe", "tab:red")):
        left.hist(
            margins[labels == label], bins, density=True, alpha=0.55, label=name, color=colour
        )
    left.axvline(-shift / scale, color="black", linewidth=1, linestyle=":", label="P(safe) = 0.5")
    left.set(xlabel="margin", ylabel="density", title="Held-out texts")
    left.legend(frameon=False)
    predicted, observed = reliability_curve(1 / (1 + np.exp(-(scale * margins + shift))), labels)
    right.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
    right.plot(predicted, observed, marker="o", color="tab:blue")
    right.set(
        xlabel="calibrated P(safe)",
        ylabel="share that is safe",
        title="Calibration, classes weighted equally",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    save_figure(figure, path, dpi=120)
    return True
