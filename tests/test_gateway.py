"""The embedded server in front of a model server: what OpenAI's clients ask for arrives, and what comes back too.

Whatever an upstream or a client's protocol has no word for is refused with one sentence, never left out silently.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from berlin_chat import (
    Acytoo,
    APIStatusError,
    Fallback,
    OpenAICompatible,
    Provider,
    Race,
    Reply,
    StreamInterrupted,
    Ylokh,
    image,
)
from berlin_chat.reply import Facts
from berlin_chat.server import LocalServer, backend
from scripted import USAGE, call, chunk, end, questions, replies, text, two_calls
from wire import OPENAI, PATIENCE, Connection, Recorded, Wire

Serve = Callable[..., LocalServer]
Use = Callable[[Provider], Provider]

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
HI = [{"role": "user", "content": "Hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wie ist das Wetter? ☀",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            "strict": True,
        },
    }
]
PICTURE = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image(PNG)]}
ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.fixture
def use() -> Iterator[Use]:
    """Closes providers at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, which are closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **config: stack.enter_context(LocalServer(**config))


@pytest.fixture
def upstream(wire: Wire, use: Use) -> Provider:
    """A provider that asks the model server at ``wire``."""
    return use(OpenAICompatible(wire.url, proxy="", retries=0))


@pytest.fixture
def gateway(upstream: Provider, serve: Serve) -> LocalServer:
    """An embedded server in front of the model server."""
    return serve(upstream=upstream)


def post(server: LocalServer, messages: Any = HI, **options: Any) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        body = {"model": "m-1", "messages": messages, **options}
        return session.post(f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE)


def get(server: LocalServer, path: str, method: str = "GET", key: str = "") -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return session.request(method, server.url + path, headers=headers, timeout=PATIENCE)


def chunks_of(response: requests.Response) -> list[Any]:
    """The chunks of a stream that has ended properly."""
    assert response.status_code == 200, response.text
    datas = re.findall(r"data: (.*)\n\n", response.content.decode())
    assert datas.pop() == "[DONE]"
    return [json.loads(data) for data in datas]


def refusal(response: requests.Response) -> str:
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error"), response.text
    assert "\n" not in error["message"]
    return str(error["message"])


# The question


@pytest.mark.parametrize("way", ["directly", "through the gateway", "through a group behind the gateway"])
def test_a_tool_round_trip_and_an_image_arrive_as_they_were_said(
    way: str, upstream: Provider, wire: Wire, serve: Serve, use: Use
) -> None:
    replies(wire, two_calls(), text("Sunny", " there"), text("A square"))
    provider = upstream
    if way != "directly":
        behind = use(Fallback([upstream])) if "group" in way else upstream
        provider = use(serve(upstream=behind).provider("openai", retries=0))
    options = {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": True}

    system = {"role": "developer", "content": "Be brief.", "name": "house"}
    messages = [system, {"role": "user", "content": "Weather in Berlin and Osló?"}]
    first = provider.ask(messages, model="m-1", **options)
    assert [call.parsed() for call in first.tool_calls] == [{"city": "Berlin"}, {"city": "Osló 🙂"}]
    messages.append(first.message)
    for one in first.tool_calls:
        messages.append({"role": "tool", "tool_call_id": one.id, "content": '{"degrees": 21.50}'})
    second = provider.ask(messages, model="m-1", **options)
    assert second == "Sunny there"
    messages.append(second.message)
    assert provider.ask([*messages, PICTURE], model="m-1", detail={"x": None}) == "A square"

    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Berlin"}'}},
            {"id": "call_b", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Osló 🙂"}'}},
        ],
    }
    said = [
        *(system, {"role": "user", "content": "Weather in Berlin and Osló?"}, called),
        {"role": "tool", "tool_call_id": "call_a", "content": '{"degrees": 21.50}'},
        {"role": "tool", "tool_call_id": "call_b", "content": '{"degrees": 21.50}'},
        {"role": "assistant", "content": "Sunny there"},
        PICTURE,
    ]
    beside = {"model": "m-1", "stream": True, "stream_options": {"include_usage": True}}
    assert questions(wire) == [
        {**beside, **options, "messages": said[:2]},
        {**beside, **options, "messages": said[:5]},
        {**beside, "messages": said, "detail": {"x": None}},
    ]
    assert json.dumps(said, ensure_ascii=False).encode() in wire.asked(*OPENAI.route)[2].body


