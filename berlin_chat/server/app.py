"""The WSGI application: finds the protocol that a request belongs to, and sends what it answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from ..errors import APITimeoutError, ChatError, InvalidRequest, RateLimitError
from .acytoo import AcytooSide
from .berlin import BerlinSide
from .h2o import H2oSide
from .house import House
from .web import Handler, Refused, Request, Response, Side, json_response
from .ylokh import YlokhSide

log = logging.getLogger("berlin_chat.server")

#: The protocols. A new one is one file beside this one, and one line here.
SIDES: tuple[type[Side], ...] = (BerlinSide, YlokhSide, H2oSide, AcytooSide)

_WELCOME = b"""This is berlin_chat's own server. It speaks four protocols:
Berlin, Ylokh (OpenAI's chat completions, at /v1), H2o and Acytoo.
"""


class App:
    """The four protocols behind one WSGI callable."""

    def __init__(self, house: House) -> None:
        self._sides = [side(house) for side in SIDES]
        self._routes = [
            (method, re.compile(pattern), handler, side)
            for side in self._sides
            for method, pattern, handler in side.routes()
        ]

    def conversations(self) -> list[str]:
        """The ids of the conversations that exist."""
        return [name for side in self._sides for name in side.conversations()]

    def configuration(self, name: str) -> dict[str, Any]:
        """The arguments with which a provider is let in."""
        return next((side.configuration() for side in self._sides if side.name == name.lower()), {})

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        response = self._response(request)
        request.discard()
        headers = {"Content-Type": response.content_type, **response.headers}
        if isinstance(response.body, bytes):
            headers["Content-Length"] = str(len(response.body))
        start_response(f"{response.status} {_phrase(response.status)}", list(headers.items()))
        return [response.body] if isinstance(response.body, bytes) else response.body

    def _response(self, request: Request) -> Response:
        if request.path == "/" and request.method == "GET":
            return Response(200, "text/plain; charset=utf-8", _WELCOME)
        allowed = ["GET"] if request.path == "/" else []
        for method, pattern, handler, side in self._routes:
            if match := pattern.fullmatch(request.path):
                if method == request.method:
                    return _answered(side, handler, request, match.groups())
                allowed.append(method)
        if allowed:
            return json_response({"error": {"message": "method not allowed"}}, 405, {"Allow": ", ".join(allowed)})
        return json_response({"error": {"message": f"there is no {request.path} here"}}, 404)


def _answered(side: Side, handler: Handler, request: Request, groups: tuple[str, ...]) -> Response:
    try:
        return handler(request, *groups)
    except Refused as refused:
        return side.refusal(refused)
    except ChatError as error:
        return side.refusal(_upstream_refusal(error))
    except ConnectionAbortedError:  # the server is closing
        raise
    except Exception as error:
        log.exception("the upstream failed")
        return side.refusal(Refused(500, f"the upstream failed: {type(error).__name__}"))


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
    if isinstance(error, InvalidRequest):
        status = 400
    elif isinstance(error, RateLimitError):
        status = 429
    elif isinstance(error, APITimeoutError):
        status = 504
    else:
        status = error.status if error.status and 400 <= error.status < 600 else 502
    ours = isinstance(error, InvalidRequest) and error.provider is None  # the messages were looked at here
    return Refused(status, str(error) if ours else f"upstream: {error}", headers)
