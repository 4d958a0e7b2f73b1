"""The command ``berlin-chat`` in processes of its own, for the tests of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from wire import PATIENCE

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "berlin_chat"]
#: What "at once" means, in seconds.
AT_ONCE = 1.0


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error."""
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        return self.err


def environment(**more: str) -> dict[str, str]:
    """The environment of a command that nobody has configured and that keeps nothing, and ``more``."""
    ours = re.compile("BERLIN_CHAT_.*|.*_proxy|PYTHON.*|LANG|LC_.*|COLUMNS|LINES|TERM|TMUX.*|NO_COLOR|XDG_.*", re.I)
    kept = {name: value for name, value in os.environ.items() if not ours.fullmatch(name)}
    nothing = {"XDG_CONFIG_HOME": os.devnull, "BERLIN_CHAT_HISTORY": "off"}  # no folder is below /dev/null
    return {**kept, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "TERM": "xterm", **nothing, **more}


def run(*arguments: str | bytes, stdin: bytes = b"", command: list[str] = COMMAND, **more: str) -> Ran:
    """Runs a command to its end."""
    done = subprocess.run(
        [*command, *arguments],
        input=stdin,
        capture_output=True,
        env=environment(**more),
        timeout=3 * PATIENCE,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextmanager
def started(*arguments: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs; whatever happens, it has ended after the context, and after ``PATIENCE``."""
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment(**more),
    ) as process:
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            watchdog.join()
            process.kill()


def arrives(process: subprocess.Popen[bytes], text: str) -> bool:
    """Waits for a text on standard output; whether it is the next that comes."""
    assert process.stdout is not None
    expected, received = text.encode(), b""
    while len(received) < len(expected):
        data = process.stdout.read(len(expected) - len(received))
        if not data:
            break
        received += data
    return received == expected


def ended(process: subprocess.Popen[bytes]) -> Ran:
    """Waits for the end; what was not read before."""
    out, err = process.communicate(timeout=PATIENCE)
    return Ran(process.returncode, out.decode(), err.decode())


def ended_by(process: subprocess.Popen[bytes], name: str) -> Ran:
    """Sends a signal, and checks that the command ends at once and quietly."""
    number = getattr(signal, name)
    sent = time.monotonic()
    process.send_signal(number)
    ran = ended(process)
    assert time.monotonic() - sent < AT_ONCE
    assert "Traceback" not in ran.err
    return ran


def without(module: str) -> list[str]:
    """The command where a package is not installed."""
    script = f"import sys; sys.modules[{module!r}] = None; from berlin_chat.cli import main; main()"
    return [sys.executable, "-c", script]
