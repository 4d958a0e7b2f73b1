"""What a child process must not share with its parent, and what ends with the process."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from time import sleep
from typing import Protocol

from .errors import ChatError


class Forkable(Protocol):
    """Has a state that belongs to its process: queues that threads wait at, connections, logins."""

    def reset(self) -> None:
        """Starts afresh."""


class Parting(Protocol):
    """Has something open that a fork must not copy, such as a database with its locks."""

    def before_fork(self, patience: float) -> bool:
        """Closes it, and lets nobody open it again before ``after_fork``; called by the thread that forks.

        Says whether it could do so within so many seconds.
        """

    def after_fork(self) -> None:
        """Lets it be opened again; called by the thread that has forked, in both processes."""


class Ending(Protocol):
    """Has something under way that must not outlive the process."""

    def end(self) -> None:
        """Ends it, within a second."""


# State of the module, for there is one fork and one end a process. Objects stand here only as long as they live; each
# line that changes a set is one call of a built-in function, so that no lock is needed.
_forkable: weakref.WeakSet[Forkable] = weakref.WeakSet()
_parting: weakref.WeakSet[Parting] = weakref.WeakSet()
_ending: weakref.WeakSet[Ending] = weakref.WeakSet()


#: How long a fork waits for a lock before it lets go of those that it has for the first time, in seconds.
FORK_PATIENCE = 0.1
#: Held while a module is imported that is only needed now; a fork waits for that. Else the lock of the import would
#: stay with a thread that the child does not have, and the child would wait for it for ever. Reentrant, for one import
#: leads to the next, and a finalizer or a signal handler may come in the middle of it.
importing = threading.RLock()


def after_fork(one: Forkable) -> None:
    """Has it reset in each child process that a fork makes."""
    _forkable.add(one)


def around_fork(one: Parting) -> None:
    """Has it told before and after each fork."""
    _parting.add(one)


def at_exit(one: Ending) -> None:
    """Has it ended at the end of the process, when all threads but daemons have ended."""
    _ending.add(one)


def no_thread(error: RuntimeError) -> ChatError:
    """Returns the error for a thread that the system does not let this process have."""
    advice = "Ask fewer questions at once, or let the process have more threads"
    return ChatError(f"no thread could be started: {error}", advice=advice)


def _reset_all() -> None:
    for one in list(_forkable):
        one.reset()


def _before_fork() -> None:
    """Takes all locks. Where one is not to be had, it lets go of the others for a moment.

    For whoever has that one may want another: a finalizer in the middle of an import, a signal handler in the middle of
    a read. It waits longer each time, until the busiest have had their turns.
    """
    patience = FORK_PATIENCE
    while True:
        importing.acquire()
        # In one order, for two threads may fork at once.
        if all(one.before_fork(patience) for one in sorted(_parting, key=id)):
            return
        _after_fork()
        sleep(0.001)  # else it may have the lock again before anybody who waits for it
        patience *= 2


def _after_fork() -> None:
    for one in list(_parting):
        one.after_fork()
    importing.release()


def _end_all() -> None:
    for one in list(_ending):
        one.end()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_reset_all)
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
