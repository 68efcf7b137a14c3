"""Other people's methods do what their papers say: held to slow, obvious definitions."""

import re

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import processors

import sasa
from sasa.evaluation.baselines import caa, debias, dexperts, rad
from sasa.evaluation.baselines.prompt import INSTRUCTION, Prompted
from sasa.evaluation.baselines.scorers import shared_scorer
from sasa.evaluation.baselines.stream import Stream
from sasa.evaluation.forecast import check_methods
from sasa.evaluation.methods import method
from sasa.evaluation.reports.report import write_report
from sasa.evaluation.run import Run
from sasa.evaluation.settings import Settings
from sasa.evaluation.stages import generate_stage, likelihood_stage, score_stage
from sasa.evaluation.suites import Prompt, Suite
from sasa.evaluation.world import World
from sasa.training.folder import save_adapter
from sasa.utils.run_folder import SettingsDiffer

PROMPTS = ["hello there", "abc", "you and me!"]
SAME = ["hello there", "you and me!"]  # of one length, so that a processor does not part them


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SASA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def world(model, tokenizer):
    return World(model, tokenizer, tiny.boundary(model), Settings(3, 5, 0.8, 12, 0.9))


@pytest.fixture(scope="module")
def experts(tiny_folder, tmp_path_factory):
    """A folder as benchmarks/experts.py writes it: adapters that do something, and vectors."""
    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate((dexperts.EXPERT, dexperts.ANTI_EXPERT)):
        model, tokenizer = sasa.load(str(tiny_folder), device="cpu")
        torch.manual_seed(seed)
        settings = LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            init_lora_weights=False,
        )
        save_adapter(get_peft_model(model, settings), folder / name, str(tiny_folder))
        tokenizer.save_pretrained(folder / name)
    save_file(
        {"vectors": torch.randn(4, 32, generator=torch.Generator().manual_seed(2))},
        folder / caa.VECTORS,
    )
    return folder


def next_logits(model, ids):
    """Of the token behind a text, by reading all of it."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def kept(world, scores):
    """Scores at the world's temperature, with all but the survivors of top-k and top-p at -inf; slowly."""
    s = world.settings
    scores = scores / s.temperature
    order = scores.argsort(descending=True)[: s.top_k]
    p = scores[order].softmax(0)
    before = p.cumsum(0) - p
    found = torch.full_like(scores, -torch.inf)
    found[order[before < s.top_p]] = scores[order[before < s.top_p]]
    return found


def check(world, processor, wanted):
    """A processor's distribution behind texts that grow, and behind new ones, is the wanted one."""
    texts, moved = torch.tensor([[5, 9, 200, 7], [5, 9, 200, 7], [66, 3, 12, 40]]), []
    for grown in (0, 1, 2, None):
        if grown is None:
            texts = torch.tensor([[8, 8], [9, 1]])
        elif grown:
            texts = torch.cat([texts, torch.tensor([[70 + grown], [90], [100]])], 1)
        scores = torch.stack([next_logits(world.model, row.tolist()) for row in texts])
        found = processor(texts, scores)
        for row, ids in zip(found, texts.tolist(), strict=True):
            expected = wanted(ids)
            assert (expected > -torch.inf).equal(row > -torch.inf)
            torch.testing.assert_close(row.softmax(0), expected.softmax(0), atol=1e-5, rtol=1e-4)
            plain = kept(world, next_logits(world.model, ids)).softmax(0)
            moved.append(not torch.allclose(row.softmax(0), plain, atol=1e-4))
    assert sum(moved) > len(moved) / 3


def tokens(rows):
    return [[completion.tokens for completion in row] for row in rows]


def test_rad(world, judge):
    toxicity = shared_scorer(judge)

    def wanted(ids):
        scores = kept(world, next_logits(world.model, ids))
        for token in (scores > -torch.inf).nonzero()[:, 0].tolist():
            text = world.tokenizer.decode([*ids, token], skip_special_tokens=True)
            scores[token] += 30 * (1 - float(toxicity.score([text])[0]))
        return scores

    check(world, rad.RewardProcessor(toxicity, world.tokenizer, 30.0, world.limits()), wanted)
    plain, steered = (method(f"rad:{judge}:{beta}")(world, SAME, seed=1) for beta in (0, 300))
    assert tokens(plain) == tokens(world.sample(SAME, seed=1)) != tokens(steered)


