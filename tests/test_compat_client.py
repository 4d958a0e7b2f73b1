"""The client of OpenAI's shape: what it sends, what it returns, and that a script cannot tell it from the package."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import openai.types.chat.chat_completion as real_completion
import openai.types.chat.chat_completion_chunk as real_chunk
import pytest
from openai.types import chat as real_chat
from openai.types import completion_usage as real_usage

from berlin_chat import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Cancelled,
    CancelToken,
    ChatError,
    H2o,
    InvalidRequest,
    OpenAICompatible,
    ProviderNotWorking,
    RateLimitError,
    StreamInterrupted,
    Ylokh,
)
from berlin_chat.compat import Client, RetryProvider
from berlin_chat.compat import chunk as our_chunk
from berlin_chat.compat import completion as our_completion
from berlin_chat.compat import shapes as our_shapes
from berlin_chat.server import LocalServer
from model_server import ModelServer
from scripted import USAGE, chunk, end, questions, replies, text, two_calls
from wire import BERLIN, OPENAI, PATIENCE, Connection, Recorded, Script, Wire, speak

ROOT = Path(__file__).parent.parent
HI: list[Any] = [{"role": "user", "content": "Weather in Berlin?"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
KEY = "sk-the-clients-key"

# The first import of the package takes long on a busy machine.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def client(wire: Wire) -> Iterator[Client]:
    with Client(base_url=f"{wire.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


# The same script, twice

STREAMS = """
for chunk in client.chat.completions.create(model="deepseek-r1", messages=hi, stream=True):
    delta = chunk.choices[0].delta
    print(getattr(delta, "reasoning_content", None) or delta.content or "", end="|", flush=True)
print()

stream = client.chat.completions.create(
    model="llama3", messages=hi, stream=True, stream_options={"include_usage": True}, max_tokens=100, temperature=0.5
)
with stream:
    for chunk in stream:
        if not chunk.choices:
            print("usage", chunk.usage.prompt_tokens, chunk.usage.completion_tokens, chunk.usage.total_tokens)
        elif chunk.choices[0].finish_reason:
            print("end", chunk.choices[0].finish_reason)
        elif chunk.choices[0].delta.content:
            print("text", repr(chunk.choices[0].delta.content), chunk.choices[0].index)

calls = {}
for chunk in client.chat.completions.create(model="llama3", messages=both, tools=tools, stream=True):
    for piece in chunk.choices[0].delta.tool_calls or []:
        if piece.index not in calls:
            calls[piece.index] = {"id": piece.id, "name": piece.function.name, "type": piece.type, "arguments": ""}
        calls[piece.index]["arguments"] += piece.function.arguments or ""
print(json.dumps(calls), chunk.choices[0].finish_reason)

stream = client.with_options(timeout=20, max_retries=1).chat.completions.create(
    messages=image, model="llava", stream=True
)
print("".join(chunk.choices[0].delta.content or "" for chunk in stream))
stream.close()

with client.chat.completions.create(model="llama3", messages=hi, stream=True) as stream:
    for chunk in stream:
        if chunk.choices[0].delta.content:
            print("first:", chunk.choices[0].delta.content)
            break
"""

WHOLES = """
completion = client.chat.completions.create(model="llama3", messages=hi, temperature=0, timeout=20)
print(completion.choices[0].message.content, completion.choices[0].finish_reason, completion.object)
print(completion.choices[0].message)
print(completion.usage.total_tokens, completion.usage.model_dump_json(exclude_none=True))
print(json.dumps(completion.choices[0].model_dump(), sort_keys=True))
print(completion.choices[0].message.to_json())
print(completion.choices[0].message.model_dump_json(indent=2, exclude_unset=True))
assert isinstance(completion.created, int) and completion.id.startswith("chatcmpl-")

