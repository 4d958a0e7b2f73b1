"""Whatever a server sends, what comes of it is a ``ChatError`` that can be shown, and nothing stays open."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import requests

from berlin_chat import (
    Acytoo,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Cancelled,
    CancelToken,
    ChatError,
    InvalidRequest,
    ProtocolError,
    Provider,
    RateLimitError,
    StreamInterrupted,
)
from berlin_chat.http import transport
from berlin_chat.http.encodings import decompressed
from test_resources import needs_proc, sockets_to
from wire import (
    ACYTOO,
    BERLIN,
    H2O,
    OPENAI,
    PATIENCE,
    YLOKH,
    Chunked,
    ChunkedGzip,
    Connection,
    Recorded,
    Script,
    Speech,
    Stopwatch,
    Wire,
    speak,
    wait_for,
)

Make = Callable[..., Provider]
#: How long an error's text may be, in characters.
SHORT = 500


def saying(answer: bytes) -> Script:
    """Sends these bytes as the whole answer, and closes."""

    def script(request: Recorded, connection: Connection) -> None:
        connection.send(answer)
        connection.close()

    return script


def head(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode("latin-1")


def whole(kind: str, body: bytes) -> bytes:
    return head(f"Content-Type: {kind}", f"Content-Length: {len(body)}") + body


def failing(provider: Provider, wire: Wire) -> ChatError:
    """The error of a question, which can be shown in every way, and leaves nothing open."""
    with pytest.raises(ChatError) as caught:
        provider.ask("Hi")
    error = caught.value
    assert len(str(error)) < SHORT
    assert repr(error)
    assert "".join(traceback.format_exception(error))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    provider.close()
    wait_for(lambda: sockets_to(wire) == 0)
    return error


DEPTHS = [150, 250, 900, 1000, 1100, 3000, 100_000]
ARRAY = {depth: b"[" * depth + b"]" * depth for depth in DEPTHS}
OBJECT = {depth: b'{"a":' * depth + b"1" + b"}" * depth for depth in DEPTHS}


@needs_proc
@pytest.mark.parametrize("speech", [OPENAI, BERLIN, YLOKH, H2O], ids=lambda speech: speech.name)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"%b", id="a whole body"),
        pytest.param(b'{"code": 401, "error": %b}\n', id="an error in a line"),
        pytest.param(b'{"content": %b}\n', id="a text in a line"),
        pytest.param(b"data: %b\n\n", id="an event"),
        pytest.param(b'data: {"error": %b}\n\n', id="an error in an event"),
        pytest.param(b'data: {"token": {"text": %b}, "generated_text": null}\n\n', id="a text in an event"),
    ],
)
def test_json_that_is_nested_deeply_is_an_error(
    body: bytes, depth: int, speech: Speech, provider_for: Make, wire: Wire
) -> None:
    for nested in (ARRAY[depth], OBJECT[depth]):
        provider = provider_for(speech, saying(whole("text/event-stream", body % nested)))
        assert not isinstance(failing(provider, wire), InvalidRequest)


@needs_proc
@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_that_is_nested_deeply_keeps_its_status(
    depth: int, speech: Speech, provider_for: Make, wire: Wire
) -> None:
    body = b'{"error": %b}' % ARRAY[depth]
    error = failing(
        provider_for(speech, lambda request, connection: connection.respond(500, body)),
        wire,
    )
    assert type(error) is APIStatusError
    assert error.status == 500


def test_json_may_be_nested_as_deeply_as_anybody_needs(provider_for: Make) -> None:
    deep = b'{"content": "a", "more": %b}\n' % ARRAY[150]
    assert provider_for(BERLIN, saying(whole("text/plain", deep))).ask("Hi") == "a"


def test_brackets_in_a_text_are_not_nested(provider_for: Make) -> None:
    text = "[{" * 5000 + r"\"[" * 5000
    line = b'{"content": "%b"}\n' % text.replace("\\", "\\\\").replace('"', '\\"').encode()
    assert provider_for(BERLIN, saying(whole("text/plain", line))).ask("Hi") == text


@needs_proc
@pytest.mark.parametrize(
    "cut", [b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"]
)
def test_a_head_that_is_cut_off_is_no_answer_and_is_asked_again(
    cut: bytes, speech: Speech, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(speech, saying(cut), retries=1)
    assert isinstance(failing(provider, wire), APIConnectionError)
    method, path = speech.route
    assert len(wire.asked(method, path)) == 2


@needs_proc
@pytest.mark.parametrize("length", ["5, 6", "-1", "abc", "1e3", "5;x", "+5", "0x5", "", "٥"])
def test_a_length_that_is_none_is_broken_http(length: str, speech: Speech, provider_for: Make, wire: Wire) -> None:
    answer = head("Content-Type: text/plain", "Content-Length: ").replace(
        b": \r\n\r\n", b": " + length.encode() + b"\r\n\r\n"
    )
    error = failing(provider_for(speech, saying(answer + b"hello")), wire)
    assert type(error) is ProtocolError
    assert "does not speak HTTP" in str(error)


@pytest.mark.parametrize("lines", [["Content-Length: 5, 5"], ["Content-Length: 5", "Content-Length: 5"]])
def test_a_length_that_is_said_twice_is_one(lines: list[str], provider_for: Make, wire: Wire) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        connection.send(head("Content-Type: text/plain", *lines) + b"hello")  # and the connection stays open

    provider = provider_for(ACYTOO, script)
    assert [provider.ask("Hi") for _ in range(2)] == ["hello", "hello"]
    assert len(wire.connections) == 1


@needs_proc
@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip", "chunked, chunked", "x"])
def test_a_transfer_coding_that_was_not_asked_for_is_broken_http(
    coding: str, speech: Speech, provider_for: Make, wire: Wire
) -> None:
    answer = head("Content-Type: text/plain", f"Transfer-Encoding: {coding}") + b"5\r\nhello\r\n0\r\n\r\n"
    error = failing(provider_for(speech, saying(answer)), wire)
    assert type(error) is ProtocolError
    assert coding in str(error)


@needs_proc
@pytest.mark.parametrize(
    "charset", ["hex", "zip", "bz2", "base64", "rot13", "idna", "undefined", "a\0b", "nobody-knows", "x" * 10_000]
)
def test_a_charset_that_is_none_of_text_is_an_error(charset: str, provider_for: Make, wire: Wire) -> None:
    error = failing(provider_for(ACYTOO, saying(whole(f"text/plain; charset={charset}", b"hello"))), wire)
    assert type(error) is ProtocolError
    assert "unknown charset" in str(error)


def test_text_that_is_not_in_its_charset_is_an_error_and_what_came_before_is_kept(
    provider_for: Make, wire: Wire
) -> None:
    answer = whole("text/plain; charset=utf-16", b"hello")
    assert "not in its charset, utf-16" in str(failing(provider_for(ACYTOO, saying(answer)), wire))


@needs_proc
def test_a_long_reason_is_cut(speech: Speech, provider_for: Make, wire: Wire) -> None:
    answer = b"HTTP/1.1 500 " + b"r" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n"
    assert "answered 500 rrr" in str(failing(provider_for(speech, saying(answer)), wire))


@needs_proc
@pytest.mark.parametrize(
    "location",
    ["http://[", "http://a\x01b/", "http://[::1", "//\x7f", "http://h\xe9/", "file:///x", "x" * 60_000, "\t"],
)
def test_a_redirect_to_no_address_is_an_error(location: str, speech: Speech, provider_for: Make, wire: Wire) -> None:
    answer = head(f"Location: {location}", "Content-Length: 0").replace(b"200 OK", b"302 Found")
    assert failing(provider_for(speech, saying(answer)), wire).status == 302


@pytest.mark.parametrize("missing", [1, 4, 8, 12])
@pytest.mark.parametrize("speech", [BERLIN, ACYTOO], ids=lambda speech: speech.name)
def test_compressed_text_without_its_end_is_cut_off(
    speech: Speech, missing: int, provider_for: Make, wire: Wire
) -> None:
    """Where the protocol itself does not say that the end has come."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = pack.compress(b"".join(speech.parts(["a", "b"]))) + pack.flush()
    answer = head(f"Content-Type: {speech.kind}", "Content-Encoding: gzip", "Connection: close") + body[:-missing]
    assert isinstance(failing(provider_for(speech, saying(answer)), wire), StreamInterrupted)


