"""A pool of threads that ends at once, and never keeps the process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any

from ..cancellation import Deadline

#: How long the end waits for threads whose work was cancelled, in seconds.
END_GRACE = 5.0


class Threads(Executor):
    """An executor of daemon threads, for one thread that submits.

    ``ThreadPoolExecutor`` keeps the process until all that was submitted is done. This one does not: what its threads
    have under way is ended with their provider.

    Args:
        most: how many threads there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._work: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:  # type: ignore[override]
        """Has it called in one of the threads."""
        future: Future[Any] = Future()
        self._work.put((future, function, args))
        if len(self._threads) < self._most:
            self._threads.append(threading.Thread(target=self._run, name="berlin_chat", daemon=True))
            self._threads[-1].start()
        return future

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, function, args = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args))
                except BaseException as error:
                    future.set_exception(error)
            del work, future, function, args

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads, each behind the work that is there, and waits for them, ``END_GRACE`` at the most."""
        grace = Deadline(END_GRACE)
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            # This one, whose garbage the batch may be, and daemons of an interpreter that is ending, never come.
            if thread is not threading.current_thread() and not sys.is_finalizing():
                thread.join(grace.left())
