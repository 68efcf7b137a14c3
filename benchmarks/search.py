"""Which boundary steers best: layer, pooling, span, value and beta, chosen by what they do to decoding on tuning prompts.

    python benchmarks/search.py --rtp ../shared/data/rtp/prompts.jsonl --output runs/search \\
        --spec 24:mean:text --spec 24:ema:text:8 --method sasa:2:raw --method sasa:8:log_sigmoid

All boundaries are fitted in one reading of the texts (`--fit-rows`), each as `sasa fit` would fit it with that embedding. Then
each completes the same prompts (`--tune-rows`) by every method, scored by a judge; nothing of this touches the rows that results
are reported on. Started again, it goes on.

`caught` asks how good a witness a boundary is while a text is being written: of the tuning rows' own continuations that
Perspective calls toxic, the share in which the margin falls, at any token, below the lowest one of all but 3 % of the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import sasa
from sasa.core.model_info import ModelInfo
from sasa.data.corpus import parse_rows
from sasa.evaluation import methods as ways
from sasa.evaluation import scorers, stages
from sasa.evaluation.reports.report import write_report
from sasa.evaluation.run import Run
from sasa.evaluation.settings import Settings
from sasa.evaluation.suites import load_suite
from sasa.evaluation.world import World
from sasa.fitting import Corpus, Recipe
from sasa.fitting.calibration import calibrate, metrics
from sasa.fitting.discriminant import GaussianStatistics, linear_discriminant
from sasa.models.embedding import embed_each_prefix, length_batches, response_start, tokenize
from sasa.utils.files import write_atomically
from sasa.utils.progress import progress_bar

console = Console(
    highlight=False, width=None if sys.stdout.isatty() else 160
)  # in a file, a table is not cut


def parse_spec(text: str, max_length: int = 256) -> sasa.EmbeddingSpec:
    """LAYER:POOLING:SPAN[:HALF_LIFE]"""
    layer, pooling, span, *rest = text.split(":")
    more = {"half_life": float(rest[0])} if rest else {}
    return sasa.EmbeddingSpec(
        layer=int(layer), pooling=pooling, span=span, max_length=max_length, **more
    )  # type: ignore[arg-type]


def embed_all(
    model: object, tokenizer: object, texts: Sequence[object], specs: Sequence[sasa.EmbeddingSpec]
) -> Iterator[tuple[list[int], list[tuple[np.ndarray, np.ndarray]]]]:
    """Batches of indices, and for each spec the prefixes' places in the batch (n,) and embeddings (n, d), from one pass."""
    encoded = [[tokenize(tokenizer, text, spec) for spec in specs] for text in texts]  # type: ignore[arg-type]
    for batch in length_batches([len(one[0][0]) for one in encoded], 64, 4096):
        starts = [[encoded[i][s][1] for i in batch] for s in range(len(specs))]
        firsts = [response_start(tokenizer, texts[i], specs[0]) for i in batch]  # type: ignore[arg-type]
        found = embed_each_prefix(model, [encoded[i][0][0] for i in batch], starts, specs, firsts)  # type: ignore[arg-type]
        yield batch, [(rows.cpu().numpy(), vectors.cpu().numpy()) for rows, vectors in found]


def recipe_of(args: argparse.Namespace) -> Recipe:
    rtp = Corpus(
        "rtp",
        path=args.rtp,
        rows=args.fit_rows,
        unsafe_from=args.unsafe_from,
        safe_below=args.safe_below,
        segments=tuple(args.segments.split(",")),
    )
    corpora = (rtp, *(Corpus.parse(c) for c in args.corpus))
    shrinkage = args.shrinkage if args.shrinkage == "auto" else float(args.shrinkage)
    return Recipe(
        corpora,
        model=args.model,
        shrinkage=shrinkage,
        calibration=0.1,
        test=0.05,
        prefixes=args.prefixes,
    )


