"""Every error of the table, produced by a real server that behaves badly; none of them tells a secret."""

from __future__ import annotations

import gzip
import logging
import pickle
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import trustme
import urllib3

from berlin_chat import (
    Acytoo,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Berlin,
    Cancelled,
    ChatError,
    H2o,
    InvalidRequest,
    ProtocolError,
    Provider,
    ProviderNotWorking,
    RateLimitError,
    StreamInterrupted,
    Ylokh,
    get_provider,
)
from berlin_chat.cancellation import Limits
from berlin_chat.http import failures
from berlin_chat.http.responses import peeked, start_of
from wire import (
    ACYTOO,
    BERLIN,
    FRAMINGS,
    H2O,
    SPEECHES,
    YLOKH,
    Chunked,
    Connection,
    ContentLength,
    Framing,
    Recorded,
    Script,
    Speech,
    UntilClose,
    Wire,
    head,
)

Make = Callable[..., Provider]


def responding(status: int, body: Any = b"", headers: dict[str, str] | None = None) -> Script:
    return lambda request, connection: connection.respond(status, body, headers)


def failing(provider: Provider, **options: Any) -> ChatError:
    with pytest.raises(ChatError) as caught:
        provider.ask("Hi", **options)
    return caught.value


# Statuses


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, APIStatusError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, APIStatusError),
        (408, APIStatusError),
        (410, APIStatusError),
        (429, RateLimitError),
        (500, APIStatusError),
        (503, APIStatusError),
        (302, ProtocolError),
    ],
)
def test_a_status_becomes_its_error(status: int, kind: type[ChatError], speech: Speech, provider_for: Make) -> None:
    body = {"error": {"message": "the reason"}}
    error = failing(provider_for(speech, responding(status, body, {"Retry-After": "7"})))
    assert type(error) is kind
    assert error.status == status
    assert error.provider == speech.name
    assert error.body is not None
    assert "the reason" in error.body
    assert "the reason" in str(error)
    assert speech.name in str(error)
    assert "http://127.0.0.1:" in str(error)
    if isinstance(error, RateLimitError):
        assert error.retry_after == 7


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "one"}}, "one"),
        ({"detail": "two"}, "two"),
        ({"error": "three", "error_type": "overloaded"}, "three"),
        ({"code": 500, "msg": "four", "data": None}, "four"),
        (b"five", "five"),
        (b"\xff\xfe six", "six"),
        ([1, 2], "1"),
    ],
)
def test_the_reason_is_found_in_the_words_of_every_protocol(body: Any, said: str, provider_for: Make) -> None:
    content = str(body).encode() if isinstance(body, list) else body
    assert said in str(failing(provider_for(YLOKH, responding(500, content))))


def test_only_the_start_of_a_long_body_is_kept(provider_for: Make) -> None:
    error = failing(provider_for(YLOKH, responding(500, b"x" * 1_000_000)))
    assert error.body is not None
    assert len(error.body) < 2000


def test_a_redirect_is_not_followed(speech: Speech, provider_for: Make, wire: Wire) -> None:
    error = failing(provider_for(speech, responding(307, b"", {"Location": wire.url + "/elsewhere"})))
    assert isinstance(error, ProtocolError)
    assert "/elsewhere" in str(error)
    assert not wire.asked("POST", "/elsewhere")
    assert not wire.asked("GET", "/elsewhere")


# An error inside a 200


@pytest.mark.parametrize(
    ("speech", "kind", "body", "said"),
    [
        (BERLIN, "text/plain", b'{"code": 500, "msg": "no more quota"}', "no more quota"),
        (BERLIN, "text/plain", b"internal error", "internal error"),
        (BERLIN, "text/plain", b'{"content": 5}', '"content": 5'),
        (YLOKH, "text/event-stream", b'data: {"error": {"message": "too long"}}\n\n', "too long"),
        (YLOKH, "application/json", b'{"error": {"message": "too long"}}', "too long"),
        (H2O, "text/event-stream", b'data:{"error":"busy","error_type":"overloaded"}\n\n', "overloaded"),
        (ACYTOO, "application/json", b'{"error": {"message": "no key"}}', "no key"),
    ],
)
def test_an_error_inside_a_200_is_an_api_status_error(
    speech: Speech, kind: str, body: bytes, said: str, provider_for: Make
) -> None:
    error = failing(provider_for(speech, responding(200, body, {"Content-Type": kind})))
    assert type(error) is APIStatusError
    assert said in str(error)


