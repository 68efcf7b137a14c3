"""SASA of IBM's AISteer360 and of this package, side by side: the same model, prompts, top-k and top-p, one text at a time.

AISteer360 (0.3, commit 1d7c843) wants transformers below 5, so it runs in a process with packages of its own, which waits while
this one works. It takes one text at a time and reads each candidate behind a copy of the cache.

    git clone https://github.com/IBM/AISteer360 /tmp/AISteer360
    pip install --target /tmp/aisteer-packages 'transformers>=4.52,<5' einops
    python benchmarks/aisteer.py --source /tmp/AISteer360 --packages /tmp/aisteer-packages \\
      --prompts ../shared/data/rtp/prompts.jsonl --fit-rows 0:2500 --rows 3000:4000 --output benchmarks/results/aisteer.json

Its probe is fitted by its own code, on continuations of --fit-rows. Rounds alternate the sides; a round is one completion of each
prompt. Times are of a token, and as many times the plain `generate()` of the same transformers. With --scorer also how toxic what
they wrote is, over the rounds: expected maximum toxicity.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help="a clone of AISteer360")
    parser.add_argument("--packages", type=Path, help="a folder with transformers below 5")
    parser.add_argument("--prompts", type=Path, help="RealToxicityPrompts rows, JSONL")
    parser.add_argument("--fit-rows", default="0:2500", help="START:STOP")
    parser.add_argument("--rows", default="3000:4000", help="START:STOP")
    parser.add_argument("--model", help="a folder, by default the default model's")
    parser.add_argument("--boundary", default="toxicity")
    parser.add_argument(
        "--beta", type=float, action="append", help="of AISteer360's; repeat it; by default 10"
    )
    parser.add_argument("--limit", type=int, default=10, help="toxic prompts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--scorer", action="append", default=[])
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    if args.worker:
        work(json.loads(args.worker.read_text()))
    else:
        compare(args)


# In the process that has AISteer360


def work(job: dict[str, Any]) -> None:
    """Fits its probe, and then writes a completion for each line on stdin."""
    import torch
    from aisteer360.algorithms.core.steering_pipeline import SteeringPipeline
    from aisteer360.algorithms.output_control.sasa.control import SASA
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    pipelines = {}
    for beta in job["betas"]:
        given = {"wv_path": job["probe"]} if pipelines else {"gen_wv_data": job["data"]}
        # Its processors run before top-k, and without this limit each step reads the whole vocabulary.
        control = SASA(beta=beta, max_candidates=job["top_k"], **given)
        pipelines[beta] = SteeringPipeline(
            model_name_or_path=job["model"], controls=[control], device_map="cpu"
        )
        pipelines[beta].steer()
        control.probe.save(job["probe"])
    model = next(iter(pipelines.values())).model
    limits = dict(
        do_sample=True,
        top_k=job["top_k"],
        top_p=job["top_p"],
        max_new_tokens=job["tokens"],
        pad_token_id=0,
    )
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        inputs = tokenizer(asked["prompt"], return_tensors="pt")
        torch.manual_seed(asked["seed"])
        start = time.perf_counter()
        if asked["beta"] is None:
            out = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, **limits)
        else:
            out = pipelines[asked["beta"]].generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                runtime_kwargs={},
                **limits,
            )
        seconds = time.perf_counter() - start
        ids = out[0].tolist()
        prompt = inputs.input_ids[0].tolist()
        ids = ids[len(prompt) :] if ids[: len(prompt)] == prompt else ids
        text = tokenizer.decode(ids, skip_special_tokens=True)
        print(json.dumps({"text": text, "tokens": len(ids), "seconds": seconds}), flush=True)


# In this one


def compare(args: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from rich.console import Console
    from rich.table import Table

    import sasa
    from sasa.data.corpus import parse_rows
    from sasa.evaluation.metrics import estimate, to_json
    from sasa.evaluation.scorers import scorer
    from sasa.evaluation.suites import load_suite
    from sasa.utils.files import write_atomically
    from sasa.utils.progress import progress_bar

    model, tokenizer = sasa.load(args.model)
    boundary = sasa.Boundary.load(args.boundary, model=model)
    suite = load_suite(
        "rtp", args.prompts, groups=["toxic"], rows=parse_rows(args.rows), limit=args.limit
    )
    prompts = [prompt.text for prompt in suite.prompts]
    betas = args.beta or [10.0]
    limits: dict[str, Any] = dict(top_k=args.top_k, top_p=args.top_p, max_new_tokens=args.tokens)

    def ours(prompt: str, seed: int, steer: bool) -> dict[str, Any]:
        start = time.perf_counter()
        (written,) = sasa.generate(
            model, tokenizer, prompt, boundary if steer else None, seed=seed, **limits
        )
        return {
            "text": written.text,
            "tokens": len(written.tokens),
            "seconds": time.perf_counter() - start,
        }

    with tempfile.TemporaryDirectory() as folder:
        worker = started(args, Path(folder), betas, model, tokenizer)

        def theirs(prompt: str, seed: int, beta: float | None) -> dict[str, Any]:
            worker.stdin.write(json.dumps({"prompt": prompt, "seed": seed, "beta": beta}) + "\n")
            worker.stdin.flush()
            return json.loads(answer(worker))

        sides: dict[str, Any] = {
            "plain, transformers 5": lambda prompt, seed: ours(prompt, seed, False),
            "plain, transformers 4": lambda prompt, seed: theirs(prompt, seed, None),
            "sasa": lambda prompt, seed: ours(prompt, seed, True),
        }
        for beta in betas:
            sides[f"AISteer360, beta {beta:g}"] = lambda prompt, seed, beta=beta: theirs(
                prompt, seed, beta
            )
        rounds: list[dict[str, list[dict[str, Any]]]] = []
        with progress_bar("rounds", True) as bar:
            task = bar.add_task("rounds", total=(args.rounds + 1) * len(sides))
            for number in range(args.rounds + 1):
                rounds.append({})
                for name, side in sides.items():
                    rounds[-1][name] = [
                        side(prompt, number) for prompt in prompts[: None if number else 1]
                    ]
                    bar.advance(task)
        worker.stdin.close()
        worker.wait()
    rounds = rounds[1:]  # the first one warms up
    table = Table("side", "ms a token", "times plain", *(f"EMT, {name}" for name in args.scorer))
    judges = [scorer(name) for name in args.scorer]
    results = []
    for name in sides:
        base = (
            "plain, transformers 4" if "4" in name or "AISteer" in name else "plain, transformers 5"
        )
        each = [rate(r[name]) for r in rounds]
        row: dict[str, Any] = {"side": name, "seconds_a_token": statistics.median(each)}
        row["times_plain"] = statistics.median(
            one / rate(r[base]) for one, r in zip(each, rounds, strict=True)
        )
        for judge in judges:
            scores = np.array([judge.score([one["text"] for one in r[name]]) for r in rounds])
            row[f"emt, {judge.name}"] = estimate(scores.max(0))
        results.append(row)
        cells = [f"{row['seconds_a_token'] * 1e3:.1f}", f"{row['times_plain']:.2f}"]
        table.add_row(name, *cells, *(str(row[f"emt, {judge.name}"]) for judge in judges))
    Console(width=140).print(table)
    if args.output:
        settings = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(args).items()
        }
        about = {
            "settings": settings | {"beta": betas},
            "prompts": len(prompts),
            "threads": torch.get_num_threads(),
        }
        write_atomically(
            args.output, json.dumps(to_json(about | {"results": results}), indent=1) + "\n"
        )


def rate(rows: list[dict[str, Any]]) -> float:
    """Seconds of a token."""
    return sum(row["seconds"] for row in rows) / sum(row["tokens"] for row in rows)


def started(
    args: argparse.Namespace, folder: Path, betas: list[float], model: Any, tokenizer: Any
) -> Any:
    """The other process, once it is ready: with the model in a form that transformers 4 reads, and texts to fit on."""
    from sasa.fitting import Corpus

    corpus = Corpus(
        "rtp",
        path=str(args.prompts),
        rows=args.fit_rows,
        safe_below=0.3,
        segments=("continuation",),
    )
    data: dict[str, list[str]] = {"pos": [], "neg": []}
    for example in corpus.examples():
        label = corpus.label_of(example.score)
        if label is not None:
            data["pos" if label else "neg"].append(str(example.text))
    place = folder / "model"
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    # transformers 5 keeps this in rope_parameters, where 4 does not look
    config |= {
        "rope_theta": (config.get("rope_parameters") or {}).get("rope_theta", 10000.0),
        "torch_dtype": "float32",
    }
    (place / "config.json").write_text(json.dumps(config))
    settings = json.loads((place / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("extra_special_tokens", None)
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    job = {"model": str(place), "data": data, "betas": betas, "probe": str(folder / "probe.probe")}
    job |= {"top_k": args.top_k, "top_p": args.top_p, "tokens": args.tokens}
    (folder / "job.json").write_text(json.dumps(job))
    shutil.copy(
        __file__, folder / "worker.py"
    )  # not in the folder of other scripts that it would import
    environment = os.environ | {
        "PYTHONPATH": f"{args.packages}{os.pathsep}{args.source}",
        "HF_HUB_OFFLINE": "1",
    }
    worker = subprocess.Popen(
        [sys.executable, folder / "worker.py", "--worker", folder / "job.json"], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    while answer(worker) != "ready\n":
        pass
    return worker


def answer(worker: Any) -> str:
    """A line of the other process's. Ends the program where it has ended."""
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"the process with AISteer360 ended, {worker.wait()}: see above")
    return line


if __name__ == "__main__":
    main()
