"""What a token costs: plain generate(), the look-ahead decoder, the logits processor and the reference, in one run.

    python benchmarks/speed.py                                   # the default model, batch 1, K 10 and 50, prompt 32
    python benchmarks/speed.py --batch 1 8 25 --candidates 5 10 20 50 --prompt 32 512
    python benchmarks/speed.py --random-weights config.json --dtype bfloat16 --device cuda

The sides alternate, and the ratio to plain is taken round by round: the median of the rounds is reported. Every side writes
exactly the same number of tokens. Plain samples with the same top-k; it does no other work than usual.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessorList, PreTrainedModel

import sasa
from sasa.boundary import ModelInfo

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import reference


def load(args: argparse.Namespace) -> tuple[PreTrainedModel, sasa.Boundary]:
    """The model, and its bundled boundary or, for random weights, a random one."""
    if not args.random_weights:
        model, _ = sasa.load(args.model, args.device, args.dtype)
        return model, sasa.Boundary.load("toxicity", model=model)
    config = AutoConfig.from_pretrained(args.random_weights)
    device = args.device or str(sasa.models.best_device())
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype or "bfloat16")).eval()
    info = ModelInfo.of(model)
    weight = torch.randn(info.hidden_size, device=device) / info.hidden_size**0.5
    return model, sasa.Boundary(weight, 0.0, sasa.EmbeddingSpec(pooling="mean"), info)


def sides(
    model: PreTrainedModel, boundary: sasa.Boundary, ids: Tensor, k: int, tokens: int, names: list[str]
) -> dict[str, Callable[[], object]]:
    """What is timed: a function without arguments for each side."""
    settings = dict(do_sample=True, top_k=k, top_p=1.0, max_new_tokens=tokens, min_new_tokens=tokens)
    settings |= dict(attention_mask=torch.ones_like(ids), pad_token_id=0)

    def processor() -> object:
        steer = sasa.SASALogitsProcessor(model, boundary, 1.0, top_k=k)
        return model.generate(ids, logits_processor=LogitsProcessorList([steer]), **settings)

    def rereading() -> object:  # the definition, for one row, one token in place of all
        scores = reference.logits(model, ids[0].tolist())
        return reference.reweighted(model, boundary, 1.0, ids[0].tolist(), scores, [], top_k=k)

    every = {
        "plain": lambda: model.generate(ids, **settings),
        "decoder": lambda: model.generate(ids, custom_generate=sasa.SASADecoder(boundary, 1.0), **settings),
        "processor": processor,
        "reference": rereading,
    }
    return {name: every[name] for name in names}


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds, and the peak of memory beyond what was there before, in MB (CUDA only)."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / 2**20
    return time.perf_counter() - start, float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--prompt", type=int, nargs="+", default=[32], help="tokens")
    parser.add_argument("--tokens", type=int, default=24, help="written by each side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", default=["plain", "decoder", "processor"], help="and: reference")
    parser.add_argument("--model")
    parser.add_argument("--random-weights", help="a config.json or a folder with one: its shape, no weights needed")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures, beside which goes a plot")
    args = parser.parse_args()
    if "plain" not in args.sides:
        parser.error("--sides must include plain: it is what all others are compared with")
    model, boundary = load(args)
    console, results = Console(), []
    table = Table("batch", "K", "prompt", "side", "ms a token", "tokens/s", "times plain", "memory, MB")
    for batch in args.batch:
        for prompt in args.prompt:
            ids = torch.randint(3, model.config.get_text_config().vocab_size, (batch, prompt), device=model.device)
            for k in args.candidates:
                runs = sides(model, boundary, ids, k, args.tokens, args.sides)
                for run in runs.values():
                    run()  # warm up
                rounds = [{name: timed(run, model.device) for name, run in runs.items()} for _ in range(args.rounds)]
                for name in runs:
                    count = 1 if name == "reference" else args.tokens
                    seconds = statistics.median(r[name][0] for r in rounds) / count
                    ratio = statistics.median(r[name][0] / count / (r["plain"][0] / args.tokens) for r in rounds)
                    memory = max(r[name][1] for r in rounds)
                    rows = 1 if name == "reference" else batch
                    results.append(
                        {"batch": batch, "k": k, "prompt": prompt, "side": name, "seconds_a_token": seconds}
                        | {"tokens_a_second": rows / seconds, "times_plain": ratio, "memory_mb": memory}
                    )
                    table.add_row(
                        *(str(batch), str(k), str(prompt), name, f"{seconds * 1e3:.1f}", f"{rows / seconds:.1f}"),
                        *(f"{ratio:.2f}", f"{memory:.0f}"),
                    )
    console.print(table)
    if args.output:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "settings": settings,
            "device": str(model.device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        args.output.write_text(json.dumps(about | {"results": results}, indent=1))
        plot(args.output.with_suffix(".png"), results)


def plot(path: Path, results: list[dict]) -> None:
    """Times plain over K, a line for each side, batch and prompt."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    lines: dict[tuple, list[tuple[int, float]]] = {}
    for r in results:
        if r["side"] not in ("plain", "reference"):
            lines.setdefault((r["side"], r["batch"], r["prompt"]), []).append((r["k"], r["times_plain"]))
    for (side, batch, prompt), points in lines.items():
        style = "-" if side == "decoder" else "--"
        axis.plot(
            *zip(*sorted(points), strict=True), style, marker="o", label=f"{side}, batch {batch}, prompt {prompt}"
        )
    axis.axhline(1, color="grey", linewidth=1, linestyle=":")
    axis.set(xlabel="candidates K", ylabel="time of a token, times plain generate()", ylim=(0, None))
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
