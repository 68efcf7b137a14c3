"""Inspect AI (UK AISI) with SASA: any of its evaluations on a model that writes under it.

    inspect eval my_task.py --model sasa/default
    inspect eval my_task.py --model sasa/Qwen/Qwen3-0.6B -M boundary=qwen-toxicity -M beta=4 --temperature 0

`sasa/default` is the embedded default model; behind `sasa/` stands what `sasa.load` takes. Requests that wait at the same time
are written together.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import anyio
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo

import sasa
from sasa.core.boundary import Boundary
from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.settings import BETA, PRIOR, VALUE, check_beta, check_prior, check_value
from sasa.core.values import load_terms
from sasa.decoding.completion import Completion
from sasa.models.embedding import tokenize_prompt
from sasa.models.states import context_window

DEFAULT = "default"
MAX_TOKENS = 1024
"""Of a reply, where nobody says."""
WAIT = 0.05
"""Seconds in which further requests may join a batch."""


class SASAProvider(ModelAPI):
    """A model of transformers that writes under SASA.

    Args:
        model_name: `default`, or as in `sasa.load`.
        boundary: a name for `Boundary.load`, or several with commas between, each NAME or NAME::WEIGHT; `none` for the model on
            its own.
        beta, value, prior: see `sasa.generate`; beta 0 is the model on its own.
        batch_size: requests that are written together, at most.
        strict, device, dtype: see `Boundary.load` and `sasa.load`.

    Raises:
        ValueError, OSError: as `sasa.load` and `Boundary.load` do; in a call, what this provider does not do: tools,
            log-probabilities.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # as Inspect has it
        *,
        boundary: str = "toxicity",
        beta: float = BETA,
        value: str = VALUE,
        prior: float = PRIOR,
        batch_size: int = 16,
        strict: bool = True,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        check_beta(float(beta))
        check_value(value)
        check_prior(float(prior))
        self.model, self.tokenizer = sasa.load(
            None if model_name == DEFAULT else model_name, device, dtype
        )
        self.boundaries: list[tuple[Boundary, float]] | None = None
        if boundary != "none":
            self.boundaries = load_terms(
                [name.strip() for name in boundary.split(",")], self.model, strict
            )
        self.steering: dict[str, Any] = dict(beta=float(beta), value=value, prior=float(prior))
        self.spec = EmbeddingSpec(template="chat" if self.tokenizer.chat_template else "none")
        self.batches = Batches(self._write, int(batch_size))

    def max_connections(self) -> int:
        return self.batches.size

    def connection_key(self) -> str:
        return f"sasa/{self.model_name}"

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        if tools:
            raise ValueError(
                "the provider sasa calls no tools: choose a task or a solver without them"
            )
        if config.logprobs:
            raise ValueError("the provider sasa gives no log-probabilities: leave logprobs out")
        if config.temperature == 0 and (config.num_choices or 1) > 1:
            raise ValueError("at temperature 0 there is one choice: leave num_choices out")
        prompt: Any = [{"role": message.role, "content": message.text} for message in input]
        if self.spec.template == "none":
            prompt = "\n".join(message.text for message in input)
        read = len(tokenize_prompt(self.tokenizer, prompt, self.spec))
        room = (context_window(self.model) or 2**31) - read
        settings: dict[str, Any] = dict(
            max_new_tokens=config.max_tokens or max(1, min(MAX_TOKENS, room)),
            top_p=config.top_p,
            top_k=config.top_k,
            seed=config.seed,
            num_return_sequences=config.num_choices or 1,
        )
        if config.temperature == 0:
            settings["do_sample"] = False
        else:
            settings["temperature"] = config.temperature
        if config.stop_seqs:
            settings["stop_strings"] = config.stop_seqs
        began = time.monotonic()
        done = await self.batches.ask(settings, prompt)
        written = sum(len(one.tokens) for one in done)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(one, config.stop_seqs or ()) for one in done],
            usage=ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written),
            time=time.monotonic() - began,
        )

    def _choice(self, completion: Completion, stops: Sequence[str]) -> ChatCompletionChoice:
        text = completion.text
        for stop in stops:  # it is no part of a reply
            text = text.partition(stop)[0]
        return ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason="max_tokens"
            if completion.finish_reason == "length" and text == completion.text
            else "stop",
        )

    def _write(self, settings: dict[str, Any], prompts: list[Any]) -> list[list[Completion]]:
        return sasa.generate(
            self.model,
            self.tokenizer,
            prompts,
            self.boundaries,
            chat=self.spec.template == "chat",
            batch_size=len(prompts),
            **self.steering,
            **settings,
        )


class Batches:
    """Requests from many tasks, written together where their settings are equal.

    Args:
        write: completions of prompts, from settings.
        size: prompts at a time.
    """

    def __init__(
        self, write: Callable[[dict[str, Any], list[Any]], list[list[Completion]]], size: int
    ) -> None:
        if size < 1:
            raise ValueError(f"batch_size must be >= 1, got {size}")
        self.size = size
        self._write = write
        self._asked: queue.Queue[tuple[dict[str, Any], Any, Future[list[Completion]]]] = (
            queue.Queue()
        )
        self._worker: threading.Thread | None = None

    async def ask(self, settings: dict[str, Any], prompt: Any) -> list[Completion]:
        """The completions of one prompt, once its batch is written."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, daemon=True)
            self._worker.start()
        future: Future[list[Completion]] = Future()
        self._asked.put((settings, prompt, future))
        while not future.done():
            await anyio.sleep(WAIT / 2)  # Inspect may run on any of anyio's event loops
        return future.result()

    def _work(self) -> None:
        waiting: list[tuple[dict[str, Any], Any, Future[list[Completion]]]] = []
        while True:
            if not waiting:
                waiting.append(self._asked.get())
                time.sleep(WAIT)
            while not self._asked.empty():
                waiting.append(self._asked.get())
            settings = waiting[0][0]
            batch = [one for one in waiting if one[0] == settings][: self.size]
            waiting = [one for one in waiting if one not in batch]  # no two have the same future
            self._serve(settings, [(prompt, future) for _, prompt, future in batch])

    def _serve(
        self, settings: dict[str, Any], batch: list[tuple[Any, Future[list[Completion]]]]
    ) -> None:
        """Writes a batch; where that fails, each request by itself, so that one costs the others nothing."""
        try:
            made = self._write(settings, [prompt for prompt, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:
                self._serve(settings, [one])
        else:
            for (_, future), completions in zip(batch, made, strict=True):
                future.set_result(completions)
