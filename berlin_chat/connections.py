"""Connections that another thread can interrupt, and that hand over all that has arrived.

requests and urllib3 do the HTTP. Two things they do not offer are added below them, at the two places that
``http.client`` and urllib3 have for it (``response_class`` and ``ConnectionCls``): a way to the socket while
the answer's headers are still awaited, and a read of a chunked body that gives every chunk that is there.
"""

from __future__ import annotations

import functools
import http.client
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

from urllib3.connectionpool import HTTPConnectionPool

from .decoding import ChunkedDecoder

#: How much one read asks for, in bytes.
READ_SIZE = 64 * 1024


class Owner(Protocol):
    """Who uses connections: an exchange of ``transport``."""

    def attach(self, connection: Any) -> None: ...


#: ``current.owner`` is whoever sends a request in this thread.
current = threading.local()


class BufferedResponse(http.client.HTTPResponse):
    """A response whose ``read1`` gives all of a chunked body that has arrived, not one chunk a call."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._recv = sock.recv
        self._decoder: ChunkedDecoder | None = None

    def read1(self, n: int = -1) -> bytes:
        if not self.chunked or self.fp is None:
            return super().read1(n)
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


def reader(raw: Any) -> Callable[[int], bytes]:
    """The cheapest way to read what has arrived of a body of urllib3's.

    What urllib3's ``read1`` adds to ours (content encodings, counting a body of a known length) costs more than
    all else that is done for a piece, and a plain chunked body needs none of it. Behind its last read the
    connection must then be given back by ``release_conn``.
    """
    ours = getattr(raw, "_original_response", None)
    if isinstance(ours, BufferedResponse) and ours.chunked and "Content-Encoding" not in raw.headers:
        return ours.read1
    return functools.partial(raw.read1, decode_content=True)


class Interruptible:
    """Mixed into urllib3's connection classes: tells the current owner when an answer is awaited.

    ``interrupt`` may be called from any thread; ``guard`` makes sure that it never hits a connection that
    has already gone on to its next owner.
    """

    response_class = BufferedResponse

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard = threading.Lock()
        self.owner: Owner | None = None
        self.wire: socket.socket | None = None  # kept, for http.client lets go of a socket that will close

    def request(self, *args: Any, **kwargs: Any) -> Any:
        self._change_owner()  # before anything is sent: the last owner's interrupt must not hit this request
        return super().request(*args, **kwargs)  # type: ignore[misc]

    def getresponse(self, *args: Any, **kwargs: Any) -> Any:
        self._change_owner()  # again, for now there is a socket
        return super().getresponse(*args, **kwargs)  # type: ignore[misc]

    def _change_owner(self) -> None:
        owner = getattr(current, "owner", None)
        with self.guard:
            self.owner = owner
            self.wire = self.sock  # type: ignore[attr-defined]
        if owner is not None:
            owner.attach(self)

    def interrupt(self, owner: Owner) -> None:
        """Ends a read that blocks in another thread, if the connection is still the owner's."""
        with self.guard:
            if self.owner is owner and self.wire is not None:
                _shut_down(self.wire)

    def release(self, owner: Owner) -> None:
        """Says that the owner no longer uses the connection."""
        with self.guard:
            if self.owner is owner:
                self.owner = self.wire = None


def _shut_down(wire: Any) -> None:
    try:
        if isinstance(wire, socket.socket):
            # Not SSLSocket.shutdown: that takes the TLS state away from the thread that reads.
            socket.socket.shutdown(wire, socket.SHUT_RDWR)
        else:  # TLS inside TLS, through an https proxy
            wire.socket.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was closed in the meantime


@functools.cache
def _interruptible(connection_class: type) -> type:
    return type(connection_class.__name__, (Interruptible, connection_class), {})


def make_interruptible(pool: HTTPConnectionPool) -> None:
    """Lets a pool make interruptible connections from now on. Idempotent; needs no lock."""
    if not issubclass(pool.ConnectionCls, Interruptible):
        pool.ConnectionCls = _interruptible(pool.ConnectionCls)