OPTIONS = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "logprobs": True,
    "top_logprobs": 3,
    "reasoning_effort": "low",
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "logit_bias": {"5": -100},
    "stop": ["\n"],
    "seed": 1,
    "guided_choice": ["yes", "no"],
    "a_field_of_this_server_only": [None, 1.5],
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_all_options_reach_a_model_server(stream: bool, gateway: LocalServer, wire: Wire) -> None:
    replies(wire, text("fine"))
    parts = [
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "of_this_server_only", "x": 1},
    ]
    assert post(gateway, [{"role": "user", "content": parts}], stream=stream, **OPTIONS).status_code == 200
    [asked] = questions(wire)
    assert {name: asked.get(name) for name in OPTIONS} == OPTIONS
    assert asked["messages"] == [{"role": "user", "content": parts}]


@pytest.mark.parametrize("name", sorted(backend.OURS - {"messages", "model"}))
def test_a_client_sets_no_argument_of_ours(name: str, gateway: LocalServer, wire: Wire) -> None:
    assert f"there is no option {name!r}" in refusal(post(gateway, **{name: {"Authorization": "Bearer stolen"}}))
    assert wire.requests == []


# The reply

LOGPROBS = [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in ("Sun", "ny")]
NOTE = {"type": "url_citation", "url_citation": {"url": "http://x", "start_index": 0, "end_index": 5}}
EVERYTHING = [
    chunk({"role": "assistant", "content": "", "reasoning_content": "Let me"}),
    chunk({"reasoning_content": " think."}),
    chunk({"content": "Sun"}, logprobs={"content": LOGPROBS[:1], "refusal": None}),
    chunk({"content": "ny"}, logprobs={"content": LOGPROBS[1:], "refusal": None}),
    call(0, "call_a", "weather", '{"city": '),
    call(0, arguments='"Berlin"}'),
    chunk({"refusal": "But I"}),
    chunk({"refusal": " cannot."}),
    chunk({"annotations": [NOTE]}, citations=["http://x"]),
    chunk({"audio": {"id": "audio_1", "data": "UklG", "transcript": "Sun"}}),
    chunk({"audio": {"id": "audio_1", "data": "Rg==", "transcript": "ny"}, "images": [{"type": "image_url"}]}),
    end("length"),
]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_nothing_of_a_reply_is_lost_on_its_way_through_the_gateway(
    stream: bool, upstream: Provider, gateway: LocalServer, wire: Wire, use: Use
) -> None:
    replies(wire, EVERYTHING, EVERYTHING)
    direct = upstream.ask("Hi")
    through = use(gateway.provider("openai", model="m-1")).ask("Hi", stream=stream)
    assert (through, direct) == ("Sunny", "Sunny")
    facts = [name for name in Facts.__annotations__ if name != "id"]
    assert {name: getattr(through, name) for name in facts} == {name: getattr(direct, name) for name in facts}
    assert all(getattr(direct, name) for name in facts), "this reply does not hold everything"


def test_events_come_in_their_order_each_when_it_has_arrived(gateway: LocalServer, wire: Wire, use: Use) -> None:
    replies(wire, EVERYTHING)
    with use(gateway.provider("openai")).open("Hi") as live:
        events = [(event.kind, event.text) for event in live.events()]
    assert events == [
        *(("reasoning", "Let me"), ("reasoning", " think."), ("text", "Sun"), ("text", "ny")),
        *(("tool_call", '{"city": '), ("tool_call", '"Berlin"}'), ("refusal", "But I"), ("refusal", " cannot.")),
    ]


