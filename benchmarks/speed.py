"""What a token costs: plain generate(), the look-ahead decoder, the logits processor and the reference, in one run.

    python benchmarks/speed.py                                   # the default model, batch 1, K 10 and 50, prompt 32
    python benchmarks/speed.py --batch 1 8 25 --candidates 5 10 20 50 --prompt 32 512
    python benchmarks/speed.py --profile                         # and where the time of a step goes
    python benchmarks/speed.py --random-weights meta-llama/Llama-3.1-8B --dtype bfloat16 --device cuda
    python benchmarks/speed.py --random-weights llama-8b --dtype bfloat16 --device cuda          # without a network
    python benchmarks/speed.py --sides plain decoder raw several --boundary toxicity --boundary threat
    python benchmarks/speed.py --candidates 10 50 0 --text toxic.txt          # prompts cut from a text of yours

Top-k 0 is the whole vocabulary, without top-p. `decoder` leaves truncation to generate()'s processors, as in a generate() call of
your own; `own` truncates by itself, as `sasa.generate` does on a CPU. The sides alternate, and the ratio to plain, or to raw, is
taken round by round: the median of the rounds is reported. Every side
writes exactly the same number of tokens, under the same top-k and top-p; with --top-p 1 every side has the same K, too. Memory is
the peak of all tensors that are made, beyond the weights. The floor of a step is what reading the weights and the cache once
takes, at the rate at which this machine copies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LogitsProcessorList,
    MistralConfig,
    PreTrainedModel,
)

import sasa
import sasa.decoding.lookahead.lookahead
from sasa.core.model_info import ModelInfo
from sasa.core.settings import BETA, PRIOR
from sasa.core.values import Boundaries
from sasa.decoding.loop import Decoding
from sasa.models.load import best_device

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import reference

ROOT = Path(__file__).parents[1]

COLOURS = {
    "decoder": "tab:blue",
    "processor": "tab:orange",
    "raw": "tab:green",
    "several": "tab:red",
    "compiled": "k",
}
SHAPES = {
    "llama-8b": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500000.0,
    ),
    "llama-1b": LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, head_dim=64,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500000.0,
        tie_word_embeddings=True,
    ),
    "sliding-3b": MistralConfig(
        vocab_size=32768, hidden_size=3072, intermediate_size=8192, num_hidden_layers=26, head_dim=128,
        num_attention_heads=24, num_key_value_heads=8, max_position_embeddings=8192, sliding_window=32,
    ),
    "tiny": LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
    ),
}  # fmt: skip


def load(args: argparse.Namespace) -> tuple[PreTrainedModel, list[sasa.Boundary], Tensor]:
    """The model, its boundaries or, for random weights, a random one, and a long text's token ids."""
    if not args.random_weights:
        model, tokenizer = sasa.load(args.model, args.device, args.dtype)
        files = [args.text] if args.text else [ROOT / "README.md", ROOT / "benchmarks" / "NOTES.md"]
        text = "".join(file.read_text() for file in files)
        boundaries = [
            sasa.Boundary.load(name, model=model) for name in args.boundary or ["toxicity"]
        ]
        return model, boundaries, tokenizer(text, return_tensors="pt").input_ids[0]
    config = SHAPES.get(args.random_weights) or AutoConfig.from_pretrained(args.random_weights)
    device = args.device or str(best_device())
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, args.dtype or "bfloat16")
        ).eval()
    info = ModelInfo.of(model)
    weight = torch.randn(info.hidden_size) / info.hidden_size**0.5
    text = torch.randint(3, info.vocab_size, (4096,))
    return model, [sasa.Boundary(weight, 0.0, sasa.EmbeddingSpec(pooling="mean"), info)], text


