"""SASA beside other people's methods: what each costs, what it takes from text that people wrote, and one picture of it all.

    sasa bench rtp -p $D/rtp/prompts.jsonl … -M plain -M sasa:1 -M rad:toxic-comment-classifier:30 … -o runs/peers
    python benchmarks/peers.py cost --prompts $D/rtp/prompts.jsonl --rows 3000:4000 -M plain -M sasa … -o runs/peers-cost.json
    python benchmarks/peers.py tax  --prompts $D/rtp/prompts.jsonl --rows 3000:4000 -M sasa … -o runs/peers-tax.json
    python benchmarks/peers.py show --run runs/peers --judge gemma-3-270m.gguf --cost runs/peers-cost.json \\
      --tax runs/peers-tax.json --scorer tox-block --scorer profanity -o benchmarks/results/peers

`cost` has the methods complete the same prompts, of one length, one after the other and round by round: seconds of a token, and
how many times transformers' own `generate()` that is (the median of the rounds); memory is the peak of all tensors made, beyond
all weights, and what a method keeps as tensors beside the model (a reward model, experts). `tax` is log p - log q of words that
are there, over the 50 likeliest candidates and the word itself, as `sasa selectivity` and `sasa audit` have it, for every method
that has a next-token distribution: the words are forced on its own generation loop.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import sasa
from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.values import Steering
from sasa.data.corpus import parse_rows
from sasa.decoding.completion import Completion
from sasa.decoding.cost import TOP_K, Reading, candidates_of, read
from sasa.evaluation.baselines.caa import CAA
from sasa.evaluation.baselines.debias import SelfDebias
from sasa.evaluation.baselines.dexperts import DExperts, experts
from sasa.evaluation.baselines.prompt import Prompted
from sasa.evaluation.baselines.rad import RAD
from sasa.evaluation.baselines.scorers import shared_scorer
from sasa.evaluation.methods import SASA, method
from sasa.evaluation.metrics import from_json, to_json
from sasa.evaluation.reports.cells import in_cell
from sasa.evaluation.run import file_name
from sasa.evaluation.selectivity import labelled, selectivity
from sasa.evaluation.settings import Settings
from sasa.evaluation.suites import load_suite
from sasa.evaluation.world import Method, World
from sasa.fitting import Corpus
from sasa.fitting.identity import About, load_people
from sasa.models.embedding import response_start, tokenize
from sasa.utils.files import differences, read_json, write_atomically
from sasa.utils.progress import progress_bar

sys.path.insert(0, str(Path(__file__).parent))
from speed import Peak

BARE = "generate()"
"""transformers' own sampling, which all methods are timed against."""
PLACES = 20
"""Tokens of a text that are forced."""
READ = (RAD, DExperts, SelfDebias, CAA, Prompted)
"""Methods with a next-token distribution of their own, besides SASA, which has a quicker way."""
NEEDS = {
    "plain": "nothing",
    "sasa": "a boundary: one pass over labelled texts",
    "rad": "a reward model, trained on labelled texts",
    "dexperts": "two trained copies of the model",
    "self-debias": "nothing",
    "caa": "a vector: one pass over labelled texts",
    "prompt": "nothing",
    "guard": "a classifier, trained on labelled texts",
    "reset": "the model trained on pairs of replies",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("cost", "tax"):
        command = commands.add_parser(name)
        command.add_argument(
            "--prompts", type=Path, required=True, help="RealToxicityPrompts rows, JSONL"
        )
        command.add_argument("--rows", default=":", help="START:STOP")
        command.add_argument("--method", "-M", action="append", required=True)
        command.add_argument("--model")
        command.add_argument("--boundary", default="toxicity")
        command.add_argument(
            "--limit",
            type=int,
            default=6 if name == "cost" else 60,
            help="prompts, or texts a group",
        )
        command.add_argument("--output", "-o", type=Path, required=True, help="a JSON file")
        if name == "cost":
            command.add_argument("--completions", type=int, default=10)
            command.add_argument("--tokens", type=int, default=20)
            command.add_argument("--rounds", type=int, default=3)
        else:
            command.add_argument("--people", help="a file of sentences about groups", default=None)
    command = commands.add_parser("show")
    command.add_argument(
        "--run",
        type=Path,
        action="append",
        required=True,
        help="a folder of `sasa bench`; repeat it",
    )
    command.add_argument(
        "--judge", help="the model whose perplexity counts; by default the generating one"
    )
    command.add_argument("--scorer", action="append", required=True)
    command.add_argument("--group", default="toxic")
    command.add_argument("--cost", type=Path)
    command.add_argument("--tax", type=Path, action="append", default=[], help="repeat it")
    command.add_argument("--output", "-o", type=Path, required=True, help="a folder")
    args = parser.parse_args()
    {"cost": cost, "tax": tax, "show": show}[args.command](args)


def bare(world: World, prompts: Sequence[str], seed: int) -> list[list[Completion]]:
    """What `BARE` is."""
    return world.sample(prompts, seed=seed)


# What each costs


def alive() -> list[Tensor]:
    """All tensors that somebody holds."""
    # isinstance would wake what stands in for something else
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]