def test_each_event_is_sent_before_the_next_is_there(gateway: LocalServer, wire: Wire, use: Use) -> None:
    script = iter([*two_calls()[:-1], chunk({"reasoning_content": "hm"})])

    def one_by_one(request: Recorded, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        connection.send(next(script) + next(script))  # the first of them holds nothing
        connection.wait_until_client_closes()

    wire.on("POST", "/v1/chat/completions", one_by_one)
    with use(gateway.provider("openai")).open("Hi") as live:
        places = []
        for event in live.events():
            places.append(event.place)
            if (more := next(script, None)) is None:
                break
            wire.connections[0].send(more)
    assert places == [0, 0, 1, 0, 1, None]


def test_the_deltas_of_a_tool_call_are_openais(gateway: LocalServer, wire: Wire) -> None:
    replies(wire, two_calls())
    chunks = chunks_of(post(gateway, stream=True, tools=TOOLS))
    deltas = [one["choices"][0]["delta"] for one in chunks]
    begun = {"type": "function", "function": {"arguments": "", "name": "weather"}}
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"tool_calls": [{"index": 0, "id": "call_a", **begun}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "call_b", **begun, "function": {"arguments": '{"city"', "name": "weather"}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Berlin"}'}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": ': "Osló 🙂"}'}}]},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_what_a_server_says_of_a_call_beside_it_is_passed_on_once(gateway: LocalServer, wire: Wire, use: Use) -> None:
    extra = {"google": {"thought_signature": "c2ln"}}
    delta = {"index": 0, "id": "a", "function": {"name": "we", "arguments": "{"}, "extra_content": extra}
    script = [
        chunk({"tool_calls": [delta]}),
        chunk({"tool_calls": [{"index": 0, "function": {"name": "ather", "arguments": "}"}}]}),
        end("tool_calls"),
    ]
    replies(wire, script, script)
    streamed = chunks_of(post(gateway, stream=True))[1:3]
    [first, second] = [one["choices"][0]["delta"]["tool_calls"][0] for one in streamed]
    assert (first["extra_content"], first["function"]["name"]) == (extra, "we")
    assert second == {"index": 0, "function": {"name": "ather", "arguments": "}"}}
    [made] = post(gateway).json()["choices"][0]["message"]["tool_calls"]
    function = {"name": "weather", "arguments": "{}"}
    assert made == {"id": "a", "type": "function", "function": function, "extra_content": extra}


# The end


def test_a_cut_reply_is_an_error_although_done_came(gateway: LocalServer, wire: Wire, use: Use) -> None:
    """llama-cpp-python breaks off a running reply when a new question comes, and then says [DONE] all the same."""
    cut = [chunk({"content": "Once upon"}), b"data: [DONE]\n\n"]
    replies(wire, cut, cut)
    streamed = post(gateway, stream=True).text
    assert "finish_reason" in streamed
    assert '"finish_reason": "' not in streamed
    assert "data: [DONE]" not in streamed
    assert "without a finish_reason" in json.loads(streamed.split("data: ")[-1])["error"]["message"]
    assert post(gateway).status_code == 502


def test_an_upstream_that_may_end_with_done_alone_gets_no_finish_reason_made_up(
    wire: Wire, serve: Serve, use: Use
) -> None:
    server = serve(upstream=use(Ylokh(wire.url, proxy="")))
    replies(wire, *[[chunk({"content": "Once upon"}), b"data: [DONE]\n\n"]] * 4)
    assert [one["choices"][0]["finish_reason"] for one in chunks_of(post(server, stream=True))] == [None] * 3
    assert post(server).json()["choices"][0]["finish_reason"] is None
    assert use(server.provider("ylokh")).ask("Hi") == "Once upon"
    with pytest.raises(StreamInterrupted, match="finish_reason"):
        use(server.provider("openai", retries=0)).ask("Hi")