def sides(
    model: PreTrainedModel,
    boundaries: list[sasa.Boundary],
    ids: Tensor,
    k: int,
    args: argparse.Namespace,
) -> dict[str, Callable[[], object]]:
    """What is timed: a function without arguments for each side."""
    tokens, boundary = args.tokens, boundaries[0]
    p = args.top_p if k else 1.0
    settings = dict(do_sample=True, top_k=k, top_p=p, max_new_tokens=tokens, min_new_tokens=tokens)
    settings |= dict(attention_mask=torch.ones_like(ids), pad_token_id=0)

    def processor() -> object:
        steer = sasa.SASALogitsProcessor(
            model, boundary, args.beta, prior=args.prior, top_k=k, top_p=p
        )
        return model.generate(ids, logits_processor=LogitsProcessorList([steer]), **settings)

    def rereading() -> object:  # the definition, for one row, one token in place of all
        scores = reference.logits(model, ids[0].tolist())
        limits = {"prior": args.prior, "top_k": k, "top_p": p}
        return reference.reweighted(
            model, boundary, args.beta, ids[0].tolist(), scores, [], **limits
        )

    def decoder(
        by: Boundaries = boundary, limits: dict[str, Any] | None = None, **more: Any
    ) -> Callable[[], object]:
        limits = limits or {}
        return lambda **asked: model.generate(
            ids,
            custom_generate=sasa.SASADecoder(by, args.beta, prior=args.prior, **more),
            **(settings | limits | asked),
        )

    every = {
        "plain": lambda: model.generate(ids, **settings),
        # compiled by transformers itself, where it does that: on a GPU
        "plain-compiled": lambda: model.generate(ids, cache_implementation="static", **settings),
        "decoder": decoder(),
        "own": decoder(limits={"top_k": 0, "top_p": 1.0}, top_k=k, top_p=p),
        "raw": decoder(value="raw"),
        "several": decoder([(each, 1.0) for each in boundaries]),
        "compiled": decoder(compiled=True),
        "processor": processor,
        "reference": rereading,
    }
    return {name: every[name] for name in args.sides}


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds; every run draws from the same seed."""
    torch.manual_seed(0)
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def times(rounds: list[dict[str, float]], side: str, other: str) -> float:
    """How many times as long as another side one takes, the median of the rounds."""
    return statistics.median(r[side] / r[other] for r in rounds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Peak(TorchDispatchMode):
    """The most memory that tensors made inside held at once, in bytes, on any device; what the model and others hold is not
    theirs.
    """

    def __init__(self, model: PreTrainedModel, others: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.seen = WeakIdKeyDictionary()
        self.now = self.most = 0
        for weight in [*model.parameters(), *model.buffers(), *others]:
            self.seen[weight.untyped_storage()] = True

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self.seen:
                storage = leaf.untyped_storage()
                self.seen[storage] = True
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._free, storage.nbytes())
        return out


def memory(run: Callable[[], object], model: PreTrainedModel) -> float:
    """Peak beyond the weights, in MB."""
    with Peak(model) as peak:
        run()
    return peak.most / 2**20


def survivors(model: PreTrainedModel, ids: Tensor, k: int, tokens: int, p: float) -> float:
    """Candidates a row and step, on average, that survive top-k and top-p in plain sampling."""
    torch.manual_seed(0)
    settings = dict(
        do_sample=True,
        top_k=k,
        top_p=p,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=0,
    )
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    return statistics.mean(
        float((scores > -torch.inf).sum(-1).float().mean()) for scores in out.scores
    )


def looked_at(model: PreTrainedModel, run: Callable[..., Any], tokens: int) -> dict[str, float]:
    """Passes over candidates a step, and candidates read a row and step, in the very run that is timed."""
    torch.manual_seed(0)
    out = run(return_dict_in_generate=True)
    if not isinstance(out, sasa.SASAOutput):
        return {}
    return {
        "passes": out.passes / tokens,
        "candidates_read": float(out.candidates_read.float().mean()) / tokens,
    }


def copy_rate(device: torch.device) -> float:
    """Bytes a second that this machine reads and writes in a large copy."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device).normal_()
    target = torch.empty_like(source)
    seconds = min(timed(lambda: target.copy_(source), device) for _ in range(5))
    return 2 * source.nbytes / seconds


def floor(model: PreTrainedModel, batch: int, length: int, rate: float) -> float:
    """Seconds that one reading of all weights and of the cache takes."""
    weights = sum(
        p.nbytes for p in model.parameters()
    )  # the embedding counts once: it is the head, or is hardly read
    if not model.config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.nbytes
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = torch.finfo(model.dtype).bits // 8
    return (weights + 2 * batch * length * config.num_hidden_layers * heads * width * size) / rate


