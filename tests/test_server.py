"""The embedded server over real connections: strict in each protocol, prompt, and clean in its end.

Where strictness is tested, requests are sent by hand; elsewhere our own providers ask.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import http.client
import io
import json
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import requests

from berlin_chat import (
    Acytoo,
    AllProvidersFailed,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ChatError,
    Fallback,
    InvalidRequest,
    ProtocolError,
    RateLimitError,
    Reply,
    StreamInterrupted,
    Ylokh,
)
from berlin_chat.server import LocalServer, serving

#: No wait lasts longer, in seconds.
PATIENCE = 10.0
#: What "at once" means, in seconds, on a machine that is busy.
AT_ONCE = 2.0
NAMES = ("berlin", "ylokh", "h2o", "acytoo")
every_protocol = pytest.mark.parametrize("name", NAMES)
MISSING = object()
Serve = Callable[..., LocalServer]

SETTINGS = {
    "ethicsModalAccepted": "true",
    "shareConversationsWithModelAuthors": "true",
    "ethicsModalAcceptedAt": "",
    "activeModel": "a-model",
    "searchEnabled": "true",
}
PATHS = {
    "berlin": "/api/chat/completions",
    "ylokh": "/v1/chat/completions",
    "h2o": "/conversation",
    "acytoo": "/api/completions",
}
#: To where each protocol's first request goes, for which nothing must have come before it.
FIRST = {**PATHS, "berlin": "/api/login", "h2o": "/settings"}


def question(name: str, text: str = "Hi there") -> dict[str, Any]:
    """What ``PROTOCOLS.md`` says that a provider sends."""
    messages = [{"role": "user", "content": text}]
    penalties = {"presence_penalty": 0, "frequency_penalty": 0}
    if name == "berlin":
        options = {"model": "gpt-3.5-turbo", "temperature": 0, "max_tokens": 1888, **penalties}
        return {"prompt": text, "parentMessageId": str(uuid4()), "options": options}
    if name == "ylokh":
        options = {"temperature": 1, "top_p": 1, "allow_fallback": True, **penalties}
        return {"messages": messages, "model": "gpt-3.5-turbo", "stream": True, **options}
    if name == "acytoo":
        return {
            "key": "",
            "model": "gpt-3.5-turbo",
            "messages": messages,
            "temperature": 0.5,
            "password": "",
        }
    return {
        "inputs": text,
        "parameters": {
            "temperature": 0.4,
            "truncate": 2048,
            "max_new_tokens": 1024,
            "do_sample": True,
            "repetition_penalty": 1.2,
            "return_full_text": False,
        },
        "stream": True,
        "options": {
            "id": str(uuid4()),
            "response_id": str(uuid4()),
            "is_retry": False,
            "use_cache": False,
            "web_search_id": "",
        },
    }


def altered(original: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A copy with another value at ``field``, whose path is dotted; MISSING takes it away."""
    result = copy.deepcopy(original)
    *path, last = field.split(".")
    inner = result
    for key in path:
        inner = inner[key]
    inner.pop(last, None)
    if value is not MISSING:
        inner[last] = value
    return result


class ByHand:
    """A client without a provider of ours: what is sent is what a test says. It keeps cookies, like a browser."""

    def __init__(self, server: LocalServer) -> None:
        self.url = server.url
        self.session = requests.Session()
        self.session.trust_env = False

    def send(self, method: str, path: str, **request: Any) -> requests.Response:
        return self.session.request(method, self.url + path, timeout=PATIENCE, allow_redirects=False, **request)

    def post(self, path: str, **request: Any) -> requests.Response:
        return self.send("POST", path, **request)

    def log_in(self, **login: Any) -> requests.Response:
        return self.post("/api/login", json={"account": "me", "password": "secret", **login})

    def token(self) -> str:
        return self.log_in().json()["data"]["token"]

    def accept_settings(self, **request: Any) -> requests.Response:
        return self.post("/settings", **{"data": SETTINGS, **request})

    def create(self) -> str:
        return self.post("/conversation", json={"model": "a-model"}).json()["conversationId"]

    def ask(self, name: str, asked: Any = None, **request: Any) -> requests.Response:
        """A question after everything that its protocol wants before it."""
        path = PATHS[name]
        if name == "berlin":
            request["headers"] = {"token": self.token(), **request.get("headers", {})}
        elif name == "h2o":
            self.accept_settings()
            path += "/" + self.create()
        if "data" not in request:
            request["json"] = question(name) if asked is None else asked
        return self.post(path, **request)


def refusal(name: str, response: requests.Response) -> str:
    """The message of an error that is in the protocol's own form."""
    body = response.json()
    if name == "berlin":
        assert body == {"code": response.status_code, "msg": body["msg"], "data": None}
        return body["msg"]
    if name == "ylokh":
        error = body["error"]
        assert body == {"error": {"message": error["message"], "type": error["type"], "param": None, "code": None}}
        return error["message"]
    if name == "h2o":
        assert body == {"error": body["error"], "error_type": body["error_type"]}
        return body["error"]
    assert body == {"error": {"message": body["error"]["message"]}}
    return body["error"]["message"]


def text_in(name: str, response: requests.Response) -> str:
    """The text of a streamed reply, read as strictly as ``PROTOCOLS.md`` words it."""
    assert response.status_code == 200, f"{name} answered {response.status_code}: {response.text}"
    body = response.content.decode()
    if name == "acytoo":
        return body
    if name == "berlin":
        return "".join(json.loads(line)["content"] for line in body.split("\n"))
    datas = [event.removeprefix("data: ") for event in body.removesuffix("\n\n").split("\n\n")]
    if name == "ylokh":
        assert datas.pop() == "[DONE]"
        chunks = [json.loads(data) for data in datas]
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    events = [json.loads(data) for data in datas]
    text = "".join(event["token"]["text"] for event in events if not event["token"]["special"])
    assert [event["generated_text"] for event in events] == [None] * (len(events) - 1) + [text]
    return text


Hand = Callable[[LocalServer], ByHand]

# What stands behind a server in these tests


class Says:
    """Says the pieces, then fails if it was told to; remembers what it was asked."""

    def __init__(self, *pieces: str, error: Exception | None = None, end: Reply | None = None) -> None:
        self.pieces = pieces
        self.error = error
        self.end = end
        self.asked: list[tuple[Any, str | None, dict[str, Any]]] = []

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Any:
        self.asked.append((messages, model, options))
        yield from self.pieces
        if self.error is not None:
            raise self.error
        return self.end


class Endless:
    """Says the same piece again and again until it is closed; it keeps its generators alive itself."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.replies: list[Iterator[str]] = []

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        self.replies.append(self._pieces())
        return self.replies[-1]

    def _pieces(self) -> Iterator[str]:
        pause = threading.Event()
        try:
            while not pause.wait(0.001):
                yield "again "
        finally:
            self.ended.set()


class Silent:
    """Says one piece, and then nothing until ``release`` is set."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.release = threading.Event()

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        yield from self.pieces
        self.release.wait(PATIENCE * 3)


