"""One battery for every provider: the four, and one of another package that is written with documented names only."""

from __future__ import annotations

import ast
import base64
import copy
import gc
import html
import inspect
import json
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

import berlin_chat
from berlin_chat import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Cancelled,
    CancelToken,
    ChatError,
    Fallback,
    InvalidRequest,
    ProtocolError,
    Provider,
    ProviderNotWorking,
    RateLimitError,
    Reply,
    StreamInterrupted,
    ask_many,
    race,
)
from berlin_chat.decoding import text
from berlin_chat.errors import BODY_KEPT, SHOWN
from berlin_chat.http.transport import ERROR_READ
from berlin_chat.providers import PROVIDERS
from test_cancelling import BLOCKING, PROMISE, dripping, silent
from test_errors import closed_port, failing, responding
from test_resources import needs_proc, sockets_to
from test_retries import close, first, status
from wire import (
    ACYTOO,
    BERLIN,
    FRAMINGS,
    PATIENCE,
    SPEECHES,
    Chunked,
    ChunkedGzip,
    Connection,
    ContentLength,
    Framing,
    Recorded,
    Script,
    Speech,
    Stopwatch,
    Wire,
    head,
    speak,
    wait_for,
)

Make = Callable[..., Provider]
#: How long a question blocks before a test ends it, in seconds.
DUE = 0.1
#: The ways to end one from outside.
ENDS = ["deadline", "cancel", "close"]


# Written as another package would write it: without types, and with nothing but what the README shows.
class Plain(Provider):
    """A server that takes a JSON prompt and answers in plain text."""

    name = "plain"
    default_model = "any"

    def payload(self, messages, model, options):
        return {"prompt": messages[-1]["content"], **options}

    def pieces(self, exchange, body, model, metadata):
        yield from text(exchange.chunks(exchange.post("/say", body)))


class PluginSpeech(Speech):
    """How a server of ``Plain`` speaks, and who asks it: ``get_provider`` does not know the name."""

    provider = Plain

    def parts(self, pieces: list[str]) -> list[bytes]:
        return [piece.encode() for piece in pieces]


PLAIN = PluginSpeech("plain", "text/plain", ("POST", "/say"))
#: All of them. This line is all that a provider needs to join.
EVERY = [*SPEECHES, PLAIN]


def class_of(speech: Speech) -> type[Provider]:
    return speech.provider if isinstance(speech, PluginSpeech) else PROVIDERS[speech.name]


@pytest.fixture
def make(speech: Speech, wire: Wire) -> Iterator[Make]:
    """Makes a provider, and lets ``wire`` answer its questions with a script."""
    made: list[Provider] = []

    def provider(script: Script, cls: type[Provider] | None = None, **config: Any) -> Provider:
        wire.routes[:] = [*speech.before, (*speech.route, script)]
        made.append((cls or class_of(speech))(**{"base_url": wire.url, "retries": 0, **speech.config, **config}))
        return made[-1]

    yield provider
    for one in made:
        one.close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("berlin_chat.http.retries.FIRST_WAIT", 0.01)


# The plug-in itself


def test_every_protocol_of_the_table_takes_part() -> None:
    assert {speech.name for speech in EVERY} == {*PROVIDERS, "plain"}


def test_the_plugin_has_at_most_15_lines() -> None:
    imports = 2  # Provider, and text
    between = 2  # the blank lines that PEP 8 wants before a class
    lines = len(inspect.getsource(Plain).splitlines()) + imports + between
    assert lines <= 15, f"a provider of another package takes {lines} lines"


def test_the_plugin_uses_documented_names_only() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    tree = ast.parse(inspect.getsource(Plain))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    used |= {argument.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) for argument in node.args}
    used |= {target.id for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets}
    assert {"payload", "pieces", "post", "chunks", "name", "default_model"} <= used
    assert [name for name in used if name.startswith("_")] == []
    assert [name for name in used if not re.search(rf"\b{name}\b", readme)] == [], "the README does not say these"
    assert {"Exchange", "Metadata", "Provider"} <= {*berlin_chat.__all__}, "the types of its arguments are not exported"
    undocumented = [f for f in (Provider.payload, Provider.pieces, text) if not f.__doc__]
    undocumented += [f for f in (berlin_chat.Exchange.post, berlin_chat.Exchange.chunks) if not f.__doc__]
    assert undocumented == []


# What a server does wrong, and what it was told in confidence


def garbled(speech: Speech, said: bytes) -> Script:
    """A 200 with a body that breaks the protocol and holds what was said; where any text is right, a web page."""
    kind, body = {
        "berlin": (speech.kind, b'{"content": "a"}\n{"content": ' + said + b"\n"),
        "ylokh": (speech.kind, b"data: {broken " + said + b"\n\n"),
        "h2o": (speech.kind, b'data:{"token": ' + said + b"\n\n"),
        "acytoo": ("application/json", json.dumps({"error": said.decode()}).encode()),
    }.get(speech.name, ("text/html", b"<html>" + said))
    return responding(200, body, {"Content-Type": kind})


def cut_off(speech: Speech, said: bytes) -> Script:
    """A body that ends properly, but in the middle of a line or of a document, behind what was said."""
    number, kind, start = {
        "berlin": (200, speech.kind, b'{"content": "a"}\n{"content": "'),
        "ylokh": (200, "application/json", b'{"choices": "'),
        "acytoo": (200, "application/json", b'{"error": "'),
    }.get(speech.name, (500, "application/json", b'{"error": "'))
    return responding(number, start + said, {"Content-Type": kind})


def raw(answer: bytes) -> Script:
    """Whatever comes instead of an answer in proper HTTP, and then the end of the connection."""

    def script(request: Recorded, connection: Connection) -> None:
        connection.send(answer)
        connection.close()

    return script


