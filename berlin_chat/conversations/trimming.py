"""Which of a conversation's messages are sent, where they are too many: policies to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

from ..errors import InvalidRequest
from ..validation import checked_count

#: Takes all messages, the new question at the end, and returns those that are to be sent.
Trim: TypeAlias = "Callable[[list[dict[str, Any]]], list[dict[str, Any]]]"
#: Measures one message, in whatever the limit is.
Count: TypeAlias = "Callable[[Mapping[str, Any]], int]"

#: The roles of messages that are always sent.
_KEPT = ("system", "developer")


def last_turns(count: int) -> Trim:
    """Returns the policy that sends the newest ``count`` turns, the new question's among them.

    A turn is a question with all that follows it up to the next, so that the call of a tool is never sent without its
    answer. System messages are always sent.

    Raises:
        InvalidRequest: ``count`` is no whole number of at least 1.

    >>> messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    >>> [message["role"] for message in last_turns(1)(messages)]
    ['system', 'user']
    """
    return partial(_last_turns, checked_count(count, "count", 1))


def fits(limit: int, count: Count | None = None) -> Trim:
    """Returns the policy that sends the newest turns that measure no more than ``limit``, system messages included.

    The newest turn is sent even where it does not fit alone: then the server says so.

    Args:
        limit: in characters, or in whatever ``count`` counts.
        count: measures one message, such as in tokens; otherwise its characters of text are counted.

    Raises:
        InvalidRequest: ``limit`` is no whole number of at least 1, or ``count`` cannot be called.

    >>> messages = [{"role": role, "content": "12345"} for role in ("user", "assistant", "user")]
    >>> len(fits(5)(messages)), len(fits(14)(messages)), len(fits(15)(messages))
    (1, 1, 3)
    """
    if count is not None and not callable(count):
        raise InvalidRequest(f"count is of type {type(count).__name__}: give a function of one message")
    return partial(_fits, checked_count(limit, "limit", 1), count or characters)


def characters(message: Mapping[str, Any]) -> int:
    """Returns the number of characters of text in a message, those of its calls of tools included."""
    content = message.get("content") or ""
    texts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
    for call in message.get("tool_calls") or ():
        texts += [str(value) for value in (call.get("function") or call.get("custom") or {}).values()]
    return sum(map(len, texts))


def turns_of(messages: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Returns the messages in turns, each of which begins with a question of the user's."""
    turns: list[list[dict[str, Any]]] = []
    for message in messages:
        begins = message["role"] == "user" and bool(turns) and turns[-1][-1]["role"] not in ("user", *_KEPT)
        if begins or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def _last_turns(count: int, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    turns = turns_of(messages)
    return _without(turns, len(turns) - count)


def _fits(limit: int, count: Count, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    turns = turns_of(messages)
    sizes = [sum(count(message) for message in turn if message["role"] not in _KEPT) for turn in turns]
    left = limit - sum(count(message) for message in messages if message["role"] in _KEPT)
    dropped = len(turns) - 1
    left -= sizes[-1]
    while dropped and sizes[dropped - 1] <= left:
        dropped -= 1
        left -= sizes[dropped]
    return _without(turns, dropped)


def _without(turns: list[list[dict[str, Any]]], dropped: int) -> list[dict[str, Any]]:
    """All but the first turns, of which only the system messages stay."""
    return [
        message for place, turn in enumerate(turns) for message in turn if place >= dropped or message["role"] in _KEPT
    ]