messages = list(both)
message = client.chat.completions.create(model="llama3", messages=messages, tools=tools, tool_choice="auto")
message = message.choices[0].message
print(message)
messages.append(message)
for call in message.tool_calls:
    city = json.loads(call.function.arguments)["city"]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": f"rain in {city}"})
print(client.chat.completions.create(model="llama3", messages=messages, tools=tools).choices[0].message.content)

messages = [*both, {"role": "assistant", "content": None, "tool_calls": message.tool_calls}]
messages += [{"role": "tool", "tool_call_id": call.id, "content": call.function.name} for call in message.tool_calls]
print(client.chat.completions.create(model="llama3", messages=messages).choices[0].message.content)

print(client.chat.completions.create(model="llava", messages=image).choices[0].message.content)

for model in client.models.list():
    print(model.id, model.object)
print(len(client.models.list().data))

try:
    stranger = OpenAI(base_url=address, api_key="wrong", max_retries=0)
    stranger.chat.completions.create(model="m", messages=hi, stream=True)
except Exception as error:
    print(type(error).__name__, error.status_code, error.request_id)
"""

BEFORE = """
import json, sys
from openai import OpenAI

address = sys.argv[1]
client = OpenAI(base_url=address, api_key="sesame", timeout=30.0, max_retries=0, default_headers={"X-Team": "blue"})
hi = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]
both = [{"role": "user", "content": "How is the weather in Berlin and in Rome?"}]
parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
picture = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlh"}}
image = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}]
"""

IMPORTS = ("from openai import OpenAI", "from berlin_chat.compat import Client as OpenAI")


def printed(script: str, address: str, folder: Path) -> str:
    """What a script prints as a process of its own, which is told an address."""
    path = folder / "script.py"
    path.write_text(script, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "BERLIN_CHAT_"))}
    done = subprocess.run(
        [sys.executable, str(path), address],
        env={**kept, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("script", "last"),
    [(STREAMS, "first: Because short "), (WHOLES, "AuthenticationError 401 None")],
    ids=["streams", "wholes"],
)
def test_a_script_prints_the_same_with_the_package_and_with_the_client(script: str, last: str, tmp_path: Path) -> None:
    assert BEFORE.count(IMPORTS[0]) == 1
    with (
        ModelServer() as models,
        OpenAICompatible(models.url) as upstream,
        LocalServer(upstream=upstream, password="sesame") as server,
    ):
        theirs, ours = (
            printed(BEFORE.replace(IMPORTS[0], line) + script, f"{server.url}/v1", tmp_path) for line in IMPORTS
        )
    assert ours == theirs
    assert "I see data:image/gif." in ours
    assert ours.splitlines()[-1] == last
    assert not models.faults


def test_a_script_of_streams_prints_the_same_in_front_of_a_model_server(tmp_path: Path) -> None:
    with ModelServer() as models:
        theirs, ours = (
            printed(BEFORE.replace(IMPORTS[0], line) + STREAMS, f"{models.url}/v1", tmp_path) for line in IMPORTS
        )
    assert ours.replace("|", "") == theirs.replace("|", "")  # the package tells of chunks that hold nothing, too
    assert "Because short waves scatter most." in ours.replace("|", "")


# The shapes

#: A completion that has all there is.
EVERYTHING: dict[str, Any] = {
    "id": "chatcmpl-7",
    "object": "chat.completion",
    "created": 7,
    "model": "m-7",
    "citations": ["http://a.example"],
    "usage": {
        "completion_tokens": 3,
        "prompt_tokens": 4,
        "total_tokens": 7,
        "completion_tokens_details": {"reasoning_tokens": 2},
        "prompt_tokens_details": {"cached_tokens": 1},
    },
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "logprobs": {
                "content": [
                    {
                        "token": "Hi",
                        "logprob": -0.5,
                        "bytes": [72, 105],
                        "top_logprobs": [{"token": "Hi", "logprob": -0.5, "bytes": None}],
                    }
                ],
                "refusal": None,
            },
            "message": {
                "role": "assistant",
                "content": "Hi",
                "refusal": "No more.",
                "reasoning_content": "Hm.",
                "annotations": [
                    {
                        "type": "url_citation",
                        "url_citation": {"end_index": 1, "start_index": 0, "title": "A", "url": "http://a.example"},
                    }
                ],
                "audio": {"id": "audio-1", "data": "AAAA", "expires_at": 8, "transcript": "Hi"},
                "tool_calls": [
                    {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
                    {"id": "call_b", "type": "custom", "custom": {"name": "grep", "input": "x"}},
                ],
            },
        }
    ],
}


def answer_whole(wire: Wire, **headers: str) -> None:
    wire.on(*OPENAI.route, lambda request, connection: connection.respond(200, EVERYTHING, headers))


def test_a_completion_is_what_the_package_makes_of_it(client: Client, wire: Wire) -> None:
    answer_whole(wire)
    ours = client.chat.completions.create(model="m-1", messages=HI)
    with openai.OpenAI(base_url=f"{wire.url}/v1", api_key=KEY, max_retries=0) as package:
        theirs = package.chat.completions.create(model="m-1", messages=HI)
    ours.created = theirs.created
    assert ours.to_dict() == theirs.to_dict()
    assert json.loads(ours.model_dump_json()) == ours.model_dump()
    assert ours.choices[0].message.audio is not None
    assert ours.choices[0].message.audio.transcript == "Hi"
    assert ours.choices[0].message.annotations is not None
    assert ours.choices[0].message.annotations[0].url_citation.title == "A"
    assert ours.usage is not None
    assert ours.usage.prompt_tokens_details is not None
    assert ours.usage.prompt_tokens_details.cached_tokens == 1
    assert str(ours.choices[0].message.tool_calls) == str(theirs.choices[0].message.tool_calls)
    assert str(ours.usage) == str(theirs.usage)


@pytest.mark.parametrize("how", [{}, {"exclude_none": True}, {"exclude_unset": True}, {"mode": "json"}], ids=str)
def test_the_package_parses_a_dump(how: dict[str, Any], client: Client, wire: Wire) -> None:
    answer_whole(wire)
    ours = client.chat.completions.create(model="m-1", messages=HI)
    parsed = real_chat.ChatCompletion.model_validate(ours.model_dump(**how))
    assert parsed.model_dump(exclude_unset=True) == ours.model_dump(**how)
    again = real_chat.ChatCompletion.model_validate_json(ours.model_dump_json())
    assert again.choices[0].message.content == "Hi"
    assert again.choices[0].message.tool_calls is not None
    assert [call.id for call in again.choices[0].message.tool_calls] == ["call_a", "call_b"]


@pytest.mark.parametrize("script", [text("Sun", "ny"), two_calls(), [chunk({"refusal": "No."}), end("content_filter")]])
def test_the_package_parses_the_dump_of_each_chunk(script: list[bytes], client: Client, wire: Wire) -> None:
    replies(wire, script)
    ours = list(client.chat.completions.create(model="m", messages=HI, stream=True))
    for one in ours:
        parsed = real_chat.ChatCompletionChunk.model_validate(one.model_dump())
        assert parsed.model_dump(exclude_unset=True) == one.model_dump()
        assert real_chat.ChatCompletionChunk.model_validate_json(one.model_dump_json()) == parsed
    assert len({one.id for one in ours}) == 1
    assert [one.choices[0].delta.role for one in ours] == ["assistant", *[None] * (len(ours) - 1)]
    assert [bool(one.choices[0].finish_reason) for one in ours] == [*[False] * (len(ours) - 1), True]


def test_a_reply_of_another_protocol_is_a_completion_too() -> None:
    with LocalServer() as server, Client(provider=server.provider("h2o")) as client:
        whole = client.chat.completions.create(messages=HI)
        chunks = list(client.chat.completions.create(messages=HI, stream=True, stream_options={"include_usage": True}))
    parsed = real_chat.ChatCompletion.model_validate(whole.model_dump())
    assert parsed.choices[0].finish_reason == "stop"
    assert parsed.model == H2o.default_model
    assert parsed.usage is None
    for one in chunks:
        real_chat.ChatCompletionChunk.model_validate(one.model_dump())
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == parsed.choices[0].message.content


def shapes(module: Any) -> list[type[our_shapes.Shape]]:
    found = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, our_shapes.Shape)]
    return [one for one in found if one.__module__ == module.__name__ and one is not our_shapes.Shape]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *((one, real_chunk) for one in shapes(our_chunk)),
        *((one, real_completion) for one in shapes(our_completion)),
        *((one, real_usage) for one in shapes(our_shapes)),
    ],
    ids=lambda one: one.__name__.rpartition(".")[2],
)
def test_each_shape_has_the_fields_of_the_packages_class_in_its_order(ours: type[Any], theirs: Any) -> None:
    known = vars(real_chat.chat_completion_message) | vars(real_chat.chat_completion_message_function_tool_call)
    known |= vars(real_chat.chat_completion_message_custom_tool_call) | vars(real_chat.chat_completion_token_logprob)
    known |= vars(real_chat) | vars(real_completion) | vars(theirs)
    fields = list(known[ours.__name__].model_fields)
    names = [name for name in ours.__annotations__ if not name.startswith("_")]
    assert names == [name for name in fields if name in names]  # a later version may have more


# Chunks as they come


def test_a_chunk_arrives_before_the_next_one_is_sent(client: Client, wire: Wire) -> None:
    goes_on = threading.Event()

    def script(request: Recorded, connection: Connection) -> None:
        first, *others = text("Sun", "ny")
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + first)
        assert goes_on.wait(PATIENCE)
        connection.send(b"".join(others))
        connection.close()

    wire.on(*OPENAI.route, script)
    stream = client.chat.completions.create(model="m", messages=HI, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "Sun"]
    goes_on.set()
    assert [one.choices[0].delta.content for one in stream] == ["ny", None]


def one_piece_and_silence(ended: threading.Event) -> Script:
    """Says that it has ended when the client has closed the connection."""

    def script(request: Recorded, connection: Connection) -> None:
        first, *_ = text("Sun")
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + first)
        connection.wait_until_client_closes()
        ended.set()

    return script


def test_a_stream_that_nobody_refers_to_any_more_ends_the_question(client: Client, wire: Wire) -> None:
    ended = threading.Event()
    wire.on(*OPENAI.route, one_piece_and_silence(ended))
    gc.disable()
    try:
        for one in client.chat.completions.create(model="m", messages=HI, stream=True):
            if one.choices[0].delta.content:
                break
        assert ended.wait(PATIENCE), "its connection stays open"
    finally:
        gc.enable()


def test_the_headers_of_a_client_are_sent_for_its_models_too(client: Client, wire: Wire) -> None:
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, {"data": []}))
    client.with_options(default_headers={"X-Tenant": "a"}, timeout=5).models.list()
    assert wire.requests[-1].header("X-Tenant") == "a"


def test_a_message_can_be_made_a_dict_and_an_error_has_its_message(client: Client, wire: Wire) -> None:
    answer_whole(wire)
    message = client.chat.completions.create(model="m", messages=HI).choices[0].message
    assert dict(message)["content"] == message.content
    wire.routes.clear()
    with pytest.raises(ChatError) as caught:
        client.chat.completions.create(model="m", messages=HI)
    assert caught.value.message == str(caught.value)


def test_a_stream_that_is_closed_ends_the_question(client: Client, wire: Wire) -> None:
    ended = threading.Event()
    wire.on(*OPENAI.route, one_piece_and_silence(ended))
    with client.chat.completions.create(model="m", messages=HI, stream=True) as stream:
        next(stream)
    assert ended.wait(PATIENCE)
    assert list(stream) == []
    stream.close()


def test_each_chunk_tells_what_is_new_of_a_call(client: Client, wire: Wire) -> None:
    replies(wire, two_calls())
    told = [
        (
            call.index,
            call.id,
            call.type,
            call.function and call.function.name,
            call.function and call.function.arguments,
        )
        for one in client.chat.completions.create(model="m", messages=HI, tools=TOOLS, stream=True)
        for call in one.choices[0].delta.tool_calls or ()
    ]
    assert told == [
        (0, "call_a", "function", "weather", ""),
        (0, None, None, None, '{"city": '),
        (1, "call_b", "function", "weather", '{"city"'),
        (0, None, None, None, '"Berlin"}'),
        (1, None, None, None, ': "Osló 🙂"}'),
    ]


def test_the_usage_of_a_stream_is_told_to_those_who_ask(client: Client, wire: Wire) -> None:
    replies(wire, text("a"), text("a"), text("a"))
    create = client.chat.completions.create
    *others, last = create(model="m", messages=HI, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.to_dict() == USAGE
    assert all(one.choices and one.usage is None for one in others)
    for given in ({}, {"stream_options": {"include_usage": False}}):
        assert all(one.choices and one.usage is None for one in create(model="m", messages=HI, stream=True, **given))


# What is sent


def test_what_the_package_sends_is_sent(client: Client, wire: Wire) -> None:
    replies(wire, text("a"), text("a"))
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": WEATHER}}
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": False}
    options |= {"max_tokens": 5, "max_completion_tokens": 5, "temperature": 0.5, "top_p": 0.5, "stop": ["x"]}
    options |= {"logprobs": True, "top_logprobs": 2, "logit_bias": {"1": 2}, "metadata": {"a": "b"}, "seed": 1}
    options |= {"presence_penalty": 0, "frequency_penalty": 0, "reasoning_effort": "low", "store": False, "user": "u"}
    options |= {"response_format": form, "service_tier": "auto", "verbosity": "low", "modalities": ["text"]}
    extra: dict[str, Any] = {"extra_body": {"top_k": 3}, "extra_headers": {"X-Team": "red"}}
    client.chat.completions.create(model="m-1", messages=HI, n=1, **options, **extra)
    with openai.OpenAI(base_url=f"{wire.url}/v1", api_key=KEY, max_retries=0) as package:
        list(package.chat.completions.create(model="m-1", messages=HI, stream=True, **options, **extra))
    ours, theirs = questions(wire)
    assert {**ours, "stream": True} == theirs
    for asked in wire.asked(*OPENAI.route):
        assert asked.header("X-Team") == "red"
        assert asked.header("Authorization") == f"Bearer {KEY}"


def test_messages_of_the_package_can_be_asked_with(client: Client, wire: Wire) -> None:
    answer_whole(wire)
    said = real_chat.ChatCompletion.model_validate(EVERYTHING).choices[0].message
    ours = client.chat.completions.create(model="m", messages=HI).choices[0].message
    client.chat.completions.create(model="m", messages=[*HI, said])
    client.chat.completions.create(model="m", messages=(one for one in [*HI, ours]))
    _, with_theirs, with_ours = questions(wire)
    assert with_ours["messages"] == with_theirs["messages"] == [*HI, EVERYTHING["choices"][0]["message"]]


def test_a_key_of_openai_is_not_sent_to_another_server(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    replies(wire, text("a"), text("a"))
    with Client(base_url=wire.url) as client:
        client.chat.completions.create(model="m", messages=HI)
        monkeypatch.setenv("BERLIN_CHAT_API_KEY", "sk-of-ours")
    with Client(base_url=wire.url) as client:
        client.chat.completions.create(model="m", messages=HI)
    assert [asked.header("Authorization") for asked in wire.asked(*OPENAI.route)] == [None, "Bearer sk-of-ours"]
    assert "sk-of" not in repr(client)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 2}, "n asks for several choices"),
        ({"functions": []}, "functions is not taken here: give tools="),
        ({"function_call": "auto"}, "function_call is not taken here: give tool_choice="),
        ({"extra_query": {"a": "b"}}, "extra_query is not taken here: give default_query="),
        ({"headers": {"a": "b"}}, "headers is not taken here: give extra_headers="),
        ({"retries": 1}, "retries is not taken here: use with_options"),
        ({"stream": "yes"}, "stream is of type str"),
        ({"stream_options": True}, "stream_options is of type bool"),
        ({"extra_headers": ["a"]}, "headers is of type list"),
        ({"extra_body": ["a"]}, "extra_body is of type list"),
        ({"timeout": -1}, "timeout must be positive seconds"),
        ({"messages": []}, "messages is empty"),
        ({"messages": 3}, "messages is of type int"),
        ({"tools": {1, 2}}, "no JSON"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    options: dict[str, Any], said: str, client: Client, wire: Wire
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        client.chat.completions.create(**{"model": "m", "messages": HI, **options})
    assert wire.requests == []


@pytest.mark.parametrize("option", ["tools", "tool_choice", "n"])
def test_what_a_protocol_does_not_have_is_refused(option: str, wire: Wire) -> None:
    client = Client(provider="berlin", base_url=wire.url, api_key="token-1")
    with client, pytest.raises(InvalidRequest, match=option):
        client.chat.completions.create(messages=HI, **{option: 2})
    assert wire.requests == []


# Settings


@pytest.mark.parametrize(
    ("provider", "said"),
    [(BERLIN, {"provider": "berlin"}), (OPENAI, {}), (OPENAI, {"provider": OpenAICompatible})],
    ids=["name", "none", "class"],
)
def test_a_provider_is_a_name_or_a_class(provider: Any, said: dict[str, Any], wire: Wire) -> None:
    wire.on(*provider.route, speak(provider, ["a", "b"]))
    with Client(base_url=wire.url, api_key=KEY, **said) as client:
        assert client.chat.completions.create(messages=HI).choices[0].message.content == "ab"
        assert client.base_url == wire.url
    (asked,) = wire.asked(*provider.route)
    assert KEY in (asked.header("token") or asked.header("Authorization") or "")
    with pytest.raises(Cancelled, match="closed"):
        client.chat.completions.create(messages=HI)


def test_a_provider_that_was_given_stays_open(wire: Wire) -> None:
    replies(wire, text("a"), text("b"))
    with Ylokh(wire.url, model="m-7") as provider:
        with Client(provider=provider, default_headers={"X-Team": "red"}) as client:
            completion = client.chat.completions.create(messages=HI)
            assert (completion.choices[0].message.content, completion.model) == ("a", "m-1")
        assert provider.ask("Hi") == "b"
    assert [asked.header("X-Team") for asked in wire.asked(*OPENAI.route)] == ["red", None]
    assert questions(wire)[0]["model"] == "m-7"


def test_a_group_of_providers_can_be_asked(wire: Wire) -> None:
    replies(wire, text("a"))
    group = RetryProvider([Ylokh("http://127.0.0.1:9", retries=0), Ylokh(wire.url)])
    with Client(provider=group) as client:
        assert client.chat.completions.create(messages=HI).choices[0].message.content == "a"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"provider": Ylokh("http://127.0.0.1:9"), "base_url": "http://127.0.0.1:8"}, "base_url is a setting of the"),
        ({"provider": Ylokh("http://127.0.0.1:9"), "api_key": "x"}, "api_key is a setting of the provider"),
        ({"provider": "h2o", "api_key": "x"}, "api_key is of no use to H2o"),
        ({"provider": "bing"}, "no provider 'bing'"),
        ({"provider": 3}, "provider is of type int"),
        ({"provider": "berlin", "default_query": {"a": "b"}}, "Berlin cannot be made"),
        ({"base_url": "127.0.0.1"}, "base_url must look like"),
        ({"base_url": "http://127.0.0.1:9", "timeout": "3"}, "timeout must be"),
        ({"base_url": "http://127.0.0.1:9", "max_retries": -1}, "retries must be"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_a_client_that_cannot_be_made_says_why(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        Client(**arguments)


def test_a_client_without_an_address_says_how_to_name_one() -> None:
    with pytest.raises(ProviderNotWorking, match=r"base_url=.*BERLIN_CHAT_OPENAI_URL"):
        Client(api_key="x").chat.completions.create(model="m", messages=HI)


def test_the_addresses_query_goes_with_each_question(wire: Wire) -> None:
    wire.on("POST", r"/v1/chat/completions\?version=7", speak(OPENAI, ["a"]))
    with Client(base_url=wire.url, default_query={"version": "7"}) as client:
        assert client.chat.completions.create(model="m", messages=HI).choices[0].message.content == "a"


def fail(wire: Wire, status: int, **headers: str) -> None:
    error = {"error": {"message": "not now"}}
    wire.on(*OPENAI.route, lambda request, connection: connection.respond(status, error, headers))


def test_with_options_changes_retries_and_headers_for_its_own_client(client: Client, wire: Wire) -> None:
    fail(wire, 500, **{"Retry-After": "0"})
    other = client.with_options(max_retries=2, default_headers={"X-Team": "red"})
    another = other.with_options(default_headers={"X-Room": "7"})
    for one in (other, another, client):
        with pytest.raises(APIStatusError):
            one.chat.completions.create(model="m", messages=HI)
    asked = [(one.header("X-Team"), one.header("X-Room")) for one in wire.asked(*OPENAI.route)]
    assert asked == [*[("red", None)] * 3, *[("red", "7")] * 3, (None, None)]


@pytest.mark.parametrize("timeout", [0.2, (5, 0.2), httpx.Timeout(5, read=0.2)], ids=["number", "pair", "httpx"])
@pytest.mark.parametrize("where", ["client", "with_options", "create"])
def test_a_timeout_ends_a_silence(timeout: Any, where: str, wire: Wire) -> None:
    wire.on(*OPENAI.route, lambda request, connection: connection.wait_until_client_closes())
    given = {place: {"timeout": timeout} if place == where else {} for place in ("client", "with_options", "create")}
    with Client(base_url=wire.url, max_retries=0, **given["client"]) as client:
        one = client.with_options(**given["with_options"])
        with pytest.raises(APITimeoutError):
            one.chat.completions.create(model="m", messages=HI, **given["create"])


def test_no_timeout_at_all_can_be_said(wire: Wire) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        threading.Event().wait(0.5)
        connection.respond(200, EVERYTHING)

    wire.on(*OPENAI.route, script)
    with Client(base_url=wire.url, timeout=0.1, max_retries=0) as client:
        assert client.chat.completions.create(model="m", messages=HI, timeout=None).choices


def test_a_client_with_other_options_leaves_the_connections_to_the_first(client: Client, wire: Wire) -> None:
    replies(wire, text("a"), text("b"))
    with client.with_options(max_retries=1) as other:
        assert other.chat.completions.create(model="m", messages=HI).choices[0].message.content == "a"
    assert client.chat.completions.create(model="m", messages=HI).choices[0].message.content == "b"
    assert len({asked.connection for asked in wire.asked(*OPENAI.route)}) == 1


def test_a_question_is_cancelled_from_another_thread(client: Client, wire: Wire) -> None:
    token = CancelToken()

    def script(request: Recorded, connection: Connection) -> None:
        token.cancel()
        connection.wait_until_client_closes()

    wire.on(*OPENAI.route, script)
    with pytest.raises(Cancelled):
        client.chat.completions.create(model="m", messages=HI, cancel=token)


def test_threads_share_a_client(client: Client, wire: Wire) -> None:
    wire.on(*OPENAI.route, speak(OPENAI, ["a", "b"]))

    def ask(number: int) -> str:
        stream = client.chat.completions.create(model=f"m-{number}", messages=HI, stream=True)
        return "".join(one.choices[0].delta.content or "" for one in stream)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(32))) == ["ab"] * 32
    assert {question["model"] for question in questions(wire)} == {f"m-{number}" for number in range(32)}


def test_models_are_listed(client: Client, wire: Wire) -> None:
    data = [{"id": "llama3", "object": "model"}, {"id": "deepseek-r1", "object": "model"}]
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, {"data": data}))
    models = client.models.list()
    assert [model.id for model in models] == [model.id for model in models.data] == ["llama3", "deepseek-r1"]
    for model in models.model_dump()["data"]:
        openai.types.Model.model_validate(model)


# Errors


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, RateLimitError), (401, AuthenticationError), (404, APIStatusError), (500, APIStatusError)],
)
def test_an_error_has_the_packages_names(
    status: int, kind: type[ChatError], stream: bool, client: Client, wire: Wire
) -> None:
    fail(wire, status, **{"X-Request-Id": "req_7"})
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model="m", messages=HI, stream=stream)
    package = openai.OpenAI(base_url=f"{wire.url}/v1", api_key=KEY, max_retries=0)
    with package, pytest.raises(openai.APIStatusError) as theirs:
        package.chat.completions.create(model="m", messages=HI, stream=stream)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.status_code, error.request_id) == (theirs.value.status_code, theirs.value.request_id)
    assert (error.status_code, error.request_id) == (status, "req_7")


def test_an_error_without_an_answer_has_neither_a_status_nor_a_request_id(wire: Wire) -> None:
    answers: list[Callable[[Connection], None]] = [
        lambda connection: connection.respond(500, {}, {"X-Request-Id": "req_1", "Retry-After": "0"}),
        lambda connection: connection.reset(),
    ]
    wire.on(*OPENAI.route, lambda request, connection: answers.pop(0)(connection))
    with Client(base_url=wire.url, max_retries=1) as client, pytest.raises(APIConnectionError) as caught:
        client.chat.completions.create(model="m", messages=HI)
    assert (caught.value.status_code, caught.value.request_id, caught.value.attempts) == (None, None, 2)


def test_a_cut_stream_has_what_came_and_the_name_of_its_request(client: Client, wire: Wire) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: req_8\r\nConnection: close\r\n\r\n"
        connection.send(head + chunk({"content": "Sun"}))
        connection.close()

    wire.on(*OPENAI.route, script)
    stream = client.chat.completions.create(model="m", messages=HI, stream=True)
    with pytest.raises(StreamInterrupted) as caught:
        list(stream)
    assert (caught.value.partial, caught.value.request_id) == ("Sun", "req_8")


def test_a_request_id_tells_no_secret(client: Client, wire: Wire) -> None:
    fail(wire, 400, **{"X-Request-Id": f"req-{KEY}"})
    with pytest.raises(APIStatusError) as caught:
        client.chat.completions.create(model="m", messages=HI)
    assert caught.value.request_id == "req-***"


def test_a_completion_knows_the_name_of_its_request(client: Client, wire: Wire) -> None:
    answer_whole(wire, **{"x-request-id": "req_9"})
    completion = client.chat.completions.create(model="m", messages=HI)
    assert completion._request_id == "req_9"
    assert "_request_id" not in completion.model_dump()


# What an import costs


def test_the_import_brings_no_extra_and_the_core_does_not_bring_it() -> None:
    program = (
        "import sys, berlin_chat; before = set(sys.modules); assert not [n for n in before if 'compat' in n and"
        " n.startswith('berlin_chat')]; import berlin_chat.compat, berlin_chat.compat.g4f;"
        "print(*{name for name in set(sys.modules) - before if not name.startswith('berlin_chat.')})"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == ([], "")
