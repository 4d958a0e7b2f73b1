"""The endpoints of OpenAI's chat completions. ``PROTOCOLS.md``, section "OpenAICompatible"."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from time import time
from typing import Any

from ..choices import delta, last, whole
from ..errors import ChatError
from ..messages import as_list
from ..providers.h2o import H2o
from ..providers.openai import OpenAICompatible
from ..reply import Reply, ToolCall
from .backend import Answer, Backend
from .faults import Refused
from .telling import told
from .web import Endpoints, Handler, Request, Response, Stream, checked, json_response, number, numbers

#: The largest ``n``, which is OpenAI's.
MAX_CHOICES = 128
#: After which ``OpenAICompatible`` asks a server that is new to it once more, without ``stream_options``.
ASKED_AGAIN = (400, 422)
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


class OpenAIEndpoints(Endpoints):
    name = OpenAICompatible.name

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._failed = _Failed()

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [
            ("POST", "/v1/chat/completions", self.complete),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/(.+)", self.model),
        ]

    def admit(self, request: Request) -> int:
        authorized = self.backend.is_authorized(request.bearer_token())
        checked(authorized, "wrong API key: it is the server's password", 401)
        return super().admit(request)

    def refusal(self, refused: Refused) -> Response:
        kind = "invalid_request_error" if refused.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(refused.status, kind)
        error = {"message": refused.message, "type": kind, "param": None, "code": None}
        return json_response({"error": error}, refused.status, refused.headers)

    def configuration(self) -> dict[str, Any]:
        return {"api_key": self.backend.password} if self.backend.password else {}

    def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": list(self._models().values())})

    def model(self, request: Request, name: str) -> Response:
        name = name.replace("%2F", "/")  # the only escape that is left in a path
        models = self._models()
        checked(name in models, f"there is no model {name!r}", 404)
        return json_response(models[name])

    def _models(self) -> dict[str, dict[str, Any]]:
        names = [*self.backend.models(), OpenAICompatible.default_model, H2o.default_model]
        return {name: {"id": name, "object": "model", "created": 0, "owned_by": "berlin_chat"} for name in names}

    def complete(self, request: Request) -> Response:
        question = request.json()
        again = {name: value for name, value in question.items() if name != "stream_options"}
        messages, model = question.pop("messages", None), question.pop("model", None)
        stream, count = question.pop("stream", None) or False, question.pop("n", None)
        stream_options = question.get("stream_options")
        checked(isinstance(messages, list) and messages, "messages must be a list that is not empty")
        checked(isinstance(model, str) and model, "model must be a string")
        checked(isinstance(stream, bool), "stream must be a boolean")
        checked(stream_options is None or isinstance(stream_options, dict), "stream_options must be an object")
        checked(
            count is None or (number(count) and count in range(1, MAX_CHOICES + 1)),
            f"n must be a whole number from 1 to {MAX_CHOICES}",
        )
        given = {name: value for name, value in question.items() if value is not None}
        numbers(given, "temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens")
        if not stream or not stream_options:  # they are the upstream's too, which alone can count
            question.pop("stream_options", None)
        wanted = None if model == OpenAICompatible.default_model else model
        ask = partial(self.backend.answer, as_list(messages), wanted, question, text_only=False)
        counted = bool(stream and stream_options)
        if not counted:
            self._failed.refuse(again)
        try:
            answers = _Answers(ask, int(count or 1))
        except Refused as refused:
            if counted and refused.status in ASKED_AGAIN:
                self._failed.add(again, refused)
            raise
        if not stream:
            with closing(answers):
                return _completion(answers, model)
        chunks = _events(answers, model, bool(stream_options and stream_options.get("include_usage")))
        return Response(200, "text/event-stream", Stream(answers, chunks), {"Cache-Control": "no-cache"})


class _Failed:
    """The questions with ``stream_options`` that a test's ``Fail`` answered, as they may come again without them.

    One lock guards them. Nothing but a ``Fail`` is kept, so there are no more of them than a test wrote down.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._questions: list[tuple[dict[str, Any], Refused]] = []

    def add(self, question: dict[str, Any], refused: Refused) -> None:
        with self._lock:
            self._questions.append((question, refused))

    def refuse(self, question: dict[str, Any]) -> None:
        """Raises what the same question was answered before, once for each time."""
        with self._lock:
            place = next((place for place, (failed, _) in enumerate(self._questions) if failed == question), None)
            if place is None:
                return
            _, refused = self._questions.pop(place)
        raise Refused(refused.status, refused.message, refused.headers)


class _Answers:
    """As many answers as there are choices, one after the other. The first one has begun."""

    def __init__(self, ask: Callable[[], Answer], count: int) -> None:
        self._ask = ask
        self._count = count
        self._current = ask()

    def __iter__(self) -> Iterator[Answer]:
        yield self._current
        for _ in range(self._count - 1):
            self._current = self._ask()  # the one before was read to its end
            yield self._current

    def begin(self) -> None:
        self._current.begin()

    def close(self) -> None:
        self._current.close()


# In one piece


def _completion(answers: _Answers, model: str) -> Response:
    choices, replies = [], []
    for index, answer in enumerate(answers):
        for _ in answer.events():
            pass
        choices.append({"index": index, **whole(answer.reply)})
        replies.append(answer.reply)
    body = {**_head("chat.completion", model), "choices": choices, "usage": _usage(replies)}
    return json_response({**body, **_citations(*replies)})


# In chunks


def _events(answers: _Answers, model: str, with_usage: bool) -> Iterator[str]:
    head = _head("chat.completion.chunk", model)
    replies = []
    try:
        for index, answer in enumerate(answers):
            calls: dict[int | None, ToolCall] = {}
            yield _event({**head, "choices": [_choice(index, {"role": "assistant", "content": ""})]})
            for event in answer.events():
                yield _event({**head, "choices": [_choice(index, delta(event, calls))]})
            reply = answer.reply
            yield _event({**head, "choices": [{"index": index, **last(reply)}], **_citations(reply)})
            replies.append(reply)
        if with_usage:
            yield _event({**head, "choices": [], "usage": _usage(replies)})
    except ChatError as error:
        yield _event(
            {
                "error": {
                    "message": told(error),
                    "type": "upstream_error",
                    "code": error.status if (error.status or 0) >= 400 else None,
                }
            }
        )
        return
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _choice(index: int, said: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": said, "finish_reason": None}


# What both have


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time()), "model": model}


def _citations(*replies: Reply) -> dict[str, Any]:
    found = [citation for reply in replies for citation in reply.citations or ()]
    return {"citations": found} if found else {}


def _usage(replies: list[Reply]) -> dict[str, Any]:
    """The upstream's counts, added up; zeros where it has none, for nothing is counted here."""
    total: dict[str, Any] = dict(_USAGE)
    for reply in replies:
        total = _sum(total, dict(reply.usage or {}))
    return total


def _sum(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    result = {**total, **{key: value for key, value in more.items() if value is not None or key not in total}}
    for key in total.keys() & more.keys():
        if number(total[key]) and number(more[key]):
            result[key] = total[key] + more[key]
        elif isinstance(total[key], dict) and isinstance(more[key], dict):
            result[key] = _sum(total[key], more[key])
    return result
