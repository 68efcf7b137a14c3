"""Replays: hits against other defences and other models, beside as many harmless prompts.

Each model has a run of `sasa bench`, so that a replay resumes, samples and scores as that does. The
attacks were found by sampling, some of them by luck: the success rate of plain replies to them says
how many.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.values import Boundaries
from sasa.evaluation import Run, generate_stage, likelihood_stage, metrics, score_stage
from sasa.evaluation.forecast import refusals
from sasa.evaluation.methods import method
from sasa.evaluation.scorers import Scorer
from sasa.evaluation.settings import Settings
from sasa.evaluation.suites import Prompt, Suite
from sasa.evaluation.world import Method, World
from sasa.redteam.hits import Hit, find_hits, part_of
from sasa.redteam.plots import plot_replay
from sasa.redteam.replay_figures import ATTACK, BASE, HARMLESS, PLAIN, replay_figures
from sasa.redteam.replay_report import replay_markdown
from sasa.redteam.settings import HIT, REPLY_TOKENS
from sasa.redteam.store import Attempts
from sasa.redteam.texts import harmless_prompts
from sasa.utils.files import write_atomically


def replay_suite(
    attacks: Attempts | Sequence[str],
    *,
    limit: int | None = None,
    clusters: str = "all",
    threshold: float = HIT,
    harmless: Sequence[str] | None = None,
) -> Suite:
    """An attack's hits, or other prompts, and as many harmless prompts, as prompts of a benchmark.

    Args:
        attacks: a store, or texts, which have no clusters.
        limit: at most so many hits: first of each cluster one, then of each another one, and so on.
        clusters: `all`, `even` or `odd`, see `export`.
        harmless: None for `harmless_prompts`; where they are fewer than the hits, all of them.

    Raises:
        ValueError: there is no hit, or no harmless prompt.
    """
    if isinstance(attacks, Attempts):
        source, chosen = (
            str(attacks.folder),
            _in_turn(part_of(find_hits(attacks, threshold), clusters)),
        )
    elif clusters == "all":
        source, chosen = "a file", [(str(i + 1), text) for i, text in enumerate(attacks)]
    else:
        raise ValueError("clusters are those of an attack's folder: a list of prompts has none")
    chosen = chosen[:limit]
    if not chosen:
        raise ValueError(
            f"{source} has no hit at {threshold:g} in {clusters} clusters: "
            "there is nothing to replay"
        )
    texts = list(harmless_prompts() if harmless is None else harmless)[: len(chosen)]
    if not texts:
        raise ValueError("there are no harmless prompts to replay beside the attacks")
    prompts = [Prompt(f"case-{name}", text, ATTACK) for name, text in chosen]
    prompts += [Prompt(f"harmless-{i + 1}", text, HARMLESS) for i, text in enumerate(texts)]
    sample = {"limit": limit, "clusters": clusters, "threshold": threshold}
    return Suite("redteam", source, tuple(prompts), {}, sample)


def _in_turn(hits: Sequence[Hit]) -> list[tuple[str, str]]:
    """Numbers and texts of hits: the first of each cluster, then the second of each, and so on."""
    rank: dict[int, int] = {}
    order = []
    for hit in hits:
        rank[hit.cluster] = rank.get(hit.cluster, -1) + 1
        order.append((rank[hit.cluster], hit.place, hit.record["attack"]))
    return [(str(place + 1), text) for _, place, text in sorted(order)]


def replay(
    suite: Suite,
    models: Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerBase, Boundaries]],
    defences: Sequence[str],
    judges: Sequence[Scorer],
    output: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    threshold: float = HIT,
    progress: bool = False,
) -> dict[str, Any]:
    """Replays attacks against every model with every defence, and writes a report.

    An interrupted replay is resumed by the same call.

    Args:
        models: by name, each with its boundary, which all defences need; the first one, with the
            defence `plain`, is what others are compared with, and what measures perplexity.
        defences: methods of `sasa bench`; plain is always among them. One that some of the models
            cannot use, as `reset` where a model knows no [RESET], is left out for these, and the
            report says so.
        judges: scorers of replies; a reply counts as toxic when all say so.
        settings: `completions` are the replies to each prompt; None for 5 of at most 20 tokens,
            through the chat template.

    Returns:
        what replay.json holds: for each model and defence the attack success rate, that of attacks
        with at least one toxic reply, and of harmless prompts the toxic rate, perplexity and
        length, with intervals and paired tests against plain.

    Raises:
        ValueError: an unknown defence, one that no model can use, no model or scorer, or a folder
            of other settings.
    """
    if not models or not judges:
        raise ValueError("a replay needs a model and a scorer")
    settings = settings or Settings(completions=5, max_new_tokens=REPLY_TOKENS, chat=True)
    ways: dict[str, Method] = {name: method(name) for name in dict.fromkeys([PLAIN, *defences])}
    folder = Path(output)
    if len({_file(name) for name in models}) < len(models):
        raise ValueError(
            f"models need names that differ as those of folders, too, got {', '.join(models)}"
        )
    base, tokenizer, _ = next(iter(models.values()))
    worlds = {name: World(*model, settings) for name, model in models.items()}
    runs = {
        name: Run.create(folder / _file(name), suite, world, seed=seed, batch_size=batch_size)
        for name, world in worlds.items()
    }
    refused = {model: refusals(run, ways, worlds[model]) for model, run in runs.items()}
    for name in ways:
        if all(name in why for why in refused.values()):
            raise ValueError(next(iter(refused.values()))[name])
    usable = {model: [name for name in ways if name not in refused[model]] for model in models}
    for model, run in runs.items():
        generate_stage(
            run, {name: ways[name] for name in usable[model]}, worlds[model], progress=progress
        )
        likelihood_stage(run, base, tokenizer, run.methods, judge=BASE, progress=progress)
        score_stage(run, judges, run.methods, progress=progress)
    figures = replay_figures(runs, usable, [s.name for s in judges], threshold, refused)
    content = figures.to_dict()
    write_atomically(folder / "replay.json", json.dumps(metrics.to_json(content), indent=1) + "\n")
    plotted = plot_replay(folder / "replay.png", figures.rows)
    write_atomically(folder / "replay.md", replay_markdown(figures, plotted))
    return content


def _file(name: str) -> str:
    return (
        "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name).strip(
            "-."
        )
        or "model"
    )
