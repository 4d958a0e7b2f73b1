"""Answers as they arrive: heads that are checked, framing that is sure, and bodies that hand over all that has come.

What ``http.client`` does not offer is added to it, at the place that it has for it: ``response_class``.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import re
from collections.abc import Callable, Iterator
from email.errors import MissingHeaderBodySeparatorDefect
from itertools import chain
from typing import Any

import requests
from urllib3.response import BaseHTTPResponse

from ..cancellation import Deadline, Stoppable
from ..errors import ProtocolError

#: How much one read asks for, in bytes.
READ_SIZE = 64 * 1024
#: The longest chunk-size line, and the longest trailer section, that is read, in bytes.
MAX_FRAMING = 4 * 1024
#: How many informational answers (1xx) may stand before the real one.
MAX_INFORMATIONAL = 100
#: How much of a body is looked at to tell what it is, in bytes.
LABEL_READ = 6


class ChunkedDecoder:
    """The chunked transfer coding of RFC 9112, section 7.1: framed bytes go in, the body comes out.

    ``feed`` gives what has arrived of all chunks at once: a chunk may come in parts, and one read may
    bring many chunks. Then ``done`` says whether the end of the body has been seen, and ``broken`` what is
    wrong with the framing behind the bytes that were given.
    """

    _SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")
    _LINE_END = re.compile(rb"\r?\n")
    _TRAILERS = re.compile(rb"(?:[^\r\n]+\r?\n)*\r?\n")

    def __init__(self) -> None:
        self.done = False
        self.broken: ValueError | None = None
        self._left = 0  # bytes that the current chunk still has to bring
        self._open = False  # the line end behind a chunk's bytes has not arrived
        self._last = False  # the chunk of size 0 was seen: trailers follow
        self._torn = b""  # the start of a size line, line end or trailer whose end has not arrived

    def feed(self, data: bytes) -> bytes:
        """Returns the body's bytes among ``data``; raises ValueError where none stand before broken framing."""
        if self.broken is not None:
            raise self.broken
        if self._torn:
            data, self._torn = self._torn + data, b""
        end = len(data)
        position = self._left
        body = [data[:position]] if position else []
        match_size = self._SIZE.match
        while position < end and not self.done:
            if self._open:
                if match := self._LINE_END.match(data, position):
                    position = match.end()
                    self._open = False
                else:
                    position = self._tear(data, position, in_line=True)
            elif self._last:
                match = self._TRAILERS.match(data, position)
                if match and match.end() - position <= MAX_FRAMING:
                    position = match.end()
                    self.done = True
                else:
                    position = self._tear(data, position, in_line=False)
            elif (match := match_size(data, position)) and (begin := match.end()) - position <= MAX_FRAMING:
                size = int(match[1], 16)
                position = begin + size
                body.append(data[begin:position])
                if not size:
                    self._last = True
                # pragma: no mutate - nearly always it comes with its chunk; else the next turn finds it
                elif data[position : position + 2] == b"\r\n":
                    position += 2
                else:
                    self._open = True
            else:
                position = self._tear(data, position, in_line=True)
        self._left = max(position - end, 0)
        found = b"".join(body)
        if self.broken is not None and not found:
            raise self.broken
        return found

    def _tear(self, data: bytes, position: int, in_line: bool) -> int:
        """Keeps what follows ``position`` for the next time, if it can still become what is expected."""
        rest = data[position:]
        # pragma: no mutate - what is as long as the limit, and has no end, will be longer
        if (in_line and b"\n" in rest) or len(rest) > MAX_FRAMING:
            self.broken = ValueError("invalid chunk framing")  # without the bytes, for they may hold half a secret
        self._torn = rest
        return len(data)


class LimitedReader(io.RawIOBase):
    """Reads from a socket, and waits no longer than until its owner's deadline, nor than the socket's own timeout."""

    def __init__(self, sock: Any, owner: Stoppable, raw: Any) -> None:
        self._sock = sock
        self._owner = owner
        self._timeout = sock.gettimeout()
        self._raw = raw  # keeps the socket open until this is closed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._limit()
        return self._raw.readinto(buffer)  # type: ignore[no-any-return]

    def read1(self, size: int) -> bytes:
        """Reads what has arrived, some of which may wait in the buffer of what this was made of."""
        self._limit()
        return self._raw.read1(size)  # type: ignore[no-any-return]

    def recv(self, size: int) -> bytes:
        self._limit()
        return self._sock.recv(size)  # type: ignore[no-any-return]

    def _limit(self) -> None:
        if self._owner.deadline is not None:
            self._owner.deadline.limit(self._sock, self._timeout)

    def close(self) -> None:
        self._raw.close()
        self.__dict__.pop("_owner", None)  # a connection that waits in its pool keeps nothing of the last question
        super().close()


