"""What the options name is loaded: boundaries, rewards and prompts."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sasa.core.settings import BUNDLED, DEFAULT_MODEL
from sasa.data.tables import KINDS, kind_of, local, open_table, read_lines, warn_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sasa.core.boundary import Boundary
    from sasa.evaluation.rewards import Reward
    from sasa.evaluation.scorers import Scorer


def dtype_of(model: PreTrainedModel) -> str:
    """The name of a model's dtype, as `--dtype` takes it."""
    return str(model.dtype).removeprefix("torch.")


def load_boundaries(
    names: list[str] | None, model: PreTrainedModel, strict: bool
) -> list[tuple[Boundary, float]]:
    """The boundaries of `--boundary`, each with its weight."""
    from sasa.core.values import load_terms

    return load_terms(names or [BUNDLED], model, strict, "--boundary")


def load_rewards(
    names: Iterable[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    boundary: str,
    chat: bool,
    strict: bool,
) -> list[Reward]:
    """The rewards of `--reward`; one that is a boundary's is read off the states of `model`."""
    from sasa.core.boundary import Boundary
    from sasa.evaluation.rewards import boundary_reward, reward, try_reward

    def of_boundary() -> Reward:
        loaded = Boundary.load(boundary, model=model, strict=strict)
        return boundary_reward(model, tokenizer, loaded, chat)

    rewards = []
    for name in names:
        rewards.append(reward(name, of_boundary))
        if name != "boundary":
            try_reward(rewards[-1])
    return rewards


def load_scorers(names: Iterable[str], *, try_them: bool = True) -> list[Scorer]:
    """Loads scorers by their names, each once; `try_them` has each score a text or two first."""
    from sasa.evaluation import scorers

    loaded = [scorers.scorer(name) for name in dict.fromkeys(names)]
    if try_them:
        for each in loaded:
            scorers.try_scorer(each)
    return loaded


def load_prompts(
    source: str,
    *,
    rows: str | None = None,
    groups: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Reads prompts of a file, or of RealToxicityPrompts if `source` is `rtp` or there are groups.

    Args:
        source: a .txt or .jsonl file, or `rtp`, from the Hub.
        rows: START:STOP, only these rows.
        groups: only these groups of RealToxicityPrompts, with commas between.
        limit: at most so many prompts, drawn at random by `seed`.
    """
    from sasa.data.corpus import parse_rows
    from sasa.evaluation.suites import load_suite

    part = parse_rows(rows) if rows else None
    if source == "rtp" or groups:
        path = None if source == "rtp" else source
        suite = load_suite("rtp", path, rows=part, groups=groups.split(",") if groups else None)
        prompts = [prompt.text for prompt in suite.prompts]
        if suite.skipped:
            reasons = [f"{count:,} rows {reason}" for reason, count in suite.skipped.items()]
            warn_once(f"{suite.source}: left out: {', '.join(reasons)}")
    else:
        prompts = read_prompts(Path(source))
        prompts = prompts[slice(*part)] if part else prompts
        if not prompts:
            raise ValueError(f"{source} has no rows {rows}")
    if limit is not None and limit < len(prompts):
        drawn = random.Random(seed).sample(range(len(prompts)), limit)
        prompts = [prompts[i] for i in sorted(drawn)]
    return prompts


def read_prompts(file: Path) -> list[str]:
    """Reads the prompts of a text file, one a line, or of a table's column `prompt`.

    Blank lines are left out; errors name the row.
    """
    if not local(file).is_file():
        raise FileNotFoundError(f"no prompts file at {file}")
    if kind_of(file) is None:
        if file.suffix.lower() not in (".txt", ""):
            raise ValueError(f"{file}: prompts come as .txt or {', '.join(KINDS)}")
        prompts = [line for _, line in read_lines(file) if line.strip()]
    else:
        table = open_table(file)
        if "prompt" in table.columns:
            table.require(["prompt"])
        prompts = [_prompt_of(row, f"{file}, row {number}") for number, row in table.rows()]
    if not prompts:
        raise ValueError(f"{file} holds no prompts")
    return prompts


def _prompt_of(row: dict[str, Any], place: str) -> str:
    """The prompt of a table's row, which may be a row of RealToxicityPrompts."""
    prompt = row.get("prompt")
    prompt = prompt.get("text") if isinstance(prompt, dict) else prompt
    if not isinstance(prompt, str):
        raise ValueError(
            f'{place}: expected {{"prompt": "…"}} or a RealToxicityPrompts row, got {", ".join(row)}'
        )
    if not prompt.strip():
        raise ValueError(f"{place}: the prompt is empty")
    return prompt


def named_base(model: str | None) -> str:
    """The name by which an adapter knows the model that it was trained on."""
    name = model or DEFAULT_MODEL
    return str(local(name).resolve()) if local(name).exists() else name
