"""A script that ends in the middle of questions ends at once, and leaves nothing on the server."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from berlin_chat.server import LocalServer
from wire import H2O, PATIENCE, Chunked, Connection, Recorded, Wire, wait_for

#: How long the end may take, in seconds, beside what a bare interpreter needs to start and end.
AT_ONCE = 1.0

START = """
import itertools, sys, time, atexit
from berlin_chat import Cancelled, H2o, Race, ask_many, stream_many
provider = H2o(base_url=sys.argv[1])
prompts = map("q{}".format, itertools.count())
"""
WAYS = {
    "stream_many": "loop = stream_many(provider, prompts, max_workers=8); next(loop)",
    "ask_many": "loop = ask_many(provider, prompts, max_workers=8); next(loop)",
    "stream": "loop = provider.stream('q0'); next(loop)",
    "Race": "loop = Race([provider]).stream('q0'); next(loop)",
    "a daemon thread": (
        "import contextlib, threading; got = threading.Event()\n"
        "def read():\n"
        "    with contextlib.suppress(Cancelled):\n"
        "        for _ in provider.stream('q1'): got.set()\n"
        "threading.Thread(target=read, daemon=True).start(); got.wait()"
    ),
}
END = "\natexit.register(lambda: None); print(time.time(), flush=True)\n"


@pytest.mark.skipif(os.name == "nt", reason="starts processes as on POSIX")
@pytest.mark.parametrize("way", WAYS)
def test_a_script_that_still_holds_its_generator_ends_at_once(way: str, wire: Wire) -> None:
    def first_only(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, H2O.kind, b"")
        parts = H2O.parts(["a", "b"])
        for part in parts if request.json["inputs"] == "q0" and way == "ask_many" else parts[:1]:
            body.part(part)
        if request.json["inputs"] == "q0" and way == "ask_many":
            body.end()
        else:
            connection.wait_until_client_closes()

    wire.routes[:] = [*H2O.before, (*H2O.route, first_only)]
    command = [sys.executable, "-c", START + WAYS[way] + END, wire.url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    late = time.time() - float(ran.stdout)
    assert late < AT_ONCE, f"the process ended {late:.1f} s after its last line"
    made = {f"/conversation/c{n + 1}" for n in range(len(wire.asked("POST", "/conversation")))}
    assert made, "no conversation was ever made"
    wait_for(lambda: made <= {request.path for request in wire.asked("DELETE", "/conversation/.*")})


def test_a_server_that_does_not_answer_keeps_no_process(wire: Wire) -> None:
    def silent(request: Recorded, connection: Connection) -> None:
        connection.wait_until_client_closes()

    wire.routes[:] = [*H2O.before, (*H2O.route, silent)]
    wire.on("DELETE", "/conversation/.*", silent)
    code = START + (
        "import threading; threading.Thread(target=provider.ask, args=['Hi'], daemon=True).start(); time.sleep(0.5)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code + END, wire.url], capture_output=True, text=True, timeout=60, check=False
    )
    assert time.time() - float(ran.stdout) < AT_ONCE
    assert ran.returncode == 0


def test_the_embedded_server_of_the_same_process_is_no_obstacle() -> None:
    code = (
        "import time\nfrom berlin_chat import stream_many\nfrom berlin_chat.server import LocalServer\n"
        "server = LocalServer(delay=0.01).start()\n"
        "loop = stream_many(server.provider('h2o'), ['q'] * 100)\nnext(loop)\nprint(time.time(), flush=True)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert time.time() - float(ran.stdout) < AT_ONCE


def test_a_provider_may_be_used_at_the_end_of_the_process_until_it_is_closed() -> None:
    """What a person registers after the import runs before the providers are closed."""
    with LocalServer() as server:
        code = (
            "import atexit, sys\nfrom berlin_chat import H2o\nprovider = H2o(base_url=sys.argv[1])\n"
            "atexit.register(lambda: print(provider.ask('Bye')))\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code, server.url], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert ran.stdout.rstrip().endswith("You said: Bye")
        assert server.conversations == []