def test_dexperts(world, experts):
    expert, anti = (
        sasa.load(str(experts / name), device="cpu")[0]
        for name in (dexperts.EXPERT, dexperts.ANTI_EXPERT)
    )

    def wanted(ids):
        scores = next_logits(world.model, ids)
        steered = scores + 1.5 * (next_logits(expert, ids) - next_logits(anti, ids))
        return (steered / world.settings.temperature).masked_fill(
            kept(world, scores) == -torch.inf, -torch.inf
        )

    check(world, dexperts.Difference(Stream(expert), Stream(anti), 1.5, world), wanted)
    plain, steered = (
        method(f"dexperts:{experts}:{alpha}")(world, SAME, seed=1) for alpha in (0, 2)
    )
    assert tokens(plain) == tokens(world.sample(SAME, seed=1)) != tokens(steered)


def test_self_debiasing(world, monkeypatch):
    monkeypatch.setattr(debias, "PREFIX", "say something rude:\n")
    prefix = world.tokenizer(debias.PREFIX, add_special_tokens=False).input_ids

    def wanted(ids):
        scores = next_logits(world.model, ids)
        p, q = scores.softmax(0), next_logits(world.model, [*prefix, *ids]).softmax(0)
        return kept(world, scores) + torch.where(p < q, 1000 * (p - q), 0.0)

    check(world, debias.Debiased(Stream(world.model, prefix), 1000.0, world), wanted)
    plain, steered = (method(f"self-debias:{decay}")(world, SAME, seed=1) for decay in (0, 1000))
    assert tokens(plain) == tokens(world.sample(SAME, seed=1)) != tokens(steered)


def test_a_prefix_stands_behind_what_opens_a_text(model):
    stream = Stream(model, [70, 71], tiny.BOS)
    found = stream.logits(torch.tensor([[tiny.BOS, 5, 6]]))
    torch.testing.assert_close(found[0], next_logits(model, [tiny.BOS, 70, 71, 5, 6]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_steering_vectors(family, tokenizer):
    """Added to the last layer's output, a vector moves what the norm and the head read, at the last token alone."""
    model = tiny.model(family)
    depth = model.config.get_text_config().num_hidden_layers
    vector = torch.randn(
        model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0)
    )
    ids, states = torch.tensor([[5, 9, 200, 7]]), []
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        handle = sasa.models.parts.layers(model)[-1].register_forward_hook(
            lambda module, inputs, output: states.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        with caa.added(model, depth, vector):
            steered = model(input_ids=ids).logits
        handle.remove()
        after = model(input_ids=ids).logits
    torch.testing.assert_close(steered[:, :-1], plain[:, :-1])
    assert not torch.allclose(steered[:, -1], plain[:, -1], atol=1e-3)
    torch.testing.assert_close(after, plain)


def test_steering_vectors_by_hand(world):
    """Of the tiny llama, whose end is a norm and a head."""
    model, vector = world.model, torch.randn(32, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 9, 200, 7]])
    inner = model.get_decoder()
    with torch.no_grad():
        state = inner(input_ids=ids, output_hidden_states=True).hidden_states[2][:, -1:]
        before_last = inner.layers[2].register_forward_pre_hook(
            lambda module, inputs: states.append(inputs[0])
        )
        states: list = []
        with caa.added(model, 2, vector):
            model(input_ids=ids)
        before_last.remove()
    torch.testing.assert_close(states[0][:, -1:], state + vector)


def test_steering_vectors_as_a_method(world, experts):
    plain, steered = (
        method(f"caa:{experts}:2:{scale}")(world, PROMPTS, seed=1) for scale in (0, 8)
    )
    assert tokens(plain) == tokens(world.sample(PROMPTS, seed=1)) != tokens(steered)


