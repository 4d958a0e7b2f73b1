"""A file's lock, which dies with the process that has it."""

from __future__ import annotations

import errno
import os
import sys
import warnings

from ..errors import InvalidRequest
from ..process import importing

#: What the system says where another one has the lock.
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
#: Where the byte is that is locked on Windows, which lets nobody read one that is: behind any answer.
_FAR = 2**62


def lock(descriptor: int, path: str) -> None:
    """Locks an open file for its one writer, until it is closed or its process ends, however that happens.

    On one machine it excludes other processes, and other threads that open the file. On NFS it excludes other machines
    where the mount has locks (not with ``nolock`` or ``local_lock=flock``), but not the threads of one process, since
    Linux makes a lock of the process there.

    Raises:
        InvalidRequest: another one has it.

    Warns where the file system, or the system, has no locks; then it is for the caller to see to it that there is one
    writer.
    """
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in _TAKEN:
            raise InvalidRequest(
                f"{path} is in use: another batch is writing its answers there. Wait until that one has ended, or"
                " name another file"
            ) from None
        warnings.warn(
            f"{path} cannot be locked ({error.strerror}): let no other batch write to it meanwhile",
            RuntimeWarning,
            stacklevel=2,
        )


if sys.platform == "win32":  # pragma: no cover

    def _lock(descriptor: int) -> None:
        import msvcrt

        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:

    def _lock(descriptor: int) -> None:
        try:
            with importing:
                import fcntl
        except ImportError:  # there are systems below Python that have no locks
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from None
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
