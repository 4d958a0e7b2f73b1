"""What a question makes on the server, and deletes there again, however soon its caller leaves."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import sleep
from typing import Generic, TypeVar, cast

from ..cancellation import Deadline, Limits
from ..errors import APIConnectionError, ChatError
from ..process import after_fork, at_exit, no_thread
from .connections import working_for
from .transport import Exchange, Transport

T = TypeVar("T")

#: How long each request of deleting may take, in seconds.
LAST_TIMEOUT = 5.0
#: How long a caller who was cancelled is kept for it, in seconds; it goes on behind them.
LAST_GRACE = 0.1
#: How long the end of the process is kept for all of it, in seconds.
EXIT_GRACE = 0.7
#: How long a thread waits for its next work, in seconds.
IDLE = 1.0


class Workers:
    """Threads that are used again: an idle one takes the next work, and ends when none comes.

    ``run`` may be called from any thread, a signal handler or a finalizer: work is put into a list, from which whoever
    pops it, which is atomic, has it. Each idle thread waits for a bell of its own, which stands in another list: of
    several that wait at one ``SimpleQueue``, one may wait for ever in Python 3.11, whatever its timeout.
    """

    def __init__(self) -> None:
        self._closed = False
        self.reset()
        after_fork(self)

    def reset(self) -> None:
        """Starts afresh: threads do not come along into a child process."""
        self._work: list[tuple[Callable[[], object], Callable[[], object]]] = []
        self._idle: list[SimpleQueue[None]] = []
        self._threads: set[threading.Thread] = set()

    def run(self, work: Callable[[], object], then: Callable[[], object] = bool) -> None:
        """Has it done in another thread, which calls ``then`` when it has done and forgotten it.

        Raises:
            ChatError: the system has no more threads, and it will not be done.
        """
        given = work, then
        self._work.append(given)
        if not self._wake():
            # A daemon: the end of the process waits for it no longer than EXIT_GRACE.
            thread = threading.Thread(target=self._run, name="cleaning up", daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError as error:
                self._threads.discard(thread)
                with contextlib.suppress(ValueError):  # another thread has taken it
                    self._work.remove(given)
                    raise no_thread(error) from None

    def _wake(self) -> bool:
        """Rings the bell of an idle thread; says whether there was one."""
        try:
            bell = self._idle.pop()
        except IndexError:
            return False
        bell.put(None)
        return True

    def _run(self) -> None:
        try:
            while self._do_next() or self._wait():
                pass
        finally:
            self._threads.discard(threading.current_thread())

    def _do_next(self) -> bool:
        try:
            work, then = self._work.pop(0)
        except IndexError:
            return False
        try:
            work()
        finally:
            del work  # it keeps a provider, and so its connections
            then()
        return True

    def _wait(self) -> bool:
        """Waits for the bell; says whether there may be more work."""
        bell: SimpleQueue[None] = SimpleQueue()
        self._idle.append(bell)
        try:
            bell.get(timeout=0 if self._closed else IDLE)
        except Empty:
            try:
                self._idle.remove(bell)
            except ValueError:  # somebody rings it just now
                return True
            return bool(self._work)  # which was put there by who was torn off by Ctrl-C before he rang
        return True

    def close(self, seconds: float) -> None:
        """Ends the threads, each when it has done its work, and waits for them for so many seconds at the most."""
        self._closed = True
        until = Deadline(seconds)
        while self._wake():
            pass
        for thread in self._threads.copy():
            while thread in self._threads and not thread.is_alive() and not until.passed:
                sleep(0.001)  # somebody is about to start it; pragma: no mutate - any short while will do
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(until.left())


class RemoteResources(Generic[T]):
    """All that the questions of one provider have made on the server, and the threads that see to it.

    Args:
        delete: deletes one of them by an exchange of its own.
        stop: ends the server's work in one of them before, likewise; whether it succeeds does not matter.
    """

    def __init__(
        self, transport: Transport, delete: Callable[[Exchange, T], object], stop: Callable[[Exchange, T], object]
    ) -> None:
        self.transport = transport
        self.delete = delete
        self.stop = stop
        self.workers = Workers()
        self.reset()
        after_fork(self)
        at_exit(self)

    def reset(self) -> None:
        """Starts afresh: what the parent process has made is the parent's to delete."""
        self.live: set[RemoteResource[T]] = set()  # what nobody has begun to delete

    def close(self, grace: float = LAST_GRACE) -> None:
        """Deletes all, behind a caller who waits for so many seconds at the most; for a transport that was closed.

        Among them is what Ctrl-C has torn off in the middle of its cleaning up.
        """
        for resource in self.live.copy():
            try:
                self.workers.run(resource.finish)
            except ChatError:
                resource.finish()
        self.workers.close(grace)

    def end(self) -> None:
        """Deletes all, at the end of the process."""
        self.transport.close()
        self.close(EXIT_GRACE)


