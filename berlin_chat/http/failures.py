"""What a failure means: statuses, bodies, and the exceptions of requests, urllib3 and the socket.

The errors made here are plain: the provider adds who was asked, and takes out what is secret.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import requests
import urllib3

from .. import errors
from ..decoding import parse
from ..errors import ChatError, start
from ..validation import Timeout
from .retries import retry_after

_PROXY = "See proxy= and the environment"
_STATUSES: dict[int, tuple[type[ChatError], str]] = {
    401: (errors.AuthenticationError, "Check the credentials"),
    403: (errors.AuthenticationError, "Check the credentials"),
    404: (errors.APIStatusError, "Check base_url and the model"),
    407: (errors.APIConnectionError, _PROXY),
    429: (errors.RateLimitError, "Ask less often"),
}


def status_error(response: requests.Response, body: bytes) -> ChatError:
    """Returns the error for an answer with a status that says that there is no reply."""
    status = response.status_code
    message = f"the server answered {status} {start(response.reason or '')}".rstrip()
    kind, advice = _STATUSES.get(status, (errors.APIStatusError, ""))
    if status // 100 == 3:
        kind, target = errors.ProtocolError, start(response.headers.get("Location", "elsewhere"))
        advice = f"It redirects to {target}, which is not followed: give the right base_url"
    seconds = retry_after(response.headers)
    return kind(message, detail=reason_in(body), advice=advice, status=status, body=body, retry_after=seconds)


def page_error(response: requests.Response, body: bytes) -> ChatError:
    """Returns the error for a web page where a reply was expected."""
    return errors.ProtocolError(
        "a web page came back, not a reply",
        advice="Check base_url",
        status=response.status_code,
        body=body,
    )


def event_error(data: bytes, expected: str) -> ChatError:
    """Returns the error for an event without what was expected: the server's own, where it holds one."""
    try:
        event = parse(data)
    except ValueError:
        return errors.ProtocolError("an event that is broken JSON", detail=data, status=200, body=data)
    if isinstance(event, dict) and event.get("error"):
        return errors.APIStatusError("the server says", detail=reason_in(data), status=200, body=data)
    return errors.ProtocolError(f"an event without {expected}", detail=data, status=200, body=data)


def said_error(body: bytes) -> ChatError:
    """Returns the error for an answer with a status of success that is JSON where a reply is none: the server's own."""
    return errors.APIStatusError("the server says", detail=reason_in(body), status=200, body=body)


def object_error(value: dict[str, Any] | str, first: bool) -> ChatError:
    """Returns the error for an object without a text, or for a line that is no object: the server's own."""
    line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if first and isinstance(value, dict) and value.get("code") in (401, 403):
        said = reason_in(line.encode("utf-8", "replace"))
        return errors.AuthenticationError("the token was refused", detail=said, status=200, body=line)
    return errors.APIStatusError("the server says", detail=line, status=200, body=line)


def settings_advice(error: ChatError, model: str, base_url: str) -> str:
    """Returns what to do where chat-ui has refused its settings; ``PROTOCOLS.md``, section "H2o"."""
    if error.status == 500:
        return f"The model may be unknown to the server: {model}"
    if error.status == 403 and "invalid referer" in str(error.detail).lower():
        return f"The server's ORIGIN (later PUBLIC_ORIGIN) must be {urljoin(base_url, '/')[:-1]}"
    return ""


def reason_in(body: bytes) -> str:
    """Returns what an error's body says, in the words of any of the protocols; ``""`` where it says nothing."""
    text = body.strip().decode("utf-8", "replace")
    try:
        value = parse(body)
    except ValueError:
        return "" if text.startswith("<") else text
    return (reason_of(value) if isinstance(value, dict) else "") or text


def reason_of(value: dict[str, Any]) -> str:
    """Returns what an object says of an error, ``""`` where it says nothing."""
    for key in ("error", "detail", "msg", "message"):
        said: Any = value.get(key)
        if isinstance(said, dict):
            said = said.get("message") or said
        if said:
            kind = f" ({value['error_type']})" if value.get("error_type") else ""
            return f"{said}{kind}"
    return ""


def explanation(error: Exception, timeout: Timeout) -> ChatError | None:
    """Returns what a failure of requests, urllib3 or the socket means, if it is one."""
    connect, read = timeout
    chain = list(causes(error))
    root = str(chain[-1]) or type(chain[-1]).__name__
    kinds = requests.exceptions
    if "handshake operation timed out" in root:  # requests calls it a read
        return errors.APITimeoutError(
            f"no TLS connection within {connect} s", advice="Does the server speak TLS? See timeout="
        )
    bad_value = isinstance(error, ValueError) and root.startswith(("Invalid header", "'latin-1' codec"))
    if bad_value or isinstance(error, kinds.InvalidHeader):
        said = "the session has a header, cookie or user name with a line break, or a character beyond Latin-1"
        return errors.InvalidRequest(said)  # and not which: it may be a secret
    if isinstance(error, (kinds.InvalidURL, kinds.InvalidSchema)):
        return errors.InvalidRequest("the request cannot be sent", detail=root)
    if type(error) is OSError and "invalid path: " in root:  # of requests, which looks for them before it connects
        return errors.InvalidRequest("certificates cannot be read", detail=root, advice="See verify=")
    if isinstance(error, kinds.ConnectTimeout):
        return errors.APITimeoutError(f"no connection within {connect} s", advice="Is the server running? See timeout=")
    if isinstance(error, (kinds.ReadTimeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)):
        return errors.APITimeoutError(f"no byte for {read} s", advice="See timeout=")
    if isinstance(error, kinds.SSLError):
        return _tls_error(root)
    if isinstance(error, kinds.ProxyError):
        answered = re.match(r"Tunnel connection failed: (\d{3})\b", root)
        status = int(answered[1]) if answered else None
        return errors.APIConnectionError("no connection through the proxy", detail=root, advice=_PROXY, status=status)
    if isinstance(error, kinds.ConnectionError):
        if any(isinstance(cause, TimeoutError) for cause in chain):  # while writing: of a read it makes a ReadTimeout
            return errors.APITimeoutError(f"the request could not be written within {read} s", advice="See timeout=")
        if any(_is_bad_http(cause) for cause in chain):
            return errors.ProtocolError("the server does not speak HTTP", detail=root, advice="Check base_url")
        if any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in chain):
            return errors.APIConnectionError(
                "no connection", detail=root, advice="Is the server running? Check base_url"
            )
        return errors.APIConnectionError("the server closed the connection before it answered", detail=root)
    if any(_is_bad_http(cause) for cause in chain):
        return errors.ProtocolError("the body is broken HTTP", detail=root)
    if isinstance(error, (kinds.RequestException, urllib3.exceptions.HTTPError, http.client.IncompleteRead, OSError)):
        return errors.StreamInterrupted("the connection was cut in the middle of the reply")
    return None


#: What OpenSSL says, and what that means.
_TLS = (
    ("wrong version number|record layer failure|http request|unknown protocol", "Does the server speak TLS there?"),
    ("certificate required|handshake failure|bad certificate", "The server may want to see a certificate: see cert="),
    ("", "See verify="),
)


def _tls_error(said: str) -> ChatError:
    plain = re.sub("[_ ]+", " ", said.lower())
    advice = next(advice for pattern, advice in _TLS if re.search(pattern, plain))
    return errors.APIConnectionError("TLS failed", detail=said, advice=advice)


def causes(error: BaseException | None) -> Iterator[BaseException]:
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
