"""scripts/soak: a short one finds nothing, and one of a library that leaks says what is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import berlin_chat

SOAK = Path(berlin_chat.__file__).parent.parent / "scripts" / "soak"
pytestmark = pytest.mark.skipif(
    not (SOAK.exists() and Path("/proc/self/fd").exists()), reason="needs the repository, and counts with /proc"
)

#: Faults of the library that a soak must notice, each with what it then says.
LEAKS = {
    # A reply that is left keeps its socket.
    "sockets left": (
        "from berlin_chat.http.transport import Transport\n"
        "kept = []\n"
        "Transport.release = lambda self, response: kept.append(response)\n"
    ),
    # Each provider that is closed leaves a thread.
    "threads left": (
        "import threading\n"
        "from berlin_chat import Provider\n"
        "close = Provider.close\n"
        "def closed(self):\n"
        "    close(self)\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "Provider.close = closed\n"
    ),
    # Nobody deletes what was made.
    "conversations left": (
        "from berlin_chat.http.cleanup import RemoteResource\nRemoteResource._last = lambda self, step, made: None\n"
    ),
    # Each question keeps a few bytes.
    "memory has grown": (
        "from berlin_chat.http.transport import Transport\n"
        "kept, ended = [], Transport.ended\n"
        "def end(self, exchange):\n"
        "    kept.append(b'x' * 50_000)\n"
        "    ended(self, exchange)\n"
        "Transport.ended = end\n"
    ),
    # One piece in two hundred is lost.
    "findings": (
        "import itertools\n"
        "from berlin_chat import H2o\n"
        "pieces, count = H2o.pieces, itertools.count(1)\n"
        "def lose(self, *arguments):\n"
        "    for piece in pieces(self, *arguments):\n"
        "        if next(count) % 200:\n"
        "            yield piece\n"
        "H2o.pieces = lose\n"
    ),
}


def soak(planted: str = "", seconds: float = 2.0) -> subprocess.CompletedProcess[str]:
    """Runs it, with a fault that is planted before."""
    run = f"import runpy, sys\n{planted}sys.argv[0] = {str(SOAK)!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", run, "--seconds", str(seconds), "--threads", "16"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_a_short_soak_finds_nothing() -> None:
    ran = soak(seconds=3.0)
    assert ran.stdout.endswith("nothing is left, and nothing was lost\n"), ran.stdout + ran.stderr
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_soak_notices_what_leaks_and_what_is_lost() -> None:
    ran = soak("".join(LEAKS.values()))
    wrong = ran.stdout.splitlines()[-1]
    assert [leak for leak in LEAKS if leak not in wrong] == [], ran.stdout + ran.stderr
    assert ran.returncode == 1
