"""A caller's own tests can mock this library with ``responses``, as any code over requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
import responses
from responses import matchers

from berlin_chat import APIConnectionError, Provider, RateLimitError, StreamInterrupted, Ylokh, get_provider
from wire import ACYTOO, BERLIN, H2O, SPEECHES, YLOKH, Speech

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
