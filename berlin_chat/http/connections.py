"""Connections that another thread can interrupt, and that keep deadlines.

requests and urllib3 do the HTTP. What they do not offer is added below them, at the places that they and
``http.client`` have for it: ``ConnectionCls`` and ``QueueCls`` of a pool, ``response_class`` of a connection.
"""

from __future__ import annotations

import errno
import functools
import os
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.wait import wait_for_read

from ..cancellation import Deadline, Limits, Stoppable
from ..validation import is_loopback
from ..version import __version__
from .connecting import Connecting, check_proxy
from .responses import BufferedResponse

#: How much is written before the deadline is looked at again, in bytes: what one TLS record holds.
WRITE_SIZE = 16 * 1024
_NO_DEADLINE = Deadline(None)
#: The user agent of every request, unless the caller gives another.
USER_AGENT = f"berlin-chat/{__version__}"
#: What requests reads of the environment for each request.
_ENVIRONMENT = [
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
]


class Owner(Stoppable):
    """Who uses connections, one at a time: to stop it shuts the socket in use down.

    The socket is taken by whoever comes first: the thread that has done with it, or the one that shuts it down. So an
    interrupt never hits a connection that has gone on to its next user, and nobody waits for anybody.

    Attributes:
        write_timeout: how long it may take until some of a request is taken, in seconds; None for no limit.
        reused: whether its last request went over a connection that had been kept.
    """

    def __init__(self, limits: Limits, write_timeout: float | None = None) -> None:
        super().__init__(limits)
        self.write_timeout = write_timeout
        self.reused = False  # pragma: no mutate - it is said before each request
        self._socket: list[Any] = []  # at most one

    def attach(self, sock: Any) -> None:
        """Is told by a connection which socket is used from now on; raises OSError where it was stopped already."""
        self._socket[:] = [sock]
        if self._stopped:
            raise ConnectionAbortedError("interrupted")

    def take_socket(self) -> Any:
        """Returns the socket to the first who asks, None to all others: ``list.pop`` is atomic."""
        try:
            return self._socket.pop()
        except IndexError:
            return None

    def _end_blocking(self) -> None:
        sock = self.take_socket()
        try:
            if isinstance(sock, socket.socket):
                # Not SSLSocket.shutdown: that takes the TLS state away from the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            elif sock is not None:  # TLS inside TLS, through an https proxy
                socket.socket.shutdown(sock.socket, socket.SHUT_RDWR)
        except OSError:
            pass  # it was closed in the meantime


class working_for:
    """Within it, the connections that this thread uses are an exchange's.

    urllib3 makes connections deep inside of its own code, and passes nothing on to them. So this is the one thing that
    stands beside the calls: per thread, set and reset here.
    """

    _thread = threading.local()

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        self._before, self._thread.owner = self.current(), self._owner

    def __exit__(self, *_: object) -> None:
        self._thread.owner = self._before

    @classmethod
    def current(cls) -> Owner | None:
        """Returns for whom this thread sends a request at the moment."""
        return getattr(cls._thread, "owner", None)


class StaleConnection(ConnectionError):
    """A kept connection has something to read, which would be taken for the answer to what was about to be sent.

    urllib3 looks for that when it takes a connection from its pool; this is the last look, right before it is used.
    """


