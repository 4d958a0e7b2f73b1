"""The body of a request, read to its end: where that fails, it is the client's fault, and is told as such."""

from __future__ import annotations

import errno
import logging
import re
from typing import Any

from .faults import Refused
from .incoming import Allowance, Incoming, TooLong

#: How long a body may take: a client on a slow line has its time, one that sends a byte a second has not.
BODY_TIME = Allowance(120.0, 32 * 1024)
#: The longest line between two chunks, and all lines behind the last one, in bytes.
MAX_CHUNK_LINE, MAX_TRAILERS = 1024, 64 * 1024
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,32})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[^\s:\0]+:[\t\x20-\x7e\x80-\xff]*\r\n")

log = logging.getLogger("berlin_chat.server")


class Body:
    """``wsgi.input``, of a known length or in chunks; for the thread of its request.

    Every fault is logged in one line. It ends the connection: where a body has no end, the next request has no
    beginning.

    Args:
        request: cheroot's ``HTTPRequest``. Its connection's timeout holds between two reads.
    """

    def __init__(self, request: Any) -> None:
        self._request = request
        self._incoming: Incoming = request.conn.rfile
        self._chunked: bool = request.chunked_read
        self._length = request.inheaders.get(b"Content-Length", b"").lstrip(b"0").decode()
        expects = request.inheaders.get(b"Expect", b"").lower() == b"100-continue"
        self._expected = expects and request.response_protocol == "HTTP/1.1"

    def read(self, limit: int) -> bytes:
        """Returns the whole body, and reads what follows it up to the next request.

        Raises:
            Refused: it did not arrive in time, ended too early, was framed wrongly, or has more than ``limit`` bytes.
            ConnectionAbortedError: the connection broke.
        """
        # Where it is clear that it is too large, nothing of it is read. (int() would not take thousands of digits.)
        if not self._chunked and (len(self._length) > 19 or int(self._length or 0) > limit):
            raise self._refused(413, f"the body of the request is too large: at most {limit} bytes are taken")
        self._incoming.allow(BODY_TIME)
        try:
            if self._expected and (self._chunked or self._length):
                self._request.conn.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return self._chunks(limit) if self._chunked else self._incoming.read(int(self._length or 0))
        except TimeoutError:
            raise self._refused(408, "the body of the request did not arrive in time") from None
        except EOFError:  # nobody is likely to read the answer: most clients that stop sending are gone
            raise self._refused(408, "the body of the request ended too early", logging.DEBUG) from None
        except (ValueError, TooLong):
            raise self._refused(400, "the body of the request has wrong chunks") from None
        except OSError as error:
            self._failed(f"the client went away in the middle of a request: {error}", logging.DEBUG)
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from None

    def skip(self, limit: int) -> bytes:
        """Reads the body of a request that is refused, so that its connection can be kept; raises what ``read`` raises.

        One that is larger than ``limit``, or has not begun because the client waits to be asked for it, is not read:
        it ends the connection.
        """
        if (self._chunked or self._length) and (
            self._expected or len(self._length) > 19 or int(self._length or 0) > limit
        ):
            self._leave()
            return b""
        return self.read(limit)

    def _chunks(self, limit: int) -> bytes:
        body, read = bytearray(), 0
        while True:
            line = self._incoming.line(MAX_CHUNK_LINE)
            if not (match := _CHUNK.fullmatch(line)):
                raise ValueError
            size = int(match[1], 16)
            read += size + len(line)  # a body of many small chunks takes as much time as a large one
            if read > limit + MAX_CHUNK_LINE:
                raise self._refused(413, f"the body of the request is too large: at most {limit} bytes are taken")
            if not size:
                break
            body += self._incoming.read(size)
            if self._incoming.read(2) != b"\r\n":
                raise ValueError
        left = MAX_TRAILERS
        while (line := self._incoming.line(left)) != b"\r\n":
            left = max(left - len(line), 1)
            if not _TRAILER.fullmatch(line):
                raise ValueError
        return bytes(body)

    def _refused(self, status: int, message: str, level: int = logging.WARNING) -> Refused:
        self._failed(f"{message}: answered {status}", level)
        return Refused(status, message)

    def _failed(self, message: str, level: int) -> None:
        self._leave()
        method, path = str(self._request.method, "latin-1"), str(self._request.path, "latin-1")
        log.log(level, "%s %r: %s", method, path[:1000], message)  # a path may hold line ends

    def _leave(self) -> None:
        self._request.close_connection = self._request.conn.unread = True
