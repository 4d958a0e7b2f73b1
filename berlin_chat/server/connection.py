"""One connection with a client, and the requests on it, read by our rules instead of cheroot's."""

from __future__ import annotations

import contextlib
import logging
import socket
from time import monotonic
from typing import Any

try:
    from cheroot import makefile, server
except ImportError as error:  # pragma: no cover
    raise ImportError("the server needs more packages: pip install 'berlin_chat[server]'") from error

from .head import BadHead, read_headers, read_request_line, tokens
from .incoming import Allowance, Incoming

log = logging.getLogger("berlin_chat.server")

#: How long all of a head may take, a byte a second or not.
HEAD_TIME = Allowance(30.0, 32 * 1024)
#: How long a client that was refused may go on sending, in seconds: closed at once, it might never see the answer.
LINGER = 2.0


class Request(server.HTTPRequest):
    """A request, whose head is read by our rules instead of cheroot's."""

    method = path = b""

    def parse_request(self) -> None:
        self.rfile = incoming = self.conn.rfile
        incoming.allow(HEAD_TIME)
        try:
            self._parse(incoming)
        except BadHead as bad:
            log.debug("a request is answered %s: %s", bad.status, bad.message)
            self.simple_response(bad.status, bad.message)
        except TimeoutError:
            self.simple_response("408 Request Timeout", "the head of the request did not arrive in time")
        except EOFError:
            if incoming.received:  # else it is the end of a connection that was kept
                self.simple_response("400 Bad Request", "the head of the request ended too early")

    def _parse(self, incoming: Incoming) -> None:
        line = read_request_line(incoming)
        self.started_request = True
        self.method, self.uri, self.path, self.qs = line.method, line.target, line.path, line.query
        self.request_protocol = b"HTTP/1.%d" % line.version
        self.response_protocol = self.request_protocol.decode()
        self.inheaders = read_headers(incoming, line)
        wishes = tokens(self.inheaders.get(b"Connection", b""))
        self.close_connection = b"close" in wishes or not (line.version or b"keep-alive" in wishes)
        self.chunked_read = b"Transfer-Encoding" in self.inheaders
        self.ready = True

    def respond(self) -> None:
        self.server.gateway(self).respond()
        if self.chunked_write:
            self.conn.wfile.write(b"0\r\n\r\n")

    def simple_response(self, status: str, message: str = "") -> None:
        """Refuses what has no end that is known, and so no next request behind it."""
        self.conn.unread = True
        body = (message or status).encode("latin-1", "replace")
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.conn.wfile.write(head.encode("latin-1") + (b"" if self.method == b"HEAD" else body))


class Connection(server.HTTPConnection):
    """A connection, which its server counts while it is open.

    Attributes:
        unread: whether the client may still be sending what nobody will read.
    """

    RequestHandlerClass = Request
    unread = False

    def __init__(self, server: Any, sock: socket.socket, *_: Any) -> None:
        super().__init__(
            server,
            sock,
            lambda sock, mode, size: Incoming(sock) if "r" in mode else makefile.MakeFile(sock, mode, size),
        )
        self.server.open.add(self)

    @property
    def is_silent(self) -> bool:
        """Whether nothing has arrived on it, not even its end."""
        timeout = self.socket.gettimeout()
        try:
            self.socket.settimeout(0)
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        finally:
            self.socket.settimeout(timeout)
        return False

    def part(self) -> None:
        """Tells the client that nothing more comes, and takes what it still sends: else a reset may eat the answer."""
        until = monotonic() + LINGER
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            while (left := until - monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv(65536):
                    break

    def close(self) -> None:
        self.server.open.discard(self)
        with contextlib.suppress(OSError):
            super().close()
        with contextlib.suppress(OSError):
            self.wfile.close()  # with what could not be sent, lest its finalizer tries again