class LockStep:
    """Says a piece only after ``received`` was released for the one before it."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces
        self.received = threading.Semaphore(0)

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        for index, piece in enumerate(self.pieces):
            if index and not self.received.acquire(timeout=PATIENCE):
                raise ChatError(f"piece {index - 1} was held back until piece {index} should be produced")
            yield piece


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, which are closed at the end of the test, the last one first."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **config: stack.enter_context(LocalServer(*args, **config))


@pytest.fixture
def by_hand() -> Iterator[Hand]:
    """Makes clients by hand."""
    with contextlib.ExitStack() as stack:

        def make(server: LocalServer) -> ByHand:
            client = ByHand(server)
            stack.callback(client.session.close)
            return client

        yield make


@pytest.fixture(scope="module")
def echo() -> Iterator[LocalServer]:
    """A server without upstream and password, which many tests share."""
    with LocalServer() as server:
        yield server


@pytest.fixture
def client(echo: LocalServer, by_hand: Hand) -> ByHand:
    """By hand, at the server that many tests share."""
    return by_hand(echo)


def ask(server: LocalServer, name: str, text: str = "Hi", **config: Any) -> Reply:
    with server.provider(name, **{"retries": 0, **config}) as provider:
        return provider.ask(text)


# Strictness


@every_protocol
def test_the_question_of_the_protocol_is_answered_in_its_form(name: str, client: ByHand) -> None:
    response = client.ask(name)
    kinds = {"ylokh": "text/event-stream", "h2o": "text/event-stream"}
    assert response.headers["Content-Type"].startswith(kinds.get(name, "text/plain"))
    assert text_in(name, response).endswith("You said: Hi there")


def test_berlins_line_ends_stand_between_the_objects(client: ByHand) -> None:
    body = client.ask("berlin").text
    assert not body.endswith("\n")
    assert body.count("\n") == len(body.split("\n")) - 1 > 3


WRONG_FIELDS: list[tuple[str, str, list[Any]]] = [
    ("berlin", "prompt", [MISSING, None, 5, "", ["Hi"]]),
    ("berlin", "parentMessageId", [MISSING, None, 5, "", "not-a-uuid"]),
    ("berlin", "options", [MISSING, None, [], "x"]),
    ("berlin", "options.model", [MISSING, None, 5]),
    ("berlin", "options.temperature", ["hot", None, True]),
    ("berlin", "options.presence_penalty", ["0"]),
    ("berlin", "options.frequency_penalty", [[]]),
    ("berlin", "options.max_tokens", ["1888"]),
    ("berlin", "options.messages", [[]]),
    ("ylokh", "messages", [MISSING, None, [], "Hi", {"role": "user", "content": "Hi"}, ["Hi"], [None]]),
    ("ylokh", "messages", [[{"role": "user"}], [{"content": "Hi"}], [{"role": "", "content": "Hi"}]]),
    ("ylokh", "messages", [[{"role": "user", "content": 5}], [{"role": 5, "content": "Hi"}]]),
    ("ylokh", "model", [MISSING, None, 5, ""]),
    ("ylokh", "stream", [1, "true"]),
    ("ylokh", "stream_options", [[], "x", True]),
    ("ylokh", "temperature", ["hot", [], False]),
    ("ylokh", "top_p", ["1"]),
    ("ylokh", "presence_penalty", ["0"]),
    ("ylokh", "frequency_penalty", ["0"]),
    ("ylokh", "self", [1]),
    ("h2o", "inputs", [MISSING, None, 5, "", ["Hi"]]),
    ("h2o", "parameters", [MISSING, None, [], "x"]),
    ("h2o", "parameters.temperature", ["hot", None, True]),
    ("h2o", "parameters.truncate", ["2048"]),
    ("h2o", "parameters.max_new_tokens", ["1024"]),
    ("h2o", "parameters.repetition_penalty", ["1.2"]),
    ("h2o", "parameters.model", ["other"]),
    ("h2o", "stream", [MISSING, None, False, "true", 1]),
    ("h2o", "options", [MISSING, None, [], "x"]),
    ("h2o", "options.id", [MISSING, None, 5, "", "not-a-uuid"]),
    ("h2o", "options.response_id", [MISSING, None, 5, "", "not-a-uuid"]),
    ("acytoo", "key", [MISSING, None, 5]),
    ("acytoo", "password", [MISSING, None, 5]),
    ("acytoo", "model", [MISSING, None, 5]),
    ("acytoo", "temperature", [None, "0.5", True]),
    ("acytoo", "messages", [MISSING, None, [], "Hi", ["Hi"], [{"role": "user"}], [{"content": "Hi"}]]),
]


@pytest.mark.parametrize(
    ("name", "field", "values"), WRONG_FIELDS, ids=[f"{name}-{field}" for name, field, _ in WRONG_FIELDS]
)
def test_a_wrong_field_is_refused_with_400_and_its_name(
    name: str, field: str, values: list[Any], client: ByHand
) -> None:
    for value in values:
        response = client.ask(name, altered(question(name), field, value))
        said = "nothing" if value is MISSING else repr(value)
        assert response.status_code == 400, f"{field}: {said} was answered {response.status_code}"
        message = refusal(name, response)
        assert field.rpartition(".")[2] in message, f"{field}: {said} was refused with {message!r}"


@pytest.mark.parametrize("field", ["account", "password"])
@pytest.mark.parametrize("value", [MISSING, None, 5], ids=["missing", "null", "number"])
def test_a_login_with_a_wrong_field_is_refused_with_400(field: str, value: Any, client: ByHand) -> None:
    login = altered({"account": "me", "password": "secret"}, field, value)
    response = client.post("/api/login", json=login)
    assert response.status_code == 400
    assert field in refusal("berlin", response)


@pytest.mark.parametrize("field", SETTINGS)
def test_settings_with_a_wrong_field_are_refused_and_not_accepted(field: str, client: ByHand) -> None:
    wrong = {"ethicsModalAccepted": ["false", "", MISSING], "activeModel": ["", MISSING]}
    switches = ["on", "", MISSING] if field != "ethicsModalAcceptedAt" else [MISSING]
    for value in wrong.get(field, switches):
        response = client.accept_settings(data=altered(SETTINGS, field, value))
        assert response.status_code == 400, f"{field}={value!r} was answered {response.status_code}"
        assert field in refusal("h2o", response)
    assert client.post("/conversation", json={"model": "a-model"}).status_code == 405


@pytest.mark.parametrize("value", [MISSING, None, 5, ""], ids=["missing", "null", "number", "empty"])
def test_a_conversation_needs_a_model(value: Any, client: ByHand) -> None:
    client.accept_settings()
    response = client.post("/conversation", json=altered({"model": "m"}, "model", value))
    assert response.status_code == 400
    assert "model" in refusal("h2o", response)


@every_protocol
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"Hi"', b"null", b"\xff\xfe", b"[" * 100_000], ids=lambda body: repr(body[:8])
)
def test_a_body_that_is_no_json_object_is_refused_with_400(name: str, body: bytes, client: ByHand) -> None:
    response = client.ask(name, data=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert "JSON" in refusal(name, response)


@every_protocol
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_question_of_another_content_type_is_refused_with_415(name: str, kind: str | None, client: ByHand) -> None:
    headers = {"Content-Type": kind} if kind else {}
    response = client.ask(name, data=json.dumps(question(name)).encode(), headers=headers)
    assert response.status_code == 415
    assert "application/json" in refusal(name, response)


def test_settings_of_another_content_type_are_refused_with_415(client: ByHand) -> None:
    response = client.accept_settings(data=None, json=SETTINGS)
    assert response.status_code == 415
    assert "application/x-www-form-urlencoded" in refusal("h2o", response)


@every_protocol
def test_the_case_and_the_charset_of_a_content_type_do_not_matter(name: str, client: ByHand) -> None:
    headers = {"Content-Type": "Application/JSON; charset=UTF-8"}
    assert client.ask(name, data=json.dumps(question(name)).encode(), headers=headers).status_code == 200


@pytest.mark.parametrize("login", [{"account": ""}, {"account": "", "password": ""}])
def test_an_empty_account_is_answered_with_200_and_no_token(login: dict[str, str], client: ByHand) -> None:
    response = client.log_in(**login)
    body = response.json()
    assert (response.status_code, body) == (200, {"code": 401, "msg": body["msg"], "data": None})


@pytest.mark.parametrize("password", ["wrong", "", "пароль", "\ud800"])
def test_a_wrong_password_is_answered_with_200_and_no_token(password: str, serve: Serve, by_hand: Hand) -> None:
    response = by_hand(serve(password="secret")).log_in(password=password)
    body = response.json()
    assert (response.status_code, body) == (200, {"code": 401, "msg": body["msg"], "data": None})


@pytest.mark.parametrize("headers", [{}, {"token": ""}, {"token": "stale"}], ids=["missing", "empty", "stale"])
def test_a_question_without_a_valid_token_is_refused_with_401(headers: dict[str, str], client: ByHand) -> None:
    client.log_in()
    response = client.post(PATHS["berlin"], json=question("berlin"), headers=headers)
    assert response.status_code == 401
    assert "log in" in refusal("berlin", response)


def test_a_token_of_another_server_is_stale(serve: Serve, by_hand: Hand) -> None:
    token = by_hand(serve()).token()
    response = by_hand(serve()).post(PATHS["berlin"], json=question("berlin"), headers={"token": token})
    assert response.status_code == 401


def test_a_token_serves_many_questions(client: ByHand) -> None:
    token = {"token": client.token()}
    answers = [client.post(PATHS["berlin"], json=question("berlin"), headers=token) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_accepted_settings_redirect_to_the_referer_and_set_the_cookie(client: ByHand) -> None:
    response = client.accept_settings(headers={"Referer": client.url + "/page"})
    assert (response.status_code, response.headers["Location"]) == (303, client.url + "/page")
    assert response.cookies["hf-chat"]


def test_before_the_settings_were_accepted_every_post_is_refused_with_405(client: ByHand) -> None:
    for method, path in [
        ("POST", "/conversation"),
        ("POST", "/conversation/abc"),
        ("DELETE", "/conversation/abc"),
    ]:
        response = client.send(method, path, json=question("h2o"))
        assert response.status_code == 405, f"{method} {path} was answered {response.status_code}"
        assert "settings" in refusal("h2o", response)


@pytest.mark.parametrize("cookie", [None, "hf-chat=made-up", "other=1", "a/b=1; =; hf-chat=made-up"])
def test_without_the_sessions_cookie_the_settings_count_as_not_accepted(cookie: str | None, client: ByHand) -> None:
    client.accept_settings()
    client.session.cookies.clear()
    headers = {"Cookie": cookie} if cookie else {}
    response = client.post("/conversation", json={"model": "a-model"}, headers=headers)
    assert response.status_code == 405


def test_the_cookie_is_found_among_others(client: ByHand) -> None:
    cookie = client.accept_settings().cookies["hf-chat"]
    client.session.cookies.clear()
    headers = {"Cookie": f"a/b=1; theme=dark;hf-chat={cookie}; last=1"}
    assert client.post("/conversation", json={"model": "a-model"}, headers=headers).status_code == 200


@pytest.mark.parametrize("made_up", ["chosen", r'"a\015\012X-Injected: yes"'])
def test_a_session_has_the_name_that_the_server_gave_it(made_up: str, client: ByHand) -> None:
    response = client.accept_settings(headers={"Cookie": f"hf-chat={made_up}"})
    assert response.status_code == 303
    assert "X-Injected" not in response.headers
    assert made_up not in response.headers["Set-Cookie"]


def test_settings_that_are_accepted_again_keep_the_session(client: ByHand) -> None:
    first = client.accept_settings().cookies["hf-chat"]
    conversation = client.create()
    assert client.accept_settings().cookies["hf-chat"] == first
    assert client.post(f"/conversation/{conversation}", json=question("h2o")).status_code == 200


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_an_unknown_conversation_is_refused_with_404(method: str, client: ByHand) -> None:
    client.accept_settings()
    response = client.send(method, "/conversation/unknown", json=question("h2o"))
    assert response.status_code == 404
    assert "no such conversation" in refusal("h2o", response)


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_conversation_of_another_session_is_unknown_and_untouched(method: str, serve: Serve, by_hand: Hand) -> None:
    server = serve()
    owner, stranger = by_hand(server), by_hand(server)
    owner.accept_settings()
    stranger.accept_settings()
    conversation = owner.create()
    response = stranger.send(method, f"/conversation/{conversation}", json=question("h2o"))
    assert response.status_code == 404
    assert server.conversations == [conversation]
    assert owner.post(f"/conversation/{conversation}", json=question("h2o")).status_code == 200


def test_a_deleted_conversation_is_unknown(client: ByHand) -> None:
    client.accept_settings()
    path = f"/conversation/{client.create()}"
    assert client.send("DELETE", path).status_code == 200
    assert client.send("DELETE", path).status_code == 404
    assert client.post(path, json=question("h2o")).status_code == 404


@pytest.mark.parametrize("path", ["/v1", "/v1/chat/completions/", "/api", "/conversation/a/b", "/%0a", "/é"])
def test_an_unknown_path_is_refused_with_404(path: str, client: ByHand) -> None:
    for method in ("GET", "POST"):
        response = client.send(method, path)
        assert response.status_code == 404
        assert "there is no" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/login", {"POST"}),
        ("GET", "/api/chat/completions", {"POST"}),
        ("PUT", "/v1/chat/completions", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("HEAD", "/v1/chat/completions", {"POST"}),
        ("GET", "/settings", {"POST"}),
        ("GET", "/conversation", {"POST"}),
        ("GET", "/conversation/abc", {"POST", "DELETE"}),
        ("DELETE", "/api/completions", {"POST"}),
        ("POST", "/", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_is_refused_with_405_and_the_right_ones(
    method: str, path: str, allowed: set[str], client: ByHand
) -> None:
    response = client.send(method, path)
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == allowed


def test_the_root_says_what_the_server_is(client: ByHand) -> None:
    response = client.send("GET", "/")
    assert response.status_code == 200
    assert "berlin_chat" in response.text


@every_protocol
def test_a_question_that_comes_in_chunks_is_answered(name: str, client: ByHand) -> None:
    body = json.dumps(question(name)).encode()
    parts = iter([body[:10], body[10:50], body[50:]])
    response = client.ask(name, data=parts, headers={"Content-Type": "application/json"})
    assert text_in(name, response).endswith("Hi there")


@pytest.mark.parametrize("path", ["/nowhere", "/api/chat/completions", "/conversation", "/api/login"])
@pytest.mark.parametrize("chunked", [False, True], ids=["known length", "chunked"])
def test_a_refused_question_leaves_nothing_behind_on_its_connection(path: str, chunked: bool, client: ByHand) -> None:
    body = json.dumps(question("ylokh")).encode()
    address = urlsplit(client.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", path, iter([body, body]) if chunked else body, encode_chunked=chunked)
        first = connection.getresponse()
        first.read()
        assert first.status in (401, 404, 405, 415)
        wire = connection.sock
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 200, "the refused body was taken for the next request"
        assert connection.sock is wire, "the connection was not kept"


# Requests that do not arrive

#: How long the server waits for a request in these tests, in seconds.
REQUEST_TIMEOUT = 0.2
LENGTH, CHUNKED = "Content-Length: 100", "Transfer-Encoding: chunked"
#: The answer to the expectation shows that the server has read the head, and waits for the body.
EXPECTANT = f"{LENGTH}\r\nExpect: 100-continue"
#: The header of a body, and what arrives of it.
UNFINISHED = {
    "known length": (LENGTH, b'{"prompt":'),
    "nothing of a known length": (LENGTH, b""),
    "nothing of the chunks": (CHUNKED, b""),
    "inside a chunk": (CHUNKED, b"5\r\n{"),
    "between chunks": (CHUNKED, b"2\r\n{}\r\n"),
    "inside the size of a chunk": (CHUNKED, b"2\r\n{}\r\n1"),
    "before the end of the trailers": (CHUNKED, b"2\r\n{}\r\n0\r\n"),
}
unfinished = pytest.mark.parametrize(("header", "body"), UNFINISHED.values(), ids=UNFINISHED)
OTHER_REQUESTS = {
    "berlin's login": ("berlin", "POST /api/login"),
    "ylokh's models": ("ylokh", "GET /v1/models"),
    "h2o's settings": ("h2o", "POST /settings"),
    "h2o's question": ("h2o", "POST /conversation/unknown"),
    "h2o's deletion": ("h2o", "DELETE /conversation/unknown"),
    "the root": ("acytoo", "GET /"),
    "an unknown path": ("acytoo", "POST /nowhere"),
    "a wrong method": ("acytoo", "PUT /settings"),
}


@contextlib.contextmanager
def request_on_a_wire(server: LocalServer, line: str, header: str, body: bytes) -> Iterator[socket.socket]:
    """A connection on which a request was sent, or what is to arrive of it."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), PATIENCE) as wire:
        wire.sendall(
            f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{header}\r\n\r\n".encode() + body
        )
        yield wire


