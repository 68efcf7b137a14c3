"""Everything that wants a GPU, in one go and without a network: exactness, time, a fit, a run of `sasa bench`, [RESET].

    benchmarks/gpu.sh                                  # all of it, at most seven minutes
    python benchmarks/gpu.py --parts exact time -o runs/gpu
    python benchmarks/gpu.py --compare -o runs/gpu     # what falls short, beside a model of what a step has to take
    python benchmarks/gpu.py --tiny --device cpu -o runs/gpu-tiny    # the same on tiny models: so that it does not rot

Each part runs in a process of its own and is stopped when its time is over; what it has found until then counts. gpu.json has all
figures, gpu.md the tables, gpu.png the times; what was not reached, or failed, is said there by name.

The floor of a step is reading the weights and the cache once at the rate at which this card copies; candidates that ride along
in a pass that waits for memory add nothing to it, so that a decoder's floor at small batches is plain's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from gpu_parts import PARTS, Found

from sasa.utils.files import read_json, write_atomically

AIMS = [
    # shape, batch, side, beside, times at most
    ("llama-8b", 1, "decoder", "times_plain", 1.0),
    ("llama-8b", 1, "compiled", "times_plain_compiled", 1.05),
    ("llama-8b", 25, "decoder", "times_plain", 1.15),
    ("llama-8b", 64, "decoder", "times_plain", 1.3),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help="tiny models, a few seconds a part")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--kit", type=Path, default=Path("gpu-kit"), help="prompts and pairs, from gpu.sh prepare"
    )
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        help="of the run of sasa bench; by default profanity",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the seconds that each part may take"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--compare", action="store_true", help="run nothing, and print what falls short"
    )
    parser.add_argument("--output", "-o", type=Path, required=True, help="a folder")
    args = parser.parse_args()
    if args.part:
        found = Found(args.output / f"{args.part}.json")
        PARTS[args.part][1](args, found)
        found.finish()
        return
    if not args.compare:
        if args.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("there is no GPU here: --device cpu --tiny tries the kit itself")
        args.output.mkdir(parents=True, exist_ok=True)
        for name in args.parts:
            run_part(name, args)
    content = collected(args)
    write_atomically(args.output / "gpu.json", json.dumps(content, indent=1) + "\n")
    lines = tables(content)
    write_atomically(args.output / "gpu.md", "\n".join(lines) + "\n")
    draw(content, args.output / "gpu.png")
    print("\n".join(shortfalls(content) if args.compare else lines))


def run_part(name: str, args: argparse.Namespace) -> None:
    """A part in a process of its own; whatever becomes of it, the next one runs."""
    seconds = (
        PARTS[name][0] * args.scale * (5 if args.tiny else 1)
    )  # on a slow machine, where imports take longest
    (args.output / f"{name}.json").unlink(missing_ok=True)
    command = [
        sys.executable,
        __file__,
        "--part",
        name,
        "--device",
        args.device,
        "--kit",
        args.kit,
        "-o",
        args.output,
    ]
    command += ["--seconds", 0.85 * seconds, *(["--tiny"] * args.tiny)]
    command += [part for judge in args.judge for part in ("--judge", judge)]
    start = time.monotonic()
    print(f"== {name}, at most {seconds:.0f} s", flush=True)
    with open(args.output / f"{name}.log", "w") as log:
        child = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = child.wait(timeout=seconds)
            ended = "" if code == 0 else f"failed: {last_line(args.output / f'{name}.log')}"
        except subprocess.TimeoutExpired:
            os.killpg(
                child.pid, signal.SIGKILL
            )  # and what it has started: the next part wants the GPU for itself
            child.wait()
            ended = f"stopped after {seconds:.0f} s"
    file = args.output / f"{name}.json"
    content = read_json(file) if file.is_file() else {"done": False, "results": []}
    content |= {"seconds": round(time.monotonic() - start, 1), "ended": ended}
    write_atomically(file, json.dumps(content, indent=1) + "\n")
    print(f"   {content['seconds']} s, {len(content['results'])} figures {ended}", flush=True)


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def collected(args: argparse.Namespace) -> dict[str, Any]:
    """All parts that there are, and what they ran on."""
    before = args.output / "gpu.json"
    if args.compare and before.is_file():
        return read_json(before)
    cuda = args.device == "cuda" and torch.cuda.is_available()
    about = {
        "device": torch.cuda.get_device_name()
        if cuda
        else f"CPU ({platform.processor() or platform.machine()})",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tiny": args.tiny,
    }
    files = {name: args.output / f"{name}.json" for name in PARTS}
    return about | {
        "parts": {name: read_json(file) for name, file in files.items() if file.is_file()}
    }


def rows_of(content: dict[str, Any], part: str) -> list[dict[str, Any]]:
    return content["parts"].get(part, {}).get("results", [])


def tables(content: dict[str, Any]) -> list[str]:
    """gpu.md."""
    small = " Tiny models: the times mean nothing." if content["tiny"] else ""
    lines = [
        f"# {content['device']}",
        "",
        f"torch {content['torch']}, transformers {content['transformers']}.{small}",
        "",
    ]
    for name in PARTS:
        part = content["parts"].get(name)
        if part is None:
            lines += [f"- **{name}: not run**"]
        else:
            ended = part["ended"] or "done"
            lines += [f"- {name}: {ended}, {part['seconds']} s, {len(part['results'])} figures"]
    lines += [
        "",
        "## Exactness",
        "",
        "| model | dtype | check | furthest from the definition | |",
        "| --- " * 5 + "|",
    ]
    for row in rows_of(content, "exact"):
        said = row.get("error") or ("" if row["ok"] else "**beyond the tolerance**")
        worst = f"{row['worst']:.2g}" if "worst" in row else "–"
        lines.append(
            f"| {row['model']} | {row.get('dtype', '')} | {row['check']} | {worst} | {said} |"
        )
    heads = [
        "shape",
        "batch",
        "top-k",
        "side",
        "ms a step",
        "times plain",
        "times compiled plain",
        "floor, ms",
        "read",
        "peak, GB",
    ]
    lines += ["", "## Time", "", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows_of(content, "time"):
        if "error" in row:
            lines.append(
                f"| {row['shape']} | {row['batch']} | {row['top_k']} | {', '.join(row['sides'])} | {row['error']} |"
                + " |" * 5
            )
            continue
        keys = (
            "ms_a_step",
            "times_plain",
            "times_plain_compiled",
            "floor_ms",
            "candidates_read",
            "peak_gb",
        )
        cells = [f"{row[key]:.2f}" if key in row else "" for key in keys]
        lines.append(
            f"| {row['shape']} | {row['batch']} | {row['top_k']} | {row['side']} | {' | '.join(cells)} |"
        )
    for part in ("fit", "rtp", "reset"):
        rows = rows_of(content, part)
        if not rows:
            continue
        lines += ["", f"## {part}", ""]
        lines += [
            f"- {', '.join(f'{key} {shown(value)}' for key, value in row.items() if value is not None)}"
            for row in rows
        ]
    lines += ["", "## Short of the aims", "", *shortfalls(content)]
    return lines


def shown(value: Any) -> str:
    if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
        ends = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
        return f"{value['value']:.3f}{ends}"
    if isinstance(value, dict):
        return "; ".join(f"{key} {shown(one)}" for key, one in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def shortfalls(content: dict[str, Any]) -> list[str]:
    """What fails, what is slower than it is meant to be, and how far each step is from its floor."""
    lines = [
        f"- {row['model']}, {row.get('dtype', '')}, {row['check']}: {row.get('error') or row['worst']}"
        for row in rows_of(content, "exact")
        if not row.get("ok")
    ]
    times = [row for row in rows_of(content, "time") if "side" in row]
    for shape, batch, side, beside, most in AIMS:
        found = [
            r
            for r in times
            if (r["shape"], r["batch"], r["side"]) == (shape, batch, side) and beside in r
        ]
        what = f"{shape}, batch {batch}, {side}: {beside.replace('_', ' ')}"
        if not found:
            lines.append(f"- {what}: not measured (aim {most:g})")
        for row in found:
            if row[beside] > most:
                over = row["ms_a_step"] / row["floor_ms"]
                lines.append(
                    f"- {what} is {row[beside]:.2f} at top-k {row['top_k']}, aim {most:g}; {over:.2f} times the floor"
                )
    for name in PARTS:
        part = content["parts"].get(name)
        if part is None or part["ended"] or not part["done"]:
            lines.append(f"- {name}: {part['ended'] if part else 'not run'}")
    return lines or ["Nothing."]


def draw(content: dict[str, Any], path: Path) -> None:
    """Times plain by batch, a panel for each shape; nothing without matplotlib or times."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = [row for row in rows_of(content, "time") if row.get("side") not in (None, "plain")]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    if not shapes:
        return
    figure = Figure(figsize=(4.2 * len(shapes), 3.8), layout="constrained")
    for axis, shape in zip(
        figure.subplots(1, len(shapes), squeeze=False, sharey=True)[0], shapes, strict=True
    ):
        lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for row in rows:
            if row["shape"] == shape:
                lines.setdefault((row["side"], row["top_k"]), []).append(
                    (row["batch"], row["times_plain"])
                )
        for (side, k), points in lines.items():
            axis.plot(
                *zip(*sorted(points), strict=True),
                marker="o",
                markersize=4,
                label=f"{side}, top-k {k or 'all'}",
            )
        axis.axhline(1, color="grey", linewidth=1, linestyle=":")
        axis.set(title=shape, xlabel="batch", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7)
    figure.suptitle(f"time of a step, times plain generate(): {content['device']}", fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