#: Four characters of one of them are enough to know it: no two of them, and no text of the library, share so many.
PASSWORD, TOKEN, KEY, BEARER, HEADER_KEY, COOKIE, PROXY_PASSWORD = (
    "Pw4j8Xk2Lq9Zr",
    "Tg8mVb3Hs6Nd1",
    "Ky9dRf5Jw2Mz7",
    "Bt6rQc1Gx8Fp3",
    "Hx3zUn7Dv4Kb9",
    "Ck5nEj2Ws8Ym6",
    "Px2vIo6At9Gh4",
)
#: What each is told in confidence beside a header and a cookie; who has no argument for that gets another header.
CONFIDENCES: dict[str, dict[str, str]] = {
    "berlin": {"account": "me", "password": PASSWORD},
    "ylokh": {"api_key": KEY},
    "acytoo": {"key": KEY, "password": PASSWORD},
}


def shown(error: BaseException) -> Iterator[tuple[str, str]]:
    """All that a person, a log or a pickle can show of an error, but for the text of the reply itself, and where."""
    yield "the traceback", "".join(traceback.format_exception(error))
    found = [error]
    for one in found:
        name = "the error" if one is error else f"its cause {type(one).__name__}"
        yield name, f"{one} {one!r} {one.args!r}"
        for attribute in sorted(vars(one).keys() - {"partial"}) if isinstance(one, ChatError) else ():
            yield f"{name}'s {attribute}", f"{vars(one)[attribute]} {vars(one)[attribute]!r}"
        found += [cause for cause in (one.__cause__, one.__context__) if cause is not None and cause not in found]


def told(secrets: list[str], error: BaseException) -> list[str]:
    """What an error tells of secrets, and where: four characters in a row are too much."""
    return [
        f"{where} tells {found[0]!r}: …{seen[max(found.start() - 60, 0) : found.end() + 20]}…"
        for where, seen in shown(error)
        for secret in secrets
        if (found := re.search("|".join(re.escape(secret[at : at + 4]) for at in range(len(secret) - 3)), seen))
    ]


class Confidant:
    """A provider whose server knows its secrets: login, cookie, key, header. Then it answers as a test wants."""

    def __init__(self, speech: Speech, wire: Wire, make: Make) -> None:
        self.answer: Script = self._set_cookie
        self._speech = speech
        own = CONFIDENCES.get(speech.name, {})
        headers = {"X-Api-Key": HEADER_KEY, **({} if own else {"Authorization": f"Bearer {BEARER}"})}
        self.provider = make(lambda *args: self.answer(*args), headers=headers, **own)
        wire.on("POST", "/api/login", responding(200, {"data": {"token": TOKEN}}))
        assert self.provider.ask("Hi") == "a"
        assert self.provider.ask("Hi") == "a"
        lines = {line for request in wire.requests for line in (*map(": ".join, request.header_lines), request.body)}
        lines = {line if isinstance(line, str) else line.decode() for line in lines}
        secrets = [HEADER_KEY, COOKIE, *(own.values() or [BEARER]), *([TOKEN] if speech.name == "berlin" else [])]
        self.secrets = [secret for secret in secrets if secret != own.get("account")]
        #: The header lines and bodies that hold a secret, as they were sent.
        self.sent = sorted(line for line in lines if any(secret in line for secret in self.secrets))
        assert [one for one in self.secrets if one not in "\n".join(self.sent)] == [], "the server was not told these"

    def _set_cookie(self, request: Recorded, connection: Connection) -> None:
        headers = {"Content-Type": self._speech.kind, "Set-Cookie": f"sid={COOKIE}; Path=/"}
        connection.respond(200, b"".join(self._speech.parts(["a"])), headers)

    def told(self, answer: Script) -> list[str]:
        """What the error tells that the next question ends with."""
        self.answer = answer
        return told(self.secrets, failing(self.provider))


@pytest.fixture
def confidant(speech: Speech, wire: Wire, make: Make) -> Confidant:
    return Confidant(speech, wire, make)


