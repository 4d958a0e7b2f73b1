"""A completion in chunks, as OpenAI's package shows them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import chain
from typing import Any

from ..choices import delta, last
from ..live import LiveReply
from ..reply import Event, ToolCall
from .completion import head
from .shapes import ChoiceLogprobs, CompletionUsage, Shape


class ChoiceDeltaToolCallFunction(Shape):
    arguments: str | None = None
    name: str | None = None


class ChoiceDeltaToolCall(Shape, function=ChoiceDeltaToolCallFunction.of):
    index: int
    id: str | None = None
    function: ChoiceDeltaToolCallFunction | None = None
    type: str | None = None


class ChoiceDelta(Shape, tool_calls=ChoiceDeltaToolCall.of):
    content: str | None = None
    function_call: None = None
    refusal: str | None = None
    role: str | None = None
    tool_calls: list[ChoiceDeltaToolCall] | None = None


class Choice(Shape, delta=ChoiceDelta.of, logprobs=ChoiceLogprobs.of):
    delta: ChoiceDelta
    finish_reason: str | None = None
    index: int
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(Shape, choices=Choice.of, usage=CompletionUsage.of):
    """A part of a completion.

    All chunks of a stream have one ``id``, which is made here, and the ``model`` that was asked for: what the server
    says of both is known at the end only. The last choice has the ``finish_reason``, and all log probabilities.
    """

    id: str
    choices: list[Choice]
    created: int
    model: str
    object: str
    service_tier: str | None = None
    system_fingerprint: str | None = None
    usage: CompletionUsage | None = None


class Stream:
    """The chunks of a completion, each as soon as it has arrived: an iterator, and a context manager that ends it.

    It belongs to the thread that reads it. Its first part has arrived when it is made, so that a server's refusal is
    an error there.

    Args:
        live: the reply.
        model: the model that was asked for.
        counted: whether the usage is told, in a chunk without choices behind all others.
    """

    def __init__(self, live: LiveReply, model: str, counted: bool) -> None:
        self._live = live
        events = live.events()
        # It does not know this object: then both end with the last who refers to it, and with them the reply.
        self._chunks = _chunks(live, events, next(events, None), head(model), counted)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> ChatCompletionChunk:
        return next(self._chunks)

    def close(self) -> None:
        """Ends the reply, and closes its connection. Also done by ``with``."""
        self._live.close()
        self._chunks.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _chunks(
    live: LiveReply, events: Iterator[Event], first: Event | None, known: dict[str, Any], counted: bool
) -> Generator[ChatCompletionChunk, None, None]:
    told: dict[int | None, ToolCall] = {}
    known = {**known, "object": "chat.completion.chunk"}

    def chunk(choice: dict[str, Any], **beside: Any) -> ChatCompletionChunk:
        return ChatCompletionChunk.of({**known, "choices": [{"index": 0, **choice}], **beside})

    yield chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
    for event in chain([] if first is None else [first], events):
        yield chunk({"delta": delta(event, told), "finish_reason": None})
    reply = live.reply
    if reply is None:
        return  # it was closed
    yield chunk(last(reply), **({"citations": reply.citations} if reply.citations else {}))
    if counted and reply.usage:
        yield ChatCompletionChunk.of({**known, "choices": [], "usage": reply.usage})
