"""What a batch has under way, and what has come of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from ..cancellation import SIGNAL_INTERVAL, CancelToken
from ..errors import Cancelled
from .threads import Threads

T = TypeVar("T")


class InFlight(Generic[T]):
    """The work of one batch. Belongs to the thread that runs the loop; ``stop`` and ``arrived`` are shared.

    Args:
        executor: the caller's, which is not shut down; None for threads of its own.
        workers: says how many threads of its own there may be at the moment.
        ahead: how many prompts may be taken and not done with, for each worker.
        cancel: the caller's.
        keep: is given all results, also when the loop is left.

    Attributes:
        stop: cancels all questions of the batch.
        arrived: what has come: results, or futures of results.
        taken: how many prompts were taken and not done with.
    """

    def __init__(
        self,
        executor: Executor | None,
        workers: Callable[[], int],
        ahead: int,
        cancel: CancelToken | None,
        keep: Callable[[list[T]], None] | None = None,
    ) -> None:
        self.stop = CancelToken()
        self.arrived: SimpleQueue[Future[list[T]] | list[T]] = SimpleQueue()
        self.taken = 0
        self._own = Threads(workers) if executor is None else None
        self._executor = executor or self._own
        self._workers = workers
        self._ahead = ahead
        self._cancel = cancel
        self._keep = keep or (lambda results: None)
        self._running: set[Future[list[T]]] = set()

    def __enter__(self) -> InFlight[T]:
        if self._cancel is not None:
            self._cancel.watch(self, self._cancelled)
        return self

    def _cancelled(self) -> None:
        self.stop.cancel()
        self.arrived.put([])  # wakes the loop

    @property
    def has_room(self) -> bool:
        """Whether more prompts may be taken."""
        return self.taken < self._workers() * self._ahead

    @property
    def is_done(self) -> bool:
        """Whether nothing is left that could arrive."""
        return not self._running and self.arrived.empty()

    def submit(self, work: Callable[..., list[T]], *args: Any, prompts: int = 1) -> None:
        """Has some prompts worked on; the results arrive by themselves."""
        assert self._executor is not None
        future = self._executor.submit(work, *args)
        self._running.add(future)
        self.taken += prompts
        future.add_done_callback(self.arrived.put)

    def pass_on(self, result: T) -> None:
        """Lets a result arrive that needs no work."""
        self.taken += 1
        self.arrived.put([result])

    def results(self, seconds: float = SIGNAL_INTERVAL) -> list[T]:
        """Waits for the next results, but only so many seconds. Raises Cancelled if the caller has cancelled."""
        try:
            found = self.arrived.get(timeout=seconds)
        except Empty:
            return []
        if self._cancel is not None and self._cancel.cancelled:
            self.arrived.put(found)  # to be kept
            raise Cancelled("the batch was cancelled")
        if isinstance(found, list):
            return found
        self._running.discard(found)
        self._keep(found.result())
        return found.result()

    def __exit__(self, kind: object = None, error: object = None, traceback: object = None) -> None:
        """Cancels what is in flight, waits for the threads, and keeps what has come: the OSError of that is raised."""
        self.stop.cancel()
        if self._cancel is not None:
            self._cancel.unwatch(self)
        under_way = {future for future in self._running if not future.cancel()}
        if self._own is not None:
            self._own.shutdown()
        elif isinstance(self._executor, ThreadPoolExecutor):
            wait(under_way)  # those of other processes end by themselves
        unkept: OSError | None = None
        while not self.arrived.empty():
            found = self.arrived.get()
            if isinstance(found, Future) and not found.cancelled() and not found.exception():
                try:
                    self._keep(found.result())
                except OSError as failed:
                    unkept = unkept or failed
        if unkept is not None and not isinstance(error, OSError):  # else that one says it
            raise unkept


def sleeper(stop: CancelToken) -> Callable[[float], None]:
    """Returns a function that waits, unless the batch ends; then it raises Cancelled."""

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise Cancelled("the batch was ended")

    return sleep
