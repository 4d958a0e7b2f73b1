"""A caller's own tests can mock this library, as any code over requests.

With ``responses``, ``requests-mock``, ``pytest-httpserver`` and ``vcrpy``.
"""

from __future__ import annotations

import gc
import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import requests
import requests_mock
import responses
import vcr
from pytest_httpserver import HTTPServer
from responses import matchers
from vcr.errors import CannotOverwriteExistingCassetteException
from werkzeug import Response

from berlin_chat import (
    APIConnectionError,
    Cancelled,
    CancelToken,
    ChatError,
    Provider,
    RateLimitError,
    StreamInterrupted,
    Ylokh,
    get_provider,
)
from berlin_chat.testing import Cut, Fail, LocalServer, Slow
from wire import ACYTOO, BERLIN, H2O, OPENAI, SPEECHES, YLOKH, ChunkedGzip, Speech, Wire, speak

URL = "http://chat.example"


def mock(speech: Speech, body: bytes) -> None:
    """A server of one protocol, as a caller's test would write it."""
    responses.post(f"{URL}/api/login", json={"data": {"token": "t"}})
    responses.post(f"{URL}/settings", status=303, headers={"Location": URL, "Set-Cookie": "hf-chat=c; Path=/"})
    responses.post(f"{URL}/conversation", json={"conversationId": "c1"})
    responses.delete(f"{URL}/conversation/c1", json={})
    path = {"h2o": "/conversation/c1"}.get(speech.name, speech.route[1])
    responses.post(URL + path, body=body, content_type=speech.kind)


def provider(speech: Speech, **config: Any) -> Provider:
    return get_provider(speech.name, base_url=URL, **speech.config, **config)


@responses.activate
@pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.name)
def test_each_provider_streams_from_a_mock(speech: Speech) -> None:
    mock(speech, b"".join(speech.parts(["Hel", "lo"])))
    assert provider(speech).ask("Hi") == "Hello"


@responses.activate
@pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.name)
def test_each_providers_requests_can_be_looked_at(speech: Speech) -> None:
    mock(speech, b"".join(speech.parts(["x"])))
    provider(speech).ask("Hi")
    lines = [f"{call.request.method} {call.request.path_url}" for call in responses.calls]
    assert (
        lines
        == {
            "berlin": ["POST /api/login", "POST /api/chat/completions"],
            "openai": ["POST /v1/chat/completions"],
            "ylokh": ["POST /v1/chat/completions"],
            "h2o": [
                "POST /settings",
                "POST /conversation",
                "POST /conversation/c1",
                "DELETE /conversation/c1",
            ],
            "acytoo": ["POST /api/completions"],
        }[speech.name]
    )


@responses.activate
def test_the_payloads_can_be_matched() -> None:
    everything = b"".join(YLOKH.parts(["x"]))
    responses.post(
        f"{URL}/v1/chat/completions",
        body=everything,
        content_type="text/event-stream",
        match=[
            matchers.json_params_matcher(
                {
                    "messages": [{"role": "user", "content": "Hi"}],
                    "model": "m",
                    "temperature": 1,
                    "presence_penalty": 0,
                    "top_p": 1,
                    "frequency_penalty": 0,
                    "allow_fallback": True,
                    "stream": True,
                }
            ),
            matchers.header_matcher({"Origin": URL, "Referer": URL + "/", "Authorization": "Bearer k"}),
        ],
    )
    assert Ylokh(base_url=URL, api_key="k", model="m").ask("Hi") == "x"


