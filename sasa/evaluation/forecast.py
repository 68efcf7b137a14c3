"""Checks before a run: methods that cannot be used, and how long the others will take."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sasa.decoding.prompts import encode_prompts
from sasa.evaluation.likelihood import negative_log_likelihood
from sasa.evaluation.run import Run
from sasa.evaluation.stages import stage_bar
from sasa.evaluation.world import Method, World
from sasa.models.states import context_window


@dataclass(frozen=True)
class Forecast:
    """Completions that are missing, and the seconds that they will take."""

    completions: int
    seconds: float


def check_methods(run: Run, methods: dict[str, Method], world: World) -> None:
    """Raises ValueError if a method cannot be used on the run's prompts, before any work."""
    for error in refusals(run, methods, world).values():
        raise ValueError(error)


def refusals(run: Run, methods: dict[str, Method], world: World) -> dict[str, str]:
    """The methods that cannot be used on the run's prompts, each with the reason."""
    longest = max(map(len, run.encoded_prompts(world.model, world.tokenizer)))
    window, room = context_window(world.model), world.settings.max_new_tokens
    reasons: dict[str, str] = {}
    for name, method in methods.items():
        if world.engine is not None and not method.served:
            reasons[name] = f"method {name}: an engine cannot write it, but plain and sasa alone"
            continue
        try:
            method.check(world)
            extra = method.extra_tokens(world)
        except ValueError as error:
            reasons[name] = f"method {name}: {error}"
            continue
        if window is not None and longest + extra + room > window:
            reasons[name] = (
                f"method {name} puts {extra} tokens before a prompt, of which the longest has "
                f"{longest}: with max_new_tokens={room} that is beyond the model's context window "
                f"of {window}"
            )
    return reasons


def forecast(
    run: Run, methods: dict[str, Method], world: World, *, progress: bool = False
) -> dict[str, Forecast]:
    """The remaining work of each method, and under `likelihoods` that of reading all of them.

    Each method completes one batch of middling length, which is thrown away.
    """
    batches = run.batches
    texts = [prompt.text for prompt in batches[len(batches) // 2]]
    prompts = encode_prompts(
        world.model, world.tokenizer, texts, world.first.embedding, world.settings.chat, 0
    )
    forecasts: dict[str, Forecast] = {}
    reading = 0.0
    with stage_bar(progress) as bar:
        task = bar.add_task("trying each method", total=len(methods))
        for name, method in methods.items():
            left = len(batches) - run.whole_batches(run.file(name))
            method(world, texts[:1], 0)  # the first call is slower
            start = time.perf_counter()
            rows = method(world, texts, 0)
            middle = time.perf_counter()
            negative_log_likelihood(world.model, prompts, [c.tokens for row in rows for c in row])
            reading += left * (time.perf_counter() - middle)
            count = min(left * run.batch_size, len(run.prompts)) * run.completions
            forecasts[name] = Forecast(count, left * (middle - start))
            bar.advance(task)
    total = sum(each.completions for each in forecasts.values())
    return forecasts | {"likelihoods": Forecast(total, reading)}
