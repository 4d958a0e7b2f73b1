"""The file of a history: one connection that threads take turns at, and that no fork copies."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

from ..errors import HistoryError, InvalidRequest
from ..process import around_fork, importing
from . import migrations

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")

#: How long to wait before a lock is tried again where SQLite does not wait by itself, in seconds.
_PAUSE = 0.01


class Database:
    """An SQLite file in WAL mode, for its owner alone (mode 0600).

    All threads share one connection, guarded by a lock: SQLite lets one write at a time anyway, and a thread that ends
    leaves nothing open. Processes wait for each other by SQLite's own locks. The connection is closed before a fork,
    and opened again by whoever next needs it: with a copy of it, the child would believe that it holds the parent's
    locks.

    Args:
        path: the file, which is made where there is none.
        timeout: how many seconds to wait for others who write.

    Raises:
        InvalidRequest: the file cannot be opened, or is something else.
        HistoryError: another program has locked it.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        # Reentrant, for a finalizer or a signal handler may come in the middle of anything.
        self._lock = threading.RLock()
        self._take_backs: list[Callable[[], None]] = []
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._forking: int | None = None  # the thread that holds the lock for a fork
        around_fork(self)
        with importing:
            import sqlite3  # noqa: F401 - what is used below is then there
        with self.reading():
            pass

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Gives the connection to this thread.

        Raises:
            HistoryError: it cannot be used.
            InvalidRequest: it was closed.
        """
        import sqlite3

        with self._lock:
            if self._closed:
                raise InvalidRequest("the history was closed: make a new one")
            if self._connection is None:
                self._connection = self._opened()
            try:
                yield self._connection
            except (sqlite3.Error, UnicodeError, OverflowError) as error:  # or what no file of SQLite's can hold
                raise self._told(error) from error

    def write(
        self,
        work: Callable[[sqlite3.Connection], T],
        take_back: Callable[[], None] = lambda: None,
        wait: bool = True,
    ) -> T:
        """Does the work in one transaction, and returns what it does; where that fails, calls ``take_back``.

        It waits for other processes that write, unless it is told not to.

        A finalizer or a signal handler may come in the middle of a write of its own thread: its work belongs to the
        same transaction then.
        """
        import sqlite3

        with self.reading() as connection:
            if connection.in_transaction and self._is_called_from_within():
                self._take_backs.append(take_back)
                return work(connection)
            if connection.in_transaction:  # Ctrl-C has torn off what would have ended it
                connection.execute("ROLLBACK")
            self._take_backs = [take_back]
            connection.execute(f"PRAGMA busy_timeout = {round(self.timeout * 1000) if wait else 0}")
            try:
                connection.execute("BEGIN IMMEDIATE")
                result = work(connection)
                connection.execute("COMMIT")
                return result
            except BaseException as error:
                # Behind a COMMIT that has come about, Ctrl-C takes nothing back.
                if connection.in_transaction or isinstance(error, sqlite3.Error):
                    for one in self._take_backs:
                        one()
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _is_called_from_within(self) -> bool:
        """Whether this thread is in the middle of another ``write``."""
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code is Database.write.__code__ and frame.f_locals["self"] is self:
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False

    def close(self) -> None:
        """Closes the file, when the thread that uses it has finished."""
        with self._lock:
            self._closed = True
            self._close()

    def before_fork(self, patience: float) -> bool:
        """Closes the connection, and keeps the lock; says whether it was to be had within so many seconds."""
        if not self._lock.acquire(timeout=patience):
            return False
        self._forking = threading.get_ident()
        self._close()
        return True

    def after_fork(self) -> None:
        """Gives the lock back, in the parent and in the child."""
        if self._forking == threading.get_ident():
            self._forking = None
            self._lock.release()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened(self) -> sqlite3.Connection:
        import sqlite3

        try:
            # SQLite would make a file that others may read; those beside it get the mode of this one. One that is
            # there must not be opened here: to close it would take away the locks that this process has on it.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            connection = sqlite3.connect(
                self.path, timeout=self.timeout, isolation_level=None, check_same_thread=False, cached_statements=64
            )
        except (OSError, sqlite3.Error) as error:
            raise self._cannot_be_opened(error) from None
        try:
            self._prepare(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError) and "readonly" not in str(error):
                raise self._told(error) from error
            if isinstance(error, sqlite3.OperationalError):
                raise InvalidRequest(
                    f"{self.path} cannot be opened: {error}. Name a file that can be written"
                ) from error
            if isinstance(error, sqlite3.DatabaseError):
                raise InvalidRequest(f"{self.path} is no history: {error}. Name another file") from error
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        migrations.check(connection, self.path)  # before anything of another program's is changed
        self._switch_to_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")  # a power failure may cost the last turns, never the file
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        if not migrations.is_current(connection):
            connection.execute("BEGIN IMMEDIATE")
            migrations.migrate(connection, self.path)
            connection.execute("COMMIT")

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        """Waits as long as for any lock: SQLite does not, where two connections do this at once."""
        import sqlite3

        end = monotonic() + self.timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or monotonic() > end:
                    raise
                sleep(_PAUSE)

    def _cannot_be_opened(self, error: Exception) -> InvalidRequest:
        return InvalidRequest(f"{self.path} cannot be opened: {error}. Name a file that can be written")

    def _told(self, error: Exception) -> HistoryError:
        """The one error for what can go wrong with the file."""
        if "locked" in str(error) or "busy" in str(error):
            said = f"another program has kept {self.path} locked for {self.timeout} s"
            return HistoryError(said, advice="Wait until it has ended, or give History a longer timeout=")
        return HistoryError(f"{self.path} cannot be used: {error}", advice=_ADVICE.get(str(error), ""))


#: What to do about what SQLite says.
_ADVICE = {
    "database or disk is full": "Make room on the disk",
    "attempt to write a readonly database": "Let the file and its folder be written",
    "unable to open database file": "Let the file and its folder be written",
}
