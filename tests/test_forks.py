"""Forks at any moment: the child can ask, and nothing that it does reaches what is the parent's."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme

from berlin_chat import process
from wire import BERLIN, H2O, OPENAI, PATIENCE, Chunked, Connection, Recorded, Speech, Wire, speak

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

SPEECH = pytest.mark.parametrize("speech", [OPENAI, BERLIN, H2O], ids=lambda speech: speech.name)


def run(code: str, *arguments: str) -> str:
    """What a process of its own prints."""
    # That a process with threads forks is the point.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


# What is imported when it is first needed

#: Imports that a first question makes, its retry included; the fork comes in the middle of each.
MIDDLE = """
import os, signal, sys, threading
from queue import SimpleQueue
from berlin_chat import get_provider

url, name, *modules = sys.argv[1:]
config = {"account": "me", "password": "secret"} if name == "berlin" else {}
provider = get_provider(name, base_url=url, retries=2, **config)
imports = SimpleQueue()

class Finder:
    def find_spec(module, path=None, target=None):
        if threading.current_thread() is not threading.main_thread() and module in modules:
            forked = threading.Event()
            imports.put((module, forked))
            forked.wait(0.2)  # not for ever: the fork may wait for the import

def ask():
    print(provider.ask("of the parent"))
    imports.put(None)

asker = threading.Thread(target=ask)
sys.meta_path.insert(0, Finder)
asker.start()
children = {}
while found := imports.get():
    module, forked = found
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends one that hangs
        sys.meta_path.remove(Finder)
        os._exit(0 if provider.ask(f"of a child, {module}") == "ok" else 1)
    forked.set()
    children[child] = module
print(*[f"{module} {os.waitpid(child, 0)[1]}" for child, module in children.items()], sep=", ")
"""


def busy_at_first(speech: Speech) -> Any:
    """Refuses each question once, so that it is asked again."""
    known: set[str] = set()

    def script(request: Recorded, connection: Connection) -> None:
        question = str(request.json.get("inputs") or request.json.get("prompt") or request.json.get("messages"))
        if question not in known:
            known.add(question)
            connection.respond(503, {}, {"Retry-After": "0"})
        else:
            speak(speech, ["ok"])(request, connection)

    return script


@SPEECH
def test_a_fork_in_the_middle_of_a_late_import_leaves_a_child_that_can_ask(speech: Speech, wire: Wire) -> None:
    wire.routes[:] = [*speech.before, (*speech.route, busy_at_first(speech))]
    told = run(MIDDLE, wire.url, speech.name, "tenacity", "asyncio", "orjson").splitlines()
    assert told[0] == "ok"
    assert set(told[1].split(", ")) == {"tenacity 0", "asyncio 0", "orjson 0"}


#: A child at each of several moments of the first question, in a fresh process.
MOMENTS = """
import os, signal, sys, threading, time
from berlin_chat import get_provider

url, name, delay = sys.argv[1:]
provider = get_provider(name, base_url=url, retries=2)
asker = threading.Thread(target=lambda: print(provider.ask("Hi")))
asker.start()
time.sleep(float(delay))
child = os.fork()
if not child:
    signal.alarm(20)
    os._exit(0 if provider.ask("Hi") == "ok" else 1)
asker.join()
print(os.waitpid(child, 0)[1])
"""


def test_a_fork_at_any_moment_of_a_first_question_leaves_a_child_that_can_ask(wire: Wire) -> None:
    wire.routes[:] = [(*OPENAI.route, speak(OPENAI, ["ok"]))]

    def refuse(request: Recorded, connection: Connection) -> None:
        wire.routes.pop(0)
        connection.respond(503, {}, {"Retry-After": "0"})

    for step in range(5):
        wire.on(*OPENAI.route, refuse)
        assert run(MOMENTS, wire.url, "openai", str(step * 0.005)).split() == ["ok", "0"], step


POOL = """
import sys, threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from berlin_chat import ask_many, get_provider

