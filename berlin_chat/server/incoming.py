"""The bytes of a connection as they arrive: never more than was asked for, and never later than they may."""

from __future__ import annotations

import socket
from time import monotonic
from typing import NamedTuple

#: How much is taken from the system at once, in bytes.
_TAKEN = 65536


class Allowance(NamedTuple):
    """How long all of something may take: so many seconds, and more where much arrives.

    Attributes:
        seconds: for the whole, whatever its size.
        rate: bytes a second; who sends faster has as long as it takes.
    """

    seconds: float
    rate: float


class TooLong(Exception):
    """A line is longer than it may be."""


class Incoming:
    """What cheroot calls the ``rfile`` of a connection; for the thread that reads its request.

    Between two bytes the timeout of the socket holds. Beside it a client may send a byte now and then for as long as
    it likes, and so the whole of what is read has its ``Allowance``.

    Attributes:
        received: how many bytes have come since the last call of ``allow``.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._allowance: Allowance | None = None
        self._began = 0.0
        self.received = 0

    def allow(self, allowance: Allowance) -> None:
        """What is read from now on has this time, until the next call."""
        self._allowance, self._began, self.received = allowance, monotonic(), len(self._buffer)

    def line(self, limit: int) -> bytes:
        """Returns the next line with its end.

        Raises:
            TooLong: it has more than ``limit`` bytes.
            EOFError: the client sent no more, before the end of the line.
            OSError: the connection broke, or the time is over (TimeoutError).
        """
        searched = 0
        while (end := self._buffer.find(b"\n", searched, limit)) < 0:
            if len(self._buffer) >= limit:
                raise TooLong
            searched = len(self._buffer)
            self._take(_TAKEN)
        return self._cut(end + 1)

    def read(self, size: int) -> bytes:
        """Returns so many bytes; raises what ``line`` raises, but for TooLong."""
        while len(self._buffer) < size:
            self._take(min(size - len(self._buffer), _TAKEN))
        return self._cut(size)

    def has_data(self) -> bool:
        """Whether something was taken that nobody has read: a request that came with the one before."""
        return bool(self._buffer)

    def close(self) -> None:
        """Nothing to do: the connection closes its socket."""

    def _cut(self, size: int) -> bytes:
        found = bytes(self._buffer[:size])
        del self._buffer[:size]
        return found

    def _take(self, size: int) -> None:
        silence = self._sock.gettimeout()
        left = self._left()
        try:
            if left is not None and (silence is None or left < silence):
                self._sock.settimeout(left)
            data = self._sock.recv(size)
        finally:
            self._sock.settimeout(silence)
        if not data:
            raise EOFError
        self._buffer += data
        self.received += len(data)

    def _left(self) -> float | None:
        if self._allowance is None:
            return None
        seconds = self._allowance.seconds + self.received / self._allowance.rate
        left = self._began + seconds - monotonic()
        if left <= 0:
            raise TimeoutError("it took too long")
        return left
