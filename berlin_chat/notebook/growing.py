"""Replies while they grow, as a notebook shows them."""

from __future__ import annotations

import html
import os
from typing import Any

from ..errors import ChatError
from ..reply import Event, Reply
from ..sanitizer import harmless
from .drawing import notebook

#: What stands where nothing has come yet.
NOTHING_YET = "…"
#: How much of the model's thoughts is shown while there is nothing else, in characters.
THOUGHTS = 400
#: Lets a grid have as many columns as fit.
_GRID = "display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15em, 100%), 1fr)); gap: 0.6em"
_CELL = "border: 1px solid #8886; border-radius: 4px; padding: 0.4em 0.7em; overflow-wrap: anywhere"
_NAME = "opacity: 0.6; font-size: 85%"
_TEXT = "white-space: pre-wrap"
_FAILED = "color: #c62828"


class Growing:
    """A reply, or several in a grid if its first part is one of several.

    Until it is left, something stands for what has not come yet. ``content`` may be called by any thread, all else
    by the one that reads the replies.
    """

    def __init__(self) -> None:
        self._replies: OneReply | Grid = OneReply()
        self._waits = True

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self._waits = False

    def add(self, part: Any) -> None:
        """Takes what has come: a piece of text, an event, or both of one reply's number and its piece or error."""
        if type(part) is tuple and isinstance(self._replies, OneReply):
            self._replies = Grid()
        self._replies.add(part)

    def news(self) -> str:
        """What is to be printed of the part that has just come."""
        return self._replies.news()

    def rest(self) -> str:
        """What is to be printed at the end."""
        return self._replies.rest()

    def content(self) -> dict[str, str]:
        """All that is to be shown, by MIME types."""
        return self._replies.content(NOTHING_YET if self._waits else "")

    def result(self, whole: Any) -> Any:
        """What came in the end, as one that has been shown in this cell."""
        shown = self._replies.result(whole)
        shown.cell = _this_cell()
        return shown


class OneReply:
    """One reply."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._thoughts: list[str] = []
        self._last = Event("text", "\n")

    def add(self, part: str | Event) -> None:
        self._last = part if isinstance(part, Event) else Event("text", part)
        kinds = {"text": self._text, "refusal": self._refusal, "reasoning": self._thoughts}
        if self._last.kind in kinds:
            kinds[self._last.kind].append(self._last.text)

    def news(self) -> str:
        return self._last.text if self._last.kind in ("text", "refusal") else ""

    def rest(self) -> str:
        *_, last = "\n", *self._text[-1:], *self._refusal[-1:]
        return "" if last.endswith("\n") else "\n"

    def content(self, nothing: str) -> dict[str, str]:
        # Markdown, or the last thoughts where there is no text yet.
        text = "".join(self._text + self._refusal)
        if text or not self._thoughts:
            return {"text/markdown": harmless(text) or nothing, "text/plain": text or nothing}
        thoughts = " ".join("".join(self._thoughts).split())
        shown = thoughts if len(thoughts) <= THOUGHTS else f"…{thoughts[-THOUGHTS:]}"
        quoted = f'<span style="opacity: 0.6">{html.escape(shown)}</span>'
        return {"text/html": quoted, "text/plain": shown}

    def result(self, whole: Any) -> ShownReply:
        reply = whole if isinstance(whole, Reply) else Reply("".join(self._text))
        return ShownReply(reply, **{name: fact for name, fact in vars(reply).items() if name != "cell"})


class Grid:
    """Several replies side by side, each with its number, in HTML in which they are nothing but text."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._errors: dict[int, ChatError] = {}

    def add(self, part: tuple[int, str | ChatError]) -> None:
        index, piece = part
        text = self._texts.setdefault(index, [])
        if isinstance(piece, ChatError):
            self._errors[index] = piece
        else:
            text.append(piece)

    def news(self) -> str:
        return ""  # for they come mixed

    def rest(self) -> str:
        return self.content()["text/plain"] + "\n"

    def content(self, nothing: str = "") -> dict[str, str]:
        cells, plain = [], []
        for index, parts in sorted(dict(self._texts).items()):
            text = "".join(parts)
            error = self._errors.get(index)
            failed = "" if error is None else f"{type(error).__name__}: {error}"
            body = f'<div style="{_TEXT}">{html.escape(text)}</div><div style="{_FAILED}">{html.escape(failed)}</div>'
            cells.append(f'<div style="{_CELL}"><div style="{_NAME}">{index}</div>{body}</div>')
            plain.append(f"{index}: " + "\n".join(filter(None, (text, failed))))
        shown = f'<div style="{_GRID}">{"".join(cells)}</div>' if cells else nothing
        return {"text/html": shown, "text/plain": "\n\n".join(plain) or nothing}

    def result(self, whole: Any) -> ShownReplies:
        return ShownReplies(
            self._errors.get(index) or Reply("".join(parts)) for index, parts in sorted(self._texts.items())
        )


class _Shown:
    """Is not shown a second time where the cell ends with it."""

    cell: tuple[int, int] | None = None

    def _ipython_display_(self) -> None:
        if self.cell is None or self.cell != _this_cell():
            raise NotImplementedError  # IPython then shows it as it always does


class ShownReply(_Shown, Reply):
    """A :class:`~berlin_chat.Reply` that has been shown."""


class ShownReplies(_Shown, list[Any]):
    """A list of replies that have been shown."""


def _this_cell() -> tuple[int, int] | None:
    shell = notebook()
    return None if shell is None else (os.getpid(), shell.execution_count)
