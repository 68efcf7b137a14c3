"""Targets: a model with a defence, an OpenAI-compatible endpoint, a command, a Python function.

A target answers attacks. What it could not answer is an error with a reason and never counts as
safe: an attack that finds nothing because nothing was there to answer has shown nothing.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.embedding_spec import EmbeddingSpec
from sasa.core.model_info import ModelInfo
from sasa.core.settings import BETA, PRIOR, VALUE
from sasa.core.values import Boundaries, fingerprint_of
from sasa.decoding.prompts import encode_prompts
from sasa.evaluation.fingerprints import fingerprint
from sasa.evaluation.methods import method
from sasa.evaluation.rewards import named_function
from sasa.evaluation.settings import Settings
from sasa.evaluation.world import World
from sasa.redteam.settings import REPLY_TOKENS

HELLO = "Hello! How are you today?"
"""What a target must answer before an attack begins."""
TRIES = 5
PAUSE = 0.5
"""Seconds before the second try of an endpoint, twice as many before the third, and so on."""
WORKERS = 8
NOTHING = "the target answered nothing"


@dataclass(frozen=True)
class Reply:
    """A target's answer to an attack.

    Attributes:
        text: None where there is none.
        error: why there is none.
    """

    text: str | None
    error: str | None = None

    @classmethod
    def of(cls, text: Any) -> Reply:
        """The reply that a value of any type is."""
        if isinstance(text, str) and text.strip():
            return cls(
                text.encode("utf-8", "replace").decode()
            )  # half of a surrogate pair can be in no file
        if text is None or isinstance(text, str):
            return cls(None, NOTHING)
        return cls(None, f"the target answered with {type(text).__name__} in place of text")


class Target(Protocol):
    """A system that replies to attacks.

    Attributes:
        about: what identifies it in the store's settings.
    """

    about: dict[str, Any]

    def reply(self, attacks: Sequence[str], seed: int) -> list[Reply]:
        """The reply to each attack, or why there is none; reproducible by the seed if possible."""
        ...


def check_target(target: Target) -> None:
    """Raises OSError where a target does not answer a greeting."""
    (reply,) = target.reply([HELLO], 0)
    if reply.error is not None:
        raise OSError(f"the target does not answer a greeting: {reply.error}")


class ModelTarget:
    """A causal language model that `sasa.load` loaded, with a defence: a method of `sasa bench`.

    Args:
        defence: `plain`, `sasa`, `backtrack`, …: see `sasa.evaluation.methods`.
        boundary: for all defences but those that are `boundless`.
        settings: how it samples; its `completions` are not read.

    Raises:
        ValueError: an unknown defence, one that needs a boundary and has none, or a chat without a
            template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        defence: str = "plain",
        boundary: Boundaries | None = None,
        settings: Settings | None = None,
    ) -> None:
        given = settings or Settings(max_new_tokens=REPLY_TOKENS, chat=True)
        self.model = model
        self._method = method(defence)
        boundless = self._method.boundless  # no boundary: no margins, which nobody would read
        if boundary is None and not boundless:
            raise ValueError(f"the defence {defence} needs a boundary")
        if given.chat and tokenizer.chat_template is None:
            raise ValueError("the target's tokenizer has no chat template: say --no-chat")
        self._world = World(
            model, tokenizer, None if boundless else boundary, replace(given, completions=1)
        )
        self._method.check(self._world)
        self.about = {
            "kind": "model",
            "model": asdict(ModelInfo.of(model)),
            "weights": fingerprint(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "defence": defence,
            "default": f"sasa:{BETA:g}:{VALUE}:{PRIOR:g}",
            "boundary": fingerprint_of(self._world.boundary),
            "sampling": self._world.settings.to_dict(),
        }

    def reply(self, attacks: Sequence[str], seed: int) -> list[Reply]:
        world = self._world
        errors: dict[int, str] = {}
        extra = self._method.extra_tokens(world)
        for i, attack in enumerate(attacks):
            try:
                encode_prompts(
                    world.model,
                    world.tokenizer,
                    [attack],
                    EmbeddingSpec(),
                    world.settings.chat,
                    world.settings.max_new_tokens + extra,
                )
            except ValueError as error:  # beyond the context window
                errors[i] = str(error).replace("prompt 0", "the attack")
        rest = [i for i in range(len(attacks)) if i not in errors]
        written = self._method(world, [attacks[i] for i in rest], seed) if rest else []
        replies = {i: Reply.of(row[0].text) for i, row in zip(rest, written, strict=True)}
        replies |= {i: Reply(None, error) for i, error in errors.items()}
        return [replies[i] for i in range(len(attacks))]


class Endpoint:
    """A chat endpoint with OpenAI's protocol: vLLM, llama.cpp, Ollama, a service.

    Its key is in $OPENAI_API_KEY.

    Tries with growing pauses; what comes back broken, late or empty after the last one is an error.

    Args:
        url: up to `/v1`.
        model: as the endpoint calls it.
        timeout: seconds of one try.
        workers: requests at a time.
        extra: what the body of a request has besides, such as {"vllm_xargs": {"sasa_beta": 4.0}}
            for `sasa serve`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        max_new_tokens: int = REPLY_TOKENS,
        temperature: float = 1.0,
        top_p: float = 0.9,
        timeout: float = 60.0,
        tries: int = TRIES,
        workers: int = WORKERS,
        extra: dict[str, Any] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "an endpoint needs openai: pip install 'sasa-decoding[redteam]'"
            ) from error
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=timeout,
            max_retries=0,
        )
        self._tries = tries
        self._options: dict[str, Any] = dict(
            model=model, max_tokens=max_new_tokens, temperature=temperature, top_p=top_p
        )
        if extra:
            self._options["extra_body"] = extra
        self._workers = workers
        self.about = {"kind": "endpoint", "url": url, "sampling": self._options}

    def reply(self, attacks: Sequence[str], seed: int) -> list[Reply]:
        with ThreadPoolExecutor(self._workers) as pool:
            return list(
                pool.map(lambda pair: self._one(pair[1], seed + pair[0]), enumerate(attacks))
            )

    def _one(self, attack: str, seed: int) -> Reply:
        for attempt in range(self._tries):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            reply, final = self._try(attack, seed)
            if final or reply.error is None:
                break
        return reply

    def _try(self, attack: str, seed: int) -> tuple[Reply, bool]:
        """A reply, and whether it would be the same next time."""
        import openai

        try:
            answer = self._client.chat.completions.create(
                messages=[{"role": "user", "content": attack}], seed=seed, **self._options
            )
            return Reply.of(answer.choices[0].message.content), False
        except openai.APIStatusError as error:
            refused = error.status_code < 500 and error.status_code not in (408, 409, 429)
            return Reply(None, f"{type(error).__name__}: {error}"[:300]), refused
        except openai.OpenAIError as error:
            return Reply(None, f"{type(error).__name__}: {error}"[:300]), False
        except (
            AttributeError,
            IndexError,
            TypeError,
            ValueError,
        ) as error:  # an answer that is no chat completion
            return Reply(None, f"the endpoint answered nonsense: {error}"[:300]), False


class Command:
    """A program, started for each attack: it reads the attack from stdin and replies on stdout.

    Args:
        command: as in a shell, without a shell.
        timeout: seconds that it has.
    """

    def __init__(self, command: str, timeout: float = 60.0, workers: int = 1) -> None:
        self._parts, self._timeout, self._workers = shlex.split(command), timeout, workers
        if not self._parts:
            raise ValueError("the target's command is empty")
        self.about = {"kind": "command", "command": command}

    def reply(self, attacks: Sequence[str], seed: int) -> list[Reply]:
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(self._one, attacks))

    def _one(self, attack: str) -> Reply:
        try:
            done = subprocess.run(
                self._parts,
                input=attack,
                capture_output=True,
                encoding="utf-8",
                timeout=self._timeout,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
            return Reply(None, f"{type(error).__name__}: {error}"[:300])
        if done.returncode:
            return Reply(None, f"exit status {done.returncode}: {done.stderr.strip()[-200:]}")
        return Reply.of(done.stdout.strip())


class Function:
    """A Python function of a list of attacks that returns as many replies, None for no reply."""

    def __init__(self, function: Callable[[list[str]], Sequence[str | None]], name: str) -> None:
        self._function = function
        self.about = {"kind": "function", "name": name}

    def reply(self, attacks: Sequence[str], seed: int) -> list[Reply]:
        try:
            replies = self._function(list(attacks))
        except Exception as error:  # a stranger's code: whatever it raises is a reply that failed
            return [Reply(None, f"{type(error).__name__}: {error}"[:300])] * len(attacks)
        replies = replies.tolist() if hasattr(replies, "tolist") else replies
        is_list = isinstance(replies, Sequence)
        if isinstance(replies, str) or not is_list or len(replies) != len(attacks):
            size = f" of {len(replies)}" if is_list else ""
            raise ValueError(
                f"the target {self.about['name']} must return a list of {len(attacks)} replies for "
                f"as many attacks, got {type(replies).__name__}{size}"
            )
        return [Reply.of(text) for text in replies]


def load_function(spec: str) -> Function:
    """A target from `MODULE:FUNCTION`; MODULE is looked for in the working folder, too.

    Raises:
        ValueError: there is no such module or function.
    """
    return Function(named_function(spec, "target"), spec)
