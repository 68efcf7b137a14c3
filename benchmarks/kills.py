"""kill -9 at random moments, each followed by the same command: is the store in the end that of a run left in peace?

    python benchmarks/kills.py --prompts ../shared/data/rtp/prompts.jsonl --rows 3000:4000
    python benchmarks/kills.py --redteam

The second is an attack of 80 cases, with twenty updates of the attacker, by the default model on itself. A kill comes at a random
moment within two batches after a run has begun to write, in any stage; there are fewer kills where the run is at its end before.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STORED = (
    "completions/*.jsonl",
    "likelihood/*.jsonl",
    "scores/*.json",
    "attempts.jsonl",
    "vectors.f32",
)
UPDATES = 20
ATTACK = ["redteam", "run", "-n", 4 * UPDATES, "--contexts-per-step", 2, "-c", 2, "--save-steps", 3]
ATTACK += ["--attack-tokens", 8, "--reply-tokens", 6, "--lora", 4]


def stored(folder: Path) -> dict[str, bytes]:
    """What a run's completions, likelihoods and scores are, or an attack's attempts, byte for byte."""
    files = [file for pattern in STORED for file in folder.glob(pattern)]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def size(folder: Path) -> int:
    return sum(map(len, stored(folder).values()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", help="RealToxicityPrompts rows, JSONL")
    parser.add_argument("--redteam", action="store_true", help="an attack in place of a benchmark")
    parser.add_argument("--rows", default=":", help="START:STOP")
    parser.add_argument("--model")
    parser.add_argument("--boundary", default="toxicity")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--completions", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.prompts) == args.redteam:
        parser.error("one of --prompts and --redteam")
    batches = UPDATES if args.redteam else 2 * args.limit
    command = [sys.executable, "-m", "sasa"]
    if args.redteam:
        command += ATTACK
    else:
        command += ["bench", "rtp", "-p", args.prompts, "-b", args.boundary, "--batch-size", "1"]
        command += ["--rows", args.rows] if args.rows != ":" else []
        command += ["--model", args.model] if args.model else []
        command += [
            "--limit",
            args.limit,
            "-c",
            args.completions,
            "-n",
            args.tokens,
            "-M",
            "plain",
            "-M",
            "sasa",
        ]
    command = [str(part) for part in command]
    draw = random.Random(args.seed)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as place:
        whole, torn = Path(place, "whole"), Path(place, "torn")
        process = subprocess.Popen([*command, "-o", str(whole)], **quiet)
        began = None
        while process.poll() is None:
            began = began or (time.monotonic() if size(whole) else None)
            time.sleep(0.01)
        if process.returncode or began is None:
            raise SystemExit("the run that was left in peace failed: " + " ".join(command))
        batch = (time.monotonic() - began) / batches
        killed = 0
        while killed < args.kills:
            before = size(torn)
            process = subprocess.Popen([*command, "-o", str(torn)], **quiet)
            while process.poll() is None and size(torn) <= before:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 2 * batch))
            if process.poll() is not None:
                break  # what the kills had left to do is done
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            print(
                f"kill {killed}: {len(stored(torn))} files, {size(torn)} of {size(whole)} bytes",
                flush=True,
            )
        if subprocess.run([*command, "-o", str(torn)], **quiet).returncode:
            raise SystemExit("the run did not end well after it had been killed")
        one, other = stored(whole), stored(torn)
        if one != other:
            differ = sorted(
                name for name in one.keys() | other.keys() if one.get(name) != other.get(name)
            )
            raise SystemExit(f"after {killed} kills, {', '.join(differ)} differ")
        print(f"after {killed} kills, {', '.join(sorted(one))} are the same, byte for byte")


if __name__ == "__main__":
    main()
