"""A file of lines with one writer, who notices what the disk and other programs do to it."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic

from ..errors import InvalidRequest
from ..process import after_fork
from .locks import lock

#: How often what was written is forced to the disk, in seconds: what a power failure can cost. A killed
#: process costs nothing, for each line is handed to the system at once.
SYNC_INTERVAL = 1.0
#: How much is read at a time, and of a line before it is known to be one of ours, in bytes.
READ_SIZE, UNKNOWN = 2**16, 2**20


class Journal:
    """Lines that are appended, and read again by their places. Not safe to share without a lock.

    Where there is no file it is made, for its owner alone (mode 0600). ``locks.lock`` says how far its lock reaches.

    Args:
        path: the file, which is locked until ``close``.

    Raises:
        InvalidRequest: it cannot be opened, or somebody else writes to it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._absolute = os.path.abspath(path)
        try:
            # Unbuffered: no lock of a buffer's may be held while the process forks.
            self._file = open(path, "a+b", buffering=0, opener=_private)  # noqa: SIM115 - close() closes it
        except OSError as error:
            raise InvalidRequest(f"the file cannot be opened: {error}. Name one that can be written") from None
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise InvalidRequest(f"{path} is no regular file: name another one")
            lock(self._file.fileno(), path)
            self._size = self._file.seek(0, os.SEEK_END)
        except BaseException:
            self._file.close()
            raise
        self._synced = monotonic()
        self._lost, self._is_elsewhere = "", False  # why no more lines can be appended; and yet are written
        after_fork(self)

    def reset(self) -> None:
        """Leaves the file to the parent, in a child of a fork, which would keep the lock when the parent is dead."""
        self._file.close()

    def lines(self, beginning: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Yields number, place and content of each line; of a long one that begins otherwise, only a part."""
        place = number = 0
        with open(self._file.fileno(), "rb", READ_SIZE, closefd=False) as file:
            file.seek(0)
            while line := file.readline(UNKNOWN):
                if len(line) == UNKNOWN and line.startswith(beginning):
                    line += file.readline()
                number += 1
                yield number, place, line
                place += len(line)

    def line_at(self, place: int) -> bytes:
        """Returns the line that begins there, without its end."""
        line = b""
        for part in self._parts(place):
            line += part
            if b"\n" in part:
                break
        return line.partition(b"\n")[0]

    def is_empty_from(self, place: int) -> bool:
        """Whether there are only NUL bytes from there on, which a power failure may leave."""
        return all(part == bytes(len(part)) for part in self._parts(place))

    def _parts(self, place: int) -> Iterator[bytes]:
        self._file.seek(place)  # what is written is appended all the same
        while part := self._file.read(READ_SIZE):
            yield part

    def cut(self, place: int) -> None:
        """Takes away what stands from there on."""
        self._file.truncate(place)
        self._size = place

    def append(self, line: bytes) -> int:
        """Appends a line, in one write; returns its place.

        Raises:
            OSError: it is not there. What was appended before is.
        """
        self._look(line)
        place = self._size
        try:
            if (count := self._file.write(line)) != len(line):
                raise OSError(f"only {count} of {len(line)} bytes were written: is the disk full?")
            if monotonic() - self._synced > SYNC_INTERVAL:
                self._sync()
        except OSError:
            with suppress(OSError):
                self.cut(place)  # a torn line must be the last, or no later run could read the file
            raise
        self._size += len(line)
        return place

    def _look(self, line: bytes) -> None:
        """Looks whether it is still the file that was opened, and as it was left; else raises OSError.

        A file that is not in its place any more gets the line all the same, with all that come after the fault.
        """
        status = os.fstat(self._file.fileno())
        if not self._lost and status.st_size != self._size:
            self._lost = (
                f"another program has changed the file while it was in use: it has {status.st_size} bytes, not"
                f" {self._size}. What is left in it counts when you run the batch again"
            )
        elif not self._lost and not self._is_in_place(status):
            # Without a name, the file would go with this process.
            where = "the file that was moved away" if status.st_nlink else self._go_on_in_a_copy()
            self._is_elsewhere = True
            self._lost = (
                "another program has removed or replaced the file while it was in use. All answers so far are in"
                f" {where}: rename it, and run the batch again"
            )
        if self._is_elsewhere:
            self._file.write(line)
        if self._lost:
            raise OSError(self._lost)

    def _is_in_place(self, status: os.stat_result) -> bool:
        try:
            return os.path.samestat(status, os.stat(self._absolute))
        except FileNotFoundError:
            return False

    def _go_on_in_a_copy(self) -> str:
        folder, name = os.path.split(self._absolute)
        descriptor, path = tempfile.mkstemp(".saved", f"{name}.", folder)
        with self._file as old:
            self._file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115 - close() closes it
            old.seek(0)
            shutil.copyfileobj(old, self._file)
        return path

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = monotonic()

    def close(self) -> None:
        """Forces everything to the disk, and closes the file."""
        try:
            self._sync()
        finally:
            self._file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
