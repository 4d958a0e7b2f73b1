"""No secret is in an error, in whatever way it is written, nor in the causes that a traceback shows."""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import requests

from berlin_chat import ChatError, Provider, StreamInterrupted, Ylokh
from berlin_chat.redaction import Redactor
from wire import BERLIN, H2O, YLOKH, Chunked, Connection, Recorded, Script, Wire

Make = Callable[..., Provider]

SECRET_HEADERS = [
    "Authorization",
    "Proxy-Authorization",
    "Cookie",
    "X-Api-Key",
    "api-key",
    "X-Auth-Token",
    "X-Access-Token",
    "X-Goog-Api-Key",
    "Ocp-Apim-Subscription-Key",
]


def failing(provider: Provider, **options: Any) -> ChatError:
    with pytest.raises(ChatError) as caught:
        provider.ask("Hi", **options)
    return caught.value


def told(error: BaseException) -> str:
    """All that a person or a log may see of an error."""
    shown = "".join(traceback.format_exception(error))
    return f"{shown} {error!r} {vars(error)!r} {error.args!r} {pickle.dumps(error)!r}"


def echoing(make: Callable[[Recorded], bytes], kind: str, status: int = 200) -> Script:
    return lambda request, connection: connection.respond(status, make(request), {"Content-Type": kind})


def assert_untold(secret: str, error: BaseException) -> None:
    text = told(error)
    place = text.find(secret)
    assert place < 0, f"it is told: …{text[max(place - 200, 0) : place + 50]}…"


# What a server says back


@pytest.mark.parametrize(
    "line",
    [b'{"content": "%s', b'{"content" "%s"}\n', b'{"code": 500, "msg": "%s"}\n', b"%s", b'{"content": "a"} %s\n'],
    ids=["cut off", "broken", "an error", "no object", "behind an object"],
)
def test_a_token_that_comes_back_in_a_line_is_not_told(line: bytes, provider_for: Make) -> None:
    def say(request: Recorded) -> bytes:
        return line.replace(b"%s", (request.header("token") or "").encode())

    error = failing(provider_for(BERLIN, echoing(say, BERLIN.kind), token="tok-4711-sesame"))
    assert_untold("tok-4711", error)
    assert "***" in str(error)


def test_a_key_is_not_told_at_the_place_where_a_body_is_cut(provider_for: Make) -> None:
    key = "sk-" + "k" * 60
    for before in range(100, 210, 7):
        body = echoing(lambda r, before=before: b"x" * before + key.encode() + b"y" * 2000, "text/plain", 500)
        assert_untold("kkkk", failing(provider_for(YLOKH, body, api_key=key)))
    for before in range(930, 1010, 7):
        body = echoing(lambda r, before=before: b"x" * before + key.encode() + b"y" * 2000, "text/plain", 500)
        assert_untold("kkkk", failing(provider_for(YLOKH, body, api_key=key)))


def test_a_key_that_a_cut_stream_tears_is_not_told(provider_for: Make) -> None:
    key = "sk-abcdefghijklmnop"

    def tear(request: Recorded, connection: Connection) -> None:
        Chunked(connection, BERLIN.kind, b"").part(b'{"content": "' + key[:-3].encode())
        connection.close()

    provider = provider_for(BERLIN, tear, token=key)
    error = failing(provider)
    assert isinstance(error, StreamInterrupted)
    assert_untold("abcd", error)


@pytest.mark.parametrize("name", SECRET_HEADERS)
def test_the_value_of_a_header_that_sounds_secret_is_not_told(name: str, provider_for: Make) -> None:
    body = echoing(lambda request: str(dict(request.header_lines)).encode(), "text/plain", 500)
    provider = provider_for(YLOKH, body, headers={name: "Bearer open-sesame-1", "X-Own": "plain"})
    error = failing(provider)
    assert_untold("sesame", error)
    assert "plain" in str(error.body), "what is no secret is shown"


def test_a_cookie_is_not_told(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, echoing(lambda r: (r.header("Cookie") or "").encode(), "text/plain", 500))
    error = failing(provider)
    assert_untold("cookie-1", error)
    assert "hf-chat" in str(error.body)


