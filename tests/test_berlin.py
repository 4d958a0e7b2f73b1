"""Berlin as the program speaks that such sites run, 79E/ChatGpt-Web: its login, its one session, its segments."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from berlin_chat import (
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Berlin,
    Cancelled,
    CancelToken,
    InvalidRequest,
    Provider,
    StreamInterrupted,
)
from wire import BERLIN, PATIENCE, Chunked, Connection, Recorded, Wire, log_in, speak, wait_for

Make = Callable[..., Provider]
SAY_OK = speak(BERLIN, ["ok"])


def login_of_79e(request: Recorded, connection: Connection) -> None:
    """What it asks of a login, and how it refuses one."""
    login = request.json
    if not login.get("account") or not login.get("password"):
        connection.respond(406, {"code": -1, "data": [], "message": "缺少必要参数"})
    elif "invite_code" not in login:
        said = 'WHERE parameter "invite_code" has invalid "undefined" value'
        connection.respond(500, {"code": 5000, "data": [], "message": said})
    elif login["password"] != BERLIN.config["password"]:
        connection.respond(406, {"code": -1, "data": [], "message": "密码不正确"})
    else:
        connection.respond(200, {"code": 0, "data": {"user_info": {}, "token": "token-1"}, "message": "登录成功"})


@pytest.fixture
def provider_of_79e(provider_for: Make, wire: Wire) -> Make:
    def make(**config: Any) -> Provider:
        provider = provider_for(BERLIN, SAY_OK, **config)
        wire.on("POST", "/api/login", login_of_79e)
        return provider

    return make


# Further fields of the login


def test_further_fields_are_sent_with_the_login_and_only_there(provider_of_79e: Make, wire: Wire) -> None:
    fields = {"invite_code": "", "device": {"name": "mine", "ids": [1, None]}}
    assert provider_of_79e(login_fields=fields).ask("Hi") == "ok"
    login, question = wire.requests
    assert login.json == {**fields, **BERLIN.config}
    assert question.json.keys() == {"prompt", "parentMessageId", "options"}


def test_a_login_without_a_field_that_it_wants_says_so(provider_of_79e: Make) -> None:
    with pytest.raises(APIStatusError, match=r"invalid .undefined. value") as caught:
        provider_of_79e().ask("Hi")
    assert caught.value.status == 500
    assert str(caught.value).endswith("The login may want further fields: login_fields={'invite_code': ''}")


@pytest.mark.parametrize(
    ("status", "body", "field"),
    [
        (422, {"detail": [{"loc": ["body", "captcha_id"], "msg": "field required"}]}, "captcha_id"),
        (400, {"message": "missing field `invite_code`"}, "invite_code"),
        (406, {"code": -1, "message": "缺少必要参数"}, "invite_code"),
        (200, {"code": -1, "message": "'site_id' is required", "data": []}, "site_id"),
    ],
)
def test_a_field_that_is_missing_is_named_however_it_is_said(
    status: int, body: dict[str, Any], field: str, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(BERLIN, SAY_OK)
    wire.on("POST", "/api/login", lambda request, connection: connection.respond(status, body))
    with pytest.raises(AuthenticationError) as caught:
        provider.ask("Hi")
    assert caught.value.advice == f"The login may want further fields: login_fields={{'{field}': ''}}"


def test_a_wrong_password_is_still_about_the_password(provider_of_79e: Make) -> None:
    with pytest.raises(AuthenticationError, match="密码不正确") as caught:
        provider_of_79e(login_fields={"invite_code": ""}, password="wrong").ask("Hi")
    assert caught.value.advice == "Check account and password"


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ("invite_code", "mapping of str"),
        ([("a", "b")], "mapping of str"),
        ({1: "a"}, "mapping of str"),
        ({"a": {1, 2}}, "what JSON cannot"),
        ({"a": float("nan")}, "what JSON cannot"),
        ({"password": "a"}, "give password="),
        ({"account": "a"}, "give account="),
    ],
)
def test_fields_that_are_wrong_are_refused(fields: Any, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        Berlin(base_url="http://127.0.0.1:1", login_fields=fields)


def test_the_fields_are_a_copy_and_cross_with_the_configuration(provider_of_79e: Make, wire: Wire) -> None:
    fields: dict[str, Any] = {"invite_code": "", "more": [1]}
    provider = provider_of_79e(login_fields=fields)
    fields["more"].append(2)
    with pickle.loads(pickle.dumps(provider)) as copy:
        assert copy.ask("Hi") == "ok"
    assert wire.asked("POST", "/api/login")[0].json["more"] == [1]


def test_no_text_tells_the_value_of_a_field(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, SAY_OK, login_fields={"invite_code": "open-sesame", "in": {"side": ["too-sesame"]}})

    def tell(request: Recorded, connection: Connection) -> None:
        connection.respond(403, {"message": f"no: {request.body.decode()}"})

    wire.on("POST", "/api/login", tell)
    with pytest.raises(AuthenticationError) as caught:
        provider.ask("Hi")
    told = f"{caught.value} {caught.value!r} {vars(caught.value)} {provider!r}"
    assert "invite_code" in told
    assert "sesame" not in told


def test_create_completion_takes_the_fields_too(provider_of_79e: Make, wire: Wire) -> None:
    provider_of_79e()
    fields = {"invite_code": ""}
    pieces = Berlin.create_completion("m", "Hi", base_url=wire.url, login_fields=fields, **BERLIN.config)
    assert "".join(pieces) == "ok"


# One session an account


@pytest.fixture
def ended(provider_for: Make, wire: Wire) -> Provider:
    """A provider whose session somebody else has ended."""

    def only_the_second(request: Recorded, connection: Connection) -> None:
        if request.header("token") == "token-2" or len(wire.asked(*BERLIN.route)) == 1:
            SAY_OK(request, connection)
        else:
            connection.respond(401, {"code": 4001, "message": "log in again"})

    provider = provider_for(BERLIN, only_the_second)
    assert provider.ask("Hi") == "ok"
    return provider


def test_before_another_login_it_waits_for_a_random_time(
    ended: Provider, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[tuple[float, float]] = []
    monkeypatch.setattr("berlin_chat.http.login.uniform", lambda *limits: waits.append(limits) or 0.3)
    moments: list[float] = []

    def note(request: Recorded, connection: Connection) -> None:
        moments.append(1)
        log_in(request, connection)

    wire.on("POST", "/api/login", note)
    reply = ended.ask("Hi")
    assert reply == "ok"
    assert reply.seconds >= 0.3
    assert (waits, len(moments)) == ([(0, 0.5)], 1)


def test_a_deadline_and_a_cancel_end_the_wait(ended: Provider, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("berlin_chat.http.login.uniform", lambda *limits: PATIENCE * 3)
    with pytest.raises(APITimeoutError):
        ended.ask("Hi", deadline=0.2)
    token = CancelToken()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(ended.ask, "Hi", cancel=token)
        wait_for(lambda: len(wire.asked(*BERLIN.route)) == 3)
        token.cancel()
        assert isinstance(asked.exception(2), Cancelled)
    assert len(wire.asked("POST", "/api/login")) == 1


def test_the_sooner_a_session_ends_the_longer_is_the_wait(
    provider_for: Make, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("berlin_chat.http.login.uniform", lambda least, most: waits.append(most) or 0)
    provider = provider_for(BERLIN, lambda request, connection: connection.respond(401))
    for _ in range(3):
        with pytest.raises(AuthenticationError):
            provider.ask("Hi")
    assert waits == [0.5, 1.0, 2.0]
    for _ in range(4):
        with pytest.raises(AuthenticationError):
            provider.ask("Hi")
    assert waits[3:] == [4.0, 8.0, 8.0, 8.0]
    monkeypatch.setattr("berlin_chat.http.login.YOUNG", 0.0)
    with pytest.raises(AuthenticationError):
        provider.ask("Hi")
    assert waits[7:] == [0.25], "a session that has lasted begins anew"


# Segments


def objects(*segments: str | None, last_text: str = "") -> bytes:
    """A reply of one letter an object, as the program sends it: an empty line stands behind each but the last."""
    values = []
    for number, segment in enumerate(segments):
        text = last_text if number + 1 == len(segments) and segment in ("stop", "end") else "abc"[number % 3]
        value: dict[str, Any] = {"id": "x", "role": "assistant", "content": text, "parentMessageId": "y"}
        values.append(json.dumps(value if segment is None else {**value, "segment": segment}).encode())
    return b"\n\n".join(values)


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        (("start", "text", "text", "stop"), "abc"),
        (("start", "text", "text", "end"), "abc"),
        (("start", "stop"), "a"),
        (("stop",), ""),
        ((None, None, None), "abc"),
    ],
)
@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_a_reply_with_its_last_segment_or_without_any_is_whole(
    segments: tuple[str | None, ...], text: str, end: bytes, provider_for: Make
) -> None:
    body = objects(*segments) + end
    assert provider_for(BERLIN, lambda request, connection: connection.respond(200, body)).ask("Hi") == text


def test_a_last_segment_may_have_text(provider_for: Make) -> None:
    body = objects("start", "end", last_text="!")
    assert provider_for(BERLIN, lambda request, connection: connection.respond(200, body)).ask("Hi") == "a!"


@pytest.mark.parametrize(("segments", "text"), [(("start",), "a"), (("start", "text", "text"), "abc")])
@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_a_reply_that_lacks_its_last_segment_was_cut_off(
    segments: tuple[str, ...], text: str, end: bytes, provider_for: Make
) -> None:
    def cut(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, "text/event-stream;charset=utf-8", b"")
        body.part(objects(*segments) + end)
        body.end()  # a proper end of HTTP

    with pytest.raises(StreamInterrupted, match="last segment") as caught:
        provider_for(BERLIN, cut).ask("Hi")
    assert caught.value.partial == text


# Options


def test_an_option_that_the_protocol_does_not_have_is_refused_at_the_call(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, SAY_OK)
    with pytest.raises(InvalidRequest, match=r"no option 'timeut': it has .*, max_tokens, "):
        provider.stream("Hi", timeut=3)
    assert wire.requests == []


def test_all_options_that_it_names_are_sent(provider_for: Make, wire: Wire) -> None:
    assert Berlin.known_options >= {"temperature", "presence_penalty", "frequency_penalty", "max_tokens", "top_p"}
    every = dict.fromkeys(Berlin.known_options, 1)
    assert provider_for(BERLIN, SAY_OK).ask("Hi", **every) == "ok"
    assert wire.asked(*BERLIN.route)[0].json["options"] == {**every, "model": "gpt-3.5-turbo"}
