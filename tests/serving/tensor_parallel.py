"""What `test_vllm.py` runs in processes of its own: an engine whose model is spread over two of them."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ |= {
    "VLLM_CPU_OMP_THREADS_BIND": "0|1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    # Imported here: the engine's processes read this file, too.
    import vllm
    from serving.test_vllm import ENGINE, GREEDY, PROMPTS, params, saved, tokens

    import sasa
    from sasa.serving.vllm import LLM

    os.environ.pop("VLLM_ENABLE_V1_MULTIPROCESSING")  # test_vllm has engines in its own process
    folder = saved(Path(tempfile.mkdtemp()))
    model, tokenizer = sasa.load(folder / "model")
    line = sasa.Boundary.load(folder / "calm", model=model)
    want = []
    for steered in (True, False):
        rows = sasa.generate(
            model, tokenizer, PROMPTS, line if steered else None, 1.0, **GREEDY, max_new_tokens=20
        )
        want += [row[0].tokens for row in rows]
    drawn = [
        vllm.SamplingParams(
            temperature=0.9, top_p=0.95, max_tokens=20, seed=i, extra_args={"sasa_beta": 1.0}
        )
        for i in range(len(PROMPTS))
    ]
    sampled = []
    for ranks in (2, 1):
        made = LLM(
            str(folder / "model"), f"calm={folder / 'calm'}", tensor_parallel_size=ranks, **ENGINE
        )
        asked = [params(True, extra_args={"sasa_beta": 1.0})] * len(PROMPTS) + [
            params(False)
        ] * len(PROMPTS)
        found = tokens(made.generate(PROMPTS * 2, asked, use_tqdm=False))
        print(
            ranks,
            "ranks:",
            sum(a == b for a, b in zip(found, want, strict=True)),
            "of",
            len(want),
            flush=True,
        )
        assert found == want
        sampled.append(tokens(made.generate(PROMPTS, drawn, use_tqdm=False)))
        del made
    assert sampled[0] == sampled[1], "the same seeds, other texts"
    print("all equal")


if __name__ == "__main__":
    main()