@responses.activate
def test_the_flattened_payloads_can_be_matched() -> None:
    mock(BERLIN, b"".join(BERLIN.parts(["x"])))
    provider(BERLIN).ask([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    login, question = responses.calls
    assert json.loads(login.request.body) == BERLIN.config
    assert json.loads(question.request.body)["prompt"] == "User: a\nUser: b\nAssistant:"
    assert question.request.headers["token"] == "t"


@responses.activate
def test_failures_can_be_mocked() -> None:
    responses.post(f"{URL}/api/completions", status=429, headers={"Retry-After": "2"})
    with pytest.raises(RateLimitError) as caught:
        provider(ACYTOO, retries=0).ask("Hi")
    assert caught.value.retry_after == 2
    responses.reset()
    responses.post(f"{URL}/api/completions", body=requests.ConnectionError("no route"))
    with pytest.raises(APIConnectionError):
        provider(ACYTOO, retries=0).ask("Hi")
    responses.reset()
    mock(H2O, H2O.parts(["a", "b"])[0])
    with pytest.raises(StreamInterrupted) as cut:
        provider(H2O).ask("Hi")
    assert cut.value.partial == "a"
    assert responses.calls[-1].request.method == "DELETE"


# requests-mock


@pytest.fixture
def mocker() -> Iterator[requests_mock.Mocker]:
    with requests_mock.Mocker() as mocker:
        mocker.post(f"{URL}/api/login", json={"data": {"token": "a-token"}})
        mocker.post(f"{URL}/settings", status_code=303, headers={"Location": URL, "Set-Cookie": "hf-chat=c; Path=/"})
        mocker.post(f"{URL}/conversation", json={"conversationId": "c1"})
        mocker.delete(f"{URL}/conversation/c1", json={})
        yield mocker


def answer(mocker: requests_mock.Mocker, speech: Speech, **answered: Any) -> None:
    mocker.post(URL + {"h2o": "/conversation/c1"}.get(speech.name, speech.route[1]), **answered)


@pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.name)
@pytest.mark.parametrize("as_text", [True, False], ids=["text", "content"])
def test_requests_mock_answers_each_provider_without_a_content_type(
    speech: Speech, as_text: bool, mocker: requests_mock.Mocker
) -> None:
    body = b"".join(speech.parts(["Hel", "lo"]))
    answer(mocker, speech, **({"text": body.decode()} if as_text else {"content": body}))
    with provider(speech) as asked:
        assert asked.ask("Hi") == "Hello"
    assert mocker.request_history[-1].method == ("DELETE" if speech is H2O else "POST")


COMPLETION = {"choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("speech", "whole"),
    [(OPENAI, COMPLETION), (YLOKH, COMPLETION), (BERLIN, {"content": "Hello"})],
    ids=["openai", "ylokh", "berlin"],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_the_json_of_requests_mock_is_a_whole_reply(
    speech: Speech, whole: dict[str, Any], labelled: bool, mocker: requests_mock.Mocker
) -> None:
    answer(mocker, speech, json=whole, headers={"Content-Type": "application/json"} if labelled else {})
    with provider(speech) as asked:
        assert list(asked.stream("Hi")) == ["Hello"]


@pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.name)
def test_requests_mock_fails_and_then_answers(speech: Speech, mocker: requests_mock.Mocker) -> None:
    body = b"".join(speech.parts(["Hello"]))
    answer(mocker, speech, response_list=[{"status_code": 503, "json": {"error": "later"}}, {"content": body}])
    with provider(speech, retries=1) as asked:
        assert asked.ask("Hi").attempts == 2
    answer(mocker, speech, status_code=429, json={"error": {"message": "slow down"}}, headers={"Retry-After": "2"})
    with provider(speech, retries=0) as asked, pytest.raises(RateLimitError, match="slow down") as caught:
        asked.ask("Hi")
    assert caught.value.retry_after == 2


def test_what_requests_mock_does_not_know_it_says_itself(mocker: requests_mock.Mocker) -> None:
    with provider(ACYTOO) as asked, pytest.raises(requests_mock.NoMockAddress, match="/api/completions"):
        asked.ask("Hi")


def test_the_json_of_requests_mock_lists_the_models(mocker: requests_mock.Mocker) -> None:
    mocker.get(f"{URL}/v1/models", json={"data": [{"id": "m-1"}]})
    with provider(OPENAI) as asked:
        assert asked.models() == ["m-1"]


# pytest-httpserver


@pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.name)
def test_pytest_httpserver_answers_each_provider(speech: Speech, httpserver: HTTPServer) -> None:
    parts = speech.parts(["Hel", "lo"])
    httpserver.expect_request("/api/login").respond_with_json({"data": {"token": "a-token"}})
    httpserver.expect_request("/settings").respond_with_data(
        "", 303, headers={"Location": "/", "Set-Cookie": "hf-chat=c"}
    )
    httpserver.expect_request("/conversation").respond_with_json({"conversationId": "c1"})
    httpserver.expect_request("/conversation/c1", "DELETE").respond_with_json({})
    path = {"h2o": "/conversation/c1"}.get(speech.name, speech.route[1])
    httpserver.expect_request(path, "POST").respond_with_response(Response(iter(parts), content_type=speech.kind))
    with get_provider(speech.name, base_url=httpserver.url_for("").rstrip("/"), **speech.config) as asked:
        assert asked.ask("Hi") == "Hello"
    httpserver.check()


