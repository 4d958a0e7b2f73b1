"""Listening, and a thread for each reply: cheroot, set up for replies that last.

Why cheroot (11.1), compared with waitress (3.0) on the same small application, 20 pieces a reply:

==========================================  ========================  ==========================================
wanted                                      cheroot                   waitress
==========================================  ========================  ==========================================
each piece flushed as it is produced        yes, by the reply's       yes, by the reply's thread
                                            thread
chunked replies on a kept connection        yes                       no: it closes the connection after each
                                                                      reply whose length is not known
a client that goes away is noticed          at the second write       at the third write
256 replies at once                         yes, with the thread      yes, with 256 threads started beforehand,
                                            pool below                and a warning a reply without
==========================================  ========================  ==========================================

The connection is what decided: a client of 200 short replies would make 200 connections to waitress. gunicorn cannot be
started inside another process, and werkzeug's server closes every connection too. cheroot's own thread pool does not
grow by itself, but may be replaced: here by a thread a reply.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

from ..cancellation import SIGNAL_INTERVAL
from ..errors import ChatError

try:
    from cheroot import server, wsgi
except ImportError as error:  # pragma: no cover
    raise ImportError("the server needs more packages: pip install 'berlin_chat[server]'") from error

from .body import Body
from .faults import Broken, Fault

log = logging.getLogger("berlin_chat.server")

#: How long an idle connection is kept, and a client may take to read, in seconds.
PATIENCE = 600
#: How long a client may be silent in the middle of a request, in seconds: a thread waits for it.
REQUEST_TIMEOUT = 30
#: How long the end may take to be noticed by the thread that listens, in seconds.
CLOSE_INTERVAL = 0.05
#: The largest question, in bytes.
MAX_REQUEST = 64 * 2**20


class _ThreadPerRequest:
    """What cheroot calls a thread pool: ``put`` hands over a connection on which a request has arrived.

    One lock guards the connections at work. A thread closes its connection or gives it back to the server.
    """

    min = 1

    def __init__(self, server: Any) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._working: dict[threading.Thread, Any] = {}

    def start(self) -> None:
        """Nothing to do: threads start as they are needed."""

    def put(self, connection: Any) -> None:
        thread = threading.Thread(target=self._reply, args=(connection,), daemon=True)
        with self._lock:
            self._working[thread] = connection
        thread.start()

    def _reply(self, connection: Any) -> None:
        keep = False
        try:
            connection.socket.settimeout(REQUEST_TIMEOUT)
            keep = connection.communicate()
        except ConnectionError as error:
            log.debug("the client went away: %s", error)
        except Exception:
            log.exception("a reply failed")
        finally:
            self._release(connection, keep)
            with self._lock:
                del self._working[threading.current_thread()]

    def _release(self, connection: Any, keep: bool) -> None:
        if keep:
            try:
                self._server.put_conn(connection)
                return
            except (OSError, ValueError):
                pass  # the server has stopped in the meantime
        with contextlib.suppress(OSError):
            connection.close()
        with contextlib.suppress(OSError):
            connection.wfile.close()  # with what could not be sent, lest its finalizer tries again

    def stop(self, timeout: float | None = None) -> None:
        """Cuts the connections at work, and waits for their threads: ``timeout`` seconds for all together."""
        until = None if timeout is None else monotonic() + timeout
        with self._lock:
            working = list(self._working.items())
        for _, connection in working:
            with contextlib.suppress(OSError):  # it is closed already
                connection.socket.shutdown(socket.SHUT_RDWR)
        for thread, _ in working:
            thread.join(None if until is None else max(until - monotonic(), 0.0))


class _Request(server.HTTPRequest):
    """A request, whose first line may be anything."""

    def read_request_line(self) -> Any:
        try:
            return super().read_request_line()  # type: ignore[no-untyped-call]
        except ValueError as error:  # from urlsplit; cheroot would take it for a fault of its own
            self.simple_response("400 Bad Request", f"Malformed Request-URI: {error}")
            return False


class _Connection(server.HTTPConnection):
    """A connection, which its server counts while it is open."""

    RequestHandlerClass = _Request

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server.open.add(self)

    def close(self) -> None:
        self.server.open.discard(self)
        super().close()


class _Gateway(wsgi.Gateway_10):
    """Between a request and the application; until it answers, ``REQUEST_TIMEOUT`` holds on the connection."""

    def respond(self) -> None:
        """Does what cheroot's does; but a fault comes before it is made sure that the head is sent."""
        self.env["wsgi.input"] = Body(self.req)
        body = self.req.server.wsgi_app(self.env, self.start_response)
        try:
            for data in filter(None, body):
                self.write(data)
        except Broken as broken:
            self._misbehave(broken.fault)
        finally:
            self.req.ensure_headers_sent()
            if hasattr(body, "close"):
                body.close()

    def _misbehave(self, fault: Fault) -> None:
        if fault.content_type and not self.req.sent_headers:
            kept = [(name, value) for name, value in self.req.outheaders if name != b"Content-Type"]
            self.req.outheaders = [*kept, (b"Content-Type", fault.content_type.encode("latin-1"))]
        if fault.data:
            self.write(fault.data)
        if fault.end == "whole":
            return
        self.req.sent_headers = True  # where nothing was said yet, nothing is
        if fault.end == "silent":
            sock = self.req.conn.socket
            sock.settimeout(None)
            while sock.recv(1024):  # until the client leaves, or the server closes
                pass
        raise ConnectionAbortedError(errno.ECONNABORTED, "the connection was to be cut")

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        self.req.conn.socket.settimeout(PATIENCE)  # the request has been read; now it is the client who reads
        return super().start_response(status, headers, exc_info)


