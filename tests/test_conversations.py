"""H2o: whatever happens to a question, the server has no conversation left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import requests

from berlin_chat import APITimeoutError, Cancelled, CancelToken, ChatError, Provider, StreamInterrupted
from berlin_chat.server import LocalServer
from wire import H2O, PATIENCE, Chunked, Connection, Recorded, Wire, settings, speak

Make = Callable[..., Provider]


def left(wire: Wire) -> set[str]:
    """The conversations that were made and not deleted."""
    made = {f"/conversation/c{n + 1}" for n in range(len(wire.asked("POST", "/conversation")))}
    assert made, "no conversation was ever made"
    return made - {request.path for request in wire.asked("DELETE", "/conversation/[^/]+")}


def one_piece_then_silence(request: Recorded, connection: Connection) -> None:
    Chunked(connection, H2O.kind, b"").part(H2O.parts(["a"])[0])
    connection.wait_until_client_closes()


def test_after_a_full_reply(provider_for: Make, wire: Wire) -> None:
    assert provider_for(H2O, speak(H2O, ["a"])).ask("Hi") == "a"
    assert left(wire) == set()


def test_after_a_break(provider_for: Make, wire: Wire) -> None:
    for _ in provider_for(H2O, one_piece_then_silence).stream("Hi"):
        break
    assert left(wire) == set()


def test_after_close_of_the_generator(provider_for: Make, wire: Wire) -> None:
    stream = provider_for(H2O, one_piece_then_silence).stream("Hi")
    next(stream)
    assert left(wire) == {"/conversation/c1"}
    stream.close()
    assert left(wire) == set()


def test_after_an_exception_in_the_loop(provider_for: Make, wire: Wire) -> None:
    def loop() -> None:
        for _ in provider_for(H2O, one_piece_then_silence).stream("Hi"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert left(wire) == set()


def test_after_a_broken_stream(provider_for: Make, wire: Wire) -> None:
    def cut(request: Recorded, connection: Connection) -> None:
        Chunked(connection, H2O.kind, b"").part(H2O.parts(["a"])[0])
        connection.close()

    with pytest.raises(StreamInterrupted):
        provider_for(H2O, cut).ask("Hi")
    assert left(wire) == set()


def test_after_an_error_of_the_server(provider_for: Make, wire: Wire) -> None:
    for status in (404, 410, 429, 500):
        with pytest.raises(ChatError) as caught:
            provider_for(H2O, lambda r, connection, status=status: connection.respond(status, {"error": "x"})).ask("Hi")
        assert caught.value.status == status
    assert len(wire.asked("DELETE", "/conversation/c.")) == 4


def test_after_a_cancel_in_mid_stream(provider_for: Make, wire: Wire) -> None:
    token = CancelToken()
    with pytest.raises(Cancelled) as caught:
        for _ in provider_for(H2O, one_piece_then_silence).stream("Hi", cancel=token):
            threading.Timer(0.05, token.cancel).start()
    assert caught.value.partial == "a"
    assert left(wire) == set()


def test_after_a_deadline(provider_for: Make, wire: Wire) -> None:
    with pytest.raises(APITimeoutError):
        provider_for(H2O, one_piece_then_silence).ask("Hi", deadline=0.2)
    assert left(wire) == set()


def test_after_close_of_the_provider(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, one_piece_then_silence)
    with pytest.raises(Cancelled):
        for _ in provider.stream("Hi"):
            threading.Timer(0.05, provider.close).start()
    assert left(wire) == set()
    for connection in wire.connections:
        assert connection.gone.wait(PATIENCE), "a connection outlived close()"


def test_a_server_that_does_not_answer_the_delete_does_not_keep_a_cancelled_caller(
    provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(H2O, one_piece_then_silence)
    asked, answer = threading.Event(), threading.Event()

    def late(request: Recorded, connection: Connection) -> None:
        asked.set()
        answer.wait(PATIENCE)
        connection.respond(200, {})

    wire.on("DELETE", "/conversation/c1", late)
    started = time.monotonic()
    with pytest.raises(APITimeoutError):
        provider.ask("Hi", deadline=0.1)
    assert time.monotonic() - started < 0.3
    assert asked.wait(PATIENCE)
    answer.set()


@pytest.mark.parametrize("status", [404, 500])
def test_a_delete_that_fails_does_not_spoil_a_complete_reply(status: int, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]), retries=3)
    wire.on("DELETE", "/conversation/c1", lambda request, connection: connection.respond(status))
    assert provider.ask("Hi") == "a"
    assert len(wire.asked("DELETE", "/conversation/c1")) == 1


def test_a_delete_that_fails_does_not_hide_the_first_error(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, lambda request, connection: connection.respond(410, {"error": "model gone"}))
    wire.on("DELETE", "/conversation/c1", lambda request, connection: connection.close())
    with pytest.raises(ChatError, match="model gone") as caught:
        provider.ask("Hi")
    assert caught.value.status == 410


def test_settings_are_posted_once_for_many_threads(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]))
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(provider.ask, ["Hi"] * 32)) == ["a"] * 32
    assert len(wire.asked("POST", "/settings")) == 1
    assert left(wire) == set()


def test_a_session_that_the_server_has_forgotten_is_begun_anew(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]))
    provider.ask("Hi")
    forgotten = [True]

    def create(request: Recorded, connection: Connection) -> None:
        if forgotten:
            connection.respond(405)
        else:
            connection.respond(200, {"conversationId": f"c{len(wire.asked('POST', '/conversation'))}"})

    def accept(request: Recorded, connection: Connection) -> None:
        forgotten.clear()
        settings(request, connection)

    wire.on("POST", "/conversation", create).on("POST", "/settings", accept)
    assert provider.ask("Hi") == "a"
    assert len(wire.asked("POST", "/settings")) == 2


def test_an_id_is_quoted_in_the_address(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]))
    wire.on(
        "POST",
        "/conversation",
        lambda request, connection: connection.respond(200, {"conversationId": "../x?"}),
    )
    assert provider.ask("Hi") == "a"
    assert wire.asked("DELETE", "/conversation/..%2Fx%3F")


SCRIPT = """
import sys
from berlin_chat import H2o
for piece in H2o(base_url=sys.argv[1]).stream("one two three"):
    print(piece, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to another process")
@pytest.mark.parametrize("when", ["before the first piece", "after it"])
def test_after_ctrl_c(when: str) -> None:
    with LocalServer(delay=0.2) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        if when == "after it":
            assert process.stdout.readline()
        else:
            deadline = time.monotonic() + PATIENCE
            while not server.conversations and time.monotonic() < deadline:
                time.sleep(0.005)
        assert len(server.conversations) == 1
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=PATIENCE)
        assert b"KeyboardInterrupt" in complaint
        assert server.conversations == []