def test_pytest_httpserver_fails_and_then_answers(httpserver: HTTPServer) -> None:
    path = ACYTOO.route[1]
    httpserver.expect_ordered_request(path).respond_with_data("later", 503)
    httpserver.expect_ordered_request(path).respond_with_data("Hello")
    with get_provider("acytoo", base_url=httpserver.url_for("").rstrip("/")) as asked:
        assert asked.ask("Hi").attempts == 2
    httpserver.check()


# vcrpy


@pytest.fixture
def cassette(tmp_path: Path) -> Callable[..., Any]:
    """Records what is asked within it, or plays it where it is there."""
    return lambda mode="once", **how: vcr.use_cassette(str(tmp_path / "cassette.yaml"), record_mode=mode, **how)


#: With what Berlin's login is recorded, and must be played.
LOGIN = {"berlin": {"account": "me", "password": "x"}}


def asked_of(server: LocalServer, name: str, session: requests.Session | None = None) -> Provider:
    return server.provider(name, retries=0, session=session, **LOGIN.get(name, {}))


def played_by(url: str, name: str, session: requests.Session | None = None) -> Provider:
    return get_provider(name, base_url=url, retries=0, session=session, **LOGIN.get(name, {}))


@pytest.mark.parametrize("own", [False, True], ids=["our session", "the caller's session"])
@pytest.mark.parametrize("name", [speech.name for speech in SPEECHES])
def test_a_cassette_is_recorded_and_played_without_the_server(
    name: str, own: bool, cassette: Callable[..., Any]
) -> None:
    with requests.Session() as session, requests.Session() as later:
        with LocalServer(replies=["one two three"]) as server:
            with cassette() as recorded, asked_of(server, name, session if own else None) as provider:
                assert "".join(provider.stream("Hi")) == "one two three"
            url = server.url
        assert len(recorded) == {"berlin": 2, "h2o": 4}.get(name, 1)
        with (
            cassette("none") as played,
            get_provider(
                name, base_url=url, retries=0, session=later if own else None, **LOGIN.get(name, {})
            ) as provider,
        ):
            assert provider.ask("Hi") == "one two three"
        assert played.all_played
    gc.collect()  # a socket that was left open is a warning, and so an error


#: A session's connection is replaced within a cassette; vcrpy 8 forgets to close it, where requests alone asks, too.
OWN = pytest.param(True, marks=pytest.mark.skipif(vcr.__version__.startswith("8."), reason="vcrpy 8 leaves it open"))


@pytest.mark.parametrize("own", [False, OWN], ids=["our session", "the caller's session"])
def test_a_cassette_holds_for_a_provider_that_was_used_before_and_only_as_long_as_it_runs(
    own: bool, cassette: Callable[..., Any]
) -> None:
    with (
        requests.Session() as session,
        LocalServer(replies=["before", "within", "after"]) as server,
        asked_of(server, "openai", session if own else None) as provider,
    ):
        assert provider.ask("Hi") == "before"
        with cassette() as recorded:
            assert provider.ask("Hi") == "within"
        with cassette("none"):
            assert provider.ask("Hi") == "within"
        assert provider.ask("Hi") == "after"
        assert len(recorded) == 1
        assert len(server.requests) == 3
    gc.collect()


def test_an_interruptible_connection_is_one_again_behind_a_cassette(cassette: Callable[..., Any]) -> None:
    with LocalServer(replies=["within", Slow(60)]) as server, asked_of(server, "openai") as provider:
        with cassette():
            provider.ask("Hi")
        token, began = CancelToken(), monotonic()
        stream = provider.stream("Hi", cancel=token)
        threading.Timer(0.2, token.cancel).start()
        with pytest.raises(Cancelled):
            next(stream)
        assert monotonic() - began < 2