def in_child(work: Callable[[], bool]) -> int:
    """The exit status of a child process that does the work: 0 if it says that it went well."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    went_well = False
    try:
        signal.alarm(int(PATIENCE))
        went_well = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0 if went_well else 1)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
#: What Python 3.12 says where a process with threads forks, which is the point here.
forks = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


class Ended:
    """What is asked within it, with ``options``, ends from outside: at once, and with the right ``error``.

    Args:
        how: by ``"deadline"``, by ``"cancel"`` or by ``"close"``.
        ready: what the end waits for, where another thread brings it.
    """

    def __init__(self, how: str, provider: Provider, ready: Callable[[], object] = lambda: True) -> None:
        token = CancelToken()
        self.options: dict[str, Any] = {"deadline": DUE} if how == "deadline" else {"cancel": token}
        self.error: ChatError
        self._kind = APITimeoutError if how == "deadline" else Cancelled
        self._end = token.cancel if how == "cancel" else provider.close
        self._ready = ready
        self._thread = None if how == "deadline" else threading.Thread(target=self._end_later)
        self._due = DUE
        self._watch = Stopwatch()

    def _end_later(self) -> None:
        wait_for(self._ready)
        time.sleep(DUE)
        self._due, self._watch = 0.0, Stopwatch()
        self._end()

    def __enter__(self) -> Ended:
        if self._thread is None:
            self._watch = Stopwatch()
        else:
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        late = self._watch.undisturbed - self._due
        if self._thread is not None:
            self._thread.join(PATIENCE)
        if error is not None and not isinstance(error, ChatError):
            return False
        assert isinstance(error, self._kind), f"{error!r} came instead of {self._kind.__name__}"
        assert self._watch.seconds > self._due - 0.02, "the end came before it was due"
        assert late < PROMISE, f"the end came {late:.2f} s after it was due"
        self.error = error
        return True


def first_piece_then_silence(speech: Speech, noticed: threading.Event | None = None) -> Script:
    def script(request: Recorded, connection: Connection) -> None:
        Chunked(connection, speech.kind, b"").part(speech.parts(["one", " two"])[0])
        connection.wait_until_client_closes()
        if noticed is not None:
            noticed.set()

    return script


def prompts_back(speech: Speech) -> Script:
    """Says what was asked: ``question-…``."""

    def script(request: Recorded, connection: Connection) -> None:
        found = re.search(rb"question-[\d-]+", request.body)
        assert found, f"there is no question in {request.body!r}"
        speak(speech, [found[0].decode()])(request, connection)

    return script


@pytest.mark.parametrize("speech", EVERY, ids=lambda speech: speech.name)
class TestEveryProvider:
    """What callers may rely on, whichever provider they have."""

    # A whole reply

    @pytest.mark.parametrize("framing", FRAMINGS, ids=lambda framing: framing.name)
    def test_each_piece_reaches_the_loop_before_the_server_sends_the_next(
        self, framing: type[Framing], speech: Speech, make: Make
    ) -> None:
        pieces = ["Why", " is", " the sky", " ы🙂", '{"braces": "}"}']
        received = [threading.Event() for _ in pieces]

        def lock_step(request: Recorded, connection: Connection) -> None:
            parts = speech.parts(pieces)
            body = framing(connection, speech.kind, b"".join(parts))
            for part, arrived in zip(parts, received, strict=False):
                body.part(part)
                assert arrived.wait(PATIENCE), f"the loop did not get the piece of {part!r}"
            for part in parts[len(pieces) :]:
                body.part(part)
            body.end()

        got = []
        for piece in make(lock_step).stream("Hi"):
            got.append(piece)
            received[len(got) - 1].set()
        assert got == pieces

    def test_the_generator_returns_the_reply_that_ask_returns(self, speech: Speech, make: Make) -> None:
        provider = make(speak(speech, ["a", "b"]))
        stream, pieces = provider.stream("Hi"), []
        with pytest.raises(StopIteration) as end:
            while True:
                pieces.append(next(stream))
        assert "".join(pieces) == "ab"
        assert "" not in pieces
        for reply in (end.value.value, provider.ask("Hi")):
            assert type(reply) is Reply
            assert (reply, reply.provider, reply.attempts) == ("ab", speech.name, 1)
            assert reply.model
            assert 0 < reply.seconds < PATIENCE

    def test_one_connection_serves_one_question_after_another(self, speech: Speech, make: Make, wire: Wire) -> None:
        provider = make(prompts_back(speech))
        for number in range(5):
            assert provider.ask(f"question-{number}") == f"question-{number}"
        assert len(wire.connections) == 1

    def test_an_informational_answer_is_not_taken_for_the_reply(self, speech: Speech, make: Make) -> None:
        def script(request: Recorded, connection: Connection) -> None:
            connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
            prompts_back(speech)(request, connection)

        provider = make(script)
        assert [provider.ask(f"question-{n}") for n in range(3)] == ["question-0", "question-1", "question-2"]

    def test_threads_that_share_a_fresh_provider_get_each_their_own_replies(self, speech: Speech, make: Make) -> None:
        provider = make(prompts_back(speech), timeout=PATIENCE)
        start = threading.Barrier(16)

        def ask(thread: int) -> list[str]:
            start.wait(PATIENCE)
            return [provider.ask(f"question-{thread}-{n}") for n in range(16)]

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # shows who checks first and acts later
        try:
            with ThreadPoolExecutor(16) as pool:
                replies = list(pool.map(ask, range(16)))
        finally:
            sys.setswitchinterval(before)
        assert replies == [[f"question-{thread}-{n}" for n in range(16)] for thread in range(16)]

    def test_it_takes_part_in_groups_batches_and_old_calls(self, speech: Speech, make: Make) -> None:
        provider = make(prompts_back(speech))
        dead = class_of(speech)(base_url=f"http://127.0.0.1:{closed_port()}", retries=0, **speech.config)
        assert Fallback([dead, provider]).ask("question-1") == "question-1"
        assert "".join(race([dead, provider], "question-2")) == "question-2"
        answers = list(ask_many(provider, ["question-3", "question-4"]))
        assert [answer.reply for answer in answers] == ["question-3", "question-4"], answers
        assert "".join(provider.create_completion("any", "question-5")) == "question-5"

    # At the call

    def test_nothing_is_sent_before_the_first_next(self, speech: Speech, make: Make, wire: Wire) -> None:
        stream = make(speak(speech, ["a"])).stream("Hi")
        assert wire.connections == []
        assert list(stream) == ["a"]
        assert wire.connections

    @pytest.mark.parametrize(
        ("messages", "options"),
        [
            pytest.param("", {}, id="empty"),
            pytest.param([], {}, id="no messages"),
            pytest.param(b"Hi", {}, id="bytes"),
            pytest.param([{"role": "user"}], {}, id="no content"),
            pytest.param("half a pair: \ud800", {}, id="surrogate"),
            pytest.param("Hi", {"deadline": 0}, id="deadline of 0"),
            pytest.param("Hi", {"deadline": "1"}, id="deadline as text"),
            pytest.param("Hi", {"cancel": 1}, id="no token"),
            pytest.param("Hi", {"temperature": {1, 2}}, id="no JSON"),
            pytest.param("Hi", {"temperature": float("nan")}, id="not a number"),
        ],
    )
    def test_arguments_are_checked_at_the_call(
        self, messages: Any, options: dict[str, Any], speech: Speech, make: Make, wire: Wire
    ) -> None:
        provider = make(speak(speech, ["a"]))
        with pytest.raises(InvalidRequest) as caught:
            provider.stream(messages, **options)
        assert caught.value.provider == speech.name
        assert wire.connections == []

    @pytest.mark.parametrize(
        "config",
        [
            {"base_url": "127.0.0.1:1"},
            {"timeout": 0},
            {"retries": -1},
            {"pool_size": 0},
            {"proxy": "127.0.0.1:3128"},
            {"headers": {"X": "a\nb"}},
            {"verify": "/no/such/file"},
        ],
        ids=lambda config: next(iter(config)),
    )
    def test_a_wrong_configuration_is_named_at_the_constructor(self, config: dict[str, Any], speech: Speech) -> None:
        with pytest.raises(InvalidRequest, match=next(iter(config))):
            class_of(speech)(**{"base_url": "http://127.0.0.1:1", **speech.config, **config})

    def test_without_an_address_the_call_says_the_ways_out(self, speech: Speech) -> None:
        provider = class_of(speech)(**speech.config)
        with pytest.raises(ProviderNotWorking) as caught:
            provider.stream("Hi")
        for way in ("base_url=", f"BERLIN_CHAT_{speech.name.upper()}_URL", "LocalServer"):
            assert way in str(caught.value)

    def test_the_address_may_come_from_the_environment(
        self, speech: Speech, make: Make, wire: Wire, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(f"BERLIN_CHAT_{speech.name.upper()}_URL", wire.url)
        assert make(speak(speech, ["a"]), base_url=None).ask("Hi") == "a"

    def test_messages_are_never_modified(self, speech: Speech, make: Make) -> None:
        messages = [
            {"role": "system", "content": "Be brief.", "name": "me"},
            {"role": "user", "content": "Hi", "extra": {"list": [1, {"a": "b"}]}},
        ]
        before = copy.deepcopy(messages)
        options = {"temperature": 0.5}

        class Changing(class_of(speech)):  # type: ignore[misc]
            def payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
                found = super().payload(messages, model, options)
                messages[0]["content"] = "changed"
                messages.clear()
                return copy.deepcopy(found) or {"prompt": ""}

        for cls in (class_of(speech), Changing):
            assert make(speak(speech, ["a"]), cls).ask(messages, **options) == "a"
            assert messages == before
        assert options == {"temperature": 0.5}

    # A reply that is none

    @pytest.mark.parametrize("within", ["between two pieces", "inside a piece"])
    @pytest.mark.parametrize("framing", [Chunked, ContentLength, ChunkedGzip], ids=lambda framing: framing.name)
    def test_a_cut_stream_is_interrupted_and_partial_is_exactly_what_came(
        self, framing: type[Framing], within: str, speech: Speech, make: Make
    ) -> None:
        def cut(request: Recorded, connection: Connection) -> None:
            parts = speech.parts(["one", " two", "ы"])
            body = framing(connection, speech.kind, b"".join(parts))
            for part in parts[:2]:
                body.part(part)
            if within == "inside a piece":
                body.part(parts[2][: len(parts[2]) // 2])  # where there is only text, half of a character
            connection.close()

        pieces = []
        with pytest.raises(StreamInterrupted) as caught:
            for piece in make(cut).stream("Hi"):
                pieces.append(piece)
        assert caught.value.partial == "".join(pieces) == "one two"
        assert caught.value.provider == speech.name

    def test_a_reset_in_mid_stream_is_interrupted(self, speech: Speech, make: Make) -> None:
        got_first = threading.Event()

        def reset(request: Recorded, connection: Connection) -> None:
            Chunked(connection, speech.kind, b"").part(speech.parts(["one", " two"])[0])
            assert got_first.wait(PATIENCE)
            connection.reset()

        with pytest.raises(StreamInterrupted) as caught:
            for _ in make(reset).stream("Hi"):
                got_first.set()
        assert caught.value.partial == "one"

    @pytest.mark.parametrize("kind", ["text/html", "TEXT/HTML", "Text/Html; Charset=UTF-8", "text/html;charset=utf-8"])
    @pytest.mark.parametrize("framing", [Chunked, ContentLength], ids=lambda framing: framing.name)
    def test_a_web_page_is_a_protocol_error_that_names_base_url(
        self, framing: type[Framing], kind: str, speech: Speech, make: Make
    ) -> None:
        page = b"<!DOCTYPE html><html><body>Welcome to nginx!</body></html>"

        def script(request: Recorded, connection: Connection) -> None:
            body = framing(connection, kind, page)
            body.part(page)
            body.end()

        error = failing(make(script))
        assert type(error) is ProtocolError
        assert "base_url" in str(error)
        assert (error.status, error.partial, error.provider) == (200, "", speech.name)
        assert error.body is not None
        assert "nginx" in error.body

    def test_a_server_that_has_nothing_but_web_pages_is_a_protocol_error(self, make: Make, wire: Wire) -> None:
        provider = make(silent)
        for method in ("POST", "DELETE"):
            wire.on(method, ".*", responding(200, b"<html>Welcome!</html>", {"Content-Type": "text/html"}))
        error = failing(provider)
        assert isinstance(error, ProtocolError), repr(error)
        assert "base_url" in str(error)

    @pytest.mark.parametrize(
        ("number", "kind"),
        [
            (400, APIStatusError),
            (401, AuthenticationError),
            (403, AuthenticationError),
            (404, APIStatusError),
            (429, RateLimitError),
            (500, APIStatusError),
            (503, APIStatusError),
            (302, ProtocolError),
        ],
    )
    def test_a_status_becomes_its_error(
        self, number: int, kind: type[ChatError], speech: Speech, make: Make, wire: Wire
    ) -> None:
        body = {"error": {"message": "the reason"}}
        headers = {"Retry-After": "7", "Location": f"{wire.url}/elsewhere"}
        error = failing(make(responding(number, body, headers)))
        assert type(error) is kind
        assert (error.status, error.provider, error.partial) == (number, speech.name, "")
        assert "the reason" in str(error)
        assert error.url is not None
        assert error.url.startswith(wire.url)
        assert error.url in str(error)
        if number == 429:
            assert error.retry_after == 7
        assert [request.path for request in wire.requests if request.path == "/elsewhere"] == []

    def test_a_body_that_is_not_in_its_content_encoding_is_a_protocol_error(self, speech: Speech, make: Make) -> None:
        headers = {"Content-Type": speech.kind, "Content-Encoding": "gzip"}
        assert type(failing(make(responding(200, b"no gzip at all", headers)))) is ProtocolError

    def test_a_server_that_does_not_speak_http_is_a_protocol_error(self, make: Make) -> None:
        assert type(failing(make(raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")))) is ProtocolError

    def test_a_refused_connection_says_what_to_do(self, make: Make) -> None:
        url = f"http://127.0.0.1:{closed_port()}"
        error = failing(make(silent, base_url=url))
        assert type(error) is APIConnectionError
        assert url in str(error)
        assert "base_url" in str(error)

    def test_an_error_survives_a_pickle(self, make: Make) -> None:
        error = failing(make(responding(429, {"error": "slow"}, {"Retry-After": "3"})))
        twin = pickle.loads(pickle.dumps(error))
        assert type(twin) is RateLimitError
        assert (str(twin), twin.retry_after, twin.body) == (str(error), 3, error.body)

    # An end from outside

    @pytest.mark.parametrize("script", BLOCKING, ids=lambda script: script.__name__)
    @pytest.mark.parametrize("end", ENDS)
    def test_an_end_from_outside_ends_a_blocked_read(
        self, end: str, script: Script, speech: Speech, make: Make, wire: Wire
    ) -> None:
        provider = make(script)
        with Ended(end, provider, lambda: wire.asked(*speech.route)) as ended:
            for _ in provider.stream("Hi", **ended.options):
                pass  # where any text is right, each byte of it is a piece
        assert ended.error.provider == speech.name

    @pytest.mark.parametrize("end", ENDS)
    def test_an_end_in_mid_stream_keeps_the_text_and_tells_the_server(
        self, end: str, speech: Speech, make: Make
    ) -> None:
        noticed, got_first = threading.Event(), threading.Event()
        provider = make(first_piece_then_silence(speech, noticed))
        with Ended(end, provider, got_first.is_set) as ended:
            for piece in provider.stream("Hi", **ended.options):
                assert piece == "one"
                got_first.set()
        assert ended.error.partial == "one"
        assert noticed.wait(PATIENCE), "the connection was not closed"

    @pytest.mark.parametrize("script", [silent, dripping(b"H")], ids=["silent", "dripping"])
    @pytest.mark.parametrize("end", ENDS)
    def test_an_end_comes_at_once_whichever_request_blocks(
        self, end: str, script: Script, make: Make, wire: Wire
    ) -> None:
        provider = make(silent)
        wire.on("POST", ".*", script)  # be it a login
        with Ended(end, provider, lambda: wire.requests) as ended:
            provider.ask("Hi", **ended.options)

    @pytest.mark.parametrize("end", ENDS)
    def test_an_end_comes_at_once_where_the_server_does_not_read_the_question(
        self, end: str, speech: Speech, make: Make
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as nobody:  # the kernel takes what fits into its buffers
            config = {"token": "t"} if speech.name == "berlin" else {}
            provider = make(silent, base_url=f"http://127.0.0.1:{nobody.getsockname()[1]}", **config)
            with Ended(end, provider) as ended:
                provider.ask("x" * 8_000_000, **ended.options)

    @pytest.mark.parametrize("end", ENDS)
    def test_an_end_comes_at_once_where_little_is_decompressed_to_much(
        self, end: str, speech: Speech, make: Make, wire: Wire
    ) -> None:
        compress = zlib.compressobj(wbits=31)
        start = compress.compress(b"\n") + compress.flush(zlib.Z_FULL_FLUSH)
        much = compress.compress(b"\n" * 16_000_000) + compress.flush(zlib.Z_FULL_FLUSH)  # can stand there again

        def bomb(request: Recorded, connection: Connection) -> None:
            connection.send(head(200, {"Content-Type": speech.kind, "Content-Encoding": "gzip"}) + start)
            while True:
                connection.send(much)

        provider = make(bomb)
        with Ended(end, provider, lambda: wire.asked(*speech.route)) as ended:
            for _ in provider.stream("Hi", **ended.options):
                pass

    @pytest.mark.parametrize("end", ENDS)
    def test_an_end_cuts_the_wait_for_the_next_attempt_short(
        self, end: str, speech: Speech, make: Make, wire: Wire
    ) -> None:
        provider = make(status(503, {"Retry-After": "30"}), retries=3)
        with Ended(end, provider, lambda: wire.asked(*speech.route)) as ended:
            provider.ask("Hi", **ended.options)
        assert len(wire.asked(*speech.route)) == 1

    def test_a_closed_provider_refuses_the_next_question(self, speech: Speech, make: Make, wire: Wire) -> None:
        provider = make(speak(speech, ["a"]))
        provider.close()
        provider.close()
        with pytest.raises(Cancelled, match="closed"):
            provider.stream("Hi")
        assert wire.connections == []

    def test_a_cancelled_token_ends_a_question_before_anything_is_sent(
        self, speech: Speech, make: Make, wire: Wire
    ) -> None:
        token = CancelToken()
        token.cancel()
        with pytest.raises(Cancelled):
            next(make(speak(speech, ["a"])).stream("Hi", cancel=token))
        assert wire.requests == []

    def test_a_deadline_and_a_token_that_are_not_needed_change_nothing(self, speech: Speech, make: Make) -> None:
        provider, token = make(speak(speech, ["a", "b"])), CancelToken()
        for _ in range(3):
            assert provider.ask("Hi", deadline=PATIENCE, cancel=token) == "ab"
        token.cancel()
        assert provider.ask("Hi") == "ab"

    def test_a_server_that_falls_silent_is_a_timeout_and_partial_holds_the_text(
        self, speech: Speech, make: Make
    ) -> None:
        error = failing(make(first_piece_then_silence(speech), timeout=(5, 0.1)))
        assert type(error) is APITimeoutError
        assert isinstance(error, TimeoutError)
        assert error.partial == "one"

    # Secrets

    @pytest.mark.parametrize("number", [302, 400, 401, 429, 500])
    def test_no_error_tells_a_secret_that_the_server_repeats(self, number: int, confidant: Confidant) -> None:
        for line in confidant.sent:
            for body in (line.encode(), {"error": {"message": line}}, {"detail": [line]}):
                assert confidant.told(responding(number, body)) == []

    def test_no_error_tells_a_secret_whichever_request_it_is_the_answer_to(
        self, speech: Speech, make: Make, wire: Wire
    ) -> None:
        provider = make(silent, headers={"X-Api-Key": HEADER_KEY}, **CONFIDENCES.get(speech.name, {}))
        for number in (400, 500):
            for before in ("", "x" * SHOWN):  # then the error's text does not come as far, but its body does

                def repeat(r: Recorded, c: Connection, number: int = number, before: str = before) -> None:
                    c.respond(number, {"msg": f"{before} {HEADER_KEY} {r.body.decode()}"})

                wire.on("POST", ".*", repeat)
                assert told([HEADER_KEY, KEY, PASSWORD], failing(provider)) == []

    def test_no_error_tells_a_secret_that_the_reason_of_a_wait_repeats(
        self, speech: Speech, make: Make, wire: Wire
    ) -> None:
        provider = make(silent, headers={"X-Api-Key": HEADER_KEY}, retries=1)
        wire.on("POST", ".*", responding(503, {"error": f"not now, {HEADER_KEY}"}, {"Retry-After": "30"}))
        error = failing(provider, deadline=DUE)
        assert type(error) is APITimeoutError
        assert told([HEADER_KEY], error) == []
        assert isinstance(error.__cause__, APIStatusError), "the reason for the wait is not told"

    def test_no_error_tells_a_secret_in_what_breaks_the_protocol(self, speech: Speech, confidant: Confidant) -> None:
        for said in (" ".join(confidant.secrets), json.dumps(confidant.secrets)):
            assert confidant.told(garbled(speech, said.encode())) == []

    def test_no_error_tells_a_secret_in_a_web_page(self, confidant: Confidant) -> None:
        for line in confidant.sent:
            page = f"<html>{line}</html>".encode()
            assert confidant.told(responding(200, page, {"Content-Type": "text/html"})) == []

    def test_no_error_tells_the_start_of_a_secret_where_a_line_is_cut_off(
        self, speech: Speech, confidant: Confidant
    ) -> None:
        def hang_up(said: bytes) -> Script:
            def script(request: Recorded, connection: Connection) -> None:
                Chunked(connection, speech.kind, b"").part(speech.parts(["one", " two"])[0] + b"\n\ndata: {" + said)
                connection.close()

            return script

        for secret in confidant.secrets:
            for length in range(4, len(secret) + 1):
                said = b"you said " + secret[:length].encode()
                assert confidant.told(cut_off(speech, said)) == [], f"cut behind {length} characters"
            assert confidant.told(hang_up(secret.encode())) == []

    @pytest.mark.parametrize("kept", [SHOWN, BODY_KEPT])
    def test_no_error_tells_the_start_of_a_secret_where_the_rest_is_not_kept(
        self, kept: int, speech: Speech, confidant: Confidant
    ) -> None:
        for secret in confidant.secrets:
            for length in range(len(secret) + 1):
                body = b"x" * (kept - length) + secret.encode() + b"y" * 2000
                assert confidant.told(responding(500, body)) == [], f"kept up to {length} characters of it"
                assert confidant.told(garbled(speech, body)) == [], f"kept up to {length} characters of it"

    def test_no_error_tells_the_start_of_a_secret_where_the_rest_is_not_read(
        self, speech: Speech, confidant: Confidant
    ) -> None:
        def unread(body: bytes) -> Script:
            def script(request: Recorded, connection: Connection) -> None:
                connection.send(head(500, {"Content-Type": "text/plain", "Content-Length": "1000000"}) + body)
                if len(body) < ERROR_READ:
                    connection.close()
                else:
                    connection.wait_until_client_closes()

            return script

        for secret in confidant.secrets:
            for length in range(4, len(secret)):
                start = secret[:length].encode()
                assert confidant.told(unread(b"you said " + start)) == [], f"read up to {length} characters of it"
                padded = b" " * (ERROR_READ - length) + start  # which is shown, for blanks at both ends are not
                assert confidant.told(unread(padded)) == [], f"read up to {length} characters of it"

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param("HTTP/1.1 500 {}\r\nContent-Length: 0\r\n\r\n", id="reason phrase"),
            pytest.param("HTTP/1.1 302 Found\r\nLocation: /a?b={}\r\nContent-Length: 0\r\n\r\n", id="redirect"),
            pytest.param("HTTP/1.1 200 OK\r\nContent-Encoding: {}\r\nContent-Length: 1\r\n\r\na", id="encoding"),
            pytest.param("HTTP/1.1 {} OK\r\n\r\n", id="status"),
            pytest.param("{}\r\n\r\n", id="no HTTP"),
            pytest.param("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n", id="chunk framing"),
            pytest.param("HTTP/1.1 429 No\r\nRetry-After: {}\r\nContent-Length: 0\r\n\r\n", id="Retry-After"),
        ],
    )
    def test_no_error_tells_a_secret_that_stands_in_broken_http(self, answer: str, confidant: Confidant) -> None:
        for secret in confidant.secrets:
            for before in (0, 20, 25, 30, 35):  # what an exception shows of it may end anywhere
                script = raw(answer.replace("{}", "-" * before + secret).encode())
                assert confidant.told(script) == [], f"{before} characters before it"

    def test_no_error_tells_the_end_of_a_secret_where_a_chunk_is_too_short(self, confidant: Confidant) -> None:
        for secret in confidant.secrets:
            top = b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n"
            for status_line in (top, top.replace(b"500 No", b"200 OK")):
                answer = raw(status_line + b"5\r\n" + secret.encode() + b"\r\n0\r\n\r\n")
                assert confidant.told(answer) == []

    @pytest.mark.parametrize("change", ["sid=another; Path=/", "sid=; Path=/; Max-Age=0"], ids=["new", "deleted"])
    def test_no_error_tells_a_cookie_that_the_same_answer_changes(self, change: str, confidant: Confidant) -> None:
        answer = responding(500, f"you sent sid={COOKIE}".encode(), {"Set-Cookie": change})
        assert confidant.told(answer) == []

    def test_no_error_tells_a_cookie_that_the_same_answer_sets(self, make: Make) -> None:
        body = json.dumps({"error": f"your session is {COOKIE}"}).encode()
        answer = responding(500, body, {"Set-Cookie": f"sid={COOKIE}; Path=/", "Content-Type": "application/json"})
        assert told([COOKIE], failing(make(answer))) == []

    def test_no_error_tells_one_of_several_cookies_that_the_caller_gave(self, make: Make) -> None:
        def repeat(request: Recorded, connection: Connection) -> None:
            cookies = dict(pair.split("=", 1) for pair in (request.header("Cookie") or "").split("; "))
            connection.respond(500, {"error": f"{cookies['sid']} and {cookies['key']}"})

        provider = make(repeat, headers={"Cookie": f"sid={COOKIE}; lang=en; key={KEY}; theme=dark"})
        assert told([COOKIE, KEY], failing(provider)) == []

    @pytest.mark.parametrize(
        "written",
        [
            pytest.param(lambda said: json.dumps(json.dumps({"key": said})), id="JSON in JSON"),
            pytest.param(lambda said: json.dumps({"key": said}).replace("/", "\\/"), id="PHP's JSON"),
            pytest.param(lambda said: f"<p>{html.escape(said)}</p>", id="HTML"),
            pytest.param(lambda said: f"/login?next={quote(said)}", id="path"),
            pytest.param(lambda said: f"/login?{urlencode({'next': said})}", id="query"),
        ],
    )
    def test_no_error_tells_a_secret_that_is_written_in_escapes(
        self, written: Callable[[str], str], speech: Speech, make: Make
    ) -> None:
        secret = 'Pw4j"8Xk\\2Lq9/Zr5T&Vb7H+Hs3N%Nd1G'

        def repeat(request: Recorded, connection: Connection) -> None:
            said = written(request.header("X-Api-Key") or "")
            number, headers = (302, {"Location": said}) if said.startswith("/") else (500, {})
            connection.respond(number, said.encode(), headers)

        assert told([secret], failing(make(repeat, headers={"X-Api-Key": secret}))) == []

    def test_no_error_tells_the_password_of_a_proxy(self, make: Make, wire: Wire) -> None:
        password = PROXY_PASSWORD + "@"
        proxy = f"http://me:{quote(password)}@{wire.url.removeprefix('http://')}"
        provider = make(silent, base_url="http://api.example", proxy=proxy)
        wire.on("POST", ".*", lambda r, c: c.respond(500, f"{r.header_lines} {password} {quote(password)}".encode()))
        error = failing(provider)
        basic = base64.b64encode(f"me:{password}".encode()).decode()
        assert wire.requests[0].header("Proxy-Authorization") == f"Basic {basic}", "the proxy was not told"
        assert told([password, quote(password), basic], error) == []

    def test_no_repr_tells_a_secret(self, confidant: Confidant) -> None:
        seen = repr(confidant.provider) + str(confidant.provider) + repr(confidant.provider.stream("Hi"))
        assert [secret for secret in confidant.secrets if secret in seen] == []

    # Another attempt

    @pytest.mark.parametrize("refuse", [status(503), status(429), close], ids=["503", "429", "closed"])
    def test_what_fails_twice_and_then_works_works(
        self, refuse: Script, speech: Speech, make: Make, wire: Wire
    ) -> None:
        reply = make(first(2, refuse, speak(speech, ["ok"])), retries=2).ask("Hi")
        assert (reply, reply.attempts) == ("ok", 3)
        assert len(wire.asked(*speech.route)) == 3

    def test_after_the_retries_the_last_error_is_raised(self, speech: Speech, make: Make, wire: Wire) -> None:
        error = failing(make(status(503), retries=2))
        assert (type(error), error.status, error.attempts) == (APIStatusError, 503, 3)
        assert len(wire.asked(*speech.route)) == 3

    @pytest.mark.parametrize("number", [400, 404, 422, 501])
    def test_what_will_not_get_better_is_not_tried_again(
        self, number: int, speech: Speech, make: Make, wire: Wire
    ) -> None:
        failing(make(status(number), retries=5))
        # A server that is new to it is asked once more without ``stream_options``, which strict ones refuse.
        once_more = speech.name == "openai" and number in (400, 422)
        assert len(wire.asked(*speech.route)) == 1 + once_more

    @pytest.mark.parametrize("how", ["cut", "silent"])
    def test_nothing_is_tried_again_after_the_first_piece(
        self, how: str, speech: Speech, make: Make, wire: Wire
    ) -> None:
        def cut(request: Recorded, connection: Connection) -> None:
            Chunked(connection, speech.kind, b"").part(speech.parts(["one", " two"])[0])
            connection.close()

        script = cut if how == "cut" else first_piece_then_silence(speech)
        error = failing(make(script, retries=5, timeout=(5, 0.1)))
        assert type(error) is (StreamInterrupted if how == "cut" else APITimeoutError)
        assert (error.partial, error.attempts) == ("one", 1)
        assert len(wire.asked(*speech.route)) == 1

    # Copies and processes

    def test_a_copy_asks_by_itself_and_no_login_is_in_the_pickle(self, speech: Speech, make: Make, wire: Wire) -> None:
        def set_cookie(request: Recorded, connection: Connection) -> None:
            headers = {"Content-Type": speech.kind, "Set-Cookie": f"sid={COOKIE}; Path=/"}
            connection.respond(200, b"".join(speech.parts(["a"])), headers)

        provider = make(set_cookie, model="m-1", headers={"X-Own": "1"}, retries=1)
        assert provider.ask("Hi") == "a"
        pickled = pickle.dumps(provider)
        for given in (COOKIE, "token-1", "cookie-1"):
            assert given.encode() not in pickled, f"the pickle holds {given}, which the server gave"
        theirs = len(wire.requests)
        with pickle.loads(pickled) as twin:
            assert type(twin) is type(provider)
            assert repr(twin) == repr(provider)
            assert twin.ask("Hi") == "a"
            ours = wire.requests[theirs:]
            assert len(ours) == theirs, "the copy did not ask for all by itself"
            assert ours[0].header("Cookie") is None
            assert ours[-1].header("X-Own") == "1"
            assert {request.connection for request in ours} == {1}
        assert provider.ask("Hi") == "a"

    @needs_fork
    @forks
    def test_a_child_process_and_its_parent_both_ask(self, speech: Speech, make: Make, wire: Wire) -> None:
        provider = make(speak(speech, ["a"]))
        assert provider.ask("Hi") == "a"
        assert in_child(lambda: provider.ask("Hi") == "a" and provider.ask("Hi", deadline=PATIENCE) == "a") == 0
        assert provider.ask("Hi") == "a"
        assert len(wire.connections) == 2, "the child has used the parent's connection"

    @needs_fork
    @forks
    def test_what_a_child_process_ends_goes_on_in_its_parent(self, speech: Speech, make: Make) -> None:
        go_on = threading.Event()

        def in_two(request: Recorded, connection: Connection) -> None:
            one, *rest = speech.parts(["a", "b"])
            body = Chunked(connection, speech.kind, b"")
            body.part(one)
            assert go_on.wait(PATIENCE)
            for part in rest:
                body.part(part)
            body.end()

        calls: list[Script] = [in_two]
        provider = make(lambda *args: (calls.pop() if calls else speak(speech, ["child"]))(*args))
        token = CancelToken()
        stream = provider.stream("Hi", cancel=token, deadline=PATIENCE)
        assert next(stream) == "a"

        def child() -> bool:
            answered = provider.ask("Hi") == "child"
            token.cancel()
            stream.close()
            provider.close()
            return answered

        assert in_child(child) == 0
        go_on.set()
        assert list(stream) == ["b"]

    # What is left

    @pytest.mark.parametrize("how", ["closed", "forgotten", "thrown"])
    def test_leaving_the_loop_early_closes_the_connection(self, how: str, speech: Speech, make: Make) -> None:
        noticed = threading.Event()
        stream = make(first_piece_then_silence(speech, noticed)).stream("Hi")
        assert next(stream) == "one"
        if how == "closed":
            stream.close()
        elif how == "thrown":
            with pytest.raises(KeyError):
                stream.throw(KeyError)
        del stream
        gc.collect()
        assert noticed.wait(PATIENCE), "the server was not told"

    @needs_proc
    def test_close_leaves_no_socket_and_no_thread(self, speech: Speech, make: Make, wire: Wire) -> None:
        before = {thread for thread in threading.enumerate() if thread not in wire._threads}
        provider = make(speak(speech, ["a", "b"]))
        assert provider.ask("Hi", deadline=PATIENCE, cancel=CancelToken()) == "ab"
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(provider.ask, ["Hi"] * 8)) == ["ab"] * 8
        early = provider.stream("Hi")
        next(early)
        early.close()
        wire.on(*speech.route, silent)
        for end in ("deadline", "cancel"):
            with Ended(end, provider) as ended:
                provider.ask("Hi", **ended.options)
        wire.routes.pop(0)
        assert provider.ask("Hi") == "ab"
        assert sockets_to(wire) > 0
        provider.close()
        assert sockets_to(wire) == 0
        left = {thread for thread in threading.enumerate() if thread not in wire._threads} - before
        assert left == set()

    @needs_proc
    def test_a_forgotten_provider_closes_its_connections(self, speech: Speech, wire: Wire) -> None:
        wire.routes[:] = [*speech.before, (*speech.route, speak(speech, ["a"]))]
        for options in ({}, {"deadline": PATIENCE}, {"cancel": CancelToken()}):
            class_of(speech)(base_url=wire.url, **speech.config).ask("Hi", **options)
        gc.collect()
        assert sockets_to(wire) == 0


# What only some of them have


@pytest.mark.parametrize("speech", [BERLIN, ACYTOO], ids=lambda speech: speech.name)
def test_no_error_tells_the_start_of_a_password_that_is_cut_within_a_character(speech: Speech, make: Make) -> None:
    answer = [b""]

    def cut(request: Recorded, connection: Connection) -> None:
        connection.send(head(500, {"Content-Type": "text/plain", "Content-Length": "1000"}) + answer[0])
        connection.close()

    password = "пароль-🙂-слово"
    provider = make(cut, password=password)
    whole = password.encode()
    for length in range(8, len(whole)):
        answer[0] = b"you said " + whole[:length]
        assert told([password], failing(provider)) == [], f"cut behind {length} bytes"


@pytest.mark.parametrize("speech", [BERLIN], ids=lambda speech: speech.name)
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(f'{{"data": {{"token": "{TOKEN}"', id="cut off"),
        pytest.param(f'{{"token": "{TOKEN}"}}', id="elsewhere"),
        pytest.param(f'{{"data": {{"access_token": "{TOKEN}"}}}}', id="of another name"),
        pytest.param(f'"{TOKEN}"', id="alone"),
    ],
)
def test_no_error_tells_the_token_of_a_login_that_is_not_understood(answer: str, make: Make, wire: Wire) -> None:
    provider = make(silent)
    wire.on("POST", "/api/login", responding(200, answer.encode(), {"Content-Type": "application/json"}))
    assert told([TOKEN], failing(provider)) == []
