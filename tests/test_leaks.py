"""What the caller did not choose is not sent, nor to others than they chose; bad values never are; secrets stay so."""

from __future__ import annotations

import json
import logging
import os
import pickle
import stat
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from berlin_chat import ChatError, History, InvalidRequest, ProtocolError, Provider, Ylokh, ask_many, get_provider
from tls import Authority, Secure
from wire import BERLIN, H2O, YLOKH, Chunked, Connection, Recorded, Script, Speech, Wire, log_in, speak

Make = Callable[..., Provider]

#: The credentials of each provider, in its own place.
KEY = "sk-sesame/4711+%"
CONFIG: dict[str, dict[str, Any]] = {
    "openai": {"api_key": KEY},
    "ylokh": {"api_key": KEY},
    "berlin": {"account": "me@example.org", "password": KEY},
    "acytoo": {"key": KEY, "password": f"{KEY}-2"},
    "h2o": {"headers": {"Authorization": f"Bearer {KEY}"}},
}


def failing(provider: Provider, **options: Any) -> ChatError:
    with pytest.raises(ChatError) as caught:
        provider.ask("Hi", **options)
    return caught.value


# Redirects


@pytest.fixture
def elsewhere() -> Iterator[Wire]:
    """Another server, which must not hear of anything."""
    with Wire() as server:
        yield server
        assert server.requests == []
        assert server.connections == []


