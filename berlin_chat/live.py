"""A reply while it grows, for those who want more of it than its text."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from .cancellation import CancelToken
from .reply import Event, Reply


class LiveReply:
    """A reply under way: an iterator of its pieces of text, and a context manager that ends it.

    It belongs to the thread that reads it; ``cancel`` may be called from any. Made by ``Provider.open``. The network is
    first used when something is read.

    Attributes:
        reply: the whole :class:`Reply` when all has been read, None before.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server, server.provider("openai").open("Hi") as live:
    ...     for piece in live:
    ...         pass
    >>> live.reply.finish_reason, live.text == live.reply
    ('stop', True)
    """

    def __init__(self, parts: Generator[str | Event, None, Reply], token: CancelToken) -> None:
        self.reply: Reply | None = None
        self._parts = parts
        self._token = token
        self._received: list[str] = []

    @property
    def text(self) -> str:
        """All text that has been read so far."""
        return "".join(self._received)

    def events(self) -> Iterator[Event]:
        """Yields all that comes, in its order: text, reasoning, refusals, and tool calls.

        It goes on where the last loop was left. Errors are those of ``Provider.stream``.
        """
        while self.reply is None:
            try:
                part = next(self._parts)
            except StopIteration as end:
                self._token.__exit__()
                self.reply = end.value  # None where it was closed
                return
            except BaseException:
                self._token.__exit__()
                raise
            event = part if isinstance(part, Event) else Event("text", part)
            if event.kind == "text":
                self._received.append(event.text)
            yield event

    def __iter__(self) -> LiveReply:
        return self

    def __next__(self) -> str:
        for event in self.events():
            if event.kind == "text":
                return event.text
        raise StopIteration

    def cancel(self) -> None:
        """Ends the reply, from any thread: whoever reads it gets ``Cancelled``."""
        self._token.cancel()

    def close(self) -> None:
        """Ends the reply and closes its connection; for the thread that reads it. Also done by ``with``."""
        self._parts.close()
        self._token.__exit__()

    def __del__(self) -> None:
        self._token.__exit__()  # the caller's own may live long, and keep nothing of a reply that was left

    def __enter__(self) -> LiveReply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
