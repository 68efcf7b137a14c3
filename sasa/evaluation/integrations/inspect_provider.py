"""Inspect AI (UK AISI) with SASA: any of its evaluations on a steered model.

    inspect eval my_task.py --model sasa/default
    inspect eval my_task.py --model sasa/Qwen/Qwen3-0.6B -M boundary=qwen-toxicity -M beta=4

`sasa/default` is the embedded default model; any other name after `sasa/` is passed to `sasa.load`.
Requests that wait at the same time are answered together.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar

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

from sasa.core.boundary import Boundary
from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.settings import BETA, PRIOR, VALUE, check_beta, check_prior, check_value
from sasa.core.values import load_terms
from sasa.decoding.completion import Completion
from sasa.decoding.generate import generate
from sasa.models.embedding import tokenize_prompt
from sasa.models.load import load
from sasa.models.states import context_window

DEFAULT = "default"
MAX_TOKENS = 1024
"""Tokens of a reply, unless the task sets a limit."""
WAIT = 0.05
"""Seconds in which further requests may join a batch."""


Messages = str | list[dict[str, str]]
"""A prompt: a text, or the messages of a conversation."""
S = TypeVar("S")
P = TypeVar("P")
R = TypeVar("R")


class Steering(TypedDict):
    """Arguments of `sasa.generate` that are the same for all requests."""

    beta: float
    value: str
    prior: float


class Sampling(TypedDict, total=False):
    """Arguments of `sasa.generate` that a request sets."""

    max_new_tokens: int
    do_sample: bool
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    num_return_sequences: int
    stop_strings: list[str]


class SASAProvider(ModelAPI):
    """A model of transformers that is steered by SASA.

    Args:
        model_name: `default`, or as in `sasa.load`.
        boundary: a name for `Boundary.load`, or several separated by commas, each NAME or
            NAME::WEIGHT; `none` for the plain model.
        beta, value, prior: see `sasa.generate`; beta 0 is the plain model.
        batch_size: requests that are answered together, at most.
        strict, device, dtype: see `Boundary.load` and `sasa.load`.

    Raises:
        ValueError, OSError: as `sasa.load` and `Boundary.load`. A request for tools or
            log-probabilities raises ValueError: they are not supported.
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
        self.model, self.tokenizer = load(
            None if model_name == DEFAULT else model_name, device, dtype
        )
        self.boundaries: list[tuple[Boundary, float]] | None = None
        if boundary != "none":
            self.boundaries = load_terms(
                [name.strip() for name in boundary.split(",")], self.model, strict
            )
        self.steering = Steering(beta=float(beta), value=value, prior=float(prior))
        self.spec = EmbeddingSpec(template="chat" if self.tokenizer.chat_template else "none")
        self.batches: Batches[Sampling, Messages, list[Completion]] = Batches(
            self._write, int(batch_size)
        )

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
        prompt: Messages
        if self.spec.template == "none":
            prompt = "\n".join(message.text for message in input)
        else:
            prompt = [{"role": message.role, "content": message.text} for message in input]
        read = len(tokenize_prompt(self.tokenizer, prompt, self.spec))
        room = (context_window(self.model) or 2**31) - read
        settings = Sampling(
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
        for stop in stops:  # a stop string is no part of the reply
            text = text.partition(stop)[0]
        return ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason="max_tokens"
            if completion.finish_reason == "length" and text == completion.text
            else "stop",
        )

    def _write(self, settings: Sampling, prompts: list[Messages]) -> list[list[Completion]]:
        return generate(
            self.model,
            self.tokenizer,
            prompts,
            self.boundaries,
            chat=self.spec.template == "chat",
            batch_size=len(prompts),
            **self.steering,
            **settings,
        )


@dataclass(frozen=True, eq=False)
class Request(Generic[S, P, R]):
    """A request that waits for its batch."""

    settings: S
    prompt: P
    result: Future[R]


class Batches(Generic[S, P, R]):
    """Requests from many tasks, answered together if their settings are equal.

    Args:
        write: answers prompts with the same settings.
        size: prompts at a time.
    """

    def __init__(self, write: Callable[[S, list[P]], list[R]], size: int) -> None:
        if size < 1:
            raise ValueError(f"batch_size must be >= 1, got {size}")
        self.size = size
        self._write = write
        self._incoming: queue.Queue[Request[S, P, R]] = queue.Queue()
        self._worker: threading.Thread | None = None

    async def ask(self, settings: S, prompt: P) -> R:
        """Returns the answer to one prompt, once its batch is written."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, daemon=True)
            self._worker.start()
        request: Request[S, P, R] = Request(settings, prompt, Future())
        self._incoming.put(request)
        while not request.result.done():
            await anyio.sleep(WAIT / 2)  # Inspect may run on any of anyio's event loops
        return request.result.result()

    def _work(self) -> None:
        waiting: list[Request[S, P, R]] = []
        while True:
            if not waiting:
                waiting.append(self._incoming.get())
                time.sleep(WAIT)
            while not self._incoming.empty():
                waiting.append(self._incoming.get())
            settings = waiting[0].settings
            batch = [one for one in waiting if one.settings == settings][: self.size]
            waiting = [one for one in waiting if one not in batch]
            self._answer(settings, batch)

    def _answer(self, settings: S, batch: list[Request[S, P, R]]) -> None:
        """Answers a batch; if that fails, each request alone, so that one fails no other."""
        try:
            results = self._write(settings, [request.prompt for request in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].result.set_exception(error)
                return
            for request in batch:
                self._answer(settings, [request])
        else:
            for request, result in zip(batch, results, strict=True):
                request.result.set_result(result)
