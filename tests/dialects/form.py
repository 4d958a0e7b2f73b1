"""What a fixture is, and the few words in which all of them are written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from berlin_chat import ChatError

#: What most of the servers here answer: characters of one, two and four bytes in UTF-8.
TEXT = "Grüße 🙂"
#: Two questions to tools: what most of those with tools answer.
CALLS = (("call_1", "weather", '{"city":"Köln"}'), ("call_2", "clock", '{"zone":"CET"}'))
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@dataclass(frozen=True)
class Dialect:
    """How one server answers, byte by byte, and what must come out of it.

    Attributes:
        server: the server, gateway or program.
        oddity: what is odd about it.
        seen: where: an issue (``owner/repository#number``), a source file, a page.
        body: what it streams; ``b""`` where only the other form was seen.
        whole: what it answers unstreamed, with the same outcome; ``b""`` likewise.
        kind, whole_kind: the Content-Type of each, None for none.
        end: the provider's setting that it is read with.
        text: the whole text, or what came before ``error``.
        error: the class of the error that it ends with, None for a reply.
        says: what the error's text holds.
        parsed: the arguments of the calls are sent as objects, so that only their values can be compared.
        openai, openai_whole: why the ``openai`` package makes something else of ``body`` and of ``whole``; ``""`` where
            it agrees on text, tool calls and finish reason, or raises an error as we do.

    The others are the attributes of the reply.
    """

    server: str
    oddity: str
    seen: str
    body: bytes = b""
    whole: bytes = b""
    kind: str | None = "text/event-stream"
    whole_kind: str | None = "application/json"
    end: str = "finish_reason"
    text: str = TEXT
    error: type[ChatError] | None = None
    says: str = ""
    finish_reason: str | None = "stop"
    tool_calls: tuple[tuple[str | None, str, str], ...] = ()
    parsed: bool = False
    reasoning: str | None = None
    refusal: str | None = None
    logprobs: dict[str, Any] | None = None
    citations: list[Any] | None = None
    annotations: list[Any] | None = None
    usage: dict[str, Any] | None = None
    model: str = "m-1"
    id: str | None = "c-1"
    openai: str = ""
    openai_whole: str = ""

    @property
    def name(self) -> str:
        setting = "" if self.end == "finish_reason" else f", end={self.end}"
        return f"{self.server}: {self.oddity}{setting} ({self.seen})"

    def forms(self) -> list[tuple[str, bytes, str | None]]:
        """The forms that were seen: how it is called, its bytes, its Content-Type."""
        forms = [("streamed", self.body, self.kind), ("unstreamed", self.whole, self.whole_kind)]
        return [form for form in forms if form[1]]


def encoded(value: Any) -> bytes:
    """JSON as most servers write it: no spaces, text in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def escaped(value: Any) -> bytes:
    """JSON as Python's and JavaScript's servers write what is not ASCII, or is half of a surrogate pair."""
    return json.dumps(value, separators=(",", ":")).encode()


def chunk(delta: Any, finish: str | None = None, choice: dict[str, Any] | None = None, **more: Any) -> bytes:
    """A chunk with one choice; ``choice`` and ``more`` add keys to it and to the chunk, or replace them."""
    only = {"index": 0, "delta": delta, "finish_reason": finish, **(choice or {})}
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1760000000, "model": "m-1"}
    return encoded({**head, "choices": [only], **more})


def completion(message: Any, finish: str | None = "stop", choice: dict[str, Any] | None = None, **more: Any) -> bytes:
    """The unstreamed form, likewise; ``message`` without its role."""
    said = {"role": "assistant", **message}
    only = {"index": 0, "message": said, "finish_reason": finish, **(choice or {})}
    head = {"id": "c-1", "object": "chat.completion", "created": 1760000000, "model": "m-1"}
    return encoded({**head, "choices": [only], **more})


def called(
    index: int | None, id: str | None = None, name: str | None = None, arguments: Any = None, **more: Any
) -> dict[str, Any]:
    """A tool call or a delta of one; what is None is left out."""
    function = {"name": name, "arguments": arguments}
    given = {"index": index, "id": id, "type": "function" if name else None}
    return {
        **{key: value for key, value in given.items() if value is not None},
        "function": {key: value for key, value in function.items() if value is not None},
        **more,
    }


def data(*events: bytes, before: bytes = b"data: ", after: bytes = b"\n\n") -> bytes:
    """Events of a stream, one for each JSON."""
    return b"".join(before + event + after for event in events)


DONE = b"data: [DONE]\n\n"
FIRST = chunk({"role": "assistant", "content": "Grü"})
REST = chunk({"content": "ße 🙂"})
STOP = chunk({}, "stop")
PLAIN = data(FIRST, REST, STOP) + DONE
WHOLE = completion({"content": TEXT})

#: The two calls of ``CALLS``, whole.
WEATHER = called(None, *CALLS[0])
CLOCK = called(None, *CALLS[1])
