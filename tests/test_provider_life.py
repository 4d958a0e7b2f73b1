"""Whatever a provider lives through, and in whatever order, its answers are exact or an error that is declared.

hypothesis makes up the lives, and shortens one that goes wrong: questions from one thread and from several, streams
that are read, closed, abandoned, cancelled or out of time, expired logins, forks, pickles and ``close()``. The
interpreter changes threads as often as it can. ``LIVES=200`` in the environment lives more of them, and others each
time.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import warnings
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from berlin_chat import APITimeoutError, Cancelled, CancelToken, Provider, Reply, get_provider
from berlin_chat.http import login
from wire import ACYTOO, BERLIN, H2O, OPENAI, PATIENCE, Chunked, Connection, Recorded, Speech, Wire, wait_for

PIECES = ["Gr\xfc", "\xdfe ", "\U0001f642", "."]
TEXT = "".join(PIECES)
#: What each question asks: a whole reply, or a piece and then silence.
WHOLE, SILENT = "whole", "silent"
#: How many lives each provider has here, and how long they are.
LIVES, STEPS = int(os.environ.get("LIVES", "6")), 12


class Server:
    """Answers one protocol, and knows who is logged in, and which conversations there are."""

    def __init__(self, speech: Speech) -> None:
        self.speech = speech
        self.wire = Wire()
        self.known: set[str] = set()  # tokens or cookies that it takes
        self.logins = 0
        self.refused: list[str] = []
        self.conversations: set[str] = set()
        self._made = 0
        self._lock = threading.Lock()
        self.wire.routes += [
            ("POST", "/api/login", self.log_in),
            ("POST", "/settings", self.log_in),
            ("POST", "/conversation", self.create),
            ("POST", "/conversation/[^/]+/stop-generating", lambda request, connection: connection.respond(200, {})),
            ("DELETE", "/conversation/[^/]+", self.delete),
            (*speech.route, self.reply),
        ]

    def log_in(self, request: Recorded, connection: Connection) -> None:
        with self._lock:
            self.logins += 1
            name = f"login-{self.logins}"
            self.known.add(name)
        if self.speech is BERLIN:
            connection.respond(200, {"data": {"token": name}})
        else:
            connection.respond(303, b"", {"Location": "/", "Set-Cookie": f"hf-chat={name}; Path=/"})

    def knows(self, request: Recorded) -> bool:
        if self.speech not in (BERLIN, H2O):
            return True
        given = request.header("token") or str(request.header("Cookie")).partition("hf-chat=")[2]
        with self._lock:
            if given not in self.known:
                self.refused.append(given)
            return given in self.known

    def create(self, request: Recorded, connection: Connection) -> None:
        if not self.knows(request):
            return connection.respond(405, {"message": "accept the settings first"})
        with self._lock:
            self._made += 1
            name = f"c{self._made}"
            self.conversations.add(name)
        return connection.respond(200, {"conversationId": name})

    def delete(self, request: Recorded, connection: Connection) -> None:
        with self._lock:
            self.conversations.discard(request.path.rpartition("/")[2])
        connection.respond(200, {})

    def reply(self, request: Recorded, connection: Connection) -> None:
        if self.speech is BERLIN and not self.knows(request):
            return connection.respond(401, {"code": 401, "msg": "the token has expired"})
        parts = self.speech.parts(PIECES)
        body = Chunked(connection, self.speech.kind, b"")
        if SILENT.encode() in request.body:
            body.part(parts[0])
            return connection.wait_until_client_closes()
        for part in parts:
            body.part(part)
        return body.end()

    def expire(self) -> None:
        with self._lock:
            self.known.clear()


class Life(RuleBasedStateMachine):
    """One provider's. The streams that are open are the machine's own, in this thread."""

    speech: ClassVar[Speech]

    def __init__(self) -> None:
        super().__init__()
        self._interval = sys.getswitchinterval()
        self._threads = set(threading.enumerate())
        self.server = Server(self.speech)
        self.streams: list[tuple[Generator[str, None, Reply], str]] = []  # each with what was read of it
        self.allowed = 0  # logins so far, and those that may follow
        self.provider = self.made()
        sys.setswitchinterval(1e-6)

    def made(self) -> Provider:
        """A new one, which logs in when it is first asked."""
        self.allowed += 1
        config = {"base_url": self.server.wire.url, "retries": 0, "timeout": PATIENCE, **self.speech.config}
        return get_provider(self.speech.name, **config)

    @rule()
    def ask(self) -> None:
        self.server.refused.clear()
        assert self.provider.ask(WHOLE) == TEXT
        assert len(self.server.refused) <= 1, "a login that was refused is not used again"

    @rule(count=st.integers(2, 5))
    def ask_in_several_threads(self, count: int) -> None:
        with ThreadPoolExecutor(count) as pool:
            assert list(pool.map(self.provider.ask, [WHOLE] * count)) == [TEXT] * count

    @rule(silent=st.booleans())
    @precondition(lambda self: len(self.streams) < 3)
    def begin(self, silent: bool) -> None:
        stream = self.provider.stream(SILENT if silent else WHOLE, deadline=PATIENCE)
        piece = next(stream)
        assert TEXT.startswith(piece)
        self.streams.append((stream, piece))

    @rule(place=st.integers(0, 2), way=st.sampled_from(["close", "abandon"]))
    @precondition(lambda self: self.streams)
    def leave(self, place: int, way: str) -> None:
        stream, _ = self.streams.pop(place % len(self.streams))
        if way == "close":
            stream.close()
            assert list(stream) == []
        del stream

    @rule()
    def read_to_the_end(self) -> None:
        pieces, stream = [], self.provider.stream(WHOLE)
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as end:
                reply = end.value
                break
        assert all(pieces)
        assert "".join(pieces) == reply == TEXT

    @rule(blocked=st.booleans())
    def cancel(self, blocked: bool) -> None:
        token = CancelToken()
        stream = self.provider.stream(SILENT, cancel=token)
        assert next(stream) == PIECES[0]
        other = threading.Thread(target=token.cancel)
        other.start()
        if not blocked:
            other.join()
        with pytest.raises(Cancelled) as caught:
            next(stream)
        other.join()
        assert caught.value.partial == PIECES[0]

    @rule()
    def run_out_of_time(self) -> None:
        with pytest.raises(APITimeoutError) as caught:
            self.provider.ask(SILENT, deadline=0.15)
        assert caught.value.partial in ("", PIECES[0])

    @rule()
    def expire(self) -> None:
        self.server.expire()
        self.allowed += 1

    @rule()
    def pickle(self) -> None:
        self.allowed += 1
        with pickle.loads(pickle.dumps(self.provider)) as copy:
            assert copy.ask(WHOLE) == TEXT

    @rule(children=st.integers(1, 2))
    @precondition(lambda self: hasattr(os, "fork"))
    def fork(self, children: int) -> None:
        self.allowed += children
        numbers = []
        for _ in range(children):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # that it forks with threads is the point
                number = os.fork()
            if not number:
                right = False
                with suppress(BaseException):
                    right = self.provider.ask(WHOLE) == TEXT
                os._exit(0 if right else 1)
            numbers.append(number)
        assert [os.waitpid(number, 0)[1] for number in numbers] == [0] * children

    @rule()
    def close(self) -> None:
        self.begin(silent=True)  # whatever else is under way, one stream is
        self.provider.close()
        with pytest.raises(Cancelled):
            self.provider.ask(WHOLE)
        for stream, piece in self.streams:
            with pytest.raises(Cancelled) as caught:
                list(stream)
            assert caught.value.partial == piece
        self.streams.clear()
        self.provider = self.made()

    def teardown(self) -> None:
        sys.setswitchinterval(self._interval)
        try:
            for stream, _ in self.streams:
                stream.close()
            self.provider.close()
            assert self.server.logins <= self.allowed, "one login for each expiry"
            wait_for(lambda: not self.server.conversations)
            wait_for(lambda: all(connection.gone.is_set() for connection in self.server.wire.connections))
            assert not self.server.wire.faults
        finally:
            self.server.wire.close()
        wait_for(lambda: set(threading.enumerate()) <= self._threads)


def life(speech: Speech) -> Any:
    """The test of one protocol."""
    case = type(f"Life of {speech.name}", (Life,), {"speech": speech}).TestCase
    case.settings = settings(
        deadline=None,
        max_examples=LIVES,
        stateful_step_count=STEPS,
        derandomize="LIVES" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return case


@pytest.mark.parametrize("speech", [BERLIN, H2O, OPENAI, ACYTOO], ids=lambda speech: speech.name)
def test_a_life_has_exact_answers_declared_errors_and_leaves_nothing(
    speech: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "uniform", lambda low, high: 0.0)  # nobody else logs in here
    life(speech)("runTest").runTest()