def test_the_embedded_server_has_no_conversation_left_after_all_of_it() -> None:
    with LocalServer(delay=0.01) as server, server.provider("h2o") as provider:
        provider.ask("Hi")
        next(provider.stream("Hi"))
        with pytest.raises(APITimeoutError):
            provider.ask("a b c d e f g h i j k l m n o p", deadline=0.1)
        assert server.conversations == []


def test_json_of_a_creation_is_not_confused_by_more_fields(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]))
    body = json.dumps({"conversationId": "c1", "title": "x", "more": [1]}).encode()
    wire.on("POST", "/conversation", lambda request, connection: connection.respond(200, body))
    assert provider.ask("Hi") == "a"


# chat-ui as it was in June 2023, production build


def settings_with_a_secure_cookie(request: Recorded, connection: Connection) -> None:
    cookie = "hf-chat=cookie-1; Path=/; HttpOnly; Secure; SameSite=None"
    connection.respond(303, b"", {"Location": "/", "Set-Cookie": cookie})


@pytest.fixture
def everywhere(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Gives the server another name, which leads to it as well."""
    port = int(wire.url.rpartition(":")[2])
    to_wire = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: to_wire)
    return lambda host: f"http://{host}:{port}"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "LOCALHOST", "a.localhost", "[::1]"])
def test_a_secure_cookie_goes_back_to_this_machine_over_plain_http(
    host: str, everywhere: Callable[[str], str], provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]), base_url=everywhere(host))
    wire.on("POST", "/settings", settings_with_a_secure_cookie)
    assert provider.ask("Hi") == "a"
    assert [request.header("Cookie") for request in wire.requests] == [None] + ["hf-chat=cookie-1"] * 3


@pytest.mark.parametrize("headers", [{}, {"Host": "localhost"}], ids=["", "a Host of localhost"])
@pytest.mark.parametrize(
    "host", ["chat.example", "localhost.example", "notlocalhost", "192.168.0.1", "128.0.0.1", "[2001:db8::1]"]
)
def test_a_secure_cookie_goes_to_no_other_host_over_plain_http(
    host: str, headers: dict[str, str], everywhere: Callable[[str], str], provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]), base_url=everywhere(host), headers=headers)
    wire.on("POST", "/settings", settings_with_a_secure_cookie)
    assert provider.ask("Hi") == "a"
    assert [request.header("Cookie") for request in wire.requests] == [None] * 4


def test_the_cookies_of_a_callers_own_session_are_left_to_it(provider_for: Make, wire: Wire) -> None:
    with requests.Session() as session:
        provider = provider_for(H2O, speak(H2O, ["a"]), session=session)
        wire.on("POST", "/settings", settings_with_a_secure_cookie)
        assert provider.ask("Hi") == "a"
    assert [request.header("Cookie") for request in wire.requests] == [None] * 4


# What the embedded server does when it is told to stop


class Endless:
    """Says something every hundredth of a second, until it is closed."""

    def __init__(self) -> None:
        self.begun, self.closed = threading.Event(), threading.Event()

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Any:
        try:
            while not self.closed.wait(0.01):
                yield "word "
                self.begun.set()
        finally:
            self.closed.set()


@pytest.fixture
def stops_in_time() -> Callable[[threading.Event], None]:
    """What must happen within a second."""

    def check(event: threading.Event) -> None:
        assert event.wait(1), "it goes on"

    return check


def begin(server: LocalServer) -> tuple[requests.Session, str, requests.Response]:
    """Asks by hand, and leaves the reply open."""
    session, own = requests.Session(), str(uuid4())
    form = {"ethicsModalAccepted": "true", "shareConversationsWithModelAuthors": "true", "ethicsModalAcceptedAt": ""}
    form |= {"activeModel": "m", "searchEnabled": "true"}
    session.post(f"{server.url}/settings", data=form, allow_redirects=False)
    made = session.post(f"{server.url}/conversation", json={"model": "m"}).json()["conversationId"]
    question = {"inputs": "Hi", "parameters": {}, "stream": True, "options": {"id": own, "response_id": own}}
    path = f"{server.url}/conversation/{made}"
    return session, path, session.post(path, json=question, stream=True)


def test_it_stops_an_answer_whose_client_stays(stops_in_time: Callable[[threading.Event], None]) -> None:
    endless = Endless()
    with LocalServer(upstream=endless) as server:
        session, path, reply = begin(server)
        with session, reply:
            assert endless.begun.wait(PATIENCE)
            assert session.post(f"{path}/stop-generating").status_code == 200
            stops_in_time(endless.closed)
            assert session.post(f"{path}x/stop-generating").status_code == 404


def test_it_stops_an_answer_whose_next_piece_is_far_away() -> None:
    with LocalServer(delay=0.2) as server:
        session, path, reply = begin(server)
        with session, reply:
            events = (line for line in reply.iter_lines(chunk_size=1) if line)
            next(events)
            server._backend._delay = PATIENCE
            next(events)  # which it had begun to wait for
            started = time.monotonic()
            session.post(f"{path}/stop-generating")
            with pytest.raises(requests.RequestException):
                next(events)
            assert time.monotonic() - started < 1


def test_it_answers_the_next_question_of_a_conversation_that_was_stopped() -> None:
    with LocalServer(delay=0.01) as server:
        session, path, reply = begin(server)
        with session, reply:
            session.post(f"{path}/stop-generating")
            own = str(uuid4())
            question = {"inputs": "Hi", "parameters": {}, "stream": True, "options": {"id": own, "response_id": own}}
            assert '"generated_text": "This' in session.post(path, json=question).text
