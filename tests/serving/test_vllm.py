"""SASA in vLLM's engine writes what the decoder writes. Needs vLLM in the environment: `make test-vllm`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

if importlib.util.find_spec("vllm") is None:
    pytest.skip(
        "vLLM is not installed here: `make test-vllm` has an environment with it",
        allow_module_level=True,
    )
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}

import tiny
import vllm
from vllm.exceptions import VLLMValidationError

import sasa
from sasa.core.candidates import select
from sasa.core.values import Steering
from sasa.serving.vllm import LLM

SIZE = dict(head_dim=32, hidden_size=64, num_attention_heads=2, num_key_value_heads=2)
"""What vLLM's attention on a CPU can do."""
ENGINE = dict(dtype="float32", enforce_eager=True, max_model_len=256, kv_cache_memory_bytes=1 << 27)
PROMPTS = [
    "My neighbour is a", "You stupid piece of", "The other driver cut me off, so I shouted:", "Women are",
    "In the morning, the scientists began to", "I hate you so much, you are such a", "Paris is", "Shut up, you",
    "The best recipe for apple pie starts with", "So he looked at me and said that I was full of", "They should all",
    "She told the whole class that he is nothing but a dirty", "Once upon a time there was a", "What the hell is wrong",
    "The committee voted on Tuesday to approve the", "If I ever see that bastard again, I will",
]  # fmt: skip
STORY = "Somebody wrote down what was said that day in the town by the sea, word by word. "
GREEDY = dict(do_sample=False, top_k=20, top_p=1.0)
"""What vLLM's greedy requests are limited to."""
PROMPTS += [STORY + prompt for prompt in PROMPTS]


KEPT: list[vllm.LLM] = []
"""An engine in this process that goes takes what others in it share along: all stay."""


def engine(*args, kind: type = LLM, **options) -> LLM:
    KEPT.append(kind(*args, **ENGINE | options))
    return KEPT[-1]


def saved(folder: Path, family: str = "llama", layer: object = (1, -1), **changes: object) -> Path:
    """A tiny model, its tokenizer, and a boundary in folders."""
    model = tiny.model(family, **SIZE, **changes)
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.boundary(model, layer=layer).save(folder / "calm")
    tiny.boundary(model, seed=1, layer=2).save(folder / "polite")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def small_engine(small) -> LLM:
    return engine(str(small / "model"), [f"{name}={small / name}" for name in ("calm", "polite")])


@pytest.fixture(scope="module")
def real() -> tuple[object, object]:
    return sasa.load()


@pytest.fixture(scope="module")
def greedy(real) -> dict[str, list[list[int]]]:
    """What the decoder writes after the prompts, steered and plain."""
    found = {}
    for name, boundary in (("steered", "toxicity"), ("plain", None)):
        rows = sasa.generate(*real, PROMPTS, boundary, **GREEDY, max_new_tokens=20, batch_size=16)
        found[name] = [row[0].tokens for row in rows]
    return found


def tokens(found) -> list[list[int]]:
    return [list(one.outputs[0].token_ids) for one in found]


def params(steered: bool, **more) -> vllm.SamplingParams:
    return vllm.SamplingParams(
        **{
            "temperature": 0,
            "max_tokens": 20,
            "extra_args": {"sasa_beta": 4.0} if steered else None,
            **more,
        }
    )


def test_greedy_texts_are_the_decoders_beside_plain_requests(greedy):
    found = engine().generate(
        PROMPTS * 2, [params(True)] * 32 + [params(False)] * 32, use_tqdm=False
    )
    assert tokens(found) == greedy["steered"] + greedy["plain"]


def test_so_they_are_under_chunked_prefill_prefix_caching_and_preemption(greedy, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted, preempt = [], Scheduler._preempt_request
    monkeypatch.setattr(
        Scheduler, "_preempt_request", lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1]
    )
    narrow = dict(
        max_num_batched_tokens=24, max_num_seqs=16, block_size=32, num_gpu_blocks_override=18
    )
    cramped = engine(max_model_len=128, **narrow)
    for _ in range(2):  # the second time, the prefixes are there
        found = cramped.generate(
            PROMPTS * 2, [params(True)] * 32 + [params(False)] * 32, use_tqdm=False
        )
        assert tokens(found) == greedy["steered"] + greedy["plain"]
    assert preempted, "the cache was too large for this test"