class RemoteResource(Generic[T]):
    """What one question makes on the server.

    A request that is cut off leaves something behind that nobody knows of. So it is made and deleted by another
    thread, which the question's cancel or deadline does not end. Call ``delete`` in a ``finally`` whose ``try`` begins
    before ``create``. Ctrl-C may come inside that ``finally``, too: then it is deleted when the provider is closed.

    Args:
        create: makes it, by an exchange of its own.

    Attributes:
        at_work: whether the server may be at work in it, which is then stopped first.
    """

    def __init__(self, resources: RemoteResources[T], exchange: Exchange, create: Callable[[Exchange], T]) -> None:
        self._resources = resources
        self._exchange = exchange
        self._create = create
        self.at_work = False
        self._own: Exchange | None = None
        self._made: T | None = None
        self._error: BaseException | None = None
        self._over: SimpleQueue[None] = SimpleQueue()  # of making it
        self._deleted: SimpleQueue[None] = SimpleQueue()

    def create(self) -> T:
        """Returns what was made. May be called again after an error."""
        own = self._own = Exchange(self._resources.transport, Limits(), self._exchange.settings)
        self._made = self._error = None
        self._resources.live.add(self)
        try:
            self._resources.workers.run(lambda: self._make(own))
        except ChatError:
            own.ended = True
            raise
        self._exchange.wait_until(lambda: own.ended)
        self._exchange.url, self._exchange.attempts = own.url, max(self._exchange.attempts, own.attempts)
        if self._error is not None:
            raise self._error
        return cast(T, self._made)

    def _make(self, own: Exchange) -> None:
        try:
            with own:
                try:
                    self._made = self._create(own)
                except BaseException as error:
                    self._error = error
        finally:
            self._over.put(None)
            self._exchange.wake()

    def delete(self) -> None:
        """Deletes what was made, or is still being made. Never fails, but for Ctrl-C.

        A question that was interrupted was promised an end at once: it waits ``LAST_GRACE`` for it, and it goes on
        behind it. A finalizer that runs in the middle of a request of the same thread does not wait at all.
        """
        if self._own is None or self._exchange.is_copy or sys.is_finalizing():
            return  # nothing was made; or it is the parent's; or nobody has ended the generator in time
        self._exchange.leave()
        done: SimpleQueue[None] = SimpleQueue()
        woken = self._exchange.woken

        def tell() -> None:  # it knows nothing of the exchange, which may be forgotten by then
            done.put(None)
            woken.put(None)

        is_free = working_for.current() is None
        try:
            self._resources.workers.run(self.finish, tell)
        except ChatError:
            if is_free:
                self.finish()
                tell()  # else it is left to the end of the provider
        if is_free:
            # For the unknown: this may be a finalizer, and hold any lock. pragma: no mutate - any such time will do
            patience = Deadline(2 * LAST_TIMEOUT)
            with contextlib.suppress(ChatError):
                self._exchange.wait_until(lambda: patience.passed or not done.empty())
            with contextlib.suppress(Empty):
                done.get(timeout=LAST_GRACE)

    def finish(self) -> None:
        """Deletes it, in whatever thread, within ``LAST_TIMEOUT`` a request; once: ``set.remove`` is atomic."""
        try:
            self._resources.live.remove(self)
        except KeyError:  # somebody else is at it
            with contextlib.suppress(Empty):
                self._deleted.put(self._deleted.get(timeout=LAST_TIMEOUT))
            return
        if self._own is not None and not self._own.ended:
            try:
                self._over.get(timeout=LAST_TIMEOUT)
            except Empty:
                self._own.stop()
        if self._made is not None:
            if self.at_work:
                self._last(self._resources.stop, self._made, 1)
            # Twice, for a server may close the kept connection at this very moment.
            self._last(self._resources.delete, self._made, 2)
        self._deleted.put(None)

    def _last(self, step: Callable[[Exchange, T], object], made: T, times: int) -> None:
        settings = self._exchange.settings._replace(retries=0)  # pragma: no mutate - less than none is none, too
        until = Deadline(LAST_TIMEOUT)
        for _ in range(times):
            exchange = Exchange(self._resources.transport, Limits(until.left()), settings)
            try:
                with exchange:
                    step(exchange, made)
            except APIConnectionError:
                continue
            except Exception:  # whatever it is, such as a player of records that has none for it: nobody could be told
                pass
            return
