"""The messages of a conversation: what a caller may give, checked and put into one shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from .errors import InvalidRequest

Message: TypeAlias = Mapping[str, Any]
#: A prompt, one message, or several.
Messages: TypeAlias = str | Message | Iterable[Message]


def as_list(messages: Messages) -> list[dict[str, Any]]:
    """Returns the messages as a new list of new dicts; what was given is never modified.

    A ``str`` becomes one message of the role ``user``. Keys beside ``role`` and ``content`` are kept.

    Raises:
        InvalidRequest: it is none of the forms, is empty, or a message has no role or no text.

    >>> as_list("Hi")
    [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(messages, str):
        if not messages.strip():
            raise InvalidRequest("the prompt is empty: give it some text")
        messages = [{"role": "user", "content": messages}]
    elif isinstance(messages, Mapping):
        messages = [messages]
    elif isinstance(messages, (bytes, bytearray)) or not isinstance(messages, Iterable):
        raise InvalidRequest(
            f"messages is of type {type(messages).__name__}: give a str, one"
            ' {"role": …, "content": …} mapping, or a list of them'
        )
    checked = [_checked(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if not checked:
        raise InvalidRequest("messages is empty: give at least one message")
    return checked


def _checked(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f'{where} is of type {type(message).__name__}, not a {{"role": …, "content": …}} mapping')
    for key in ("role", "content"):
        if key not in message:
            raise InvalidRequest(f"{where} has no {key!r}")
        if not isinstance(message[key], str):
            raise InvalidRequest(f"{where}[{key!r}] is of type {type(message[key]).__name__}, not str")
    if not message["role"]:
        raise InvalidRequest(f"{where}['role'] is empty: say 'user', 'assistant' or 'system'")
    return dict(message)


def flatten(messages: list[dict[str, Any]]) -> str:
    """Returns several messages as the one prompt of protocols without a history.

    ``PROTOCOLS.md``, "The flattened prompt": one message is its content alone.

    >>> print(flatten([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]))
    User: Hi
    Assistant: Hello
    Assistant:
    """
    if len(messages) == 1:
        return str(messages[0]["content"])
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n".join([*lines, "Assistant:"])