def answer_on(wire: socket.socket) -> requests.Response:
    """The next answer on a connection."""
    response = requests.Response()
    with contextlib.closing(http.client.HTTPResponse(wire)) as answer:
        answer.begin()
        response.status_code = answer.status
        response.headers.update(answer.getheaders())
        response.raw = io.BytesIO(answer.read())
    return response


def is_closed(wire: socket.socket) -> bool:
    """Whether nothing more arrives on a connection but its end, and that at once."""
    wire.settimeout(AT_ONCE)
    try:
        return wire.recv(1) == b""
    except TimeoutError:
        return False


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[LocalServer], list[int]]:
    """Closes a server, and returns the levels of what it logged; a traceback fails the test."""
    caplog.set_level(logging.DEBUG, "berlin_chat.server")

    def levels(server: LocalServer) -> list[int]:
        server.close()
        records = [record for record in caplog.records if record.name.startswith("berlin_chat.server")]
        assert [record.getMessage() for record in records if record.exc_info] == []
        assert "Traceback" not in caplog.text
        return [record.levelno for record in records]

    return levels


Logged = Callable[[LocalServer], list[int]]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the server wait for the rest of a request for a moment only."""
    monkeypatch.setattr(serving, "REQUEST_TIMEOUT", REQUEST_TIMEOUT)


@pytest.mark.usefixtures("impatient")
@every_protocol
@unfinished
def test_a_body_that_stops_is_a_408_one_line_in_the_log_and_the_end_of_its_connection(
    name: str, header: str, body: bytes, serve: Serve, logged: Logged
) -> None:
    upstream = Says("never")
    server = serve(upstream=upstream)
    with request_on_a_wire(server, f"POST {PATHS[name]}", header, body) as wire:
        response = answer_on(wire)
        assert response.status_code == 408
        assert response.headers["Connection"] == "close"
        assert "did not arrive" in refusal(name, response)
        assert is_closed(wire)
    assert logged(server) == [logging.WARNING]
    assert upstream.asked == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("name", "line"), OTHER_REQUESTS.values(), ids=OTHER_REQUESTS)
def test_every_request_whose_body_stops_is_a_408(name: str, line: str, serve: Serve, logged: Logged) -> None:
    server = serve(password="secret")
    with request_on_a_wire(server, line, LENGTH, b"{") as wire:
        response = answer_on(wire)
        assert (response.status_code, response.headers["Connection"]) == (408, "close")
        assert "did not arrive" in refusal(name, response)
        assert is_closed(wire)
    assert logged(server) == [logging.WARNING]


@every_protocol
@unfinished
def test_a_body_that_ends_too_early_is_a_408_and_the_end_of_its_connection(
    name: str, header: str, body: bytes, serve: Serve, logged: Logged
) -> None:
    upstream = Says("never")
    server = serve(upstream=upstream)
    with request_on_a_wire(server, f"POST {PATHS[name]}", header, body) as wire:
        wire.shutdown(socket.SHUT_WR)
        response = answer_on(wire)
        assert (response.status_code, response.headers["Connection"]) == (408, "close")
        assert "too early" in refusal(name, response)
        assert is_closed(wire)
    assert logged(server) == [logging.DEBUG]
    assert upstream.asked == []


@every_protocol
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_client_that_goes_away_in_the_middle_of_its_body_is_no_failure_of_the_upstream(
    name: str, reset: bool, serve: Serve, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Says("never")
    server = serve(upstream=upstream)
    with request_on_a_wire(server, f"POST {FIRST[name]}", EXPECTANT, b"{") as wire:
        assert wire.recv(100).startswith(b"HTTP/1.1 100")
        if reset:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    until = monotonic() + PATIENCE
    while not caplog.records and monotonic() < until:
        sleep(0.01)
    assert logged(server) == [logging.DEBUG]
    assert upstream.asked == []


def test_close_ends_the_wait_for_a_body_at_once(logged: Logged) -> None:
    with nothing_left():
        server = LocalServer().start()
        with request_on_a_wire(server, "POST /api/completions", EXPECTANT, b"{") as wire:
            assert wire.recv(100).startswith(b"HTTP/1.1 100")
            assert closed_in(server) < AT_ONCE
            assert is_closed(wire)
    assert logged(server) == [logging.DEBUG]


WRONG_BODIES = {
    "no size": (400, CHUNKED, b"size\r\n{}"),
    "a chunk longer than its size": (400, CHUNKED, b"1\r\n{}\r\n0\r\n\r\n"),
    "wrong trailers": (400, CHUNKED, b"0\r\ntrailer\n"),
    "a chunk too large": (413, CHUNKED, b"fffffffff\r\n{}"),
}


@every_protocol
@pytest.mark.parametrize(("status", "header", "body"), WRONG_BODIES.values(), ids=WRONG_BODIES)
def test_a_body_in_a_wrong_frame_is_refused_and_ends_its_connection(
    name: str, status: int, header: str, body: bytes, serve: Serve, logged: Logged
) -> None:
    server = serve()
    with request_on_a_wire(server, f"POST {FIRST[name]}", header, body) as wire:
        response = answer_on(wire)
        assert (response.status_code, response.headers["Connection"]) == (status, "close")
        assert "body" in refusal(name, response)
        assert is_closed(wire)
    assert logged(server) == [logging.WARNING]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("line", "header", "status"),
    [("GET //[", "", 400), ("GET /", "no colon", 400), ("GET /", "Content-Length: -5", 400), ("GET", "", 400)],
)
def test_a_wrong_head_is_refused_without_a_traceback(
    line: str, header: str, status: int, serve: Serve, logged: Logged
) -> None:
    server = serve()
    with request_on_a_wire(server, line, header or "X-Nothing: 1", b"") as wire:
        assert answer_on(wire).status_code == status
        assert is_closed(wire)
    assert logged(server) == [logging.DEBUG]


@pytest.mark.usefixtures("impatient")
def test_a_head_that_stops_is_a_408_and_the_end_of_its_connection(serve: Serve, logged: Logged) -> None:
    server = serve()
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), PATIENCE) as wire:
        wire.sendall(b"POST /api/completions HTTP/1.1\r\nHost:")
        assert answer_on(wire).status_code == 408
        assert is_closed(wire)
    assert logged(server) == []


def test_a_body_may_take_its_time_while_something_arrives(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, logged: Logged
) -> None:
    monkeypatch.setattr(serving, "REQUEST_TIMEOUT", 1.0)
    server = serve()
    body = json.dumps(question("acytoo")).encode()
    with request_on_a_wire(server, "POST /api/completions", f"Content-Length: {len(body)}", b"") as wire:
        for start in range(0, len(body), 40):
            sleep(0.4)
            wire.sendall(body[start : start + 40])
        assert len(body) > 3 * 40
        assert text_in("acytoo", answer_on(wire)).endswith("Hi there")
    assert logged(server) == []


@pytest.mark.usefixtures("impatient")
def test_a_client_may_take_longer_to_read_than_to_send(serve: Serve, by_hand: Hand) -> None:
    megabyte = "x" * 2**20
    client = by_hand(serve(upstream=Says(*[megabyte] * 32)))  # more than all buffers on the way hold
    with contextlib.closing(client.ask("acytoo", stream=True)) as response:
        sleep(REQUEST_TIMEOUT * 3)
        assert len(response.content) == 32 * 2**20


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("trailers", [b"", b"X-Sum: 5\r\nX-More: 6\r\n"], ids=["no trailers", "trailers"])
def test_behind_a_body_in_chunks_the_connection_waits_for_the_next_request(
    trailers: bytes, serve: Serve, logged: Logged
) -> None:
    server = serve()
    body = b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n"
    with request_on_a_wire(server, "POST /api/completions", CHUNKED, body) as wire:
        assert answer_on(wire).status_code == 400
        sleep(REQUEST_TIMEOUT * 2)  # an idle connection is in the middle of nothing
        wire.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert answer_on(wire).status_code == 200
    assert logged(server) == []


def test_an_idle_connection_is_closed_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, logged: Logged
) -> None:
    monkeypatch.setattr(serving, "PATIENCE", 0.3)
    server = serve()
    with request_on_a_wire(server, "GET /", "X-Nothing: 1", b"") as wire:
        assert answer_on(wire).status_code == 200
        assert is_closed(wire)
    assert logged(server) == []


# Passwords


def test_without_a_password_any_account_key_and_password_is_let_in(client: ByHand) -> None:
    assert client.log_in(account="anybody", password="").json()["data"]["token"]
    for name in NAMES:
        assert client.ask(name, headers={"Authorization": "Bearer any"}).status_code == 200
    assert client.ask("acytoo", {**question("acytoo"), "key": "any", "password": "any"}).status_code == 200


def test_berlin_wants_the_password_as_the_accounts(serve: Serve, by_hand: Hand) -> None:
    client = by_hand(serve(password="secret"))
    assert client.log_in(password="wrong").json()["data"] is None
    assert client.log_in(account="whoever", password="secret").json()["data"]["token"]


@pytest.mark.parametrize(("method", "path"), [("POST", PATHS["ylokh"]), ("GET", "/v1/models")])
def test_ylokh_wants_the_password_as_bearer_key(method: str, path: str, serve: Serve, by_hand: Hand) -> None:
    client = by_hand(serve(password="secret"))
    for authorization in (None, "secret", "Basic secret", "Bearer", "Bearer wrong", "Bearer secret more"):
        response = client.send(method, path, json=question("ylokh"), headers={"Authorization": authorization})
        assert response.status_code == 401, f"{authorization!r} was let in"
        refusal("ylokh", response)
        assert response.json()["error"]["type"] == "authentication_error"
    for authorization in ("Bearer secret", "bearer secret"):
        response = client.send(method, path, json=question("ylokh"), headers={"Authorization": authorization})
        assert response.status_code == 200, f"{authorization!r} was not let in"


def test_acytoo_wants_the_password_in_its_field(serve: Serve, by_hand: Hand) -> None:
    client = by_hand(serve(password="secret"))
    for password in (MISSING, None, "", "wrong", "\udfff", 5):
        response = client.ask("acytoo", altered(question("acytoo"), "password", password))
        assert response.status_code == 401, f"{password!r} was let in"
        assert "password" in refusal("acytoo", response)
    assert client.ask("acytoo", {**question("acytoo"), "password": "secret"}).status_code == 200


def test_h2o_wants_the_password_in_an_authorization_header_of_every_request(serve: Serve, by_hand: Hand) -> None:
    server = serve(password="secret")
    client = by_hand(server)
    right, wrong = {"Authorization": "Bearer secret"}, {"Authorization": "Bearer wrong"}
    assert client.accept_settings(headers=right).status_code == 303
    answer = client.post("/conversation", json={"model": "m"}, headers=right).json()
    path = "/conversation/" + answer["conversationId"]
    steps = [
        ("POST", "/settings", {"data": SETTINGS}),
        ("POST", "/conversation", {"json": {"model": "m"}}),
        ("POST", path, {"json": question("h2o")}),
        ("DELETE", path, {}),
    ]
    for method, path, body in steps:
        for headers in ({}, wrong):
            response = client.send(method, path, headers=headers, **body)
            assert response.status_code == 401, f"{method} {path} with {headers} was let in"
            assert "log in" in refusal("h2o", response)
    for method, path, body in steps:
        assert client.send(method, path, headers=right, **body).status_code in (200, 303)


@every_protocol
@pytest.mark.parametrize("password", [None, "secret", "a b:c%20"])
def test_the_servers_own_provider_is_let_in(name: str, password: str | None, serve: Serve) -> None:
    server = serve(password=password)
    assert ask(server, name).endswith("You said: Hi")
    assert ask(server, name.upper()).endswith("You said: Hi")


@every_protocol
def test_the_servers_own_provider_is_let_in_with_more_headers(name: str, serve: Serve) -> None:
    assert ask(serve(password="secret"), name, headers={"X-Trace": "1"}).endswith("You said: Hi")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("berlin", {"password": "not-the-word"}),
        ("ylokh", {"api_key": "not-the-word"}),
        ("h2o", {"headers": {"Authorization": "Bearer not-the-word"}}),
        ("acytoo", {"password": "not-the-word"}),
    ],
)
def test_a_provider_with_a_wrong_password_gets_an_authentication_error(
    name: str, config: dict[str, Any], serve: Serve
) -> None:
    with pytest.raises(AuthenticationError) as caught:
        ask(serve(password="secret"), name, **config)
    assert "not-the-word" not in str(caught.value), "the password that was sent is in the error"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org", ""])
@pytest.mark.parametrize("password", [None, ""])
def test_an_address_that_others_can_reach_needs_a_password(host: str, password: str | None) -> None:
    with pytest.raises(InvalidRequest, match="password"):
        LocalServer(host, password=password)


@every_protocol
def test_with_a_password_every_address_of_the_machine_works(name: str, serve: Serve) -> None:
    server = serve("0.0.0.0", password="secret")
    assert server.url.startswith("http://127.0.0.1:")
    assert ask(server, name).endswith("You said: Hi")


@pytest.mark.parametrize("password", ["пароль", "line\nbreak", " spaced "])
def test_a_password_that_no_header_can_hold_is_refused(password: str) -> None:
    with pytest.raises(InvalidRequest, match="password") as caught:
        LocalServer(password=password)
    assert password not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_a_loopback_address_needs_no_password(host: str, serve: Serve) -> None:
    try:
        server = serve(host)
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    assert ask(server, "ylokh").endswith("You said: Hi")


@every_protocol
def test_an_ipv6_address_works(name: str, serve: Serve) -> None:
    try:
        server = serve("::1")
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error}")
    assert server.url.startswith("http://[::1]:")
    assert ask(server, name).endswith("You said: Hi")


# The echo


@every_protocol
@pytest.mark.parametrize("prompt", ["Why is the sky blue?", "  two\n\n lines\t ", "Почему? 🙂", "\u2028 x \x85"])
def test_the_echo_says_that_no_model_is_behind_it_and_repeats_the_prompt(
    name: str, prompt: str, echo: LocalServer
) -> None:
    with echo.provider(name) as provider:
        pieces = list(provider.stream(prompt))
    text = "".join(pieces)
    assert "no model is behind it" in text
    assert text.endswith("You said: " + prompt)


@pytest.mark.parametrize("name", ["berlin", "ylokh", "h2o"])
def test_the_echo_comes_word_by_word(name: str, echo: LocalServer) -> None:
    with echo.provider(name) as provider:
        pieces = list(provider.stream("one two three"))
    assert pieces[-3:] == [" one", " two", " three"]
    assert all(len(piece.split()) == 1 for piece in pieces)


def test_the_echo_repeats_the_last_message_as_far_as_the_protocol_tells_them_apart(echo: LocalServer) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    for name in NAMES:
        with echo.provider(name) as provider:
            said = "Hi" if provider.supports_message_history else "System: Be kind.\nUser: Hi\nAssistant:"
            assert provider.ask(messages).endswith(f"You said: {said}")


def test_the_delay_is_kept_before_each_piece(serve: Serve) -> None:
    server = serve(upstream=Says("a", "b", "c"), delay=0.1)
    started = monotonic()
    assert ask(server, "acytoo") == "abc"
    assert monotonic() - started >= 0.3


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf")])
def test_a_delay_that_cannot_be_waited_for_is_refused(delay: float) -> None:
    with pytest.raises(InvalidRequest, match="delay"):
        LocalServer(delay=delay)


# Streaming


@every_protocol
def test_each_piece_is_sent_before_the_next_is_produced(name: str, serve: Serve) -> None:
    pieces = ["one", " two", " три", "\n\n", " 🙂", " end"]
    upstream = LockStep(pieces)
    received = []
    with serve(upstream=upstream).provider(name) as provider:
        for piece in provider.stream("Hi"):
            received.append(piece)
            upstream.received.release()
    assert received == pieces


@every_protocol
def test_256_replies_stream_at_the_same_moment(name: str, serve: Serve) -> None:
    count = 256
    together = threading.Barrier(count)

    class AllAtOnce:
        def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
            yield "begun "
            together.wait(PATIENCE * 2)
            yield "ended"

    server = serve(upstream=AllAtOnce())
    with server.provider(name, retries=0) as provider, ThreadPoolExecutor(count) as threads:
        replies = list(threads.map(provider.ask, ["Hi"] * count))
    assert replies == ["begun ended"] * count
    assert server.conversations == []


@every_protocol
def test_pieces_that_are_empty_end_nothing(name: str, serve: Serve) -> None:
    assert ask(serve(upstream=Says("", "one", "", " two", "")), name) == "one two"


@every_protocol
def test_a_reply_without_any_piece_is_an_empty_reply(name: str, serve: Serve) -> None:
    assert ask(serve(upstream=Says()), name) == ""


@every_protocol
def test_a_long_piece_arrives_whole(name: str, serve: Serve) -> None:
    text = "Ж" * 100_000
    assert ask(serve(upstream=Says(text, "end")), name) == text + "end"


@every_protocol
def test_a_client_that_goes_away_ends_the_upstreams_reply(name: str, serve: Serve) -> None:
    upstream = Endless()
    server = serve(upstream=upstream)
    with server.provider(name) as provider:
        reply = provider.stream("Hi")
        next(reply)
        reply.close()
        assert upstream.ended.wait(PATIENCE), "the upstream's generator goes on"
    assert server.conversations == []


def test_a_client_that_breaks_the_connection_ends_the_upstreams_reply(serve: Serve) -> None:
    upstream = Endless()
    address = urlsplit(serve(upstream=upstream).url)
    body = json.dumps(question("acytoo")).encode()
    with socket.create_connection((address.hostname, address.port), PATIENCE) as wire:
        head = f"POST /api/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        wire.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert wire.recv(100).startswith(b"HTTP/1.1 200")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a RST
    assert upstream.ended.wait(PATIENCE), "the upstream's generator goes on"


@pytest.mark.parametrize("name", ["berlin", "ylokh", "acytoo", "h2o"])
def test_fifty_questions_use_one_connection(name: str, serve: Serve) -> None:
    server = serve()
    with requests.Session() as session, server.provider(name, session=session) as provider:
        for index in range(50):
            assert provider.ask(f"number {index}").endswith(f"number {index}")
        pools = session.get_adapter(server.url).poolmanager.pools
        assert [pools[key].num_connections for key in list(pools.keys())] == [1]


# The end


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Whatever is started in it has ended behind it."""
    gc.collect()
    threads, sockets = set(threading.enumerate()), open_sockets()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(AT_ONCE)
        assert not thread.is_alive(), f"the thread {thread.name} goes on"
    gc.collect()
    left = open_sockets() - sockets
    assert not left, f"{len(left)} sockets are still open"