@pytest.mark.parametrize("name", ["acytoo", "berlin", "h2o"])
def test_the_end_of_a_protocol_without_finish_reasons_is_stop(name: str, serve: Serve, use: Use) -> None:
    server = serve(upstream=use(serve().provider(name)))
    assert chunks_of(post(server, stream=True))[-1]["choices"][0]["finish_reason"] == "stop"
    assert post(server).json()["choices"][0]["finish_reason"] == "stop"


# Usage


def test_usage_is_an_object_of_zeros_where_nobody_counted(serve: Serve, use: Use) -> None:
    for server in (serve(), serve(upstream=use(serve().provider("acytoo")))):
        assert post(server).json()["usage"] == ZEROS
        chunks = chunks_of(post(server, stream=True, stream_options={"include_usage": True}))
        assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], ZEROS)


def test_the_model_servers_usage_is_told_with_all_that_is_in_it(gateway: LocalServer, wire: Wire) -> None:
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 3}, "cost": None, "total_tokens": None}
    script = [chunk({"content": "a"}), chunk({}, "stop"), chunk({}, usage=usage), b"data: [DONE]\n\n"]
    replies(wire, script)
    assert post(gateway).json()["usage"] == {**usage, "total_tokens": 0}


# Several choices


def test_n_asks_so_often_and_gives_as_many_choices(gateway: LocalServer, wire: Wire) -> None:
    replies(wire, text("one"), two_calls(), text("three"))
    body = post(gateway, n=3, temperature=0.5).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in body["choices"]] == ["one", None, "three"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "tool_calls", "stop"]
    assert body["usage"] == {name: count * 3 for name, count in USAGE.items()}
    first, *others = questions(wire)
    assert others == [first, first]
    assert "n" not in first


def test_n_streams_one_choice_after_the_other(gateway: LocalServer, wire: Wire) -> None:
    replies(wire, text("one", " 1"), two_calls())
    *chunks, last = chunks_of(post(gateway, n=2, stream=True, stream_options={"include_usage": True}))
    assert len({one["id"] for one in chunks}) == 1
    choices = [one["choices"][0] for one in chunks]
    assert [choice["index"] for choice in choices] == [0] * 4 + [1] * 7
    assert [choice["delta"].get("role") for choice in choices].count("assistant") == 2
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop", "tool_calls"]
    assert last["usage"]["total_tokens"] == 2 * USAGE["total_tokens"]


def test_an_error_in_a_later_choice_is_told(gateway: LocalServer, wire: Wire) -> None:
    failed = [b'data: {"error": {"message": "out of memory"}}\n\n']
    replies(wire, text("one"), failed, text("one"), failed)
    streamed = post(gateway, n=2, stream=True).text
    assert "out of memory" in streamed
    assert "[DONE]" not in streamed
    assert post(gateway, n=2).status_code == 502


def test_every_upstream_can_be_asked_several_times(serve: Serve, use: Use) -> None:
    for server in (serve(), serve(upstream=use(serve().provider("acytoo")))):
        assert len({choice["message"]["content"] for choice in post(server, n=2).json()["choices"]}) == 1


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", [], 129, 10**9])
def test_a_wrong_n_is_refused(n: Any, gateway: LocalServer, wire: Wire) -> None:
    assert refusal(post(gateway, n=n)) == "n must be a whole number from 1 to 128"
    assert wire.requests == []


# What an upstream or a client's protocol has no word for

BEYOND = {
    "tools": TOOLS,
    "functions": [{"name": "weather"}],
    "logprobs": True,
    "modalities": ["text", "audio"],
}
FORMS = {"response_format": {"type": "json_object"}, "guided_json": {"type": "object"}}
NOTHING = {
    "tools": [],
    "functions": [],
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "response_format": {"type": "text"},
    "tool_choice": "none",
}


class Says:
    """Answers in text, as an upstream that is no provider does, and remembers its options."""

    options: dict[str, Any]

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        self.options = options
        yield "fine"


