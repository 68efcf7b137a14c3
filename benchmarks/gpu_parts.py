"""The parts of benchmarks/gpu.py: each by itself, in a process of its own, writing down each figure as soon as it is there."""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import sasa
from sasa.core.settings import BETA, PRIOR
from sasa.decoding import passes
from sasa.decoding.lookahead import packs
from sasa.models.embedding import pad
from sasa.models.heads import token_ids
from sasa.utils.files import read_json, write_atomically

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import reference
import speed
import tiny

HERE = Path(__file__).parent
PROMPTS = [[5, 9, 200, 7, 77, 31, 9], [66, 3, 12], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29]]
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""How far a probability may be from the reference's; in bfloat16 reading together and alone rounds differently, and once a
token is another one, so are all behind it: what compares tokens is for the reader there, and does not fail.
"""


class Found:
    """What a part has found so far, in a file that is whole after every figure."""

    def __init__(self, file: Path, **about: Any) -> None:
        self.file, self.content = file, {"done": False, "results": [], **about}

    def add(self, **row: Any) -> None:
        self.content["results"].append(row)
        self._write()
        print(json.dumps(row), flush=True)

    def finish(self) -> None:
        self.content["done"] = True
        self._write()

    def _write(self) -> None:
        write_atomically(self.file, json.dumps(self.content, indent=1) + "\n")


# 1. Exactness


def exact(args: argparse.Namespace, found: Found) -> None:
    """Every fast path against the definition, on the default model and on tiny ones of all families.

    What matters most comes first: the default model, then tiny ones in float32, in bfloat16, and last what has to be compiled.
    """
    families = (
        ["llama", "gemma3", "bloom"] if args.tiny else [*tiny.FAMILIES, *tiny.REREAD_FAMILIES]
    )
    if args.tiny:  # generating code takes half a minute a model
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    names = [] if args.tiny else ["the default"]
    for only in (EAGER, COMPILED):
        for dtype in (torch.float32, torch.bfloat16):
            for name in [*names, *families]:
                if only is COMPILED and name not in ("the default", "llama", "gemma3"):
                    continue
                try:
                    model, boundary, prompts = subject(name, args.device, dtype)
                except (OSError, ImportError) as error:
                    found.add(
                        model=name,
                        dtype=str(dtype),
                        check="all",
                        error=f"not at hand: {error}"[:200],
                    )
                    continue
                checked(found, name, model, boundary, prompts, args, only)


def subject(name: str, device: str, dtype: torch.dtype) -> tuple[Any, Any, list[list[int]]]:
    """A model, a boundary for it, and prompts of several lengths."""
    if name != "the default":
        model = tiny.model(name).to(device, dtype)
        return model, tiny.boundary(model, pooling="mean", layer=1).to(device), PROMPTS
    model, tokenizer = sasa.load(device=device, dtype=dtype)
    texts = "So he said that", "My neighbour is", "I think this whole thing is"
    return (
        model,
        sasa.Boundary.load("toxicity", model=model).to(device),
        [tokenizer(text).input_ids for text in texts],
    )


def checked(
    found: Found, name: str, model: Any, boundary: Any, prompts: list[list[int]], args: argparse.Namespace,
    checks: dict[str, Callable[..., float]],
) -> None:  # fmt: skip
    """Runs checks of a model; one that fails or breaks off does not keep the others from running."""
    for check, function in checks.items():
        if (check == "backtracking" and model.dtype != torch.float32) or (
            check == "compiled" and not packs(model)
        ):
            continue
        row: dict[str, Any] = {
            "model": name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "check": check,
        }
        start = time.perf_counter()
        try:
            worst = function(model, boundary, prompts, args)
            told = check in ("lazy", "compiled") and model.dtype != torch.float32
            row |= {"worst": worst, "ok": told or worst <= TOLERANCE[model.dtype]}
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        found.add(**row, seconds=round(time.perf_counter() - start, 2))


def generated(
    model: Any, prompts: list[list[int]], seed: int | None, new: int = 8, **more: Any
) -> Any:
    ids, mask = pad(prompts, "left", model.device)
    torch.manual_seed(seed or 0)
    settings = (
        dict(do_sample=seed is not None, max_new_tokens=new, pad_token_id=0, top_k=0, top_p=1.0)
        | more
    )
    return model.generate(ids, attention_mask=mask, **settings)


def by_processor(
    model: Any, boundary: Any, prompts: list[list[int]], args: argparse.Namespace
) -> float:
    """The largest difference of a probability from the reference's."""
    ids, mask = pad(prompts, "left", model.device)
    scores = torch.stack([reference.logits(model, prompt) for prompt in prompts])
    got = sasa.SASALogitsProcessor(model, boundary, 1.5, top_k=8, attention_mask=mask)(ids, scores)
    return max(
        difference(
            got[row],
            reference.reweighted(
                model,
                boundary,
                1.5,
                prompt,
                scores[row],
                token_ids(model, "eos_token_id", None),
                top_k=8,
            ),
        )
        for row, prompt in enumerate(prompts)
    )


