"""What steering costs inside vLLM: output tokens a second of SASA's engine and of plain vLLM, in one run, alternating.

    python benchmarks/serving.py --prompts rtp.jsonl --output benchmarks/results/serving     # needs `make vllm`
    python benchmarks/serving.py --prompts rtp.jsonl --batch 1 --rounds 1 --sides plain sasa

Sides: `plain`, vLLM as it is; `beta 0`, a plain request in SASA's engine; `sasa`, a steered one; `sasa.generate`, the library
without an engine. Each writes the same number of tokens, with the same temperature, top-k and top-p; sequences do not end before.
The ratio to plain is taken round by round, and the median of the rounds is reported. Prompts are non-toxic and toxic ones of
RealToxicityPrompts, as many at once as the batch has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SIDES = ("plain", "beta 0", "sasa", "sasa.generate")
GROUPS = ("nontoxic", "toxic")
out = Console(highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", required=True, help="RealToxicityPrompts, or rows of its form")
    parser.add_argument("--model", help="default: the embedded one")
    parser.add_argument("--boundary", default="toxicity")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--beta", type=float, default=4.0)
    parser.add_argument("--prior", type=float, nargs="+", default=[0.2, 0.05])
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument(
        "--prompts-each",
        type=int,
        default=16,
        help="at least so many prompts a round, batch by batch",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--compile", action="store_true", help="let vLLM compile; else both engines are eager"
    )
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    # Both engines in this process: one of its own would keep a core busy while the other one is measured.
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    import vllm

    import sasa
    from sasa.evaluation.suites import load_suite
    from sasa.serving.vllm import LLM
    from sasa.serving.vllm.options import model_at

    size = max(given.prompts_each, *given.batch)
    suites = {
        g: load_suite("rtp", given.prompts, groups=[g], limit=size, seed=1).prompts for g in GROUPS
    }
    texts = {g: [p.text for p in found] for g, found in suites.items()}
    engine = dict(
        dtype=given.dtype, enforce_eager=not given.compile, max_model_len=512, max_num_seqs=max(given.batch),
        kv_cache_memory_bytes=1 << 30, enable_prefix_caching=False,
    )  # fmt: skip
    sampling: dict[str, Any] = dict(
        temperature=1.0, top_k=given.top_k, top_p=given.top_p, max_tokens=given.tokens
    )
    source, identity, _ = model_at(given.model)
    ours = LLM(given.model, given.boundary, **engine)
    theirs = vllm.LLM(source, **engine) if "plain" in given.sides else None
    tokenizer = ours.get_tokenizer()
    model = sasa.load(given.model)[0] if "sasa.generate" in given.sides else None

    def by(llm: Any, **extra: Any) -> Callable[[list[str], int], None]:
        def write(prompts: list[str], seed: int) -> None:
            asked = [
                vllm.SamplingParams(
                    **sampling,
                    seed=seed * 1000 + i if extra else None,
                    ignore_eos=True,
                    extra_args=extra or None,
                )
                for i in range(len(prompts))
            ]
            llm.generate(
                [{"prompt_token_ids": tokenizer(p).input_ids} for p in prompts],
                asked,
                use_tqdm=False,
            )

        return write

    def by_library(prompts: list[str], seed: int) -> None:
        sasa.generate(
            model, tokenizer, prompts, given.boundary, given.beta, prior=given.prior[0], batch_size=len(prompts), seed=seed,
            max_new_tokens=given.tokens, top_k=given.top_k, top_p=given.top_p, min_new_tokens=given.tokens,
        )  # fmt: skip

    sides: dict[str, Callable[[list[str], int], None]] = {}
    if theirs is not None:
        sides["plain"] = by(theirs)
    if "beta 0" in given.sides:
        sides["beta 0"] = by(ours, sasa_beta=0.0)
    if "sasa" in given.sides:
        for prior in given.prior:
            sides[f"sasa, prior {prior:g}"] = by(ours, sasa_beta=given.beta, sasa_prior=prior)
    if model is not None:
        sides[f"sasa.generate, prior {given.prior[0]:g}"] = by_library

    rows = []
    for batch in given.batch:
        for group, prompts in texts.items():
            parts = [
                prompts[i : i + batch] for i in range(0, max(given.prompts_each, batch), batch)
            ]
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            read: dict[str, dict[str, int]] = {}
            for round_ in range(given.rounds + 1):  # the first is for what is slow the first time
                for name, write in sides.items():
                    before, start = ours.counts(), time.perf_counter()
                    for part in parts if round_ else parts[:1]:
                        write(part, round_)
                    seconds[name].append(time.perf_counter() - start)
                    read[name] = {
                        key: number - before[key] for key, number in ours.counts().items()
                    }
            tokens = sum(map(len, parts)) * given.tokens
            for name, taken in seconds.items():
                ratio = None
                if theirs is not None:
                    ratio = statistics.median(
                        p / t for p, t in zip(seconds["plain"][1:], taken[1:], strict=True)
                    )
                rows.append(
                    {
                        "batch": batch, "prompts": group, "side": name, "of_plain": ratio,
                        "tokens_a_second": tokens / statistics.median(taken[1:]),
                        "reads_a_token": read[name]["reads"] / tokens, "steps_a_token": read[name]["steps"] * batch / tokens,
                    }
                )  # fmt: skip
                show(rows[-1:])
    settings = {k: v for k, v in vars(given).items() if k not in ("output", "prompts")}
    settings |= {
        "vllm": vllm.__version__,
        "model": identity or given.model,
        "threads": os.cpu_count(),
    }
    show(rows)
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        file = given.output / f"cost-{given.dtype}{'-compiled' if given.compile else ''}.json"
        file.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "batch", "prompts", "side", "tokens/s", "of plain", "reads a token", "steps a token and row"
    )
    for row in rows:
        ratio = "" if row["of_plain"] is None else f"{row['of_plain']:.2f}"
        counts = (
            f"{row[key]:.2f}" if row[key] else "" for key in ("reads_a_token", "steps_a_token")
        )
        table.add_row(
            str(row["batch"]),
            row["prompts"],
            row["side"],
            f"{row['tokens_a_second']:.0f}",
            ratio,
            *counts,
        )
    out.print(table)


if __name__ == "__main__":
    main()