def textual(kind: str, serve: Serve, use: Use) -> LocalServer:
    """A server that answers in text only."""
    if kind == "echo":
        return serve()
    if kind == "an object":
        return serve(upstream=Says())
    acytoo = use(serve().provider("acytoo"))
    return serve(upstream={"acytoo": acytoo, "a group": use(Race([acytoo, acytoo]))}[kind])


every_text = pytest.mark.parametrize("kind", ["echo", "an object", "acytoo", "a group"])


@every_text
@pytest.mark.parametrize("option", BEYOND)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_what_is_more_than_text_is_refused_where_only_text_can_be_answered(
    option: str, kind: str, stream: bool, serve: Serve, use: Use
) -> None:
    assert repr(option) in refusal(post(textual(kind, serve, use), stream=stream, **{option: BEYOND[option]}))


@every_text
@pytest.mark.parametrize(
    "message",
    [
        PICTURE,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        {"role": "assistant", "content": "I look", "tool_calls": [{"id": "a"}]},
    ],
    ids=["image", "call", "call beside text"],
)
def test_messages_of_more_than_text_are_refused_where_only_text_can_be_read(
    message: Any, kind: str, serve: Serve, use: Use
) -> None:
    assert "text only" in refusal(post(textual(kind, serve, use), [message]))


@pytest.mark.parametrize("option", FORMS)
@pytest.mark.parametrize("kind", ["echo", "acytoo", "a group"])
def test_a_form_of_the_answer_is_refused_where_nobody_can_give_it(
    option: str, kind: str, serve: Serve, use: Use
) -> None:
    assert repr(option) in refusal(post(textual(kind, serve, use), **{option: FORMS[option]}))


def test_a_form_of_the_answer_is_asked_of_an_object_with_stream(serve: Serve) -> None:
    upstream = Says()
    assert post(serve(upstream=upstream), **FORMS).status_code == 200
    assert upstream.options == FORMS


@every_text
def test_options_that_ask_for_nothing_are_no_reason_to_refuse(kind: str, serve: Serve, use: Use) -> None:
    for nothing in (NOTHING, dict.fromkeys(NOTHING)):
        assert post(textual(kind, serve, use), **nothing).status_code == 200


def test_text_parts_are_joined_where_there_is_only_text(serve: Serve, use: Use) -> None:
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    server = serve(upstream=use(serve().provider("acytoo")))
    answer = post(server, [{"role": "user", "content": parts}]).json()
    assert answer["choices"][0]["message"]["content"].endswith("You said: two parts")


def test_options_that_the_upstream_does_not_have_are_left_out_with_one_line_in_the_log(
    serve: Serve, use: Use, caplog: pytest.LogCaptureFixture
) -> None:
    says = Says()
    acytoo = use(serve(upstream=says).provider("acytoo"))
    server = serve(upstream=acytoo)
    with caplog.at_level(logging.INFO, "berlin_chat.server"):
        assert post(server, temperature=0.25, top_p=1, **{"seed\n": 7}).status_code == 200
    assert says.options == {"temperature": 0.25}
    [message] = [record.getMessage() for record in caplog.records if record.name == "berlin_chat.server"]
    assert message == f"left out what {acytoo!r} does not have: 'seed\\n', 'top_p'"


@pytest.mark.parametrize("name", ["openai", "ylokh", "berlin", "h2o", "acytoo"])
def test_acytoo_answers_in_all_protocols(name: str, serve: Serve, use: Use) -> None:
    server = serve(upstream=use(serve().provider("acytoo")))
    assert use(server.provider(name)).ask("Who is there?").endswith("You said: Who is there?")


def test_a_group_asks_the_provider_that_has_what_is_wanted(
    upstream: Provider, wire: Wire, serve: Serve, use: Use
) -> None:
    replies(wire, two_calls())
    server = serve(upstream=use(Fallback([serve().provider("acytoo"), upstream])))
    body = post(server, tools=TOOLS, tool_choice="required").json()
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    assert (questions(wire)[0]["tools"], questions(wire)[0]["tool_choice"]) == (TOOLS, "required")