def test_an_error_in_mid_stream_keeps_what_came_before(provider_for: Make) -> None:
    bad = {
        "berlin": b'\n{"code": 500, "msg": "bang"}',
        "ylokh": b'data: {"error": {"message": "bang"}}\n\n',
        "h2o": b'data: {"error": "bang"}\n\n',
    }
    for speech in (BERLIN, YLOKH, H2O):
        body = b"".join(speech.parts(["a", "b"])[:2]) + bad[speech.name]
        error = failing(provider_for(speech, responding(200, body, {"Content-Type": speech.kind})))
        assert type(error) is APIStatusError
        assert error.partial == "ab"
        assert "bang" in str(error)


# What is no protocol


PAGE = b"<!DOCTYPE html><html><body>Welcome to nginx!</body></html>"


@pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8"])
def test_a_web_page_is_a_protocol_error(kind: str, speech: Speech, provider_for: Make) -> None:
    error = failing(provider_for(speech, responding(200, PAGE, {"Content-Type": kind})))
    assert type(error) is ProtocolError
    assert "base_url" in str(error)
    assert error.body is not None
    assert "nginx" in error.body


@pytest.mark.parametrize(
    ("speech", "body"),
    [
        (BERLIN, b'{"content": "a\n{"content": "b"}\n'),
        (YLOKH, b"data: {broken\n\n"),
        (YLOKH, b"data: 5\n\n"),
        (YLOKH, b'data: {"choices": [{"delta": {"content": 5}}]}\n\n'),
        (H2O, b"data: {broken\n\n"),
        (H2O, b'data: {"generated_text": null}\n\n'),
        (H2O, b'data: {"token": {"text": 5, "special": false}, "generated_text": null}\n\n'),
    ],
)
def test_broken_json_and_missing_fields_are_protocol_errors(speech: Speech, body: bytes, provider_for: Make) -> None:
    error = failing(provider_for(speech, responding(200, body, {"Content-Type": speech.kind})))
    assert type(error) is ProtocolError


@pytest.mark.parametrize("event", [b'{"id": 1}', b"{}", b'{"type": "ping"}', b'{"choices": null}'])
def test_events_that_say_nothing_are_skipped_and_make_no_reply(event: bytes, provider_for: Make) -> None:
    error = failing(provider_for(YLOKH, responding(200, b"data: " + event + b"\n\n", {"Content-Type": YLOKH.kind})))
    assert type(error) is StreamInterrupted
    assert event.decode() in error.detail


@pytest.mark.parametrize("body", [b'{"choices": []}', b'{"choices": [{"message": {}}]}', b"[]", b"{broken"])
def test_a_completion_without_its_fields_is_a_protocol_error(body: bytes, provider_for: Make) -> None:
    error = failing(provider_for(YLOKH, responding(200, body, {"Content-Type": "application/json"})))
    assert type(error) is ProtocolError


@pytest.mark.parametrize("body", [b"{}", b'{"conversationId": 5}', b"<html>"])
def test_a_conversation_without_an_id_is_a_protocol_error(body: bytes, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, responding(200))
    wire.on("POST", "/conversation", responding(200, body))
    error = failing(provider)
    assert (type(error), error.status) == (ProtocolError, 200 if body != b"<html>" else None)


@pytest.mark.parametrize("speech", [BERLIN, YLOKH, H2O], ids=lambda speech: speech.name)
def test_a_line_without_end_is_a_protocol_error(speech: Speech, provider_for: Make) -> None:
    def endless(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, speech.kind, b"")
        body.part(b"data: " if speech is not BERLIN else b'{"content": "')
        while not connection.gone.is_set():
            body.part(b"x" * 65536)

    assert type(failing(provider_for(speech, endless))) is ProtocolError


