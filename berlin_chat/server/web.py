"""Requests and responses, as the four protocols of the server see them."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs
from uuid import UUID

from ..decoding import parse
from ..errors import ChatError
from .backend import Backend
from .faults import Refused
from .record import Recorded

#: The largest question, in bytes.
MAX_REQUEST = 64 * 2**20
#: The same where it is not known yet who asks, and for what is no question.
MAX_SMALL = 64 * 1024
#: How many values the JSON of a question may hold: each takes up to a hundred times its bytes when it is parsed.
MAX_VALUES = 1_000_000


class Request:
    """What arrived. ``body`` is empty until ``receive`` was called."""

    body = b""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ["PATH_INFO"]

    def header(self, name: str) -> str:
        """The value of a header, ``""`` where there is none."""
        name = name.upper().replace("-", "_")
        return str(self._environ.get(name if name == "CONTENT_TYPE" else f"HTTP_{name}", ""))

    def recorded(self) -> Recorded:
        """Returns what is kept of it for a test."""
        headers = {
            key.removeprefix("HTTP_").replace("_", "-").title(): str(value)
            for key, value in self._environ.items()
            if key.startswith("HTTP_") or (key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
        }
        return Recorded(self.method, self.path, self._environ.get("QUERY_STRING", ""), headers, self.body)

    def cookie(self, name: str) -> str | None:
        """The value of a cookie."""
        for pair in self.header("Cookie").split(";"):
            key, _, value = pair.partition("=")
            if key.strip() == name:
                return value.strip()
        return None

    def bearer_token(self) -> str | None:
        """The token of an ``Authorization: Bearer``."""
        scheme, _, token = self.header("Authorization").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    @property
    def media_type(self) -> str:
        """What the body is said to be, without parameters such as the charset; ``""`` for nothing."""
        return self.header("Content-Type").partition(";")[0].strip().lower()

    def receive(self, limit: int) -> None:
        """Reads the whole body; raises what ``Body.read`` raises."""
        self.body = self._environ["wsgi.input"].read(limit)

    def skip(self) -> None:
        """Reads the body of a request that is refused, where it is small; raises what ``Body.read`` raises."""
        self.body = self._environ["wsgi.input"].skip(MAX_SMALL)

    def json(self) -> dict[str, Any]:
        """The body's JSON object; raises Refused where it is none.

        What a page of any site may send without asking, such as text/plain, is none, whatever is in it.
        """
        if not re.fullmatch(r"application/(?:[!-~]+\+)?json", self.media_type):
            raise Refused(415, "Content-Type must be application/json")
        if sum(map(self.body.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise Refused(413, f"the body holds more than {MAX_VALUES} values, or commas and brackets")
        try:
            value = parse(self.body)
        except ValueError:
            raise Refused(400, "the body is no JSON") from None
        if not isinstance(value, dict):
            raise Refused(400, "the body is no JSON object")
        return value

    def form(self) -> dict[str, str]:
        """The body's form; raises Refused where it is none."""
        if self.media_type != "application/x-www-form-urlencoded":
            raise Refused(415, "Content-Type must be application/x-www-form-urlencoded")
        try:
            fields = parse_qs(self.body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=100)
        except ValueError:
            raise Refused(400, "the form has too many fields") from None
        return {name: values[-1] for name, values in fields.items()}


class Response(NamedTuple):
    """What is sent back. A ``body`` that is no bytes is sent piece by piece, and closed at the end."""

    status: int
    content_type: str
    body: bytes | Stream
    headers: dict[str, str] = {}  # noqa: RUF012


class _Answer(Protocol):
    def begin(self) -> None: ...
    def close(self) -> None: ...


class Stream:
    """A body that is sent as it is produced: the answer's pieces, each put into the protocol's form.

    Args:
        answer: begun before anything is sent; closed when the body was sent, or the client went away.
        encoded: the answer in the protocol's form.
    """

    def __init__(self, answer: _Answer, encoded: Iterator[str]) -> None:
        self._answer = answer
        self._encoded = encoded

    def __iter__(self) -> Iterator[bytes]:
        self._answer.begin()
        try:
            for text in self._encoded:
                yield text.encode("utf-8", "replace")
        except ChatError as error:
            # The protocol has no word for it, so the body ends before its end, as a broken upstream does.
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error

    def close(self) -> None:
        self._answer.close()


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns a response of JSON."""
    return Response(status, "application/json", json.dumps(value).encode(), headers or {})


def checked(condition: Any, message: str, status: int = 400) -> None:
    """Raises Refused unless the condition holds."""
    if not condition:
        raise Refused(status, message)


def number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def numbers(values: Any, *names: str) -> None:
    """Raises Refused where one of these options is there, and is no number."""
    for name in names:
        checked(number(values.get(name, 0)), f"{name} must be a number")


def is_uuid(value: Any) -> bool:
    """Whether a JSON value is a uuid."""
    try:
        return bool(UUID(value))
    except (ValueError, TypeError, AttributeError):
        return False


Handler = Callable[..., Response]


class Endpoints:
    """The endpoints of one protocol: its routes, and its words for an error.

    There is one instance a server, whose handlers are called in as many threads as there are requests.
    """

    name = ""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Returns method, pattern of the path, and handler. A pattern's groups are given to the handler."""
        raise NotImplementedError

    def admit(self, request: Request) -> int:
        """Decides whether who asks may, as far as the head tells; returns how many bytes the body may have.

        Nothing of the body has been read then: what it costs is paid for those alone who may ask.

        Raises:
            Refused: who asks may not.
        """
        return MAX_REQUEST

    def refusal(self, refused: Refused) -> Response:
        """Returns an error in the protocol's form."""
        raise NotImplementedError

    def configuration(self) -> dict[str, Any]:
        """Returns the arguments with which the protocol's provider is authorized."""
        raise NotImplementedError

    def conversations(self) -> list[str]:
        """Returns the ids of the conversations that exist, where the protocol has any."""
        return []

    def expire(self) -> None:
        """Forgets who has logged in, where the protocol has a login."""
