"""Berlin's endpoints. ``PROTOCOLS.md``, section "Berlin"."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

from ..errors import ChatError
from ..providers.berlin import Berlin
from .backend import Answer, Backend
from .faults import Refused
from .sessions import Remembered
from .telling import told
from .web import MAX_SMALL, Endpoints, Handler, Request, Response, Stream, checked, is_uuid, json_response, numbers

_LOGIN = "/api/login"


class BerlinEndpoints(Endpoints):
    name = Berlin.name

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._tokens = Remembered[bool]()

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [("POST", _LOGIN, self.log_in), ("POST", "/api/chat/completions", self.complete)]

    def admit(self, request: Request) -> int:
        if request.path == _LOGIN:
            return MAX_SMALL
        checked(self._tokens.get(request.header("token")), "no token, or one that has expired: log in", 401)
        return super().admit(request)

    def refusal(self, refused: Refused) -> Response:
        value = {"code": refused.status, "msg": refused.message, "data": None}
        return json_response(value, refused.status, refused.headers)

    def configuration(self) -> dict[str, Any]:
        return {"account": "local", "password": self.backend.password or "local"}

    def expire(self) -> None:
        self._tokens.clear()

    def log_in(self, request: Request) -> Response:
        self.backend.log_in()
        login = request.json()
        account, password = login.get("account"), login.get("password")
        checked(isinstance(account, str) and isinstance(password, str), "account and password must be strings")
        if not account or not self.backend.is_authorized(password):
            return json_response({"code": 401, "msg": "wrong account or password", "data": None})
        token = secrets.token_urlsafe(24)
        self._tokens.add(token, True)
        return json_response({"code": 200, "msg": "ok", "data": {"token": token}})

    def complete(self, request: Request) -> Response:
        question = request.json()
        prompt: Any = question.get("prompt")
        options: Any = question.get("options")
        checked(isinstance(prompt, str) and prompt, "prompt must be a string")
        checked(is_uuid(question.get("parentMessageId")), "parentMessageId must be a uuid")
        checked(
            isinstance(options, dict) and isinstance(options.get("model"), str),
            "options.model must be a string",
        )
        numbers(options, "temperature", "presence_penalty", "frequency_penalty", "max_tokens")
        options = dict(options)
        model = options.pop("model")
        answer = self.backend.answer(prompt, None if model == Berlin.default_model else model, options)
        return Response(200, "text/plain; charset=utf-8", Stream(answer, _lines(answer)))


def _lines(answer: Answer) -> Iterator[str]:
    """One object a line; the line end stands between them."""
    separator = ""
    try:
        for piece in answer:
            yield separator + json.dumps({"content": piece})
            separator = "\n"
    except ChatError as error:
        yield separator + json.dumps({"code": 500, "msg": told(error), "data": None})
