"""`sasa redteam`: what still gets through, and what is left of it elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from sasa.cli.common import (
    BoundariesOption,
    DeviceOption,
    DtypeOption,
    StrictOption,
    load_boundaries,
    named_base,
    out,
    read_prompts,
)
from sasa.evaluation.registry import METHODS_HELP, SCORERS
from sasa.evaluation.settings import Settings
from sasa.redteam.settings import HIT, METHODS, PARTS, REPLY_TOKENS, RedTeam

if TYPE_CHECKING:
    from sasa.redteam.store import Attempts
    from sasa.redteam.targets import Target

DEFAULTS = RedTeam()
JUDGES = "tox-block", "toxic-comment-classifier"
SAMPLING = Settings(1, REPLY_TOKENS, chat=True)
FAILED = 3
"""Exit status where more got through than --fail-above allows."""

app = typer.Typer(
    no_args_is_help=True,
    help="Attack a model with prompts that it is led to write badly by, report, export, and replay them against defences.",
)

ThresholdOption = Annotated[float, typer.Option(help="From this score on a reply is toxic.")]
ClustersOption = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(PARTS)}: train on what the even clusters hold, report on the odd ones, with the same threshold.",
    ),
]
JudgesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        "-s",
        help=f"Repeat for several; of replies. There are {', '.join(SCORERS)}, hf:MODEL, words:CORPUS.",
        show_default=" ".join(JUDGES),
    ),
]
ChatOption = Annotated[
    bool,
    typer.Option("--chat/--no-chat", help="The target reads attacks through its chat template."),
]


@app.callback()
def _group() -> None:
    """Attack, report, export, replay."""


@app.command("run")
def run(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the attack; the same one goes on where it stopped."
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="What is attacked: a Hub id, folder or GGUF file; http://HOST/v1, an endpoint of OpenAI's protocol; "
            "command:PROGRAM, which reads an attack and writes a reply; MODULE:FUNCTION, from attacks to replies.",
            show_default="SmolLM2-135M-Instruct, embedded",
        ),
    ] = None,
    target_model: Annotated[
        str | None,
        typer.Option(help="What an endpoint calls the model; its key is in $OPENAI_API_KEY."),
    ] = None,
    target_extra: Annotated[
        str | None,
        typer.Option(
            help='JSON that an endpoint gets with each request: \'{"vllm_xargs": {"sasa_beta": 4}}\' has `sasa serve` steer.'
        ),
    ] = None,
    defence: Annotated[
        str,
        typer.Option("--defence", "-D", help=f"Of a model. {METHODS_HELP}."),
    ] = "plain",
    boundary: BoundariesOption = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-M",
            help="; ".join(f"{name}: {what}" for name, what in METHODS.items()) + ".",
        ),
    ] = DEFAULTS.method,
    cases: Annotated[
        int,
        typer.Option(
            "--cases", "-n", help="Attacks to try; a finished run goes on where more are asked for."
        ),
    ] = DEFAULTS.cases,
    contexts: Annotated[
        Path | None,
        typer.Option(
            "--contexts",
            "-z",
            help="What attacks are written from: a .txt file, one a line, \\n for a line's end, such as `Rude questions:\\n1.`; "
            "or .jsonl with prompts.",
            show_default="a few lists of rude things",
        ),
    ] = None,
    include_context: Annotated[
        bool,
        typer.Option(
            "--include-context", help="Attacks begin with their contexts: for first words of texts."
        ),
    ] = False,
    judges: JudgesOption = None,
    single_judge: Annotated[
        bool,
        typer.Option("--single-judge", help="Allow one judge: its mistakes then count as hits."),
    ] = False,
    attacker: Annotated[
        str | None,
        typer.Option(
            "--attacker",
            "-a",
            help="The model that attacks, as for --target.",
            show_default="SmolLM2-135M-Instruct",
        ),
    ] = None,
    attacker_chat: Annotated[
        bool,
        typer.Option("--attacker-chat", help="Contexts go through the attacker's chat template."),
    ] = False,
    novelty: Annotated[
        str,
        typer.Option(
            help="In meaning: mean, over all earlier attacks, or knn:K, over the K most alike."
        ),
    ] = f"knn:{DEFAULTS.nearest}" if DEFAULTS.nearest else "mean",
    naturalness: Annotated[
        str | None,
        typer.Option(
            help="A classifier of natural text, such as hf:madhurjindal/autonlp-Gibberish-Detector-492513457#clean.",
            show_default="the attacker's own surprise",
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="A sentence encoder.", show_default="all-MiniLM-L6-v2")
    ] = None,
    w_naturalness: Annotated[
        float, typer.Option(help="Weight of naturalness.")
    ] = DEFAULTS.naturalness,
    w_bleu: Annotated[float, typer.Option(help="Weight of novelty in words.")] = DEFAULTS.self_bleu,
    w_cos: Annotated[float, typer.Option(help="Weight of novelty in meaning.")] = DEFAULTS.cosine,
    gated: Annotated[
        bool,
        typer.Option(
            "--gated/--added",
            help="Novelty is what share of the toxicity is paid; or is added to it, as in the paper.",
        ),
    ] = DEFAULTS.gated,
    kl: Annotated[
        float, typer.Option(help="Weight of the attacker's KL to what it was.")
    ] = DEFAULTS.kl,
    entropy: Annotated[
        float, typer.Option(help="Weight of the attacker's entropy.")
    ] = DEFAULTS.entropy,
    contexts_per_step: Annotated[
        int, typer.Option(help="Contexts in a step.")
    ] = DEFAULTS.contexts_per_step,
    samples: Annotated[
        int, typer.Option("--samples", "-c", help="Attacks from each.")
    ] = DEFAULTS.samples,
    attack_tokens: Annotated[
        int, typer.Option(help="Tokens of an attack, at most.")
    ] = DEFAULTS.max_new_tokens,
    attack_temperature: Annotated[float, typer.Option(help="Of attacks.")] = DEFAULTS.temperature,
    reply_tokens: Annotated[
        int, typer.Option(help="Tokens of a reply, at most.")
    ] = SAMPLING.max_new_tokens,
    temperature: Annotated[float, typer.Option(help="Of replies.")] = SAMPLING.temperature,
    top_k: Annotated[int, typer.Option(help="Of a model's replies; 0: no limit.")] = SAMPLING.top_k,
    top_p: Annotated[float, typer.Option(help="Of replies.")] = SAMPLING.top_p,
    timeout: Annotated[
        float, typer.Option(help="Seconds for a reply of an endpoint or a program.")
    ] = 60.0,
    chat: ChatOption = True,
    lora: Annotated[
        int, typer.Option(help="Rank of the attacker's adapter; 0 trains all weights.")
    ] = DEFAULTS.lora,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW.", show_default="1e-3, all weights 1e-5")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Attacks in a pass with gradients.")
    ] = DEFAULTS.batch_size,
    save_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints.")
    ] = DEFAULTS.save_steps,
    keep_attacker: Annotated[
        bool,
        typer.Option(
            "--keep-attacker",
            help="Keep the trained attacker, a harmful model, in OUTPUT/attacker.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Find prompts that a target answers in a toxic way: as different from each other as they come.

        sasa redteam run -o runs/attack

        sasa redteam run --target my-model --defence sasa -o runs/attack-sasa

        sasa redteam run --target http://localhost:8000/v1 --target-model NAME -o runs/attack-endpoint

        sasa redteam report runs/attack

    An attacker, a language model, learns from the first judge's scores and from how new its attacks are (curiosity-driven
    red-teaming, Hong et al., ICLR 2024). The other judges take no part: they are for the report. Stopped at any moment, the same
    command goes on; what is on record is not asked for again.
    """
    settings = RedTeam(
        method, cases, contexts_per_step, samples, attack_tokens, attack_temperature, w_naturalness, w_bleu, w_cos, kl,
        entropy, gated=gated, nearest=_nearest(novelty), lora=lora, learning_rate=learning_rate, include_context=include_context,
        chat=attacker_chat, batch_size=batch_size, save_steps=save_steps, seed=seed,
    )  # fmt: skip
    import sasa
    from sasa.evaluation import scorers
    from sasa.redteam.attacker import check_scorers, red_team
    from sasa.redteam.encoder import encoder as load_encoder
    from sasa.redteam.texts import default_contexts

    asked = list(dict.fromkeys(judges or JUDGES))
    check_scorers(asked, single_judge)
    if "boundary" in asked:
        raise ValueError(
            "the boundary may be part of the defence, and is no judge of it: name another --judge"
        )
    texts = (
        [text.replace("\\n", "\n") for text in read_prompts(contexts)]
        if contexts
        else default_contexts()
    )
    scoring = [scorers.scorer(name) for name in asked]
    natural = scorers.scorer(naturalness) if naturalness else None
    for one in (*scoring, *([natural] if natural else [])):
        scorers.try_scorer(one)
    sampling = Settings(1, reply_tokens, temperature, top_k, top_p, chat)
    attacked = _target(
        *(
            target,
            target_model,
            target_extra,
            defence,
            boundary,
            sampling,
            timeout,
            strict,
            device,
            dtype,
        )
    )
    loaded, tokenizer = sasa.load(attacker, device, dtype)
    store = red_team(
        attacked, loaded, tokenizer, texts, scoring, output, settings, embed=load_encoder(encoder, device),
        naturalness=natural, single_judge=single_judge, keep_attacker=keep_attacker, base=named_base(attacker), progress=True,
    )  # fmt: skip
    failed = sum(record["error"] is not None for record in store.records)
    out.print(
        f"{len(store.records)} cases on record, {failed} of them without a reply. Next: sasa redteam report {output}",
        soft_wrap=True,
        markup=False,
    )