def test_failures_are_recorded_and_played(cassette: Callable[..., Any]) -> None:
    replies = [Fail(429, "slow down", retry_after=3), Cut("one two three", after=2)]
    with LocalServer(replies=replies) as server, cassette(), asked_of(server, "openai") as provider:
        with pytest.raises(RateLimitError):
            provider.ask("Hi")
        with pytest.raises(ChatError):
            provider.ask("Hello")  # what was cut off cannot be recorded
        url = server.url
    with (
        cassette("none"),
        get_provider("openai", base_url=url, retries=0) as provider,
        pytest.raises(RateLimitError, match="slow down") as caught,
    ):
        provider.ask("Hi")
    assert caught.value.retry_after == 3


def test_what_no_cassette_holds_is_said_by_vcrpy(cassette: Callable[..., Any]) -> None:
    with (
        cassette("none"),
        get_provider("openai", base_url="http://127.0.0.1:9", retries=0) as provider,
        pytest.raises(CannotOverwriteExistingCassetteException),
    ):
        provider.ask("Hi")


@pytest.mark.parametrize("name", [speech.name for speech in SPEECHES])
@pytest.mark.parametrize("left", ["close", "cancel"])
def test_a_reply_from_a_cassette_can_be_left(left: str, name: str, cassette: Callable[..., Any]) -> None:
    with LocalServer(replies=["one two three"]) as server, asked_of(server, name) as provider:
        url = server.url
        with cassette():
            provider.ask("Hi")
    began = monotonic()
    with cassette("none"), played_by(url, name) as provider:
        live = provider.open("Hi", deadline=20)
        assert next(live).startswith("one")
        live.cancel() if left == "cancel" else live.close()
        with suppress(Cancelled):  # what has arrived may still be read
            list(live)
        live.close()
    assert monotonic() - began < 2  # although there is no record of H2o's being stopped


def test_a_compressed_reply_is_recorded_and_played(wire: Wire, cassette: Callable[..., Any]) -> None:
    wire.on(*OPENAI.route, speak(OPENAI, ["Hel", "lo"], ChunkedGzip))
    for mode in ("once", "none"):
        with cassette(mode), get_provider("openai", base_url=wire.url, retries=0) as provider:
            assert provider.ask("Hi") == "Hello"
    assert len(wire.requests) == 1


def test_secrets_can_be_kept_out_of_a_cassette(cassette: Callable[..., Any], tmp_path: Path) -> None:
    how = {"filter_headers": ["Authorization", "token"], "filter_post_data_parameters": ["password"]}
    with LocalServer(password="hunter2-secret") as server, cassette(**how):
        for name in ("openai", "berlin"):
            with server.provider(name) as provider:
                provider.ask("Hi")
    written = (tmp_path / "cassette.yaml").read_text()
    assert "/api/login" in written
    assert "hunter2-secret" not in written


@pytest.mark.parametrize("end", ["read", "left"])
def test_an_adapter_may_answer_with_what_has_no_connection_to_give_back(end: str) -> None:
    """As requests, which asks whether there is a ``release_conn``: what vcrpy 8 plays has none."""

    class Canned(requests.adapters.BaseAdapter):
        def send(self, request: Any, **how: Any) -> requests.Response:
            answer = requests.Response()
            answer.status_code, answer.request, answer.url = 200, request, request.url
            answer.headers["Content-Type"] = OPENAI.kind
            answer.raw = io.BytesIO(b"".join(OPENAI.parts(["Hel", "lo"])))
            return answer

        def close(self) -> None:
            pass

    with requests.Session() as session:
        session.mount(URL, Canned())
        with get_provider("openai", base_url=URL, session=session, retries=0) as asked:
            if end == "read":
                assert asked.ask("Hi") == "Hello"
            else:
                stream = asked.stream("Hi")
                assert next(stream) == "Hel"
                stream.close()


def test_a_reply_of_responses_may_be_compressed() -> None:
    body = gzip.compress(b'data: {"choices": [{"delta": {"content": "Hello"}, "finish_reason": "stop"}]}\n\n')
    headers = {"Content-Encoding": "gzip", "Content-Type": "text/event-stream"}
    with responses.RequestsMock() as mock:
        mock.post(f"{URL}/v1/chat/completions", body=body, headers=headers)
        assert get_provider("openai", base_url=URL, retries=0).ask("Hi") == "Hello"