def test_acytoos_server_is_asked_without_a_temperature(serve: Serve, use: Use) -> None:
    says = Says()
    assert use(serve(upstream=says).provider("acytoo")).ask("Hi", temperature=None) == "fine"
    assert says.options == {}


def in_text_protocols(server: LocalServer, **options: Any) -> dict[str, requests.Response]:
    """A question in each of the protocols of text, with options of OpenAI's."""
    ids = {"parentMessageId": "9ad90354-5da8-4a3d-9d3b-5e4b8c1f8e11"}
    asked = {"id": ids["parentMessageId"], "response_id": ids["parentMessageId"]}
    settings = {"ethicsModalAccepted": "true", "ethicsModalAcceptedAt": "", "activeModel": "m"}
    settings.update(shareConversationsWithModelAuthors="true", searchEnabled="true")
    with requests.Session() as session:
        session.trust_env = False
        login = {"account": "me", "password": "any"}
        token = session.post(f"{server.url}/api/login", json=login).json()["data"]["token"]
        session.post(f"{server.url}/settings", data=settings, allow_redirects=False)
        made = session.post(f"{server.url}/conversation", json={"model": "m"}).json()["conversationId"]
        prompt = {"prompt": "Hi", **ids, "options": {"model": "m", **options}}
        inputs = {"inputs": "Hi", "parameters": options, "stream": True, "options": asked}
        return {
            "berlin": session.post(f"{server.url}/api/chat/completions", json=prompt, headers={"token": token}),
            "h2o": session.post(f"{server.url}/conversation/{made}", json=inputs),
        }


@pytest.mark.parametrize("option", [*BEYOND, "n"])
def test_a_client_whose_protocol_has_only_text_cannot_ask_for_more(
    option: str, gateway: LocalServer, wire: Wire
) -> None:
    for response in in_text_protocols(gateway, **{**BEYOND, "n": 2, option: {**BEYOND, "n": 2}[option]}).values():
        assert response.status_code == 400
        assert "asks for more than one text" in response.text
    assert wire.requests == []


def test_an_image_in_acytoos_protocol_is_refused(gateway: LocalServer, wire: Wire) -> None:
    question = {"key": "", "password": "", "model": "gpt-3.5-turbo", "messages": [PICTURE]}
    with requests.Session() as session:
        session.trust_env = False
        response = session.post(f"{gateway.url}/api/completions", json=question)
    assert (response.status_code, wire.requests) == (400, [])
    assert "text only" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["berlin", "h2o", "acytoo"])
def test_protocols_of_text_say_a_refusal_in_text(name: str, gateway: LocalServer, wire: Wire, use: Use) -> None:
    replies(wire, [chunk({"reasoning_content": "Hm."}), chunk({"refusal": "I can"}), chunk({"refusal": "not."}), end()])
    assert use(gateway.provider(name)).ask("Hi") == "I cannot."


@pytest.mark.parametrize("name", ["berlin", "h2o", "acytoo"])
def test_a_call_of_a_tool_that_nobody_offered_is_no_empty_reply(
    name: str, gateway: LocalServer, wire: Wire, use: Use
) -> None:
    replies(wire, two_calls())
    with pytest.raises(StreamInterrupted if name == "acytoo" else APIStatusError):
        use(gateway.provider(name, retries=0)).ask("Hi")


# Models


def listing(*names: str) -> Callable[[Recorded, Connection], None]:
    """A script that lists models."""
    data = [{"id": name, "object": "model"} for name in names]
    return lambda request, connection: connection.respond(200, {"object": "list", "data": data})


