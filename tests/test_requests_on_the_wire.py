"""What goes out is what PROTOCOLS.md says: method, path, headers and body, as a socket server sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

import pytest
import requests

import berlin_chat
from berlin_chat import Acytoo, Berlin, H2o, InvalidRequest, Provider, Ylokh, image
from wire import ACYTOO, BERLIN, H2O, YLOKH, Recorded, Speech, Wire, speak

Make = Callable[..., Provider]
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
]
FLAT = "System: Be brief.\nUser: Hi\nAssistant: Hello\nUser: Why?\nAssistant:"


def lines(recorded: Wire) -> list[str]:
    return [f"{request.method} {request.path}" for request in recorded.requests]


def headers(request: Recorded, *names: str) -> list[str | None]:
    return [request.header(name) for name in names]


def no_uuids(value: Any) -> Any:
    """The value with each uuid4 replaced by its kind."""
    if isinstance(value, dict):
        return {key: no_uuids(inner) for key, inner in value.items()}
    try:
        return f"uuid{UUID(value).version}" if isinstance(value, str) else value
    except ValueError:
        return value


def test_berlin_logs_in_and_then_asks(provider_for: Make, wire: Wire) -> None:
    provider_for(BERLIN, speak(BERLIN, ["x"])).ask(HISTORY, temperature=0.5)
    assert lines(wire) == ["POST /api/login", "POST /api/chat/completions"]
    login, question = wire.requests
    assert login.json == {"account": "me@example.org", "password": "hunter2-secret"}
    assert no_uuids(question.json) == {
        "prompt": FLAT,
        "parentMessageId": "uuid4",
        "options": {
            "model": "gpt-3.5-turbo",
            "temperature": 0.5,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "max_tokens": 1888,
        },
    }
    for request in wire.requests:
        assert headers(request, "Accept", "Content-Type", "Origin", "Referer", "Connection", "User-Agent") == [
            "*/*",
            "application/json",
            wire.url,
            wire.url + "/",
            "keep-alive",
            f"berlin-chat/{berlin_chat.__version__}",
        ]
        assert request.header("Accept-Language")
        assert request.header("Accept-Encoding")
    assert login.header("token") is None
    assert question.header("token") == "token-1"


def test_berlin_is_asked_for_the_likeliest_words_unless_told_otherwise(provider_for: Make, wire: Wire) -> None:
    provider_for(BERLIN, speak(BERLIN, ["x"])).ask("Hi")
    assert wire.requests[-1].json["options"]["temperature"] == 0


def test_ylokh_posts_the_history(provider_for: Make, wire: Wire) -> None:
    provider_for(YLOKH, speak(YLOKH, ["x"]), model="llama3", api_key="sk-1").ask(HISTORY, top_p=0.9, seed=7)
    assert lines(wire) == ["POST /v1/chat/completions"]
    (question,) = wire.requests
    assert question.json == {
        "messages": HISTORY,
        "model": "llama3",
        "temperature": 1,
        "presence_penalty": 0,
        "top_p": 0.9,
        "frequency_penalty": 0,
        "allow_fallback": True,
        "stream": True,
        "seed": 7,
    }
    assert headers(question, "Origin", "Referer", "Authorization", "Content-Type") == [
        wire.url,
        wire.url + "/",
        "Bearer sk-1",
        "application/json",
    ]


def test_ylokh_sends_no_authorization_without_a_key(provider_for: Make, wire: Wire) -> None:
    provider_for(YLOKH, speak(YLOKH, ["x"])).ask("Hi")
    assert wire.requests[0].header("Authorization") is None


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_ylokh_takes_a_base_url_with_and_without_v1(end: str, wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["x"]))
    with Ylokh(base_url=wire.url + end) as provider:
        assert provider.ask("Hi") == "x"
    assert wire.requests[0].header("Origin") == wire.url


def test_ylokh_stream_false_asks_for_the_whole_reply(provider_for: Make, wire: Wire) -> None:
    def whole(request: Recorded, connection: Any) -> None:
        connection.respond(200, {"choices": [{"message": {"content": "all of it"}}]})

    provider = provider_for(YLOKH, whole)
    assert list(provider.create_completion("m", "Hi", stream=False)) == ["all of it"]
    assert wire.requests[0].json["stream"] is False


def test_h2o_accepts_the_settings_once_and_opens_a_conversation_for_each_question(
    provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(H2O, speak(H2O, ["x"]), model="falcon")
    provider.ask(HISTORY, truncate=100)
    provider.ask("Hi")
    assert lines(wire) == [
        "POST /settings",
        "POST /conversation",
        "POST /conversation/c1",
        "DELETE /conversation/c1",
        "POST /conversation",
        "POST /conversation/c2",
        "DELETE /conversation/c2",
    ]
    form, creation, question = wire.requests[:3]
    assert parse_qsl(form.body.decode(), keep_blank_values=True) == [
        ("ethicsModalAccepted", "true"),
        ("shareConversationsWithModelAuthors", "true"),
        ("ethicsModalAcceptedAt", ""),
        ("activeModel", "falcon"),
        ("searchEnabled", "true"),
    ]
    assert form.header("Content-Type") == "application/x-www-form-urlencoded"
    assert creation.json == {"model": "falcon"}
    assert no_uuids(question.json) == {
        "inputs": FLAT,
        "parameters": {
            "temperature": 0.4,
            "truncate": 100,
            "max_new_tokens": 1024,
            "do_sample": True,
            "repetition_penalty": 1.2,
            "return_full_text": False,
        },
        "stream": True,
        "options": {
            "id": "uuid4",
            "response_id": "uuid4",
            "is_retry": False,
            "use_cache": False,
            "web_search_id": "",
        },
    }
    assert all(request.header("Referer") == wire.url + "/" for request in wire.requests)
    assert [request.header("Cookie") for request in wire.requests] == [None] + ["hf-chat=cookie-1"] * 6
    assert wire.requests[5].json["inputs"] == "Hi"
    assert wire.requests[5].json["parameters"]["truncate"] == 2048
    assert len(wire.connections) == 1


def test_h2o_takes_a_200_to_the_settings_too(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["x"]))
    wire.on("POST", "/settings", lambda request, connection: connection.respond(200, b"<html>a page</html>"))
    assert provider.ask("Hi") == "x"


def test_acytoo_posts_the_history_and_its_key(provider_for: Make, wire: Wire) -> None:
    provider_for(ACYTOO, speak(ACYTOO, ["x"]), model="another").ask(HISTORY)
    provider_for(ACYTOO, speak(ACYTOO, ["x"]), key="k-1", password="p-1").ask("Hi", temperature=1)
    assert lines(wire) == ["POST /api/completions"] * 2
    first, second = wire.requests
    assert first.json == {
        "key": "",
        "model": "gpt-3.5-turbo",
        "messages": HISTORY,
        "temperature": 0.5,
        "password": "",
    }
    assert second.json == {
        "key": "k-1",
        "model": "gpt-3.5-turbo",
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 1,
        "password": "p-1",
    }
    assert headers(first, "Accept", "Content-Type") == ["*/*", "application/json"]


def test_acytoos_messages_are_text(provider_for: Make, wire: Wire) -> None:
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    provider = provider_for(ACYTOO, speak(ACYTOO, ["x"]))
    provider.ask([{"role": "user", "content": parts, "name": "me"}])
    assert wire.requests[0].json["messages"] == [{"role": "user", "content": "two parts", "name": "me"}]
    with pytest.raises(InvalidRequest, match=r"text only.*'image_url'"):
        provider.stream([{"role": "user", "content": [image(b"GIF89a")]}])


@pytest.mark.parametrize("speech", [BERLIN, H2O, ACYTOO], ids=lambda speech: speech.name)
@pytest.mark.parametrize("key", ["tool_calls", "function_call", "refusal", "audio"])
@pytest.mark.parametrize("content", [None, "", "beside it"])
def test_protocols_of_text_refuse_what_a_message_holds_beside_it(
    content: str | None, key: str, speech: Speech, provider_for: Make
) -> None:
    provider = provider_for(speech, speak(speech, ["x"]))
    with pytest.raises(InvalidRequest, match=rf"text only.*'{key}'"):
        provider.stream([{"role": "assistant", "content": content, key: [{"id": "a"}]}])


def test_a_caller_may_replace_any_header_and_leave_one_out(speech: Speech, provider_for: Make, wire: Wire) -> None:
    own = {"user-agent": "mine/1", "REFERER": "http://elsewhere/", "X-Own": "1", "Accept-Encoding": None}
    provider_for(speech, speak(speech, ["x"]), headers=own).ask("Hi")
    for request in wire.requests:
        assert headers(request, "User-Agent", "Referer", "X-Own") == ["mine/1", "http://elsewhere/", "1"]
        assert sum(name.lower() == "referer" for name, _ in request.header_lines) == 1
        assert request.header("Accept-Encoding") in (None, "identity")


def test_a_prompt_beyond_ascii_arrives_as_utf8(speech: Speech, provider_for: Make, wire: Wire) -> None:
    provider_for(speech, speak(speech, ["x"])).ask("Почему? 🙂")
    (question,) = wire.asked(*speech.route)
    assert "Почему? 🙂".encode() in question.body


def test_what_was_given_is_not_modified(speech: Speech, provider_for: Make) -> None:
    messages = [dict(message) for message in HISTORY]
    provider_for(speech, speak(speech, ["x"])).ask(messages)
    assert messages == HISTORY


def test_the_hosted_address_of_ylokh_has_its_api_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def refuse(self: Any, request: Any, **kwargs: Any) -> Any:
        sent.append((request.url, request.headers["Origin"]))
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests.Session, "send", refuse)
    with pytest.raises(berlin_chat.APIConnectionError):
        Ylokh(base_url=Ylokh.url, retries=0).ask("Hi")
    assert sent == [("https://chatapi.ylokh.xyz/v1/chat/completions", "https://chat.ylokh.xyz")]


def test_the_class_attributes_are_those_of_the_seeds() -> None:
    facts = {
        cls.name: (cls.url, cls.working, cls.supports_message_history, cls.supports_gpt_35_turbo)
        for cls in (Berlin, Ylokh, H2o, Acytoo)
    }
    assert facts == {
        "berlin": ("https://ai.berlin4h.top", False, False, True),
        "ylokh": ("https://chat.ylokh.xyz", False, True, True),
        "h2o": ("https://gpt-gm.h2o.ai", False, False, False),
        "acytoo": ("https://chat.acytoo.com", False, True, True),
    }
    assert H2o.default_model == "h2oai/h2ogpt-gm-oasst1-en-2048-falcon-40b-v1"


def test_acytoo_refuses_options_that_its_protocol_does_not_have() -> None:
    with pytest.raises(InvalidRequest, match="no option 'max_tokens': it has temperature"):
        Acytoo(base_url="http://127.0.0.1:1").stream("Hi", max_tokens=3)


@pytest.mark.parametrize("size", [16_384, 50_000, 300_000])
def test_a_long_question_arrives_whole(size: int, provider_for: Make, wire: Wire) -> None:
    question = "".join(f"{number:08}" for number in range(size // 8))
    provider_for(YLOKH, speak(YLOKH, ["x"])).ask(question)
    assert wire.requests[-1].json["messages"][0]["content"] == question
