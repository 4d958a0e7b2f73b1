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

from berlin_chat import (
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Cancelled,
    CancelToken,
    ChatError,
    H2o,
    InvalidRequest,
    Provider,
    StreamInterrupted,
    Ylokh,
)
from berlin_chat.http import login
from berlin_chat.http.connections import Adapter
from berlin_chat.server import LocalServer
from wire import H2O, PATIENCE, YLOKH, Chunked, Connection, Recorded, Wire, h2o_event, settings, speak, wait_for

Make = Callable[..., Provider]


def left(wire: Wire) -> set[str]:
    """The conversations that were made and not deleted."""
    made = {f"/conversation/c{n + 1}" for n in range(len(wire.asked("POST", "/conversation")))}
    assert made, "no conversation was ever made"
    return made - {request.path for request in wire.asked("DELETE", "/conversation/[^/]+")}


def stopped(wire: Wire) -> list[str]:
    """The conversations whose model was stopped; each of them before it was deleted."""
    paths = [(request.method, request.path) for request in wire.requests]
    ends = [path for method, path in paths if method == "POST" and path.endswith("/stop-generating")]
    names = [path.removesuffix("/stop-generating") for path in ends]
    for name, end in zip(names, ends, strict=True):
        wait_for(lambda name=name: wire.asked("DELETE", name))  # type: ignore[misc]
        paths = [(request.method, request.path) for request in wire.requests]
        assert paths.index(("POST", end)) < paths.index(("DELETE", name))
    return names


def one_piece_then_silence(request: Recorded, connection: Connection) -> None:
    Chunked(connection, H2O.kind, b"").part(H2O.parts(["a"])[0])
    connection.wait_until_client_closes()


def test_after_a_full_reply(provider_for: Make, wire: Wire) -> None:
    assert provider_for(H2O, speak(H2O, ["a"])).ask("Hi") == "a"
    assert left(wire) == set()
    assert stopped(wire) == []


