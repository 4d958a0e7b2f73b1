"""What a server remembers of its clients: the newest, for a while."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from time import monotonic
from typing import Generic, TypeVar

#: How many tokens, sessions and conversations are kept of each kind; one more, and the one unused the longest goes.
MAX_KEPT = 10_000
#: How long one is kept that nobody uses, in seconds: a day.
LIFETIME = 86_400.0

T = TypeVar("T")


class Remembered(Generic[T]):
    """Values by their secret names. One lock guards it, so that threads may share it.

    What is kept is not the name but its SHA-256. A dictionary compares what is alike at its beginning longer than what
    is not; of a digest, a client who measures that learns nothing that it could use, for it cannot choose one.

    >>> remembered = Remembered[str]()
    >>> remembered.add("token-1", "me")
    >>> remembered.get("token-1"), remembered.get("token-2")
    ('me', None)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[float, T]] = (
            OrderedDict()
        )  # with the time of the last use, the oldest first

    def add(self, name: str, value: T) -> None:
        """Remembers a value, and forgets what is too old, or too much."""
        now = monotonic()
        with self._lock:
            self._kept[_digest(name)] = now, value
            while len(self._kept) > MAX_KEPT or next(iter(self._kept.values()))[0] < now - LIFETIME:
                self._kept.popitem(last=False)

    def get(self, name: str) -> T | None:
        """Returns a value, which is then used; None where it is not, or no longer, known."""
        digest, now = _digest(name), monotonic()
        with self._lock:
            used, value = self._kept.get(digest, (0.0, None))
            if value is None or used < now - LIFETIME:
                self._kept.pop(digest, None)
                return None
            self._kept[digest] = now, value
            self._kept.move_to_end(digest)
            return value

    def pop(self, name: str) -> T | None:
        """Forgets a value, and returns it, None where it was not known."""
        with self._lock:
            return self._kept.pop(_digest(name), (0.0, None))[1]

    def values(self) -> list[T]:
        """Returns all values."""
        with self._lock:
            return [value for _, value in self._kept.values()]

    def clear(self) -> None:
        """Forgets all of them."""
        with self._lock:
            self._kept.clear()


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