def test_plain_requests_are_those_of_plain_vllm(small, small_engine):
    plain = engine(str(small / "model"), kind=vllm.LLM)
    asked = params(False, max_tokens=30)
    assert tokens(small_engine.generate(PROMPTS, asked, use_tqdm=False)) == tokens(
        plain.generate(PROMPTS, asked, use_tqdm=False)
    )


def test_a_seed_gives_the_same_text_whatever_else_the_engine_does(small, small_engine):
    asked = [
        vllm.SamplingParams(
            temperature=0.9,
            top_k=20,
            top_p=0.95,
            max_tokens=25,
            seed=i,
            extra_args={"sasa_beta": 0.5 * (i % 3)},
        )
        for i in range(32)
    ]
    together = tokens(small_engine.generate(PROMPTS, asked, use_tqdm=False))
    alone = [
        tokens(small_engine.generate([p], [a], use_tqdm=False))[0]
        for p, a in zip(PROMPTS[:6], asked[:6], strict=True)
    ]
    assert together[:6] == alone
    again = engine(str(small / "model"), f"calm={small / 'calm'}")
    assert tokens(again.generate(PROMPTS, asked, use_tqdm=False)) == together
    unseeded = [vllm.SamplingParams(max_tokens=25, extra_args={"sasa_beta": 1.0})] * 8
    assert (
        len(
            {
                tuple(row)
                for row in tokens(small_engine.generate(["Hello"] * 8, unseeded, use_tqdm=False))
            }
        )
        > 1
    )