def open_sockets() -> set[str]:
    """The sockets of this process; none where the system does not list them."""
    folder = "/proc/self/fd"
    links = []
    for number in os.listdir(folder) if os.path.isdir(folder) else []:
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"{folder}/{number}"))
    return {link for link in links if link.startswith("socket:")}


def closed_in(server: LocalServer) -> float:
    """Closes a server; returns how long it took, in seconds."""
    started = monotonic()
    server.close()
    return monotonic() - started


def test_close_leaves_no_thread_and_no_socket() -> None:
    with nothing_left():
        server = LocalServer().start()
        for name in NAMES:
            with server.provider(name) as provider:
                provider.ask("Hi")
                list(zip(range(3), provider.stream("Hi again"), strict=False))
        server.close()


def test_close_ends_connections_that_clients_keep_open() -> None:
    with nothing_left():
        server = LocalServer().start()
        with server.provider("ylokh", retries=0) as provider:
            provider.ask("Hi")
            assert closed_in(server) < AT_ONCE
            with pytest.raises(APIConnectionError):
                provider.ask("Hi")


@every_protocol
def test_close_ends_a_reply_under_way_at_once(name: str) -> None:
    upstream = Endless()
    with nothing_left():
        server = LocalServer(upstream=upstream).start()
        with server.provider(name, retries=0) as provider:
            reply = provider.stream("Hi", deadline=PATIENCE)
            next(reply)
            assert closed_in(server) < AT_ONCE
            assert upstream.ended.is_set(), "the upstream's generator goes on"
            with pytest.raises(StreamInterrupted) as caught:
                list(reply)
        assert caught.value.partial.startswith("again ")


