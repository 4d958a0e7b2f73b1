"""The README's recipes for web applications and tasks, under the real servers that fork, thread and switch greenlets.

Each server listens on loopback, at a socket that the test has made, and is ended by the test that has started it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest
import requests

import berlin_chat
from berlin_chat.testing import Fail, LocalServer, Silence, Slow
from wire import OPENAI, Chunked, Connection, Recorded, Wire, wait_for

ROOT = Path(__file__).parent.parent
#: No wait lasts longer, in seconds.
PATIENCE = 20.0
#: How soon a question has ended upstream behind a client who has left, in seconds, on a machine that is busy.
SOON = 2.0
#: What is said to a client who leaves.
LONG = Slow(0.02, "word " * 2000)


def recipe(word: str, upstream: str, provider: str) -> str:
    """The README's block that holds a word, about another model server, and perhaps by another provider."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if word in block)
    return block.replace("http://127.0.0.1:11434", upstream).replace("OpenAICompatible", provider)


@contextmanager
def running(command: list[str], folder: Path, **how: Any) -> Iterator[Path]:
    """Runs a server in a folder; yields the file of what it says, and ends it by its pid."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("BERLIN_CHAT_", "PYTHON"))}
    paths = [str(Path(berlin_chat.__file__).parent.parent), str(folder)]
    environment = {**known, "PYTHONPATH": os.pathsep.join(paths)}
    said = folder / "said.txt"
    with open(said, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, **how
        )
        try:
            yield said
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def gunicorn(folder: Path, worker: str, *arguments: str) -> Iterator[tuple[str, Path]]:
    """gunicorn with two workers; yields its address, and the file of what it says: the pid of each answer too."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        number = str(listener.fileno())
        command = ["-m", "gunicorn", "--bind", f"fd://{number}", "--workers", "2", "--worker-class", worker]
        command += ["--threads", "8", "--graceful-timeout", "2", "--access-logfile", "-"]
        command += ["--access-logformat", "answered by %(p)s", *arguments]
        with running(command, folder, pass_fds=[listener.fileno()]) as said:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/chat", said


#: What stands around Django's view.
PROJECT = """
from django.conf import settings

settings.configure(ROOT_URLCONF="app", ALLOWED_HOSTS=["*"], SECRET_KEY="tests")

import django
from django.core.wsgi import get_wsgi_application
from django.urls import path

django.setup()
import views

urlpatterns = [path("chat", views.chat)]
app = get_wsgi_application()
"""
#: What makes gevent's workers know of a module that was imported before the fork.
PATCHED = "from gevent import monkey\n\nmonkey.patch_all()\n"


def at_work(upstream: LocalServer) -> int:
    """How many requests it answers at the moment."""
    return len(upstream._serving._server.requests._working)


class Web(NamedTuple):
    """An application, and the model server behind it."""

    url: str
    upstream: LocalServer

    def ask(self, question: str = "Hi", **how: Any) -> requests.Response:
        return requests.post(self.url, data={"question": question}, timeout=PATIENCE, **how)


def write_application(folder: Path, framework: str, upstream: str, provider: str) -> None:
    block = recipe(f"from {framework}", upstream, provider)
    if framework == "django":
        (folder / "views.py").write_text(block)
        block = PROJECT
    (folder / "app.py").write_text(block)


