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
from ipaddress import ip_address
from queue import Empty, Full, SimpleQueue
from time import monotonic, sleep
from typing import Any

from ..cancellation import SIGNAL_INTERVAL
from ..errors import ChatError, InvalidRequest

try:
    from cheroot import wsgi
except ImportError as error:  # pragma: no cover
    raise ImportError("the server needs more packages: pip install 'berlin_chat[server]'") from error

from .body import Body
from .connection import Connection
from .faults import Broken, Fault

log = logging.getLogger("berlin_chat.server")

#: How long an idle connection is kept, and a client may take to read, in seconds.
PATIENCE = 600
#: How long a client may be silent in the middle of a request, in seconds: a thread waits for it.
REQUEST_TIMEOUT = 30
#: How long the end may take to be noticed by the thread that listens, in seconds.
CLOSE_INTERVAL = 0.05
#: How many connections clients may hold. For one more, the one that was idle the longest is closed; if none is idle,
#: the new one is answered 503.
MAX_CONNECTIONS = 1000
#: How many of those that are answered 503 may wait for it; the others are closed without a word.
MAX_TURNED_AWAY = 100
#: How long the system may have no more sockets for us, in seconds, before it is asked again.
NO_SOCKETS = 0.1


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
        """Raises queue.Full where the system has no thread left."""
        thread = threading.Thread(target=self._reply, args=(connection,), daemon=True)
        with self._lock:
            self._working[thread] = connection
        try:
            thread.start()
        except RuntimeError as error:
            with self._lock:
                del self._working[thread]
            log.error("a request is answered 503: %s", error)
            raise Full from None

    def _reply(self, connection: Any) -> None:
        keep = False
        try:
            connection.socket.settimeout(REQUEST_TIMEOUT)
            keep = connection.communicate()
            if connection.unread:
                connection.part()
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
        connection.close()

    def stop(self, timeout: float | None = None) -> None:
        """Cuts the connections at work, and waits for their threads: ``timeout`` seconds for all together."""
        until = None if timeout is None else monotonic() + timeout
        with self._lock:
            working = list(self._working.items())
        for _, connection in working:
            with contextlib.suppress(OSError):  # it is closed already
                connection.socket.shutdown(socket.SHUT_RDWR)
        for thread, _ in working:
            with contextlib.suppress(RuntimeError):  # it is just failing to start
                thread.join(None if until is None else max(until - monotonic(), 0.0))


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
        if not any(name == "Content-Length" for name, _ in headers):  # a reply, which its reader may take in slowly
            self.req.conn.socket.settimeout(PATIENCE)
        return super().start_response(status, headers, exc_info)


class _Listener(socket.socket):
    """Listens. While the system has no socket left for a client, it waits a moment, and serves those that it has."""

    def accept(self) -> Any:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            log.error("clients have to wait: %s", error)
            sleep(NO_SOCKETS)
            raise TimeoutError from None  # which says that nobody has come


class _Server(wsgi.Server):
    ConnectionClass = Connection
    keep_alive_conn_limit = 100_000
    expiration_interval = CLOSE_INTERVAL
    _connections: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.open: set[Connection] = set()  # one call changes it, from any thread
        self._turned_away: SimpleQueue[Connection | None] = SimpleQueue()
        self._limit = min(MAX_CONNECTIONS, _most_files() // 2)  # each may need another one, to the upstream

    @staticmethod
    def bind_socket(socket_: socket.socket, bind_addr: Any) -> socket.socket:
        try:
            socket_.bind(bind_addr)
        except OSError:
            socket_.close()  # cheroot forgets it
            raise
        return _Listener(socket_.family, socket_.type, socket_.proto, socket_.detach())

    def process_conn(self, conn: Any) -> None:
        """Finds a thread for a connection; for a new one only when something arrives on it. A silent one costs none."""
        if conn.last_used is not None:
            try:
                self.requests.put(conn)
            except Full:
                self._turned_away.put(conn)
        elif len(self.open) > self._limit and not self._make_room():
            log.warning("a connection is answered 503: there are %d", self._limit)
            self._turned_away.put(conn)
        else:
            self._connections.put(conn)
            conn.last_used -= max(self.timeout - REQUEST_TIMEOUT, 0)

    def _make_room(self) -> bool:
        """Closes the connection that was idle the longest; says whether there is one. In the thread that listens."""
        waiting = [(number, conn) for number, conn in self._connections._selector.connections if conn is not self]
        for number, conn in sorted(waiting, key=lambda found: found[1].last_used):
            if conn.is_silent:  # and so nobody has looked at it in this round
                self._connections._selector.unregister(number)
                conn.close()
                return True
        return False

    def turn_away(self) -> None:
        """Answers 503, until ``stop``. A thread of its own, which waits for nobody for long, and needs no other."""
        while (conn := self._turned_away.get()) is not None:
            with contextlib.suppress(OSError):
                if self._turned_away.qsize() < MAX_TURNED_AWAY:
                    conn.socket.settimeout(CLOSE_INTERVAL)
                    with contextlib.suppress(TimeoutError):
                        conn.socket.recv(65536)  # the request, if it is there: what nobody reads makes a reset
                    conn.wfile.write(_BUSY)
            conn.close()
        with contextlib.suppress(Empty):
            while conn := self._turned_away.get_nowait():
                conn.close()

    def serve(self) -> None:
        """Does what cheroot's does, but for the thread that some versions start here, which answers 503."""
        while self.ready:
            try:
                self._connections.run(self.expiration_interval)
            except Exception:
                log.exception("the server failed, and goes on")

    def stop(self) -> None:
        self._turned_away.put(None)
        super().stop()

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(level, msg, exc_info=traceback)


_BUSY_BODY = b'{"error": {"message": "the server is busy: come back later"}}'
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY)
)


def _most_files() -> int:
    """How many files and sockets the system lets this process have."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 2 * MAX_CONNECTIONS
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2 * MAX_CONNECTIONS if most == resource.RLIM_INFINITY else most


class Serving:
    """Serves an application in the background, from ``start`` to ``close``.

    Args:
        only_loopback: whether to refuse to listen where other machines could connect.

    ``close`` may be called while another thread is in ``wait``, or by a signal handler that interrupts ``wait``.
    """

    def __init__(self, app: Callable[..., Any], host: str, port: int, *, only_loopback: bool = False) -> None:
        self._host = host
        self._only_loopback = only_loopback
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
        thread, turns_away = (
            threading.Thread(target=work, daemon=True) for work in (self._server.serve, self._server.turn_away)
        )
        try:
            self._check_address(self._server.bind_addr[0])
            turns_away.start()
            thread.start()
        except BaseException:
            self._server.stop()
            raise
        self._thread = thread

    def _check_address(self, address: str) -> None:
        """A name such as ``localhost`` means what the system's tables say; only now it is known."""
        if self._only_loopback and not ip_address(address.partition("%")[0]).is_loopback:
            raise InvalidRequest(
                f"{self._host} is {address}, which can be reached from other machines: give a password"
            )

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