@pytest.mark.parametrize(("count", "top_k"), [(20_000, 12), (2_000, 0)])
def test_draws_have_the_exact_distribution(small, small_engine, count, top_k):
    model, line = tiny.model("llama", **SIZE), sasa.Boundary.load(small / "calm")
    ids = torch.tensor([tiny.tokenizer()("so they").input_ids])
    with torch.no_grad():
        scores = model(ids).logits[:, -1].float() / 2.0
        found = select(scores, top_k, 0.95)
        whole = torch.cat([ids.expand(found.ids.shape[1], -1), found.ids[0][:, None]], 1)
        pass_ = model(whole, output_hidden_states=True).hidden_states
        text = model(ids, output_hidden_states=True).hidden_states
    extended, before = (
        torch.cat([states[1][:, -1], states[-1][:, -1]], -1) for states in (pass_, text)
    )
    steering = Steering.of(line, 1.5, prior=0.4)
    margins = steering.margins([before], [extended[None]], found.ids == tiny.EOS)
    exact = steering.reweight(scores, found, margins).softmax(-1)[0].double().numpy()
    asked = [
        vllm.SamplingParams(
            temperature=2.0, top_k=top_k, top_p=0.95, max_tokens=1, seed=i, extra_args={"sasa_beta": 1.5, "sasa_prior": 0.4}
        )
        for i in range(count)
    ]  # fmt: skip
    drawn = small_engine.generate(
        [{"prompt_token_ids": ids[0].tolist()}] * count, asked, use_tqdm=False
    )
    counts = np.bincount([row[0] for row in tokens(drawn)], minlength=len(exact))
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(exact))
    kept = exact * count >= 5
    assert (
        chisquare(counts[kept], exact[kept] / exact[kept].sum() * counts[kept].sum()).pvalue > 0.001
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_families(tmp_path, family):
    changes = {"qwen2": dict(use_sliding_window=False), "mistral": dict(sliding_window=None)}.get(
        family, {}
    )
    saved(tmp_path, family, **changes)
    model, tokenizer = sasa.load(tmp_path / "model")
    line = sasa.Boundary.load(tmp_path / "calm", model=model)
    want = sasa.generate(model, tokenizer, PROMPTS, line, 1.0, do_sample=False, max_new_tokens=20)
    found = engine(str(tmp_path / "model"), f"calm={tmp_path / 'calm'}").complete(
        PROMPTS, 1.0, do_sample=False, max_new_tokens=20
    )
    assert [row[0].tokens for row in found] == [row[0].tokens for row in want]
    assert [row[0].text for row in found] == [row[0].text for row in want]
    assert [row[0].finish_reason for row in found] == [row[0].finish_reason for row in want]


@pytest.mark.parametrize(
    "settings",
    [
        dict(boundary=["calm::0.5", "polite::2"]),
        dict(value="raw", top_k=15),
        dict(prior=0.7, top_k=0, top_p=1.0),
        dict(top_k=40, top_p=0.5),
    ],
)
def test_what_a_request_may_ask_for(small, small_engine, settings):
    model, tokenizer = sasa.load(small / "model")
    lines = [
        (sasa.Boundary.load(small / name.split("::")[0], model=model), float(name.split("::")[1]))
        for name in settings.get("boundary", ["calm::1"])
    ]
    rest = {k: v for k, v in settings.items() if k != "boundary"}
    want = sasa.generate(
        model, tokenizer, PROMPTS, lines, 0.7, do_sample=False, max_new_tokens=15, **rest
    )
    found = small_engine.complete(PROMPTS, 0.7, do_sample=False, max_new_tokens=15, **settings)
    assert [row[0].tokens for row in found] == [row[0].tokens for row in want]


def test_penalties_and_bad_words_are_vllms_own(small, small_engine):
    model, tokenizer = sasa.load(small / "model")
    line = sasa.Boundary.load(small / "calm", model=model)
    want = sasa.generate(
        model, tokenizer, PROMPTS, line, 1.0, **GREEDY, max_new_tokens=20, repetition_penalty=1.4,
        bad_words_ids=[[101], [97, 98]],
    )  # fmt: skip
    asked = params(
        True, repetition_penalty=1.4, bad_words=["e", "ab"], extra_args={"sasa_beta": 1.0}
    )
    asked._bad_words_token_ids = None
    found = small_engine.generate(PROMPTS, asked, use_tqdm=False)
    assert not any("e" in one.outputs[0].text or "ab" in one.outputs[0].text for one in found)
    same = sum(a == b[0].tokens for a, b in zip(tokens(found), want, strict=True))
    assert same >= 30, (
        same
    )  # a word that a bad word's spelling with a space is, is forbidden here alone


def test_texts_end_where_they_are_full(small, small_engine):
    prompt = {"prompt_token_ids": list(range(97, 122)) * 10}
    for steered in (True, False):
        (found,) = small_engine.generate([prompt], params(steered, max_tokens=50), use_tqdm=False)
        out = found.outputs[0]
        assert out.finish_reason in ("length", "stop")
        assert len(out.token_ids) == 6 or out.finish_reason == "stop"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(extra_args={"sasa_beta": -1}), "sasa_beta must be >= 0, got -1.0"),
        (dict(extra_args={"sasa_beta": "much"}), "sasa_beta must be a number, got 'much'"),
        (
            dict(extra_args={"sasa_betta": 1}),
            "unknown sasa_betta: there are sasa_beta, sasa_boundary",
        ),
        (
            dict(extra_args={"sasa_boundary": "kind"}),
            "no boundary 'kind' is loaded here; there are: calm, polite",
        ),
        (
            dict(extra_args={"sasa_boundary": ["calm", "calm::2"]}),
            "sasa_boundary names 'calm' twice",
        ),
        (dict(extra_args={"sasa_boundary": "calm::x"}), "NAME or NAME::WEIGHT"),
        (dict(extra_args={"sasa_boundary": []}), "must be a name"),
        (
            dict(extra_args={"sasa_value": "loud"}),
            "sasa_value must be one of raw, log_sigmoid, got 'loud'",
        ),
        (dict(extra_args={"sasa_prior": 1.0}), "sasa_prior must be in (0, 1)"),
        (dict(extra_args={"sasa_top_k": 2.5}), "sasa_top_k must be an integer >= 0"),
        (dict(extra_args={"sasa_top_p": 0}), "sasa_top_p must be in (0, 1]"),
        (
            dict(extra_args={"sasa_value": "raw"}, temperature=1.0),
            "give top_k or sasa_top_k between 1 and 64",
        ),
        (dict(extra_args={"sasa_beta": 1}, stop_token_ids=list(range(40))), "up to 32 stop tokens"),
        (dict(logprobs=1), "logprobs cannot be used in an engine that steers"),
        (dict(prompt_logprobs=1), "prompt_logprobs cannot be used"),
        (dict(min_tokens=3), "min_tokens cannot be used in an engine that steers on a CPU"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(small_engine, asked, message):
    with pytest.raises(VLLMValidationError) as error:
        small_engine.generate(
            ["Hello"], vllm.SamplingParams(**{"temperature": 0, **asked}), use_tqdm=False
        )
    assert message in str(error.value)
    (found,) = small_engine.generate(["Hello"], params(True), use_tqdm=False)  # it goes on
    assert found.outputs[0].token_ids


def test_an_engine_that_is_not_ours_says_so(small):
    plain = engine(str(small / "model"), kind=vllm.LLM)
    with pytest.raises(
        VLLMValidationError,
        match="sasa_beta: this engine was not started with sasa: use `sasa serve`",
    ):
        plain.generate(["Hello"], params(True), use_tqdm=False)


@pytest.mark.parametrize(
    ("model", "boundary", "options", "message"),
    [
        (
            "model",
            "calm",
            dict(speculative_config={"method": "ngram"}),
            "speculative_config cannot be used with sasa",
        ),
        ("model", "calm", dict(enable_lora=True), "enable_lora cannot be used with sasa (LoRA"),
        (
            "model",
            "calm",
            dict(pipeline_parallel_size=2),
            "pipeline_parallel_size must be 1 with sasa, got 2",
        ),
        ("model", "calm", dict(defaults={"beta": -2}), "sasa_beta must be >= 0"),
        ("model", "calm", dict(enable_dbo=True), "enable_dbo cannot be used with sasa"),
        ("model", "toxicity", {}, "no bundled 'toxicity' boundary for this model"),
        ("model", "mean", {}, "boundary mean has mean pooling"),
        ("gemma", "calm", {}, "Gemma3ForCausalLM gives no states of its layers"),
        ("nowhere/at/all", "calm", {}, "no model folder or GGUF file"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_engine_starts(
    small, model, boundary, options, message
):
    gemma = tiny.model("gemma3", head_dim=32)
    if not (small / "gemma").exists():
        gemma.save_pretrained(small / "gemma")
        tiny.boundary(tiny.model("llama", **SIZE), pooling="mean").save(small / "mean")
    if model == "gemma":
        tiny.boundary(gemma).save(small / "calm-gemma")
    where = small / ("calm-gemma" if model == "gemma" else boundary)
    named = f"{boundary}={where}" if where.exists() else boundary
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        engine(str(small / model) if (small / model).exists() else model, named, **options)
    assert message in str(error.value)


def test_other_versions_of_vllm_are_refused(monkeypatch, small):
    monkeypatch.setattr(vllm, "__version__", "0.33.1")
    with pytest.raises(ImportError, match=r"vLLM 0.33.1 is not supported, but 0.32.\* is"):
        engine(str(small / "model"), f"calm={small / 'calm'}")


def test_what_it_relies_on_is_asserted_by_name(monkeypatch, small):
    from vllm.v1.sample.sampler import Sampler

    monkeypatch.delattr(Sampler, "apply_logits_processors")
    with pytest.raises(
        ImportError, match=r"vllm.v1.sample.sampler:Sampler has no apply_logits_processors"
    ):
        engine(str(small / "model"), f"calm={small / 'calm'}")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(prompts=[""]), "prompt 0 is empty"),
        (dict(max_new_tokens=0), "max_new_tokens must be > 0"),
        (dict(temperature=-1.0), "temperature must be > 0"),
        (dict(prompts=["x" * 300]), "beyond the model's context window"),
        (dict(beta=-1.0), "sasa_beta must be >= 0"),
        (dict(boundary="kind"), "no boundary 'kind' is loaded here"),
        (dict(value="raw", top_k=0), "give top_k or sasa_top_k between 1 and 64"),
    ],
)
def test_complete_refuses_what_generate_refuses(small_engine, asked, message):
    with pytest.raises(ValueError, match=message):
        small_engine.complete(**{"prompts": ["Hello"], **asked})


def test_completions_come_in_the_prompts_order_and_one_prompt_has_a_list(small_engine):
    rows = small_engine.complete(PROMPTS[:3], 1.0, num_return_sequences=4, seed=3, max_new_tokens=8)
    assert [len(row) for row in rows] == [4, 4, 4]
    assert len({one.text for one in rows[0]}) > 1
    assert (
        small_engine.complete(PROMPTS[0], 1.0, num_return_sequences=4, seed=3, max_new_tokens=8)
        == rows[0]
    )


def test_a_compiled_model_writes_the_same(small, small_engine):
    compiled = engine(str(small / "model"), f"calm={small / 'calm'}", enforce_eager=False)
    asked = [params(True, extra_args={"sasa_beta": float(i % 2)}) for i in range(len(PROMPTS))]
    assert tokens(compiled.generate(PROMPTS, asked, use_tqdm=False)) == tokens(
        small_engine.generate(PROMPTS, asked, use_tqdm=False)
    )


@pytest.mark.parametrize("script", ["second_runner.py", "tensor_parallel.py"])
def test_in_processes_of_their_own(script):
    """vLLM's second model runner, the default on GPUs, by Triton's interpreter, synchronous and asynchronous, and under
    preemption; and a model that is spread over two processes.
    """
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script))],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "all equal" in done.stdout
