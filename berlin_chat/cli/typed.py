"""What is typed in ``berlin-chat chat``: lines from a terminal, with editing and a history, or from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .options import NEEDED
from .settings import data_folder

#: Before a line, and before one that goes on.
_PROMPT, _MORE = "> ", "… "
#: What begins and ends a message of several lines, and what ends one after ``/multi``.
_QUOTES, _END = '"""', "/end"


class Typed:
    """Reads messages. It belongs to one thread.

    Args:
        commands: the words that Tab completes.
        kept: the file that remembers what was typed; None for none.

    Attributes:
        piped: whether the lines come from no terminal, where nobody can be asked what was meant.
    """

    def __init__(self, commands: Sequence[str], kept: Path | None) -> None:
        self.piped = sys.stdin is None or not sys.stdin.isatty()
        self._prompt = _line if self.piped else _editor(commands, kept)

    def message(self) -> str:
        """Returns the next message, which may have several lines.

        Raises:
            EOFError: there is none any more.
            KeyboardInterrupt: Ctrl-C, which drops what was typed.
        """
        text = self._prompt(_PROMPT)
        if text.lstrip().startswith(_QUOTES):
            text = text.lstrip().removeprefix(_QUOTES)
            while not text.rstrip().endswith(_QUOTES) and (line := self._next()) is not None:
                text += "\n" + line
            return text.rstrip().removesuffix(_QUOTES).strip("\n")
        while text.endswith("\\"):
            line = self._next()
            if line is None:
                return text[:-1]
            text = f"{text[:-1]}\n{line}"
        return text

    def lines(self) -> str:
        """Returns all lines up to one that says ``/end``. Raises what ``message`` does."""
        found: list[str] = []
        while (line := self._next()) is not None and line.strip() != _END:
            found.append(line)
        return "\n".join(found)

    def _next(self) -> str | None:
        """Returns the next line of a message; None at the end of a pipe, which ends the message too."""
        try:
            return self._prompt(_MORE)
        except EOFError:
            if self.piped:
                return None
            raise


def lines_file() -> Path:
    """Where the lines that were typed are remembered."""
    return data_folder() / "typed"


def forget_lines() -> bool:
    """Empties that file; whether it held any. A message may stand in it in several lines, so none can be picked out."""
    path = lines_file()
    try:
        held = path.stat().st_size > 0
        if held:
            os.truncate(path, 0)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return held


def _line(prompt: str) -> str:
    """A line from a pipe, without a prompt."""
    line = b"" if sys.stdin is None else sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8-sig", "replace").rstrip("\r\n")


def _editor(commands: Sequence[str], kept: Path | None) -> Any:
    """Reads a line from the terminal, which can be edited; Alt-Enter begins another one."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings
    except ImportError:
        raise ImportError(NEEDED) from None

    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(kept)) if kept is not None and _is_private(kept) else InMemoryHistory(),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        prompt_continuation=_MORE,
    )
    return session.prompt


def _is_private(path: Path) -> bool:
    """Makes the file, for nobody else to read; whether it can be written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:
        return False
    return True