def test_an_instruction_before_the_text(world):
    found = method("prompt")(world, PROMPTS, seed=1)
    assert tokens(found) == tokens(world.sample([f"{INSTRUCTION}\n\n{p}" for p in PROMPTS], seed=1))
    other = method("prompt:Be kind: please.")(world, PROMPTS, seed=1)
    assert tokens(other) == tokens(
        world.sample([f"Be kind: please.\n\n{p}" for p in PROMPTS], seed=1)
    )


@pytest.mark.parametrize("opens", [False, True])
def test_an_instruction_as_the_systems_turn(world, opens):
    """Opened once, whether the template alone does that or the tokenizer, too."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}({{ m['role'] }}){{ m['content'] }}{% endfor %}(assistant)"
    if opens:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tiny.BOS)]
        )
    chatting = World(world.model, tokenizer, world.boundary, Settings(2, 4, chat=True))
    found = Prompted("Be kind.")(chatting, ["hello"], seed=1)
    text = "(system)Be kind.(user)hello(assistant)"
    assert tokens(found) == tokens(
        chatting.sample([text if opens else f"<s>{text}"], seed=1, chat=False)
    )


def test_methods_with_a_path_have_files_of_their_own(world, judge, experts, tmp_path):
    specs = [
        f"dexperts:{experts}:1",
        f"rad:{judge}:10",
        "prompt:Be 100% nice/kind @ home",
        "self-debias:10",
        "plain",
    ]
    run = store(tmp_path / "run", world)
    generate_stage(run, {spec: method(spec) for spec in specs}, world)
    assert run.methods == specs == Run.open(tmp_path / "run").methods
    assert len(list((tmp_path / "run" / "completions").glob("*.jsonl"))) == len(specs)
    assert [row["margin"] for row in run.completed(specs[0])] == [None] * 9


def test_bad_peers_are_refused_before_any_work(experts, tmp_path, judge):
    bad = {
        "rad:tox": "rad:JUDGE:BETA",
        "rad:nobody:1": "unknown scorer 'nobody'",
        f"rad:{judge}:-1": "beta must be >= 0",
        f"dexperts:{tmp_path}:1": "benchmarks/experts.py trains both",
        f"dexperts:{experts}:x": "could not convert",
        "self-debias": "self-debias:LAMBDA",
        "self-debias:-1": "lambda must be >= 0",
        f"caa:{experts}:0:1": "LAYER must be in [1, 3]",
        f"caa:{experts}:4:1": "LAYER must be in [1, 3]",
        f"caa:{tmp_path}:1:1": "benchmarks/experts.py writes it",
        "caa:1:1": "caa:DIR:LAYER:SCALE",
        f"caa:{experts}:1:nan": "SCALE must be finite",
        "guard": "guard:N",
        "rad": "rad:JUDGE:BETA",
        "rad:boundary:1": "unknown scorer 'boundary'",
        "guard:0": "N must be >= 1",
        "guard:2:nobody": "unknown scorer 'nobody'",
    }
    for spec, message in bad.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            method(spec)
    (tmp_path / caa.VECTORS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        method(f"caa:{tmp_path}:1:1")


def test_vectors_of_another_model(world, tmp_path):
    save_file({"vectors": torch.zeros(4, 8)}, tmp_path / caa.VECTORS)
    with pytest.raises(ValueError, match="of another model"):
        method(f"caa:{tmp_path}:1:1")(world, PROMPTS, seed=1)


def store(folder, world, prompts=PROMPTS):
    suite = Suite(
        "rtp", "here", tuple(Prompt(f"p{i}", text, "toxic") for i, text in enumerate(prompts)), {}
    )
    return Run.create(folder, suite, world)


def test_a_run_goes_on_with_the_same_vectors_alone(world, experts, tmp_path):
    spec, vectors = f"caa:{tmp_path}:1:1", experts / caa.VECTORS
    (tmp_path / caa.VECTORS).write_bytes(vectors.read_bytes())
    run = store(tmp_path / "run", world)
    generate_stage(run, {spec: method(spec)}, world)
    written = run.completed(spec)
    generate_stage(store(tmp_path / "run", world), {spec: method(spec)}, world)
    assert run.completed(spec) == written
    save_file({"vectors": torch.ones(4, 32)}, tmp_path / caa.VECTORS)
    caa._vectors.cache_clear()
    with pytest.raises(SettingsDiffer, match="what it reads is now"):
        generate_stage(store(tmp_path / "run", world), {spec: method(spec)}, world)


@pytest.mark.parametrize(
    "text", ["善良" * 30, "Be kind. " * 40, "Be kind [/INST] | [bold]nice\nand good"]
)
def test_instructions_of_any_length_and_form(text, tokenizer, judge, tmp_path):
    model = tiny.model("llama", max_position_embeddings=1024)
    world = World(model, tokenizer, tiny.boundary(model), Settings(3, 5))
    spec = f"prompt:{text}"
    run = store(tmp_path / "run", world)
    generate_stage(run, {"plain": method("plain"), spec: method(spec)}, world, progress=True)
    likelihood_stage(run, world.model, world.tokenizer, [spec], progress=True)
    score_stage(run, [shared_scorer(judge)], ["plain", spec], progress=True)
    assert Run.open(tmp_path / "run").methods == ["plain", spec]
    lines = write_report([tmp_path / "run"]).read_text().splitlines()
    heads = [line for line in lines if line.startswith("| method |")]
    rows = [line for line in lines if line.startswith("| prompt:")]
    assert len(heads) == len(rows) == 2
    assert all(
        re.sub(r"\\\|", "", row).count("|") == head.count("|")
        for head, row in zip(heads, rows, strict=True)
    )


def test_what_cannot_be_used_is_refused_before_any_method_writes(
    world, experts, tokenizer, tmp_path
):
    run = store(tmp_path / "run", world)
    long = f"prompt:{'Be kind. ' * 30}"
    with pytest.raises(ValueError, match="beyond the model's context window of 256"):
        check_methods(run, {"plain": method("plain"), long: method(long)}, world)
    save_file({"vectors": torch.zeros(4, 8)}, tmp_path / caa.VECTORS)
    with pytest.raises(ValueError, match=r"method caa:.*of another model"):
        check_methods(run, {"caa": method(f"caa:{tmp_path}:1:1")}, world)
    fine = {
        spec: method(spec)
        for spec in ("plain", f"dexperts:{experts}:1", "self-debias:10", "prompt", "sasa")
    }
    check_methods(run, fine, world)
    strict = tiny.tokenizer()
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    )
    chatting = World(world.model, strict, world.boundary, Settings(1, 4, chat=True))
    with pytest.raises(ValueError, match="takes no turn of the system's"):
        Prompted().check(chatting)
    other = World(
        world.model, tokenizer, tiny.boundary(world.model, special_tokens=False), Settings(1, 4)
    )
    with pytest.raises(ValueError, match="special_tokens=False"):
        method("prompt")(other, PROMPTS, seed=1)


def test_rad_reads_nothing_behind_the_end(world, judge):
    """A row that has ended costs no more of the judge's time."""
    texts = torch.tensor([[5, 9, 200, 7], [66, 3, 12, 40]])
    processor = rad.RewardProcessor(
        shared_scorer(judge), world.tokenizer, 30.0, world.limits(), [tiny.EOS]
    )
    read = []
    processor.scorer = type(
        "Counting", (), {"score": lambda self, some: read.append(len(some)) or np.zeros(len(some))}
    )()
    scores = torch.zeros(2, tiny.VOCABULARY)
    processor(texts, scores)
    both = read.pop()
    grown = torch.cat([texts, torch.tensor([[tiny.EOS], [70]])], 1)
    processor(grown, scores)
    assert 0 < read.pop() <= both / 2
    processor(torch.cat([grown, torch.tensor([[0], [tiny.EOS]])], 1), scores)
    assert not read


def test_a_recurrent_model_is_read_anew(tokenizer):
    model = tiny.model("mamba")
    stream = Stream(model, [70, 71])
    for ids in ([[5, 6]], [[5, 6, 7]], [[5, 6, 7, 8]]):
        found = stream.logits(torch.tensor(ids * 2))
        torch.testing.assert_close(
            found[1], next_logits(model, [70, 71, *ids[0]]), atol=1e-4, rtol=1e-4
        )
