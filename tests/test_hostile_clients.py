"""The embedded server and clients that mean it harm, or know no better: raw bytes over real connections."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import berlin_chat
from berlin_chat import (
    AllProvidersFailed,
    APIConnectionError,
    APIStatusError,
    ChatError,
    Fallback,
    InvalidRequest,
    OpenAICompatible,
    Provider,
    RateLimitError,
)
from berlin_chat.server import LocalServer, acytoo, backend, body, connection, serving, sessions, web
from berlin_chat.server.incoming import Allowance
from upstream import Upstream
from wire import Connection, Recorded, Stopwatch, Wire, wait_for

#: No wait lasts longer, in seconds.
PATIENCE = 10.0
#: What "at once" means, in seconds, on a machine that is busy.
AT_ONCE = 2.0
Serve = Callable[..., LocalServer]

MESSAGES = [{"role": "user", "content": "Hi"}]
OPENAI = {"model": "m", "messages": MESSAGES, "stream": False}
ACYTOO = {"key": "", "model": "m", "messages": MESSAGES, "temperature": 0.5, "password": ""}
LOGIN = {"account": "me", "password": "secret"}
BERLIN = {"prompt": "Hi", "parentMessageId": str(uuid4()), "options": {"model": "m"}}
IDS = {"id": str(uuid4()), "response_id": str(uuid4())}
H2O = {"inputs": "Hi", "parameters": {}, "stream": True, "options": IDS}
ASK = "/v1/chat/completions"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["error"]["message"])


def connect(server: LocalServer) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), PATIENCE)


def request(
    line: str = f"POST {ASK}",
    value: Any = None,
    headers: tuple[str, ...] = (),
    *,
    host: str | None = "127.0.0.1",
    kind: str | None = "application/json",
    version: str = "HTTP/1.1",
) -> bytes:
    """A request as it is on the wire."""
    data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
    rows = [f"{line} {version}"]
    rows += [f"Host: {host}"] if host is not None else []
    rows += [f"Content-Type: {kind}"] if kind is not None and value is not None else []
    rows += [f"Content-Length: {len(data)}"] if value is not None else []
    return "\r\n".join([*rows, *headers, "", ""]).encode("latin-1") + data


def answers(data: bytes, *methods: str) -> list[Answer]:
    """All answers on a connection. The methods are those of the requests, where one was HEAD."""
    found = []
    while data:
        top, end, rest = data.partition(b"\r\n\r\n")
        assert end, f"an answer without a whole head: {data[:200]!r}"
        first, *rows = top.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) \S.*", first)
        assert match, first
        headers = {name.lower(): value for name, _, value in (row.partition(": ") for row in rows)}
        if match[1] == "100":
            data = rest
            continue
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(rest[: rest.index(b"\r\n")], 16):
                start = rest.index(b"\r\n") + 2
                body, rest = body + rest[start : start + size], rest[start + size + 2 :]
            rest = rest[5:]
        elif methods[len(found) : len(found) + 1] != ("HEAD",):
            length = int(headers["content-length"])
            body, rest = rest[:length], rest[length:]
            assert len(body) == length
        found.append(Answer(int(match[1]), headers, body))
        data = rest
    return found


def everything(sock: socket.socket) -> bytes:
    """What comes on a connection until it is closed."""
    received = bytearray()
    while data := sock.recv(65536):
        received += data
    return bytes(received)


def next_status(sock: socket.socket) -> int:
    """The status of the next answer on a connection, which is read to its end."""
    with contextlib.closing(http.client.HTTPResponse(sock)) as answer:
        answer.begin()
        answer.read()
        return answer.status


def exchange(server: LocalServer, data: bytes, *methods: str) -> list[Answer]:
    """Sends bytes, says that no more come, and returns the answers. A connection that stays open fails the test."""
    with connect(server) as sock:
        with contextlib.suppress(ConnectionError):  # the server may have seen enough
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        return answers(everything(sock), *methods)


def one(server: LocalServer, data: bytes, *methods: str) -> Answer:
    [answer] = exchange(server, data, *methods)
    return answer


def goes_on(server: LocalServer) -> bool:
    """Whether a client that means no harm is answered, and at once."""
    watch = Stopwatch()
    password = server._backend.password
    headers = (f"Authorization: Bearer {password}",) if password else ()
    return one(server, request(value=OPENAI, headers=headers)).status == 200 and watch.undisturbed < AT_ONCE


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, which are closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **config: stack.enter_context(LocalServer(*args, **config))


@pytest.fixture(scope="module")
def echo() -> Iterator[LocalServer]:
    """A server that many tests share, with what would be said if it were asked: nothing is, after the tests."""
    with LocalServer() as server:
        yield server
        assert goes_on(server)


@pytest.fixture
def unasked(serve: Serve) -> Iterator[LocalServer]:
    """A server whose upstream must not be asked."""
    upstream = Upstream()
    yield serve(upstream=upstream)
    assert upstream.asked == []


FORM = "application/x-www-form-urlencoded"
SETTINGS = b"ethicsModalAccepted=true&shareConversationsWithModelAuthors=true&ethicsModalAcceptedAt="
SETTINGS += b"&activeModel=m&searchEnabled=true"
PATHS = {
    "openai": ASK,
    "acytoo": "/api/completions",
    "berlin": "/api/chat/completions",
    "login": "/api/login",
    "conversation": "/conversation",
}


def prepared(server: LocalServer, endpoint: str) -> tuple[str, tuple[str, ...]]:
    """The path of an endpoint, and the headers for it, after all that its protocol wants before it."""
    if endpoint == "berlin":
        token = json.loads(one(server, request("POST /api/login", LOGIN)).body)["data"]["token"]
        return PATHS[endpoint], (f"token: {token}",)
    if endpoint not in ("h2o", "conversation"):
        return PATHS[endpoint], ()
    accepted = one(server, request("POST /settings", SETTINGS, kind=FORM))
    headers = (f"Cookie: {accepted.headers['set-cookie'].partition(';')[0]}",)
    if endpoint == "conversation":
        return PATHS[endpoint], headers
    made = one(server, request("POST /conversation", {"model": "m"}, headers))
    return f"/conversation/{json.loads(made.body)['conversationId']}", headers


# Bodies that are no JSON

#: What a page of any site may send without asking: the WHATWG's "no-cors-safelisted" types.
SIMPLE = [
    "text/plain",
    "text/plain; x=json",
    "text/plain;application/json",
    "application/x-www-form-urlencoded",
    "application/x-www-form-urlencoded; charset=json",
    "multipart/form-data; boundary=json",
    "text/json",
    "application/jsonx",
    "application/xjson",
    "application/json, text/plain",
    "json",
    "",
    None,
]


@pytest.mark.parametrize("kind", SIMPLE, ids=str)
def test_a_body_that_any_page_may_send_is_no_json(kind: str | None, unasked: LocalServer) -> None:
    assert one(unasked, request(value=OPENAI, kind=kind)).status == 415
    for path, value in (("/api/completions", ACYTOO), ("/api/login", LOGIN)):
        assert one(unasked, request(f"POST {path}", value, kind=kind)).status == 415


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON", "application/json;charset=utf-8", "application/vnd.x+json ; a=b"],
)
def test_json_is_known_by_its_media_type(kind: str, echo: LocalServer) -> None:
    assert one(echo, request(value=OPENAI, kind=kind)).status == 200


def test_a_form_is_wanted_where_a_form_belongs(echo: LocalServer) -> None:
    for kind in ("text/plain; application/x-www-form-urlencoded", "application/json", None):
        assert one(echo, request("POST /settings", b"ethicsModalAccepted=true", kind=kind)).status == 415


def test_a_form_of_a_million_fields_is_a_400(echo: LocalServer) -> None:
    kind = "application/x-www-form-urlencoded"
    assert one(echo, request("POST /settings", b"a=&" * 20_000, kind=kind)).status == 400


# Heads

POST = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: 127.0.0.1\r\n"
JSON = json.dumps(OPENAI).encode()
TYPED = HOST + b"Content-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(JSON)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(JSON), JSON)

BAD_HEADS = {
    "a negative length": (400, POST + TYPED + b"Content-Length: -5\r\n\r\n" + JSON),
    "two lengths in one": (400, POST + TYPED + b"Content-Length: 5, 6\r\n\r\n" + JSON),
    "the same length twice in one": (400, POST + TYPED + b"Content-Length: 5, 5\r\n\r\n" + JSON),
    "a length with a sign": (400, POST + TYPED + b"Content-Length: +%d\r\n\r\n" % len(JSON) + JSON),
    "a length with an underscore": (400, POST + TYPED + b"Content-Length: 1_0\r\n\r\n" + JSON),
    "a length in hexadecimals": (400, POST + TYPED + b"Content-Length: 0x10\r\n\r\n" + JSON),
    "a length in Latin-1 digits": (400, POST + TYPED + b"Content-Length: \xb2\xb3\r\n\r\n" + JSON),
    "no length in it": (400, POST + TYPED + b"Content-Length:\r\n\r\n" + JSON),
    "two lengths": (400, POST + TYPED + LENGTH + b"Content-Length: 3\r\n\r\n" + JSON),
    "both framings": (400, POST + TYPED + LENGTH + CHUNKED + b"\r\n" + IN_CHUNKS),
    "chunks of gzip": (501, POST + TYPED + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + IN_CHUNKS),
    "an unknown coding": (501, POST + TYPED + b"Transfer-Encoding: xchunked\r\n\r\n" + IN_CHUNKS),
    "identity": (501, POST + TYPED + b"Transfer-Encoding: identity\r\n\r\n" + IN_CHUNKS),
    "no coding in it": (501, POST + TYPED + b"Transfer-Encoding:\r\n\r\n" + IN_CHUNKS),
    "chunked twice": (400, POST + TYPED + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + IN_CHUNKS),
    "two codings in two rows": (501, POST + TYPED + CHUNKED + b"Transfer-Encoding: gzip\r\n\r\n" + IN_CHUNKS),
    "chunks in HTTP/1.0": (400, POST.replace(b"1.1", b"1.0") + TYPED + CHUNKED + b"\r\n" + IN_CHUNKS),
    "a folded header": (400, POST + TYPED + b"X-A: b\r\n c\r\n\r\n"),
    "a fold before the first header": (400, POST + b" X-A: b\r\n" + TYPED + b"\r\n"),
    "a space before the colon": (400, POST + TYPED + b"Content-Length : 5\r\n\r\n"),
    "a tab in a name": (400, POST + TYPED + b"X\tA: b\r\n\r\n"),
    "no name": (400, POST + TYPED + b": b\r\n\r\n"),
    "no colon": (400, POST + TYPED + b"X-A\r\n\r\n"),
    "a line feed alone": (400, POST + TYPED + b"X-A: b\n\r\n"),
    "a line feed alone in the first line": (400, b"GET / HTTP/1.1\n" + HOST + b"\r\n"),
    "a carriage return alone": (400, POST + TYPED + b"X-A: b\rX-B: c\r\n\r\n"),
    "a NUL in a value": (400, POST + TYPED + b"X-A: b\0c\r\n\r\n"),
    "a NUL in a name": (400, POST + TYPED + b"X\0A: b\r\n\r\n"),
    "an escape in a value": (400, POST + TYPED + b"X-A: \x1b[2J\r\n\r\n"),
    "no first line": (400, b"\r\n\r\n" + HOST + b"\r\n"),
    "no target": (400, b"GET HTTP/1.1\r\n" + HOST + b"\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a space in the target": (400, b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a tab in the first line": (400, b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a NUL in the target": (400, b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "UTF-8 in the target": (400, "GET /ü HTTP/1.1\r\n".encode() + HOST + b"\r\n"),
    "a fragment": (400, b"GET /#a HTTP/1.1\r\n" + HOST + b"\r\n"),
    "no slash": (400, b"GET v1 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a target that has no scheme": (400, b"GET //evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    "another scheme": (400, b"GET ftp://127.0.0.1/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a user in the target": (400, b"GET http://me@127.0.0.1/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a star": (400, b"GET * HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a tunnel": (405, b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "no protocol": (400, b"GET /\r\n\r\n"),
    "another protocol": (400, b"GET / RTSP/1.0\r\n\r\n"),
    "a version without numbers": (400, b"GET / HTTP/x.y\r\n\r\n"),
    "a version with a sign": (400, b"GET / HTTP/1.+1\r\n\r\n"),
    "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/0.9": (505, b"GET / HTTP/0.9\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 100 + b"\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "an empty host": (400, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n"),
    "two keys": (400, b"GET / HTTP/1.1\r\n" + HOST + b"Authorization: a\r\nAuthorization: b\r\n\r\n"),
    "two kinds": (400, POST + TYPED + b"Content-Type: text/plain\r\n" + LENGTH + b"\r\n" + JSON),
    "an end in the head": (400, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A"),
    "an end in the first line": (400, b"GET /"),
    "a long first line": (414, b"GET /" + b"a" * 2**20),
    "a long header": (431, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 2**20),
    "a long name": (431, b"GET / HTTP/1.1\r\n" + HOST + b"a" * 2**20),
    "many headers": (431, b"GET / HTTP/1.1\r\n" + HOST + b"A:\r\n" * 100_000 + b"\r\n"),
    "headers that are long together": (431, b"GET / HTTP/1.1\r\n" + HOST + (b"A:" + b" " * 999 + b"\r\n") * 90),
}


@pytest.mark.parametrize(("status", "data"), BAD_HEADS.values(), ids=BAD_HEADS)
def test_a_head_that_can_be_read_in_two_ways_is_refused_and_ends_its_connection(
    status: int, data: bytes, unasked: LocalServer
) -> None:
    behind = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n" if data.endswith(b"\n") else b""
    answer = one(unasked, data + behind)
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert answer.body


GOOD_HEADS = {
    "an address as the target": b"GET http://127.0.0.1:1/v1/models HTTP/1.1\r\nHost: other\r\n\r\n",
    "HTTP/1.0 without a host": b"GET / HTTP/1.0\r\n\r\n",
    "a later version": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "an empty line before it": b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "nothing behind the colon": b"GET / HTTP/1.1\r\n" + HOST + b"X-A:\r\n\r\n",
    "Latin-1 in a value": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: \xfc\r\n\r\n",
    "a hundred headers": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 99 + b"\r\n",
    "a value of many spaces": b"GET / HTTP/1.1\r\n" + HOST + b"A: a" + b" " * 60_000 + b"b\r\n\r\n",
    "a query": b"GET /?a=[b]&c=%zz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a length with zeros": POST + TYPED + b"Content-Length: 000%d\r\n\r\n" % len(JSON) + JSON,
    "chunks": POST + TYPED + b"Transfer-Encoding: Chunked\r\n\r\n" + IN_CHUNKS,
    "chunks with extensions": POST + TYPED + CHUNKED + b"\r\n" + IN_CHUNKS.replace(b"\r\n", b' ;a="b"\r\n', 1),
}


@pytest.mark.parametrize("data", GOOD_HEADS.values(), ids=GOOD_HEADS)
def test_a_head_as_http_has_it_is_understood(data: bytes, echo: LocalServer) -> None:
    watch = Stopwatch()
    assert one(echo, data).status == 200
    assert watch.undisturbed < AT_ONCE


def test_a_name_with_an_underscore_never_stands_for_one_with_a_hyphen(serve: Serve) -> None:
    server = serve(password="secret", replies=[])
    data = request(value=OPENAI, headers=("Sec_Fetch_Site: none", "X_A: 1", "Authorization: Bearer secret"))
    assert one(server, data).status == 200
    assert not {"Sec-Fetch-Site", "X-A"} & server.requests[0].headers.keys()


BAD_CHUNKS = {
    "a negative size": (400, b"-5\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a size with a sign": (400, b"+%x\r\n" % len(JSON) + JSON + b"\r\n0\r\n\r\n"),
    "a size with 0x": (400, b"0x%x\r\n" % len(JSON) + JSON + b"\r\n0\r\n\r\n"),
    "a size with an underscore": (400, b"0_5\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "no size": (400, b"\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "no number": (400, b"many\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a size of 2^70": (413, b"%x\r\n" % 2**70 + JSON),
    "a size of 2^4000": (400, b"%x\r\n" % 2**4000 + JSON),
    "a size that is too small": (400, b"%x\r\n" % (len(JSON) - 1) + JSON + b"\r\n0\r\n\r\n"),
    "no line end behind it": (400, b"%x\r\n" % len(JSON) + JSON + b"ab0\r\n\r\n"),
    "a line feed alone": (400, b"%x\n" % len(JSON) + JSON + b"\r\n0\r\n\r\n"),
    "a line feed alone behind it": (400, b"%x\r\n" % len(JSON) + JSON + b"\n0\r\n\r\n"),
    "an endless extension": (400, b"1;" + b"a" * 2**20),
    "a NUL in an extension": (400, b"1;\0\r\na\r\n0\r\n\r\n"),
    "endless trailers": (400, b"0\r\n" + b"A: b\r\n" * 50_000),
    "a trailer without a colon": (400, b"0\r\nA\r\n\r\n"),
    "too many small ones": (413, b"1\r\na\r\n" * 2**14),
    "no end": (408, b"5\r\nabcde\r\n"),
}


@pytest.mark.parametrize(("status", "data"), BAD_CHUNKS.values(), ids=BAD_CHUNKS)
def test_chunks_in_a_wrong_form_are_refused_and_end_their_connection(
    status: int, data: bytes, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_REQUEST", 2**14)
    upstream = Upstream()
    answer = one(serve(upstream=upstream), POST + TYPED + CHUNKED + b"\r\n" + data)
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert answer.message
    assert upstream.asked == []


def test_no_request_is_smuggled_behind_another(unasked: LocalServer) -> None:
    hidden = b"GET /hidden HTTP/1.1\r\n" + HOST + b"\r\n"
    for framing in (
        b"Content-Length: 0\r\n" + CHUNKED,
        CHUNKED + b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        b"Content-Length: 0\r\nContent-Length: 5\r\n",
    ):
        assert [answer.status // 100 for answer in exchange(unasked, POST + TYPED + framing + b"\r\n" + hidden)] != [2]
    # A body that is not read is not taken for a request.
    secret = b"POST /v1/nowhere HTTP/1.1\r\n" + TYPED + b"Content-Length: %d\r\n" % (2**17 + len(hidden))
    assert [answer.status for answer in exchange(unasked, secret + b"\r\n" + hidden + b"a" * 2**17)] == [404]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from([
            *(b"GET", b"POST", b"HEAD", b" ", b" ", b"/", b"/v1/models", ASK.encode(), b"HTTP/1.1", b"\r\n", b"\r\n"),
            *(b"\n", b"\r", b"\0", b":", b"Host", b"127.0.0.1", b"Content-Length: ", b"5", b"-1", CHUNKED, TYPED, JSON),
            *(b"Expect: 100-continue\r\n", b"\xff", b"%", b"?", b"#", b"*", b"0\r\n\r\n", POST, LENGTH, b"//", b"["),
        ]),
        max_size=16,
    )
)  # fmt: skip
def test_whatever_comes_is_answered_with_a_word_and_never_as_a_fault_of_the_server(
    echo: LocalServer, parts: list[bytes]
) -> None:
    data = b"".join(parts)
    with connect(echo) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        received = everything(sock)
    assert not re.search(rb"HTTP/1\.1 50[0234]", received), received
    if data.replace(b"\r\n", b"", 1):
        assert received.startswith(b"HTTP/1.1 "), (data, received)


# Fields


def fields(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from fields(value[key], (*path, key))


def with_field(value: Any, path: tuple[str, ...], other: Any) -> Any:
    if not path:
        return other
    return {**value, path[0]: with_field(value[path[0]], path[1:], other)}


STRANGE = [None, True, -1, 1e308, [], {}, [None], [[]], {"a": {}}, "", "\0", "\ud800", 10**400, "x" * 70_000]
#: What JSON has no word for, but Python's parser has; and what is nested.
RAW = [b"NaN", b"-Infinity", b"1e999", b"[" * 500 + b"]" * 500, b'{"a":' * 100_000, b"1" * 10_000]
MARK = '"the place"'


@pytest.mark.parametrize("name", ["openai", "acytoo", "berlin", "login", "h2o", "conversation"])
def test_whatever_a_field_holds_is_never_a_fault_of_the_server(
    name: str, echo: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    question = {
        "openai": {**OPENAI, "n": 1, "stream_options": {"include_usage": True}, "temperature": 1},
        "acytoo": ACYTOO,
        "berlin": {**BERLIN, "options": {"model": "m", "temperature": 0}},
        "login": LOGIN,
        "h2o": {**H2O, "parameters": {"temperature": 0.5}},
        "conversation": {"model": "m"},
    }[name]
    path, headers = prepared(echo, name)
    assert one(echo, request(f"POST {path}", question, headers)).status == 200
    bodies = [
        *(json.dumps(with_field(question, place, value)).encode() for place in fields(question) for value in STRANGE),
        *(
            json.dumps(with_field(question, place, json.loads(MARK))).encode().replace(MARK.encode(), raw)
            for place in fields(question)
            for raw in RAW
        ),
    ]
    for data in bodies:
        answer = one(echo, request(f"POST {path}", data, headers))
        assert answer.status in (200, 400, 401, 413), (answer, data[:300])
    assert [record for record in caplog.records if record.exc_info] == []


# The arguments of ours


@pytest.mark.parametrize("name", sorted(backend.OURS - {"messages", "model"}))
@pytest.mark.parametrize("endpoint", ["openai", "berlin", "h2o"])
def test_no_protocol_lets_a_client_set_an_argument_of_ours(endpoint: str, name: str, unasked: LocalServer) -> None:
    question = {
        "openai": {**OPENAI, name: 1},
        "berlin": {**BERLIN, "options": {"model": "m", name: 1}},
        "h2o": {**H2O, "parameters": {name: 1}},
    }[endpoint]
    answer = ask_by_hand(unasked, endpoint, question)
    assert answer.status == 400
    assert f"there is no option {name!r}" in answer.body.decode().replace("\\", "")


def ask_by_hand(server: LocalServer, endpoint: str, question: Any) -> Answer:
    """A question after all that its protocol wants before it."""
    path, headers = prepared(server, endpoint)
    return one(server, request(f"POST {path}", question, headers))


def test_acytoos_clients_set_nothing_but_the_temperature(serve: Serve) -> None:
    class Notes:
        options: dict[str, Any]

        def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
            self.options = options
            yield "fine"

    upstream = Notes()
    question = {**ACYTOO, **dict.fromkeys(backend.OURS - {"messages", "model", "self"}, 1), "max_reply_bytes": 1}
    assert ask_by_hand(serve(upstream=upstream), "acytoo", question).status == 200
    assert upstream.options == {"temperature": 0.5}


# Memory

SERVER = (
    "import sys\nfrom berlin_chat.server import LocalServer\n"
    "with LocalServer(password='secret') as server:\n"
    "    server.provider('openai').ask('Hi')\n"
    "    print(server.url, flush=True)\n    sys.stdin.read()\n"
)
#: What a server may take more than before, in MiB.
GROWTH = 12
BOMB = b"[" + b"[]," * (20 * 2**20) + b"[]]"
MEBIBYTE = b"a" * 2**20


@pytest.fixture(scope="module")
def process() -> Iterator[tuple[int, int]]:
    """A server with a password in a process of its own: its port, and the number of the process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(berlin_chat.__file__).parent.parent)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, text=True, env=environment) as child:
        assert child.stdout
        assert child.stdin
        try:
            yield int(child.stdout.readline().rpartition(":")[2]), child.pid
        finally:
            child.stdin.close()
            child.wait(PATIENCE)


