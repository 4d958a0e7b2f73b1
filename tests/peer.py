"""A server that nobody here wrote, as a process of its own."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import monotonic

import pytest

PATIENCE = 30.0


class Peer:
    """A server's process, which can be killed and started again at the same address.

    Args:
        name: what it is called where it fails.
        alive: the path that answers 200 when the server is ready.
        start_up: seconds that it may need until then.
        folder: where it runs, and where its log is.
    """

    def __init__(self, name: str, alive: str, start_up: float, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._name, self._alive, self._start_up, self._folder = name, alive, start_up, folder
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Without proxies, which are not asked on loopback."""
        return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self.environment(),
            )
        self._wait_for(self._is_alive, f"start within {self._start_up} s", self._start_up)

    def kill(self) -> None:
        """Ends it as the kernel does where memory is short."""
        assert self._process
        self._process.kill()
        self._process.wait(PATIENCE)

    def close(self) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for_log(self, pattern: str, after: int) -> re.Match[str]:
        """Waits until the log says so, behind so many characters of it."""
        found: list[re.Match[str]] = []
        self._wait_for(lambda: bool(found.extend(re.finditer(pattern, self.log()[after:])) or found), f"say {pattern}")
        return found[0]

    def _is_alive(self) -> bool:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            try:
                connection.request("GET", self._alive)
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def _wait_for(self, happened: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        assert self._process
        due = monotonic() + seconds
        pause = threading.Event()
        while not happened():
            state = self._process.poll()
            if state is not None or monotonic() > due:
                fate = f"did not {what}" if state is None else f"ended with {state}"
                pytest.fail(f"{self._name} {fate}:\n{self.log()[-3000:]}")
            pause.wait(0.05)