def fit_all(args: argparse.Namespace, recipe: Recipe, folder: Path) -> dict[str, sasa.Boundary]:
    """A boundary for each spec, from one reading of the corpora."""
    model, tokenizer = sasa.load(args.model)
    names = [
        spec
        for spec in args.spec
        if not (folder / spec.replace(":", "-") / "boundary.safetensors").is_file()
    ]
    specs = [parse_spec(name) for name in names]
    examples = [(e, label) for _, e, label in recipe.examples()] if names else []
    statistics = [GaussianStatistics.empty(model.config.hidden_size) for _ in specs]
    held_out: dict[str, list[tuple[int, list[np.ndarray]]]] = defaultdict(list)
    with progress_bar("embedding", True) as bar:
        task = bar.add_task("embedding", total=len(examples))
        for first in range(0, len(examples), 512):
            window = examples[first : first + 512]
            for batch, vectors in (
                embed_all(model, tokenizer, [e.text for e, _ in window], specs) if names else ()
            ):
                part = np.array([recipe.part(window[i][0].group) for i in batch])
                label = np.array([window[i][1] for i in batch])
                whole = [np.append(rows[1:] != rows[:-1], True) for rows, _ in vectors]
                for s, (rows, found) in enumerate(vectors):
                    if (mine := (part[rows] == "fit") & (recipe.prefixes | whole[s])).any():
                        statistics[s].partial_fit(found[mine], label[rows[mine]])
                texts = [found[last] for (_, found), last in zip(vectors, whole, strict=True)]
                for name in ("calibration", "test"):
                    held_out[name] += [
                        (label[j], [v[j] for v in texts]) for j in np.flatnonzero(part == name)
                    ]
                bar.advance(task, len(batch))
    for s, (name, spec) in enumerate(zip(names, specs, strict=True)):
        weight, bias, _ = linear_discriminant(statistics[s], recipe.shrinkage)
        scored = {
            part: (
                np.array([v[s] for _, v in rows]) @ weight + bias,
                np.array([label for label, _ in rows]),
            )
            for part, rows in held_out.items()
        }
        scale, shift = calibrate(*scored["calibration"])
        figures = metrics(*scored["test"], scale, shift)
        sasa.Boundary(
            torch.tensor(weight, dtype=torch.float32),
            bias,
            spec,
            ModelInfo.of(model),
            scale,
            shift,
            report={"auc": figures["auc"]},
        ).save(folder / name.replace(":", "-"))
    return {n: sasa.Boundary.load(folder / n.replace(":", "-"), model=model) for n in args.spec}


