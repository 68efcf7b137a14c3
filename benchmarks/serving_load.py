"""`vllm bench serve`, vLLM's own load on a server, against plain vLLM and against `sasa serve`, one after the other.

    python benchmarks/serving_load.py --prompts rtp.jsonl --output benchmarks/results/serving     # needs `make vllm`

As many requests at once as --concurrency says, each with --tokens tokens to write, streamed. "plain": vLLM's own server.
"sasa, plain requests": ours, unsteered. "sasa": steered, by the given prior. Two servers at once would take the cores from each
other, so each side starts its own, which is warmed up; --rounds repeats all sides. Times are medians over requests, as vLLM's
benchmark gives them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CLIENT = (  # `vllm bench serve`; the CPU build's own program does not start, because its package is called otherwise
    "from vllm.benchmarks.serve import add_cli_args, main; from vllm.utils.argparse_utils import FlexibleArgumentParser; "
    "parser = FlexibleArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)
FIGURES = {
    "output_throughput": "tokens/s",
    "request_throughput": "requests/s",
    "median_ttft_ms": "first token, ms",
    "median_tpot_ms": "a token after it, ms",
    "p99_itl_ms": "longest waits (99 %), ms",
}
LONGEST = 900
"""Seconds that a server may take to start: it may have to compile."""
out = Console(highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", required=True, help="RealToxicityPrompts, or rows of its form")
    parser.add_argument("--model", help="default: the embedded one")
    parser.add_argument("--group", default="nontoxic", help="toxic or nontoxic prompts")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--beta", type=float, default=4.0)
    parser.add_argument("--prior", type=float, nargs="+", default=[0.2, 0.05])
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="do not let vLLM compile")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


@contextmanager
def serving(command: list[str], log: Path) -> Iterator[str]:
    """The address of a server that answers, and is stopped in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=file, stderr=file
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(LONGEST):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended:\n{log.read_text()[-3000:]}")
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        else:
            raise SystemExit(
                f"no answer from {' '.join(command)} in {LONGEST} s:\n{log.read_text()[-3000:]}"
            )
        yield url
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    given = arguments()
    # On a CPU, a core is left to the front end and to the client: the engine's threads wait busily for each other.
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
    }
    from sasa.evaluation.suites import load_suite
    from sasa.serving.vllm.options import model_at

    suite = load_suite("rtp", given.prompts, groups=[given.group], limit=given.requests, seed=1)
    source, _, _ = model_at(given.model)
    engine = [
        "--dtype",
        given.dtype,
        "--max-model-len",
        "512",
        "--max-num-seqs",
        str(given.concurrency),
    ]
    engine += [
        "--served-model-name",
        "served",
        "--no-enable-prefix-caching",
        *["--enforce-eager"] * given.eager,
    ]
    engine += ["--kv-cache-memory-bytes", str(1 << 30)]
    plain = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", source, *engine]
    ours = [sys.executable, "-m", "sasa", "serve", source, *engine, "--no-strict"]
    sides: dict[str, tuple[list[str], dict[str, Any]]] = {
        "plain": (plain, {}),
        "sasa, plain requests": (ours, {}),
    }
    for prior in given.prior:
        sides[f"sasa, prior {prior:g}"] = (
            ours,
            {"vllm_xargs": {"sasa_beta": given.beta, "sasa_prior": prior}},
        )

    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "prompts.jsonl")
        texts.write_text("".join(json.dumps({"prompt": p.text}) + "\n" for p in suite.prompts))
        for _ in range(given.rounds):
            for name, (command, extra) in sides.items():
                result = Path(folder, "result.json")
                with serving(command, Path(folder, "log")) as url:
                    client = [
                        sys.executable,
                        "-c",
                        CLIENT,
                        "--backend",
                        "openai",
                        "--base-url",
                        url,
                    ]
                    client += [
                        "--model",
                        "served",
                        "--tokenizer",
                        source,
                        "--dataset-name",
                        "custom",
                        "--dataset-path",
                        str(texts),
                    ]
                    client += [
                        "--skip-chat-template",
                        "--custom-output-len",
                        str(given.tokens),
                        "--ignore-eos",
                    ]
                    client += [
                        "--num-prompts",
                        str(given.requests),
                        "--max-concurrency",
                        str(given.concurrency),
                    ]
                    client += [
                        "--num-warmups",
                        str(given.concurrency),
                        "--temperature",
                        "1",
                        "--disable-tqdm",
                    ]
                    client += [
                        "--top-k",
                        str(given.top_k),
                        "--top-p",
                        str(given.top_p),
                        "--save-result",
                    ]
                    client += ["--result-dir", folder, "--result-filename", result.name]
                    client += ["--extra-body", json.dumps(extra)] if extra else []
                    done = subprocess.run(client, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(
                        f"vllm bench serve failed:\n{(done.stdout + done.stderr)[-3000:]}"
                    )
                read = json.loads(result.read_text())
                if read["failed"] or read["completed"] != given.requests:
                    raise SystemExit(
                        f"{name}: {read['failed']} of {given.requests} requests failed"
                    )
                found[name].append({figure: read[figure] for figure in FIGURES})
                out.print(name, found[name][-1])

    rows = {
        name: {f: statistics.mean(each[f] for each in rounds) for f in FIGURES}
        for name, rounds in found.items()
    }
    table = Table("side", *FIGURES.values(), "of plain's tokens/s")
    for name, row in rows.items():
        ratio = row["output_throughput"] / rows["plain"]["output_throughput"]
        table.add_row(name, *(f"{row[f]:.3g}" for f in FIGURES), f"{ratio:.2f}")
    out.print(table)
    if given.output:
        import vllm

        given.output.mkdir(parents=True, exist_ok=True)
        settings = {k: v for k, v in vars(given).items() if k not in ("output", "prompts")}
        settings |= {"vllm": vllm.__version__, "threads": os.cpu_count()}
        file = given.output / f"load-{given.group}-{given.concurrency}.json"
        file.write_text(json.dumps({"settings": settings, "rounds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
