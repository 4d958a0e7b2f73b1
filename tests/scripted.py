"""A model server of OpenAI's protocol whose replies are written down by a test, chunk by chunk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from wire import OPENAI, Chunked, Connection, Recorded, Wire

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def chunk(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **beside: Any) -> bytes:
    """One event of a stream; ``logprobs`` stands in its choice, everything else beside it."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason}
    if "logprobs" in beside:
        choice["logprobs"] = beside.pop("logprobs")
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m-1"}
    return b"data: " + json.dumps({**head, "choices": [choice], **beside}).encode() + b"\n\n"


def end(finish_reason: str = "stop", **beside: Any) -> bytes:
    """The last events of a stream."""
    usage = json.dumps({"choices": [], "usage": USAGE}).encode()
    return chunk({}, finish_reason, **beside) + b"data: " + usage + b"\n\ndata: [DONE]\n\n"


def text(*pieces: str) -> list[bytes]:
    """A reply of text."""
    return [*(chunk({"content": piece}) for piece in pieces), end()]


def call(index: int, identity: str = "", name: str = "", arguments: str = "") -> bytes:
    """A delta of a call of a tool."""
    delta: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if identity:
        delta.update(id=identity, type="function", function={"name": name, "arguments": arguments})
    return chunk({"tool_calls": [delta]})


def two_calls(name: str = "weather") -> list[bytes]:
    """A reply that calls a tool twice, at the same time, with arguments in pieces."""
    return [
        chunk({"role": "assistant", "content": None}),
        call(0, "call_a", name),
        call(0, arguments='{"city": '),
        call(1, "call_b", name, '{"city"'),
        call(0, arguments='"Berlin"}'),
        call(1, arguments=': "Osló 🙂"}'),
        end("tool_calls"),
    ]


def replies(wire: Wire, *scripts: list[bytes]) -> None:
    """Lets the server give one reply after the other."""
    waiting: Iterator[list[bytes]] = iter(scripts)

    def script(request: Recorded, connection: Connection) -> None:
        parts = next(waiting)
        body = Chunked(connection, "text/event-stream", b"".join(parts))
        for part in parts:
            body.part(part)
        body.end()

    wire.on(*OPENAI.route, script)


def questions(wire: Wire) -> list[Any]:
    """The questions that have arrived, as JSON."""
    return [request.json for request in wire.asked(*OPENAI.route)]