@pytest.fixture(
    scope="module",
    params=[
        ("flask", "sync", "H2o", True),
        ("flask", "gthread", "OpenAICompatible", True),
        ("flask", "gevent", "OpenAICompatible", False),
        ("flask", "gevent", "H2o", True),
        ("django", "sync", "OpenAICompatible", False),
        ("django", "gthread", "H2o", True),
    ],
    ids=lambda given: "-".join(str(one) for one in (*given[:3], "preloaded" if given[3] else "loaded")),
)
def web(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Each framework under the kinds of workers, its provider made before the fork or after it."""
    framework, worker, provider, preload = request.param
    folder = tmp_path_factory.mktemp(framework)
    with LocalServer(replies=[]) as upstream:
        write_application(folder, framework, upstream.url, provider)
        if worker == "gevent" and preload:
            (folder / "gunicorn.conf.py").write_text(PATCHED)
        with gunicorn(folder, worker, *(["--preload"] if preload else []), "app:app") as (url, _):
            yield Web(url, upstream)


def test_a_view_streams_each_piece_as_it_comes(web: Web) -> None:
    web.upstream.replies[:] = [Slow(0.1, ["one ", "two ", "three ", "four ", "five"])]
    found = []
    with web.ask(stream=True) as response:
        assert response.status_code == 200
        began = monotonic()
        for data in response.iter_content(None):
            found.append((data, monotonic() - began))
    assert b"".join(data for data, _ in found) == b"one two three four five"
    assert len(found) >= 4
    assert found[-1][1] - found[0][1] > 0.2


def test_a_client_that_leaves_ends_the_question_upstream(web: Web) -> None:
    web.upstream.replies[:] = [LONG]
    with web.ask(stream=True) as response:
        assert next(response.iter_content(4)) == b"word"
        assert at_work(web.upstream) == 1
        left = monotonic()
    wait_for(lambda: not at_work(web.upstream) and not web.upstream.conversations)
    assert monotonic() - left < SOON


def test_a_question_that_fails_before_its_first_piece_is_an_error_of_the_view(web: Web) -> None:
    web.upstream.replies[:] = [Fail(400, "too long")]
    assert web.ask().status_code == 500
    web.upstream.replies[:] = ["It goes on."]
    assert web.ask().text == "It goes on."


def test_several_browsers_are_answered_at_once(web: Web, request: pytest.FixtureRequest) -> None:
    many = 2 if "sync" in request.node.name else 8  # as many as there are workers
    web.upstream.replies[:] = [Slow(0.2, "one two three four five")] * many
    began = monotonic()
    with ThreadPoolExecutor(many) as threads:
        replies = list(threads.map(lambda _: web.ask().text, range(many)))
    assert replies == ["one two three four five"] * many
    assert monotonic() - began < many  # one after the other they would take as many seconds


@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_workers_share_no_connection_with_the_process_that_they_were_forked_from(worker: str, tmp_path: Path) -> None:
    def script(asked: Recorded, connection: Connection) -> None:
        body = Chunked(connection, OPENAI.kind, b"")
        for part in OPENAI.parts(["Hi", " there"]):
            body.part(part)
            connection.gone.wait(0.1)
        body.end()

    with Wire() as upstream:
        upstream.on(*OPENAI.route, script)
        write_application(tmp_path, "flask", upstream.url, "OpenAICompatible")
        with open(tmp_path / "app.py", "a") as application:
            application.write("\nassert provider.ask('before the fork') == 'Hi there'\n")
        (tmp_path / "gunicorn.conf.py").write_text(PATCHED if worker == "gevent" else "")
        with gunicorn(tmp_path, worker, "--preload", "app:app") as (url, said), ThreadPoolExecutor(4) as threads:
            ask = lambda _: requests.post(url, data={"question": "Hi"}, timeout=PATIENCE).text  # noqa: E731
            pids: set[str] = set()
            for _ in range(20):  # until both workers have answered
                assert list(threads.map(ask, range(4))) == ["Hi there"] * 4
                pids = set(re.findall(r"answered by <?(\d+)", said.read_text()))
                if len(pids) == 2:
                    break
        first, *others = upstream.asked(*OPENAI.route)
    assert len(pids) == 2
    assert first.json["messages"][0]["content"] == "before the fork"
    assert first.connection not in {one.connection for one in others}
    assert not upstream.faults


# gevent


GREENLETS = (
    PATCHED
    + """
import sys
import threading
from time import monotonic

from berlin_chat import APITimeoutError, Cancelled, CancelToken, ask_many, get_provider

provider = get_provider(sys.argv[1], base_url=sys.argv[2], retries=0)
began = monotonic()
replies = [answer.reply for answer in ask_many(provider, ["Hi"] * 20, max_workers=20)]
assert replies == ["one two"] * 20, replies
assert monotonic() - began < 3, "one after the other they take four seconds"

token = CancelToken()
for how, error in (({"deadline": 0.3}, APITimeoutError), ({"cancel": token}, Cancelled)):
    began = monotonic()
    if error is Cancelled:
        threading.Timer(0.3, token.cancel).start()
    try:
        provider.ask("Hi", **how)
    except error:
        assert monotonic() - began < 2
    else:
        raise AssertionError("it ended by itself")
provider.close()
"""
)


@pytest.mark.parametrize("name", ["openai", "h2o"])
def test_greenlets_ask_at_once_and_are_cancelled_and_out_of_time_like_threads(name: str, tmp_path: Path) -> None:
    (tmp_path / "greenlets.py").write_text(GREENLETS)
    with LocalServer(replies=[*[Slow(0.1, "one two")] * 20, Silence("one"), Silence()]) as upstream:
        with running(["greenlets.py", name, upstream.url], tmp_path) as said:
            wait_for(lambda: said.read_text() or not upstream.replies)
            wait_for(lambda: said.read_text() or not upstream.connections)
        assert said.read_text() == ""
        assert upstream.replies == []
        assert upstream.conversations == []


# Celery


#: Messages in a folder: a broker that needs no server.
CONFIGURATION = """
broker_url = "filesystem://"
broker_transport_options = {{"data_folder_in": {0!r}, "data_folder_out": {0!r}, "control_folder": "{0}/control"}}
result_backend = "file://{0}"
"""
#: A process that has tasks done.
SENDER = """
from celery import Celery

app = Celery()
app.config_from_object("configuration")
assert app.send_task("tasks.answer", ["Hi"]).get(timeout=20) == "three four"
app.send_task("tasks.answer", ["Hello"])
"""


def test_a_task_of_celery_answers_and_its_soft_time_limit_ends_the_question_upstream(tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    (queue / "control").mkdir(parents=True)
    (tmp_path / "configuration.py").write_text(CONFIGURATION.format(str(queue)))
    (tmp_path / "sender.py").write_text(SENDER)
    with LocalServer(replies=["one two", "three four", Silence("one")]) as upstream:
        code = recipe("from celery", upstream.url, "H2o").replace("soft_time_limit=300", "soft_time_limit=1")
        code += "\napp.config_from_object('configuration', force=True)\napp.conf.broker_url = 'filesystem://'\n"
        code += "assert provider.ask('before the fork') == 'one two'\n"
        (tmp_path / "tasks.py").write_text(code)
        command = ["-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "--concurrency", "2", "-l", "INFO"]
        with running([*command, "--without-gossip", "--without-mingle", "--without-heartbeat"], tmp_path) as said:
            with running(["sender.py"], tmp_path) as sent:
                wait_for(lambda: not upstream.replies)
                began = monotonic()
                wait_for(lambda: not at_work(upstream) and not upstream.conversations)
                assert 0.3 < monotonic() - began < 1 + SOON
            wait_for(lambda: "SoftTimeLimitExceeded" in said.read_text())
        assert "Error" not in sent.read_text()
