"""Connections that another thread can interrupt, that keep deadlines, and that hand over all that has arrived.

requests and urllib3 do the HTTP. What they do not offer is added below them, at the places that they and
``http.client`` have for it: ``ConnectionCls`` and ``QueueCls`` of a pool, ``response_class`` of a connection.
"""

from __future__ import annotations

import functools
import http.client
import io
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import BaseHTTPResponse

from ..cancellation import Limits, Stoppable
from ..decoding import ChunkedDecoder
from ..validation import is_loopback
from ..version import __version__
from .deadlines import LimitedReader

#: How much one read asks for, in bytes.
READ_SIZE = 64 * 1024
#: How much is written before the deadline is looked at again, in bytes: what one TLS record holds.
WRITE_SIZE = 16 * 1024
#: The user agent of every request, unless the caller gives another.
USER_AGENT = f"berlin-chat/{__version__}"
#: How many informational answers (1xx) may stand before the real one.
MAX_INFORMATIONAL = 100
#: What requests reads of the environment for each request.
_ENVIRONMENT = [
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
]


class Owner(Stoppable):
    """Who uses connections, one at a time: to stop it shuts the socket in use down.

    The socket is taken by whoever comes first: the thread that has done with it, or the one that shuts it down. So an
    interrupt never hits a connection that has gone on to its next user, and nobody waits for anybody.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
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
                sock.socket.shutdown(socket.SHUT_RDWR)
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


class BufferedResponse(http.client.HTTPResponse):
    """A response that keeps a deadline, skips informational answers, and whose ``read1`` gives all that has arrived.

    http.client's gives one chunk a call, and reads from the socket for each of its parts.
    """

    def __init__(self, sock: Any, *args: Any, owner: Owner | None, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._recv = sock.recv
        self._decoder: ChunkedDecoder | None = None
        if owner is not None and owner.deadline is not None:
            limited = LimitedReader(sock, owner, self.fp.detach())
            self.fp = io.BufferedReader(limited)
            self._recv = limited.recv

    def _read_status(self) -> tuple[str, int, str]:
        """RFC 9110, section 15.2: any number of 1xx may come before the final answer, and can be ignored."""
        for _ in range(MAX_INFORMATIONAL):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:
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
        self.will_close |= self.status == http.HTTPStatus.SWITCHING_PROTOCOLS  # what follows is no HTTP
        self._check_framing()

    def _check_framing(self) -> None:
        """RFC 9112, section 6.3: a body whose end is not known for sure is none."""
        if self.headers.defects:  # a line that is no field, behind which http.client reads none of the others
            raise http.client.HTTPException("a line of the head is no header field")
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
        if not line.endswith(b"\n") and len(line) < size:
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
    return read, response.headers.get("Content-Encoding", "identity")


class Interruptible:
    """Mixed into urllib3's connection classes: tells the exchange that this thread works for which socket it uses.

    A connection belongs to one thread at a time, from the pool's ``get`` to its ``put``.
    """

    sock: Any
    _handshake: Any = None

    def connect(self) -> None:
        """Connects; a copy of the socket can be shut down during the TLS handshake, which takes the socket itself."""
        try:
            super().connect()  # type: ignore[misc]
        finally:
            if self._handshake is not None:
                self._handshake.close()
                self._handshake = None

    def _new_conn(self) -> Any:
        sock = super()._new_conn()  # type: ignore[misc]
        if (owner := working_for.current()) is not None:
            try:
                if isinstance(self, HTTPSConnection):
                    self._handshake = sock.dup()
                owner.attach(self._handshake or sock)
            except OSError:
                sock.close()
                raise
        return sock

    def _tunnel(self) -> None:
        super()._tunnel()  # type: ignore[misc]
        if (owner := working_for.current()) is not None:
            owner.attach(self._handshake or self.sock)  # to a stopped one: the end of the answer was none

    def request(self, *args: Any, **kwargs: Any) -> Any:
        if self.sock is not None and (owner := working_for.current()) is not None:
            owner.attach(self.sock)
        return super().request(*args, **kwargs)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        owner = working_for.current()
        if owner is None or owner.deadline is None or not isinstance(data, bytes):
            return super().send(data)  # type: ignore[misc,no-any-return]
        if self.sock is None:
            self.connect()
        timeout = self.sock.gettimeout()
        for begin in range(0, len(data), WRITE_SIZE):
            owner.deadline.limit(self.sock, timeout)
            super().send(data[begin : begin + WRITE_SIZE])  # type: ignore[misc]
        return None

    def response_class(self, sock: Any, *args: Any, **kwargs: Any) -> BufferedResponse:
        """What ``http.client`` makes its responses by."""
        return BufferedResponse(sock, *args, owner=working_for.current(), **kwargs)


#: How a connection sends that has a socket; a class of another way, such as a player of records, is left as it is.
_SEND = HTTPConnection.send


def make_interruptible(pool: Any) -> None:
    """Lets a pool that is not ours make interruptible connections from now on.

    Threads that do so at the same moment make a class each, one of which is kept: either will do. What the pool has is
    read once, for between two looks another thread may have replaced it.
    """
    plain = pool.ConnectionCls
    if getattr(getattr(type(pool), "ConnectionCls", None), "send", _SEND) is not _SEND:
        vars(pool).pop("ConnectionCls", None)  # what stands in for all connections of the kind
    elif isinstance(plain, type) and not issubclass(plain, Interruptible):
        pool.ConnectionCls = type(plain.__name__, (Interruptible, plain), {})


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

    def put(self, connection: Any, block: bool = True, timeout: float | None = None) -> None:
        """Adds a connection; raises queue.Full where there are enough. None, urllib3's place-holder, is not kept."""
        if len(self._idle) >= self._maxsize:
            raise queue.Full
        if connection is not None:
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

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Returns the last connection that was added; raises queue.Empty where there is none."""
        try:
            return self._idle.pop()
        except IndexError:
            raise queue.Empty from None

    def qsize(self) -> int:
        """How many there are."""
        return len(self._idle)


#: For each of urllib3's classes of connections, the one that is ours.
_INTERRUPTIBLE = {cls: type(cls.__name__, (Interruptible, cls), {}) for cls in (HTTPConnection, HTTPSConnection)}


class _Pool:
    """Mixed into urllib3's pools: their connections are interruptible.

    Where somebody has put another class in the place of urllib3's, as recorders and players do, it is that class for
    as long as it stands there, and no connection is kept.
    """

    QueueCls = Stack
    pool: Any

    @property
    def ConnectionCls(self) -> Any:
        standing = super().ConnectionCls  # type: ignore[misc]
        return _INTERRUPTIBLE.get(standing, standing)

    def _get_conn(self, timeout: float | None = None) -> Any:
        if super().ConnectionCls not in _INTERRUPTIBLE and isinstance(self.pool, Stack):  # type: ignore[misc]
            self.pool.drop()
        return super()._get_conn(timeout)  # type: ignore[misc]


class _HTTPPool(_Pool, HTTPConnectionPool):  # type: ignore[misc,override]
    """A pool of ours."""


class _HTTPSPool(_Pool, HTTPSConnectionPool):  # type: ignore[misc,override]
    """A pool of ours, for TLS."""


def close_pool(pool: HTTPConnectionPool) -> None:
    """Closes a pool, and connections that are given back to it later. May be called by several threads at once."""
    idle = pool.pool
    pool.close()
    if isinstance(idle, Stack):
        idle.close()


_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


class Adapter(HTTPAdapter):
    """Makes pools of our own, and notes them: requests only forgets them at its end, so their owner closes them."""

    def __init__(self, pool_size: int, pools: set[HTTPConnectionPool]) -> None:
        self._pools = pools
        super().__init__(pool_connections=4, pool_maxsize=pool_size)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):  # whose pools are of another kind
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        if not isinstance(pool, _Pool):  # one for SOCKS
            make_interruptible(pool)
        self._pools.add(pool)
        return pool


class _CookiePolicy(DefaultCookiePolicy):
    """Sends a ``Secure`` cookie back to this very machine over plain http, as browsers do; to no other."""

    def return_ok_secure(self, cookie: Any, request: Any) -> bool:
        # Where the request goes: its ``Host`` header, which a caller may have chosen, says nothing about that.
        host = urlsplit(f"//{request.get_host()}").hostname or ""
        return super().return_ok_secure(cookie, request) or (request.type == "http" and is_loopback(host))


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
        server = url.split("/", 3)[:3]
        key = (*server, *proxies.items(), *settings, *map(os.environ.get, _ENVIRONMENT))
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = super().merge_environment_settings(url, proxies, *settings)
        return found

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Any:
        return iter(())