def by_decoder(
    model: Any, boundary: Any, prompts: list[list[int]], args: argparse.Namespace
) -> float:
    """The same at every step, along what was written; every text in a left-padded batch."""
    decoder = sasa.SASADecoder(boundary, 1.5, top_k=8)
    out = generated(
        model,
        prompts,
        1,
        custom_generate=decoder,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    width, worst = max(map(len, prompts)), 0.0
    for row, prompt in enumerate(prompts):
        text = list(prompt)
        for step, token in enumerate(out.sequences[row, width:].tolist()):
            if token in token_ids(model, "eos_token_id", None):
                break
            # From the scores as the batch has them: what rounds differently there is no affair of the look-ahead's.
            logits = out.logits[step][row].float()
            want = reference.reweighted(
                model, boundary, 1.5, text, logits, token_ids(model, "eos_token_id", None), top_k=8
            )
            worst = max(worst, difference(out.scores[step][row].float(), want))
            text.append(token)
    return worst


def difference(scores: Any, wanted: Any) -> float:
    return float((scores.float().softmax(-1) - wanted.float().softmax(-1)).abs().max())


def apart(one: Any, other: Any) -> float:
    """The share of rows that differ anywhere."""
    if one.shape != other.shape:
        return 1.0
    return float((one != other).any(1).float().mean())


@contextmanager
def everything() -> Iterator[None]:
    """Within, every candidate is read, whether it can win or not."""
    before, passes.share = passes.share, lambda *_: 10_000
    try:
        yield
    finally:
        passes.share = before


def lazily(model: Any, boundary: Any, prompts: list[list[int]], args: argparse.Namespace) -> float:
    """Rows in which reading lazily writes other tokens than reading every candidate, from the same seed."""
    decoder = sasa.SASADecoder(replace(boundary, scale=0.3), 2.0, top_k=40)
    few = generated(model, prompts, 3, custom_generate=decoder)
    with everything():
        return apart(few, generated(model, prompts, 3, custom_generate=decoder))


def compiled_passes(
    model: Any, boundary: Any, prompts: list[list[int]], args: argparse.Namespace
) -> float:
    """Rows in which the compiled path writes other tokens than the eager one, from the same seed."""
    one, other = (
        generated(
            model,
            prompts,
            3,
            custom_generate=sasa.SASADecoder(boundary, 2.0, top_k=8, top_p=0.9, compiled=compiled),
        )
        for compiled in (True, False)
    )
    return apart(one, other)


def going_back(
    model: Any, boundary: Any, prompts: list[list[int]], args: argparse.Namespace
) -> float:
    """Prompts whose histories differ from the reference's, greedily."""
    settings, wrong = sasa.Backtracking(threshold=0.6, safe_below=0.5, max_resets=3), 0
    for prompt in prompts:
        tokens, attempts, exhausted = reference.backtrack(
            model,
            boundary,
            1.0,
            prompt,
            8,
            token_ids(model, "eos_token_id", None),
            settings,
            top_k=20,
        )
        decoder = sasa.SASADecoder(boundary, 1.0, top_k=20, backtrack=settings)
        out = generated(
            model, [prompt], None, custom_generate=decoder, return_dict_in_generate=True
        )
        (history,) = out.histories
        same = history.tokens == tokens and history.exhausted == exhausted
        wrong += not (same and [(list(a.tokens), a.kept) for a in history.attempts] == attempts)
    return wrong / len(prompts)


EAGER = {
    "processor": by_processor,
    "decoder": by_decoder,
    "lazy": lazily,
    "backtracking": going_back,
}
COMPILED = {"compiled": compiled_passes}


# 2. Time


def timing(args: argparse.Namespace, found: Found) -> None:
    """Sides of benchmarks/speed.py on random weights, the cells that matter most first, until the time is over."""
    began = time.monotonic()
    shares = (
        {"tiny": 1.0} if args.tiny else {"llama-8b": 0.6, "llama-1b": 0.8, "sliding-3b": 1.0}
    )  # of it, by when
    for shape, share in shares.items():
        settings = argparse.Namespace(
            random_weights=shape, device=args.device, dtype="bfloat16", tokens=4 if args.tiny else 24, top_p=0.9,
            beta=BETA, prior=PRIOR, rounds=1 if args.tiny else 3, prompt=16 if args.tiny else 64,
        )  # fmt: skip
        model, boundaries, text = speed.load(settings)
        rate = speed.copy_rate(model.device)
        if "copy_gb_a_second" not in found.content:
            found.content["copy_gb_a_second"] = rate / 1e9
        for batch, k, sides in cells(args, shape):
            if time.monotonic() - began > share * args.seconds:
                found.add(
                    shape=shape, batch=batch, top_k=k, sides=sides, error="not reached in the time"
                )
                continue
            try:
                cell(found, shape, model, boundaries, text, rate, batch, k, sides, settings)
            except Exception as error:
                found.add(
                    shape=shape,
                    batch=batch,
                    top_k=k,
                    sides=sides,
                    error=f"{type(error).__name__}: {error}"[:300],
                )
        del model, boundaries
        if args.device == "cuda":
            torch.cuda.empty_cache()


def cells(args: argparse.Namespace, shape: str) -> list[tuple[int, int, list[str]]]:
    """Batch, top-k and sides, in the order of interest."""
    eager, both = (
        ["plain", "decoder", "processor"],
        ["plain", "plain-compiled", "decoder", "compiled"],
    )
    if args.tiny:
        return [(1, 10, eager), (2, 0, eager[:2])]
    few = [(1, 50, both), (25, 50, eager), (64, 50, eager), (1, 10, eager), (1, 0, eager[:2])]
    more = [
        (8, 50, eager),
        (25, 10, eager),
        (64, 10, eager),
        (8, 0, eager[:2]),
        (25, 0, eager[:2]),
        (64, 0, eager[:2]),
    ]
    return (
        [*few, *more, (8, 10, eager), (25, 50, both)] if shape == "llama-8b" else [*few, *more[:2]]
    )


def cell(
    found: Found, shape: str, model: Any, boundaries: list[Any], text: Any, rate: float, batch: int, k: int,
    sides: list[str], settings: argparse.Namespace,
) -> None:  # fmt: skip
    settings = argparse.Namespace(**vars(settings), sides=sides)
    ids = torch.stack([text[row : row + settings.prompt] for row in range(batch)]).to(model.device)
    runs = speed.sides(model, boundaries, ids, k, settings)
    for run in runs.values():
        speed.timed(run, model.device)  # warms up, and compiles
    rounds = [
        {name: speed.timed(run, model.device) for name, run in runs.items()}
        for _ in range(settings.rounds)
    ]
    least = speed.floor(model, batch, settings.prompt + settings.tokens // 2, rate)
    for name, run in runs.items():
        seconds = sorted(r[name] for r in rounds)[len(rounds) // 2] / settings.tokens
        row = {"shape": shape, "batch": batch, "top_k": k, "side": name, "ms_a_step": seconds * 1e3}
        row |= {"times_plain": speed.times(rounds, name, "plain"), "floor_ms": least * 1e3}
        if "plain-compiled" in runs:
            row["times_plain_compiled"] = speed.times(rounds, name, "plain-compiled")
        if name not in ("plain", "plain-compiled", "processor"):
            row |= speed.looked_at(model, run, settings.tokens)
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            run()
            row["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
        found.add(**row)


# 3. A fit

TEXTS = 20_000
"""Of the fit: about a million tokens, of which an 8B model reads 30,000 a second on an H100 at half its peak."""


def fit(args: argparse.Namespace, found: Found) -> None:
    """A fit on made-up texts at the shape of an 8B model: how much of it is the model's own forward passes."""
    from fit_speed import share_of_forward

    from sasa.fitting import Corpus, Recipe

    settings = argparse.Namespace(
        random_weights="tiny" if args.tiny else "llama-8b", device=args.device, dtype="bfloat16"
    )
    model, _, _ = speed.load(settings)
    draw, file = random.Random(0), found.file.parent / "texts.csv"
    words = [
        "calm",
        "kind",
        "river",
        "stone",
        "XQZ",
        "table",
        "walks",
        "green",
        "slow",
        "tree",
        "old",
        "ZZX",
    ]
    with file.open("w", newline="") as content:
        writer = csv.writer(content)
        writer.writerow(["text", "label"])
        for number in range(120 if args.tiny else TEXTS):
            text = " ".join(draw.choice(words) for _ in range(8))
            writer.writerow([f"{text} {number}", int("XQZ" in text)])
    corpus = Corpus(str(file), text="text", label="label")
    for prefixes in (False, True):
        spec = sasa.EmbeddingSpec(pooling="mean", max_length=64)
        part = replace(corpus, limit=None if args.tiny or not prefixes else TEXTS // 8)
        recipe = Recipe((part,), embedding=spec, prefixes=prefixes)
        found.add(prefixes=prefixes, **share_of_forward(model, tiny.tokenizer(), recipe))
    file.unlink()


# 4. A short run on RealToxicityPrompts


def rtp(args: argparse.Namespace, found: Found) -> None:
    """`sasa bench` on the default model: the command that everybody runs."""
    folder, model = found.file.parent, []
    prompts = args.kit / "prompts.jsonl"
    if args.tiny:
        model = ["-m", tiny_folder(folder), "-b", folder / "tiny" / "boundary", "-n", 4]
        prompts = folder / "prompts.jsonl"
        rows = [
            {"prompt": {"text": f"so he {i}", "toxicity": i % 2}, "challenging": False}
            for i in range(4)
        ]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif not prompts.is_file():
        raise FileNotFoundError(f"no {prompts}: benchmarks/gpu.sh prepare puts it there")
    judges = [judge for judge in args.judge if judge] or ["profanity"]
    command = [
        sys.executable,
        "-m",
        "sasa",
        "bench",
        "rtp",
        "-p",
        prompts,
        *model,
        "--limit",
        4 if args.tiny else 100,
    ]
    command += [
        "-c",
        2 if args.tiny else 10,
        "--groups",
        "toxic,nontoxic",
        "-M",
        "plain",
        "-M",
        "sasa",
        "--device",
        args.device,
    ]
    command += [part for judge in judges for part in ("-s", judge)] + ["-o", folder / "rtp-run"]
    for method in ("plain", "sasa"):  # one at a time: what there is when the time is over counts
        start = time.perf_counter()
        subprocess.run(list(map(str, [*command, "-M", method])), check=True)
        (run,) = read_json(folder / "rtp-run" / "summary.json")["runs"]
        one = run["methods"][method]
        emt = {judge: scores["emt"] for judge, scores in one["toxicity"].items()}
        figures = {
            key: one["figures"].get(key)
            for key in ("perplexity", "distinct_2", "seconds_a_completion")
        }
        found.add(method=method, emt=emt, **figures, seconds=round(time.perf_counter() - start, 1))


def tiny_folder(folder: Path) -> Path:
    """A tiny model, its tokenizer and a boundary, as files."""
    place = folder / "tiny"
    if not (place / "config.json").is_file():
        model = tiny.model("llama")
        model.save_pretrained(place)
        tiny.tokenizer().save_pretrained(place)
        tiny.boundary(model, pooling="mean", span="response").save(place / "boundary")
    return place


# 5. [RESET]


def reset(args: argparse.Namespace, found: Found) -> None:
    """[RESET] by SFT, then DPO, on all training pairs; then what a bias on its logit buys and costs."""
    from sasa.fitting import Corpus
    from sasa.training import Training, train_backtracking

    folder, base = found.file.parent, None
    pairs, rows, held_out = args.kit / "pairs.jsonl.gz", "0:1800", "1800:"
    if args.tiny:
        base, pairs, rows, held_out = (
            str(tiny_folder(folder)),
            folder / "pairs.jsonl.gz",
            "0:8",
            "8:",
        )
        with gzip.open(pairs, "wt") as file:
            for i in range(14):
                asked = f"\n\nHuman: Any {i}.\n\nAssistant:"
                file.write(
                    json.dumps(
                        {"chosen": asked + " calm and kind", "rejected": asked + " XQZ ZZX QXQ"}
                    )
                    + "\n"
                )
    elif not pairs.is_file():
        raise FileNotFoundError(f"no {pairs}: benchmarks/gpu.sh prepare puts it there")
    corpus, model_name = Corpus("hh-rlhf", path=str(pairs), rows=rows), base
    for method in ("sft", "dpo"):
        model, tokenizer = sasa.load(model_name, args.device)
        small: dict[str, Any] = (
            dict(lora=2, max_length=200, batch_size=4) if args.tiny else dict(batch_size=16)
        )
        start = time.perf_counter()
        name = base or sasa.models.load.DEFAULT_MODEL
        trained = train_backtracking(
            model, tokenizer, Training(corpus, method=method, **small), folder / f"reset-{method}",
            base=name if method == "sft" else str(folder / "reset-sft"),
        )  # fmt: skip
        log = [
            row
            for row in read_json(trained / "training.json")["log"]
            if "train_loss" in row or "loss" in row
        ]
        found.add(
            stage=method,
            seconds=round(time.perf_counter() - start, 1),
            last=log[-1] if log else None,
        )
        model_name = str(trained)
        del model
    judge = folder / "tiny" / "boundary"
    if not args.tiny:
        judge = folder / "harm-judge"
        fitting = [
            sys.executable,
            "-m",
            "sasa",
            "fit",
            f"hh-rlhf::path={pairs},rows=0:1800,limit=600",
            "--attribute",
            "harm",
        ]
        fitting += [
            "--layer",
            "-7",
            "--pooling",
            "mean",
            "--span",
            "response",
            "--device",
            args.device,
            "-o",
            judge,
        ]
        subprocess.run(list(map(str, fitting)), check=True)
    command = [
        sys.executable,
        HERE / "reset.py",
        "--pairs",
        pairs,
        "--rows",
        held_out,
        "--judge",
        judge,
    ]
    command += [
        "--model",
        folder / "reset-sft",
        "--model",
        folder / "reset-dpo",
        "--max-length",
        400 if args.tiny else 192,
    ]
    command += [
        part for bias in ((0, 4) if args.tiny else (-4, -2, 0, 2, 4)) for part in ("--bias", bias)
    ]
    command += [
        "--limit",
        2 if args.tiny else 100,
        "--completions",
        2,
        "--tokens",
        4 if args.tiny else 50,
    ]
    command += (["--base", base] if base else []) + ["--output", folder / "reset-figures.json"]
    subprocess.run(list(map(str, command)), check=True)
    for row in read_json(folder / "reset-figures.json")["results"]:
        found.add(
            stage="trade-off",
            model=Path(row["model"] or "untrained").name,
            bias=row["bias"],
            **row["figures"],
        )


PARTS: dict[str, tuple[int, Callable[[argparse.Namespace, Found], None]]] = {
    "exact": (80, exact),
    "time": (150, timing),
    "fit": (55, fit),
    "rtp": (45, rtp),
    "reset": (90, reset),
}
"""What there is, in order, and the seconds that each may take."""
