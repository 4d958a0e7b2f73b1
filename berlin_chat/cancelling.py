"""Ending questions from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

#: How often a wait looks for Ctrl-C, in seconds: one that comes as a wait begins does not end it.
SIGNAL_INTERVAL = 0.1


class CancelToken:
    """Ends questions from another thread.

    Give it to any number of questions, in any threads, and call ``cancel()`` from whichever thread: a
    blocked read ends at once, its connection is closed, and each loop gets ``Cancelled``. A question that is
    asked with a cancelled token gets it at the first piece. One lock guards the state; all methods are safe to
    call from any thread. A connection that is still being made ends with its connect timeout at the latest.

    >>> token = CancelToken()
    >>> token.cancel()
    >>> token.cancelled
    True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._callbacks: dict[object, Callable[[], None]] = {}

    def __repr__(self) -> str:
        return f"<CancelToken {'cancelled' if self.cancelled else 'not cancelled'}>"

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel()`` has been called."""
        return self._event.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits so many seconds, or until ``cancel()``; returns whether it has been called."""
        return self._event.wait(seconds)

    def cancel(self) -> None:
        """Ends all questions that carry the token. A second call does nothing."""
        with self._lock:
            self._event.set()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback()

    def watch(self, key: object, callback: Callable[[], None]) -> None:
        """Calls back at ``cancel()``, in its thread; at once if it has been called already."""
        with self._lock:
            self._callbacks[key] = callback
            cancelled = self._event.is_set()
        if cancelled:
            callback()

    def unwatch(self, key: object) -> None:
        """Takes a callback back."""
        with self._lock:
            self._callbacks.pop(key, None)
