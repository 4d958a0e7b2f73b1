"""The head of a request, read as strictly as RFC 9110 and 9112 allow.

What one server takes for one request and the next one for two lets a client smuggle a request past a proxy. So nothing
is guessed here: a head that can be read in two ways is refused, and its connection closed.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from .incoming import Incoming, TooLong

#: The largest head, in bytes, and how many headers it may have.
MAX_HEAD, MAX_HEADERS = 64 * 1024, 100
#: Headers that mean nothing, or two things, where they come twice.
_ONCE = {b"Authorization", b"Content-Length", b"Content-Type", b"Host", b"Origin", b"Token"}

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%b) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n" % _TOKEN)
_HEADER = re.compile(rb"(%b):([\t\x20-\x7e\x80-\xff]*)\r\n" % _TOKEN)
_TARGET = re.compile(rb"(?:(?i:https?)://([^/?#@]+))?(/[^?#]*)?(?:\?([^#]*))?")
_SLASH = re.compile(rb"(?i)%2f")


class BadHead(Exception):
    """A head that is refused.

    Args:
        status: the HTTP status and its words.
        message: what was wrong.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class RequestLine(NamedTuple):
    """The first line of a request.

    Attributes:
        version: the second number in HTTP/1.0 and HTTP/1.1.
        target: as it was sent.
        authority: whom it names, where the target is a whole address.
        path: without its escapes, but for that of the slash.
    """

    method: bytes
    version: int
    target: bytes
    authority: bytes
    path: bytes
    query: bytes


def read_request_line(incoming: Incoming) -> RequestLine:
    """Returns the first line; raises BadHead, and what ``Incoming.line`` raises but for TooLong."""
    try:
        line = incoming.line(MAX_HEAD)
        if line == b"\r\n":  # RFC 9112, section 2.2: one empty line before it, and no more
            line = incoming.line(MAX_HEAD)
    except TooLong:
        raise BadHead("414 URI Too Long", f"the first line has more than {MAX_HEAD} bytes") from None
    if not (match := _REQUEST_LINE.fullmatch(line)):
        raise BadHead("400 Bad Request", "the first line is none of HTTP's")
    method, target, major, minor = match[1], match[2], int(match[3]), int(match[4])
    if major != 1:
        raise BadHead("505 HTTP Version Not Supported", "the server speaks HTTP/1.1")
    if method == b"CONNECT":
        raise BadHead("405 Method Not Allowed", "the server is no proxy")
    if method == b"OPTIONS" and target == b"*":
        return RequestLine(method, min(minor, 1), target, b"", b"*", b"")
    parts = _TARGET.fullmatch(target)
    if not parts or target.startswith((b"//", b"?")):
        raise BadHead("400 Bad Request", "the target must be a path, or an address of this server")
    path = b"%2F".join(unquote_to_bytes(part) for part in _SLASH.split(parts[2] or b"/"))
    return RequestLine(method, min(minor, 1), target, parts[1] or b"", path, parts[3] or b"")


def read_headers(incoming: Incoming, line: RequestLine) -> dict[bytes, bytes]:
    """Returns the headers by name, such as ``Content-Type``; raises what ``read_request_line`` raises.

    A name with an underscore is left out: an application would take it for the one with a hyphen.
    """
    headers: dict[bytes, bytes] = {}
    left = MAX_HEAD - len(line.target)
    for count in range(MAX_HEADERS + 1):
        try:
            row = incoming.line(left)
        except TooLong:
            raise BadHead("431 Request Header Fields Too Large", f"the head has more than {MAX_HEAD} bytes") from None
        if row == b"\r\n":
            _check(headers, line)
            return headers
        if count == MAX_HEADERS:
            break
        left = max(left - len(row), 2)
        if not (match := _HEADER.fullmatch(row)):
            raise BadHead("400 Bad Request", "a header is none of HTTP's: a name, a colon, a value, and CR LF")
        name, value = match[1].title(), match[2].strip(b" \t")
        if b"_" in name:
            continue
        if name in headers:
            if name in _ONCE:
                raise BadHead("400 Bad Request", f"the header {name.decode()} came twice")
            value = (b"; " if name == b"Cookie" else b", ").join((headers[name], value))
        headers[name] = value
    raise BadHead("431 Request Header Fields Too Large", f"the head has more than {MAX_HEADERS} headers")


def _check(headers: dict[bytes, bytes], line: RequestLine) -> None:
    if line.authority:
        headers[b"Host"] = line.authority  # RFC 9112, section 3.2.2: it comes before the header
    elif line.version and not headers.get(b"Host"):
        raise BadHead("400 Bad Request", "the header Host is missing")
    _check_length(headers, line)


def _check_length(headers: dict[bytes, bytes], line: RequestLine) -> None:
    """RFC 9112, section 6: by what the end of the body is known."""
    length, encoding = headers.get(b"Content-Length"), headers.get(b"Transfer-Encoding")
    if length is not None and not re.fullmatch(rb"[0-9]+", length):
        raise BadHead("400 Bad Request", "Content-Length must be a number")
    if encoding is None:
        return
    if length is not None:
        raise BadHead("400 Bad Request", "the body has both a Content-Length and a Transfer-Encoding")
    if not line.version:
        raise BadHead("400 Bad Request", "HTTP/1.0 has no Transfer-Encoding")
    codings = [coding.strip().lower() for coding in encoding.split(b",")]
    if any(coding != b"chunked" for coding in codings):
        raise BadHead("501 Not Implemented", "the server knows no Transfer-Encoding but chunked")
    if len(codings) > 1:
        raise BadHead("400 Bad Request", "the body is said to be chunked twice")


def tokens(value: bytes) -> set[bytes]:
    """The words in a header such as ``Connection``, in lower case."""
    return {word.strip().lower() for word in value.split(b",")}