@pytest.mark.parametrize("speech", [BERLIN, ACYTOO], ids=lambda speech: speech.name)
def test_a_compressed_reply_of_which_not_one_byte_came_is_cut_off(
    speech: Speech, provider_for: Make, wire: Wire
) -> None:
    answer = head(f"Content-Type: {speech.kind}", "Content-Encoding: gzip", "Connection: close")
    assert isinstance(failing(provider_for(speech, saying(answer)), wire), StreamInterrupted)


def test_half_of_a_surrogate_in_the_name_of_a_conversation_is_sent_back(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, saying(b""))
    wire.routes.insert(
        0,
        (
            "POST",
            "/conversation",
            lambda request, connection: connection.respond(200, b'{"conversationId": "\\ud800"}'),
        ),
    )
    assert isinstance(failing(provider, wire), ChatError)
    assert wire.asked("DELETE", "/conversation/%ED%A0%80")


def endlessly(speech: Speech, gzipped: bool) -> Script:
    """Says the same piece, and the same again, until the client leaves."""

    def script(request: Recorded, connection: Connection) -> None:
        body = (ChunkedGzip if gzipped else Chunked)(connection, speech.kind, b"")
        part = b"".join(speech.parts(["abcd" * 250] * 51)[1:51])
        with suppress(OSError):
            while True:
                body.part(part)

    return script