class Interruptible(Connecting):
    """Mixed into urllib3's connection classes: tells the exchange that this thread works for which socket it uses."""

    # An answer has come, and nothing was sent since. pragma: no mutate - connect() says it first
    _kept = False

    @property
    def owner(self) -> Owner | None:
        return working_for.current()

    def connect(self) -> None:
        self._kept = False
        super().connect()

    def request(self, *args: Any, **kwargs: Any) -> Any:
        if (owner := working_for.current()) is not None:
            owner.reused = self.sock is not None and self._kept
            if self.sock is not None:
                owner.attach(self.sock)
        return super().request(*args, **kwargs)  # type: ignore[misc]

    def getresponse(self) -> Any:
        """Reads a head. A body behind TLS then ends by what only the server can send; anybody can end a connection."""
        sock, is_tls = self.sock, hasattr(self.sock, "suppress_ragged_eofs")
        if is_tls:
            sock.suppress_ragged_eofs = True  # a kept connection may have been closed in whatever way
        response = super().getresponse()  # type: ignore[misc]
        if is_tls:
            sock.suppress_ragged_eofs = False
        self._kept = True
        return response

    def send(self, data: Any) -> None:
        try:
            self._send(data)
        except ssl.SSLEOFError:  # the server takes no more, and may have said why: urllib3 then looks
            raise BrokenPipeError(errno.EPIPE, "the server has closed the connection") from None

    def _send(self, data: Any) -> None:
        """Writes it in parts, each of which may wait for as long as a read, but not beyond the deadline.

        The socket's own timeout is that of connecting, or on a kept connection what its last use has left there, and
        would be for all of it.
        """
        owner = working_for.current()
        if owner is None or not isinstance(data, bytes):
            return super().send(data)  # type: ignore[misc,no-any-return]
        if self.sock is None:
            self.connect()
        elif self._kept and wait_for_read(self.sock, timeout=0):
            raise StaleConnection("the server has said what nobody asked for")
        self._kept = False
        for begin in range(0, len(data), WRITE_SIZE):
            (owner.deadline or _NO_DEADLINE).limit(self.sock, owner.write_timeout)
            super().send(data[begin : begin + WRITE_SIZE])  # type: ignore[misc]
        return None

    def response_class(self, sock: Any, *args: Any, **kwargs: Any) -> BufferedResponse:
        """What ``http.client`` makes its responses by."""
        return BufferedResponse(sock, *args, owner=working_for.current(), **kwargs)


class Stack:
    """Where a pool keeps idle connections: what urllib3 asks of ``queue.LifoQueue``, without its lock.

    A lock can be held by the very thread that asks for it, when the garbage collector or a signal handler ends
    another question in between; and it can stay held when Ctrl-C comes at the wrong moment. ``list.append`` and
    ``list.pop`` are atomic. Never waits, so it is only for pools that do not block.
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._idle: list[Any] = []
        self._closed = False

    # pragma: no mutate - as queue.LifoQueue has it; what it would do is never done
    def put(self, connection: Any, block: bool = True, timeout: float | None = None) -> None:
        """Adds a connection, or closes it where there are enough. None, urllib3's place-holder, is not kept.

        Never raises queue.Full: what urllib3 does then fails where its pool is closed in the meantime.
        """
        # pragma: no mutate - it never has more than the most, but where threads add at once
        if connection is not None and len(self._idle) >= self._maxsize:
            connection.close()
        elif connection is not None:
            self._idle.append(connection)
        if self._closed:  # in the meantime
            self.close()

    def close(self) -> None:
        """Closes all connections, and those that are added later: by a thread that had the pool's queue in its hand."""
        self._closed = True
        self.drop()

    def drop(self) -> None:
        """Closes all connections."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:  # another thread has taken the last one
                return

    # pragma: no mutate - likewise
    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Returns the last connection that was added; raises queue.Empty where there is none."""
        try:
            return self._idle.pop()
        except IndexError:
            raise queue.Empty from None

    def qsize(self) -> int:
        """How many there are."""
        return len(self._idle)


class _Pool:
    """Mixed into urllib3's pools: their connections are interruptible.

    Where somebody has put another class in the place of urllib3's, as recorders and players do, it is that class for
    as long as it stands there, and no connection is kept.
    """

    QueueCls = Stack
    pool: Any
    plain: Any
    interruptible: Any

    @property
    def ConnectionCls(self) -> Any:
        standing = super().ConnectionCls  # type: ignore[misc]
        return self.interruptible if standing is self.plain else standing

    def _get_conn(self, timeout: float | None = None) -> Any:
        if super().ConnectionCls is not self.plain and isinstance(self.pool, Stack):  # type: ignore[misc]
            self.pool.drop()
        return super()._get_conn(timeout)  # type: ignore[misc]


