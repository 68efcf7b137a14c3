"""Preference data in the forms of hh-rlhf, trl and others -> a prompt and the two replies to it.

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
OTHER_ROLES = {"human": "user", "prompter": "user"} | dict.fromkeys(
    ("gpt", "chatgpt", "model", "bot", "ai"), "assistant"
)
"""Names that other data sets have for the roles, in lower case."""
WHOLE = 40
"""A prompt with which both replies begin is part of them from so many characters on; a shorter one
may be chance."""

Message = dict[str, str]


@dataclass(frozen=True)
class Reply:
    """A reply, and what it replies to.

    Attributes:
        prompt: as text, for models without a chat template; a dialogue in the form of hh-rlhf where
            it has turns; empty if there is none.
        turns: the same as chat messages; none if no user speaks in it.
        text: the reply, as it follows the prompt's text.
    """

    prompt: str
    turns: tuple[Message, ...]
    text: str

    @property
    def group(self) -> str:
        """How the conversation begins: the first thing that the user says, as the source has it."""
        return self.prompt.partition(ANSWER)[0]


def replies(row: dict[str, Any], prompt: Any) -> tuple[Reply, Reply]:
    """The preferred and the rejected reply of a row; the text is empty where there is none.

    Args:
        prompt: the row's prompt; None if the replies contain it.

    Raises:
        ValueError: the row is in none of the forms.
    """
    given = [_unix(row.get(side)) for side in SIDES]
    prompt = _unix(prompt)
    before = prompt.strip() if isinstance(prompt, str) else ""
    if before and all(isinstance(each, str) and each.lstrip().startswith(before) for each in given):
        rest = [each.lstrip()[len(before) :] for each in given]
        apart = all(not each or each[0].isspace() for each in rest) and len(before) >= WHOLE
        if apart or before.endswith(ANSWER.strip()):  # both are whole texts, prompt included
            given = rest
    first, second = (_reply(prompt, each, side) for each, side in zip(given, SIDES, strict=True))
    return first, second


def _unix(text: Any) -> Any:
    return text.replace("\r\n", "\n") if isinstance(text, str) else text


def turns(dialogue: str) -> list[Message]:
    """A dialogue of hh-rlhf without its last reply, as chat messages; none without a user's."""
    before, *parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + dialogue.strip())
    messages = [
        {"role": ROLES[name], "content": content.strip()}
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if before.strip():
        messages.insert(0, {"role": "system", "content": before.strip()})
    if messages and messages[-1]["role"] == "assistant":  # the turn that the reply is going to fill
        messages.pop()
    return messages if any(message["role"] == "user" for message in messages) else []


def as_dialogue(messages: Sequence[Message]) -> str:
    """Chat messages as a dialogue in the form of hh-rlhf, up to where the assistant answers."""
    names = {role: name for name, role in ROLES.items()}
    parts = [
        content if role == "system" else f"{names.get(role, role.capitalize())}: {content}"
        for role, content in ((message["role"], message["content"]) for message in messages)
    ]
    return "\n\n".join(parts) + ANSWER


def _reply(prompt: Any, given: Any, side: str) -> Reply:
    if isinstance(prompt, list):
        prompt = _messages(prompt, "prompt")
    elif prompt is not None and not isinstance(prompt, str):
        raise ValueError(
            f"the prompt must be text or a list of messages, got {type(prompt).__name__}"
        )
    if isinstance(given, list):
        return _of_messages(prompt, _messages(given, side))
    if not isinstance(given, str):
        raise ValueError(f"{side} must be text or a list of messages, got {type(given).__name__}")
    if isinstance(prompt, list):
        return Reply(as_dialogue(prompt), tuple(prompt), _after_answer(given))
    if prompt is None or not prompt.strip():
        before, turn, reply = given.strip().rpartition(ANSWER)
        if not turn:
            return Reply("", (), given)
        dialogue = (before + turn).strip()
        return Reply(
            dialogue,
            tuple(turns(dialogue)),
            reply if reply.strip() and "\n\nHuman:" not in reply else "",
        )
    if re.search(r"(^|\n\n)(Human|Assistant):", prompt.lstrip()):
        dialogue = prompt.strip()
        if not dialogue.endswith(ANSWER.strip()):
            dialogue += ANSWER
        return Reply(
            dialogue,
            tuple(turns(dialogue)),
            _after_answer(given.strip().removeprefix(ANSWER.strip())),
        )
    return Reply(prompt, ({"role": "user", "content": prompt},), given if given.strip() else "")


def _of_messages(prompt: str | list[Message] | None, given: list[Message]) -> Reply:
    """The reply that messages end with; the prompt may stand before them, among them, or both."""
    *before, last = given or [{"role": "", "content": ""}]
    if last["role"] not in ("", *OTHER_ROLES.values(), "system", "tool"):
        raise ValueError(
            f"a message's role is {last['role']!r}; it must be user, assistant, system or tool"
        )
    if isinstance(prompt, list):
        shared = next(
            (
                n
                for n in range(min(len(prompt), len(before)), 0, -1)
                if _same(prompt[-n:], before[:n])
            ),
            0,
        )
        before = [*prompt, *before[shared:]]
    elif (
        isinstance(prompt, str)
        and prompt.strip()
        and not any(message["role"] == "user" for message in before)
    ):
        before = [*before, {"role": "user", "content": prompt}]
    reply = last["content"] if last["role"] == "assistant" else ""
    asked = any(message["role"] == "user" for message in before)
    return Reply(
        as_dialogue(before) if before else "", tuple(before) if asked else (), _after_answer(reply)
    )


def _same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    """Whether messages are equal, apart from the space around them."""
    return [(m["role"], m["content"].strip()) for m in some] == [
        (m["role"], m["content"].strip()) for m in others
    ]


def _after_answer(reply: str) -> str:
    """A reply as it follows "Assistant:"."""
    return f" {reply.strip()}" if reply.strip() else ""


def _messages(given: list[Any], name: str) -> list[Message]:
    """Messages with role and content, from the forms that occur in data sets."""
    messages = []
    for message in given:
        role, content = None, None
        if isinstance(message, dict):
            role = message.get("role", message.get("from"))
            content = message.get("content", message.get("value"))
        if isinstance(content, list) and all(
            isinstance(part, dict) for part in content
        ):  # text in parts
            parts = [part.get("text") for part in content]
            content = "".join(map(str, parts)) if None not in parts else None
        if not isinstance(role, str) or not isinstance(content, str):
            is_dict = isinstance(message, dict)
            content_of = ", ".join(map(str, message)) if is_dict else type(message).__name__
            raise ValueError(
                f"{name} is a list, and not each of it is a message with the texts role and "
                f"content; it has {content_of}"
            )
        role = role.strip().lower()
        messages.append({"role": OTHER_ROLES.get(role, role), "content": _unix(content)})
    return messages
