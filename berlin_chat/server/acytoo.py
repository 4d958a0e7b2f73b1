"""Acytoo's endpoints. ``PROTOCOLS.md``, section "Acytoo"."""

from __future__ import annotations

from typing import Any

from ..messages import as_list
from ..providers.acytoo import Acytoo
from .faults import Refused
from .web import Endpoints, Handler, Request, Response, Stream, checked, json_response, number

#: The largest question of somebody who may not know the password: it stands in the body.
MAX_UNKNOWN = 2**20


class AcytooEndpoints(Endpoints):
    name = Acytoo.name

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [("POST", "/api/completions", self.complete)]

    def admit(self, request: Request) -> int:
        return super().admit(request) if self.backend.password is None else MAX_UNKNOWN

    def refusal(self, refused: Refused) -> Response:
        return json_response({"error": {"message": refused.message}}, refused.status, refused.headers)

    def configuration(self) -> dict[str, Any]:
        return {"password": self.backend.password} if self.backend.password else {}

    def complete(self, request: Request) -> Response:
        question = request.json()
        checked(self.backend.is_authorized(question.get("password")), "wrong password", 401)
        for key in ("key", "password", "model"):
            checked(isinstance(question.get(key), str), f"{key} must be a string")
        checked(number(question.get("temperature", 0)), "temperature must be a number")
        checked(isinstance(question.get("messages"), list), "messages must be a list")
        # The protocol fixes the model, so the caller has not chosen one.
        options = {name: question[name] for name in ("temperature",) if name in question}
        answer = self.backend.answer(as_list(question["messages"]), None, options)
        return Response(200, "text/plain; charset=utf-8", Stream(answer, iter(answer)))
