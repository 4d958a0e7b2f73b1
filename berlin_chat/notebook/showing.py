"""``show``: what a provider streams becomes an output that grows."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any, overload

from ..errors import ChatError, tell_in_one_line
from ..live import LiveReply
from ..reply import Reply
from .drawing import Canvas, Page, notebook
from .growing import Growing


class Stopped(KeyboardInterrupt):
    """The stop button, or Ctrl-C. A notebook says so in one line.

    Attributes:
        reply: what came before: what ``show`` would have returned.
    """

    def __init__(self, message: str, reply: Any) -> None:
        super().__init__(message)
        self.reply = reply
        tell_in_one_line(self, message)


@overload
def show(pieces: Iterable[tuple[int, str | ChatError]]) -> list[Any]: ...
@overload
def show(pieces: Iterable[str]) -> Reply: ...
def show(pieces: Iterable[Any]) -> Any:
    """Shows a reply while it grows, as Markdown in one place of a notebook; returns the whole :class:`Reply`.

    In a notebook it is drawn at most 20 times a second, and a long one less often; the end is always drawn. HTML in a
    reply is shown as text. Elsewhere each piece is printed as soon as it has come.

    Args:
        pieces: what ``stream`` or ``open`` of a provider or a conversation returned, a text, or any pieces of one. What
            ``stream_many`` returned becomes a grid of replies side by side; then a list of replies is returned, in the
            order of the prompts, with an error in the place of each that has failed.

    Raises:
        Stopped: the stop button, or Ctrl-C, has ended the reply. It is a ``KeyboardInterrupt``; what came before stays
            shown, and is its ``reply``.
        ChatError: those of ``stream``. What came before stays shown.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server:
    ...     reply = show(server.provider("openai").stream("Hi"))
    This is the echo of berlin_chat's own server: no model is behind it. You said: Hi
    >>> reply.finish_reason
    'stop'
    """
    source = _Source(pieces)
    growing = Growing()
    drawing = Page(growing.news, growing.rest) if notebook() is None else Canvas(growing.content)
    try:
        with drawing, growing, source:
            for part in source:
                growing.add(part)
                drawing.changed()
    except KeyboardInterrupt:
        said = "Stopped. The text so far stands above, and is the .reply of this exception."
        raise Stopped(said, growing.result(None)) from None
    return growing.result(source.whole)


class _Source:
    """What parts of replies come from; it is ended when this is left.

    Attributes:
        whole: what it returned at its end, None before.
    """

    def __init__(self, pieces: Any) -> None:
        self.whole: Any = None
        self._pieces = pieces

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._pieces, LiveReply):
            yield from self._pieces.events()
            self.whole = self._pieces.reply
        elif isinstance(self._pieces, str):
            yield self._pieces
            self.whole = self._pieces
        else:
            self.whole = yield from self._pieces

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._pieces, (Generator, LiveReply)):
            self._pieces.close()