def test_close_ends_a_question_to_a_silent_provider_at_once(serve: Serve) -> None:
    silent = Silent("first")
    inner = serve(upstream=silent)
    with inner.provider("ylokh") as upstream, contextlib.ExitStack() as stack:
        stack.callback(silent.release.set)
        server = LocalServer(upstream=upstream).start()
        with server.provider("h2o", retries=0) as provider:
            reply = provider.stream("Hi", deadline=PATIENCE)
            next(reply)
            assert closed_in(server) < AT_ONCE
            with pytest.raises(ChatError) as caught:
                list(reply)
        assert caught.value.partial == "first"
        silent.release.set()


def test_close_ends_the_wait_before_a_delayed_piece_at_once() -> None:
    asked = threading.Event()

    class Asked:
        def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
            asked.set()
            return iter(["never"])

    with nothing_left(), ThreadPoolExecutor(1) as thread:
        server = LocalServer(upstream=Asked(), delay=PATIENCE * 3).start()
        with server.provider("acytoo", retries=0) as provider:
            answer = thread.submit(provider.ask, "Hi")
            assert asked.wait(PATIENCE)
            assert closed_in(server) < AT_ONCE
            with pytest.raises(APIConnectionError):
                answer.result(PATIENCE)


def test_close_waits_once_for_all_replies_that_do_not_end() -> None:
    """Nothing can end code that does not come back; what is asked of ``close`` is to give up, once."""
    upstream = Silent("first")
    server = LocalServer(upstream=upstream).start()
    with nothing_left(), contextlib.ExitStack() as stack:
        for _ in range(4):
            provider = stack.enter_context(server.provider("acytoo", retries=0))
            reply = provider.stream("Hi", deadline=PATIENCE)
            stack.callback(reply.close)
            next(reply)
        assert closed_in(server) < PATIENCE, "it waited for one reply after another"
        upstream.release.set()