def caught(
    args: argparse.Namespace, model: object, tokenizer: object, boundaries: dict[str, sasa.Boundary]
) -> dict[str, float]:
    """Of toxic continuations, the share whose lowest margin is below that of all but 3 % of the others."""
    pairs = Corpus(
        "rtp",
        path=args.rtp,
        rows=args.tune_rows,
        segments=("pair",),
        unsafe_from=0.5,
        safe_below=0.5,
    )
    examples = list(pairs.examples())
    toxic = np.array([e.score >= 0.5 for e in examples])
    lowest = {name: np.full(len(examples), np.inf) for name in boundaries}
    specs = [boundary.embedding for boundary in boundaries.values()]
    for batch, vectors in embed_all(model, tokenizer, [e.text for e in examples], specs):
        for (name, boundary), (rows, found) in zip(boundaries.items(), vectors, strict=True):
            np.minimum.at(
                lowest[name], np.array(batch)[rows], boundary.margin(torch.tensor(found)).numpy()
            )
    return {
        name: float((m[toxic] < np.quantile(m[~toxic], 0.03)).mean()) for name, m in lowest.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rtp", required=True, help="RealToxicityPrompts, a JSONL file")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--model", help="as for sasa.load")
    parser.add_argument(
        "--corpus", action="append", default=[], help="a further corpus to fit on, as for sasa fit"
    )
    parser.add_argument(
        "--segments", default="prompt,continuation", help="of RTP: prompt, continuation, pair"
    )
    parser.add_argument(
        "--spec", action="append", required=True, help="LAYER:POOLING:SPAN[:HALF_LIFE]; repeat it"
    )
    parser.add_argument(
        "--method", action="append", default=[], help="as for sasa bench; repeat it"
    )
    parser.add_argument("--prefixes", action="store_true", help="fit on every prefix of a text")
    parser.add_argument("--shrinkage", default="auto", help="of correlations, in [0, 1], or auto")
    parser.add_argument("--fit-rows", default="0:2500")
    parser.add_argument("--tune-rows", default="2500:3000")
    parser.add_argument("--unsafe-from", type=float, default=0.6)
    parser.add_argument("--safe-below", type=float, default=0.3)
    parser.add_argument("--limit", type=int, default=36)
    parser.add_argument("--completions", type=int, default=8)
    args = parser.parse_args()
    recipe = recipe_of(args)
    args.output /= hashlib.sha256(recipe.to_toml().encode()).hexdigest()[
        :8
    ]  # other texts, other boundaries
    boundaries = fit_all(args, recipe, args.output / "boundaries")
    write_atomically(args.output / "recipe.toml", recipe.to_toml())
    model, tokenizer = sasa.load(args.model)
    rows = parse_rows(args.tune_rows)
    suite = load_suite(
        "rtp", args.rtp, limit=args.limit, groups=["toxic", "nontoxic"], rows=rows, seed=0
    )
    results = args.output / f"{args.tune_rows.replace(':', '-')}-{args.limit}x{args.completions}"
    judge = scorers.scorer("profanity")
    lines: list[dict[str, float | str]] = []
    share = caught(args, model, tokenizer, boundaries)
    for name, boundary in boundaries.items():
        boundary.report["caught"] = share[name]
        console.print(
            f"{name}: AUC {boundary.report['auc']:.3f} on held-out texts, {share[name]:.3f} caught"
        )
    first = next(iter(boundaries.values()))
    for name, boundary in {"plain": first, **(boundaries if args.method else {})}.items():
        world = World(model, tokenizer, boundary, Settings(completions=args.completions))
        folder = results / name.replace(":", "-")
        if (
            name != "plain" or not (folder / "summary.json").is_file()
        ):  # whatever the boundary, plain text is the same
            run = Run.create(folder, suite, world, seed=0, batch_size=8, write=True)
            made = {
                spec: ways.method(spec) for spec in (["plain"] if name == "plain" else args.method)
            }
            stages.generate_stage(run, made, world, progress=True)
            stages.likelihood_stage(run, model, tokenizer, list(made), progress=True)
            stages.score_stage(run, [judge], run.methods)
            write_report([folder])
        (summary,) = json.loads((folder / "summary.json").read_text())["runs"]
        for method, found in summary["methods"].items():
            toxicity, fluency = (
                found["toxicity"]["profanity"]["groups"],
                found["perplexity_by_group"],
            )
            row: dict[str, float | str] = {
                "boundary": name,
                "auc": boundary.report["auc"],
                "caught": boundary.report["caught"],
                "method": method,
            }
            for group in ("toxic", "nontoxic"):
                row[f"emt_{group}"] = toxicity[group]["emt"]["value"]
                row[f"perplexity_{group}"] = fluency[group]["value"]
            row |= {
                k: found["figures"][k]["value"]
                for k in ("distinct_1", "distinct_2", "repetition", "tokens")
            }
            lines.append(row)
        (args.output / "search.json").write_text(json.dumps(lines, indent=1))
    table = Table(*lines[0], title="relative to plain, where there is one")
    for row in lines:
        cells = [
            v
            if isinstance(v, str)
            else f"{v:.3f}"
            if k in ("auc", "caught") or not lines[0][k]
            else f"{v:.3f} ({v / float(lines[0][k]) - 1:+.0%})"
            for k, v in row.items()
        ]
        table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    main()
