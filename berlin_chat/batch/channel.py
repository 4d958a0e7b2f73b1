"""The way back from chunks in other processes of this machine: answers one by one, turns to ask, and the end.

A socket on loopback. Both ends prove that they know a key, which crosses with the chunk, before anything else is said;
then each message is a pickle. The batch's end of the channel says that it is over by closing it, which a kill does too.
"""

from __future__ import annotations

import hmac
import os
import pickle
import platform
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, NamedTuple

from ..cancellation import SIGNAL_INTERVAL, CancelToken, Deadline
from ..process import after_fork, no_thread
from .answers import Answer
from .rate_limit import RateLimiter, Turn, wait_for

#: How long either end waits for the other's proof, and the end of a batch for the last answers, in seconds.
PROOF_WAIT, LAST_ANSWERS = 10.0, 1.0
#: How many bytes a proof and what it is made for have.
_SIZE = 32
#: What is raised when the other end is gone, or was killed in the middle of a message.
_GONE = (OSError, EOFError, pickle.UnpicklingError)


def machine() -> tuple[str, str]:
    """Returns what tells those apart who do not share a loopback: the machine and, on Linux, the network namespace."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/net")
    return platform.node(), namespace


class Address(NamedTuple):
    """Where a channel is, for those on the same machine who have its key."""

    machine: tuple[str, str]
    port: int
    key: bytes

    def __repr__(self) -> str:
        return f"Address(port={self.port})"


class Channel:
    """The batch's end: a thread takes in what connects, and one each chunk under way. Open from ``open`` to ``close``.

    Everything that is called back is called in these threads.

    Args:
        limiter: says when a question may be sent, for all processes together.
        answered: is given each answer, and the first index of its chunk.
        missing: returns the indices that a chunk still lacks.

    Attributes:
        address: None before it is open, and where loopback cannot be used.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        answered: Callable[[int, Answer], None],
        missing: Callable[[int], frozenset[int]],
    ) -> None:
        self.address: Address | None = None
        self._limiter = limiter
        self._answered = answered
        self._missing = missing
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._links: dict[socket.socket, threading.Thread] = {}
        self._over = False

    def open(self) -> None:
        """Lets chunks connect, which wait until ``listen``."""
        with suppress(OSError):
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            self.address = Address(machine(), self._listener.getsockname()[1], os.urandom(_SIZE))
            after_fork(self)

    def listen(self) -> None:
        """Takes in the chunks that connect. A process that forks should have its children by now."""
        if self._listener is not None and self._acceptor is None:
            acceptor = _thread(self._accept, self._listener)
            try:
                acceptor.start()
            except RuntimeError as error:
                raise no_thread(error) from None
            self._acceptor = acceptor

    def reset(self) -> None:
        """Leaves all that is open to the parent process: in a child that a fork has made."""
        for sock in (self._listener, *self._links):
            if sock is not None:
                with suppress(OSError):
                    socket.close(sock.detach())  # at once, although somebody may have been reading
        self._listener, self._acceptor, self._links = None, None, {}

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while not self._over:
                sock, _ = listener.accept()
                self._links[sock] = thread = _thread(self._serve, sock)
                try:
                    thread.start()
                except RuntimeError:  # there are no more; the chunk is told that it cannot report
                    self._links.pop(sock)
                    sock.close()

    def _serve(self, sock: socket.socket) -> None:
        """Takes what one chunk says, until it closes its end."""
        try:
            with sock, sock.makefile("rb") as file, suppress(*_GONE):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                assert self.address is not None
                if not self._over and _proved(sock, file, self.address.key, b"batch", b"chunk"):
                    chunk = pickle.load(file)
                    _send(sock, self._missing(chunk))
                    while True:
                        kind, *said = pickle.load(file)
                        self._take(sock, chunk, kind, said)
        finally:
            self._links.pop(sock, None)

    def _take(self, sock: socket.socket, chunk: int, kind: str, said: list[Any]) -> None:
        if kind == "answer":
            self._answered(chunk, *said)
        elif kind == "turn":
            number, waited = said
            with suppress(OSError):  # the batch is over, but answers may follow
                _send(sock, (number, self._limiter.turn(waited)))
        elif kind == "refused":
            self._limiter.refused(*said)
        else:  # all is said
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        """Tells all chunks that the batch is over; for any thread, and a signal handler."""
        self._over = True
        for sock in list(self._links):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Ends all chunks, and takes what they have answered by then.

        Those that live need no time for that. One that does not answer is waited for, ``LAST_ANSWERS`` seconds.
        """
        self.end()
        if self._acceptor is not None and self.address is not None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.address.port), PROOF_WAIT):
                _join([self._acceptor])  # which this has woken
        if self._listener is not None:
            self._listener.close()
        _join(self._links.values())
        for sock in list(self._links):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        _join(self._links.values())


def _thread(function: Callable[[socket.socket], None], sock: socket.socket) -> threading.Thread:
    return threading.Thread(target=function, args=(sock,), name="berlin_chat channel", daemon=True)


def _join(threads: Iterable[threading.Thread]) -> None:
    grace = Deadline(LAST_ANSWERS)
    for thread in list(threads):
        # This one, whose garbage the batch may be, and daemons of an interpreter that is ending, never come.
        if thread is not threading.current_thread() and not sys.is_finalizing():
            thread.join(grace.left())


class Link:
    """A chunk's end. One thread follows what the batch says; the others, which ask, may call everything else.

    It is a ``Limiter``, too: the batch says whose turn it is.

    Args:
        chunk: the first index of the chunk.
        stop: is cancelled when the batch is over.

    Attributes:
        missing: what is still to be answered.

    Raises:
        ConnectionError: the batch is over.
    """

    def __init__(self, address: Address, chunk: int, stop: CancelToken) -> None:
        self._stop = stop
        self._lock = threading.Lock()
        self._numbers = count()
        self._waiting: dict[int, SimpleQueue[Turn | None]] = {}
        try:
            self._socket = socket.create_connection(("127.0.0.1", address.port), PROOF_WAIT)
        except OSError:
            raise ConnectionError("the batch is over") from None
        self._file = self._socket.makefile("rb")
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not _proved(self._socket, self._file, address.key, b"chunk", b"batch"):
                raise EOFError
            _send(self._socket, chunk)
            self.missing: frozenset[int] = pickle.load(self._file)
        except _GONE:
            self.close()
            raise ConnectionError("the batch is over") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes this end."""
        self._file.close()
        self._socket.close()

    def follow(self) -> None:
        """Hands out what the batch says, until it is over, or all is said."""
        try:
            with suppress(*_GONE):
                while True:
                    number, turn = pickle.load(self._file)
                    self._waiting.pop(number).put(turn)
        finally:
            self._stop.cancel()

    def answer(self, answer: Answer) -> None:
        """Hands an answer to the batch."""
        self._say("answer", answer)

    def end(self) -> None:
        """Says that no answer follows."""
        self._say("end")

    def wait(self, sleep: Callable[[float], None]) -> None:
        """Waits for the moment to send, by ``sleep``, which raises when the batch is over."""

        def turn(waited: Turn | None) -> Turn | None:
            number, found = next(self._numbers), SimpleQueue[Turn | None]()
            self._waiting[number] = found
            self._say("turn", number, waited)
            while True:
                try:
                    return found.get(timeout=SIGNAL_INTERVAL)
                except Empty:
                    sleep(0)

        wait_for(turn, sleep)

    def refused(self, retry_after: float | None) -> None:
        """Tells the batch of a refusal, and how many seconds the server asked to wait."""
        self._say("refused", retry_after)

    def _say(self, *message: Any) -> None:
        data = pickle.dumps(message)
        with self._lock, suppress(OSError):  # what follows will hear that the batch is over
            self._socket.sendall(data)


def _send(sock: socket.socket, message: Any) -> None:
    sock.sendall(pickle.dumps(message))


def _proved(sock: socket.socket, file: BinaryIO, key: bytes, mine: bytes, theirs: bytes) -> bool:
    """Proves to the other end that this one has the key, and says whether that one has it. No key is sent."""
    sock.settimeout(PROOF_WAIT)
    challenge = os.urandom(_SIZE)
    sock.sendall(challenge)
    sock.sendall(hmac.digest(key, mine + file.read(_SIZE), "sha256"))
    proof = file.read(_SIZE)
    sock.settimeout(None)
    return hmac.compare_digest(proof, hmac.digest(key, theirs + challenge, "sha256"))