# In whatever way it is written


@pytest.mark.parametrize("secret", ['pa"ss\\word', "пароль-42", "a b&c=d/é", "it's mine", "x" * 300])
def test_a_secret_is_recognized_in_whatever_way_it_is_written(secret: str) -> None:
    redactor = Redactor()
    redactor.add(secret)
    written = [secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret), quote(secret)]
    for text in written:
        shown = redactor.redact(f"before {text} behind")
        assert shown.startswith("before")
        assert "***" in shown, text
        assert shown.endswith("behind")
        assert json.dumps(secret)[1:5] not in shown


def test_a_secret_that_begins_like_another_one_is_taken_out_whole() -> None:
    redactor = Redactor()
    redactor.add("sesame", "sesame-street", "sesame-street-9")
    assert redactor.redact("sesame-street-9, sesame-street, sesame") == "***, ***, ***"


# What led to it


def test_a_cause_tells_no_secret(provider_for: Make, wire: Wire) -> None:
    class Telling(requests.adapters.HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            inner = OSError(f"cannot send {request.headers['Authorization']}")
            raise requests.ConnectionError(inner, request=request) from inner

    with requests.Session() as session:
        session.mount("http://", Telling())
        error = failing(Ylokh(base_url="http://chat.example", api_key="sk-sesame", session=session, retries=0))
    assert error.__cause__ is not None, "a cause is of use"
    # What Dask pickles of an error, and debuggers show.
    assert_untold("sesame", ChatError(str([vars(cause) for cause in (error, error.__cause__)])))
    assert getattr(error.__cause__, "request", None) is None
    assert_untold("sesame", error)


def test_a_cause_that_keeps_its_text_to_itself_is_left_out() -> None:
    class Stubborn(Exception):
        def __str__(self) -> str:
            return "I know sesame"

    redactor = Redactor()
    redactor.add("sesame")
    error = ChatError("failed")
    error.__cause__ = error.__context__ = Stubborn()
    redactor.clean(error)
    assert_untold("sesame", error)
    assert str(error) == "failed"


def test_the_password_of_a_proxy_in_the_environment_is_not_told(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> None:
    monkeypatch.setenv("http_proxy", wire.url.replace("//", "//me:se%40same-7@"))
    wire.on("POST", ".*", echoing(lambda r: b"you sent se%40same-7, which is se@same-7", "text/plain", 502))
    error = failing(Ylokh(base_url="http://chat.example", retries=0))
    assert error.status == 502
    assert_untold("same-7", error)


def test_the_password_of_a_proxy_that_is_not_there_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:sesame-8@127.0.0.1:9")
    assert_untold("sesame", failing(Ylokh(base_url="http://chat.example", retries=0)))


def test_what_was_wrong_at_the_call_tells_no_secret() -> None:
    key = "sk-" + "sesame-9"  # the traceback shows this file's lines, too
    provider = Ylokh(base_url="http://127.0.0.1:9", api_key=key)
    with pytest.raises(ChatError) as caught:
        provider.stream("Hi", nonsense={1: key}, other={key})
    assert_untold("sesame", caught.value)


def test_the_text_that_was_received_is_kept_as_it_is(provider_for: Make) -> None:
    """Nothing received is ever lost, not even a word that is like a password."""

    def cut(request: Recorded, connection: Connection) -> None:
        Chunked(connection, YLOKH.kind, b"").part(YLOKH.parts(["open sesame", "b"])[0])
        connection.close()

    error = failing(provider_for(YLOKH, cut, api_key="sesame"))
    assert error.partial == "open sesame"


def test_what_was_secret_does_not_stay_when_its_provider_is_gone() -> None:
    """``re.compile`` would keep its last 512 patterns, which hold the secrets that they look for."""
    import re

    re.purge()
    redactor = Redactor()
    redactor.add("sesame-open-up-7")
    assert redactor.redact("I said sesame-open-up-7.") == "I said ***."
    for cache in ("_cache", "_cache2"):
        kept = [str(key[1]) for key in getattr(re, cache, {})]
        assert max(map(len, kept), default=0) < 500, "a pattern of more than one character is kept"