def held() -> int:
    """Their bytes."""
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive()}.values()
    )


def cost(args: argparse.Namespace) -> None:
    model, tokenizer = sasa.load(args.model)
    boundary = sasa.Boundary.load(args.boundary, model=model)
    prompts = of_one_length(args, tokenizer)
    world = World(model, tokenizer, boundary, Settings(args.completions, args.tokens))
    ways: dict[str, Any] = {BARE: bare}
    kept: dict[str, float] = {BARE: 0.0}
    ways[BARE](world, prompts, 0)
    for name in args.method:
        # What another method has loaded is loaded once more, to be counted for this one, too.
        shared_scorer.cache_clear()
        experts.cache_clear()
        gc.collect()
        before = held()
        ways[name] = method(name)
        ways[name](world, prompts, 0)  # warms up, and loads what it needs
        gc.collect()
        kept[name] = max(0, held() - before) / 2**20
    rounds: list[dict[str, float]] = []
    with progress_bar("rounds", True) as bar:
        task = bar.add_task("rounds", total=args.rounds * len(ways))
        for number in range(args.rounds):
            rounds.append({})
            for name, way in ways.items():
                start = time.perf_counter()
                rows = way(world, prompts, number)
                seconds = time.perf_counter() - start
                rounds[-1][name] = seconds / sum(len(c.tokens) for row in rows for c in row)
                bar.advance(task)
    results = []
    for name, way in ways.items():
        with Peak(model, alive()) as peak:
            rows = way(world, prompts, 0)
        delivered = sum(len(c.tokens) for row in rows for c in row)
        results.append(
            {
                "method": name,
                "seconds_a_token": statistics.median(r[name] for r in rounds),
                "times_generate": statistics.median(r[name] / r[BARE] for r in rounds),
                "peak_mb": peak.most / 2**20,
                "kept_mb": kept[name],
                "drawn_a_token": sum(c.spent for row in rows for c in row) / delivered,
            }
        )
    about = {
        "settings": told(args),
        "prompts": len(prompts),
        "threads": torch.get_num_threads(),
        "results": results,
    }
    write_atomically(args.output, json.dumps(about, indent=1) + "\n")
    table = Table(
        "method",
        "ms a token",
        f"times {BARE}",
        "peak, MB",
        "kept beside the model, MB",
        "drawn a token",
    )
    for row in results:
        numbers = (
            row["seconds_a_token"] * 1e3,
            *(row[k] for k in ("times_generate", "peak_mb", "kept_mb", "drawn_a_token")),
        )
        table.add_row(row["method"], *(f"{number:.2f}" for number in numbers))
    Console(width=140).print(table)