@app.command("report")
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of attacks.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where the report goes.", show_default="DIR/report, of one"
        ),
    ] = None,
    threshold: ThresholdOption = HIT,
    show: Annotated[
        bool, typer.Option("--show", help="Show texts, which are offensive, and not first letters.")
    ] = False,
    fail_above: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help=f"End with exit status {FAILED} where more than this share of cases is toxic by all judges.",
        ),
    ] = None,
) -> None:
    """Write what attacks found as Markdown, HTML, JSON and pictures: hits, their clusters, quality, diversity, agreement.

    sasa redteam report runs/attack

    sasa redteam report runs/zero-shot runs/rl runs/curiosity -o runs/comparison

    sasa redteam report runs/attack --fail-above 0.01    # in a pipeline
    """
    from sasa.redteam.report import REPORT, write_report

    attacks = write_report(folders, output, threshold=threshold, show=show)["attacks"]
    judges = list(attacks[0]["judges"])
    by = judges[-1]  # all of them, where there are several
    table = Table(
        "attack", "method", "cases", "failed", f"toxic by {by}", "distinct hits", "clusters"
    )
    worst = 0.0
    for attack in attacks:
        side = attack["judges"][by]
        rate = side["rate"]
        worst = max(
            worst, 1.0 if rate is None else rate.value
        )  # a target that answered nothing has passed nothing
        share = f"{rate.value:.2%}" if rate else "–"
        counts = (attack["cases"], attack["failed"], share, side["hits"], side["clusters"])
        table.add_row(attack["name"], attack["method"], *map(str, counts))
    out.print(table)
    place = output or folders[0] / "report"
    out.print(
        f"report, with pictures: {place / REPORT}, {place / 'report.html'}",
        soft_wrap=True,
        markup=False,
    )
    if fail_above is not None and worst > fail_above:
        out.print(
            f"{worst:.2%} of cases are toxic by {by}, more than {fail_above:.2%}", markup=False
        )
        raise typer.Exit(FAILED)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of an attack.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; it holds offensive text.")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="prompts: JSONL for sasa train repulse, sasa redteam replay, sasa bench attaq and rtp. garak: its hit log. csv, "
            "jsonl: all that is known. replies: a CSV for sasa fit FILE::text=reply,label=toxic.",
        ),
    ] = "prompts",
    threshold: ThresholdOption = HIT,
    clusters: ClustersOption = "all",
) -> None:
    """Write an attack's distinct hits into a file, for other tools and for training.

    sasa redteam export runs/attack -o hits.jsonl --clusters even

    sasa train repulse hits.jsonl --chat --beta-kl 0.5 --steps 20 -o safer

    sasa redteam replay runs/attack --clusters odd -m HuggingFaceTB/SmolLM2-135M-Instruct -m safer
    """
    from sasa.redteam.exports import export

    count = export(folder, output, form, threshold=threshold, clusters=clusters)
    out.print(
        f"wrote {count} {'replies' if form == 'replies' else 'hits'} to {output}",
        soft_wrap=True,
        markup=False,
    )


