"""Markdown on a terminal while it arrives: what is finished is printed once, and only the last block is drawn again."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from itertools import takewhile
from time import monotonic
from typing import Any, ClassVar

from .options import NEEDED
from .words import printable

try:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import CodeBlock, Heading, Markdown
    from rich.syntax import Syntax
    from rich.theme import Theme
except ImportError:
    raise ImportError(NEEDED) from None

#: Seconds between two drawings, and between their ends and the next as a multiple of what the last one took.
_PACE, _REST = 0.05, 4
#: A terminal that knows it shows all that stands between these at once; in between, a line too long is not wrapped.
_BEGIN, _END = "\x1b[?2026h\x1b[?7l", "\x1b[?7h\x1b[?2026l"
#: Words of code without a background, which would be black on a white terminal.
_THEME = {"markdown.code": "bold cyan"}
_ERASE = "\x1b[2K"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_STYLES = re.compile(r"\x1b\[[0-9;]*m")
#: Without what makes text vanish: HTML, the places of links, and images.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable(["reference", "image"])


class _PlainHeading(Heading):
    """A heading without a frame around it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _PlainCode(CodeBlock):
    """Code in the terminal's own colours, that can be copied as it stands."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme="ansi_dark", background_color="default", word_wrap=True)


class _Block(Markdown):
    """One block, from its tokens."""

    elements: ClassVar[dict[str, Any]] = {
        **Markdown.elements,
        "heading_open": _PlainHeading,
        "fence": _PlainCode,
        "code_block": _PlainCode,
    }

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = tokens


def blocks(source: str) -> Iterator[list[Token]]:
    """Yields the tokens of each block at the top level."""
    block: list[Token] = []
    for token in _PARSER.parse(source):
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def code_blocks(source: str) -> list[str]:
    """Returns the code in the fenced blocks, wherever they stand."""
    return [token.content for token in _PARSER.parse(source) if token.type == "fence"]


class _Lines:
    """The last lines on the terminal, of which only those are written again that have changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: list[str] = []
        self._width = console.width

    def draw(self, lines: list[str]) -> None:
        """Replaces what is drawn. What has left the screen at its top stays as it was."""
        if self._console.width != self._width and self._drawn:  # they are wrapped now, nobody knows where
            self.leave()
        self._width = self._console.width
        before, last = self._drawn, len(self._drawn) - 1
        both = zip(before, lines, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        if same == len(before) == len(lines):
            return
        start = min(max(same, len(before) - self._console.height), len(lines) - 1)
        # Each line is erased by itself: tmux keeps a screen that is erased as a whole among what has left it.
        up = f"\x1b[{last - start}A" if last > start else ""
        down = "\n" if before and start > last else "\r"
        left_over = max(len(before) - len(lines), 0)
        rest = f"\n{_ERASE}" * left_over + (f"\x1b[{left_over}A" if left_over else "")
        self._write(_BEGIN + up + down + "\n".join(_ERASE + line for line in lines[start:]) + rest + _END)
        self._drawn = lines

    def leave(self) -> None:
        """Leaves what is drawn as it is, and goes to the next line."""
        if self._drawn:
            self._write("\n")
        self._drawn = []

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


class MarkdownView:
    """Shows a reply on a terminal as it grows.

    One thread adds to it. What comes too soon after a drawing is drawn by a timer's thread; ``_lock`` guards all.

    Args:
        console: the terminal.
    """

    def __init__(self, console: Console) -> None:
        console.push_theme(Theme(_THEME))
        self._console = console
        self._lines = _Lines(console)
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._next = 0.0  # when it may be drawn again
        self._source = ""  # what is not finished
        self._held = ""  # half of a line end
        self._begun = False  # whether there is something above, from which a block is set apart
        self._thinking = False

    def __enter__(self) -> MarkdownView:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._end_thinking()
            self._source += "\n" if self._held else ""
            self._draw(last=True)

    def add(self, text: str) -> None:
        """Shows more of the text."""
        with self._lock:
            self._end_thinking()
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""
            self._source += printable(text.removesuffix(self._held) if self._held else text)
            left = self._next - monotonic()
            if left <= 0:
                self._draw()
            elif self._timer is None:
                self._timer = threading.Timer(left, self._draw_late)
                self._timer.daemon = True
                self._timer.start()

    def think(self, text: str) -> None:
        """Shows more of the reasoning, dimmed and as it is."""
        with self._lock:
            if not self._thinking:
                self._draw(last=True)
                self._write(("\n" if self._begun else "") + _DIM)
                self._thinking = self._begun = True
            self._write(printable(text))

    def _end_thinking(self) -> None:
        if self._thinking:
            self._write(f"{_PLAIN}\n")
            self._thinking = False

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()

    def _draw_late(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer = None
                try:
                    self._draw()
                except OSError:
                    pass  # the terminal is gone: the thread that adds meets that too

    def _draw(self, last: bool = False) -> None:
        """Prints what is finished, and draws the rest."""
        begun = monotonic()
        growing = list(blocks(self._source))
        count = len(growing) if last else self._finished(growing)
        for block in growing[:count]:
            self._lines.draw(self._rendered(block, self._begun))
            self._lines.leave()
            self._begun = True
        del growing[:count]
        if count:
            line = (growing[0][0].map or [0])[0] if growing else 0
            self._source = self._source.split("\n", line)[line] if growing else ""
        if growing:
            lines = [line for n, block in enumerate(growing) for line in self._rendered(block, n > 0 or self._begun)]
            # Lines of code stay as they are; of all else that is too high for the screen, the end is shown.
            is_code = len(growing) == 1 and growing[0][0].type == "fence"
            self._lines.draw(lines if is_code else lines[-max(self._console.height - 1, 1) :])
        self._next = monotonic() + max(_PACE, _REST * (monotonic() - begun))

    def _finished(self, growing: list[list[Token]]) -> int:
        """How many blocks nothing that follows can change: only whole lines end one, and the last may go on."""
        whole = self._source[: self._source.rfind("\n") + 1]
        count = max(sum(1 for _ in blocks(whole)) - 1, 0)
        is_closed = len(growing) > count + 1 and growing[count][0].type == "fence"
        return count + is_closed

    def _rendered(self, block: list[Token], apart: bool) -> list[str]:
        """Its lines, without empty ones around them, but for one before those that are set ``apart``."""
        # One column is left for characters that are wider than they seem.
        with self._console.capture() as captured:
            self._console.print(_Block(block), width=max(self._console.width - 1, 1), end="")
        lines = [line.rstrip() for line in captured.get().split("\n")]
        while lines and not _STYLES.sub("", lines[-1]).strip():
            lines.pop()
        while lines and not _STYLES.sub("", lines[0]).strip():
            lines.pop(0)
        return [*([""] if apart else []), *(lines or [""])]
