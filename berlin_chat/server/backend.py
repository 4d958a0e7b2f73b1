"""What answers behind the four protocols of one server, how fast, and who may ask."""

from __future__ import annotations

import errno
import hmac
import logging
from collections.abc import Callable, Generator, Iterator
from inspect import signature
from typing import Any

from ..cancellation import CancelToken
from ..errors import InvalidRequest
from ..provider import Provider
from ..reply import Reply

log = logging.getLogger("berlin_chat.server")

#: What is an argument of a provider's ``stream``, and no option of a protocol: a client must not set it.
OURS = set(signature(Provider.stream).parameters) - {"options"}


class Backend:
    """Shared by all replies of a server, each in its own thread: nothing in it changes but by ``close``.

    Args:
        upstream: what answers: any object with a provider's ``stream``.
        delay: seconds before each piece.
        password: who does not know it is not authorized; None authorizes everybody.
    """

    def __init__(self, *, upstream: Any, delay: float, password: str | None) -> None:
        self.password = password
        self._upstream = upstream
        self._delay = delay
        self._cancel = CancelToken()

    def close(self) -> None:
        """Ends all replies: their waits, and what they ask upstream."""
        self._cancel.cancel()

    def is_authorized(self, password: Any) -> bool:
        """Whether the password is right, where one is needed."""
        if self.password is None:
            return True
        if not isinstance(password, str):
            return False
        # What JSON brings may hold half of a surrogate pair.
        return hmac.compare_digest(password.encode("utf-8", "surrogatepass"), self.password.encode())

    @property
    def model(self) -> str:
        """The model that the upstream answers with unless another is asked for."""
        return str(getattr(self._upstream, "model", None) or getattr(self._upstream, "default_model", "default"))

    def answer(
        self, messages: Any, model: str | None, options: dict[str, Any], stop: CancelToken | None = None
    ) -> Answer:
        """Asks the upstream, and waits for its first piece, so that an error can still be a status.

        Options that the upstream's protocol does not have are left out.

        Args:
            model: None for the upstream's own.
            stop: ends this answer alone when it is cancelled.

        Raises:
            ChatError: the upstream's.
        """
        if clash := OURS & options.keys():
            raise InvalidRequest(f"there is no option {clash.pop()!r}")
        stop = stop or CancelToken()
        if isinstance(self._upstream, Provider):
            known = self._upstream.known_options
            if known is not None and (strange := sorted(options.keys() - known)):
                log.info("left out what %r does not have: %s", self._upstream, ", ".join(map(repr, strange)))
                options = {name: value for name, value in options.items() if name in known}
            options = {**options, "cancel": stop}
        return Answer(self._delayed(lambda: self._upstream.stream(messages, model, **options), stop))

    def _delayed(self, stream: Callable[[], Any], stop: CancelToken) -> Generator[str, None, Any]:
        pieces = None
        self._cancel.watch(stop, stop.cancel)
        try:
            pieces = iter(stream())
            while True:
                if self._delay:
                    stop.wait(self._delay)
                if stop.cancelled:
                    raise ConnectionAbortedError(errno.ECONNABORTED, "the answer was stopped")
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    return end.value
                yield piece
        finally:
            self._cancel.unwatch(stop)
            if close := getattr(pieces, "close", None):  # the upstream may have kept it, so it would go on
                close()


class Answer:
    """The pieces of one answer; iterated once. ``reply`` is the upstream's, where it gave one, at the end."""

    def __init__(self, pieces: Generator[str, None, Any]) -> None:
        self._pieces = pieces
        self.reply: Reply | None = None
        self._first = self._next()

    def __iter__(self) -> Iterator[str]:
        piece = self._first
        while piece is not None:
            yield piece
            piece = self._next()

    def _next(self) -> str | None:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self.reply = end.value if isinstance(end.value, Reply) else None
            return None

    def close(self) -> None:
        """Ends the upstream's answer, however much of it was read."""
        self._pieces.close()