def test_the_models_of_the_upstream_are_listed_and_found(wire: Wire, serve: Serve, use: Use) -> None:
    wire.on("GET", "/v1/models", listing("llama3", "org/qwen:7b"))
    server = serve(upstream=use(OpenAICompatible(wire.url, model="llama3", proxy="")))
    listed = get(server, "/v1/models").json()["data"]
    assert [model["id"] for model in listed][:3] == ["llama3", "org/qwen:7b", "gpt-3.5-turbo"]
    for path in ("org/qwen:7b", "org%2Fqwen:7b", "org%2fqwen%3A7b"):
        assert get(server, f"/v1/models/{path}").json() == listed[1]


def test_the_models_of_a_group_are_those_of_its_providers(
    upstream: Provider, wire: Wire, serve: Serve, use: Use
) -> None:
    wire.on("GET", "/v1/models", listing("llama3"))
    server = serve(upstream=use(Fallback([Acytoo(wire.url, proxy=""), upstream])))
    listed = get(server, "/v1/models").json()["data"]
    assert [model["id"] for model in listed][:2] == ["llama3", "gpt-3.5-turbo"]


def test_an_unknown_model_is_a_404_in_openais_form(serve: Serve) -> None:
    response = get(serve(), "/v1/models/llama3")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "there is no model 'llama3'"


def test_a_model_wants_the_key(serve: Serve) -> None:
    server = serve(password="secret")
    assert get(server, "/v1/models/echo").status_code == 401
    assert get(server, "/v1/models/echo", key="secret").json()["id"] == "echo"


def test_without_a_list_upstream_there_is_that_of_the_server(wire: Wire, serve: Serve, use: Use) -> None:
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(503))
    named = [
        use(OpenAICompatible(wire.url, model="llama3", proxy="")),
        use(OpenAICompatible(model="llama3")),
        use(Acytoo(wire.url, model="llama3", proxy="")),
    ]
    for one in named:
        assert get(serve(upstream=one), "/v1/models").json()["data"][0]["id"] == "llama3"
    assert len(wire.requests) == 1, "a list is worth no second try"


def test_an_upstream_that_never_lists_its_models_is_not_waited_for(
    wire: Wire, serve: Serve, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "LIST_PATIENCE", 0.2)
    wire.on("GET", "/v1/models", lambda request, connection: connection.wait_until_client_closes())
    server = serve(upstream=use(OpenAICompatible(wire.url, model="llama3", proxy="")))
    assert get(server, "/v1/models").json()["data"][0]["id"] == "llama3"
    assert wire.connections[0].gone.wait(PATIENCE)


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/v1/models", 200), ("/v1/models/echo", 200), ("/x", 404)])
def test_head_is_answered_as_get_without_the_body(path: str, status: int, serve: Serve) -> None:
    server = serve()
    head, whole = get(server, path, "HEAD"), get(server, path)
    assert (head.status_code, head.content) == (status, b"")
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == whole.headers[name]


def test_a_connection_is_kept_behind_a_head(serve: Serve) -> None:
    server = serve()
    with requests.Session() as session:
        session.trust_env = False
        for method in ("HEAD", "GET", "HEAD", "POST", "GET"):
            session.request(method, f"{server.url}/v1/models", timeout=PATIENCE)
        pools = session.get_adapter(server.url).poolmanager.pools
        assert [pools[key].num_connections for key in list(pools.keys())] == [1]


# The server's own provider


@pytest.mark.parametrize("name", ["openai", "ylokh", "OpenAI"])
def test_the_providers_of_openais_protocol_get_the_key(name: str, serve: Serve, use: Use) -> None:
    assert use(serve(password="secret").provider(name)).ask("Hi").endswith("You said: Hi")


def test_a_reply_of_a_plain_object_is_told_with_its_facts(serve: Serve, use: Use) -> None:
    class Knows:
        def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
            yield "fine"
            return Reply("fine", reasoning="hm", finish_reason="length")  # type: ignore[return-value]

    reply = use(serve(upstream=Knows()).provider("openai")).ask("Hi", stream=False)
    assert (reply, reply.reasoning, reply.finish_reason) == ("fine", "hm", "length")
