"""How rare a model's bad completions are: P(r < eta) over prompts, down to where no affordable sample holds a single one.

A measurement is a folder:

    tail.json            settings: all that the samples depend on
    samples.jsonl        a line a completion, appended batch by batch; killed at any moment, it goes on
    rewards/NAME.json    what each of them is worth
    figures.json, report.md, tail.png
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.model_info import ModelInfo
from sasa.decoding.prompts import completion_text, encode_prompts
from sasa.decoding.sampling import log_probs, sample, seed_of
from sasa.evaluation import metrics
from sasa.evaluation.fingerprints import fingerprint
from sasa.evaluation.importance import WORST, Array, Tail, cvar, tail
from sasa.evaluation.metrics import Estimate
from sasa.evaluation.rewards import Reward
from sasa.evaluation.settings import TailSettings
from sasa.utils.files import differences, read_json, write_atomically
from sasa.utils.jsonl import alone, append, keep_lines, read, whole_lines
from sasa.utils.progress import progress_bar

ROWS = 64
"""Completions at a time."""
SIDES = ("model", "proposal")


def measure_tail(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    rewards: Sequence[Reward],
    output: str | os.PathLike[str],
    settings: TailSettings | None = None,
    *,
    proposal: PreTrainedModel | None = None,
    base: PreTrainedModel | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Samples completions, scores them, and writes figures, a report and a picture; started again, it goes on.

    Args:
        model: the model whose tail it is.
        rewards: each gets figures of its own.
        output: the measurement's folder.
        proposal: a model that writes what is bad, with the same tokens, for importance sampling.
        base: the model that this one was trained from, with the same tokens, for KL, return and perplexity.

    Returns:
        what figures.json holds: `tokens`, `distinct_2` and, with a base, `kl` and `perplexity`, and for each reward
        `mean`, `cvar`, `return` and `tail`.

    Raises:
        ValueError: no prompts or no reward, two rewards of one name, a model in training mode, models that differ in their
            tokens, or a folder of other settings.
    """
    settings, folder = settings or TailSettings(), Path(output)
    names = [reward.name for reward in rewards]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"a tail needs rewards, each of a name of its own, got {', '.join(names) or 'none'}"
        )
    size = model.config.get_text_config().vocab_size
    for what, other in (("proposal", proposal), ("base", base)):
        if other is not None and (theirs := other.config.get_text_config().vocab_size) != size:
            raise ValueError(
                f"the {what} has {theirs} tokens, the model {size}: their probabilities cannot be compared"
            )
    encoded = encode_prompts(
        model, tokenizer, prompts, EmbeddingSpec(), settings.chat, settings.max_new_tokens
    )
    _begin(folder, _about(model, prompts, settings, proposal, base))
    with alone(folder):
        _sample(model, tokenizer, encoded, settings, folder, proposal, base, progress)
        records = read(folder / "samples.jsonl")
        for reward in rewards:
            _score(reward, prompts, records, folder)
        found = figures(folder)
        write_atomically(
            folder / "figures.json", json.dumps(metrics.to_json(found), indent=1) + "\n"
        )
        plotted = _plot(folder, found)
        write_atomically(folder / "report.md", _report(found, plotted))
    return found


