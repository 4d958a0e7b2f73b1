"""A socket's reads, which wait no longer than until a deadline."""

from __future__ import annotations

import io
from typing import Any

from ..cancellation import Stoppable


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