TARGETS = {
    "another port": "{elsewhere}/v1/chat/completions",
    "another host": "http://localhost:{port}/",
    "without a scheme": "//127.0.0.1:{port}/",
    "a file": "file:///etc/passwd",
    "itself": "{url}",
    "a path": "/v1/chat/completions",
    "no address": "http://[::1",
    "control characters": "http://127.0.0.1:{port}/\x01\x7f",
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("own", [False, True], ids=["", "a session of the caller's"])
def test_no_redirect_is_followed(
    own: bool, target: str, speech: Speech, provider_for: Make, wire: Wire, elsewhere: Wire
) -> None:
    to = TARGETS[target].format(elsewhere=elsewhere.url, port=elsewhere.url.rpartition(":")[2], url=wire.url)
    statuses = [301, 302, 303, 307, 308]
    left = list(statuses)

    def redirect(request: Recorded, connection: Connection) -> None:
        connection.respond(left.pop(0), b"go there", {"Location": to, "Set-Cookie": "sid=sesame-cookie; Path=/"})

    with requests.Session() as session:
        provider = provider_for(speech, redirect, session=session if own else None, **CONFIG[speech.name])
        for status in statuses:
            error = failing(provider)
            assert isinstance(error, ProtocolError)
            assert error.status == status
            assert error.attempts == 1
    assert len(wire.asked("POST", speech.route[1])) == len(statuses)
    assert all(request.path.startswith("/") for request in wire.requests)


@pytest.mark.parametrize("path", ["/api/login", "/settings", "/conversation"])
def test_no_redirect_is_followed_on_the_way_to_the_question(
    path: str, provider_for: Make, wire: Wire, elsewhere: Wire
) -> None:
    speech = BERLIN if path == "/api/login" else H2O
    provider = provider_for(speech, speak(speech, ["x"]), **CONFIG[speech.name])
    for status in (301, 302, 307, 308):
        to = {"Location": f"{elsewhere.url}{path}"}
        wire.on("POST", path, lambda request, connection, status=status, to=to: connection.respond(status, b"", to))
        assert failing(provider).status == status


def test_a_cookie_goes_to_no_other_origin(wire: Wire, provider_for: Make) -> None:
    """One that a server sets for another host is not kept, and a session is one server's."""

    def set_cookies(request: Recorded, connection: Connection) -> None:
        own = "Set-Cookie: own=1; Path=/\r\nSet-Cookie: foreign=1; Domain=other.example; Path=/"
        body = Chunked(connection, f"{YLOKH.kind}\r\n{own}", b"")
        for part in YLOKH.parts(["x"]):
            body.part(part)
        body.end()

    provider = provider_for(YLOKH, set_cookies)
    provider.ask("Hi")
    provider.ask("Hi")
    assert wire.requests[1].header("Cookie") == "own=1"


# .netrc


@pytest.fixture(params=["at home", "NETRC"])
def netrc(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with credentials for this very machine, where requests looks for it."""
    file = tmp_path / ".netrc"
    file.write_text("machine 127.0.0.1 login nobody password netrc-sesame\n")
    file.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    if request.param == "NETRC":
        monkeypatch.setenv("HOME", os.devnull)
        monkeypatch.setenv("NETRC", str(file))
    return file


@pytest.mark.parametrize("own", [False, True], ids=["", "a session of the caller's"])
@pytest.mark.parametrize("keyed", [False, True], ids=["without a key", "with a key"])
def test_netrc_is_never_sent(
    own: bool, keyed: bool, speech: Speech, netrc: Path, provider_for: Make, wire: Wire
) -> None:
    requests.post(f"{wire.url}/hello", data=b"", timeout=10)
    assert "Basic" in str(wire.requests[0].header("Authorization")), "requests itself would send it"
    with requests.Session() as session:
        known = CONFIG[speech.name] if keyed else {}
        provider = provider_for(speech, speak(speech, ["x"]), session=session if own else None, **known)
        assert provider.ask("Hi") == "x"
    sent = {request.header("Authorization") for request in wire.requests[1:]}
    assert sent == ({f"Bearer {KEY}"} if keyed and speech.name in ("openai", "ylokh", "h2o") else {None})


def test_what_a_session_of_the_callers_logs_in_by_is_sent(provider_for: Make, wire: Wire) -> None:
    with requests.Session() as session:
        session.auth = ("me", "sesame-7")
        provider_for(YLOKH, speak(YLOKH, ["x"]), session=session).ask("Hi")
    assert wire.requests[0].header("Authorization") == "Basic " + b64encode(b"me:sesame-7").decode()


# What is configured, and cannot be sent


ADDRESSES = [
    "http://a b/",
    "http://a/b c",
    "http://a\tb/",
    "http://a\nb/",
    "http://a/\r\nX: y",
    "http://a\0b/",
    "http://a\\b/",
    "http://a%20b/",
    "http://a,b/",
    "http://[::1",
    "http://[zz]/",
    "http://::1/",
    "http://a:port/",
    "http://a:0/",
    "http://a:70000/",
    "http://a:-1/",
    "http://a..b/",
    f"http://{'a' * 64}.example/",
    f"http://{'a.' * 130}example/",
    "http://\ud800/",
    "http://a\u2028b/",
    "http:///path",
    "http:/a/",
    "//a/",
    "a",
    "file:///etc/passwd",
    "ftp://a/",
    "http://me:sesame@a/",
    "http://a/?q=1",
    "http://a/#f",
]


@pytest.mark.parametrize("address", ADDRESSES, ids=repr)
@pytest.mark.parametrize("where", ["argument", "environment"])
def test_an_address_that_is_none_is_refused(where: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "argument":
        with pytest.raises(InvalidRequest, match="base_url") as caught:
            Ylokh(base_url=address)
    else:
        if "\0" in address or "\ud800" in address:
            return  # which no variable can hold
        monkeypatch.setenv("BERLIN_CHAT_URL", address)
        with pytest.raises(InvalidRequest, match="BERLIN_CHAT_URL") as caught:
            Ylokh()
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("http://bücher.example/ä", "http://xn--bcher-kva.example/%C3%A4"),
        ("http://xn--bcher-kva.example", "http://xn--bcher-kva.example"),
        ("http://my_model-1:8080/", "http://my_model-1:8080"),
        ("http://chat.example./base/", "http://chat.example./base"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        (" http://127.0.0.1:8080 ", "http://127.0.0.1:8080"),
        ("HTTP://Chat.Example/", "http://Chat.Example"),
    ],
)
def test_an_address_that_is_one_is_taken_as_it_is_sent(address: str, sent: str, speech: Speech) -> None:
    assert get_provider(speech.name, base_url=address, **speech.config).base_url == sent


BAD_TEXT = ["a\r\nX-Injected: 1", "a\nb", "a\rb", "a\0b", "\x7f", "\x1b[31m", "\ud800"]


@pytest.mark.parametrize("text", BAD_TEXT, ids=repr)
def test_a_line_break_in_a_configured_value_is_refused_and_not_shown(text: str, speech: Speech) -> None:
    name = speech.name
    tried: list[dict[str, Any]] = [
        {"model": text},
        {"headers": {"X-Own": text}},
        {"headers": {text: "x"}},
        {"proxy": f"http://{text}@127.0.0.1:1"},
        {"proxy": f"http://me:sesame{text}@127.0.0.1:1"},
        {"cert": text},
        {"verify": text},
        *({field: f"sesame{text}"} for field in {"berlin": ["account", "password", "token"]}.get(name, [])),
        *({field: f"sesame{text}"} for field in {"acytoo": ["key", "password"]}.get(name, [])),
    ]
    if name in ("openai", "ylokh"):
        tried += [{"api_key": f"sesame{text}"}, {"params": {"a": text}}, {"params": {text: "a"}}]
    for config in tried:
        with pytest.raises(InvalidRequest) as caught:
            get_provider(name, base_url="http://127.0.0.1:9", **{**speech.config, **config})
        assert "sesame" not in "".join(traceback.format_exception(caught.value)).split("InvalidRequest:")[-1], config
    provider = get_provider(name, base_url="http://127.0.0.1:9", **speech.config)
    for options in ({"model": text}, {"headers": {"X-Own": text}}, {"headers": {text: "x"}}):
        with pytest.raises(InvalidRequest):
            provider.stream("Hi", **options)


@pytest.mark.parametrize("name", ["", " ", "X Own", "X:", "X\nOwn", "X\0", "Ü", "X(1)", "[X]"], ids=repr)
def test_a_name_that_no_header_can_have_is_refused(name: str, speech: Speech) -> None:
    with pytest.raises(InvalidRequest, match="headers has a name"):
        get_provider(speech.name, base_url="http://127.0.0.1:9", headers={name: "x"})


@pytest.mark.parametrize("value", ["ä", "пароль", "a ", " a", "\t"], ids=repr)
def test_a_value_that_no_header_can_have_is_refused(value: str) -> None:
    for config in ({"headers": {"X-Own": value}}, {"api_key": value}):
        with pytest.raises(InvalidRequest):
            Ylokh("http://127.0.0.1:9", **config)  # type: ignore[arg-type]


def test_a_password_beyond_ascii_is_sent_where_json_can_say_it(provider_for: Make, wire: Wire) -> None:
    provider_for(BERLIN, speak(BERLIN, ["x"]), account="мой", password="пароль 42").ask("Hi")
    assert wire.asked("POST", "/api/login")[0].json == {"account": "мой", "password": "пароль 42"}


@pytest.mark.parametrize("password", ["пароль", quote("пароль")], ids=["", "quoted"])
def test_a_proxy_with_a_password_that_cannot_be_sent_is_refused(password: str) -> None:
    with pytest.raises(InvalidRequest, match="proxy has a user name or password") as caught:
        Ylokh("http://chat.example", proxy=f"http://me:{password}@127.0.0.1:1")
    assert password not in str(caught.value)


UNSENDABLE: dict[str, Callable[[requests.Session], Any]] = {
    "a cookie with a line break": lambda session: session.cookies.set("sid", "sesame\nX: y"),
    "a cookie beyond Latin-1": lambda session: session.cookies.set("sid", "sesame-пароль"),
    "a header with a line break": lambda session: session.headers.update({"X-Api-Key": "sesame\nX: y"}),
    "a header beyond Latin-1": lambda session: session.headers.update({"X-Api-Key": "sesame-пароль"}),
    "a user name beyond Latin-1": lambda session: setattr(session, "auth", ("sesame-пароль", "sesame-2")),
}


@pytest.mark.parametrize("what", UNSENDABLE)
def test_what_a_session_cannot_send_is_refused_before_anything_is_sent(
    what: str, speech: Speech, provider_for: Make, wire: Wire
) -> None:
    with requests.Session() as session:
        UNSENDABLE[what](session)
        error = failing(provider_for(speech, speak(speech, ["x"]), session=session))
    assert isinstance(error, InvalidRequest)
    assert wire.requests == []
    assert_untold(["sesame"], error)


# No secret is told


def chain(error: BaseException | None, seen: set[int] | None = None) -> Iterator[BaseException]:
    """An error, all that led to it, and all errors that stand in their attributes and arguments."""
    seen = set() if seen is None else seen
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for other in (error.__cause__, error.__context__, *error.args, *vars(error).values()):
        if isinstance(other, BaseException):
            yield from chain(other, seen)


#: Where exceptions of Python keep things beside their ``__dict__``.
CARRIED = ("object", "filename", "filename2", "strerror", "doc", "value", "obj", "name")


def told(error: BaseException) -> Iterator[str]:
    for one in chain(error):
        yield f"{one} {one!r} {one.args!r}"
        for value in (*one.args, *(getattr(one, name) for name in {*vars(one), *CARRIED} if hasattr(one, name))):
            yield f"{value!r} {getattr(value, '__dict__', '')!r}"
    yield "".join(traceback.format_exception(error)).replace(Path(__file__).read_text(), "")
    yield repr(pickle.dumps(error))


def written(secret: str) -> set[str]:
    """What tells a secret, in whatever way."""
    ways = {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    return ways | {b64encode(secret.encode()).decode().rstrip("=")}


def assert_untold(secrets: list[str], error: BaseException, also: str = "") -> None:
    for secret in secrets:
        for way in written(secret):
            for text in (*told(error), also):
                place = text.find(way)
                assert place < 0, f"{way} is told: …{text[max(place - 200, 0) : place + 60]}…"


def resets(request: Recorded, connection: Connection) -> None:
    connection.reset()


def echoes(status: int) -> Script:
    """Answers with all that was sent."""

    def script(request: Recorded, connection: Connection) -> None:
        said = repr(request.header_lines).encode() + request.body
        connection.respond(status, said, {"Content-Type": "application/json", "X-Request-Id": said.decode()[:500]})

    return script


def page(request: Recorded, connection: Connection) -> None:
    said = b"<html>" + repr(request.header_lines).encode() + request.body
    connection.respond(200, said, {"Content-Type": "text/html"})


def moved(request: Recorded, connection: Connection) -> None:
    where = repr(request.header_lines) + request.body.decode()
    connection.respond(302, b"", {"Location": f"http://127.0.0.1:9/{where.replace(chr(10), '')}"})


def silent(request: Recorded, connection: Connection) -> None:
    connection.wait_until_client_closes()


def cuts(request: Recorded, connection: Connection) -> None:
    Chunked(connection, "text/event-stream", b"").part(repr(request.header_lines).encode() + request.body[:100])
    connection.reset()


FAILURES: dict[str, Script] = {
    "reset": resets,
    "silence": silent,
    "cut off": cuts,
    "a page": page,
    "a redirect": moved,
    **{f"a {status}": echoes(status) for status in (200, 400, 401, 403, 404, 407, 429, 500, 503)},
}


@pytest.mark.parametrize("failure", FAILURES)
def test_no_failure_tells_a_secret(
    failure: str, speech: Speech, provider_for: Make, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in its chain, its attributes, a traceback, a pickle; nor do the logs, at their most talkative."""
    caplog.set_level(logging.DEBUG)
    header, cookie, user, password = "hdr-sesame-1", "cookie-sesame-2", "prx", "prx-sesame@3"
    proxy = wire.url.replace("//", f"//{user}:{quote(password, safe='')}@")
    config = {**CONFIG[speech.name], "proxy": proxy, "base_url": "http://chat.example", "timeout": (5, 0.2)}
    config["headers"] = {**config.get("headers", {}), "X-Api-Key": header, "Cookie": f"sid={cookie}"}
    answers = FAILURES[failure]
    provider = provider_for(speech, answers, **config)
    address = r"http://chat\.example"
    wire.routes[:] = [(method, address + path, script) for method, path, script in wire.routes]
    if speech.name == "berlin":
        wire.on("POST", address + "/api/login", log_in)
    error = failing(provider)
    if speech.name == "acytoo":
        error.partial = ""  # where an echo is text: nothing that was received is lost
    secrets = [KEY, f"{KEY}-2", header, cookie, password, f"{user}:{password}", "token-1"]
    assert any(KEY in repr(request.header_lines) + request.body.decode() for request in wire.requests), "it was sent"
    assert_untold(secrets, error, also=caplog.text + repr(provider) + repr(vars(caplog)))
    for _ in range(2):  # nor does a copy, nor a copy of that
        error = pickle.loads(pickle.dumps(error))
        assert_untold(secrets, error)


def test_no_reply_tells_a_secret(speech: Speech, provider_for: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    provider = provider_for(speech, speak(speech, ["x"]), **CONFIG[speech.name])
    reply = provider.ask("Hi")
    kept = [repr(reply), repr(vars(reply)), repr(pickle.dumps(reply)), repr(provider), caplog.text]
    assert reply == "x"
    for way in written(KEY):
        assert not [text for text in kept if way in text]


def test_no_refusal_of_tls_tells_a_secret(speech: Speech, authority: Authority) -> None:
    with Secure(authority.server()) as server:
        known = {**CONFIG[speech.name], "headers": {"Authorization": f"Bearer {KEY}"}, "retries": 0}
        with get_provider(speech.name, base_url=server.url, **known) as provider:
            assert_untold([KEY], failing(provider))
    with get_provider(speech.name, base_url="http://127.0.0.1:9", **known) as provider:
        assert_untold([KEY], failing(provider))


# Files


def test_what_is_kept_in_files_is_for_nobody_else(
    speech: Speech, provider_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        provider = provider_for(speech, speak(speech, ["x"]), **CONFIG[speech.name])
        assert [answer.reply for answer in ask_many(provider, ["Hi"], checkpoint=tmp_path / "answers.jsonl")] == ["x"]
        with History(tmp_path / "chats.db"):
            pass
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"answers.jsonl", "chats.db"} <= {path.name for path in files}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
        assert KEY.encode() not in path.read_bytes()
