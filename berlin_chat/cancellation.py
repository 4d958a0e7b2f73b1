"""Ending questions: a token that another thread cancels, a deadline, and waits that both of them end."""

from __future__ import annotations

import os
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NamedTuple, Protocol

from .errors import APITimeoutError, Cancelled, ChatError

#: How often a wait looks for Ctrl-C, in seconds: one that comes as a wait begins does not end it.
SIGNAL_INTERVAL = 0.1


class CancelToken:
    """Ends questions from another thread.

    Give it to any number of questions, in any threads, and call ``cancel()`` from whichever thread, or from a signal
    handler: a blocked read ends at once, its connection is closed, and each loop gets ``Cancelled``. A question that
    is asked with a cancelled token gets it at the first piece.

    All methods may be called from any thread, and inside of each other. There is no lock, for one would stop a signal
    handler that comes while it is held: the flag is set once and never cleared, and the callbacks are taken out of a
    dict one by one, each of them by one caller only (``dict.popitem`` is atomic). A callback that is added while
    the token is being cancelled may be called twice.

    Args:
        parent: another token, whose cancel is this one's too. As a context manager, the child leaves its
            parent at the end of its ``with``.

    >>> token = CancelToken()
    >>> with CancelToken(token) as child:
    ...     token.cancel()
    ...     child.cancelled
    True
    """

    def __init__(self, parent: CancelToken | None = None) -> None:
        self._cancelled = False
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._parent = parent
        if parent is not None:
            parent.watch(self, self.cancel)

    def __repr__(self) -> str:
        return f"<CancelToken {'cancelled' if self.cancelled else 'not cancelled'}>"

    def __enter__(self) -> CancelToken:
        return self

    def __exit__(self, *_: object) -> None:
        if self._parent is not None:
            self._parent.unwatch(self)

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel()`` has been called."""
        return self._cancelled

    def cancel(self) -> None:
        """Ends all questions that carry the token. A second call does nothing."""
        self._cancelled = True
        while self._callbacks:
            try:
                _, callback = self._callbacks.popitem()
            except KeyError:  # somebody else has taken the last one
                return
            callback()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits so many seconds, or until ``cancel()``; returns whether it has been called."""
        woken: SimpleQueue[None] = SimpleQueue()
        self.watch(woken, lambda: woken.put(None))
        try:
            woken.get(timeout=seconds)
        except Empty:
            pass
        finally:
            self.unwatch(woken)
        return self._cancelled

    def watch(self, key: object, callback: Callable[[], None]) -> None:
        """Calls back at ``cancel()``, in its thread; at once if it has been called already."""
        self._callbacks[key] = callback
        if self._cancelled:
            self.cancel()

    def unwatch(self, key: object) -> None:
        """Takes a callback back."""
        self._callbacks.pop(key, None)


class Deadline:
    """A moment on the clock by which something must be done. It never changes, so threads may share it.

    Args:
        seconds: from now; None for a deadline that never passes.

    >>> Deadline(None).left(), Deadline(None).left(5), Deadline(60).left(5), Deadline(60).passed
    (None, 5, 5, False)
    """

    __slots__ = ("_due", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._due = None if seconds is None else monotonic() + seconds

    def left(self, most: float | None = None) -> float | None:
        """Returns the seconds until it passes, but ``most`` at the most; None for no limit."""
        if self._due is None:
            return most
        left = max(self._due - monotonic(), 0.0)
        return left if most is None else min(left, most)

    def limit(self, sock: Any, timeout: float | None) -> None:
        """Lets a socket's next operation wait for ``timeout`` seconds at the most, and not beyond this moment.

        Raises:
            TimeoutError: it has come.
        """
        if self.passed:
            raise TimeoutError("the deadline has passed")
        left = self.left(timeout)
        sock.settimeout(None if left is None else left or 0.001)  # 0 would mean not to wait at all

    @property
    def passed(self) -> bool:
        """Whether the moment has come."""
        return self._due is not None and monotonic() >= self._due


class Limiter(Protocol):
    """Says when the next question may be sent; shared by those who must not be faster together."""

    def wait(self, sleep: Callable[[float], None]) -> None:
        """Waits for the moment to send, by ``sleep``."""

    def refused(self, retry_after: float | None) -> None:
        """Is told of a 429, and of the seconds that the server asked to wait."""


class Limits(NamedTuple):
    """What a question carries on its way: how many seconds it has, who may cancel it, and how fast it may be asked."""

    seconds: float | None = None
    cancel: CancelToken | None = None
    limiter: Limiter | None = None


class Stoppable:
    """Something under way in one thread, which a token, a deadline or another thread can stop.

    ``stop`` and ``wake`` may be called from any thread, and from a signal handler at any moment.

    Attributes:
        deadline: by when everything must be done, counted from now; None for no limit.
        limits: what was given.
        woken: what ``wait_until`` waits at.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.deadline = None if limits.seconds is None else Deadline(limits.seconds)
        self.woken: SimpleQueue[None] = SimpleQueue()
        self._stopped = False
        self._process = os.getpid()

    @property
    def is_copy(self) -> bool:
        """Whether a fork has made it of one of the parent process, to which all belongs that was opened."""
        return os.getpid() != self._process

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped, or its deadline has passed."""
        return self._stopped or (self.deadline is not None and self.deadline.passed)

    def stop(self) -> None:
        """Ends what blocks, from any thread; ``check`` then raises Cancelled."""
        if not self.is_copy:
            self._stopped = True
            self._end_blocking()
            self.woken.put(None)

    def leave_to_parent(self) -> None:
        """Lets ``check`` raise Cancelled from now on: in the child of a fork, which would read what is the parent's."""
        self._stopped = True

    def _end_blocking(self) -> None:
        """Ends what blocks beside ``wait_until``."""

    def wake(self) -> None:
        """Makes ``wait_until`` look again; for any thread."""
        self.woken.put(None)

    def check(self) -> None:
        """Raises Cancelled or APITimeoutError if it was stopped or its deadline has passed."""
        if self._stopped:
            raise Cancelled("the reply is the parent process's" if self.is_copy else "the question was cancelled")
        if self.deadline is not None and self.deadline.passed:
            raise APITimeoutError(f"no whole reply within the deadline of {self.deadline.seconds} s")

    def wait_until(self, happened: Callable[[], bool], at: Deadline | None = None) -> None:
        """Waits for what another thread does, which then calls ``wake``. Raises what ``check`` does.

        Args:
            at: when to look again although nobody calls.
        """
        while not happened():
            self.check()
            seconds = SIGNAL_INTERVAL if at is None else at.left(SIGNAL_INTERVAL)
            try:
                self.woken.get(timeout=seconds if self.deadline is None else self.deadline.left(seconds))
            except Empty:
                pass
        self.check()

    def sleep(self, seconds: float, reason: ChatError | None = None) -> None:
        """Waits so long. Raises what ``check`` does, with the reason of the wait as its cause."""
        pause = Deadline(seconds)
        try:
            self.wait_until(lambda: pause.passed, pause)
        except ChatError as interrupted:
            raise interrupted from reason
