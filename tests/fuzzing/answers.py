"""Target: whole HTTP answers, from the status line on, read from a socket that gives them in pieces.

The question is Acytoo's, whose reply is the body as it is. What comes of it is compared with a reading of the whole
answer by RFC 9112: where we have a reply, so has the reference, and it is the same.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from unittest.mock import patch

from urllib3.connection import HTTPConnection

from berlin_chat import Acytoo, ChatError
from fuzzing import references
from fuzzing.form import Target, headed, same, same_however_cut, seeded
from fuzzing.replies import URL, checked
from wire import ACYTOO

UTF_8 = "text/plain; charset=utf-8"


class Unread(Exception):
    """The reference does not read such an answer."""


class Socket:
    """The client's end of a connection whose server has said its piece and closed; a read gives one chunk at most."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = [chunk for chunk in reversed(list(chunks)) if chunk]  # nobody reads nothing but at the end

    def recv(self, size: int) -> bytes:
        if not self._chunks:
            return b""
        chunk = self._chunks.pop()
        if chunk[size:]:
            self._chunks.append(chunk[size:])
        return chunk[:size]

    def makefile(self, *args: Any, **kwargs: Any) -> io.BufferedReader:
        return io.BufferedReader(_File(self))

    def sendall(self, data: bytes) -> None:
        pass

    def settimeout(self, seconds: float | None) -> None:
        pass

    def gettimeout(self) -> float:
        return 1.0

    def setsockopt(self, *args: int) -> None:
        pass

    def shutdown(self, how: int) -> None:
        pass

    def close(self) -> None:
        pass


class _File(io.RawIOBase):
    def __init__(self, sock: Socket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._sock.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def check(data: bytes) -> None:
    """However the answer arrives: the same text, or the same declared error; a reply only where there is one."""
    seed, data = headed(data)
    kept, deadline = bool(seed & 64), 60.0 if seed & 128 else None

    def read(chunks: list[bytes]) -> Any:
        with (
            patch.object(HTTPConnection, "_new_conn", lambda connection: Socket(chunks)),
            patch.object(HTTPConnection, "is_connected", kept),
            Acytoo(base_url=URL, proxy="", retries=0, pool_size=1) as provider,
        ):
            pieces, failed = [], None
            try:
                for piece in provider.stream("Hi", deadline=deadline):
                    pieces.append(piece)
            except ChatError as error:
                failed = error
        if failed is None:
            return "reply", "".join(pieces)
        assert failed.partial == "".join(pieces)
        return "error", checked(failed)

    outcome, found = same_however_cut(data, seed & 63, read)
    if outcome == "reply":
        with suppress(Unread):
            same(found, _text_of(data))


#: The lines of a head that the reference reads: one that is folded, or holds a CR, is left to http.client.
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r]*)?")
_FIELD = re.compile(rb"([!-9;-~]+):[ \t]*([^\r]*?)[ \t]*")


def _text_of(data: bytes) -> str | None:
    """The text of a whole answer, None where it is none; raises Unread where it is for others to say."""
    status = 100
    while 100 <= status < 200 and status != 101:
        found = re.search(rb"\n\r?\n", data)
        if found is None:
            return None
        status, fields = _head(data[: found.start()])
        if not status:
            return None
        data = data[found.end() :]
    body = b"" if status == 204 else _body(data, fields)
    encoding = fields.get("content-encoding", "identity").lower()
    content = references.decompressed(body, encoding) if body else body
    if fields.get("content-type", UTF_8) != UTF_8:
        raise Unread
    return None if content is None else content.removeprefix(references.BOM).decode("utf-8", "replace")


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = [line.removesuffix(b"\r") for line in head.split(b"\n")]
    status, found = _STATUS.fullmatch(first), [_FIELD.fullmatch(line) for line in lines]
    if None in found and not any(b"\r" in line or line[:1] in (b" ", b"\t") for line in lines):
        return 0, {}
    if status is None or None in found:
        raise Unread
    fields: dict[str, str] = {}
    for field in found:
        name, value = (part.decode("latin-1") for part in field.groups())  # type: ignore[union-attr]
        fields[name.lower()] = f"{fields[name.lower()]}, {value}" if name.lower() in fields else value
    return int(status[1]), fields


def _body(data: bytes, fields: dict[str, str]) -> bytes | None:
    """RFC 9112, section 6.3."""
    if coding := fields.get("transfer-encoding"):
        if coding.lower() != "chunked":
            raise Unread
        body, state = references.chunked(data, 4096)
        return body if state == "whole" else None
    if length := fields.get("content-length"):
        size = int(length.partition(",")[0])
        return data[:size] if len(data) >= size else None
    return data


def _seeds() -> list[bytes]:
    body = b"".join(ACYTOO.parts(["Gr\xfc\xdfe", " \U0001f642", "\n", "end"]))
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % UTF_8.encode()
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:])) + b"0\r\n\r\n"
    packed = gzip.compress(body, mtime=0)
    length = b"Content-Length: %d\r\n"
    return [
        ok + length % len(body) + b"\r\n" + body,
        ok + length % (len(body) + 1) + b"\r\n" + body,
        ok + length % 3 + b"\r\n" + body,
        ok + b"Transfer-Encoding: chunked\r\n\r\n" + framed,
        ok + b"Transfer-Encoding: chunked\r\n\r\n" + framed[:-2],
        ok + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + framed,
        ok + b"Connection: close\r\n\r\n" + body,
        ok + b"Content-Encoding: gzip\r\n" + length % len(packed) + b"\r\n" + packed,
        ok + b"Content-Encoding: deflate\r\nTransfer-Encoding: chunked\r\n\r\n" + framed,
        ok + b"Content-Length: 5, 6\r\n\r\n" + body,
        ok + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n" + body,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok + b"\r\n" + body,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n" + body,
        b"HTTP/1.0 200 OK\r\n\r\n" + body,
        b"HTTP/1.1 200\nContent-Length:3\n\nabc",
        b"HTTP/1.1 302 Found\r\nLocation: //[\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\nContent-Type: application/json\r\n\r\n" + b'{"error":{"message":"no"}}',
        b"HTTP/1.1 429 Slow\r\nRetry-After: 1e309\r\nSet-Cookie: a=b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c: d\r\n: e\r\n\r\n" + body,
        b"ICY 200 OK\r\n\r\n" + body,
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ]


TARGETS = {"answers": Target(check, seeded(*_seeds()))}
