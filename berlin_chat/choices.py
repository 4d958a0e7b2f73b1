"""Replies and their events → the choices of OpenAI's chat completions, for those who answer in that shape.

The opposite of ``completions``, which reads them.
"""

from __future__ import annotations

from typing import Any

from .reply import Event, Reply, ToolCall

_DELTAS = {"text": "content", "reasoning": "reasoning_content", "refusal": "refusal"}
#: The providers whose servers say why they stop, by name.
_GIVE_REASONS = ("openai", "ylokh")


def whole(reply: Reply) -> dict[str, Any]:
    """Returns the choice of a completion that comes in one piece."""
    message = reply.message
    if reply.reasoning is not None:
        message["reasoning_content"] = reply.reasoning
    return {"message": {**message, **_beside_text(reply)}, **_end(reply)}


def delta(event: Event, told: dict[int | None, ToolCall]) -> dict[str, Any]:
    """Returns one event; of a call of a tool what is new.

    Args:
        told: what was told of the calls before, by their places; it is brought up to date.
    """
    if event.call is None:
        return {_DELTAS[event.kind]: event.text}
    call, before = event.call, told.get(event.place, ToolCall("", "", ""))
    new: dict[str, Any] = {"index": event.place}
    if call.id != before.id:
        new["id"] = call.id
    kind, given = ("custom", "input") if call.extra.get("type") == "custom" else ("function", "arguments")
    if event.place not in told:
        new["type"] = kind
    new.update((key, value) for key, value in call.extra.items() if before.extra.get(key) != value)
    new[kind] = {given: event.text}
    if call.name != before.name:
        new[kind]["name"] = call.name.removeprefix(before.name)
    told[event.place] = call._replace(extra=dict(call.extra))
    return {"tool_calls": [new]}


def last(reply: Reply) -> dict[str, Any]:
    """Returns the choice that follows the deltas of all events."""
    return {"delta": _beside_text(reply), **_end(reply)}


def _beside_text(reply: Reply) -> dict[str, Any]:
    """What a message holds that no event tells."""
    return {**({"annotations": reply.annotations} if reply.annotations else {}), **(reply.extra or {})}


def _end(reply: Reply) -> dict[str, Any]:
    """What stands in a choice when it has ended.

    An upstream of the same protocol that gave no ``finish_reason`` has perhaps not finished, and the client decides.
    In the other protocols the end itself says that it has.
    """
    unsaid = None if reply.provider in _GIVE_REASONS else "stop"
    logprobs = {"logprobs": reply.logprobs} if reply.logprobs else {}
    return {"finish_reason": reply.finish_reason or unsaid, **logprobs}