class _Server(wsgi.Server):
    ConnectionClass = _Connection
    keep_alive_conn_limit = 100_000
    expiration_interval = CLOSE_INTERVAL
    max_request_body_size = MAX_REQUEST

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.open: set[_Connection] = set()  # one call changes it, from any thread

    @staticmethod
    def bind_socket(socket_: socket.socket, bind_addr: Any) -> socket.socket:
        try:
            socket_.bind(bind_addr)
        except OSError:
            socket_.close()  # cheroot forgets it
            raise
        return socket_

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(level, msg, exc_info=traceback)


class Serving:
    """Serves an application in the background, from ``start`` to ``close``.

    ``close`` may be called while another thread is in ``wait``, or by a signal handler that interrupts ``wait``.
    """

    def __init__(self, app: Callable[..., Any], host: str, port: int) -> None:
        self._host = host
        self._server = _Server((host, port), app, server_name="berlin_chat", request_queue_size=1024, timeout=PATIENCE)
        self._server.gateway = _Gateway
        self._server.requests = _ThreadPerRequest(self._server)
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def url(self) -> str:
        if self._thread is None:
            raise ChatError("the server was not started: use it in a with statement, or call start()")
        # Every address of the machine is an address to listen on, not one to connect to.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self._server.bind_addr[1]}"

    @property
    def connections(self) -> int:
        """How many connections clients hold."""
        return len(self._server.open)

    @property
    def started(self) -> bool:
        return self._thread is not None

    def __str__(self) -> str:
        if self._closed:
            return "closed"
        return "not started" if self._thread is None else f"at {self.url}"

    def start(self) -> None:
        if self._thread is not None or self._closed:
            raise ChatError("the server was started or closed already: make a new one")
        self._server.prepare()
        # Daemons, as are the threads that it starts: a script may end without closing the server.
        self._thread = threading.Thread(target=self._server.serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._server.stop()
            self._thread.join()

    def wait(self) -> None:
        # No Event: its lock is held at moments of the wait, and would never be got by a signal handler that closes.
        while not self._closed:
            sleep(SIGNAL_INTERVAL)