def test_after_a_close_while_the_deletion_looks_for_its_connection(
    provider_for: Make, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool that it has found is closed before it is used."""
    provider = provider_for(H2O, speak(H2O, ["a"]))
    found = Adapter.get_connection_with_tls_context

    def closes(adapter: Adapter, request: Any, *args: Any, **kwargs: Any) -> Any:
        pool = found(adapter, request, *args, **kwargs)
        if request.method == "DELETE" and not provider._transport.closed:
            provider._transport.close()
        return pool

    monkeypatch.setattr(Adapter, "get_connection_with_tls_context", closes)
    assert provider.ask("Hi") == "a"
    provider.close()
    assert left(wire) == set()


def test_after_a_break_at_the_piece_that_ends_the_reply(provider_for: Make, wire: Wire) -> None:
    body = h2o_event("a") + h2o_event("b", generated="ab")
    for piece in provider_for(H2O, lambda request, connection: connection.respond(200, body)).stream("Hi"):
        if piece == "b":
            break
    assert left(wire) == set()
    assert stopped(wire) == []


def test_after_a_break(provider_for: Make, wire: Wire) -> None:
    for _ in provider_for(H2O, one_piece_then_silence).stream("Hi"):
        break
    assert left(wire) == set()
    assert stopped(wire) == ["/conversation/c1"]


def test_after_close_of_the_generator(provider_for: Make, wire: Wire) -> None:
    stream = provider_for(H2O, one_piece_then_silence).stream("Hi")
    next(stream)
    assert left(wire) == {"/conversation/c1"}
    stream.close()
    assert left(wire) == set()
    assert stopped(wire) == ["/conversation/c1"]


def test_after_an_exception_in_the_loop(provider_for: Make, wire: Wire) -> None:
    def loop() -> None:
        for _ in provider_for(H2O, one_piece_then_silence).stream("Hi"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert left(wire) == set()
    assert stopped(wire) == ["/conversation/c1"]


def test_after_a_broken_stream(provider_for: Make, wire: Wire) -> None:
    def cut(request: Recorded, connection: Connection) -> None:
        Chunked(connection, H2O.kind, b"").part(H2O.parts(["a"])[0])
        connection.close()

    with pytest.raises(StreamInterrupted):
        provider_for(H2O, cut).ask("Hi")
    assert left(wire) == set()
    assert stopped(wire) == ["/conversation/c1"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 422, 429, 500, 502, 503])
def test_after_a_question_that_was_refused(status: int, provider_for: Make, wire: Wire) -> None:
    with pytest.raises(ChatError) as caught:
        provider_for(H2O, lambda request, connection: connection.respond(status, {"error": "x"}), retries=0).ask("Hi")
    assert caught.value.status == status
    assert left(wire) == set()
    assert stopped(wire) == [], "the model was never at work"


def test_after_a_cancel_in_mid_stream(provider_for: Make, wire: Wire) -> None:
    token = CancelToken()
    with pytest.raises(Cancelled) as caught:
        for _ in provider_for(H2O, one_piece_then_silence).stream("Hi", cancel=token):
            threading.Timer(0.05, token.cancel).start()
    assert caught.value.partial == "a"
    wait_for(lambda: not left(wire))
    assert stopped(wire) == ["/conversation/c1"]


def test_after_a_deadline(provider_for: Make, wire: Wire) -> None:
    with pytest.raises(APITimeoutError):
        provider_for(H2O, one_piece_then_silence).ask("Hi", deadline=0.2)
    wait_for(lambda: not left(wire))
    assert stopped(wire) == ["/conversation/c1"]


def test_after_close_of_the_provider(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, one_piece_then_silence)
    with pytest.raises(Cancelled):
        for _ in provider.stream("Hi"):
            threading.Timer(0.05, provider.close).start()
    wait_for(lambda: not left(wire))
    assert stopped(wire) == ["/conversation/c1"]
    for connection in wire.connections:
        assert connection.gone.wait(PATIENCE), "a connection outlived close()"


def test_after_a_cancel_before_the_first_byte(provider_for: Make, wire: Wire) -> None:
    token = CancelToken()

    def silent(request: Recorded, connection: Connection) -> None:
        token.cancel()
        connection.wait_until_client_closes()

    with pytest.raises(Cancelled):
        provider_for(H2O, silent).ask("Hi", cancel=token)
    wait_for(lambda: not left(wire))
    assert stopped(wire) == ["/conversation/c1"]


@pytest.mark.parametrize("status", [None, 404, 500])
def test_a_stop_that_fails_hides_nothing_and_the_conversation_is_deleted(
    status: int | None, provider_for: Make, wire: Wire
) -> None:
    def fails(request: Recorded, connection: Connection) -> None:
        if status is None:
            connection.close()
        else:
            connection.respond(status)

    body = h2o_event("a") + b'data: {"error": "out of memory", "error_type": "generation"}\n\n'
    provider = provider_for(H2O, lambda request, connection: connection.respond(200, body), retries=3)
    wire.on("POST", "/conversation/c1/stop-generating", fails)
    with pytest.raises(APIStatusError, match="out of memory") as caught:
        provider.ask("Hi")
    assert caught.value.partial == "a"
    assert left(wire) == set()
    assert stopped(wire) == ["/conversation/c1"], "it was not sent, or more than once"


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


@pytest.mark.parametrize("status", [200, 303])
def test_settings_may_be_answered_by_a_whole_page(status: int, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]))
    page = {"Content-Type": "text/html", "Location": "/"}
    wire.on("POST", "/settings", lambda request, connection: connection.respond(status, b"<!DOCTYPE html>", page))
    assert provider.ask("Hi") == "a"


def test_a_session_that_the_server_has_forgotten_is_begun_anew_at_once(
    provider_for: Make, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "uniform", None)  # what a login waits where the server has one for each account
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


def test_settings_that_fail_say_that_the_model_may_be_unknown(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]), model="no/such-model", retries=1)
    failing = {"message": "Internal Error"}
    wire.on("POST", "/settings", lambda request, connection: connection.respond(500, failing, {"Retry-After": "0"}))
    with pytest.raises(APIStatusError, match="The model may be unknown to the server: no/such-model") as caught:
        provider.ask("Hi")
    assert (caught.value.status, caught.value.attempts) == (500, 2)


@pytest.mark.parametrize("path", ["", "/chat"])
def test_a_wrong_origin_is_named(path: str, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]), base_url=wire.url + path)
    refused = b"Invalid referer for POST request"
    wire.on("POST", f"{path}/settings", lambda request, connection: connection.respond(403, refused))
    with pytest.raises(AuthenticationError, match="Invalid referer") as caught:
        provider.ask("Hi")
    assert str(caught.value).endswith(f"The server's ORIGIN (later PUBLIC_ORIGIN) must be {wire.url}")
    assert "credentials" not in str(caught.value)


def test_settings_that_are_forbidden_for_another_reason_are_about_credentials(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]))
    wire.on("POST", "/settings", lambda request, connection: connection.respond(403, b"banned"))
    with pytest.raises(AuthenticationError, match="Check the credentials"):
        provider.ask("Hi")


def test_an_option_that_the_protocol_does_not_have_is_refused_at_the_call() -> None:
    provider = H2o(base_url="http://127.0.0.1:1")
    with pytest.raises(InvalidRequest, match=r"no option 'timeut': it has .*, temperature, "):
        provider.stream("Hi", timeut=3)
    every = dict.fromkeys(H2o.known_options, 1)
    assert provider.payload([{"role": "user", "content": "Hi"}], "m", every)["parameters"] == every


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


def test_it_stops_the_provider_behind_it_when_the_caller_breaks(wire: Wire) -> None:
    def one_piece(request: Recorded, connection: Connection) -> None:
        Chunked(connection, YLOKH.kind, b"").part(YLOKH.parts(["a"])[0])
        connection.wait_until_client_closes()

    wire.on(*YLOKH.route, one_piece)
    with Ylokh(base_url=wire.url) as upstream, LocalServer(upstream=upstream) as server:
        with server.provider("h2o") as provider:
            for _ in provider.stream("Hi"):
                break
            assert wire.connections[0].gone.wait(1), "the model goes on"
        assert server.conversations == []


def test_it_answers_the_next_question_of_a_conversation_that_was_stopped() -> None:
    with LocalServer(delay=0.01) as server:
        session, path, reply = begin(server)
        with session, reply:
            session.post(f"{path}/stop-generating")
            own = str(uuid4())
            question = {"inputs": "Hi", "parameters": {}, "stream": True, "options": {"id": own, "response_id": own}}
            assert '"generated_text": "This' in session.post(path, json=question).text
