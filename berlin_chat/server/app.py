"""The WSGI application: finds the protocol that a request belongs to, and sends what it answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from ..errors import ChatError
from ..providers import provider_class
from .acytoo import AcytooEndpoints
from .backend import Backend
from .berlin import BerlinEndpoints
from .faults import Broken, Refused
from .guard import Guard
from .h2o import H2oEndpoints
from .openai import OpenAIEndpoints
from .record import Recorded
from .telling import refusal, without_secrets
from .web import MAX_SMALL, Endpoints, Handler, Request, Response, Stream, json_response

log = logging.getLogger("berlin_chat.server")

#: The protocols. A new one is one file beside this one, and one line here.
PROTOCOLS: tuple[type[Endpoints], ...] = (BerlinEndpoints, OpenAIEndpoints, H2oEndpoints, AcytooEndpoints)

_WELCOME = b"""This is berlin_chat's own server. It speaks four protocols:
OpenAI's chat completions (at /v1), Berlin, H2o and Acytoo.
"""


class _General(Endpoints):
    """What belongs to no protocol."""

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [("GET", "/", self.welcome)]

    def refusal(self, refused: Refused) -> Response:
        return json_response({"error": {"message": refused.message}}, refused.status, refused.headers)

    def welcome(self, request: Request) -> Response:
        return Response(200, "text/plain; charset=utf-8", _WELCOME)

    def admit(self, request: Request) -> int:
        return MAX_SMALL

    def unknown(self, request: Request, *allowed: str) -> Response:
        if allowed:
            raise Refused(405, "method not allowed", {"Allow": ", ".join(allowed)})
        raise Refused(404, f"there is no {request.path} here")


class App:
    """The four protocols behind one WSGI callable, which is called in as many threads as there are requests.

    Args:
        guard: says whose requests are looked at.
        record: to which each request is added, by whichever thread answers it; None keeps none.
    """

    def __init__(self, backend: Backend, guard: Guard, record: list[Recorded] | None = None) -> None:
        self._backend = backend
        self._guard = guard
        self._record = record
        self._general = _General(backend)
        self._protocols = [endpoints(backend) for endpoints in PROTOCOLS]
        self._routes = [
            (method, re.compile(pattern), handler, endpoints)
            for endpoints in (self._general, *self._protocols)
            for method, pattern, handler in endpoints.routes()
        ]

    def conversations(self) -> list[str]:
        """The ids of the conversations that exist."""
        return [name for endpoints in self._protocols for name in endpoints.conversations()]

    def expire(self) -> None:
        """Forgets who has logged in."""
        for endpoints in self._protocols:
            endpoints.expire()

    def configuration(self, name: str) -> dict[str, Any]:
        """The arguments with which a provider of that name is authorized: it speaks its own protocol, or its base's."""
        spoken = {getattr(cls, "name", "") for cls in provider_class(name).__mro__}
        return next((each.configuration() for each in self._protocols if each.name in spoken), {})

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        endpoints, handler, arguments = self._route(request)
        try:
            limit = self._admitted(request, endpoints, handler, arguments)
        except Refused as refused:
            response = self._dismissed(request, endpoints, refused)
        else:
            response = self._answered(request, limit, endpoints, handler, arguments)
        body = without_secrets(response.body, self._backend.secrets())
        headers = {"Content-Type": response.content_type, **response.headers}
        if isinstance(body, bytes):
            headers["Content-Length"] = str(len(body))
        start_response(f"{response.status} {_phrase(response.status)}", list(headers.items()))
        if request.method == "HEAD":
            return []
        return [body] if isinstance(body, bytes) else body

    def _admitted(self, request: Request, endpoints: Endpoints, handler: Handler, arguments: tuple[str, ...]) -> int:
        """Returns how large the body may be; raises Refused where the head is enough to say no."""
        self._guard.check(request)
        if handler == self._general.unknown:
            self._general.unknown(request, *arguments)
        return endpoints.admit(request)

    def _dismissed(self, request: Request, endpoints: Endpoints, refused: Refused) -> Response:
        try:
            request.skip()  # what is left would be taken for the connection's next request
        except Refused as other:
            refused = refused if other.status == 413 else other
        self._note(request)
        return endpoints.refusal(refused)

    def _note(self, request: Request) -> None:
        if self._record is not None:
            self._record.append(request.recorded())

    def _answered(
        self, request: Request, limit: int, endpoints: Endpoints, handler: Handler, arguments: tuple[str, ...]
    ) -> Response:
        try:
            request.receive(limit)
            self._note(request)
            return handler(request, *arguments)
        except Refused as refused:
            return endpoints.refusal(refused)
        except ChatError as error:
            return endpoints.refusal(refusal(error))
        except Broken as broken:  # an answer that was to come in one piece
            return Response(200, "application/json", Stream(broken, iter(())))
        except ConnectionAbortedError:  # the client is gone, or the server is closing
            raise
        except Exception as error:
            log.exception("the upstream failed")
            return endpoints.refusal(Refused(500, f"the upstream failed: {type(error).__name__}"))

    def _route(self, request: Request) -> tuple[Endpoints, Handler, tuple[str, ...]]:
        """Returns the protocol of a request, its handler, and what the handler is given beside the request."""
        allowed: list[str] = []
        for method, pattern, handler, endpoints in self._routes:
            if match := pattern.fullmatch(request.path):
                methods = ("GET", "HEAD") if method == "GET" else (method,)
                if request.method in methods:
                    return endpoints, handler, match.groups()
                allowed += methods
        return self._general, self._general.unknown, tuple(allowed)


def _phrase(status: int) -> str:
    """The words for a status; an upstream may answer with one that has none, such as 529."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
