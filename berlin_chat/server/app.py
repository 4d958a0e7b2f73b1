"""The WSGI application: finds the protocol that a request belongs to, and sends what it answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from ..errors import AllProvidersFailed, APITimeoutError, ChatError, InvalidRequest, RateLimitError
from ..providers import provider_class
from .acytoo import AcytooEndpoints
from .backend import Backend
from .berlin import BerlinEndpoints
from .faults import Broken, Refused
from .h2o import H2oEndpoints
from .openai import OpenAIEndpoints
from .record import Recorded
from .web import Endpoints, Handler, Request, Response, Stream, json_response

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

    def unknown(self, request: Request, *allowed: str) -> Response:
        if allowed:
            raise Refused(405, "method not allowed", {"Allow": ", ".join(allowed)})
        raise Refused(404, f"there is no {request.path} here")


class App:
    """The four protocols behind one WSGI callable, which is called in as many threads as there are requests.

    Args:
        record: to which each request is added, by whichever thread answers it; None keeps none.
    """

    def __init__(self, backend: Backend, record: list[Recorded] | None = None) -> None:
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
        response = self._answered(request, *self._route(request))
        headers = {"Content-Type": response.content_type, **response.headers}
        if isinstance(response.body, bytes):
            headers["Content-Length"] = str(len(response.body))
        start_response(f"{response.status} {_phrase(response.status)}", list(headers.items()))
        if request.method == "HEAD":
            return []
        return [response.body] if isinstance(response.body, bytes) else response.body

    def _answered(
        self, request: Request, endpoints: Endpoints, handler: Handler, arguments: tuple[str, ...]
    ) -> Response:
        try:
            request.receive()  # whatever the answer: what is left would be taken for the connection's next request
            if self._record is not None:
                self._record.append(request.recorded())
            return handler(request, *arguments)
        except Refused as refused:
            return endpoints.refusal(refused)
        except ChatError as error:
            return endpoints.refusal(_upstream_refusal(error))
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


def _upstream_refusal(error: ChatError) -> Refused:
    """An error of the upstream, as a gateway answers it."""
    headers = {}
    if isinstance(error, RateLimitError) and error.retry_after is not None:
        headers["Retry-After"] = str(int(error.retry_after + 0.999))
    refused = error.errors if isinstance(error, AllProvidersFailed) else (error,)
    if refused and all(isinstance(one, InvalidRequest) for one in refused):
        status = 400
    elif isinstance(error, RateLimitError):
        status = 429
    elif isinstance(error, APITimeoutError):
        status = 504
    else:
        status = error.status if error.status and 400 <= error.status < 600 else 502
    ours = isinstance(error, InvalidRequest) and error.provider is None  # the messages were looked at here
    return Refused(status, str(error) if ours else f"upstream: {error}", headers)
