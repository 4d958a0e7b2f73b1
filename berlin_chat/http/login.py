"""One login for all threads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..errors import ChatError
from ..process import after_fork
from .transport import Exchange

T = TypeVar("T")


class _Attempt:
    """One login: who makes it, who waits for it, and how it ended."""

    def __init__(self) -> None:
        self.waiting: list[Exchange] = []
        self.ended = False
        self.error: ChatError | None = None
        self._first: dict[str, Any] = {}

    def leader(self, candidate: Exchange) -> Exchange:
        """Returns who makes it: the first who has asked."""
        return self._first.setdefault("leader", candidate)  # type: ignore[no-any-return]

    @property
    def next(self) -> _Attempt:
        """The attempt that follows, the same for all who ask."""
        return self._first.setdefault("next", _Attempt())  # type: ignore[no-any-return]

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for, be it that Ctrl-C has torn its thread out of it."""
        leader = self._first.get("leader")
        return self.ended or (leader is not None and leader.ended)


class Login(Generic[T]):
    """What a login gave: a token, or just that it happened. Shared by all threads of a provider.

    The first thread that needs it logs in, the others wait, each with its own deadline and cancel. They share the
    outcome; only when the thread that logged in was itself cancelled or out of time does the next one try.

    There is no lock, which an exception at the wrong moment could leave held: ``dict.setdefault``, which is atomic,
    says who is first. Attempts form a chain, of which ``_attempt`` is a link near the end.

    Args:
        value: what is known without a login, None for nothing.
    """

    def __init__(self, value: T | None = None) -> None:
        self._known = value
        self.reset()
        after_fork(self)

    def reset(self) -> None:
        """Goes back to what was known without a login: in a child process, which logs in by itself."""
        self._value = self._known
        self._attempt = _Attempt()

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
        while self._value is None or self._value is stale:
            while self._attempt.over:
                self._attempt = self._attempt.next
            attempt = self._attempt
            if attempt.leader(exchange) is exchange:
                return self._lead(attempt, exchange, log_in, stale)
            attempt.waiting.append(exchange)
            exchange.wait_until(lambda attempt=attempt: attempt.over)  # type: ignore[misc]
            if attempt.error is not None:
                raise copy.copy(attempt.error) from attempt.error
        return self._value

    def _lead(self, attempt: _Attempt, exchange: Exchange, log_in: Callable[[], T], stale: T | None) -> T:
        try:
            if self._value is None or self._value is stale:  # else another thread has just logged in
                self._value = log_in()
            return self._value
        except ChatError as error:
            if not exchange.interrupted:
                attempt.error = error
            raise
        finally:
            attempt.ended = True
            for waiting in attempt.waiting:
                waiting.wake()
