"""Preference data, as hh-rlhf, trl and others write it -> a prompt, and the two replies to it.

A row has `chosen` and `rejected`, and may have `prompt`. Each is one of

    a dialogue in the form of hh-rlhf, "\\n\\nHuman: … \\n\\nAssistant: …"
    plain text: a prompt, or a reply to it
    a list of messages, {"role": "user", "content": "…"}, the last of which is the reply
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SIDES = ("chosen", "rejected")
ANSWER = "\n\nAssistant:"
ROLES = {"Human": "user", "Assistant": "assistant"}
OTHER_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}

Message = dict[str, str]


@dataclass(frozen=True)
class Reply:
    """A reply, and what it replies to.

    Attributes:
        prompt: as text, for models without a chat template; a dialogue in the form of hh-rlhf where
            it has turns.
        turns: the same as chat messages; none where nobody asks anything.
        text: the reply, as it follows the prompt's text.
    """

    prompt: str
    turns: tuple[Message, ...]
    text: str

    @property
    def group(self) -> str:
        """How the conversation begins: the first thing that the user says, as the source has it."""
        return self.prompt.partition(ANSWER)[0]


def replies(row: dict[str, Any]) -> tuple[Reply, Reply]:
    """The preferred and the rejected reply of a row; the text is empty where there is none.

    Raises:
        ValueError: the row is in none of the forms.
    """
    first, second = (_reply(row.get("prompt"), row.get(side), side) for side in SIDES)
    return first, second


def turns(dialogue: str) -> list[Message]:
    """A dialogue of hh-rlhf, without its last reply, as chat messages; none where nobody asks anything."""
    before, *parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + dialogue.strip())
    messages = [
        {"role": ROLES[name], "content": content.strip()} for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if before.strip():
        messages.insert(0, {"role": "system", "content": before.strip()})
    if messages and messages[-1]["role"] == "assistant":  # the turn that the reply is going to fill
        messages.pop()
    return messages if any(message["role"] == "user" for message in messages) else []


def as_dialogue(messages: Sequence[Message]) -> str:
    """Chat messages as a dialogue in the form of hh-rlhf, up to where the assistant answers."""
    names = {role: name for name, role in ROLES.items()}
    told = [
        content if role == "system" else f"{names.get(role, role.capitalize())}: {content}"
        for role, content in ((message["role"], message["content"]) for message in messages)
    ]
    return "\n\n".join(told) + ANSWER


def _reply(prompt: Any, given: Any, side: str) -> Reply:
    if isinstance(prompt, list):
        prompt = _messages(prompt, "prompt")
    elif prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"the prompt must be text or a list of messages, got {type(prompt).__name__}")
    if isinstance(given, list):
        return _of_messages(prompt, _messages(given, side))
    if not isinstance(given, str):
        raise ValueError(f"{side} must be text or a list of messages, got {type(given).__name__}")
    if isinstance(prompt, list):
        return Reply(as_dialogue(prompt), tuple(prompt), _behind(given))
    if prompt is None or not prompt.strip():
        before, turn, reply = given.strip().rpartition(ANSWER)
        dialogue = (before + turn).strip()
        return Reply(dialogue, tuple(turns(dialogue)), reply if turn and reply.strip() else "")
    if len(given) > len(prompt) and given.startswith(prompt):  # the whole text, prompt included
        given = given[len(prompt) :]
    if re.search(r"(^|\n\n)(Human|Assistant):", prompt.lstrip()):
        dialogue = prompt.strip()
        if not dialogue.endswith(ANSWER.strip()):
            dialogue += ANSWER
        return Reply(dialogue, tuple(turns(dialogue)), _behind(given.strip().removeprefix(ANSWER.strip())))
    return Reply(prompt, ({"role": "user", "content": prompt},), given if given.strip() else "")


def _of_messages(prompt: str | list[Message] | None, given: list[Message]) -> Reply:
    """The reply that messages end with; the prompt may stand before them, among them, or both."""
    *before, last = given or [{"role": "", "content": ""}]
    if isinstance(prompt, list) and given[: len(prompt)] != prompt:
        before = [*prompt, *before]
    elif isinstance(prompt, str) and prompt.strip() and not any(message["role"] == "user" for message in before):
        before = [*before, {"role": "user", "content": prompt}]
    reply = last["content"] if last["role"] == "assistant" else ""
    asked = any(message["role"] == "user" for message in before)
    return Reply(as_dialogue(before), tuple(before) if asked else (), _behind(reply))


def _behind(reply: str) -> str:
    """A reply as it stands behind "Assistant:"."""
    return f" {reply.strip()}" if reply.strip() else ""


def _messages(given: list[Any], name: str) -> list[Message]:
    """Messages with role and content, of the forms in which people have them."""
    found = []
    for message in given:
        role, content = None, None
        if isinstance(message, dict):
            role = message.get("role", message.get("from"))
            content = message.get("content", message.get("value"))
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):  # text in parts
            parts = [part.get("text") for part in content]
            content = "".join(map(str, parts)) if None not in parts else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f"{name} is a list, and not each of it is a message with the texts role and content; it has "
                + (", ".join(map(str, message)) if isinstance(message, dict) else type(message).__name__)
            )
        found.append({"role": OTHER_ROLES.get(role, role), "content": content})
    return found