@contextmanager
def sections() -> Iterator[None]:
    """Names the parts of a decoder's step for the profiler."""
    parts = {
        "1 the prompt": (Decoding, "prefill"),
        "2 look-ahead passes and values": (Decoding, "peek"),
        "3 layers above the boundary's, and the cache": (Decoding, "commit"),
        "4 next logits (head)": (sasa.decoding.lookahead.lookahead, "next_logits"),
        "5 noise and order of the candidates": (Decoding, "order"),
        "6 generate()'s processors": (LogitsProcessorList, "__call__"),
    }
    before = {label: getattr(*place) for label, place in parts.items()}

    def named(label: str, function: Callable) -> Callable:
        def run(*args: object, **kwargs: object) -> object:
            with record_function(label):
                return function(*args, **kwargs)

        return run

    try:
        for label, place in parts.items():
            setattr(*place, named(label, before[label]))
        yield
    finally:
        for label, place in parts.items():
            setattr(*place, before[label])


def show_profile(
    console: Console, run: Callable[[], object], device: torch.device, steps: int, title: str
) -> None:
    """Where a step's time goes: the decoder's own parts, and the operations below them."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with sections(), profile(activities=activities) as profiled:
        timed(run, device)
    events = profiled.key_averages()
    parts = sorted((e for e in events if e.key[:1].isdigit()), key=lambda e: e.key)
    table = Table("part of a step", "ms", title=title)
    for event in parts:
        table.add_row(event.key[2:], f"{event.cpu_time_total / 1e3 / steps:.2f}")
    console.print(table)
    table = Table(
        "operation",
        "calls",
        "ms on the CPU",
        "ms on the device",
        title=f"{title}: operations, a step",
    )
    for event in sorted(
        (e for e in events if e not in parts),
        key=lambda e: -(e.self_cpu_time_total + e.self_device_time_total),
    )[:12]:
        own = (event.self_cpu_time_total, event.self_device_time_total)
        table.add_row(
            event.key[:50], f"{event.count / steps:.0f}", *(f"{t / 1e3 / steps:.2f}" for t in own)
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--candidates",
        type=int,
        nargs="+",
        default=[10, 50],
        help="top-k; 0 is the whole vocabulary, without top-p",
    )
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--beta", type=float, default=BETA)
    parser.add_argument("--prior", type=float, default=PRIOR)
    parser.add_argument("--prompt", type=int, nargs="+", default=[32], help="tokens")
    parser.add_argument(
        "--text", type=Path, help="a long text to cut the prompts from, in the place of our README"
    )
    parser.add_argument("--tokens", type=int, default=32, help="written by each side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["plain", "decoder", "processor"],
        help="and: own (see above), raw (the paper's value), several (all boundaries at once), compiled, "
        "plain-compiled, reference",
    )
    parser.add_argument("--model")
    parser.add_argument(
        "--boundary", action="append", help="repeat it for several; all but `several` use the first"
    )
    parser.add_argument(
        "--random-weights",
        help=f"a model of this shape, no weights needed: {', '.join(SHAPES)}, or a config.json or Hub id",
    )
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--profile", action="store_true", help="and where the time of a step goes")
    parser.add_argument(
        "--output", type=Path, help="a JSON file for the figures, beside which goes a plot"
    )
    args = parser.parse_args()
    if "plain" not in args.sides:
        parser.error("--sides must include plain: it is what all others are compared with")
    if args.boundary and args.random_weights:
        parser.error(
            "--random-weights draws its own boundary: --boundary is for models that have one"
        )
    if 0 in args.candidates and {"processor", "raw", "reference"} & {*args.sides}:
        parser.error(
            "processor, raw and reference read every candidate: not of the whole vocabulary, --candidates 0"
        )
    model, boundaries, text = load(args)
    if len(text) < max(args.prompt) + max(args.batch):
        parser.error(f"--prompt is at most {len(text) - max(args.batch)} here")
    console, results = Console(width=None if sys.stdout.isatty() else 120), []
    rate = copy_rate(model.device)
    about = {
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()
        },
        "device": torch.cuda.get_device_name(model.device)
        if model.device.type == "cuda"
        else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "copy_gb_a_second": rate / 1e9,
        "results": results,
    }
    table = Table(
        *(
            "batch",
            "top-k",
            "K",
            "prompt",
            "side",
            "ms a token",
            "tokens/s",
            "times plain",
            "times raw",
        ),
        *("passes", "read", "times floor", "memory, MB"),
    )
    for batch, prompt in ((batch, prompt) for batch in args.batch for prompt in args.prompt):
        # Each row begins at another word of the text; several rows are several prompts.
        ids = torch.stack([text[row : row + prompt] for row in range(batch)]).to(model.device)
        for k in args.candidates:
            runs = sides(model, boundaries, ids, k, args)
            for run in runs.values():
                timed(run, model.device)  # warm up
            found = survivors(model, ids, k, args.tokens, args.top_p if k else 1.0)
            rounds = [
                {name: timed(run, model.device) for name, run in runs.items()}
                for _ in range(args.rounds)
            ]
            least = floor(model, batch, prompt + args.tokens // 2, rate)
            for name, run in runs.items():
                count, rows = (1, 1) if name == "reference" else (args.tokens, batch)
                seconds = statistics.median(r[name] for r in rounds) / count
                ratio = times(rounds, name, "plain") * args.tokens / count
                figures = {
                    "batch": batch,
                    "top_k": k,
                    "mean_candidates": found,
                    "prompt": prompt,
                    "side": name,
                }
                figures |= {
                    "seconds_a_token": seconds,
                    "tokens_a_second": rows / seconds,
                    "times_plain": ratio,
                }
                figures |= {"times_floor": seconds / least, "memory_mb": memory(run, model)}
                if name not in ("plain", "processor", "reference"):
                    figures |= looked_at(model, run, args.tokens)
                if "raw" in runs:
                    figures["times_raw"] = times(rounds, name, "raw") * args.tokens / count
                results.append(figures)
                table.add_row(
                    *(
                        str(batch),
                        str(k),
                        f"{found:.1f}",
                        str(prompt),
                        name,
                        f"{seconds * 1e3:.1f}",
                    ),
                    *(
                        f"{rows / seconds:.1f}",
                        f"{ratio:.2f}",
                        f"{figures['times_raw']:.3f}" if "raw" in runs else "",
                    ),
                    *(
                        f"{figures[f]:.2f}" if f in figures else ""
                        for f in ("passes", "candidates_read")
                    ),
                    *(f"{seconds / least:.2f}", f"{figures['memory_mb']:.1f}"),
                )
            if args.output:  # after each cell: a long run that is cut off has not been for nothing
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps(about, indent=1) + "\n")
            if args.profile:
                for name in ("plain", "decoder"):
                    show_profile(
                        console,
                        runs[name],
                        model.device,
                        args.tokens,
                        f"{name}, batch {batch}, top-k {k}",
                    )
    console.print(table)
    if args.output:
        plot(args.output.with_suffix(".png"), results)


def plot(path: Path, results: list[dict]) -> None:
    """Times plain over top-k, a panel for each batch size and a line for each side and prompt length."""
    from matplotlib.figure import Figure

    batches = sorted({r["batch"] for r in results})
    figure = Figure(figsize=(1.5 + 3.2 * len(batches), 4), layout="constrained")
    axes = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    for axis, batch in zip(axes, batches, strict=True):
        lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for r in results:
            if r["batch"] == batch and r["side"] not in ("plain", "reference"):
                lines.setdefault((r["side"], r["prompt"]), []).append(
                    (r["top_k"], r["times_plain"])
                )
        prompts = sorted({prompt for _, prompt in lines})
        for (side, prompt), points in lines.items():
            style = dict(color=COLOURS.get(side, "tab:grey"), marker="o")
            style["linestyle"] = "-" if prompt == prompts[0] else "--"
            axis.plot(*zip(*sorted(points), strict=True), **style, label=f"{side}, prompt {prompt}")
        axis.axhline(1, color="grey", linewidth=1, linestyle=":")
        axis.set(title=f"batch {batch}", xlabel="top-k", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("time of a token, times plain generate()")
    axes[-1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