def of_one_length(args: argparse.Namespace, tokenizer: Any) -> list[str]:
    """Prompts of as many tokens as most have, so that no method loses time to padding."""
    suite = load_suite("rtp", args.prompts, rows=parse_rows(args.rows))
    lengths: dict[int, list[str]] = {}
    for prompt in suite.prompts:
        lengths.setdefault(len(tokenizer(prompt.text).input_ids), []).append(prompt.text)
    return max(lengths.values(), key=len)[: args.limit]


# What each takes


@dataclass
class Words:
    """Texts whose words are forced on a method, and what it makes of them.

    Attributes:
        prompts: as text; written: token ids behind each.
        candidates, log_p: for each text and place, ids (K,) of the candidates, and what the model alone gives them.
        scores: for each text and place, what a method gives them, (K,).
        rows: which texts stand in the rows of the batch that is being read; start: their prompts' length.
    """

    prompts: list[str]
    written: list[list[int]]
    candidates: list[list[Tensor]] = field(default_factory=list)
    log_p: list[list[Tensor]] = field(default_factory=list)
    scores: list[list[Tensor]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    start: int = 0
    plain: bool = True


class Only(LogitsProcessor):
    """Leaves nothing but the candidates, for methods that reweight what is left."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        step = input_ids.shape[1] - self.words.start
        out = torch.full_like(scores, -torch.inf)
        for row, text in enumerate(self.words.rows):
            ids = self.words.candidates[text]
            at = ids[min(step, len(ids) - 1)]
            out[row, at] = scores[row, at]
        return out


class Force(LogitsProcessor):
    """Writes down the scores of the candidates, or while the model is plain which ones there are, and lets the word that is
    there be drawn.
    """

    def __init__(self, words: Words) -> None:
        self.words = words

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        words, step = self.words, input_ids.shape[1] - self.words.start
        forced = torch.full_like(scores, -torch.inf)
        for row, text in enumerate(words.rows):
            written = words.written[text]
            if step < len(written):
                if words.plain:
                    here = torch.tensor(written[step : step + 1], device=scores.device)
                    log_p, ids, _ = candidates_of(scores[row : row + 1].float(), here, TOP_K)
                    words.candidates[text].append(ids[0])
                    words.log_p[text].append(log_p[0])
                else:
                    words.scores[text].append(scores[row, words.candidates[text][step]].float())
            forced[row, written[min(step, len(written) - 1)]] = 0.0
        return forced


@dataclass(frozen=True)
class Forced(World):
    """A world in which methods can write nothing but the words that are there."""

    words: Words = field(default_factory=lambda: Words([], []))

    def limits(self) -> LogitsProcessorList:
        return LogitsProcessorList([Only(self.words)])

    def sample(
        self, prompts: Sequence[str], *, seed: int, completions: int | None = None, chat: bool | None = None,
        processor: LogitsProcessor | None = None,
    ) -> list[list[Completion]]:  # fmt: skip
        model: Any = self.model
        encoded = [self.tokenizer(prompt).input_ids for prompt in prompts]
        here = list(self.words.rows)
        for length in dict.fromkeys(map(len, encoded)):
            part = [i for i, ids in enumerate(encoded) if len(ids) == length]
            self.words.rows, self.words.start = [here[i] for i in part], length
            ids = torch.tensor([encoded[i] for i in part], device=model.device)
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=max(len(self.words.written[text]) for text in self.words.rows), eos_token_id=None, pad_token_id=0,
                logits_processor=LogitsProcessorList([*([processor] if processor else []), Force(self.words)]),
            )  # fmt: skip
        self.words.rows = here
        return []


def forced(world: World, words: Words, way: Any, title: str) -> None:
    """Has a method write the words that are there."""
    words.scores = [[] for _ in words.prompts]
    inside = Forced(world.model, world.tokenizer, world.boundary, world.settings, words=words)
    order = sorted(
        range(len(words.prompts)),
        key=lambda i: (len(world.tokenizer(words.prompts[i]).input_ids), i),
    )
    with progress_bar(title, True) as bar:
        task = bar.add_task(title, total=len(order))
        for first in range(0, len(order), 16):
            words.rows = order[first : first + 16]
            way(inside, [words.prompts[i] for i in words.rows], 0)
            bar.advance(task, len(words.rows))


def words_of(tokenizer: Any, texts: Sequence[Any]) -> Words:
    """Texts as a prompt and the tokens behind it; of a plain text, the first token is the prompt."""
    words, spec = Words([], []), EmbeddingSpec(max_length=2**31)
    for text in texts:
        ids, _ = tokenize(tokenizer, text, spec)
        first = max(1, response_start(tokenizer, text, spec))
        prompt = text[0] if isinstance(text, tuple) else str(tokenizer.decode(ids[:1]))
        if tokenizer(prompt).input_ids != ids[:first]:
            raise SystemExit(
                f"{text!r}: its prompt is other tokens by itself, as where a tokenizer opens texts: such a model's tax cannot "
                "be read here"
            )
        words.prompts.append(prompt)
        words.written.append(ids[first : first + PLACES])
        words.candidates.append([])
        words.log_p.append([])
    return words


def reading_by(world: World, words: Words, way: Method, title: str) -> Reading:
    """What a method makes of texts, in the form of `sasa.decoding.cost`: its log q - log p in the place of margins."""
    forced(world, words, way, title)
    places = [
        (text, place) for text, rows in enumerate(words.candidates) for place in range(len(rows))
    ]
    log_p = torch.stack([words.log_p[text][place] for text, place in places])
    log_q = torch.stack([words.scores[text][place] for text, place in places]).log_softmax(-1)
    here = [
        (words.candidates[text][place] == words.written[text][place]).int().argmax()
        for text, place in places
    ]
    text, place = torch.tensor(places).T
    return Reading(text, place, log_p, (log_q - log_p)[:, :, None], torch.stack(here))


def tax(args: argparse.Namespace) -> None:
    """Writes its file after each method, and goes on with one that is there."""
    settings = {key: value for key, value in told(args).items() if key not in ("method", "output")}
    ways = {name: method(name) for name in args.method}
    for name, way in ways.items():
        if not isinstance(way, (SASA, *READ)) or getattr(way, "words", False):
            raise SystemExit(
                f"{name} has no next-token distribution of its own that could be read here"
            )
    results = together_taxes([args.output] if args.output.is_file() else [], settings)
    versions = {row["method"]: row.get("version", "") for row in results}
    for name, version in versions.items():
        if name in ways and ways[name].version != version:
            raise SystemExit(
                f"{args.output} has figures of another {name}: choose another --output"
            )
    ways = {name: way for name, way in ways.items() if name not in versions}
    if not ways:
        return
    model, tokenizer = sasa.load(args.model)
    boundary = sasa.Boundary.load(args.boundary, model=model)
    world = World(model, tokenizer, boundary, Settings())
    corpus = Corpus(
        "rtp", path=str(args.prompts), rows=args.rows, safe_below=0.3, segments=("pair",)
    )
    texts = labelled(corpus, args.limit)
    groups = [one.group for one in texts]
    about = About.of(load_people("audit", args.people), tokenizer, EmbeddingSpec())
    parts: dict[str, Words] = {
        "texts": words_of(tokenizer, [one.text for one in texts]),
        "people": words_of(tokenizer, about.texts),
    }
    for part, words in parts.items():
        forced(world, words, bare, f"{part}, plain")
        words.plain = False
    margins: dict[str, Reading] = {}  # of the boundary, whatever the strength
    for name, way in ways.items():
        if isinstance(way, SASA):
            steering = Steering.of(boundary, way.beta, way.value, way.prior)
            if not margins:
                for part, some in (("texts", [one.text for one in texts]), ("people", about.texts)):
                    margins[part] = read(
                        model, tokenizer, some, boundary, max_tokens=PLACES, progress=True
                    )
            readings = margins
        else:
            steering = Steering.of(boundary, 1.0, "raw")  # of margins that are log q - log p
            readings = {
                part: reading_by(world, words, way, f"{name}: {part}")
                for part, words in parts.items()
            }
        by_class = {
            group: one.per_token
            for group, one in selectivity(readings["texts"], groups, steering).items()
        }
        people = about.figures(readings["people"], steering)
        results.append(
            {"method": name, "version": way.version, "nats_a_token": by_class, "people": people}
        )
        write_atomically(
            args.output,
            json.dumps(to_json({"settings": settings, "results": results}), indent=1) + "\n",
        )
        worst = people["worst"]
        print(
            f"{name}: {', '.join(f'{group} {nats}' for group, nats in by_class.items())}; "
            f"people {people['controls']:.2f}, {worst['group']} {worst['beyond']:+.2f}",
            flush=True,
        )


def together_taxes(
    files: Sequence[Path], settings: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """What several files of `tax` hold, of one method once, which must be of the same settings."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        content = read_json(file, object_hook=from_json)
        settings = settings or content["settings"]
        if other := differences(content["settings"], settings):
            raise SystemExit(f"{file} holds figures of other settings: {'; '.join(other)}")
        for row in content["results"]:
            found.setdefault(row["method"], row)
    return list(found.values())


# One table and one picture


def show(args: argparse.Namespace) -> None:
    run = together(args.run)
    costs = {row["method"]: row for row in read_json(args.cost)["results"]} if args.cost else {}
    taxes = {row["method"]: row for row in together_taxes(args.tax)}
    fluency = f"perplexity@{file_name(args.judge)}" if args.judge else "perplexity"
    args.output.mkdir(parents=True, exist_ok=True)
    lines = table_of(run, args, costs, taxes, fluency)
    write_atomically(args.output / "peers.md", "\n".join(lines) + "\n")
    if taxes:
        settings = read_json(args.tax[0])["settings"]
        content = to_json({"settings": settings, "results": list(taxes.values())})
        write_atomically(args.output / "tax.json", json.dumps(content, indent=1) + "\n")
    draw(run, args, costs, fluency)
    print("\n".join(lines))


def together(folders: Sequence[Path]) -> dict[str, Any]:
    """A run whose methods are those of several, of the same prompts and settings; each kind's from weak to strong."""
    found: dict[str, Any] = {}
    for folder in folders:
        (run,) = read_json(folder / "summary.json", object_hook=from_json)["runs"]
        same = ("suite", "groups", "settings", "seed", "batch_size", "model", "scorers")
        if differ := [key for key in same if found and found[key] != run[key]]:
            raise SystemExit(f"{folder} is another run: its {', '.join(differ)} differ")
        found = found or run
        found["methods"] = found["methods"] | {
            k: v for k, v in run["methods"].items() if k not in found["methods"]
        }
    kinds = list(dict.fromkeys(name.partition(":")[0] for name in found["methods"]))

    def place(name: str) -> tuple[int, float]:
        strength = name.rpartition(":")[2]
        return kinds.index(name.partition(":")[0]), float(strength) if re.fullmatch(
            r"[0-9.]+", strength
        ) else 0.0

    found["methods"] = {
        name: found["methods"][name] for name in sorted(found["methods"], key=place)
    }
    return found


def table_of(
    run: dict[str, Any], args: argparse.Namespace, costs: dict, taxes: dict, fluency: str
) -> list[str]:
    """A row for each method: by each scorer, on the group's prompts and on the others; the rest over all prompts."""
    others = [group for group in run["groups"] if group != args.group]
    heads = [f"EMT, {group}: {scorer}" for group in (args.group, *others) for scorer in args.scorer]
    heads += [
        fluency,
        "distinct-2",
        "repetition",
        "ms a token",
        f"times {BARE}",
        "peak / kept, MB",
        "drawn a token",
    ]
    heads += ["tax: safe after safe, after unsafe", "names: controls, worst group beyond", "needs"]
    lines = [f"| method | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    plain = run["methods"]["plain"]
    for name, one in run["methods"].items():
        cells = []
        for group in (args.group, *others):
            for scorer in args.scorer:
                emt = one["toxicity"][scorer]["groups"][group]["emt"]
                base = plain["toxicity"][scorer]["groups"][group]["emt"].value
                less = "" if name == "plain" else f" ({emt.value / base - 1:+.0%})"
                cells.append(f"{emt}{less}")
        figures = one["figures"]
        over = (
            ""
            if name == "plain"
            else f" (x{figures[fluency].value / plain['figures'][fluency].value:.3f})"
        )
        cells.append(
            f"{figures[fluency].value:.2f} [{figures[fluency].low:.2f}, {figures[fluency].high:.2f}]{over}"
        )
        cells += [f"{figures[key].value:.3f}" for key in ("distinct_2", "repetition")]
        price, tax_ = costs.get(name), taxes.get(name)
        cells += (
            [
                f"{price['seconds_a_token'] * 1e3:.1f}", f"{price['times_generate']:.2f}",
                f"{price['peak_mb']:.0f} / {price['kept_mb']:.0f}", f"{price['drawn_a_token']:.2f}",
            ] if price else ["–"] * 4
        )  # fmt: skip
        if tax_:
            nats, people = tax_["nats_a_token"], tax_["people"]
            cells.append(
                ", ".join(
                    str(nats.get(f"safe after {before}", "–")) for before in ("safe", "unsafe")
                )
            )
            cells.append(
                f"{people['controls']:.2f}, {people['worst']['beyond']:+.1f} ({people['worst']['group']})"
            )
        else:
            cells += ["–", "–"]
        lines.append(
            f"| {in_cell(name)} | {' | '.join([*cells, NEEDS.get(name.partition(':')[0], '')])} |"
        )
    return lines


def draw(run: dict[str, Any], args: argparse.Namespace, costs: dict, fluency: str) -> None:
    """EMT against perplexity, a panel for each scorer: a line for each method, a point's area is its time a token."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(args.scorer), 5.2), layout="constrained")
    families: dict[str, list[str]] = {}
    for name in run["methods"]:
        families.setdefault(name.partition(":")[0], []).append(name)
    for axis, scorer in zip(
        figure.subplots(1, len(args.scorer), squeeze=False)[0], args.scorer, strict=True
    ):
        for number, (family, names) in enumerate(families.items()):
            some = [run["methods"][name] for name in names]
            points = [
                (m["figures"][fluency], m["toxicity"][scorer]["groups"][args.group]["emt"])
                for m in some
            ]
            x, y = ([point[i].value for point in points] for i in (0, 1))
            low, high = (
                [[abs(p[i].value - getattr(p[i], end)) for p in points] for i in (0, 1)]
                for end in ("low", "high")
            )
            colour = "k" if family == "plain" else f"C{number}"
            main = family == "sasa"
            axis.errorbar(
                x, y, xerr=[low[0], high[0]], yerr=[low[1], high[1]], fmt="-", color=colour, linewidth=2.4 if main else 1,
                elinewidth=0.5, alpha=1 if main else 0.75, zorder=3 if main else 2,
            )  # fmt: skip
            sizes = [30 * costs[name]["times_generate"] if name in costs else 30 for name in names]
            axis.scatter(x, y, s=sizes, color=colour, alpha=0.8, zorder=4, label=family)
            for name, px, py in zip(names, x, y, strict=True):
                strength = name.rpartition(":")[2] if family != "prompt" else ""
                axis.annotate(
                    strength,
                    (px, py),
                    xytext=(6, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color=colour,
                )
        axis.set(
            xlabel=f"perplexity under {args.judge or 'the model itself'} (left: better)",
            title=scorer,
            ylim=(0, None),
        )
        axis.set_ylabel(f"expected maximum toxicity, {args.group} prompts (down: better)")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    axis.legend(frameon=False, fontsize=8, title="area: time a token", title_fontsize=8)
    figure.savefig(args.output / "peers.png", dpi=130)


def told(args: argparse.Namespace) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
    }


if __name__ == "__main__":
    main()
