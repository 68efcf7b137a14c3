"""What `test_vllm.py` runs in a process of its own: vLLM's second model runner on CPU tensors, by Triton's interpreter."""

from __future__ import annotations

import os
import sys
import tempfile
import types
from pathlib import Path

os.environ |= {
    "TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
import triton.backends

triton.backends.backends["cpu"] = types.SimpleNamespace(  # type: ignore[assignment]
    driver=types.SimpleNamespace(is_active=lambda: True), compiler=None
)
sys.path.insert(0, str(Path(__file__).parents[1]))
import vllm
from serving.test_vllm import GREEDY, PROMPTS, engine, params, saved, tokens
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.core.sched.scheduler import Scheduler

import sasa

preempted, preempt = [], Scheduler._preempt_request
Scheduler._preempt_request = lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1]
SOME, LENGTH = PROMPTS[::3], 12
"""The interpreter takes a tenth of a second a step."""
update = CpuPlatform.check_and_update_config.__func__


def main() -> None:
    folder = saved(Path(tempfile.mkdtemp()))
    model, tokenizer = sasa.load(folder / "model")
    line = sasa.Boundary.load(folder / "calm", model=model)
    want = {}
    for name, beta, more in (
        ("steered", 1.0, {}),
        ("plain", 0.0, {}),
        ("penalised", 1.0, {"repetition_penalty": 1.4}),
    ):
        rows = sasa.generate(
            model,
            tokenizer,
            SOME,
            line if beta else None,
            beta,
            **GREEDY,
            max_new_tokens=LENGTH,
            **more,
        )
        want[name] = [row[0].tokens for row in rows]
    asked = {
        "steered": params(True, max_tokens=LENGTH, extra_args={"sasa_beta": 1.0}),
        "plain": params(False, max_tokens=LENGTH),
        "penalised": params(
            True, max_tokens=LENGTH, extra_args={"sasa_beta": 1.0}, repetition_penalty=1.4
        ),
    }
    drawn = [
        vllm.SamplingParams(
            temperature=0.9, top_p=0.95, top_k=20 * (i % 2), max_tokens=12, seed=i, extra_args={"sasa_beta": 0.5 * (i % 3)}
        )
        for i in range(len(SOME))
    ]  # fmt: skip
    sampled = []
    narrow = dict(max_num_batched_tokens=48, block_size=32, num_gpu_blocks_override=24)
    for asynchronous in (False, True):
        if asynchronous:  # the CPU's platform turns it off

            def keep(cls, config):
                update(cls, config)
                config.scheduler_config.async_scheduling = True

            CpuPlatform.check_and_update_config = classmethod(keep)
        for more in ({}, narrow):
            boundary = f"calm={folder / 'calm'}"
            made = engine(
                str(folder / "model"),
                boundary,
                async_scheduling=asynchronous,
                max_num_seqs=16,
                **more,
            )
            scheduler = type(made.llm_engine.engine_core.engine_core.scheduler)
            assert scheduler.__name__ == ("AsyncScheduler" if asynchronous else "Scheduler"), (
                scheduler
            )
            names = [name for name in asked for _ in SOME]
            found = tokens(made.generate(SOME * 3, [asked[name] for name in names], use_tqdm=False))
            every = [row for name in asked for row in want[name]]
            wrong = [i for i, (a, b) in enumerate(zip(found, every, strict=True)) if a != b]
            print(
                scheduler.__name__,
                len(every) - len(wrong),
                "of",
                len(every),
                "preempted",
                len(preempted),
                flush=True,
            )
            assert not wrong, [
                (names[i], SOME[i % len(SOME)], found[i], every[i]) for i in wrong[:3]
            ]
            sampled.append(tokens(made.generate(SOME, drawn, use_tqdm=False)))
    assert preempted
    assert all(each == sampled[0] for each in sampled), "the same seeds, other texts"
    print("all equal")


if __name__ == "__main__":
    main()
