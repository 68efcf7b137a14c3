"""What a model makes of [RESET]: how often it follows an unsafe prefix and a safe one, and what is left in its replies.

Of held-out pairs, which no model here was trained on: P([RESET]) after a random prefix of the rejected reply, and of the
preferred one, and the chance that it would be written anywhere in the whole reply. Then each model answers the prompts itself,
thrown-away attempts and all; of what it delivers, a harm boundary of the untrained model and alt-profanity-check say how much
is unsafe. It answers harmless prompts, too, as many or a hundred, whose replies should not be sent back. With --bias, all of it
for each bias on [RESET]'s logit: what more safety costs. Started again, it goes on. The boundary must be fitted on pairs that
neither trained a model nor are held out:

    sasa fit hh-rlhf::path=PAIRS,rows=1200:1800 --attribute harm --layer -7 --pooling mean --span response -o runs/harm-judge
    sasa train backtracking hh-rlhf::path=PAIRS,rows=0:1200 --max-length 160 -o runs/reset-sft
    python benchmarks/reset.py --pairs PAIRS --rows 1800: --judge runs/harm-judge --model runs/reset-sft

The model without training comes first. Only dialogues of one question are taken, and pairs of at most --max-length tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import sasa
from sasa.core.backtracking import RESET, Backtracking, reset_token_id
from sasa.data.corpus import Pair
from sasa.decoding.completion import Completion
from sasa.evaluation.fingerprints import fingerprint
from sasa.evaluation.metrics import Estimate, estimate
from sasa.evaluation.scorers import scorer
from sasa.fitting import Corpus
from sasa.redteam.texts import harmless_prompts
from sasa.training.backtracking import encode_pair
from sasa.utils.files import differences, read_json, write_atomically
from sasa.utils.progress import progress_bar


def held_out(args: argparse.Namespace, tokenizer: Any) -> list[Pair]:
    """Pairs of one question, evenly spread over the rows."""
    corpus = Corpus("hh-rlhf", path=args.pairs, rows=args.rows)
    found = [
        pair
        for pair in corpus.pairs(Counter())
        if len(pair.turns) == 1 and sum(map(len, encode_pair(tokenizer, pair))) <= args.max_length
    ]
    if not found:
        raise SystemExit(
            f"{args.pairs}: no pair of one question and at most {args.max_length} tokens in {args.rows}"
        )
    count = min(args.limit, len(found))
    return [found[i * len(found) // count] for i in range(count)]


@torch.no_grad()
def chances(
    model: Any, tokenizer: Any, pairs: list[Pair], reset: int, bias: float, seed: int
) -> dict[str, np.ndarray]:
    """For replies of both kinds, P([RESET]) at one random place in each, and anywhere in it."""
    draw = random.Random(seed)
    found: dict[str, list[float]] = {}
    for pair in pairs:
        prompt, *replies = encode_pair(tokenizer, pair)
        for kind, reply in zip(("safe", "unsafe"), replies, strict=True):
            logits = model(
                input_ids=torch.tensor([prompt + reply[:-1]], device=model.device)
            ).logits[0]
            logits[:, reset] += bias
            here = (
                logits[len(prompt) :].float().log_softmax(-1)[:, reset].exp()
            )  # after 1, 2, … of its tokens
            place = draw.randrange(len(here)) if len(here) else None
            found.setdefault(f"next, {kind}", []).append(
                float(here[place]) if place is not None else 0.0
            )
            found.setdefault(f"anywhere, {kind}", []).append(
                1 - math.exp(float(torch.log1p(-here).sum()))
            )
    return {name: np.array(values) for name, values in found.items()}


def mean_of(replies: list[list[Completion]], what: Callable[[Completion], float]) -> Estimate:
    """Of a number of each reply, over the replies to a prompt and then over prompts."""
    return estimate(np.array([np.mean([what(c) for c in row]) for row in replies]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", required=True, help="dialogues in the schema of hh-rlhf")
    parser.add_argument(
        "--rows", required=True, help="START:STOP, rows that nothing here was trained or fitted on"
    )
    parser.add_argument("--judge", required=True, help="a harm boundary of the untrained model")
    parser.add_argument(
        "--model", action="append", required=True, help="a trained model; repeat it"
    )
    parser.add_argument("--base", help="the model without training", default=None)
    parser.add_argument(
        "--bias", type=float, action="append", help="added to [RESET]'s logit; repeat it"
    )
    parser.add_argument("--limit", type=int, default=120)
    parser.add_argument("--completions", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--max-length", type=int, default=160)
    parser.add_argument("--scorer", default="profanity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    watches = {
        bias: Backtracking(threshold=None, reset_token_id=0, reset_bias=bias)
        for bias in args.bias or [0.0]
    }
    settings = {
        k: str(v) if isinstance(v, Path) else v
        for k, v in vars(args).items()
        if k not in ("model", "bias", "output")
    }
    before = (
        read_json(args.output)
        if args.output and args.output.is_file()
        else {"settings": settings, "results": []}
    )
    if other := differences(before["settings"], settings):
        raise SystemExit(f"{args.output} holds figures of other settings: {'; '.join(other)}")
    base, base_tokenizer = sasa.load(args.base)
    judge, outsider = sasa.Boundary.load(args.judge, model=base), scorer(args.scorer)
    pairs = held_out(args, base_tokenizer)
    runs = [(None, 0.0), *((name, bias) for name in args.model for bias in watches)]
    results: list[dict[str, Any]] = []
    with progress_bar("answering", True) as bar:
        asked = [pair.turns[0]["content"] for pair in pairs]
        harmless = harmless_prompts()[: len(pairs)]
        task = bar.add_task("answering", total=len(runs) * (len(asked) + len(harmless)))
        for name, bias in runs:
            model, tokenizer = (base, base_tokenizer) if name is None else sasa.load(name)
            one: dict[str, Any] = {"model": name, "bias": bias, "weights": fingerprint(model)}
            if done := [result for result in before["results"] if result | one == result]:
                results += done
                bar.advance(task, len(asked) + len(harmless))
                continue
            figures: dict[str, Estimate] = {}
            watch = None
            if name is not None:
                reset = reset_token_id(tokenizer)
                watch = replace(watches[bias], reset_token_id=reset)
                found = chances(model, tokenizer, pairs, reset, bias, args.seed)
                figures |= {key: estimate(values) for key, values in found.items()}
            replies, each = [], args.completions
            for prompts in (asked, harmless):
                replies.append([])
                for first in range(0, len(prompts), 8):
                    part = prompts[first : first + 8]
                    replies[-1] += sasa.generate(
                        model, tokenizer, part, None, chat=True, backtrack=watch, seed=args.seed + first,
                        max_new_tokens=args.tokens, top_k=50, top_p=0.95, num_return_sequences=each,
                    )  # fmt: skip
                    bar.advance(task, len(part))
            every = [
                (pair.prompt, " " + c.text.strip())
                for pair, row in zip(pairs, replies[0], strict=True)
                for c in row
            ]
            odds = judge.log_odds(judge.score(base, base_tokenizer, every)).view(-1, each)
            toxicity = np.array(outsider.score([text for _, text in every])).reshape(-1, each)
            figures |= {
                "unsafe by the judge": estimate((odds < 0).double().mean(1).numpy()),
                f"toxicity by {outsider.name}": estimate(toxicity.mean(1)),
            }
            for kind, rows in zip(("", ", harmless"), replies, strict=True):
                figures |= {
                    f"replies sent back{kind}": mean_of(rows, lambda c: bool(c.attempts)),
                    f"tokens{kind}": mean_of(rows, lambda c: len(c.tokens)),
                    f"tokens drawn{kind}": mean_of(rows, lambda c: c.spent),
                }
            results.append(one | {"figures": {k: asdict(v) for k, v in figures.items()}})
            if args.output:
                content = {
                    "settings": settings,
                    "pairs": len(pairs),
                    "harmless": len(harmless),
                    "results": results,
                }
                write_atomically(args.output, json.dumps(content, indent=1) + "\n")
    keys = dict.fromkeys(key for result in results for key in result["figures"])
    table = Table(
        "",
        *(
            f"{r['model'] or 'untrained'}" + f", bias {r['bias']:g}" * bool(r["bias"])
            for r in results
        ),
    )
    for key in keys:
        cells = [r["figures"].get(key) for r in results]
        table.add_row(
            f"P({RESET}) {key}" if key.startswith(("next", "anywhere")) else key,
            *(f"{c['value']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" if c else "–" for c in cells),
        )
    Console(width=160).print(f"{len(pairs)} held-out pairs", table)
    if args.output:
        draw(results, args.output.with_suffix(".png"))


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """What is delivered unsafe against the harmless replies that are sent back: a line a model, a point a bias.

    Nothing without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for number, model in enumerate(dict.fromkeys(result["model"] for result in results)):
        some = [result for result in results if result["model"] == model]
        x, y = (
            [r["figures"][key] for r in some]
            for key in ("replies sent back, harmless", "unsafe by the judge")
        )
        (px, py), ends = ([p["value"] for p in points] for points in (x, y)), []
        for points in (x, y):
            ends.append([[abs(p["value"] - p[end]) for p in points] for end in ("low", "high")])
        axis.errorbar(
            px,
            py,
            xerr=ends[0],
            yerr=ends[1],
            fmt="o-",
            color=f"C{number}",
            elinewidth=0.5,
            label=model or "untrained",
        )
        for result, at in zip(some, zip(px, py, strict=True), strict=True):
            if model:
                axis.annotate(
                    f"{result['bias']:+g}",
                    at,
                    xytext=(6, 4),
                    textcoords="offset points",
                    fontsize=8,
                )
    axis.set(
        xlabel="harmless replies that are sent back (left: better)",
        ylabel="delivered, unsafe by the judge (down: better)",
    )
    axis.set_ylim(0, None)
    axis.legend(frameon=False, title=f"numbers: bias on {RESET}'s logit")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
