"""What a failure means: statuses, bodies, and the exceptions of requests, urllib3 and the socket."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import requests
import urllib3

from .decoding import parse, start
from .errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ChatError,
    InvalidRequest,
    ProtocolError,
    RateLimitError,
    StreamInterrupted,
)

#: Seconds for connecting, and between two reads; None for no limit.
Timeout = tuple["float | None", "float | None"]

STATUS_KINDS: dict[int, tuple[type[ChatError], str]] = {
    401: (AuthenticationError, ". Check the credentials"),
    403: (AuthenticationError, ". Check the credentials"),
    404: (APIStatusError, ". Check base_url and the model"),
    429: (RateLimitError, ". Ask less often"),
}


def reason_in(body: bytes) -> str:
    """Returns what an error's body says, in the words of any of the protocols; ``""`` where it says nothing."""
    try:
        value = parse(body)
    except ValueError:
        text = start(body.strip())
        return "" if text.startswith("<") else text
    if not isinstance(value, dict):
        return start(body.strip())
    for key in ("error", "detail", "msg", "message"):
        said = value.get(key)
        if isinstance(said, dict):
            said = said.get("message")
        if said:
            kind = f" ({value['error_type']})" if value.get("error_type") else ""
            return (said if isinstance(said, str) else start(str(said).encode())) + kind
    return start(body.strip())


def explanation(error: Exception, timeout: Timeout) -> tuple[type[ChatError], str] | None:
    """Says what a failure of requests, urllib3 or the socket means, if it is one."""
    connect, read = timeout
    chain = list(_causes(error))
    root = str(chain[-1]) or type(chain[-1]).__name__
    kinds = requests.exceptions
    if "handshake operation timed out" in root:  # requests calls it a read
        return (
            APITimeoutError,
            f"no TLS connection within {connect} s. Does the server speak TLS? See timeout=",
        )
    if isinstance(error, (kinds.InvalidURL, kinds.InvalidSchema, kinds.InvalidHeader)):
        return InvalidRequest, f"the request cannot be sent: {root}"
    if isinstance(error, kinds.ConnectTimeout):
        return APITimeoutError, f"no connection within {connect} s. Is the server there? See timeout="
    if isinstance(error, (kinds.ReadTimeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)):
        return APITimeoutError, f"no byte for {read} s. See timeout="
    if isinstance(error, kinds.SSLError):
        return APIConnectionError, f"TLS failed: {root}. See verify="
    if isinstance(error, kinds.ProxyError):
        return APIConnectionError, f"no connection through the proxy: {root}. See proxy= and the environment"
    if isinstance(error, (kinds.ContentDecodingError, urllib3.exceptions.DecodeError)):
        return ProtocolError, "the body is not in the encoding that its Content-Encoding names"
    if isinstance(error, kinds.ConnectionError):
        if any(_is_bad_http(cause) for cause in chain):
            return ProtocolError, f"the server does not speak HTTP: {root}. Check base_url"
        if any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in chain):
            return APIConnectionError, f"no connection: {root}. Is the server running? Check base_url"
        return APIConnectionError, f"the server closed the connection before it answered: {root}"
    if any(_is_bad_http(cause) for cause in chain):
        return ProtocolError, f"the body is broken HTTP: {root}"
    if isinstance(
        error, (kinds.RequestException, urllib3.exceptions.HTTPError, http.client.IncompleteRead, OSError)
    ):
        return StreamInterrupted, "the connection was cut in the middle of the reply"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those inside it, the innermost last, as requests and urllib3 nest them."""
    while error is not None:
        yield error
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in reversed(error.args) if isinstance(arg, BaseException)), None)
        error = inner or error.__cause__


def _is_bad_http(error: BaseException) -> bool:
    return isinstance(error, http.client.HTTPException) and not isinstance(
        error, (http.client.RemoteDisconnected, http.client.IncompleteRead)
    )
