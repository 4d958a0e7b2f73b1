"""Ylokh's endpoints, OpenAI's chat completions. ``PROTOCOLS.md``, section "Ylokh"."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from time import time
from typing import Any

from ..errors import ChatError
from ..messages import as_list
from ..providers.h2o import H2o
from ..providers.ylokh import Ylokh
from .backend import Answer
from .web import Endpoints, Handler, Refused, Request, Response, Stream, checked, json_response, numbers


class YlokhEndpoints(Endpoints):
    name = Ylokh.name

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [("POST", "/v1/chat/completions", self.complete), ("GET", "/v1/models", self.models)]

    def refusal(self, refused: Refused) -> Response:
        kind = "invalid_request_error" if refused.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(refused.status, kind)
        error = {"message": refused.message, "type": kind, "param": None, "code": None}
        return json_response({"error": error}, refused.status, refused.headers)

    def configuration(self) -> dict[str, Any]:
        return {"api_key": self.backend.password} if self.backend.password else {}

    def models(self, request: Request) -> Response:
        self._authorize(request)
        names = dict.fromkeys((self.backend.model, Ylokh.default_model, H2o.default_model))
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "berlin_chat"} for name in names]
        return json_response({"object": "list", "data": models})

    def complete(self, request: Request) -> Response:
        self._authorize(request)
        question = request.json()
        messages, model = question.pop("messages", None), question.pop("model", None)
        stream = question.pop("stream", False)
        stream_options = question.get("stream_options")
        checked(isinstance(messages, list) and messages, "messages must be a list that is not empty")
        checked(isinstance(model, str) and model, "model must be a string")
        checked(isinstance(stream, bool), "stream must be a boolean")
        checked(stream_options is None or isinstance(stream_options, dict), "stream_options must be an object")
        given = {name: value for name, value in question.items() if value is not None}
        numbers(given, "temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens")
        if not stream or not stream_options:  # they are the upstream's too, which alone can count
            question.pop("stream_options", None)
        answer = self.backend.answer(
            as_list([_with_text(message) for message in messages]),
            None if model == Ylokh.default_model else model,
            question,
        )
        if not stream:
            return _completion(answer, model)
        chunks = _events(answer, model, bool(stream_options and stream_options.get("include_usage")))
        return Response(200, "text/event-stream", Stream(answer, chunks), {"Cache-Control": "no-cache"})

    def _authorize(self, request: Request) -> None:
        authorized = self.backend.is_authorized(request.bearer_token())
        checked(authorized, "wrong API key: it is the server's password", 401)


def _with_text(message: Any) -> Any:
    """A message whose content came as a list of parts, with their text; others as they are."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    checked(
        all(isinstance(part, dict) and part.get("type") == "text" for part in content),
        "only text is spoken here",
    )
    return {**message, "content": "".join(str(part.get("text", "")) for part in content)}


def _completion(answer: Answer, model: str) -> Response:
    text = "".join(answer)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": _finish_reason(answer),
    }
    return json_response({**_head("chat.completion", model), "choices": [choice], "usage": _usage(answer)})


def _events(answer: Answer, model: str, with_usage: bool) -> Iterator[str]:
    head = _head("chat.completion.chunk", model)
    try:
        yield _event(head, {"role": "assistant", "content": ""})
        for piece in answer:
            yield _event(head, {"content": piece})
        yield _event(head, {}, _finish_reason(answer))
        if with_usage:
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(answer)})}\n\n"
    except ChatError as error:
        body = {"error": {"message": str(error), "type": "upstream_error", "code": error.status}}
        yield f"data: {json.dumps(body)}\n\n"
        return
    yield "data: [DONE]\n\n"


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time()), "model": model}


def _event(head: dict[str, Any], delta: dict[str, str], finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"


def _finish_reason(answer: Answer) -> str:
    return (answer.reply.finish_reason if answer.reply is not None else None) or "stop"


def _usage(answer: Answer) -> Any:
    """The upstream's count; None where it has none, for nothing is counted here."""
    return answer.reply.usage if answer.reply is not None else None
