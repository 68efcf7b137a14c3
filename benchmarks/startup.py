"""How long it takes until something happens, of what importing torch takes in the same run.

    python benchmarks/startup.py

Each is a process of its own; the rounds take turns, and the least of each counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

SASA = (sys.executable, "-m", "sasa")
WHAT = {
    "import torch": (sys.executable, "-c", "import torch"),
    "import torch, transformers": (sys.executable, "-c", "import torch, transformers"),
    "import sasa": (sys.executable, "-c", "import sasa"),
    "sasa --help": (*SASA, "--help"),
    "sasa --version": (*SASA, "--version"),
    "sasa generate --help": (*SASA, "generate", "--help"),
    "a wrong option": (*SASA, "generate", "--nothing"),
    "sasa classifiers": (*SASA, "classifiers"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    least = dict.fromkeys(WHAT, float("inf"))
    for _ in range(rounds):
        for name, command in WHAT.items():
            start = time.perf_counter()
            subprocess.run(command, capture_output=True)
            least[name] = min(least[name], time.perf_counter() - start)
    for name, seconds in least.items():
        print(f"{name:28} {seconds:6.2f} s   {seconds / least['import torch']:.2f}")


if __name__ == "__main__":
    main()