def _of_ours(pool: type, plain: type) -> type:
    """One of urllib3's classes of pools, with our connections instead of its plain ones."""
    interruptible = type(plain.__name__, (Interruptible, plain), {})
    return type(pool.__name__, (_Pool, pool), {"plain": plain, "interruptible": interruptible})


@functools.cache  # pragma: no mutate - only spares to make them again
def _socks_pools() -> dict[str, type]:
    """Those for SOCKS, whose module is imported by those only who have PySocks."""
    from urllib3.contrib import socks

    return {
        "http": _of_ours(socks.SOCKSHTTPConnectionPool, socks.SOCKSConnection),
        "https": _of_ours(socks.SOCKSHTTPSConnectionPool, socks.SOCKSHTTPSConnection),
    }


def close_pool(pool: HTTPConnectionPool) -> None:
    """Closes a pool, and connections that are given back to it later. May be called by several threads at once."""
    idle = pool.pool
    pool.close()
    if isinstance(idle, Stack):
        idle.close()


_POOLS = {"http": _of_ours(HTTPConnectionPool, HTTPConnection), "https": _of_ours(HTTPSConnectionPool, HTTPSConnection)}


class Adapter(HTTPAdapter):
    """Makes pools of our own, and notes them: requests only forgets them at its end, so their owner closes them."""

    def __init__(self, pool_size: int, pools: set[HTTPConnectionPool]) -> None:
        self._pools = pools
        # pragma: no mutate - it is one server, be it in several ways
        super().__init__(pool_connections=4, pool_maxsize=pool_size)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = _socks_pools() if proxy.lower().startswith("socks") else _POOLS
        return manager

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        self._pools.add(pool)
        return pool


class _CookiePolicy(DefaultCookiePolicy):
    """Sends a ``Secure`` cookie back to this very machine over plain http, as browsers do; to no other."""

    def return_ok_secure(self, cookie: Any, request: Any) -> bool:
        # Where the request goes: its ``Host`` header, which a caller may have chosen, says nothing about that.
        host = urlsplit(f"//{request.get_host()}").hostname or ""
        return super().return_ok_secure(cookie, request) or is_loopback(host)


class _CookieJar(RequestsCookieJar):
    """A cookie jar that threads can share: it is walked through as it was at one moment."""

    def __iter__(self) -> Iterator[Any]:
        with self._cookies_lock:
            return iter(list(super().__iter__()))


class Session(requests.Session):
    """requests' session, for one server and for threads that share it; nobody else changes its settings.

    It spares what a request does not need here: merging settings, looking through the whole environment twice for
    proxies, looking into ``~/.netrc``, reading the body of a redirect that is not followed.
    """

    def __init__(self, pool_size: int, pools: set[HTTPConnectionPool]) -> None:
        super().__init__()
        self.headers["User-Agent"] = USER_AGENT
        # Encodings whose decoders give each flushed piece at once.
        self.headers["Accept-Encoding"] = "gzip, deflate"
        self.cookies = _CookieJar(_CookiePolicy())
        adapter = Adapter(pool_size, pools)
        self.mount("http://", adapter)
        self.mount("https://", adapter)
        self._found: dict[Any, dict[str, Any]] = {}

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        headers: Any = CaseInsensitiveDict(self.headers)
        headers.update(request.headers)
        prepared = requests.PreparedRequest()
        prepared.prepare(
            method=request.method,
            url=request.url,
            headers={name: value for name, value in headers.items() if value is not None},
            data=request.data,
            cookies=self.cookies,
        )
        return prepared

    def merge_environment_settings(self, url: Any, proxies: Any, *settings: Any) -> dict[str, Any]:
        server = url.split("/", 3)[:3]  # pragma: no mutate - more parts would be left out, too
        key = (*server, *proxies.items(), *settings, *map(os.environ.get, _ENVIRONMENT))
        found = self._found.get(key)
        if found is None:
            found = super().merge_environment_settings(url, proxies, *settings)
            check_proxy(url, found["proxies"])
            self._found[key] = found
        return found

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Any:
        return iter(())
