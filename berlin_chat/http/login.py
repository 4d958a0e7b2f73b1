"""One login for all threads, what a refused one means, and what other processes are told of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from random import uniform
from time import time
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import AuthenticationError, ChatError
from ..process import after_fork
from .retries import FIRST_WAIT, LONGEST_WAIT
from .transport import Exchange

T = TypeVar("T")

NO_ACCOUNT = "no account: give account= and password=, or token=, or set BERLIN_CHAT_ACCOUNT and BERLIN_CHAT_PASSWORD"
#: How often a question logs in anew where other processes share the account.
AMONG_OTHERS = 4
#: A login whose outcome is refused within so many seconds was probably ended by another one.
YOUNG = 60.0
#: What a server says that misses a field of the login, and how it names the field.
_MISSING = re.compile(r"undefined|missing|required|缺少", re.IGNORECASE)
_FIELD = re.compile(r"[\"'`](\w+_\w+)[\"'`]")


def refused_login(said: str, status: int | None) -> ChatError:
    """Returns the error for a login that was refused."""
    advice = missing_field(said) or "Check account and password"
    return AuthenticationError("the login was refused", detail=said, advice=advice, status=status)


def missing_field(said: str) -> str:
    """Returns the advice for a login whose failure names a field that is missing, else ``""``.

    >>> missing_field('WHERE parameter "invite_code" has invalid "undefined" value')
    "The login may want further fields: login_fields={'invite_code': ''}"
    """
    if not _MISSING.search(said):
        return ""
    name = _FIELD.search(said)
    return f"The login may want further fields: login_fields={{'{name[1] if name else 'invite_code'}': ''}}"


class LoggedIn(NamedTuple):
    """What a login gave, and when, so that processes can tell which is the later one."""

    value: Any
    moment: float

    def __repr__(self) -> str:
        return f"LoggedIn(moment={self.moment})"


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
        alone: whether the server lets each login end the one before. Others may then log in as well, so that the next
            login waits for a random time, which is longer the sooner the last one was ended.

    Attributes:
        chances: how often a question logs in anew: once, but more often where other processes surely do so, too.
    """

    def __init__(self, value: T | None = None, alone: bool = False) -> None:
        self._known = LoggedIn(value, 0.0)
        self._alone = alone
        self.reset()
        after_fork(self)

    def reset(self) -> None:
        """Goes back to what was known without a login: in a child process, which logs in by itself."""
        self._last = self._known
        self._attempt = _Attempt()
        self.chances = 1
        self._ended = 0  # how many logins in turn were ended while they were young

    @property
    def value(self) -> T | None:
        """What the last login gave, None before the first."""
        return self._last.value  # type: ignore[no-any-return]

    def hand_down(self) -> LoggedIn | None:
        """Returns what another process needs to go on with the last login, None before the first."""
        return self._last if self._last.moment else None

    def take_up(self, handed: LoggedIn | None) -> None:
        """Goes on with another process's login, if it is later than the last one here."""
        if handed is not None and handed.moment > self._last.moment:
            self._last = handed

    def get(self, exchange: Exchange, log_in: Callable[[], T], stale: T | None = None) -> T:
        """Returns what a login gave, after logging in where there is none yet.

        Args:
            exchange: waits for another thread's login, and is interrupted in it.
            log_in: logs in, in this thread.
            stale: what an earlier call returned and the server no longer takes.

        Raises:
            ChatError: the login failed, or the exchange was interrupted.
        """
        while self.value is None or self.value is stale:
            while self._attempt.over:
                self._attempt = self._attempt.next
            attempt = self._attempt
            if attempt.leader(exchange) is exchange:
                return self._lead(attempt, exchange, log_in, stale)
            attempt.waiting.append(exchange)
            exchange.wait_until(lambda attempt=attempt: attempt.over)  # type: ignore[misc]
            if attempt.error is not None:
                raise copy.copy(attempt.error) from attempt.error
        return self.value

    def _lead(self, attempt: _Attempt, exchange: Exchange, log_in: Callable[[], T], stale: T | None) -> T:
        try:
            if stale is not None and self.value is stale:
                self._give_way(exchange)
            if self.value is None or self.value is stale:  # else another thread has just logged in
                self._last = LoggedIn(log_in(), time())
            return self.value  # type: ignore[return-value]
        except ChatError as error:
            if not exchange.interrupted:
                attempt.error = error
            raise
        finally:
            attempt.ended = True
            for waiting in attempt.waiting:
                waiting.wake()

    def _give_way(self, exchange: Exchange) -> None:
        """Waits for a random time where another login may have ended the last one, lest the two go on like that."""
        if self._alone:
            # pragma: no mutate - nobody meets the very moment
            self._ended = self._ended + 1 if time() - self._last.moment < YOUNG else 0
            exchange.sleep(uniform(0, min(FIRST_WAIT * 2**self._ended, LONGEST_WAIT)))