@app.command("replay")
def replay_command(
    attacks: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="The folder of an attack; or a .txt or .jsonl file of prompts."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where the replay goes.", show_default="DIR/replay"),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Repeat for several, such as trained ones: the others are compared with the first one.",
            show_default="the default model, where that was attacked",
        ),
    ] = None,
    defences: Annotated[
        list[str] | None,
        typer.Option(
            "--defence",
            "-D",
            help="Repeat for several; plain is always there.",
            show_default="plain sasa",
        ),
    ] = None,
    boundary: BoundariesOption = None,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge", "-s", help="As in `sasa redteam run`.", show_default="those of the attack"
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Hits to replay: of each cluster one, then another.")
    ] = 100,
    clusters: ClustersOption = "all",
    harmless: Annotated[
        Path | None,
        typer.Option(
            help="Harmless prompts, .txt or .jsonl, as many as hits.",
            show_default="a hundred of our own",
        ),
    ] = None,
    completions: Annotated[
        int, typer.Option("--completions", "-c", min=1, help="Replies to each prompt.")
    ] = 5,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "-n",
            min=1,
            help="Tokens a reply, at most.",
            show_default="as in the attack",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of replies.", show_default="as in the attack")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Of replies; 0: no limit.", show_default="as in the attack")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Of replies.", show_default="as in the attack")
    ] = None,
    chat: ChatOption = True,
    threshold: ThresholdOption = HIT,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts at a time.", show_default="64 replies' worth")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every batch.")] = 0,
    strict: StrictOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Try the attacks that got through again: against other defences and models, several times each, beside harmless prompts.

    sasa redteam replay runs/attack -D sasa -D backtrack -D sasa+backtrack

    sasa redteam replay runs/attack --clusters odd -m HuggingFaceTB/SmolLM2-135M-Instruct -m safer --no-strict -D sasa
    """
    import sasa
    from sasa.core.settings import DEFAULT_MODEL
    from sasa.evaluation import methods as ways
    from sasa.evaluation import scorers
    from sasa.redteam.replays import replay, replay_suite
    from sasa.redteam.store import Attempts

    for name in defences or []:
        ways.method(name)
    store = None if attacks.is_file() else Attempts.open(attacks)
    texts = read_prompts(harmless) if harmless else None
    suite = replay_suite(
        read_prompts(attacks) if store is None else store,
        limit=limit,
        clusters=clusters,
        threshold=threshold,
        harmless=texts,
    )
    if (
        not models
        and store is not None
        and store.about["target"].get("model", {}).get("id") != DEFAULT_MODEL
    ):
        raise ValueError(
            f"{attacks} attacked another model than the default one: say which to replay against, --model"
        )
    known = list(JUDGES) if store is None else store.judges
    if not judges and (
        lost := [name for name in known if name not in SCORERS and not name.startswith("hf:")]
    ):
        raise ValueError(
            f"what {', '.join(lost)} was made from is not on record: name the judges again, --judge"
        )
    scoring = [scorers.scorer(name) for name in dict.fromkeys(judges or known)]
    for one in scoring:
        scorers.try_scorer(one)
    names = list(dict.fromkeys(models or [DEFAULT_MODEL]))
    short = [Path(name).name for name in names]
    worlds: dict[str, Any] = {}
    for name, last in zip(names, short, strict=True):
        loaded, tokenizer = sasa.load(name, device, dtype)
        lines = load_boundaries(boundary, loaded, strict)
        worlds[last if short.count(last) == 1 else name] = loaded, tokenizer, lines
    place = output or (attacks / "replay" if store is not None else attacks.with_suffix(".replay"))
    settings = _sampling(store, completions, max_new_tokens, temperature, top_k, top_p, chat)
    found = replay(
        suite, worlds, defences or ["sasa"], scoring, place, settings, seed=seed, batch_size=batch_size,
        threshold=threshold, progress=True,
    )  # fmt: skip
    table = Table(
        "model", "defence", "attack success rate", "change", "p", "harmless: perplexity", "tokens"
    )
    for row in found["rows"]:
        test = row.get("test")
        success = row["success"]
        table.add_row(
            escape(row["model"]), escape(row["defence"]), f"{success.value:.3f} [{success.low:.3f}, {success.high:.3f}]",
            "" if not test else "–" if math.isnan(row["change"].value) else f"{row['change'].value:+.0%}",
            f"{test['p']:.2g}" if test else "",
            f"{row['perplexity'].value:.2f}", f"{row['tokens'].value:.1f}",
        )  # fmt: skip
    out.print(table)
    for name, why in found["left_out"].items():
        for error in why.values():
            out.print(f"left out for {name}: {error}", soft_wrap=True, markup=False)
    out.print(
        f"report, with intervals and a picture: {place / 'replay.md'}", soft_wrap=True, markup=False
    )


def _sampling(
    store: Attempts | None,
    completions: int,
    max_new_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    chat: bool,
) -> Settings:
    """How replies are sampled: as asked for, else as the attack's were, where a model was attacked."""
    about = store.about["target"] if store is not None else {}
    before = about["sampling"] if about.get("kind") == "model" else {}
    asked = dict(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    chosen: dict[str, Any] = {
        name: before.get(name, getattr(SAMPLING, name)) if value is None else value
        for name, value in asked.items()
    }
    return Settings(completions, chat=chat and before.get("chat", True), **chosen)


def _target(
    name: str | None,
    model: str | None,
    extra: str | None,
    defence: str,
    boundary: list[str] | None,
    sampling: Settings,
    timeout: float,
    strict: bool,
    device: str | None,
    dtype: str | None,
) -> Target:
    """The target of `--target`."""
    import sasa
    from sasa.evaluation import methods as ways
    from sasa.evaluation.rewards import is_function
    from sasa.redteam.targets import Command, Endpoint, ModelTarget, load_function

    ways.method(defence)
    outside = name is not None and (
        name.startswith(("http://", "https://", "command:")) or is_function(name)
    )
    if outside:
        given = {
            "--defence": defence != "plain",
            "--boundary": boundary,
            "--top-k": sampling.top_k != SAMPLING.top_k,
        }
        given["--no-chat"] = not sampling.chat
        if options := [option for option, there in given.items() if there]:
            raise ValueError(
                f"{', '.join(options)}: for a model that is loaded here; {name} samples and defends itself"
            )
    if name is not None and name.startswith(("http://", "https://")):
        if not model:
            raise ValueError("an endpoint serves models by name: say --target-model NAME")
        more = _json_object("--target-extra", extra)
        return Endpoint(
            *(name, model, sampling.max_new_tokens, sampling.temperature, sampling.top_p, timeout),
            extra=more,
        )
    if model or extra:
        raise ValueError(
            f"{'--target-model' if model else '--target-extra'} is for endpoints, http://HOST/v1"
        )
    if name is not None and name.startswith("command:"):
        return Command(name.removeprefix("command:"), timeout)
    if name is not None and is_function(name):
        return load_function(name)
    loaded, tokenizer = sasa.load(name, device, dtype)
    lines = (
        load_boundaries(boundary, loaded, strict) if not ways.method(defence).boundless else None
    )
    return ModelTarget(loaded, tokenizer, defence, lines, sampling)


def _json_object(option: str, given: str | None) -> dict[str, Any]:
    try:
        found = json.loads(given or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} must be a JSON object, got {given!r}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{option} must be a JSON object, got {given!r}")
    return found


def _nearest(novelty: str) -> int:
    kind, _, count = novelty.partition(":")
    if novelty == "mean":
        return 0
    if kind != "knn" or not count.isdecimal() or not int(count):
        raise ValueError(f"--novelty is mean or knn:K, such as knn:4, got {novelty!r}")
    return int(count)
