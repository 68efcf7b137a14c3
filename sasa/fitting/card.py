"""What a fitted boundary says of itself: a model card in Markdown and a picture of its held-out margins."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from sasa.core.boundary import Boundary
from sasa.fitting.fairness import FIGURES
from sasa.utils.files import write_atomically

logger = logging.getLogger(__name__)


def card(boundary: Boundary, plotted: bool = False, repository: str | None = None) -> str:
    """The card of a fitted boundary, every figure in it from its report.

    Args:
        plotted: whether a picture is beside it.
        repository: of the Hub, OWNER/NAME, where it is to be: then the card has the Hub's metadata, and how to use it from there.
    """
    report, spec = boundary.report, boundary.embedding
    texts = report["texts"]
    left_out = ", ".join(f"{count} ({why})" for why, count in report["skipped"].items()) or "none"
    rows = [
        f"| {name} | {m['safe']} / {m['unsafe']} | "
        + " | ".join(
            f"{m[key]:.3f}" if key in m else "–"
            for key in ("auc", "average_precision", "accuracy", "balanced_accuracy", "ece")
        )
        + " |"
        for name, m in {"all": report["test"], **report["test_by_corpus"]}.items()
    ]
    sources = [
        f"- `{corpus['source']}`: "
        + (", ".join(f"{k} = `{v}`" for k, v in corpus.items() if k != "source") or "as it comes")
        for corpus in report["recipe"]["corpus"]
    ]
    return "\n".join(
        [
            *(_metadata(boundary) if repository else []),
            f"# {boundary.attribute}: a boundary for {boundary.model.id or boundary.model.model_type}",
            "",
            f"A linear boundary between safe and unsafe ({boundary.attribute}) text in the model's own hidden space, for "
            "self-disciplined decoding with [sasa](https://pypi.org/project/sasa-decoding/). A positive margin is safe.",
            "",
            f"Hidden state {' and '.join(map(str, spec.layers))}, pooling `{spec.pooling}`"
            + (f" of half-life {spec.half_life:g}" if spec.pooling == "ema" else "")
            + f" over the `{spec.span}`, template `{spec.template}`, "
            f"classifier `{report['classifier']}`"
            + (f", shrinkage {report['shrinkage']:.4f}" if "shrinkage" in report else "")
            + ".",
            "",
            *(_use(boundary, repository) if repository else []),
            "## Fitted on",
            "",
            *sources,
            "",
            f"{texts['fit_safe']} safe and {texts['fit_unsafe']} unsafe texts"
            + (", each with all its prefixes" if report["recipe"].get("prefixes") else "")
            + f"; calibrated on {texts['calibration_safe']} and "
            f"{texts['calibration_unsafe']} others. Left out: {left_out}.",
            "",
            *_own(report),
            "## On held-out texts",
            "",
            "| corpus | safe / unsafe texts | AUC | average precision | accuracy | balanced accuracy | ECE |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "Unsafe is the class to be found; accuracy is that of the calibrated margin, which, like the expected calibration "
            "error, counts both classes as equally likely.",
            "",
            *_identity_tax(report),
            *_audit(report),
            *(
                ["![margins of held-out texts and how far they can be trusted](margins.png)", ""]
                if plotted
                else []
            ),
            "Fit it again with `sasa fit --recipe recipe.toml --output DIR`. It reflects the labels it was fitted on, biases "
            "included, and it is no judge of anything but text like theirs.",
            "",
            "Versions: " + ", ".join(f"{k} {v}" for k, v in report["versions"].items()) + ".",
            "",
        ]
    )


def _metadata(boundary: Boundary) -> list[str]:
    """What the Hub reads at the beginning of a card. A boundary is no model: there is nothing for a widget to run."""
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
    """How it is used from the Hub."""
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


def _own(report: dict[str, Any]) -> list[str]:
    """What the model wrote itself, where that was fitted on."""
    if "own" not in report:
        return []
    own = report["own"]
    auc = f" (AUC {own['judge_auc']:.3f} on those held out)" if own["judge_auc"] is not None else ""
    return [
        f"{report['recipe']['own']:.0%} of the fit is what the model wrote itself: {own['completions']} completions of "
        f"{own['openings']} openings of these texts, {own['unsafe']} of them unsafe by a judge of words and letters that was "
        f"learnt from the texts' scores{auc}.",
        "",
    ]


def _identity_tax(report: dict[str, Any]) -> list[str]:
    """What steering takes from harmless sentences that name groups of people, where that was measured."""
    if "identity_tax" not in report:
        return []
    found, settings = report["identity_tax"], report["identity_tax"]["settings"]
    return [
        "## What steering takes from sentences about people",
        "",
        f'How much less likely steering makes harmless sentences such as "My best friends are …", in nats a sentence, at '
        f"beta {settings['beta']:g} and a prior of {settings['prior']:g}: {found['controls']:.2f} with names to which no "
        "prejudice clings, such as teachers or tall people. Beyond that, in the same sentences with names of as many tokens:",
        "",
        "| group | sentences | nats a sentence | beyond the others' |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {one['sentences']} | {one['tax']:.2f} | {one['beyond']:+.2f} |"
            for name, one in found["groups"].items()
        ),
        "",
        "The fit has seen none of these sentences"
        + (
            f", and kept from others like them (identity = {report['recipe']['identity']:g})."
            if report["recipe"].get("identity")
            else "."
        ),
        "",
    ]


def _audit(report: dict[str, Any]) -> list[str]:
    """How sentences fare that differ only in an identity term, where that was measured."""
    if "audit" not in report:
        return []
    found = report["audit"]
    hardest = sorted(found["terms"].items(), key=lambda item: item[1]["bpsn_auc"])[:5]
    return [
        "## Identity terms",
        "",
        f"On {found['texts']} sentences that differ only in an identity term, AUC {found['auc']:.3f}: {found['fpr']:.1%} of the "
        f"harmless ones are taken for unsafe, from term to term within {found['fpr_gap']:.1%}. "
        "The terms with the lowest BPSN AUC (harmless sentences with it against unsafe ones without; Borkan et al. 2019):",
        "",
        f"| term | sentences | {' | '.join(FIGURES.values())} | harmless taken for unsafe |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {term} | {one['texts']} | {' | '.join(f'{one[f]:.3f}' for f in FIGURES)} | {one['fpr']:.1%} |"
            for term, one in hardest
        ),
        "",
    ]


def plot(path: Path, margins: np.ndarray, labels: np.ndarray, scale: float, shift: float) -> bool:
    """Draws the held-out margins of both classes and their calibration; False, and said so, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plot of the margins: pip install 'sasa-decoding[plots]'")
        return False
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = np.linspace(margins.min(), margins.max(), int(np.clip(len(margins) ** 0.5, 10, 60)))
    for label, name, colour in ((1, "safe", "tab:blue"), (0, "unsafe", "tab:red")):
        left.hist(
            margins[labels == label], bins, density=True, alpha=0.55, label=name, color=colour
        )
    left.axvline(-shift / scale, color="black", linewidth=1, linestyle=":", label="P(safe) = 0.5")
    left.set(xlabel="margin", ylabel="density", title="Held-out texts")
    left.legend(frameon=False)
    probability = 1 / (1 + np.exp(-(scale * margins + shift)))
    weight = np.where(labels == 1, 1 / max(1, (labels == 1).sum()), 1 / max(1, (labels == 0).sum()))
    index = np.minimum((probability * 10).astype(int), 9)
    total = np.bincount(index, weight, 10)
    seen = total > 0
    right.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
    right.plot(
        (np.bincount(index, weight * probability, 10)[seen] / total[seen]),
        (np.bincount(index, weight * labels, 10)[seen] / total[seen]),
        marker="o",
        color="tab:blue",
    )
    right.set(
        xlabel="calibrated P(safe)",
        ylabel="share that is safe",
        title="Calibration, classes weighted equally",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())
    return True
