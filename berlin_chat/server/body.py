"""The body of a request, read to its end: where that fails, it is the client's fault, and is told as such."""

from __future__ import annotations

import errno
import logging
from typing import Any

from cheroot.errors import MaxSizeExceeded

from .faults import Refused

log = logging.getLogger("berlin_chat.server")


class Body:
    """``wsgi.input``, of a known length or in chunks; for the thread of its request.

    Every fault is logged in one line. It ends the connection: where a body has no end, the next request has no
    beginning.

    Args:
        request: cheroot's ``HTTPRequest``. Its connection's timeout holds between two reads.
    """

    def __init__(self, request: Any) -> None:
        self._request = request
        request.rfile.rfile = _Connection(request.rfile.rfile)

    def read(self) -> bytes:
        """Returns the whole body, and reads what follows it up to the next request.

        Raises:
            Refused: it did not arrive in time, ended too early, was framed wrongly, or is too large.
            ConnectionAbortedError: the connection broke.
        """
        try:
            body: bytes = self._request.rfile.read()
            if self._request.chunked_read:
                for _ in self._request.rfile.read_trailer_lines():
                    pass
        except TimeoutError:
            raise self._refused(408, "the body of the request did not arrive in time") from None
        except EOFError:  # nobody is likely to read the answer: most clients that stop sending are gone
            raise self._refused(408, "the body of the request ended too early", logging.DEBUG) from None
        except ValueError:
            raise self._refused(400, "the body of the request has a wrong length, or wrong chunks") from None
        except (MaxSizeExceeded, OSError) as error:
            # cheroot's OSError for a body that is too large has no number; those of the system do.
            if getattr(error, "errno", None) is None:
                raise self._refused(413, "the body of the request is too large") from None
            self._failed(f"the client went away in the middle of a request: {error}", logging.DEBUG)
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from None
        return body

    def _refused(self, status: int, message: str, level: int = logging.WARNING) -> Refused:
        self._failed(f"{message}: answered {status}", level)
        return Refused(status, message)

    def _failed(self, message: str, level: int) -> None:
        self._request.close_connection = True
        method, path = str(self._request.method, "latin-1"), str(self._request.path, "latin-1")
        log.log(level, "%s %r: %s", method, path, message)  # a path may hold line ends


class _Connection:
    """What a body is read from. Cheroot's readers would take the connection's end for the body's."""

    def __init__(self, rfile: Any) -> None:
        self._rfile = rfile

    def read(self, size: int) -> bytes:
        if size < 0:
            raise ValueError("a length cannot be negative")
        data: bytes = self._rfile.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def readline(self) -> bytes:
        line: bytes = self._rfile.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line
