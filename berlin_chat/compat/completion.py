"""A completion in one piece, as OpenAI's package shows it."""

from __future__ import annotations

from collections.abc import Mapping
from time import time
from typing import Any, ClassVar
from uuid import uuid4

from ..choices import whole
from ..reply import Reply
from .shapes import ChoiceLogprobs, CompletionUsage, Shape


class Function(Shape):
    arguments: str
    name: str


class ChatCompletionMessageFunctionToolCall(Shape, function=Function.of):
    id: str = ""
    function: Function
    type: str


class Custom(Shape):
    input: str
    name: str


class ChatCompletionMessageCustomToolCall(Shape, custom=Custom.of):
    id: str = ""
    custom: Custom
    type: str


def _tool_call(values: Mapping[str, Any]) -> Shape:
    custom = values.get("type") == "custom"
    return (ChatCompletionMessageCustomToolCall if custom else ChatCompletionMessageFunctionToolCall).of(values)


class AnnotationURLCitation(Shape):
    end_index: int
    start_index: int
    title: str
    url: str


class Annotation(Shape, url_citation=AnnotationURLCitation.of):
    type: str
    url_citation: AnnotationURLCitation


class ChatCompletionAudio(Shape):
    id: str
    data: str
    expires_at: int
    transcript: str


class ChatCompletionMessage(Shape, annotations=Annotation.of, audio=ChatCompletionAudio.of, tool_calls=_tool_call):
    """What the model said. It may be appended to the messages of the next question as it is."""

    content: str | None = None
    refusal: str | None = None
    role: str
    annotations: list[Annotation] | None = None
    audio: ChatCompletionAudio | None = None
    function_call: None = None
    tool_calls: list[Any] | None = None


class Choice(Shape, logprobs=ChoiceLogprobs.of, message=ChatCompletionMessage.of):
    finish_reason: str | None
    index: int
    logprobs: ChoiceLogprobs | None = None
    message: ChatCompletionMessage


class ChatCompletion(Shape, choices=Choice.of, usage=CompletionUsage.of):
    """A whole completion.

    Its ``id``, ``model``, ``usage`` and ``choices[0]`` are the server's. It has one choice. ``created`` is the time of
    this machine, in seconds.
    """

    id: str
    choices: list[Choice]
    created: int
    model: str
    object: str
    service_tier: str | None = None
    system_fingerprint: str | None = None
    usage: CompletionUsage | None = None
    #: The server's name for the request, by the name that the package has for it.
    _request_id: ClassVar[str | None] = None


def completion(reply: Reply) -> ChatCompletion:
    """Returns a reply in this shape."""
    facts = {**head(reply.model), "object": "chat.completion", "choices": [{"index": 0, **whole(reply)}]}
    beside = {"id": reply.id, "usage": reply.usage, "citations": reply.citations}
    shown = ChatCompletion.of({**facts, **{name: value for name, value in beside.items() if value}})
    shown.__dict__["_request_id"] = reply.headers.get("x-request-id")
    return shown


def head(model: str | None) -> dict[str, Any]:
    """What all completions and chunks begin with, unless the server says otherwise."""
    return {"id": f"chatcmpl-{uuid4().hex}", "created": int(time()), "model": model or ""}
