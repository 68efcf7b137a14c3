"""Exports of an attack's hits: prompts to train on and to measure with, garak's hit log, tables."""

from __future__ import annotations

import csv
import io
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sasa.redteam.hits import Hit, find_hits, part_of
from sasa.redteam.settings import HIT
from sasa.redteam.store import Attempts
from sasa.utils.files import write_atomically

PROBE = "sasa.redteam"

Row = list[str | float | None]


def export(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    form: str = "prompts",
    *,
    threshold: float = HIT,
    clusters: str = "all",
) -> int:
    """Writes an attack's distinct hits into a file, their texts in full.

    Args:
        folder: of `sasa redteam run`.
        form: one of `FORMATS`. `prompts`, a JSONL file, is read by `sasa train repulse`, `sasa
            redteam replay`, `sasa bench attaq` and `rtp`; its toxicity is that of the reply.
            `replies`, a CSV for `sasa fit FILE::text=reply,label=toxic`, has all replies on whose
            toxicity the scorers agree, in whichever cluster.
        threshold: of a toxic reply, by all scorers.
        clusters: `all`, or the clusters with `even` or `odd` numbers: one half to train on, the
            other to report on.

    Raises:
        FileNotFoundError: the folder holds no attack.
        ValueError: an unknown form or part, or nothing to export.
    """
    if form not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    store = Attempts.open(folder)
    if form == "replies":
        rows = _agreed(store, threshold)
        write_atomically(Path(output), _table(["reply", "toxic", "attack"], rows))
        return len(rows)
    hits = part_of(find_hits(store, threshold), clusters)
    if not hits:
        raise ValueError(
            f"{store.folder} has no hit at {threshold:g} in {clusters} clusters: "
            "nothing was written"
        )
    write_atomically(Path(output), HITS[form](store, hits))
    return len(hits)


def _prompts(store: Attempts, hits: list[Hit]) -> str:
    return _lines(
        {
            "prompt": {
                "text": hit.record["attack"],
                "toxicity": min(hit.record["scores"].values()),
            },
            "input": hit.record["attack"],
            "label": f"cluster {hit.cluster}",
        }
        for hit in hits
    )


def _garak(store: Attempts, hits: list[Hit]) -> str:
    """Lines as in garak's hitlog.jsonl (0.13 and later), one for each scorer of each hit."""
    run = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(store.about, sort_keys=True))
    target = store.about["target"]
    name = target.get("name") or target.get("command") or target.get("url") or target["model"]["id"]
    return _lines(
        {
            "goal": "make the target answer in a toxic way",
            "prompt": {
                "turns": [{"role": "user", "content": _message(hit.record["attack"])}],
                "notes": {},
            },
            "output": _message(hit.record["reply"]),
            "triggers": None,
            "score": score,
            "run_id": str(run),
            "attempt_id": str(uuid.uuid5(run, str(hit.place))),
            "attempt_seq": hit.place,
            "attempt_idx": 0,
            "generator": f"{target['kind']} {name}",
            "probe": f"{PROBE}.{store.about['settings']['method']}",
            "detector": scorer,
            "generations_per_prompt": 1,
        }
        for hit in hits
        for scorer, score in hit.record["scores"].items()
    )


def _message(text: str | None) -> dict[str, str | dict[str, str] | None]:
    return {
        "text": text,
        "lang": None,
        "data_path": None,
        "data_type": None,
        "data_checksum": None,
        "notes": {},
    }


def _csv(store: Attempts, hits: list[Hit]) -> str:
    rows: list[Row] = [
        [
            hit.place + 1,
            hit.cluster,
            hit.record["context"],
            hit.record["attack"],
            hit.record["reply"],
            *(hit.record["scores"][scorer] for scorer in store.judges),
        ]
        for hit in hits
    ]
    return _table(["case", "cluster", "context", "attack", "reply", *store.judges], rows)


def _agreed(store: Attempts, threshold: float) -> list[Row]:
    """Replies that all scorers call toxic, or none of them."""
    rows: list[Row] = []
    for record in store.records:
        verdicts = {score >= threshold for score in record["scores"].values()}
        if len(verdicts) == 1:
            rows.append([record["reply"], verdicts.pop(), record["attack"]])
    return rows


def _table(names: list[str], rows: Sequence[Row]) -> str:
    written = io.StringIO(newline="")
    table = csv.writer(written, lineterminator="\n")
    table.writerow(names)
    table.writerows(rows)
    return written.getvalue()


def _jsonl(store: Attempts, hits: list[Hit]) -> str:
    return _lines({"case": hit.place + 1, "cluster": hit.cluster, **hit.record} for hit in hits)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


HITS: dict[str, Callable[[Attempts, list[Hit]], str]] = {
    "prompts": _prompts,
    "garak": _garak,
    "csv": _csv,
    "jsonl": _jsonl,
}
FORMATS = *HITS, "replies"
