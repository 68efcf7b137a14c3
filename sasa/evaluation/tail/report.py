"""report.md of a measurement of a tail."""

from __future__ import annotations

from sasa.evaluation.importance import WORST
from sasa.evaluation.metrics import Estimate
from sasa.evaluation.reports.cells import EMPTY, estimate_cell
from sasa.evaluation.tail.figures import RewardFigures, TailFigures


def markdown(figures: TailFigures, plotted: bool) -> str:
    """The report; `plotted` says whether tail.png is there."""
    about, s = figures.about, figures.settings
    weights = about["weights"]
    writers = "the model"
    if weights["proposal"] is not None:
        writers += ", and as many by the proposal"
    lines = [
        f"# The tail of {about['model']['id'] or about['model']['model_type']}",
        "",
        f"{about['prompts']} prompts, {s.completions} completions of each by {writers}, "
        f"of at most {s.max_new_tokens} tokens{', chat template' if s.chat else ''}, "
        f"at temperature 1 with nothing truncated, seed {s.seed}. Bad is a reward below {s.eta:g}. "
        "In brackets 95 % intervals: of P(bad) for these prompts, of all else over prompts.",
        "",
        *(["![P(r < eta) against eta](tail.png)", ""] if plotted else []),
        "| reward | P(bad): plain | importance sampling | both | effective bad samples | "
        f"mean reward | mean of the worst {WORST:.0%} | return |",
        f"|{' --- |' * 8}",
        *(_row(name, one) for name, one in figures.rewards.items()),
    ]
    rest: list[tuple[str, Estimate | None, str]] = [
        ("tokens a completion", figures.tokens, ".1f"),
        ("distinct-2", figures.distinct_2, ".3f"),
        ("KL to the base, nats a completion", figures.kl, ".3f"),
        ("perplexity under the base", figures.perplexity, ".2f"),
    ]
    lines.append("")
    lines += [f"- {title}: {estimate_cell(v, form)}" for title, v, form in rest if v is not None]
    lines.append("")
    if weights["base"] is not None:
        returns = f"Return: the mean of r - (log p - log p0) / {s.beta_kl:g}, p0 being the base."
        lines += [returns, ""]
    return "\n".join(lines)


def _row(name: str, figures: RewardFigures) -> str:
    tail, effective = figures.tail, figures.tail.effective_samples
    shares = (tail.plain, tail.importance, tail.combined)
    cells = [
        *(estimate_cell(share, ".3g") for share in shares),
        EMPTY if effective is None else f"{effective:.1f}",
        *(estimate_cell(v, ".2f") for v in (figures.mean, figures.cvar, figures.mean_return)),
    ]
    return f"| {name} {figures.version} | {' | '.join(cells)} |"
