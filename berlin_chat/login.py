"""One login for all threads."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .errors import ChatError
from .forking import after_fork
from .transport import Exchange

T = TypeVar("T")


class _Attempt:
    """A login under way, and who waits for it."""

    def __init__(self) -> None:
        self.waiting: list[Exchange] = []
        self.ended = False
        self.error: ChatError | None = None


class Login(Generic[T]):
    """What a login gave: a token, or just that it happened. Shared by all threads of a provider.

    One lock guards it, which is not held during a login: the first thread that needs it logs in, the others wait,
    each with its own deadline and cancel. They share the outcome; only when the thread that logged in was
    itself cancelled or out of time does the next one try.

    Args:
        value: what is known without a login, None for nothing.
    """

    def __init__(self, value: T | None = None) -> None:
        self._known = value
        self.forget()
        after_fork(self)

    def forget(self) -> None:
        """Goes back to what was known without a login: in a child process, which logs in by itself."""
        self._lock = threading.Lock()
        self._value = self._known
        self._attempt: _Attempt | None = None

    @property
    def value(self) -> T | None:
        """What the last login gave, None before the first."""
        return self._value

    def get(self, exchange: Exchange, log_in: Callable[[], T], stale: T | None = None) -> T:
        """Returns what a login gave, after logging in where there is none yet.

        Args:
            exchange: waits for another thread's login, and is interrupted in it.
            log_in: logs in, in this thread.
            stale: what an earlier call returned and the server no longer takes.

        Raises:
            ChatError: the login failed, or the exchange was interrupted.
        """
        while True:
            with self._lock:
                if self._value is not None and self._value is not stale:
                    return self._value
                attempt = self._attempt
                if attempt is None:
                    mine = self._attempt = _Attempt()
                else:
                    attempt.waiting.append(exchange)
            if attempt is None:
                return self._lead(mine, exchange, log_in)
            exchange.wait_until(lambda attempt=attempt: attempt.ended)  # type: ignore[misc]
            if attempt.error is not None:
                raise copy.copy(attempt.error) from attempt.error

    def _lead(self, attempt: _Attempt, exchange: Exchange, log_in: Callable[[], T]) -> T:
        value: T | None = None
        try:
            value = log_in()
        except ChatError as error:
            if not exchange.interrupted:
                attempt.error = error
            raise
        finally:
            with self._lock:
                self._attempt = None
                if value is not None:
                    self._value = value
                attempt.ended = True
            for waiting in attempt.waiting:
                waiting.wake()
        return value
