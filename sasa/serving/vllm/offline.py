"""vLLM's `LLM` under SASA, for texts that are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import vllm

from sasa.core.settings import BETA, PRIOR, VALUE
from sasa.decoding.completion import Completion
from sasa.decoding.limits import Limits
from sasa.decoding.prompts import completion_text, encode_prompts
from sasa.decoding.sampling import seed_of
from sasa.serving.requests import Wanted
from sasa.serving.slots import ENDS
from sasa.serving.vllm.options import code_of, engine_options, model_at
from sasa.serving.vllm.served import KEY, Served

UNDONE = (
    "no_repeat_ngram_size",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "guidance_scale",
)
"""What a generation config may set, and `sasa.generate` does."""


class LLM(vllm.LLM):
    """vLLM's `LLM`, whose requests may be steered: `SamplingParams(extra_args={"sasa_beta": 4.0})`.

    Args:
        model, boundary, strict: see `engine_options`.
        options: vLLM's own.
    """

    def __init__(
        self,
        model: str | None = None,
        boundary: str | Sequence[str] = "toxicity",
        *,
        strict: bool = True,
        **options: Any,
    ) -> None:
        self.source, _, self.skeleton = model_at(model, **code_of(options))
        found = engine_options(model, boundary, strict=strict, **options)
        self.served = Served(**found["additional_config"][KEY])
        self.boundaries = self.served.load()
        super().__init__(**found)

    def complete(
        self,
        prompts: str | Sequence[str],
        beta: float = BETA,
        *,
        boundary: str | Sequence[str] | None = None,
        value: str = VALUE,
        prior: float = PRIOR,
        chat: bool = False,
        seed: int | None = None,
        progress: bool = False,
        max_new_tokens: int = 50,
        do_sample: bool = True,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        num_return_sequences: int = 1,
    ) -> list[Completion] | list[list[Completion]]:
        """`sasa.generate`, in this engine: the arguments, their defaults and errors are the same, and so is the
        distribution of what is written; greedily, so is the text. Draws of equal seeds differ from `sasa.generate`'s. A
        completion does not depend on what else the engine is doing. Completions have no margins.

        Args:
            boundary: of those that the engine was started with; None for the first. NAME::WEIGHT, or several.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        config = self._generation_config()
        limits = Limits.of(config, do_sample, temperature, top_k, top_p, min_p)
        for name, number in dict(
            max_new_tokens=max_new_tokens, num_return_sequences=num_return_sequences
        ).items():
            if not number > 0:
                raise ValueError(f"{name} must be > 0, got {number}")
        tokenizer = self.get_tokenizer()
        extra: dict[str, Any] = {"sasa_beta": beta, "sasa_value": value, "sasa_prior": prior}
        if boundary is not None:
            extra["sasa_boundary"] = boundary if isinstance(boundary, str) else list(boundary)
        if refused := [
            name for name in UNDONE if getattr(config, name, None) not in (None, 0, 1.0, [])
        ]:
            raise ValueError(
                f"the model's generation config sets {', '.join(refused)}, which vLLM does not do"
            )
        own: dict[str, Any] = dict(
            temperature=limits.temperature, top_k=limits.top_k, top_p=limits.top_p
        )
        if not do_sample:  # vLLM truncates nothing in greedy decoding
            extra |= {"sasa_top_k": limits.top_k, "sasa_top_p": limits.top_p}
            own = dict(temperature=0.0)
        elif limits.min_p:
            own["min_p"] = limits.min_p
        if config.repetition_penalty is not None:
            own["repetition_penalty"] = config.repetition_penalty
        wanted = Wanted.parse(extra, {}, tuple(self.served.boundaries))
        wanted.check(own.get("top_k", 0), not do_sample, 0, ENDS)
        spec = self.boundaries[wanted.boundaries[0][0]].embedding
        encoded = encode_prompts(self.skeleton, tokenizer, texts, spec, chat, max_new_tokens)
        longest, window = max(map(len, encoded)), self.llm_engine.model_config.max_model_len
        if longest + max_new_tokens > window:
            raise ValueError(
                f"a prompt has {longest} tokens: with max_new_tokens={max_new_tokens} that is beyond the engine's "
                f"max_model_len of {window}"
            )
        seeds = [None if seed is None else seed_of(seed, i) for i in range(len(texts))]
        params = [
            vllm.SamplingParams(
                n=num_return_sequences,
                max_tokens=max_new_tokens,
                seed=each,
                extra_args=extra,
                **own,
            )
            for each in seeds
        ]
        inputs = [{"prompt_token_ids": ids} for ids in encoded]
        found = self.generate(inputs, params, use_tqdm=progress)
        rows = [
            [_completion(tokenizer, ids, o) for o in out.outputs]
            for ids, out in zip(encoded, found, strict=True)
        ]
        return rows[0] if isinstance(prompts, str) else rows

    def counts(self) -> dict[str, int]:
        """Engine steps, and candidates read in them, since the engine was started."""
        return dict(self.collective_rpc("sasa_counts")[0])

    def _generation_config(self) -> Any:
        from transformers import GenerationConfig

        try:
            return GenerationConfig.from_pretrained(self.source)
        except OSError:
            return GenerationConfig()


def _completion(tokenizer: Any, prompt: list[int], out: Any) -> Completion:
    tokens = list(out.token_ids)
    return Completion(
        text=completion_text(tokenizer, prompt, tokens),
        tokens=tokens,
        margin=None,
        finish_reason="length" if out.finish_reason == "length" else "stop",
        spent=len(tokens),
    )