def flood(process: tuple[int, int], *parts: bytes) -> tuple[bytes, int]:
    """Sends to that server; returns the answer, and by how many MiB its memory grew at most."""
    port, number = process
    before = _peak(number)
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                sock.sendall(part)
        received = sock.recv(65536)
    return received, _peak(number) - before


def _peak(process: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert match
    return int(match[1]) // 1024


FLOODS = {
    "a header of 256 MiB": (431, [b"GET / HTTP/1.1\r\n", HOST, b"X-A: ", *[MEBIBYTE] * 256]),
    "a first line of 256 MiB": (414, [b"GET /", *[MEBIBYTE] * 256]),
    "100,000 headers": (431, [b"GET / HTTP/1.1\r\n", HOST, b"".join(b"X-%d: a\r\n" % n for n in range(100_000))]),
    "a bomb with a wrong key": (
        401,
        [POST, TYPED, b"Authorization: Bearer wrong\r\nContent-Length: %d\r\n\r\n" % len(BOMB), BOMB],
    ),
    "a bomb in chunks without a key": (401, [POST, TYPED, CHUNKED, b"\r\n%x\r\n" % len(BOMB), BOMB, b"\r\n0\r\n\r\n"]),
    "a bomb in acytoo's protocol": (
        413,
        [b"POST /api/completions HTTP/1.1\r\n", TYPED, b"Content-Length: %d\r\n\r\n" % len(BOMB), BOMB],
    ),
    "a bomb at berlin's login": (
        413,
        [b"POST /api/login HTTP/1.1\r\n", TYPED, b"Content-Length: %d\r\n\r\n" % len(BOMB), BOMB],
    ),
    "a bomb with a token that is wrong": (
        401,
        [
            *(b"POST /api/chat/completions HTTP/1.1\r\n", TYPED, b"token: x\r\n"),
            *(b"Content-Length: %d\r\n\r\n" % len(BOMB), BOMB),
        ],
    ),
    "a bomb for nobody": (404, [b"POST /x HTTP/1.1\r\n", TYPED, b"Content-Length: %d\r\n\r\n" % len(BOMB), BOMB]),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of a process is read as Linux tells it")
@pytest.mark.parametrize(("status", "parts"), FLOODS.values(), ids=FLOODS)
def test_memory_does_not_grow_by_what_is_refused(status: int, parts: list[bytes], process: tuple[int, int]) -> None:
    received, growth = flood(process, *parts)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert growth < GROWTH


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of a process is read as Linux tells it")
def test_a_bomb_of_somebody_who_may_ask_is_not_parsed(process: tuple[int, int]) -> None:
    headers = b"Authorization: Bearer secret\r\nContent-Length: %d\r\n\r\n" % len(BOMB)
    received, growth = flood(process, POST, TYPED, headers, BOMB)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert growth < 4 * len(BOMB) / 2**20, "parsed it takes twenty times its size"


def test_a_question_that_is_large_but_no_bomb_is_answered(serve: Serve) -> None:
    server = serve(password="secret")
    picture = {"type": "text", "text": "a" * 8 * 2**20}
    value = {**OPENAI, "messages": [{"role": "user", "content": [picture]}]}
    assert one(server, request(value=value, headers=("Authorization: Bearer secret",))).status == 200


def test_a_body_over_the_limit_is_a_413_before_it_comes(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_REQUEST", 1000)
    server = serve()
    with connect(server) as sock:
        sock.sendall(request(value=b"", kind="application/json").replace(b"Content-Length: 0", b"Content-Length: 1001"))
        [answer] = answers(everything(sock))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert "1000 bytes" in answer.message
    for digits in (25, 5000):
        data = POST + TYPED + b"Content-Length: " + b"9" * digits + b"\r\n\r\n"
        assert one(server, data).status == 413


def test_a_client_that_still_sends_gets_to_see_why_it_was_refused(serve: Serve) -> None:
    server = serve(password="secret")
    data = request(value=b"a" * 32 * 2**20)
    with connect(server) as sock:
        sock.sendall(data)  # all of it, as http.client does, before it looks for an answer
        assert answers(everything(sock))[0].status == 401


# Who may not is told so before the body is read


@pytest.mark.parametrize(
    ("line", "status"),
    [(f"POST {ASK}", 401), ("POST /api/chat/completions", 401), ("POST /conversation", 401), ("POST /x", 404)],
)
def test_who_waits_to_be_asked_for_the_body_is_refused_without_it(line: str, status: int, serve: Serve) -> None:
    server = serve(password="secret")
    with connect(server) as sock:
        data = request(line, OPENAI, ("Expect: 100-continue",))
        sock.sendall(data[: data.index(b"\r\n\r\n") + 4])
        received = everything(sock)
    assert b"100 Continue" not in received
    [answer] = answers(received)
    assert (answer.status, answer.headers["connection"]) == (status, "close")


def test_a_refused_body_that_is_small_is_read_so_that_the_connection_is_kept(serve: Serve) -> None:
    server = serve(password="secret")
    wrong, right = request(value=OPENAI), request(value=OPENAI, headers=("Authorization: Bearer secret",))
    assert [answer.status for answer in exchange(server, wrong + right)] == [401, 200]


def test_acytoos_password_is_looked_for_in_a_small_body_only(serve: Serve) -> None:
    question = {**ACYTOO, "messages": [{"role": "user", "content": "a" * (acytoo.MAX_UNKNOWN + 1)}]}
    assert one(serve(password="secret"), request("POST /api/completions", question)).status == 413
    assert one(serve(), request("POST /api/completions", question)).status == 200


# HEAD

HEADS = {
    "welcome": "HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "models": "HEAD /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "not found": "HEAD /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "not allowed": f"HEAD {ASK} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "another host": "HEAD / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "another site": "HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://evil.example\r\n\r\n",
    "no host": "HEAD / HTTP/1.1\r\n\r\n",
    "a wrong length": "HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    "an unknown coding": "HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: x\r\n\r\n",
    "many headers": "HEAD / HTTP/1.1\r\n" + "A: b\r\n" * 200 + "\r\n",
    "too large a body": "HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n",
    "half a body": "HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\n{",
}


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS)
def test_head_has_the_head_of_get_and_no_body(data: str, echo: LocalServer) -> None:
    answer = one(echo, data.encode(), "HEAD")
    whole = one(echo, data.encode().replace(b"HEAD", b"GET", 1))
    if "completions" not in data:  # where GET is told of another method than HEAD
        assert (answer.status, answer.headers["content-length"]) == (whole.status, str(len(whole.body)))
    assert int(answer.headers["content-length"]) > 0


# Hosts and origins

OURS = ["127.0.0.1", "localhost", "LOCALHOST:8080", "localhost.", "a.b.localhost:1", "[::1]", "[::1]:8080", "127.9.9.9"]
FOREIGN = [
    *("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "evil-localhost"),
    *("192.0.2.1", "10.0.0.1:8080", "[2001:db8::1]", "0.0.0.0", "[::]", "2130706433", "127.1", "::ffff:127.0.0.1"),
]
NO_HOSTS = ["a b", "a/b", "me@127.0.0.1", "127.0.0.1:x", "127.0.0.1:123456", "[::1", "[evil]", ":80", "a,b", "ü"]


@pytest.mark.parametrize("host", OURS)
def test_a_request_for_this_machine_is_answered(host: str, echo: LocalServer) -> None:
    assert one(echo, request(value=OPENAI, host=host)).status == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_a_request_for_another_host_is_refused(host: str, unasked: LocalServer) -> None:
    status = 400 if host.startswith(":") else 421
    for line in (f"POST {ASK}", "POST /api/completions", "GET /", "GET /v1/models", "OPTIONS /", "GET /nowhere"):
        assert one(unasked, request(line, OPENAI if line.startswith("POST") else None, host=host)).status == status


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_host_that_is_none_is_a_400(host: str, unasked: LocalServer) -> None:
    assert one(unasked, request(value=OPENAI, host=host)).status == 400


def test_an_address_as_the_target_comes_before_the_host(unasked: LocalServer) -> None:
    line = f"POST http://evil.example{ASK}"
    assert one(unasked, request(line, OPENAI)).status == 421


def test_names_that_were_given_are_allowed(serve: Serve) -> None:
    server = serve(allowed_hosts=["Chat.Example.org.", "my_service", "192.0.2.1", "2001:db8::1"])
    for host in ("chat.example.org", "CHAT.example.org.:80", "my_service:8080", "192.0.2.1", "[2001:db8::1]:1"):
        assert one(server, request(value=OPENAI, host=host)).status == 200, host
    for host in ("example.org", "a.chat.example.org", "192.0.2.2"):
        assert one(server, request(value=OPENAI, host=host)).status == 421, host


@pytest.mark.parametrize("name", ["a b", "", "*", "http://a", "a:80", "a/b", "ü", 5, None])
def test_an_allowed_host_that_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidRequest, match="allowed_hosts"):
        LocalServer(allowed_hosts=[name])


def test_allowed_hosts_are_a_list() -> None:
    with pytest.raises(InvalidRequest, match="allowed_hosts must be a list"):
        LocalServer(allowed_hosts="chat.example.org")


def test_a_server_for_other_machines_is_found_by_every_address_but_not_by_every_name(serve: Serve) -> None:
    server = serve("0.0.0.0", password="secret")
    for host, status in {"192.0.2.1": 200, "[2001:db8::1]:1": 200, "localhost": 200, "evil.example": 421}.items():
        assert one(server, request(value=OPENAI, host=host, headers=("Authorization: Bearer secret",))).status == status


ORIGINS = {
    "none": ((), 200),
    "its own": (("Origin: http://127.0.0.1:8080",), 200),
    "its own in upper case": (("Origin: HTTP://127.0.0.1:8080",), 200),
    "its own with a path": (("Origin: http://127.0.0.1:8080/sub",), 200),
    "its own behind TLS": (("Origin: https://127.0.0.1:8080",), 200),
    "its own, as a browser says": (("Origin: http://127.0.0.1:8080", "Sec-Fetch-Site: same-origin"), 200),
    "typed by the user": (("Sec-Fetch-Site: none",), 200),
    "another port": (("Origin: http://127.0.0.1:8081",), 403),
    "the port that HTTP means": (("Origin: http://127.0.0.1",), 403),
    "another name of this machine": (("Origin: http://localhost:8080",), 403),
    "another site": (("Origin: http://evil.example",), 403),
    "another site that looks like ours": (("Origin: http://127.0.0.1:8080.evil.example",), 403),
    "another site with a user": (("Origin: http://127.0.0.1:8080@evil.example",), 403),
    "a file": (("Origin: null",), 403),
    "an extension": (("Origin: chrome-extension://abcdef",), 403),
    "no address": (("Origin: http://[",), 403),
    "two": (("Origin: http://127.0.0.1:8080 http://evil.example",), 403),
    "without an origin, but from another site": (("Sec-Fetch-Site: cross-site",), 403),
    "without an origin, but from another port": (("Sec-Fetch-Site: same-site",), 403),
    "a site that is none": (("Sec-Fetch-Site: ours",), 403),
}


@pytest.mark.parametrize(("headers", "status"), ORIGINS.values(), ids=ORIGINS)
def test_a_page_of_another_site_is_refused(headers: tuple[str, ...], status: int, serve: Serve) -> None:
    upstream = Upstream()
    upstream.say("fine")
    server = serve(upstream=upstream)
    assert one(server, request(value=OPENAI, host="127.0.0.1:8080", headers=headers)).status == status
    assert len(upstream.asked) == (status == 200)


def test_a_page_of_another_site_gets_no_leave_to_ask(unasked: LocalServer) -> None:
    wishes = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")
    for origin, status in (("http://evil.example", 403), ("null", 403), ("http://127.0.0.1", 405)):
        answer = one(unasked, request(f"OPTIONS {ASK}", headers=(f"Origin: {origin}", *wishes)))
        assert answer.status == status
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_link_on_another_site_may_be_followed_to_the_servers_own_page(echo: LocalServer) -> None:
    headers = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate")
    assert one(echo, request("GET /", headers=headers)).status == 200
    assert one(echo, request(value=OPENAI, headers=headers)).status == 403


def test_a_proxy_in_front_may_ask_by_another_name_than_the_page(serve: Serve) -> None:
    server = serve(allowed_hosts=["chat.example.org"])
    for origin, status in (("https://chat.example.org", 200), ("https://chat.example.com", 403)):
        assert (
            one(server, request(value=OPENAI, host="127.0.0.1:8080", headers=(f"Origin: {origin}",))).status == status
        )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
@pytest.mark.parametrize("name", ["openai", "berlin", "ylokh", "h2o", "acytoo"])
def test_our_providers_are_no_pages_of_another_site(name: str, host: str, serve: Serve) -> None:
    server = serve()
    with server.provider(name, base_url=server.url.replace("127.0.0.1", host)) as provider:
        assert provider.ask("Hi").endswith("Hi")


# A browser

#: What a page of another site tries: each thing that a browser lets it send without asking, and one that it asks for.
ATTACK = """<!doctype html><form id=f method=post enctype=text/plain action="{url}{path}"><input name='{start}'
value='{end}'></form><script>
const json = {json};
const tries = [
  fetch("{url}{path}", {{method: "POST", mode: "no-cors", body: json}}),
  fetch("{url}{path}", {{method: "POST", mode: "no-cors", body: json, headers: {{"Content-Type": "text/plain;json"}}}}),
  fetch("{url}{path}", {{method: "POST", body: json, headers: {{"Content-Type": "application/json"}}}}),
  fetch("{url}/api/completions", {{method: "POST", mode: "no-cors", body: json, credentials: "include"}}),
  fetch("{url}/v1/models"),
  new Promise(done => done(navigator.sendBeacon("{url}{path}", json))),
];
Promise.allSettled(tries).then(found => {{
  document.title = "tried " + found.map(one => one.status[0] + (one.value && one.value.type || "")).join(" ");
}});
</script>"""


@contextlib.contextmanager
def page(content: str) -> Iterator[str]:
    """A site on another port that shows this page."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        thread = threading.Thread(target=site.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{site.server_address[1]}"
        finally:
            site.shutdown()
            thread.join(PATIENCE)


def test_a_page_in_a_real_browser_gets_nothing_from_a_server_on_another_port(serve: Serve, tmp_path: Path) -> None:
    import lab  # here, for it imports much

    if lab.MISSING:
        pytest.skip(lab.MISSING)
    server = serve(replies=["never"])
    text = json.dumps({**OPENAI, "x": "="})
    start, _, end = text.partition("=")
    content = ATTACK.format(url=server.url, path=ASK, start=start, end=end, json=json.dumps(text))
    options = lab.webdriver.ChromeOptions()
    options.binary_location = lab.CHROMIUM
    for flag in (*lab.FLAGS, f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(flag)
    with page(content) as site:
        browser = lab.webdriver.Chrome(options, lab.Service(lab.DRIVER, log_output=str(tmp_path / "driver.log")))
        try:
            browser.get(site)
            lab.until(lambda: browser.title.startswith("tried"))
            # Neither of those whose answers it may read succeeded; of the others it learns nothing.
            assert browser.title.split()[1:] == ["fopaque", "fopaque", "r", "fopaque", "r", "f"]
            browser.execute_script("document.getElementById('f').submit()")
            lab.until(lambda: browser.current_url.startswith(server.url))
            assert "another site" in browser.page_source
            # The server's own page may be looked at, and is its own site.
            browser.get(server.url)
            assert "four protocols" in browser.page_source
            ask = "return await fetch(arguments[0], {method: 'POST', body: 'x'}).then(answer => answer.status)"
            assert browser.execute_script(ask, f"{server.url}{ASK}") == 415
        finally:
            browser.quit()
    assert server.replies == ["never"], "nothing was asked"
    assert len(server.requests) >= 7


# Slow clients

SOON = 0.4


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the server wait for a moment only, for whole heads and bodies too."""
    monkeypatch.setattr(connection, "HEAD_TIME", Allowance(SOON, 32 * 1024))
    monkeypatch.setattr(body, "BODY_TIME", Allowance(SOON, 32 * 1024))
    monkeypatch.setattr(connection, "LINGER", 0.1)


SLOW = {
    "head": (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: " + b"a" * 1000),
    "body": (POST + TYPED + b"Content-Length: 1000\r\n\r\n", b"a" * 999),
    "chunks": (POST + TYPED + CHUNKED + b"\r\n", b"1\r\na\r\n" * 1000),
    "trailers": (POST + TYPED + CHUNKED + b"\r\n0\r\n", b"A: b\r\n" * 1000),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("start", "rest"), SLOW.values(), ids=SLOW)
def test_who_sends_a_byte_now_and_then_does_not_get_for_ever(start: bytes, rest: bytes, serve: Serve) -> None:
    server = serve()
    with connect(server) as sock:
        watch = Stopwatch()
        sock.sendall(start)
        sock.settimeout(0.02)  # between two bytes, unless there is an answer
        received = b""
        for place in range(len(rest)):
            try:
                sock.sendall(rest[place : place + 1])
                received = sock.recv(65536)
                break
            except TimeoutError:
                pass
        assert received.startswith(b"HTTP/1.1 408 ")
        assert watch.undisturbed < SOON + AT_ONCE


@pytest.mark.usefixtures("impatient")
def test_who_sends_much_has_the_time_that_it_takes(serve: Serve) -> None:
    server = serve()
    data = request(value={**OPENAI, "user": "a" * 2**18})
    with connect(server) as sock:
        for start in range(0, len(data), 2**15):
            time.sleep(SOON / 4)
            sock.sendall(data[start : start + 2**15])
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


def test_two_hundred_slow_clients_stop_nobody(serve: Serve) -> None:
    server = serve()
    with contextlib.ExitStack() as stack:
        for number in range(200):
            sock = stack.enter_context(connect(server))
            sock.sendall(b"GET / HTTP/1.1\r\nX-A:" if number % 2 else request(value=b"a" * 1000)[:-900])
        assert goes_on(server)
        assert server.connections >= 200
        watch = Stopwatch()
        server.close()
        assert watch.undisturbed < AT_ONCE


# Many clients


def threads() -> int:
    return threading.active_count()


def test_a_thousand_silent_clients_cost_no_thread_and_stop_nobody(serve: Serve) -> None:
    server = serve()
    before = threads()
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect(server))
        assert goes_on(server)
        wait_for(lambda: threads() <= before)
        watch = Stopwatch()
        server.close()
        assert watch.undisturbed < AT_ONCE


def test_who_says_nothing_is_not_waited_for_as_long_as_who_has_asked(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "REQUEST_TIMEOUT", 0.2)
    server = serve()
    with connect(server) as asked, connect(server) as silent:
        asked.sendall(request("GET /"))
        assert next_status(asked) == 200
        assert silent.recv(1) == b""
        asked.sendall(request("GET /"))
        assert next_status(asked) == 200


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Lets a server have few connections; returns how many."""
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 5)
    return 5


def test_for_one_connection_too_many_the_one_that_was_idle_the_longest_goes(few: int, serve: Serve) -> None:
    server = serve()
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(connect(server))
        kept.sendall(request("GET /"))
        assert next_status(kept) == 200
        silent = [stack.enter_context(connect(server)) for _ in range(few - 1)]
        wait_for(lambda: server.connections == few)
        for _ in range(3):
            assert goes_on(server)
        assert silent[0].recv(1) == b""
        kept.sendall(request("GET /"))
        assert next_status(kept) == 200


def test_where_all_connections_are_at_work_one_more_is_answered_503_and_the_others_go_on(
    few: int, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Upstream()
    server = serve(upstream=upstream)
    with contextlib.ExitStack() as stack:
        working = [stack.enter_context(connect(server)) for _ in range(few)]
        for sock in working:
            sock.sendall(request(value=OPENAI))
        assert upstream.has_been_asked(few)
        for _ in range(3):
            answer = one(server, request(value=OPENAI))
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert "busy" in answer.message
        for _ in working:
            upstream.say("fine")
        for sock in working:
            assert next_status(sock) == 200
    wait_for(lambda: server.connections == 0)
    upstream.say("fine")
    assert goes_on(server)
    assert "answered 503" in caplog.text


def test_our_provider_asks_a_server_again_that_was_too_busy(few: int, serve: Serve) -> None:
    upstream = Upstream()
    server = serve(upstream=upstream)
    with contextlib.ExitStack() as stack, server.provider("openai", retries=3) as provider:
        working = [stack.enter_context(connect(server)) for _ in range(few)]
        for sock in working:
            sock.sendall(request(value=OPENAI))
        assert upstream.has_been_asked(few)
        timer = threading.Timer(0.2, lambda: [upstream.say("fine") for _ in range(few + 1)])
        timer.start()
        for sock in working:
            sock.shutdown(socket.SHUT_WR)
        reply = provider.ask("Hi")
        timer.join()
    assert reply == "fine"
    assert reply.attempts > 1


def test_where_no_thread_can_start_a_client_is_answered_503_and_the_server_goes_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()

    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fails)
        for _ in range(3):
            answer = one(server, request(value=OPENAI))
            assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert goes_on(server)
    assert "can't start new thread" in caplog.text
    server.close()
    assert server.connections == 0


def test_a_server_whose_own_thread_cannot_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = LocalServer()
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="new thread"):
        patched.setattr(threading.Thread, "start", fails)
        server.start()
    server.close()
    assert server._serving._server.socket is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_where_there_are_no_sockets_left_clients_wait_and_the_server_goes_on(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    server = serve()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connect(server) as kept:
        kept.sendall(request("GET /"))
        assert next_status(kept) == 200
        with socket.socket() as waiting:  # it has a number already; the server's end of it has none
            waiting.settimeout(PATIENCE)
            taken = os.dup(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken, hard))
            try:
                waiting.connect(kept.getpeername())
                waiting.sendall(request("GET /"))
                wait_for(lambda: "clients have to wait" in caplog.text)
                kept.sendall(request("GET /"))
                assert next_status(kept) == 200
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                os.close(taken)
            assert next_status(waiting) == 200
    assert "Traceback" not in caplog.text
    assert len(caplog.records) < 20, "it does not ask the system without a pause"


# Clients that go on, leave, or do not read


def test_requests_that_come_all_at_once_are_answered_in_their_order(serve: Serve) -> None:
    server = serve()
    questions = [{**OPENAI, "messages": [{"role": "user", "content": f"number {n}"}]} for n in range(50)]
    found = exchange(server, b"".join(request(value=question) for question in questions))
    texts = [json.loads(answer.body)["choices"][0]["message"]["content"] for answer in found]
    assert [text.rpartition(": ")[2] for text in texts] == [f"number {n}" for n in range(50)]


def test_who_has_said_all_may_still_read_the_answer(serve: Serve) -> None:
    upstream = Upstream()
    server = serve(upstream=upstream)
    with connect(server) as sock:
        sock.sendall(request(value={**OPENAI, "stream": True}))
        sock.shutdown(socket.SHUT_WR)
        assert upstream.has_been_asked(1)
        upstream.say("one", " two")
        assert b" two" in everything(sock)


def endless() -> Any:
    class Endless:
        ended = threading.Event()

        def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
            try:
                while True:
                    yield "a" * 65536
            finally:
                self.ended.set()

    return Endless()


def test_who_never_reads_is_left_alone_after_a_while(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PATIENCE", SOON)
    upstream = endless()
    server = serve(upstream=upstream)
    with connect(server) as sock:
        sock.sendall(request(value={**OPENAI, "stream": True}))
        assert upstream.ended.wait(PATIENCE)
        wait_for(lambda: server.connections == 0)


def test_who_never_reads_short_answers_is_left_alone_sooner(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """He needs no password for them."""
    monkeypatch.setattr(serving, "REQUEST_TIMEOUT", SOON)
    server = serve(password="secret")
    with connect(server) as sock:
        sock.settimeout(SOON / 2)
        with pytest.raises(OSError):  # the server writes, nobody reads, and so it reads no more either
            while True:
                sock.sendall(request("GET /" + 30_000 * "x"))
        wait_for(lambda: server.connections == 0)


def test_close_does_not_wait_for_who_never_reads(serve: Serve) -> None:
    upstream = endless()
    server = serve(upstream=upstream)
    with connect(server) as sock:
        sock.sendall(request(value={**OPENAI, "stream": True}))
        assert sock.recv(1)
        time.sleep(0.2)  # until all buffers on the way are full
        watch = Stopwatch()
        server.close()
        assert watch.undisturbed < AT_ONCE
    assert upstream.ended.is_set()


def test_clients_that_leave_at_any_moment_leave_nothing_behind(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    whole = request(value={**OPENAI, "stream": True})
    for reset in (False, True):
        for length in range(0, len(whole) + 1, 7):
            with connect(server) as sock:
                sock.sendall(whole[:length])
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    wait_for(lambda: server.connections == 0)
    assert goes_on(server)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


# What is remembered


def test_what_a_conversation_keeps_is_small(serve: Serve) -> None:
    server = serve()
    _, headers = prepared(server, "conversation")
    assert one(server, request("POST /conversation", {"model": "m" * 1000}, headers)).status == 200
    assert one(server, request("POST /conversation", {"model": "m" * 1001}, headers)).status == 400
    assert one(server, request("POST /conversation", {"model": "m" * 100_000}, headers)).status == 413


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_KEPT", 3)


@pytest.mark.usefixtures("forgetful")
def test_tokens_are_bounded_and_the_one_unused_the_longest_goes_first(serve: Serve) -> None:
    server = serve()
    tokens = [prepared(server, "berlin")[1] for _ in range(3)]

    def known(token: tuple[str, ...]) -> bool:
        return one(server, request("POST /api/chat/completions", BERLIN, token)).status == 200

    assert known(tokens[0])
    tokens.append(prepared(server, "berlin")[1])
    assert [known(token) for token in tokens] == [True, False, True, True]


@pytest.mark.usefixtures("forgetful")
def test_sessions_and_conversations_are_bounded(serve: Serve) -> None:
    server = serve()
    _, cookie = prepared(server, "conversation")
    made = [one(server, request("POST /conversation", {"model": "m"}, cookie)).body for _ in range(5)]
    assert server.conversations == [json.loads(body)["conversationId"] for body in made[-3:]]
    for _ in range(3):
        prepared(server, "conversation")
    assert one(server, request("POST /conversation", {"model": "m"}, cookie)).status == 405


def test_what_nobody_uses_expires(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    path, token = prepared(server, "berlin")
    _, cookie = prepared(server, "h2o")
    monkeypatch.setattr(sessions, "LIFETIME", -1.0)
    assert one(server, request(f"POST {path}", BERLIN, token)).status == 401
    assert one(server, request("POST /conversation", {"model": "m"}, cookie)).status == 405


@pytest.mark.parametrize("name", ["berlin", "h2o"])
def test_our_providers_log_in_again_when_they_were_forgotten(
    name: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_KEPT", 1)
    server = serve(password="secret")
    with server.provider(name) as first, server.provider(name) as second:
        for _ in range(2):
            assert first.ask("Hi").endswith("Hi")
            assert second.ask("Hi").endswith("Hi")
    monkeypatch.setattr(sessions, "LIFETIME", 0.05)
    with server.provider(name) as provider:
        assert provider.ask("Hi").endswith("Hi")
        time.sleep(0.1)
        assert provider.ask("Hi").endswith("Hi")


def test_no_secret_is_kept_as_it_is(serve: Serve) -> None:
    server = serve()
    _, (token,) = prepared(server, "berlin")
    kept = [vars(endpoints) for endpoints in server._app._protocols]
    remembered = [value for each in kept for value in each.values() if isinstance(value, sessions.Remembered)]
    assert len(remembered) == 3
    assert token.partition(": ")[2] not in str([vars(one) for one in remembered])


# The upstream


def fails_with(error: ChatError) -> Any:
    class Fails:
        def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
            raise error
            yield

    return Fails()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        *((float("inf"), "86400"), (1e308, "86400"), (86_401.0, "86400"), (0.1, "1"), (0.0, "0"), (59.01, "60")),
        *((-1.0, None), (float("-inf"), None), (float("nan"), None), (None, None)),
    ],
)
@pytest.mark.parametrize("endpoint", ["openai", "acytoo", "berlin", "h2o"])
def test_the_time_to_wait_is_told_as_far_as_it_can_be_waited(
    endpoint: str, seconds: float | None, told: str | None, serve: Serve
) -> None:
    server = serve(upstream=fails_with(RateLimitError("slow down", retry_after=seconds)))
    question = {"openai": OPENAI, "acytoo": ACYTOO, "berlin": BERLIN, "h2o": H2O}[endpoint]
    answer = ask_by_hand(server, endpoint, question)
    assert (answer.status, answer.headers.get("retry-after")) == (429, told)
    assert b"slow down" in answer.body


@pytest.mark.parametrize("seconds", ["1e309", "-1", "9" * 400, "nan", "soon"])
def test_a_time_to_wait_that_an_upstream_makes_up_is_no_fault_of_the_server(
    seconds: str, wire: Wire, serve: Serve
) -> None:
    wire.on("POST", ".*", lambda request, connection: connection.respond(429, b"busy", {"Retry-After": seconds}))
    with OpenAICompatible(wire.url, proxy="", retries=0) as upstream:
        answer = one(serve(upstream=upstream), request(value=OPENAI))
    assert answer.status == 429
    assert "busy" in answer.message
    assert re.fullmatch(r"\d{1,5}", answer.headers.get("retry-after", "0"))


KEY = "sk-live-0123456789abcdef"
Script = Callable[[Recorded, Connection], None]


def events(*values: Any) -> bytes:
    return b"".join(
        b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n" for value in values
    )


def said(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def echoes(kind: str) -> Script:
    """A model server that repeats what it was sent, and says where it lives."""

    def script(asked: Recorded, connection: Connection) -> None:
        authorization = asked.header("Authorization") or ""
        here = f"{authorization} at {connection.wire.url}{asked.path} {asked.header('Host')}"
        if kind == "an error":
            connection.respond(
                500, {"error": {"message": here}}, {"X-Request-Id": authorization, "X-Key": authorization}
            )
        elif kind == "an error in text":
            connection.respond(503, here.encode(), {"Retry-After": authorization})
        elif kind == "a refusal":
            connection.respond(401, {"error": {"message": f"wrong key: {here}"}})
        elif kind == "a web page":
            connection.respond(200, f"<html>{here}".encode(), {"Content-Type": "text/html"})
        elif kind == "a redirect":
            connection.respond(302, b"", {"Location": f"{connection.wire.url}/?key={authorization}"})
        elif kind == "no JSON":
            connection.respond(200, here.encode(), {"Content-Type": "application/json"})
        elif kind == "an event with an error":
            body = events(said("one"), {"error": {"message": here}})
            connection.respond(200, body, {"Content-Type": "text/event-stream"})
        elif kind == "a broken event":
            body = events(said("one"), here.encode())
            connection.respond(200, body, {"Content-Type": "text/event-stream"})
        elif kind == "a reply":
            body = events(said(f"one {authorization}"), said(" and more", "stop"), b"[DONE]")
            connection.respond(200, body, {"Content-Type": "text/event-stream", "X-Key": authorization})
        else:
            connection.close()

    return script


ECHOES = [
    *("an error", "an error in text", "a refusal", "a web page", "a redirect", "no JSON", "an event with an error"),
    *("a broken event", "a reply", "nothing"),
]


def test_an_upstreams_key_is_not_told_in_the_form_that_json_gives_it(wire: Wire, serve: Serve) -> None:
    key = 'sk-01234"5678\\9abcdef'
    wire.on("POST", ".*", echoes("a reply"))
    with OpenAICompatible(wire.url, api_key=key, proxy="", retries=0) as upstream:
        answer = one(serve(upstream=upstream), request(value=OPENAI))
    assert "one Bearer ***" in json.loads(answer.body)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("kind", ECHOES)
@pytest.mark.parametrize("group", [False, True], ids=["alone", "in a group"])
def test_nobody_learns_the_upstreams_key_or_where_it_lives(
    kind: str, group: bool, wire: Wire, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    wire.on("POST", ".*", echoes(kind))
    port = wire.url.rpartition(":")[2]
    with contextlib.ExitStack() as stack:
        upstream: Provider = stack.enter_context(OpenAICompatible(wire.url, api_key=KEY, proxy="", retries=0))
        if group:
            upstream = stack.enter_context(Fallback([upstream]))
        server = serve(upstream=upstream)
        for endpoint, question in {
            "openai": OPENAI,
            "openai streamed": {**OPENAI, "stream": True},
            "acytoo": ACYTOO,
            "berlin": BERLIN,
            "h2o": H2O,
        }.items():
            path, headers = prepared(server, endpoint.partition(" ")[0])
            with connect(server) as sock:
                sock.sendall(request(f"POST {path}", question, (*headers, "Connection: close")))
                shown = everything(sock).decode()
            assert KEY not in shown
            assert KEY[8:] not in shown
            assert port not in shown, shown
            assert "127.0.0.1" not in shown
            if kind == "a reply":
                assert shown.startswith("HTTP/1.1 200 ")
                assert "and more" in shown
            elif endpoint != "acytoo" or "event" not in kind:  # which has no word for it behind its first piece
                assert "upstream" in shown
    assert KEY not in caplog.text
    assert kind == "a reply" or port in caplog.text, "who runs the server is told"


def test_a_key_that_is_a_word_does_not_blot_out_replies(wire: Wire, serve: Serve) -> None:
    body = events(said("llama and ollama", "stop"), b"[DONE]")
    wire.on(
        "POST", ".*", lambda asked, connection: connection.respond(200, body, {"Content-Type": "text/event-stream"})
    )
    with OpenAICompatible(wire.url, api_key="ollama", proxy="", retries=0) as upstream:
        assert b"llama and ollama" in one(serve(upstream=upstream), request(value=OPENAI)).body


def test_an_upstream_that_nobody_reaches_is_not_described(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    proxy = f"http://me:{KEY}@127.0.0.1:{port}"
    for config in ({"proxy": ""}, {"proxy": proxy}):
        with OpenAICompatible(f"http://127.0.0.1:{port}/internal", retries=0, **config) as upstream:
            answer = one(serve(upstream=upstream), request(value=OPENAI))
        assert answer.status == 502
        assert "no connection" in answer.message
        assert not re.search(rf"127\.0|{port}|internal|{KEY}|Errno", answer.body.decode())
    assert str(port) in caplog.text
    assert KEY not in caplog.text


def test_what_an_upstream_says_is_told_without_its_address(serve: Serve) -> None:
    error = APIStatusError(
        "the server answered 404",
        url="http://gpu-7.internal:8000/v1",
        status=404,
        detail="no model x at gpu-7.internal; see https://docs.example/models, or ask GPU-7.internal:8000",
        advice="Check http://gpu-7.internal:8000",
    )
    for failed in (error, AllProvidersFailed("every provider failed: at http://gpu-7.internal", errors=(error, error))):
        answer = one(serve(upstream=fails_with(failed)), request(value=OPENAI))
        assert "no model x at the upstream; see https://docs.example/models, or ask the upstream" in answer.message
        assert "gpu-7" not in answer.body.decode().lower()


def test_an_error_of_the_way_to_an_upstream_is_told_without_its_details(serve: Serve) -> None:
    error = APIConnectionError(
        "no connection", detail="HTTPConnection(host='gpu-7', port=8000): refused", url="http://gpu-7"
    )
    answer = one(serve(upstream=fails_with(error)), request(value=OPENAI))
    assert (answer.status, answer.message) == (502, "upstream: no connection")


def test_what_a_proxy_wants_of_us_is_not_asked_of_the_client(serve: Serve) -> None:
    assert one(serve(upstream=fails_with(APIStatusError("no", status=407))), request(value=OPENAI)).status == 502


# What it listens on


def test_a_name_of_this_machine_that_means_another_address_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = staticmethod(lambda sock: ("192.0.2.1", sock.getsockname()[1]))
    monkeypatch.setattr(serving._Server, "resolve_real_bind_addr", bound)
    server = LocalServer("localhost")
    with pytest.raises(InvalidRequest, match=r"localhost is 192\.0\.2\.1.*password"):
        server.start()
    server.close()
    with LocalServer("localhost", password="secret") as other:
        assert other.url


def test_a_name_below_localhost_needs_no_password() -> None:
    server = LocalServer("chat.localhost")
    with contextlib.suppress(OSError), server:  # not every machine's tables know it
        assert goes_on(server)
