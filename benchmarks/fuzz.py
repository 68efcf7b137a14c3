"""Coverage-guided fuzzing of what reads boundaries, stores and tables, by atheris (libFuzzer).

    pip install atheris
    python benchmarks/fuzz.py boundary -max_total_time=900
    python benchmarks/fuzz.py stores -max_total_time=900
    python benchmarks/fuzz.py tables -max_total_time=900

An input passes when it is read, or refused by an error that the command line shows as one line. Anything else stops the run and
is written to a file crash-…, as libFuzzer does. `tests/test_fuzz.py` has the same by hypothesis, with inputs of the right form.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sasa"]):
    from sasa.core.boundary import Boundary
    from sasa.core.shipped import bundled
    from sasa.evaluation.run import Run
    from sasa.fitting import Corpus
    from sasa.redteam.store import RECORD, Attempts

CLEAR = (ValueError, OSError, ImportError)
FOLDER = Path(tempfile.mkdtemp())
BUNDLED = next(iter(bundled().values())).read_bytes()
STORES = {
    "redteam.json": b'{"rows": 1, "encoder": {"size": 1}, "judges": [{"name": "a"}]}',
    "run.json": b'{"suite": "rtp", "settings": {"completions": 1}, "prompt_count": 1, "seed": 0, "batch_size": 1, '
    b'"methods": [], "source": "", "skipped": {}}',
    "attempts.jsonl": json.dumps(dict.fromkeys(RECORD)).encode() + b"\n",
    "prompts.jsonl": b'{"id": "a", "text": "b", "group": "c"}\n',
    "vectors.f32": b"\0\0\0\0",
}


def boundary(data: bytes) -> None:
    """A bundled boundary, parts of its file or of its metadata replaced; or the bytes themselves."""
    given = atheris.FuzzedDataProvider(data)
    size = int.from_bytes(BUNDLED[:8], "little")
    way = given.ConsumeIntInRange(0, 2)
    if way == 0:  # what the metadata says, in a file that is whole
        header = json.loads(BUNDLED[8 : 8 + size])
        about = replaced(header["__metadata__"]["sasa"].encode(), given)
        header["__metadata__"]["sasa"] = about.decode("utf-8", "replace")
        told = json.dumps(header).encode()
        content = len(told).to_bytes(8, "little") + told + BUNDLED[8 + size :]
    else:
        content = replaced(BUNDLED, given, 8 + size) if way == 1 else data
    file = FOLDER / "b.safetensors"
    file.write_bytes(content)
    try:
        found = Boundary.load(file)
    except CLEAR:
        return
    found.margin(found.weight)


def replaced(content: bytes, given: atheris.FuzzedDataProvider, within: int | None = None) -> bytes:
    """Content with bytes that are given in a few places, within so many from its start."""
    whole = bytearray(content)
    for _ in range(given.ConsumeIntInRange(1, 3)):
        place = given.ConsumeIntInRange(0, within or len(whole))
        whole[place : place + given.ConsumeIntInRange(0, 20)] = given.ConsumeBytes(
            given.ConsumeIntInRange(0, 12)
        )
    return bytes(whole)


def stores(data: bytes) -> None:
    """The files of a run and of attempts."""
    given = atheris.FuzzedDataProvider(data)
    for name, start in STORES.items():
        (FOLDER / name).write_bytes(replaced(start, given) if given.ConsumeBool() else start)
    for kind in (Attempts, Run):
        with contextlib.suppress(CLEAR):
            kind.open(FOLDER)


def tables(data: bytes) -> None:
    """A corpus in a file of some kind, refused and with what is bad left out."""
    given = atheris.FuzzedDataProvider(data)
    ending = given.PickValueInList(["csv", "tsv", "json", "jsonl", "csv.gz"])
    start = given.PickValueInList(
        [b"", b"text,label\n", b"text\tlabel\n", b'{"text": "a", "label": 1}\n']
    )
    file = FOLDER / f"t.{ending}"
    file.write_bytes(start + given.ConsumeBytes(len(data)))
    for bad_rows in ("refuse", "skip"):
        corpus = Corpus(str(file), text="text", label="label", bad_rows=bad_rows)
        for read in (corpus.examples, lambda corpus=corpus: corpus.pairs(Counter())):
            with contextlib.suppress(CLEAR):
                list(read())


TARGETS = {"boundary": boundary, "stores": stores, "tables": tables}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"{__doc__}\nexpected one of {', '.join(TARGETS)}")
    logging.disable(logging.WARNING)
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