provider = get_provider("openai", base_url=sys.argv[1], retries=2)
stop = threading.Event()

def ask():
    while not stop.is_set():
        assert provider.ask("Hi") == "ok"

threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(3):
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        print(*pool.map(provider.ask, ["Hi"] * 4))
        print(*[answer.reply for answer in ask_many(provider, ["Hi"] * 4, executor=pool, max_workers=2)])
stop.set()
for thread in threads:
    thread.join()
"""


#: A thread forks while another is in the middle of a history's read, and asks there for the first time.
IN_A_READ = """
import os, sys, threading, time
from berlin_chat import History, get_provider
from berlin_chat.process import importing

url, name, file = sys.argv[1:]
provider, history = get_provider(name, base_url=url), History(file)

def fork():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)

forker = threading.Thread(target=fork)
with history._database.reading():
    forker.start()
    while importing.acquire(blocking=False):  # until the fork has begun, and waits for the history
        importing.release()
        time.sleep(0.001)
    print(provider.ask("Hi"))  # as a signal handler may
forker.join()
"""


def test_a_fork_lets_a_read_that_it_waits_for_import_something(wire: Wire, tmp_path: Path) -> None:
    wire.on(*OPENAI.route, speak(OPENAI, ["ok"]))
    assert run(IN_A_READ, wire.url, "openai", str(tmp_path / "history.db")) == "ok\n"


def test_a_fork_waits_longer_each_time_until_all_locks_are_to_be_had() -> None:
    asked: list[float] = []

    class Busy:
        def before_fork(self, patience: float) -> bool:
            asked.append(patience)
            return len(asked) > 3

        def after_fork(self) -> None:
            pass

    busy = Busy()
    process.around_fork(busy)
    process._before_fork()
    process._after_fork()
    assert asked == [process.FORK_PATIENCE * times for times in (1, 2, 4, 8)]


def test_pools_of_forked_processes_can_be_made_while_threads_ask(wire: Wire) -> None:
    wire.routes[:] = [(*OPENAI.route, speak(OPENAI, ["ok"]))]
    assert run(POOL, wire.url) == "ok ok ok ok\n" * 6


# What is the parent's

#: How the parent begins, up to its first piece; what it goes on with is ``rest``.
BEGIN = """
import gc, os, sys, urllib.request
from berlin_chat import CancelToken, ChatError, Conversation, History, Race, ask_many, get_provider

