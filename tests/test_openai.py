"""``OpenAICompatible``: where it asks, what it sends, and what it makes of answers that are no reply."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from berlin_chat import (
    Acytoo,
    APIStatusError,
    APITimeoutError,
    Berlin,
    Cancelled,
    CancelToken,
    Fallback,
    H2o,
    InvalidRequest,
    OpenAICompatible,
    ProtocolError,
    Provider,
    StreamInterrupted,
    Ylokh,
    ask_many,
)
from test_cancelling import silent
from wire import OPENAI, SPEECHES, YLOKH, Connection, Recorded, Speech, Wire, speak

Make = Callable[..., Provider]
EVENT = {"Content-Type": "text/event-stream"}

# The address


@pytest.mark.parametrize("cls", [OpenAICompatible, Ylokh])
@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/chat/completions"),
        ("/v1beta/openai", "/v1beta/openai/chat/completions"),
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),
        ("/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("/v3", "/v3/chat/completions"),
        ("/api/v1", "/api/v1/chat/completions"),
        ("/api/v1/chat/completions", "/api/v1/chat/completions"),
        ("/openai/deployments/gpt-4o", "/openai/deployments/gpt-4o/chat/completions"),
    ],
)
def test_each_address_reaches_the_right_place(given: str, asked: str, cls: type[OpenAICompatible], wire: Wire) -> None:
    wire.on("POST", ".*", speak(OPENAI, ["Hi"]))
    with cls(base_url=wire.url + given) as provider, pickle.loads(pickle.dumps(provider)) as copy:
        provider.ask("Hi")
        copy.ask("Hi")
    assert [request.path for request in wire.requests] == [asked, asked]


def test_azures_version_stands_behind_each_address_and_its_key_in_a_header(wire: Wire) -> None:
    wire.on("POST", ".*", speak(OPENAI, ["Hi"]))
    wire.on("GET", ".*", lambda request, connection: connection.respond(200, {"data": []}))
    azure = {"params": {"api-version": "2024-10-21"}, "headers": {"api-key": "azure-sesame"}}
    with OpenAICompatible(f"{wire.url}/openai/deployments/d", **azure) as provider:  # type: ignore[arg-type]
        provider.ask("Hi")
        provider.models()
    place = "/openai/deployments/d"
    version = "?api-version=2024-10-21"
    assert [request.path for request in wire.requests] == [
        f"{place}/chat/completions{version}",
        f"{place}/models{version}",
    ]
    assert {request.header("api-key") for request in wire.requests} == {"azure-sesame"}


@pytest.mark.parametrize("name", ["api_key", "key", "code", "sig"])
def test_what_may_be_a_key_among_the_params_is_told_nowhere(
    name: str, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "berlin_chat")
    wire.on("POST", ".*", lambda request, connection: connection.respond(503))
    provider = OpenAICompatible(wire.url, params={name: "param-sesame", "api-version": "2024-10-21"}, retries=1)
    with provider, pytest.raises(APIStatusError) as caught:
        provider.ask("Hi")
    assert "param-sesame" not in f"{caught.value} {caught.value.url} {caplog.text}"
    assert "2024-10-21" in str(caught.value.url)


def test_keys_that_belong_to_another_server_are_not_read(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-servers")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    wire.on("POST", ".*", speak(OPENAI, ["Hi"]))
    assert OpenAICompatible().base_url is None
    OpenAICompatible(wire.url).ask("Hi")
    assert wire.requests[0].header("Authorization") is None
    monkeypatch.setenv("BERLIN_CHAT_API_KEY", "ours")
    monkeypatch.setenv("BERLIN_CHAT_OPENAI_URL", wire.url)
    OpenAICompatible().ask("Hi")
    assert wire.requests[1].header("Authorization") == "Bearer ours"


# What is sent


def test_the_body_has_four_keys_unless_the_caller_gives_more(wire: Wire) -> None:
    wire.on("POST", ".*", speak(OPENAI, ["Hi"]))
    messages = [{"role": "user", "content": "Hi"}]
    with OpenAICompatible(wire.url, model="m") as provider:
        provider.ask("Hi")
        provider.ask("Hi", temperature=0.5, response_format={"type": "json_object"})
        provider.ask("Hi", stream_options={"include_usage": False})
    usual = {"messages": messages, "model": "m", "stream": True, "stream_options": {"include_usage": True}}
    assert [request.json for request in wire.requests] == [
        usual,
        {**usual, "temperature": 0.5, "response_format": {"type": "json_object"}},
        {**usual, "stream_options": {"include_usage": False}},
    ]


def test_a_reply_that_is_not_streamed_is_asked_for_without_stream_options(wire: Wire) -> None:
    whole = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}
    wire.on("POST", ".*", lambda request, connection: connection.respond(200, whole))
    with OpenAICompatible(wire.url) as provider:
        assert provider.ask("Hi", stream=False) == "Hi"
        assert list(provider.create_completion("m", "Hi", stream=False)) == ["Hi"]
    assert ["stream_options" in request.json for request in wire.requests] == [False, False]
    assert [request.json["stream"] for request in wire.requests] == [False, False]


def strict(request: Recorded, connection: Connection) -> None:
    if unknown := request.json.keys() - {"messages", "model", "stream"}:
        message = f"Unrecognized request argument supplied: {unknown.pop()}"
        return connection.respond(400, {"error": {"message": message}})
    return speak(OPENAI, ["Hi"])(request, connection)


def test_a_server_that_refuses_stream_options_is_asked_without_them_from_then_on(wire: Wire) -> None:
    wire.on("POST", ".*", strict)
    with OpenAICompatible(wire.url) as provider:
        assert provider.ask("Hi") == "Hi"
        assert provider.ask("Hi") == "Hi"
    assert ["stream_options" in request.json for request in wire.requests] == [True, False, False]


@pytest.mark.parametrize(
    "words",
    [{"error": {"message": "Bad Request", "param": "stream_options"}}, {"detail": "Invalid field"}, {}],
    ids=str,
)
def test_the_words_of_the_refusal_do_not_matter(words: dict[str, Any], wire: Wire) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        if "stream_options" in request.json:
            return connection.respond(400, words)
        return speak(OPENAI, ["Hi"])(request, connection)

    wire.on("POST", ".*", script)
    with OpenAICompatible(wire.url) as provider:
        reply = provider.ask("Grüße")
    assert (reply, reply.attempts) == ("Hi", 2)
    assert wire.requests[1].json == {key: value for key, value in wire.requests[0].json.items() if key[:7] != "stream_"}


def test_a_400_for_another_reason_is_not_asked_again_once_they_were_taken(wire: Wire) -> None:
    statuses = [200, 400, 400]

    def script(request: Recorded, connection: Connection) -> None:
        if statuses.pop(0) == 400:
            return connection.respond(400, {"error": {"message": "the prompt is too long"}})
        return speak(OPENAI, ["Hi"])(request, connection)

    wire.on("POST", ".*", script)
    with OpenAICompatible(wire.url) as provider:
        provider.ask("Hi")
        for _ in range(2):
            with pytest.raises(APIStatusError, match="too long"):
                provider.ask("Hi")
    assert ["stream_options" in request.json for request in wire.requests] == [True, True, True]


def test_an_extra_body_is_looked_at_as_options_are(wire: Wire) -> None:
    wire.on(
        "POST", ".*", lambda request, connection: connection.respond(200, {"choices": [{"message": {"content": "a"}}]})
    )
    with OpenAICompatible(wire.url) as provider:
        with pytest.raises(InvalidRequest, match="ask_many"):
            provider.stream("Hi", extra_body={"n": 3})
        provider.ask("Hi", extra_body={"stream": False})
    assert [sorted(request.json) for request in wire.requests] == [["messages", "model", "stream"]]


def test_stream_options_of_the_callers_own_are_not_taken_away(wire: Wire) -> None:
    wire.on("POST", ".*", strict)
    with OpenAICompatible(wire.url) as provider, pytest.raises(APIStatusError, match="stream_options"):
        provider.ask("Hi", stream_options={"include_usage": False})
    assert len(wire.requests) == 1


@pytest.mark.parametrize("n", [2, 5])
def test_several_replies_in_one_are_refused_with_what_to_do_instead(n: int, wire: Wire) -> None:
    with OpenAICompatible(wire.url) as provider, pytest.raises(InvalidRequest, match="ask_many"):
        provider.stream("Hi", n=n)
    assert wire.requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        *({"end": "never"}, {"end": []}, {"max_event_bytes": 0}, {"max_event_bytes": "1"}, {"api_key": 5}),
        *({"params": "a=b"}, {"params": {"a": 5}}, {"params": [("a", "b")]}, {"params": {"a": "\ud800"}}),
    ],
    ids=ascii,
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        OpenAICompatible("http://127.0.0.1:9", **wrong)


# What all providers share: the settings of one question


def body_of(request: Recorded) -> dict[str, Any]:
    return {**request.json, **request.json.get("options", {}), **request.json.get("parameters", {})}


def test_an_option_of_none_leaves_its_key_out(speech: Speech, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(speech, speak(speech, ["Hi"]))
    provider.ask("Hi")
    provider.ask("Hi", temperature=None)
    usual, without = (body_of(request) for request in wire.asked(*speech.route))
    assert ("temperature" in usual) == (speech is not OPENAI)
    assert "temperature" not in without


def test_a_content_of_none_is_no_option_and_stays(wire: Wire) -> None:
    wire.on("POST", ".*", speak(OPENAI, ["Hi"]))
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with OpenAICompatible(wire.url) as provider:
        provider.ask(messages, content=None)
    assert wire.requests[0].json["messages"] == messages


def test_extra_body_comes_last(speech: Speech, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(speech, speak(speech, ["Hi"]))
    provider.ask("Hi", extra_body={"model": "of-extra-body", "further": {"a": None}})
    sent = wire.asked(*speech.route)[0].json
    assert (sent["model"], sent["further"]) == ("of-extra-body", {"a": None})


def test_an_extra_body_that_is_none_is_refused_before_anything_is_sent(
    speech: Speech, provider_for: Make, wire: Wire
) -> None:
    with pytest.raises(InvalidRequest, match="extra_body"):
        provider_for(speech, speak(speech, ["Hi"])).stream("Hi", extra_body="stream")
    assert wire.requests == []


def test_headers_of_one_question_go_with_all_its_requests_and_no_other(
    speech: Speech, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(speech, speak(speech, ["Hi"]), headers={"X-Both": "provider", "X-Kept": "provider"})
    provider.ask("Hi", headers={"X-Both": "question", "X-Own": "question", "X-Kept": None})
    first = len(wire.requests)
    provider.ask("Hi")
    for number, request in enumerate(wire.requests):
        found = [request.header(name) for name in ("X-Both", "X-Own", "X-Kept")]
        assert found == (["question", "question", None] if number < first else ["provider", None, "provider"])
        assert "question" not in request.body.decode()


def test_a_secret_in_the_headers_of_one_question_is_in_no_error(
    speech: Speech, provider_for: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def repeat(request: Recorded, connection: Connection) -> None:
        connection.respond(503, {"error": {"message": repr(request.header_lines)}})

    caplog.set_level("DEBUG")
    with pytest.raises(APIStatusError) as caught:
        provider_for(speech, repeat, retries=0).ask("Hi", headers={"X-Api-Key": "question-sesame"}, retries=1)
    assert "question-sesame" not in f"{caught.value!r} {caught.value} {caught.value.body} {caplog.text}"
    assert caught.value.attempts == 2


def test_the_timeout_of_one_question_is_its_own(speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, silent, timeout=60)
    with pytest.raises(APITimeoutError, match=r"0\.1 s"):
        provider.ask("Hi", timeout=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"timeout": "3"}, {"timeout": -1}, {"retries": -1}, {"retries": "2"}),
        *({"headers": {"A": "b\n"}}, {"headers": "A: b"}, {"headers": {1: "a"}}),
    ],
    ids=str,
)
def test_wrong_settings_of_a_question_are_refused_at_the_call(
    wrong: dict[str, Any], speech: Speech, provider_for: Make, wire: Wire
) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        provider_for(speech, speak(speech, ["Hi"])).stream("Hi", **wrong)
    assert wire.requests == []


def test_a_batch_and_a_group_hand_the_settings_of_a_question_down(wire: Wire) -> None:
    wire.on("POST", ".*", speak(OPENAI, ["Hi"]))
    group = Fallback([OpenAICompatible(wire.url)])
    how: dict[str, Any] = {"headers": {"X-Own": "1"}, "timeout": 5, "retries": 0, "extra_body": {"seed": 7}}
    assert [answer.error for answer in ask_many(group, ["a", "b"], **how)] == [None, None]
    assert [(request.header("X-Own"), request.json["seed"]) for request in wire.requests] == [("1", 7)] * 2


# The end of a reply


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def answering(*bodies: bytes) -> Callable[[Recorded, Connection], None]:
    left = list(bodies)

    def answer(request: Recorded, connection: Connection) -> None:
        connection.respond(200, left.pop(0) if len(left) > 1 else left[0], EVENT)

    return answer


def test_a_running_reply_that_the_server_breaks_off_is_no_reply(wire: Wire) -> None:
    """What llama-cpp-python does at its default settings when a new question comes."""
    wire.on("POST", ".*", answering(event({"role": "assistant"}) + DONE))
    for end in ("finish_reason", "done", "close"):
        with OpenAICompatible(wire.url, end=end, retries=0) as provider:
            answers = list(ask_many(provider, ["a", "b", "c"]))
        assert [type(answer.error) for answer in answers] == [StreamInterrupted] * 3, end


def test_a_reply_that_is_broken_off_before_its_first_piece_is_asked_again(wire: Wire) -> None:
    wire.on("POST", ".*", answering(DONE, event({"content": "Hi"}) + event({}, "stop") + DONE))
    with OpenAICompatible(wire.url) as provider:
        reply = provider.ask("Hi")
    assert (reply, reply.attempts, len(wire.requests)) == ("Hi", 2, 2)


def test_it_is_asked_as_often_as_retries_say_and_no_more(wire: Wire) -> None:
    wire.on("POST", ".*", answering(DONE))
    with OpenAICompatible(wire.url, retries=1) as provider, pytest.raises(StreamInterrupted) as caught:
        provider.ask("Hi")
    assert (caught.value.attempts, len(wire.requests)) == (2, 2)


def test_an_end_without_its_proof_names_the_setting_and_is_not_asked_again(wire: Wire) -> None:
    wire.on("POST", ".*", answering(event({"content": "Half a"}) + DONE))
    with OpenAICompatible(wire.url) as provider, pytest.raises(StreamInterrupted, match='end="done"') as caught:
        provider.ask("Hi")
    assert (caught.value.partial, len(wire.requests)) == ("Half a", 1)


@pytest.mark.parametrize(
    "error",
    [
        b'event: error\ndata: {"message": "GPU on fire"}\n\n',
        b'data: {"detail": "GPU on fire"}\n\n',
        b'data: {"code": 500, "message": "GPU on fire"}\n\n',
        b'data: {"type": "error", "message": "GPU on fire"}\n\n',
    ],
    ids=str,
)
@pytest.mark.parametrize("end", ["finish_reason", "done", "close"])
def test_an_error_in_the_middle_is_told_in_the_servers_words(error: bytes, end: str, wire: Wire) -> None:
    wire.on("POST", ".*", answering(event({"content": "Half a"}) + error + DONE))
    with OpenAICompatible(wire.url, end=end) as provider, pytest.raises(APIStatusError, match="GPU on fire") as caught:
        provider.ask("Hi")
    assert caught.value.partial == "Half a"


def test_retries_are_counted_over_all_that_may_fail(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("berlin_chat.http.retries.FIRST_WAIT", 0.01)
    answers = [DONE]

    def script(request: Recorded, connection: Connection) -> None:
        return connection.respond(200, answers.pop(), EVENT) if answers else connection.respond(503)

    wire.on("POST", ".*", script)
    with OpenAICompatible(wire.url, retries=2) as provider, pytest.raises(APIStatusError) as caught:
        provider.ask("Hi")
    assert (caught.value.attempts, len(wire.requests)) == (3, 3)


@pytest.mark.parametrize("stream", [True, False])
def test_calls_that_look_alike_are_not_merged(stream: bool, wire: Wire) -> None:
    first, second = ({"index": 0, "id": "", "function": {"name": "f", "arguments": f'{{"a":{n}}}'}} for n in (1, 2))
    part = {"tool_calls": [first, second, {"id": "c", "function": {"name": "g", "arguments": "{}"}}]}
    whole = json.dumps({"choices": [{"message": part, "finish_reason": "tool_calls"}]}).encode()
    wire.on("POST", ".*", answering(event(part) + event({}, "tool_calls") + DONE if stream else whole))
    with OpenAICompatible(wire.url) as provider:
        calls = provider.ask("Hi", stream=stream).tool_calls
    assert [(call.name, call.arguments) for call in calls] == [("f", '{"a":1}'), ("f", '{"a":2}'), ("g", "{}")]


def test_audio_images_and_calls_of_free_text_are_kept(wire: Wire) -> None:
    parts = [
        {"audio": {"id": "a1", "data": "UklG"}, "images": [{"n": 1}]},
        {"audio": {"id": "a1", "data": "Rg==", "expires_at": 5}, "images": [{"n": 2}]},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "custom", "custom": {"name": "run", "input": "ls"}}]},
        {"tool_calls": [{"index": 0, "custom": {"input": " -l"}}]},
    ]
    wire.on("POST", ".*", answering(b"".join(map(event, parts)) + event({}, "stop") + DONE))
    with OpenAICompatible(wire.url) as provider:
        reply = provider.ask("Hi")
    audio = {"id": "a1", "data": "UklGRg==", "expires_at": 5}
    assert reply.extra == {"audio": audio, "images": [{"n": 1}, {"n": 2}]}
    assert reply.message == {
        "role": "assistant",
        "content": None,
        "audio": {"id": "a1"},
        "images": [{"n": 1}, {"n": 2}],
        "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "run", "input": "ls -l"}}],
    }


@pytest.mark.parametrize("odd", [5, [1], "abc", {"a": [1]}, True, [{"index": [1], "id": 5, "function": 7}]], ids=str)
def test_values_of_odd_types_are_no_bug_of_ours(odd: Any, wire: Wire) -> None:
    names = ("tool_calls", "annotations", "refusal", "reasoning", "function_call", "audio")
    beside = {"usage": odd, "citations": odd, "id": odd, "model": odd, "x_groq": odd}
    body = event({"content": "Hi"}) + b"data: " + json.dumps({"choices": [], **beside}).encode() + b"\n\n"
    body += event(dict.fromkeys(names, odd)) + event({}, "stop")
    wire.on("POST", ".*", answering(body))
    with OpenAICompatible(wire.url) as provider:
        reply = provider.ask("Hi")
    assert isinstance(reply.usage, (dict, type(None)))
    assert isinstance(reply.citations, (list, type(None)))
    assert isinstance(reply.id, (str, type(None)))


# Models


def test_the_names_of_the_models_are_listed(wire: Wire) -> None:
    found = {"object": "list", "data": [{"id": "llama3", "object": "model"}, {"id": "qwen"}]}
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, found))
    with OpenAICompatible(wire.url, api_key="models-sesame") as provider:
        assert provider.models() == ["llama3", "qwen"]
    assert wire.requests[0].header("Authorization") == "Bearer models-sesame"


@pytest.mark.parametrize("answer", [{}, {"data": 5}, {"data": [5]}, {"data": [{"name": "a"}]}], ids=str)
def test_an_answer_that_lists_no_models_is_a_protocol_error(answer: dict[str, Any], wire: Wire) -> None:
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, answer))
    with OpenAICompatible(wire.url) as provider, pytest.raises(ProtocolError) as caught:
        provider.models()
    assert caught.value.provider == "openai"


@pytest.mark.parametrize("cls", [Berlin, H2o, Acytoo])
def test_a_protocol_without_a_list_of_models_says_so(cls: type[Provider], wire: Wire) -> None:
    with cls(base_url=wire.url) as provider, pytest.raises(InvalidRequest, match="no list of models"):
        provider.models()
    assert wire.requests == []


def test_every_provider_of_the_table_takes_part() -> None:
    assert {OPENAI.name, YLOKH.name} <= {speech.name for speech in SPEECHES}


def test_a_list_of_models_keeps_a_deadline_and_a_token(wire: Wire) -> None:
    wire.on("GET", "/v1/models", silent)
    token = CancelToken()
    with OpenAICompatible(wire.url) as provider:
        with pytest.raises(APITimeoutError):
            provider.models(deadline=0.1)
        threading.Timer(0.1, token.cancel).start()
        with pytest.raises(Cancelled):
            provider.models(cancel=token)


def test_a_list_of_models_is_asked_for_again_where_it_may_help(wire: Wire) -> None:
    answers = [503, 200]
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(answers.pop(0), {"data": []}))
    with OpenAICompatible(wire.url) as provider:
        assert provider.models() == []
    with OpenAICompatible(wire.url) as provider, pytest.raises(InvalidRequest, match="deadline"):
        provider.models(deadline=-1)


def test_a_group_lists_the_models_of_all_its_providers(wire: Wire) -> None:
    found = {"data": [{"id": "llama3"}, {"id": "qwen"}]}
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, found))
    with Fallback([OpenAICompatible(wire.url), OpenAICompatible(wire.url)]) as group:
        assert group.models() == ["llama3", "qwen"]


# What only mutants had shown


@pytest.mark.parametrize("cls", [OpenAICompatible, Ylokh])
@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/chat/completions"])
def test_an_address_is_shown_without_what_every_server_has(path: str, cls: type[OpenAICompatible]) -> None:
    assert cls(f"http://127.0.0.1:9{path}").base_url == "http://127.0.0.1:9"


def test_an_event_of_one_byte_may_be_the_longest() -> None:
    assert OpenAICompatible("http://127.0.0.1:9", max_event_bytes=1)


def test_only_one_reply_may_be_asked_for(wire: Wire) -> None:
    wire.on("POST", ".*", speak(OPENAI, ["Hi"]))
    with OpenAICompatible(wire.url) as provider:
        assert provider.ask("Hi", n=1) == "Hi"
        for number in (0, 2):
            with pytest.raises(InvalidRequest, match="ask_many"):
                provider.ask("Hi", n=number)
    assert [request.json["n"] for request in wire.requests] == [1]


def test_an_unstreamed_question_lacks_nothing_but_stream_options(wire: Wire) -> None:
    whole = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}
    wire.on("POST", ".*", lambda request, connection: connection.respond(200, whole))
    with OpenAICompatible(wire.url, model="m") as provider:
        assert provider.ask("Hi", stream=False, temperature=0.5, user="me", seed=1) == "Hi"
    sent = wire.requests[0].json
    assert sent.keys() == {"messages", "model", "stream", "temperature", "user", "seed"}


def test_a_list_of_models_that_is_none_came_with_success(wire: Wire) -> None:
    wire.on("GET", ".*", lambda request, connection: connection.respond(200, {"data": [{"name": "m"}]}))
    with OpenAICompatible(wire.url) as provider, pytest.raises(ProtocolError) as caught:
        provider.models()
    assert caught.value.status == 200


def test_a_question_without_stream_options_says_nothing_of_whether_the_server_takes_them(wire: Wire) -> None:
    whole = {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}

    def strict(request: Recorded, connection: Connection) -> None:
        if "stream_options" in request.json:
            connection.respond(400, {"error": {"message": "unknown field stream_options"}})
        elif request.json["stream"]:
            speak(OPENAI, ["streamed"])(request, connection)
        else:
            connection.respond(200, whole)

    wire.on("POST", ".*", strict)
    with OpenAICompatible(wire.url, retries=0) as provider:
        assert provider.ask("Hi", stream=False) == "whole"
        assert [provider.ask("Hi"), provider.ask("Hi")] == ["streamed"] * 2
    assert ["stream_options" in request.json for request in wire.requests] == [False, True, False, False]