def test_an_unknown_charset_is_a_protocol_error(provider_for: Make) -> None:
    error = failing(provider_for(ACYTOO, responding(200, b"a", {"Content-Type": "text/plain; charset=klingon"})))
    assert type(error) is ProtocolError
    assert "klingon" in str(error)


def test_a_body_that_is_not_in_its_content_encoding_is_a_protocol_error(speech: Speech, provider_for: Make) -> None:
    headers = {"Content-Type": speech.kind, "Content-Encoding": "gzip"}
    assert type(failing(provider_for(speech, responding(200, b"no gzip at all", headers)))) is ProtocolError


def test_broken_chunk_framing_is_a_protocol_error(speech: Speech, provider_for: Make) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        connection.send(head(200, {"Content-Type": speech.kind, "Transfer-Encoding": "chunked"}) + b"zz\r\nhello\r\n")

    assert type(failing(provider_for(speech, script))) is ProtocolError


def test_text_before_broken_chunk_framing_is_not_lost(speech: Speech, provider_for: Make) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        first = speech.parts(["a", "b"])[0]
        framed = b"%x\r\n%b\r\nzz\r\n" % (len(first), first)
        connection.send(head(200, {"Content-Type": speech.kind, "Transfer-Encoding": "chunked"}) + framed)

    error = failing(provider_for(speech, script))
    assert type(error) is ProtocolError
    assert error.partial == "a"


def test_a_server_that_does_not_speak_http_is_a_protocol_error(speech: Speech, wire: Wire) -> None:
    for method in ("POST", "DELETE"):
        wire.on(method, ".*", lambda request, connection: connection.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"))
    provider = get_provider(speech.name, base_url=wire.url, retries=0, **speech.config)
    assert type(failing(provider)) is ProtocolError


# A stream that ends before its end


# Where the end of the connection is the end of the reply, nothing tells a cut from it.
@pytest.mark.parametrize(
    ("speech", "framing"),
    [
        pytest.param(speech, framing, id=f"{speech.name}, {framing.name}")
        for speech in SPEECHES
        for framing in FRAMINGS
        if speech.ends() or not issubclass(framing, UntilClose)
    ],
)
def test_a_cut_stream_is_interrupted_and_partial_holds_all_text(
    speech: Speech, framing: type[Framing], provider_for: Make
) -> None:
    def cut(request: Recorded, connection: Connection) -> None:
        parts = speech.parts(["one", " two", " three"])
        body = framing(connection, speech.kind, b"".join(parts))
        for part in parts[:2]:
            body.part(part)
        connection.close()

    error = failing(provider_for(speech, cut))
    assert type(error) is StreamInterrupted
    assert error.partial == "one two"


def test_a_stream_that_ends_properly_but_without_its_end_marker_is_interrupted(provider_for: Make) -> None:
    for speech in (YLOKH, H2O):
        body = b"".join(speech.parts(["a", "b"])[:2])
        error = failing(provider_for(speech, responding(200, body, {"Content-Type": speech.kind})))
        assert type(error) is StreamInterrupted
        assert error.partial == "ab"


def test_berlin_cut_inside_an_object_is_interrupted(provider_for: Make) -> None:
    def cut(request: Recorded, connection: Connection) -> None:
        body = UntilClose(connection, "text/plain", b"")
        body.part(b'{"content": "a"}\n{"content": "b')
        body.end()

    error = failing(provider_for(BERLIN, cut))
    assert type(error) is StreamInterrupted
    assert error.partial == "a"


def test_a_reset_in_mid_stream_is_interrupted(speech: Speech, provider_for: Make) -> None:
    def reset(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, speech.kind, b"")
        body.part(speech.parts(["a", "b"])[0])
        assert got_first.wait(10)
        connection.reset()

    got_first = threading.Event()
    pieces = []
    with pytest.raises(StreamInterrupted) as caught:
        for piece in provider_for(speech, reset).stream("Hi"):
            pieces.append(piece)
            got_first.set()
    assert pieces == ["a"]
    assert caught.value.partial == "a"


# No connection, and no answer


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.name)
def test_a_refused_connection_says_what_to_do(speech: Speech) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    error = failing(get_provider(speech.name, base_url=url, retries=0, **speech.config))
    assert type(error) is APIConnectionError
    assert "base_url" in str(error)
    assert url in str(error)
    assert error.__cause__ is not None