@needs_proc
@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzip"])
def test_an_endless_reply_ends_at_its_limit_and_what_came_is_kept(
    gzipped: bool, speech: Speech, provider_for: Make, wire: Wire
) -> None:
    limit = 1_000_000
    error = failing(provider_for(speech, endlessly(speech, gzipped), max_reply_bytes=limit), wire)
    assert type(error) is ProtocolError
    assert "longer than 1000000 bytes. See max_reply_bytes=" in str(error)
    assert limit / 2 < len(error.partial) <= limit
    assert set(error.partial) == set("abcd")


@needs_proc
def test_a_little_that_becomes_much_ends_at_the_limit(
    speech: Speech, provider_for: Make, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gigabyte of blank lines in a megabyte: the reply, and what comes before the question."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join([*(pack.compress(b"\n" * 2**20) for _ in range(1024)), pack.flush()])
    answer = head("Content-Type: text/event-stream", "Content-Encoding: gzip", f"Content-Length: {len(bomb)}") + bomb
    sizes: list[int] = []

    def counted(chunks: Iterable[bytes], *how: Any) -> Iterator[bytes]:
        for data in decompressed(chunks, *how):
            sizes.append(len(data))
            yield data

    monkeypatch.setattr(transport, "decompressed", counted)
    ahead = [path for method, path, _ in speech.before if path in ("/api/login", "/settings", "/conversation")]
    for place in range(len(ahead) + 1):
        provider = provider_for(speech, saying(answer), max_reply_bytes=2**20)
        if place < len(ahead):
            wire.routes.insert(0, ("POST", ahead[place], saying(answer)))
        sizes.clear()
        assert "longer than 1048576 bytes" in str(failing(provider, wire))
        assert 2**20 < sum(sizes) < 2 * 2**20


# What the fault matrix has found


@needs_proc
@pytest.mark.parametrize("status", [302, 401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("then", ["silence", "a byte at a time", "the end"])
def test_a_status_is_told_although_its_body_never_comes(
    status: int, then: str, provider_for: Make, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ERROR_SECONDS", 0.1)
    begun = head("Content-Type: application/json", "Content-Length: 1000").replace(b"200 OK", b"%d Said" % status)

    def script(request: Recorded, connection: Connection) -> None:
        connection.send(begun + b'{"error"')
        while then == "a byte at a time" and not connection.gone.wait(0.02):
            connection.send(b" ")
        if then == "silence":
            connection.wait_until_client_closes()
        connection.close()

    error = failing(provider_for(OPENAI, script, timeout=PATIENCE), wire)
    assert error.status == status
    assert error.body == '{"error"' or then == "a byte at a time"


def test_a_cancel_while_an_errors_body_is_awaited_is_a_cancel(provider_for: Make) -> None:
    token = CancelToken()

    def script(request: Recorded, connection: Connection) -> None:
        connection.send(head("Content-Length: 1000").replace(b"200 OK", b"500 Said"))
        token.cancel()
        connection.wait_until_client_closes()

    with pytest.raises(Cancelled):
        provider_for(ACYTOO, script).ask("Hi", cancel=token)


def test_bytes_behind_the_end_cannot_keep_the_caller(provider_for: Make) -> None:
    """Empty blocks of gzip, a byte at a time, never become a part of the body, and no read of them is silent."""

    def script(request: Recorded, connection: Connection) -> None:
        pack = zlib.compressobj(wbits=31)
        connection.send(head("Content-Type: text/event-stream", "Content-Encoding: gzip", "Connection: close"))
        connection.send(pack.compress(b"".join(OPENAI.parts(["a"]))) + pack.flush(zlib.Z_SYNC_FLUSH))
        while not connection.gone.wait(0.02):
            connection.send(b"\0\0\0\xff\xff")

    watch = Stopwatch()
    assert provider_for(OPENAI, script).ask("Hi") == "a"
    assert watch.undisturbed < 2


@pytest.mark.parametrize("data", [zlib.compress(b"", wbits=31), b"\0\0\0\xff\xff"], ids=["members", "blocks"])
def test_gzip_that_holds_nothing_ends_at_the_limit(data: bytes, speech: Speech, provider_for: Make) -> None:
    start = b"" if data.startswith(b"\x1f") else zlib.compressobj(wbits=31).flush(zlib.Z_SYNC_FLUSH)

    def script(request: Recorded, connection: Connection) -> None:
        connection.send(head(f"Content-Type: {speech.kind}", "Content-Encoding: gzip", "Connection: close") + start)
        with suppress(OSError):
            while True:
                connection.send(data * 2000)

    with pytest.raises(ProtocolError, match="longer than 1000000 bytes"):
        provider_for(speech, script, max_reply_bytes=1_000_000).ask("Hi")


@pytest.mark.parametrize("deadline", [None, 60])
def test_a_request_that_is_not_taken_is_a_timeout_and_is_not_sent_again(deadline: float | None) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.listen(1)
    with listener, Acytoo(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=(5, 0.2)) as provider:
        with pytest.raises(APITimeoutError, match=r"could not be written within 0\.2 s") as caught:
            provider.ask("x" * 30_000_000, deadline=deadline)
        assert caught.value.attempts == 1


@pytest.mark.parametrize("timeout", [None, (10, None)])
def test_without_a_timeout_a_request_has_all_the_time_that_it_needs(
    timeout: Any, provider_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Connection):
        def read_request(self) -> Recorded | None:
            time.sleep(0.3)  # all buffers on the way are full by then
            return super().read_request()

    monkeypatch.setattr("wire.Connection", Slow)
    assert provider_for(OPENAI, speak(OPENAI, ["a"]), timeout=timeout, retries=0).ask("x" * 30_000_000) == "a"


@pytest.mark.parametrize("coding", ["", "Identity", " identity "])
def test_an_answer_that_is_in_no_coding_may_say_so_in_any_way(coding: str, speech: Speech, provider_for: Make) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        body = b"".join(speech.parts(["a", "b"]))
        connection.respond(200, body, {"Content-Type": speech.kind, "Content-Encoding": coding})

    assert provider_for(speech, script).ask("Hi") == "ab"


def test_a_long_request_on_a_kept_connection_has_time(provider_for: Make, wire: Wire) -> None:
    """The reply before it was read to its end within a moment, and that moment is not the time for the next request."""
    slow = threading.Event()

    class Slow(Connection):
        def read_request(self) -> Recorded | None:
            if slow.is_set():
                time.sleep(0.3)
            return super().read_request()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wire.Connection", Slow)

        def script(request: Recorded, connection: Connection) -> None:
            slow.set()
            speak(OPENAI, ["a"])(request, connection)

        provider = provider_for(OPENAI, script)
        assert provider.ask("Hi") == "a"
        assert provider.ask("x" * 30_000_000) == "a"
    assert len(wire.connections) == 1


@pytest.mark.parametrize("location", ["http://a\x01b\x7f/", "http://[::1", "/elsewhere"])
def test_a_redirect_is_neither_read_nor_parsed_by_a_session_of_the_callers(location: str, wire: Wire) -> None:
    sent = []

    def script(request: Recorded, connection: Connection) -> None:
        lines = (f"Location: {location}", "Content-Encoding: gzip", "Connection: close")
        connection.send(head(*lines).replace(b"200 OK", b"302 Found"))
        pack = zlib.compressobj(wbits=31)
        with suppress(OSError):
            while len(sent) < 64:
                connection.send(pack.compress(os.urandom(2**20)) + pack.flush(zlib.Z_SYNC_FLUSH))
                sent.append(1)
        connection.close()

    wire.routes[:] = [(*ACYTOO.route, script)]
    with requests.Session() as session, Acytoo(base_url=wire.url, session=session, retries=0) as provider:
        with pytest.raises(ProtocolError, match="redirects to") as caught:
            provider.ask("Hi")
        assert caught.value.status == 302
    assert len(sent) < 30


def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one(provider_for: Make, wire: Wire) -> None:
    """It comes when urllib3 has looked whether the kept connection is good, and before the request is sent."""
    provider = provider_for(ACYTOO, speak(ACYTOO, ["right"]))
    assert provider.ask("Hi") == "right"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib3.connectionpool.is_connection_dropped", lambda connection: False)
        wire.connections[0].send(whole("text/plain", b"poison"))
        assert provider.ask("Hi") == "right"
    assert len(wire.connections) == 2


def test_a_line_of_the_head_that_is_no_header_is_broken_http(speech: Speech, provider_for: Make, wire: Wire) -> None:
    """All behind it would be lost, such as the length of the body or its encoding."""
    answer = head("Content-Type: text/plain", "no header", "Content-Length: 5") + b"hello"
    assert "no header" in str(failing(provider_for(speech, saying(answer)), wire))


def test_an_error_as_json_with_a_200_is_told_by_h2o(provider_for: Make, wire: Wire) -> None:
    for kind in ("application/json", "text/event-stream", "text/plain"):
        error = failing(provider_for(H2O, saying(whole(kind, b'{"error": "out of order"}'))), wire)
        assert (type(error), error.detail) == (APIStatusError, "out of order")


@pytest.mark.parametrize("cut", [b"\n", b"\n{", b'\n{"error"'])
def test_h2o_tells_an_error_as_json_however_it_was_cut(cut: bytes, provider_for: Make, wire: Wire) -> None:
    body = b'\n{"error": "out of order"}'

    def script(request: Recorded, connection: Connection) -> None:
        connection.send(head("Content-Type: text/plain", f"Content-Length: {len(body)}") + cut)
        time.sleep(0.05)  # so that it comes in two reads
        connection.send(body[len(cut) :])

    assert failing(provider_for(H2O, script), wire).detail == "out of order"


@pytest.mark.parametrize("kind", ["Application/JSON", "application/problem+json"])
def test_an_error_as_json_with_a_200_is_told_by_acytoo(kind: str, provider_for: Make, wire: Wire) -> None:
    error = failing(provider_for(ACYTOO, saying(whole(kind, b'{"error": "out of order"}'))), wire)
    assert (type(error), error.detail) == (APIStatusError, "out of order")


@pytest.mark.parametrize("name", [b"null", b"5", b"[]", b'""', b"true"])
def test_the_name_of_a_model_is_a_text(name: bytes, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(OPENAI, saying(b""))
    wire.on("GET", "/v1/models", saying(whole("application/json", b'{"data": [{"id": %b}]}' % name)))
    with pytest.raises(ProtocolError, match=r"without data\[\]\.id"):
        provider.models()


@pytest.mark.parametrize("value", ["1e309", "9" * 400, "NaN", "Infinity", "1_0", "\xb2", "-1", ""])
def test_a_retry_after_that_is_no_number_of_seconds_is_none(value: str, provider_for: Make) -> None:
    provider = provider_for(ACYTOO, lambda request, connection: connection.respond(429, b"", {"Retry-After": value}))
    with pytest.raises(RateLimitError) as caught:
        provider.ask("Hi")
    assert caught.value.retry_after is None