class BufferedResponse(http.client.HTTPResponse):
    """A response that keeps a deadline, skips informational answers, and whose ``read1`` gives all that has arrived.

    http.client's gives one chunk a call, and reads from the socket for each of its parts.
    """

    def __init__(self, sock: Any, *args: Any, owner: Stoppable | None, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._sock = sock
        self._recv = sock.recv
        self._decoder: ChunkedDecoder | None = None
        self._limited = False
        if owner is not None and owner.deadline is not None:
            self._limited = True
            limited = LimitedReader(sock, owner, self.fp.detach())
            self.fp = io.BufferedReader(limited)
            self._recv = limited.recv

    def keep_deadline(self, owner: Stoppable) -> None:
        """From now on no read goes beyond the owner's deadline, which was given one while the body was read."""
        if not self._limited and self.fp is not None:
            self._limited = True
            limited = LimitedReader(self._sock, owner, self.fp)
            self.fp = limited  # type: ignore[assignment]
            self._recv = limited.recv

    def _read_status(self) -> tuple[str, int, str]:
        """RFC 9110, section 15.2: any number of 1xx may come before the final answer, and can be ignored."""
        for _ in range(MAX_INFORMATIONAL):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status >= 200 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"more than {MAX_INFORMATIONAL} informational answers")

    def begin(self) -> None:
        file, self.fp = self.fp, _Head(self.fp)  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = file
        if self.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
            self.will_close = True  # what follows is no HTTP
        self._check_framing()

    def _check_framing(self) -> None:
        """RFC 9112, section 6.3: a body whose end is not known for sure is none."""
        if any(isinstance(defect, MissingHeaderBodySeparatorDefect) for defect in self.headers.defects):
            raise http.client.HTTPException("a line of the head is no header field")  # all behind it is lost
        if coding := ", ".join(self.headers.get_all("Transfer-Encoding", ())):
            if coding.lower() not in ("chunked", "identity"):
                raise http.client.HTTPException(f"Transfer-Encoding: {coding}")
        elif lengths := self.headers.get_all("Content-Length"):
            size, *others = {part.strip() for part in ",".join(lengths).split(",")}
            if others or not (size.isascii() and size.isdecimal()):
                raise http.client.HTTPException(f"Content-Length: {', '.join(lengths)}")
            if self.length is None:  # it says the same twice, which http.client does not read
                self.length = int(size)
                self.will_close = self._check_close()  # type: ignore[attr-defined]

    # pragma: no mutate - as http.client has it; it is never left out here
    def read1(self, n: int = -1) -> bytes:
        if not self.chunked or self.fp is None:
            data = super().read1(n)
            if not data and n:
                if self.length:
                    raise http.client.IncompleteRead(b"", self.length)
                self.close()  # which http.client's own does not always do
            return data
        receive, decoder = self._recv, self._decoder
        if decoder is None:
            decoder = self._decoder = ChunkedDecoder()
            receive = self.fp.read1  # some of it may have come with the head
        while True:
            # One recv at most; none where what is known to follow is broken.
            received = receive(READ_SIZE) if decoder.broken is None else b""
            if not received and decoder.broken is None:
                raise http.client.IncompleteRead(b"")
            try:
                data = decoder.feed(received)
            except ValueError as error:
                raise http.client.HTTPException(str(error)) from None
            if decoder.done:
                self.close()
            if data or decoder.done:
                return data
            receive = self._recv


class _Head:
    """Reads the lines of a head, which is no head where the connection ends before it does."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readline(self, size: int) -> bytes:
        line: bytes = self._file.readline(size)
        # A first line that does not begin like this is no head, whole or not. Behind a field that was cut off comes
        # nothing, which begins like anything.
        if line.startswith(b"HTTP/"[: len(line)]) and not line.endswith(b"\n") and len(line) < size:
            raise http.client.RemoteDisconnected("the connection was closed in the middle of the head")
        return line

    def flush(self) -> None:
        """Part of closing: Ctrl-C may leave it in the place of the file."""

    def close(self) -> None:
        self._file.close()


def reader(response: requests.Response) -> tuple[Callable[[int], bytes], str]:
    """The cheapest way to read what has arrived of a body, and the content encoding in which it is read.

    What urllib3's ``read1`` adds to ours costs more than all else that is done for a piece. Behind the last read the
    connection must then be given back by ``release_conn``. A body that is none of urllib3's, such as a recorded one, is
    no longer encoded.
    """
    raw: Any = response.raw
    if not isinstance(raw, BaseHTTPResponse):
        return raw.read1, "identity"
    ours = getattr(raw, "_original_response", None)
    read = ours.read1 if isinstance(ours, BufferedResponse) else functools.partial(raw.read1, decode_content=False)
    encoding = response.headers.get("Content-Encoding", "").strip()
    return read, "identity" if encoding.lower() in ("", "identity") else encoding


@contextlib.contextmanager
def _within(owner: Stoppable, response: requests.Response, seconds: float) -> Iterator[None]:
    """Within it, reading the body ends after so many seconds, and not behind the owner's deadline."""
    before = owner.deadline
    owner.deadline = Deadline(seconds if before is None else before.left(seconds))
    ours = getattr(response.raw, "_original_response", None)
    if isinstance(ours, BufferedResponse):
        ours.keep_deadline(owner)
    try:
        yield
    finally:
        owner.deadline = before


def start_of(body: Iterator[bytes], response: requests.Response, owner: Stoppable, seconds: float, most: int) -> bytes:
    """Returns what comes of a body within so many seconds, until it is so long, whatever happens to it then."""
    found, size = [], 0
    with contextlib.suppress(Exception), _within(owner, response, seconds):
        for data in body:
            found.append(data)
            size += len(data)
            if size >= most:
                break
    return b"".join(found)


def limited(chunks: Iterator[bytes], most: int) -> Iterator[bytes]:
    """Yields them as long as they are ``most`` bytes together; raises ProtocolError past that."""
    left = most
    for data in chunks:
        if (left := left - len(data)) < 0:
            raise ProtocolError(f"the answer is longer than {most} bytes", advice="See max_reply_bytes=")
        yield data


def peeked(body: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """How a body begins, without spaces, and the whole of it, with them."""
    start, read = b"", []
    while len(start) < LABEL_READ and (data := next(body, b"")):
        read.append(data)
        start = (start + data).lstrip()
    return start, chain(read, body)
