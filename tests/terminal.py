"""A real terminal for tests: tmux runs a command in it, types, and tells what is on its screen."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest

from command import COMMAND, environment
from wire import PATIENCE

T = TypeVar("T")
#: How often the screen is looked at, in seconds.
_LOOK = 0.02
#: A shell that keeps the screen, and knows how the command has ended. With a trap it outlives the command's Ctrl-C.
_SHELL = 'trap : INT; "$@"; echo $? >"$0.new"; mv "$0.new" "$0"; exec sleep 600'

needs_tmux = pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux: apt-get install tmux")


class Terminal:
    """``berlin-chat`` in a terminal of its own. A context manager, which ends it.

    Args:
        arguments: those of the command.
        columns, rows: the size of the screen.
        more: what the environment has beside that of a command that nobody has configured.
    """

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24, **more: str) -> None:
        self._folder = TemporaryDirectory()
        folder = Path(self._folder.name)
        (folder / "conf").write_text("set -g history-limit 10000\nset -g escape-time 0\n")
        self._tmux = ["tmux", "-S", str(folder / "socket"), "-f", str(folder / "conf")]
        size = ["-x", str(columns), "-y", str(rows)]
        self._code = folder / "code"
        name = ["env", f"TERM={more['TERM']}"] if "TERM" in more else []  # else tmux's own
        command = ["sh", "-c", _SHELL, str(self._code), *name, *COMMAND, *arguments]
        self._run("new-session", "-d", *size, *command, env=environment(**more))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=PATIENCE)
        self._folder.cleanup()

    def _run(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, timeout=PATIENCE, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, text: str) -> None:
        """Types a text, and Enter."""
        self._run("send-keys", "-l", text)
        self.press("Enter")

    def press(self, *keys: str) -> None:
        """Presses keys by tmux's names, such as ``"C-c"`` and ``"Up"``."""
        self._run("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self, styled: bool = False) -> str:
        """What is on the screen, and what has left it at its top; with escape sequences if ``styled``."""
        shown = self._run("capture-pane", "-p", "-S", "-", *(["-e"] if styled else []))
        return "\n".join(line.rstrip() for line in shown.splitlines()).rstrip()

    def wait_for(self, text: str, times: int = 1) -> str:
        """Waits until a text is on the screen, so many times; returns the screen."""
        return self._until(lambda: (shown := self.screen()).count(text) >= times and shown, f"{text!r} is not there")

    def code(self) -> int:
        """Waits until the command has ended; its exit code."""
        self._until(self._code.exists, "it goes on")
        return int(self._code.read_text())

    def _until(self, found: Callable[[], T], complaint: str) -> T:
        end = time.monotonic() + PATIENCE
        while not (value := found()):
            assert time.monotonic() < end, f"{complaint}:\n{self.screen()}"
            time.sleep(_LOOK)
        return value