def test_a_host_that_does_not_exist_is_a_connection_error() -> None:
    assert type(failing(Ylokh(base_url="http://nowhere.invalid", retries=0))) is APIConnectionError


def test_a_dead_proxy_is_a_connection_error() -> None:
    proxy = f"http://user:proxy-secret@127.0.0.1:{closed_port()}"
    error = failing(Ylokh(base_url="http://127.0.0.1:1", proxy=proxy, retries=0))
    assert type(error) is APIConnectionError
    assert "proxy" in str(error)
    assert "proxy-secret" not in whole_text(error)


def test_a_proxy_from_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> None:
    wire.on("POST", "http://api.example/v1/chat/completions", responding(418))
    monkeypatch.setenv("http_proxy", wire.url)
    assert failing(Ylokh(base_url="http://api.example", retries=0)).status == 418


@contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which each connection is handed to ``talk``."""

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, suppress(OSError):
                talk(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_tls_to_a_plain_server_is_a_connection_error() -> None:
    def plain(sock: socket.socket) -> None:
        sock.recv(1024)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with listening(plain) as port:
        error = failing(Ylokh(base_url=f"https://127.0.0.1:{port}", retries=0))
    assert type(error) is APIConnectionError
    assert "TLS" in str(error)


def test_tls_to_a_silent_server_is_a_timeout_of_connecting() -> None:
    with listening(lambda sock: sock.recv(1_000_000) and sock.recv(1)) as port:
        error = failing(Ylokh(base_url=f"https://127.0.0.1:{port}", retries=0, timeout=(0.1, 60)))
    assert type(error) is APITimeoutError
    assert "0.1 s" in str(error)


def test_a_connection_closed_before_the_answer_is_a_connection_error(speech: Speech, provider_for: Make) -> None:
    error = failing(provider_for(speech, lambda request, connection: connection.close()))
    assert type(error) is APIConnectionError


def test_a_silent_server_is_a_timeout(speech: Speech, provider_for: Make) -> None:
    silent: Script = lambda request, connection: connection.wait_until_client_closes()  # noqa: E731
    error = failing(provider_for(speech, silent, timeout=(5, 0.1)))
    assert type(error) is APITimeoutError
    assert isinstance(error, TimeoutError)
    assert "0.1" in str(error)


def test_a_server_that_falls_silent_is_a_timeout_and_partial_holds_the_text(speech: Speech, provider_for: Make) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        parts = speech.parts(["a", "b"])
        ContentLength(connection, speech.kind, b"".join(parts)).part(parts[0])
        connection.wait_until_client_closes()

    error = failing(provider_for(speech, script, timeout=(5, 0.1)))
    assert type(error) is APITimeoutError
    assert error.partial == "a"


# What is wrong before anything is sent


@pytest.mark.parametrize("cls", [Berlin, Ylokh, H2o, Acytoo])
def test_without_an_address_the_call_says_the_ways_out(cls: type[Provider]) -> None:
    provider = cls()
    assert cls.__name__ in repr(provider)
    with pytest.raises(ProviderNotWorking) as caught:
        provider.stream("Hi")
    text = str(caught.value)
    for way in ("base_url=", f"BERLIN_CHAT_{cls.name.upper()}_URL", "LocalServer", f"{cls.__name__}.url"):
        assert way in text


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ([], "empty"),
        (b"Hi", "bytes"),
        (5, "int"),
        (None, "NoneType"),
        (["Hi"], "messages[0]"),
        ([{"role": "user", "content": "Hi"}, {"role": "user"}], "messages[1] has no 'content'"),
        ([{"content": "Hi"}], "messages[0] has no 'role'"),
        ([{"role": "", "content": "Hi"}], "messages[0]['role']"),
        ([{"role": 5, "content": "Hi"}], "messages[0]['role']"),
        ([{"role": "user", "content": None}], "messages[0]['content']"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
    ],
)
def test_wrong_messages_are_named_at_the_call(messages: Any, where: str, speech: Speech) -> None:
    provider = get_provider(speech.name, base_url="http://127.0.0.1:1", **speech.config)
    with pytest.raises(InvalidRequest) as caught:
        provider.stream(messages)
    assert where in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": {1, 2}},
        {"temperature": float("nan")},
        {"deadline": 0},
        {"deadline": "1"},
        {"cancel": 1},
    ],
)
def test_wrong_options_are_named_at_the_call(options: dict[str, Any], speech: Speech) -> None:
    provider = get_provider(speech.name, base_url="http://127.0.0.1:1", **speech.config)
    with pytest.raises(InvalidRequest):
        provider.stream("Hi", **options)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"base_url": "127.0.0.1:8080"}, "base_url"),
        ({"base_url": "ftp://127.0.0.1"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "http://[::1"}, "base_url"),
        ({"base_url": "http://127.0.0.1:99999"}, "base_url"),
        ({"base_url": "http://127.0.0.1/?a=b"}, "base_url"),
        ({"base_url": "http://me:sesame@127.0.0.1"}, "headers="),
        ({"base_url": 5}, "base_url"),
        ({"proxy": "127.0.0.1:3128"}, "proxy"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": (1, -1)}, "timeout"),
        ({"timeout": "fast"}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"retries": 1.5}, "retries"),
        ({"pool_size": 0}, "pool_size"),
        ({"verify": "/no/such/file"}, "verify"),
        ({"verify": None}, "verify"),
        ({"headers": {"X": "a\nb"}}, "headers['X']"),
        ({"headers": {"X": 5}}, "headers['X']"),
        ({"api_key": "sesame\n"}, "api_key"),
        ({"api_key": "ключ"}, "api_key"),
        ({"api_key": 5}, "api_key"),
    ],
)
def test_a_wrong_configuration_is_named_when_it_is_given(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Ylokh(**{"base_url": "http://127.0.0.1:1", **config})
    assert said in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_berlin_without_an_account_says_so_at_the_call() -> None:
    with pytest.raises(InvalidRequest, match="account="):
        Berlin(base_url="http://127.0.0.1:1").stream("Hi")


# Errors as values


def test_errors_survive_a_pickle(provider_for: Make) -> None:
    error = failing(provider_for(YLOKH, responding(429, {"error": "slow"}, {"Retry-After": "3"})))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is RateLimitError
    assert str(copy) == str(error)
    assert (copy.retry_after, copy.status, copy.body) == (3, 429, error.body)


@pytest.mark.parametrize("kind", [ChatError, APITimeoutError, Cancelled, InvalidRequest, StreamInterrupted])
def test_every_error_is_a_chat_error_and_a_runtime_error(kind: type[ChatError]) -> None:
    error = kind("what happened", partial="some")
    assert isinstance(error, ChatError)
    assert isinstance(error, RuntimeError)
    assert str(error) == "what happened"
    assert pickle.loads(pickle.dumps(error)).partial == "some"


# Secrets


def whole_text(error: BaseException) -> str:
    """All that a person or a log could see of an error."""
    text = "".join(traceback.format_exception(error)) + repr(error)
    return text + repr(getattr(error, "__dict__", {}))


SECRETS = {
    "openai": ({"api_key": "key-sesame"}, ["key-sesame"]),
    "berlin": ({"account": "me", "password": "pass-sesame"}, ["pass-sesame", "token-1"]),
    "ylokh": ({"api_key": "key-sesame"}, ["key-sesame"]),
    "h2o": ({"headers": {"Authorization": "Bearer auth-sesame"}}, ["auth-sesame", "cookie-1"]),
    "acytoo": ({"key": "key-sesame", "password": "pass-sesame"}, ["key-sesame", "pass-sesame"]),
}


@pytest.mark.parametrize("status", [400, 401, 500])
def test_no_secret_is_in_an_error_even_if_the_server_repeats_it(
    status: int, speech: Speech, provider_for: Make, caplog: pytest.LogCaptureFixture
) -> None:
    config, secrets = SECRETS[speech.name]

    def repeat(request: Recorded, connection: Connection) -> None:
        everything = request.body + repr(request.header_lines).encode()
        connection.respond(status, {"error": {"message": everything.decode()}})

    caplog.set_level(logging.DEBUG)
    provider = provider_for(speech, repeat, **config)
    error = failing(provider)
    seen = whole_text(error) + repr(provider) + caplog.text
    assert [secret for secret in secrets if secret in seen] == []


def test_no_secret_of_a_refused_login_is_in_its_error(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, responding(200), password="pass-sesame")
    for status in (200, 400, 500):
        wire.on("POST", "/api/login", lambda r, c, status=status: c.respond(status, {"msg": r.body.decode()}))
        assert "pass-sesame" not in whole_text(failing(provider))


def test_a_certificate_that_nobody_vouches_for_is_not_tried_again() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    attempts = []

    def shake_hands(sock: socket.socket) -> None:
        attempts.append(sock)
        context.wrap_socket(sock, server_side=True).close()

    with listening(shake_hands) as port:
        error = failing(Ylokh(base_url=f"https://127.0.0.1:{port}", retries=3))
    assert type(error) is APIConnectionError
    assert "verify=" in str(error)
    assert len(attempts) == 1
    assert isinstance(error.__cause__, requests.exceptions.SSLError)


@pytest.mark.parametrize("status", [101, *range(300, 600)])
def test_each_status_is_an_error_with_its_advice(status: int) -> None:
    special: dict[int, tuple[type[ChatError], str]] = {
        401: (AuthenticationError, "credentials"),
        403: (AuthenticationError, "credentials"),
        404: (APIStatusError, "base_url and the model"),
        407: (APIConnectionError, "proxy="),
        429: (RateLimitError, "less often"),
    }
    kind, advice = special.get(status, (APIStatusError, ""))
    if 300 <= status < 400:
        kind, advice = ProtocolError, "give the right base_url"
    response: Any = SimpleNamespace(status_code=status, reason="Because", headers={"Retry-After": "3"})
    error = failures.status_error(response, b'{"error": "said"}')
    assert (type(error), error.status, error.retry_after, error.detail) == (kind, status, 3.0, "said")
    assert advice in error.advice if advice else not error.advice
    assert f"{status} Because" in str(error)


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, "401", None])
@pytest.mark.parametrize("first", [True, False])
def test_only_a_first_object_refuses_the_token(code: Any, first: bool) -> None:
    error = failures.object_error({"code": code, "msg": "нет"}, first)
    refused = first and code in (401, 403)
    assert type(error) is (AuthenticationError if refused else APIStatusError)
    assert (error.status, "нет" in str(error)) == (200, True), "it is not told in the server's own letters"


def test_what_is_said_instead_of_a_reply_came_with_success() -> None:
    error = failures.said_error(b'{"error": {"message": "overloaded"}}')
    assert (type(error), error.status, error.detail) == (APIStatusError, 200, "overloaded")


def test_a_failure_without_a_word_is_told_by_the_name_of_what_is_innermost() -> None:
    failure = requests.ConnectionError(urllib3.exceptions.ProtocolError("aborted", ConnectionResetError()))
    error = failures.explanation(failure, (1.0, 2.0))
    assert isinstance(error, APIConnectionError)
    assert error.detail == "ConnectionResetError"


@pytest.mark.parametrize(
    ("said", "kind"),
    [("cannot read", StreamInterrupted), ("no TLS CA certificate bundle, invalid path: /nowhere", InvalidRequest)],
)
def test_only_a_path_of_certificates_makes_the_request_wrong(said: str, kind: type[ChatError]) -> None:
    assert type(failures.explanation(OSError(said), (1.0, 2.0))) is kind
    assert type(failures.explanation(ConnectionError(said), (1.0, 2.0))) is StreamInterrupted


@pytest.mark.parametrize("status", [200, 201, 299])
def test_each_success_is_one(status: int, provider_for: Make) -> None:
    assert provider_for(ACYTOO, responding(status, b"text")).ask("Hi") == "text"


@pytest.mark.parametrize("speech", [ACYTOO, BERLIN, H2O], ids=lambda speech: speech.name)
def test_what_is_labelled_as_a_page_is_one_whatever_it_begins_with(speech: Speech, provider_for: Make) -> None:
    body = b"".join(speech.parts(["a", "b"]))
    error = failing(provider_for(speech, responding(200, b'{"content": "a"}' + body, {"Content-Type": "text/html"})))
    assert type(error) is ProtocolError
    assert "a web page came back" in str(error)


def test_what_comes_right_behind_the_successes_is_none(provider_for: Make) -> None:
    assert failing(provider_for(ACYTOO, responding(300, b"text"))).status == 300


@pytest.mark.parametrize(("status", "slower"), [(400, False), (429, True), (430, False), (503, False)])
def test_only_429_slows_a_batch_down(status: int, slower: bool, provider_for: Make) -> None:
    refused: list[float | None] = []
    limiter: Any = SimpleNamespace(wait=lambda sleep: None, refused=refused.append)
    provider: Any = provider_for(ACYTOO, responding(status, b"no", {"Retry-After": "7"}))
    settings = provider._transport.settings
    with provider._transport.exchange(Limits(limiter=limiter), settings) as exchange, pytest.raises(ChatError):
        exchange.post("/api/completions", {})
    assert refused == ([7.0] if slower else [])


def test_content_is_decompressed_by_either_name_of_gzip_and_refused_by_a_name_of_another(provider_for: Make) -> None:
    for name in ("gzip", "x-gzip", "X-GZIP"):
        answer = responding(200, gzip.compress(b"text"), {"Content-Encoding": name})
        assert provider_for(ACYTOO, answer).ask("Hi") == "text"
    assert type(failing(provider_for(ACYTOO, responding(200, b"text", {"Content-Encoding": "zstd"})))) is ProtocolError


@pytest.mark.parametrize(
    "said",
    [b"hello", b"SSH-2.0-OpenSSH_9.9", b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 200 " + b"x" * 70_000],
    ids=["a word", "another protocol", "a line of another protocol", "a line that is too long"],
)
def test_who_says_something_else_than_http_and_goes_does_not_speak_it(said: bytes, provider_for: Make) -> None:
    def other(request: Recorded, connection: Connection) -> None:
        connection.send(said)
        connection.close()

    assert type(failing(provider_for(ACYTOO, other))) is ProtocolError


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\n"])
def test_a_head_that_is_cut_off_is_no_head(said: bytes, provider_for: Make) -> None:
    def torn(request: Recorded, connection: Connection) -> None:
        connection.send(said)
        connection.close()

    assert type(failing(provider_for(ACYTOO, torn))) is APIConnectionError


def test_no_more_of_an_error_is_read_than_is_kept() -> None:
    owner, response = SimpleNamespace(deadline=None), SimpleNamespace(raw=None)
    body: Any = iter([b"a"] * 10)
    assert start_of(body, response, owner, 5.0, 4) == b"aaaa"  # type: ignore[arg-type]
    assert len(list(body)) == 6
    assert owner.deadline is None


def test_an_answer_may_be_as_long_as_the_limit_and_no_longer(provider_for: Make) -> None:
    provider = provider_for(ACYTOO, responding(200, b"12345678"), max_reply_bytes=8)
    assert provider.ask("Hi") == "12345678"
    error = failing(provider_for(ACYTOO, responding(200, b"123456789"), max_reply_bytes=8))
    assert (type(error), "max_reply_bytes" in str(error)) == (ProtocolError, True)


def test_no_more_is_waited_for_than_tells_what_a_body_is() -> None:
    def body() -> Iterator[bytes]:
        yield b"  eve"
        yield b"nt:"
        pytest.fail("it waits for more")

    start, _ = peeked(body())
    assert start == b"event:"
