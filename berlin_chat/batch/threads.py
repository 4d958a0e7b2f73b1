"""A pool of threads that ends at once, and never keeps the process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any

from ..cancellation import Deadline
from ..process import no_thread

#: How long the end waits for threads whose work was cancelled, in seconds.
END_GRACE = 5.0


class Threads(Executor):
    """An executor of daemon threads, for one thread that submits.

    ``ThreadPoolExecutor`` keeps the process until all that was submitted is done. This one does not: what its threads
    have under way is ended with their provider.

    Args:
        most: says how many threads there may be at the moment, at least one. Where there are too many, they end with
            what they have under way.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._work: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._threads: dict[int, threading.Thread] = {}  # by their numbers; one that ends takes itself out

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:  # type: ignore[override]
        """Has it called in one of the threads; there are fewer of them where the system has no more.

        Raises:
            ChatError: there is none at all.
        """
        future: Future[Any] = Future()
        self._work.put((future, function, args))
        if len(self._threads) < (most := self._most()):
            number = next(free for free in range(most) if free not in self._threads)
            thread = threading.Thread(target=self._run, args=(number,), name="berlin_chat", daemon=True)
            self._threads[number] = thread
            try:
                thread.start()
            except RuntimeError as error:
                self._threads.pop(number)
                if not self._threads:
                    future.cancel()
                    raise no_thread(error) from None
        return future

    def _run(self, number: int) -> None:
        while number < self._most() and (work := self._work.get()) is not None:
            future, function, args = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args))
                except BaseException as error:
                    future.set_exception(error)
            del work, future, function, args
        self._threads.pop(number)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads, each behind the work that is there, and waits for them, ``END_GRACE`` at the most."""
        grace = Deadline(END_GRACE)
        threads = list(self._threads.values())
        for _ in threads:
            self._work.put(None)
        for thread in threads:
            # This one, whose garbage the batch may be, and daemons of an interpreter that is ending, never come.
            if thread is not threading.current_thread() and not sys.is_finalizing():
                thread.join(grace.left())