url, go, name, folder, ca = sys.argv[1:]
config = {"account": "me", "password": "secret"} if name == "berlin" else {}
provider = get_provider(name, base_url=url, proxy="", verify=ca or True, **config)
token = CancelToken()
"""
ASKERS = {
    "stream": "rest = provider.stream('Hi', cancel=token)\ngot = [next(rest)]",
    "open": "rest = live = provider.open('Hi', cancel=token)\ngot = [next(rest)]",
    "race": "rest = Race([provider]).stream('Hi', cancel=token)\ngot = [next(rest)]",
    "conversation": (
        "history = History(folder + '/history.db')\n"
        "rest = Conversation(provider, history=history).stream('Hi', cancel=token)\ngot = [next(rest)]"
    ),
    "batch": (
        "loop = ask_many(provider, ['Hi', 'Hi'], cancel=token, checkpoint=folder + '/answers', max_workers=2)\n"
        "import threading\nfound, got = [], []\n"
        "reader = threading.Thread(target=lambda: found.extend(str(a.reply) for a in loop)); reader.start()\n"
        "while 'first' not in urllib.request.urlopen(url + '/begun').read().decode(): pass\n"
        "rest = iter(lambda: reader.join() or (found.pop() if found else None), None)"
    ),
}
#: What the child does, with what the parent has made.
WAYS = {
    "cancels": "token.cancel()",
    "closes the provider": "provider.close()",
    "closes the reply": "rest.close()",
    "cancels the reply": "live.cancel()",
    "forgets the reply": "del rest; gc.collect()",
    "reads on": "try: got.extend(rest)\nexcept ChatError: pass\nelse: os._exit(3)",
    "does nothing": "",
    "closes the history": "history.close()",
}
#: The ways that only some have, beside those that all have.
OWN = {
    "stream": ["reads on", "closes the reply", "forgets the reply"],
    "open": ["cancels the reply", "closes the reply", "forgets the reply"],
    "race": ["closes the reply"],
    "conversation": ["closes the reply", "closes the history"],
}
END = """
urllib.request.urlopen(go).read()
print("".join([*got, *rest]))
"""


class TLSWire(Wire):
    """A server behind TLS."""

    def __init__(self, authority: trustme.CA) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        super().__init__()

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")

    def _serve(self, connection: Connection) -> None:
        connection.sock = self._context.wrap_socket(connection.sock, server_side=True)
        super()._serve(connection)


def in_two(speech: Speech, go_on: threading.Event) -> Any:
    """A script that says the first piece, and the others when the children have ended."""

    def script(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, speech.kind, b"")
        first, *others = speech.parts(["first ", "and last"])
        body.part(first)
        assert go_on.wait(PATIENCE * 2)
        for part in others:
            body.part(part)
        body.end()

    return script


def with_children(asker: str, ways: list[str], leave: str) -> str:
    """The code of a process that begins, forks a child for each way, one after the other, and goes on."""
    code = [BEGIN, ASKERS[asker]]
    for way in ways:
        child = "\n".join(f"    {line}" for line in f"{WAYS[way]}\n{leave}".splitlines())
        wait = f"print({way!r}, os.waitpid(child, 0)[1], flush=True)"
        code.append(f"child = os.fork()\nif not child:\n{child}\n{wait}")
    return "\n".join([*code, END])


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit()"])
@pytest.mark.parametrize("asker", ASKERS)
def test_what_children_do_leaves_the_parents_reply_whole(asker: str, leave: str, wire: Wire, tmp_path: Path) -> None:
    go_on = threading.Event()
    early = route(wire, H2O, go_on)
    ways = ["does nothing", "closes the provider", *OWN.get(asker, ()), "cancels"]
    told = run(with_children(asker, ways, leave), wire.url, f"{wire.url}/go", H2O.name, str(tmp_path), "")
    replies = 2 if asker == "batch" else 1
    assert told.splitlines() == [*(f"{way} 0" for way in ways), "first and last" * replies]
    assert not early, "a child has deleted or stopped the parent's conversation"


def route(wire: Wire, speech: Speech, go_on: threading.Event) -> list[str]:
    """Has a script answer; returns what was deleted or stopped before the parent went on."""
    early: list[str] = []

    def go(request: Recorded, connection: Connection) -> None:
        early.extend(one.path for one in wire.asked("DELETE", ".*") + wire.asked("POST", ".*/stop-generating"))
        go_on.set()
        connection.respond(200, {})

    def begun(request: Recorded, connection: Connection) -> None:
        connection.respond(200, {"said": "first" if len(wire.asked(*speech.route)) > 1 else ""})

    wire.routes[:] = [
        ("GET", "/go", go),
        ("GET", "/begun", begun),
        *speech.before,
        (*speech.route, in_two(speech, go_on)),
    ]
    return early


@SPEECH
def test_what_children_do_leaves_the_parents_tls_whole(speech: Speech, wire: Wire, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    go_on = threading.Event()
    route(wire, speech, go_on)
    with TLSWire(authority) as server:
        server.routes[:] = [*speech.before, (*speech.route, in_two(speech, go_on))]
        ways = ["does nothing", "closes the provider", *OWN["stream"], "cancels"]
        code = with_children("stream", ways, "sys.exit()")
        told = run(code, server.url, f"{wire.url}/go", speech.name, str(tmp_path), str(tmp_path / "ca.pem"))
        assert told.splitlines() == [*(f"{way} 0" for way in ways), "first and last"]
        assert not server.faults