def test_close_in_the_middle_of_many_questions_is_clean() -> None:
    """Connections are handed back to a server that stops at the same moment."""
    asked = threading.Semaphore(0)

    def hammer(provider: Any) -> type[ChatError]:
        while True:
            try:
                provider.ask("Hi")
                asked.release()
            except ChatError as error:
                return type(error)

    for _ in range(5):
        with nothing_left(), ThreadPoolExecutor(16) as threads:
            server = LocalServer().start()
            with server.provider("ylokh", retries=0) as provider:
                ends = [threads.submit(hammer, provider) for _ in range(16)]
                for _ in range(50):
                    assert asked.acquire(timeout=PATIENCE)
                assert closed_in(server) < AT_ONCE
                for end in ends:
                    assert end.result(PATIENCE) in (APIConnectionError, StreamInterrupted)


def test_close_may_be_called_twice_and_before_the_start() -> None:
    with nothing_left():
        server = LocalServer().start()
        server.close()
        server.close()
        unused = LocalServer()
        unused.close()
        unused.wait()
        with pytest.raises(ChatError, match="closed"):
            unused.start()


def test_wait_returns_when_the_server_is_closed() -> None:
    server = LocalServer().start()
    waiting = threading.Thread(target=server.wait)
    waiting.start()
    assert waiting.is_alive()
    server.close()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_a_signal_handler_may_close_a_server_that_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler runs between any two bytecodes of the main thread; a trace function does so at a chosen one."""
    monkeypatch.setattr(serving, "SIGNAL_INTERVAL", 0.001)

    def wait_and_close_at(moment: int) -> None:
        server, seen = LocalServer(), 0

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal seen
            frame.f_trace_opcodes = True
            seen += event == "opcode"
            if seen == moment:
                sys.settrace(None)
                server.close()
            return trace

        sys.settrace(trace)
        server.wait()

    former = sys.gettrace()
    try:
        for moment in range(1, 200):
            wait_and_close_at(moment)
    finally:
        sys.settrace(former)


# Errors of the upstream

BEFORE_THE_FIRST_PIECE = [
    (RateLimitError("slow down", retry_after=2.2), 429, RateLimitError),
    (RateLimitError("slow down", status=429), 429, RateLimitError),
    (InvalidRequest("no such option"), 400, APIStatusError),
    (APITimeoutError("no byte for 120 s"), 504, APIStatusError),
    (APIConnectionError("no connection"), 502, APIStatusError),
    (ProtocolError("a web page came back", status=200), 502, APIStatusError),
    (StreamInterrupted("it was cut off"), 502, APIStatusError),
    (AllProvidersFailed("all of them"), 502, APIStatusError),
    (APIStatusError("no such model", status=404), 404, APIStatusError),
    (APIStatusError("overloaded", status=529), 529, APIStatusError),
    (AuthenticationError("a wrong key", status=401), 401, AuthenticationError),
    (RuntimeError("a fault of its own"), 500, APIStatusError),
    (ConnectionResetError(104, "a fault of its own"), 500, APIStatusError),
]


@every_protocol
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    BEFORE_THE_FIRST_PIECE,
    ids=[f"{type(error).__name__}-{status}" for error, status, _ in BEFORE_THE_FIRST_PIECE],
)
def test_an_error_before_the_first_piece_is_a_status_in_the_protocols_form(
    name: str,
    error: Exception,
    status: int,
    kind: type[ChatError],
    serve: Serve,
    by_hand: Hand,
) -> None:
    server = serve(upstream=Says(error=error))
    response = by_hand(server).ask(name)
    assert response.status_code == status
    message = refusal(name, response)
    assert (str(error) if isinstance(error, ChatError) else type(error).__name__) in message
    with pytest.raises(kind) as caught:
        ask(server, name)
    assert (caught.value.status, caught.value.partial) == (status, "")


@every_protocol
def test_a_rate_limit_says_when_to_come_back_in_whole_seconds(name: str, serve: Serve, by_hand: Hand) -> None:
    server = serve(upstream=Says(error=RateLimitError("slow down", retry_after=2.2)))
    assert by_hand(server).ask(name).headers["Retry-After"] == "3"
    with pytest.raises(RateLimitError) as caught:
        ask(server, name)
    assert caught.value.retry_after == 3


@every_protocol
def test_an_error_after_the_first_piece_reaches_the_client_with_what_came_before(name: str, serve: Serve) -> None:
    upstream = Says("one", " two", error=APIStatusError("the model fell over", status=500))
    server = serve(upstream=upstream)
    # Acytoo has no word for an error in the middle of its text: the body is cut off.
    kind = StreamInterrupted if name == "acytoo" else APIStatusError
    with pytest.raises(kind) as caught:
        ask(server, name)
    assert caught.value.partial == "one two"
    if name != "acytoo":
        assert "the model fell over" in str(caught.value)
    assert server.conversations == []


@every_protocol
@pytest.mark.parametrize("error", [RuntimeError("boom"), ConnectionResetError(104, "reset"), OSError()], ids=repr)
def test_an_upstream_that_breaks_down_in_the_middle_cuts_the_reply_off(
    name: str, error: Exception, serve: Serve
) -> None:
    server = serve(upstream=Says("one", " two", error=error))
    with pytest.raises(StreamInterrupted) as caught:
        ask(server, name)
    assert caught.value.partial == "one two"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@every_protocol
def test_a_provider_behind_it_without_a_server_is_a_502(name: str, serve: Serve, by_hand: Hand) -> None:
    with Ylokh(base_url=f"http://127.0.0.1:{free_port()}", retries=0) as upstream:
        response = by_hand(serve(upstream=upstream)).ask(name)
    assert response.status_code == 502
    assert "no connection" in refusal(name, response)


def test_a_provider_behind_it_that_waits_too_long_is_a_504(serve: Serve, by_hand: Hand) -> None:
    silent = Silent()
    with serve(upstream=silent).provider("ylokh", timeout=0.2, retries=0) as upstream:
        response = by_hand(serve(upstream=upstream)).ask("h2o")
    silent.release.set()
    assert response.status_code == 504
    assert "no byte for 0.2 s" in refusal("h2o", response)


def test_a_wrong_key_of_the_provider_behind_it_is_told_but_not_shown(serve: Serve, by_hand: Hand) -> None:
    with serve(password="secret").provider("ylokh", api_key="not-the-key", retries=0) as upstream:
        response = by_hand(serve(upstream=upstream)).ask("ylokh")
    assert response.status_code == 401
    assert "upstream" in refusal("ylokh", response)
    assert "not-the-key" not in response.text


def test_a_rate_limit_passes_through_two_servers(serve: Serve) -> None:
    busy = serve(upstream=Says(error=RateLimitError("slow down", retry_after=7)))
    with busy.provider("acytoo", retries=0) as upstream, pytest.raises(RateLimitError) as caught:
        ask(serve(upstream=upstream), "acytoo")
    assert caught.value.retry_after == 7


# What the upstream is asked, and what is told of its reply


@pytest.mark.parametrize("upstream_name", NAMES)
@every_protocol
def test_each_protocol_is_answered_by_a_provider_of_another(name: str, upstream_name: str, serve: Serve) -> None:
    with serve().provider(upstream_name) as upstream:
        assert ask(serve(upstream=upstream), name, "Who is there?").endswith("You said: Who is there?")


def test_options_that_the_provider_behind_it_does_not_have_are_left_out_with_a_line_in_the_log(
    serve: Serve, by_hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    behind = Says("fine")
    question = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.25, "a\nb": 1, "x": 2}
    with serve(upstream=behind).provider("acytoo") as upstream, caplog.at_level(logging.INFO, "berlin_chat.server"):
        response = by_hand(serve(upstream=upstream)).ask("ylokh", question)
    assert response.status_code == 200
    assert behind.asked[0][2] == {"temperature": 0.25}
    [message] = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert message.startswith("left out what Acytoo(")
    assert message.endswith("does not have: 'a\\nb', 'x'")


def test_a_group_behind_it_is_asked_only_for_what_each_of_its_providers_has(serve: Serve) -> None:
    behind = Says("fine")
    server = serve(upstream=behind)
    providers = [server.provider("berlin"), server.provider("ylokh"), server.provider("h2o")]
    with Fallback(providers) as upstream, serve(upstream=upstream).provider("ylokh") as provider:
        assert provider.ask("Hi", seed=7).provider == "ylokh"
    asked = behind.asked[0][2]
    assert (asked["seed"], asked["temperature"]) == (7, 1)
    assert "allow_fallback" not in asked


def test_what_the_provider_behind_it_refuses_is_a_400_with_its_sentence(serve: Serve, by_hand: Hand) -> None:
    class Strict(Acytoo):
        known_options = None  # type: ignore[assignment]

        def payload(self, messages: Any, model: str, options: dict[str, Any]) -> Any:
            raise InvalidRequest("the protocol has no option 'x'")

    with Strict(base_url="http://127.0.0.1:1") as upstream:
        response = by_hand(serve(upstream=upstream)).ask("ylokh")
    assert response.status_code == 400
    assert refusal("ylokh", response).endswith("the protocol has no option 'x'")


def test_any_object_with_stream_stands_behind_it_even_one_that_is_false(serve: Serve) -> None:
    class Nothing(Says):
        def __len__(self) -> int:
            return 0

        def stream(self, messages: Any, model: str | None = None, **options: Any) -> Any:
            return ["a list", " will do"]

    assert ask(serve(upstream=Nothing()), "ylokh") == "a list will do"


@every_protocol
def test_the_upstream_is_asked_what_the_client_asked(name: str, serve: Serve) -> None:
    upstream = Says("fine")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    with serve(upstream=upstream).provider(name) as provider:
        provider.ask(messages, temperature=0.25)
    [(asked, model, options)] = upstream.asked
    history = name in ("ylokh", "acytoo")
    assert asked == (messages if history else "System: Be kind.\nUser: Hi\nAssistant:")
    assert model is None, "the protocol's own model is no wish of the caller's"
    assert options["temperature"] == 0.25
    expected = {
        "berlin": {"temperature", "presence_penalty", "frequency_penalty", "max_tokens"},
        "ylokh": {"temperature", "presence_penalty", "top_p", "frequency_penalty", "allow_fallback"},
        "h2o": {"temperature", "max_tokens"},
        "acytoo": {"temperature"},
    }
    assert options.keys() == expected[name]


@pytest.mark.parametrize("name", ["berlin", "ylokh", "h2o"])
def test_a_model_that_is_asked_for_is_asked_of_the_upstream(name: str, serve: Serve) -> None:
    upstream = Says("fine")
    with serve(upstream=upstream).provider(name) as provider:
        provider.ask("Hi", model="llama3")
    assert upstream.asked[0][1] == "llama3"


def test_content_in_text_parts_is_joined(client: ByHand) -> None:
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    asked = {**question("ylokh"), "messages": [{"role": "user", "content": parts}]}
    assert text_in("ylokh", client.ask("ylokh", asked)).endswith("You said: Hi there")


@pytest.mark.parametrize("part", ["Hi", None, {}, {"type": "text"}, {"type": "text", "text": 5}])
def test_content_in_wrong_parts_is_refused_with_400(part: Any, client: ByHand) -> None:
    asked = {**question("ylokh"), "messages": [{"role": "user", "content": [part]}]}
    response = client.ask("ylokh", asked)
    assert response.status_code == 400
    assert "messages[0]['content'][0]" in refusal("ylokh", response)


@pytest.mark.parametrize("stream", [False, MISSING], ids=["false", "missing"])
def test_without_stream_the_reply_is_one_json_object(stream: Any, client: ByHand) -> None:
    response = client.ask("ylokh", altered({**question("ylokh"), "model": "m-1"}, "stream", stream))
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert (body["object"], body["model"]) == ("chat.completion", "m-1")
    [choice] = body["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].endswith("You said: Hi there")


def test_our_provider_reads_a_reply_that_is_not_streamed(echo: LocalServer) -> None:
    with echo.provider("ylokh") as provider:
        assert provider.ask("Hi", stream=False).endswith("You said: Hi")


def test_without_stream_an_error_after_the_first_piece_is_still_a_status(serve: Serve, by_hand: Hand) -> None:
    server = serve(upstream=Says("one", error=APITimeoutError("too slow")))
    response = by_hand(server).ask("ylokh", {**question("ylokh"), "stream": False})
    assert response.status_code == 504
    assert "too slow" in refusal("ylokh", response)


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunks_of(response: requests.Response) -> list[Any]:
    """The chunks of a stream of Ylokh, without ``[DONE]``."""
    datas = re.findall(r"data: (.*)\n\n", response.text)
    assert datas.pop() == "[DONE]"
    return [json.loads(data) for data in datas]


def test_a_stream_begins_with_the_role_and_ends_with_the_finish_reason(serve: Serve, by_hand: Hand) -> None:
    upstream = Says("one", " two", end=Reply("one two", finish_reason="length", usage=USAGE))
    chunks = chunks_of(by_hand(serve(upstream=upstream)).ask("ylokh"))
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "one"},
        {"content": " two"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
    assert not any("usage" in chunk for chunk in chunks)


def test_the_upstreams_usage_is_told_to_who_asks_for_it(serve: Serve, by_hand: Hand) -> None:
    upstream = Says("one", end=Reply("one", usage=USAGE))
    server = serve(upstream=upstream)
    asked = {**question("ylokh"), "stream_options": {"include_usage": True}}
    *others, last = chunks_of(by_hand(server).ask("ylokh", asked))
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert not any(chunk.get("usage") for chunk in others)
    assert upstream.asked[0][2]["stream_options"] == {"include_usage": True}, "the upstream counts only if asked"
    with server.provider("ylokh") as provider:
        assert provider.ask("Hi", stream_options={"include_usage": True}).usage == USAGE


@pytest.mark.parametrize("stream_options", [None, {}, {"include_usage": False}])
def test_who_does_not_ask_for_usage_is_not_told(stream_options: Any, serve: Serve, by_hand: Hand) -> None:
    upstream = Says("one", end=Reply("one", usage=USAGE))
    asked = {**question("ylokh"), "stream_options": stream_options}
    chunks = chunks_of(by_hand(serve(upstream=upstream)).ask("ylokh", asked))
    assert not any(chunk.get("usage") for chunk in chunks)


def test_a_reply_that_is_not_streamed_has_the_upstreams_usage(serve: Serve, by_hand: Hand) -> None:
    upstream = Says("one", end=Reply("one", usage=USAGE, finish_reason="length"))
    asked = {**question("ylokh"), "stream": False, "stream_options": {"include_usage": True}}
    body = by_hand(serve(upstream=upstream)).ask("ylokh", asked).json()
    assert (body["usage"], body["choices"][0]["finish_reason"]) == (USAGE, "length")
    assert "stream_options" not in upstream.asked[0][2]


def test_the_model_list_begins_with_the_upstreams_model(serve: Serve, by_hand: Hand) -> None:
    def models(server: LocalServer) -> list[str]:
        body = by_hand(server).send("GET", "/v1/models").json()
        assert body["object"] == "list"
        assert all(model["object"] == "model" and isinstance(model["created"], int) for model in body["data"])
        return [model["id"] for model in body["data"]]

    assert models(serve())[0] == "echo"
    with Ylokh(base_url="http://127.0.0.1:9", model="llama3") as upstream:
        names = models(serve(upstream=upstream))
    assert names[0] == "llama3"
    assert len(set(names)) == len(names)


# Conversations


def test_a_conversation_exists_while_its_reply_is_read_and_no_longer(serve: Serve) -> None:
    upstream = LockStep(["one", "two"])
    server = serve(upstream=upstream)
    assert server.conversations == []
    with server.provider("h2o") as provider:
        reply = provider.stream("Hi")
        next(reply)
        assert len(server.conversations) == 1
        upstream.received.release()
        assert list(reply) == ["two"]
        assert server.conversations == []


def test_the_conversations_of_all_sessions_are_listed(serve: Serve, by_hand: Hand) -> None:
    server = serve()
    made = []
    for _ in range(3):
        client = by_hand(server)
        client.accept_settings()
        made += [client.create(), client.create()]
    assert sorted(server.conversations) == sorted(made)
    assert len(set(made)) == 6


# Starting, and living together


def test_before_the_start_there_is_no_url_and_no_provider() -> None:
    server = LocalServer()
    with pytest.raises(ChatError, match="start"):
        _ = server.url
    with pytest.raises(ChatError, match="start"):
        server.provider("ylokh")
    assert "not started" in repr(server)


def test_a_server_cannot_be_started_twice(serve: Serve) -> None:
    server = serve()
    url = server.url
    with pytest.raises(ChatError, match="make a new one"):
        server.start()
    assert server.url == url
    assert ask(server, "ylokh").endswith("Hi")


def test_a_port_in_use_is_a_clear_error(serve: Serve) -> None:
    port = urlsplit(serve().url).port
    with nothing_left(), pytest.raises(OSError, match=rf"{port}.*in use"):
        LocalServer(port=port).start()


def test_a_port_is_free_again_behind_the_server() -> None:
    with LocalServer() as first:
        port = urlsplit(first.url).port or 0
        ask(first, "acytoo")
    with LocalServer(port=port) as second:
        assert second.url == first.url
        assert ask(second, "acytoo").endswith("Hi")


def test_two_servers_live_side_by_side(serve: Serve) -> None:
    first, second = serve(upstream=Says("first")), serve(upstream=Says("second"), password="secret")
    assert first.url != second.url
    for name in NAMES:
        assert (ask(first, name), ask(second, name)) == ("first", "second")


def test_the_representation_shows_the_address_and_no_password(serve: Serve) -> None:
    server = serve(password="hunter2")
    assert server.url in repr(server)
    assert "hunter2" not in repr(server)
    server.close()
    assert "closed" in repr(server)


def test_an_unknown_provider_is_an_error_that_names_the_known(serve: Serve) -> None:
    with pytest.raises(InvalidRequest, match="berlin, ylokh, h2o, acytoo"):
        serve().provider("gpt5")


@every_protocol
def test_the_servers_own_provider_uses_no_proxy_of_the_environment(
    name: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, dead)
        monkeypatch.setenv(variable.lower(), dead)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    server = serve()
    with Ylokh(base_url=server.url, retries=0) as other, pytest.raises(APIConnectionError, match="proxy"):
        other.ask("Hi")  # which shows that the variables count
    assert ask(server, name).endswith("You said: Hi")


def test_an_upstream_that_is_asked_at_once_by_all_protocols_keeps_them_apart(serve: Serve) -> None:
    server = serve()
    with ThreadPoolExecutor(32) as threads:
        asked = [(NAMES[index % 4], f"number {index}") for index in range(64)]
        replies = list(threads.map(lambda item: ask(server, *item), asked))
    assert [reply.rpartition("You said: ")[2] for reply in replies] == [text for _, text in asked]