def figures(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """All figures of a finished measurement, from what is in its folder."""
    folder = Path(folder)
    about = read_json(folder / "tail.json")
    settings = TailSettings(**about["settings"])
    records, n = read(folder / "samples.jsonl"), settings.completions
    sides = {
        side: np.array([i for i, r in enumerate(records) if r["by"] == side], dtype=int)
        for side in SIDES
    }

    def column(key: str, side: str = "model") -> Array | None:
        if not len(sides[side]) or key not in records[sides[side][0]]:
            return None
        return np.array([records[i][key] for i in sides[side]], dtype=np.float64).reshape(-1, n)

    own = [records[i] for i in sides["model"]]
    texts = [[r["text"] for r in own[i : i + n]] for i in range(0, len(own), n)]
    lengths = np.array([len(r["tokens"]) for r in own], dtype=np.float64).reshape(-1, n)
    log_p, log_p0, log_q = (column(key) for key in ("log_p", "log_p0", "log_q"))
    there, there_q = column("log_p", "proposal"), column("log_q", "proposal")
    assert log_p is not None
    found: dict[str, Any] = {
        "about": about,
        "tokens": metrics.estimate(lengths.mean(1)),
        "distinct_2": metrics.estimate(np.array([metrics.distinct(row, 2) for row in texts])),
        "rewards": {},
    }
    if log_p0 is not None:
        found["kl"] = metrics.estimate((log_p - log_p0).mean(1))
        found["perplexity"] = metrics.perplexity(-log_p0.sum(1), lengths.sum(1))
    for file in sorted((folder / "rewards").glob("*.json")):
        judged = read_json(file)
        values = np.array(judged["rewards"])
        r = values[sides["model"]].reshape(-1, n)
        proposed = values[sides["proposal"]].reshape(-1, n) if there is not None else None
        ratio = None if log_q is None else log_p - log_q
        other = None if there is None or there_q is None else there - there_q
        one: dict[str, Any] = {
            "version": judged["version"],
            "mean": metrics.estimate(r.mean(1)),
            "cvar": cvar(r),
            "tail": tail(settings.eta, r, ratio, proposed, other),
            "curve": [
                tail(float(eta), r, ratio, proposed, other)
                for eta in np.quantile(r, np.linspace(0, 1, 17))
            ],
        }
        if log_p0 is not None:
            one["return"] = metrics.estimate((r - (log_p - log_p0) / settings.beta_kl).mean(1))
        found["rewards"][judged["name"]] = one
    return found


def _about(
    model: PreTrainedModel,
    prompts: Sequence[str],
    settings: TailSettings,
    proposal: PreTrainedModel | None,
    base: PreTrainedModel | None,
) -> dict[str, Any]:
    return {
        "settings": asdict(settings),
        "prompts": len(prompts),
        "texts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16],
        "model": asdict(ModelInfo.of(model)),
        "weights": {
            name: None if one is None else fingerprint(one)
            for name, one in (("model", model), ("proposal", proposal), ("base", base))
        },
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _begin(folder: Path, about: dict[str, Any]) -> None:
    file = folder / "tail.json"
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"{folder} is not empty and holds no measurement of a tail: give another folder"
            )
        write_atomically(file, json.dumps(about, indent=1) + "\n")
    elif differ := differences(read_json(file), about):
        raise ValueError(
            f"{folder} was made with other settings: {'; '.join(differ)}. Give the same ones, or another folder"
        )


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[list[int]],
    settings: TailSettings,
    folder: Path,
    proposal: PreTrainedModel | None,
    base: PreTrainedModel | None,
    progress: bool,
) -> None:
    """Writes what is missing of the samples, a batch of prompts of one side at a time."""
    file, n = folder / "samples.jsonl", settings.completions
    size = max(1, ROWS // n)
    others = {"log_p": model, "log_q": proposal, "log_p0": base}
    # of both sides in turn, so that what is there at any time stands for the whole
    todo = [
        (side, first)
        for first in range(0, len(encoded), size)
        for side in SIDES
        if side == "model" or proposal
    ]
    lines = whole_lines(file) if file.is_file() else []
    counts = [n * len(encoded[first : first + size]) for _, first in todo]
    done = int((np.cumsum(counts) <= len(lines)).sum())
    if lines:
        keep_lines(file, lines[: sum(counts[:done])])
    with progress_bar("sampling", progress) as bar:
        task = bar.add_task("sampling", total=sum(counts), completed=sum(counts[:done]))
        for (side, first), count in list(zip(todo, counts, strict=True))[done:]:
            ids = encoded[first : first + size]
            writer = model if side == "model" or proposal is None else proposal
            written = sample(
                writer, ids, n, settings.max_new_tokens, seed_of(settings.seed, side, first)
            )
            records: list[dict[str, Any]] = [
                {
                    "prompt": first + i // n,
                    "by": side,
                    "text": completion_text(tokenizer, ids[i // n], row),
                    "tokens": row,
                }
                for i, row in enumerate(written)
            ]
            for key, reader in others.items():
                if reader is not None:
                    with torch.no_grad():
                        found = log_probs(reader, ids, written).double().sum(1).tolist()
                    records = [
                        r | {key: round(value, 5)} for r, value in zip(records, found, strict=True)
                    ]
            append(file, records)
            bar.advance(task, count)


def _score(
    reward: Reward, prompts: Sequence[str], records: list[dict[str, Any]], folder: Path
) -> None:
    """Writes down what all samples are worth, unless that has been done."""
    file = folder / "rewards" / (hashlib.sha256(reward.name.encode()).hexdigest()[:12] + ".json")
    if file.is_file():
        there = read_json(file)
        if there["version"] == reward.version and len(there["rewards"]) == len(records):
            return
    found = reward([prompts[r["prompt"]] for r in records], [r["text"] for r in records]).tolist()
    write_atomically(
        file, json.dumps({"name": reward.name, "version": reward.version, "rewards": found}) + "\n"
    )


def _report(found: dict[str, Any], plotted: bool) -> str:
    about = found["about"]
    s = about["settings"]
    sides = (
        "the model"
        if about["weights"]["proposal"] is None
        else "the model, and as many by the proposal"
    )
    lines = [
        f"# The tail of {about['model']['id'] or about['model']['model_type']}",
        "",
        f"{about['prompts']} prompts, {s['completions']} completions of each by {sides}, of at most {s['max_new_tokens']} tokens"
        f"{', chat template' if s['chat'] else ''}, at temperature 1 with nothing truncated, seed {s['seed']}. Bad is a reward "
        f"below {s['eta']:g}. In brackets 95 % intervals: of P(bad) for these prompts, of all else over prompts.",
        "",
        *(["![P(r < eta) against eta](tail.png)", ""] if plotted else []),
        "| reward | P(bad): plain | importance sampling | both | effective bad samples | mean reward | "
        f"mean of the worst {WORST:.0%} | return |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found["rewards"].items():
        measured: Tail = one["tail"]
        shares = (measured.plain, measured.importance, measured.combined)
        worth = (one["mean"], one["cvar"], one.get("return"))
        effective = measured.effective_samples
        cells = [
            *(_cell(share, ".3g") for share in shares),
            "–" if effective is None else f"{effective:.1f}",
            *(_cell(value, ".2f") for value in worth),
        ]
        lines.append(f"| {name} {one['version']} | {' | '.join(cells)} |")
    rest = {
        "tokens a completion": ("tokens", ".1f"),
        "distinct-2": ("distinct_2", ".3f"),
        "KL to the base, nats a completion": ("kl", ".3f"),
        "perplexity under the base": ("perplexity", ".2f"),
    }
    lines += [
        "",
        *(
            f"- {title}: {_cell(found[key], form)}"
            for title, (key, form) in rest.items()
            if key in found
        ),
        "",
    ]
    if about["weights"]["base"] is not None:
        lines += [
            f"Return: the mean of r - (log p - log p0) / {s['beta_kl']:g}, p0 being the base.",
            "",
        ]
    return "\n".join(lines)


def _cell(value: Estimate | None, form: str) -> str:
    if value is None:
        return "–"
    ends = f" [{value.low:{form}}, {value.high:{form}}]" if math.isfinite(value.low) else ""
    return f"{value.value:{form}}{ends}"


def _plot(folder: Path, found: dict[str, Any]) -> bool:
    """Draws P(r < eta) against eta for each reward; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(4.2 * len(found["rewards"]), 3.4), layout="constrained")
    for axes, (name, one) in zip(
        figure.subplots(1, len(found["rewards"]), squeeze=False)[0],
        found["rewards"].items(),
        strict=True,
    ):
        curves: list[Tail] = one["curve"]
        places = [each.eta for each in curves]
        for part, colour in (("plain", "tab:blue"), ("combined", "tab:orange")):
            values = [getattr(each, part) for each in curves]
            if values[0] is None:
                continue
            # on a logarithmic scale 0 has no place: what is left of it is the upper end of the interval
            axes.plot(places, [v.value or math.nan for v in values], color=colour, label=part)
            axes.fill_between(
                places,
                [max(v.low, 1e-9) for v in values],
                [v.high for v in values],
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
        axes.axvline(one["tail"].eta, color="grey", linewidth=1, linestyle=":")
        smallest = min(
            (v.high for v in (each.best for each in curves) if math.isfinite(v.high)), default=1e-6
        )
        axes.set(
            yscale="log", ylim=(smallest / 10, 1.2), xlabel="eta", ylabel="P(r < eta)", title=name
        )
        axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(folder / "tail.png", picture.getvalue())
    return True
