"""The pytest plugin, as a stranger's tests use it: a server that says what it is told, and misbehaves on demand."""

from __future__ import annotations

import ast
import configparser
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from time import monotonic, time
from types import MappingProxyType
from typing import Any

import openai
import pytest

from berlin_chat import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ChatError,
    InvalidRequest,
    ProtocolError,
    Provider,
    RateLimitError,
    Reply,
    StreamInterrupted,
    testing,
)
from berlin_chat.messages import image
from berlin_chat.testing import Cut, Fail, Garbage, LocalServer, Recorded, Silence, Slow, ToolCall
from wire import wait_for

ROOT = Path(__file__).parent.parent
NAMES = ("openai", "ylokh", "berlin", "h2o", "acytoo")
every_protocol = pytest.mark.parametrize("name", NAMES)
#: What "at once" means, in seconds, on a machine that is busy.
AT_ONCE = 2.0
Ask = Callable[..., Reply]


@pytest.fixture
def client(chat_server: LocalServer) -> Iterator[Callable[..., Provider]]:
    """Makes providers for the server, which do not try again unless they are told to."""
    with ExitStack() as stack:
        yield lambda name, **config: stack.enter_context(chat_server.provider(name, **{"retries": 0, **config}))


@pytest.fixture
def sdk(chat_server: LocalServer) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which does not try again."""
    with openai.OpenAI(base_url=f"{chat_server.url}/v1", api_key="sk-secret", max_retries=0, timeout=5) as client:
        yield client


def sdk_asks(client: openai.OpenAI, stream: bool = False, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": "Hi"}]
    return client.chat.completions.create(model="m", messages=messages, stream=stream, **options)


# What is said


@pytest.mark.chat_server(strict=True)
@every_protocol
def test_each_question_gets_the_next_reply(name: str, chat_server: LocalServer, client: Any) -> None:
    chat_server.replies.extend(["one two", ["thr", "ee"]])
    provider = client(name)
    assert list(provider.stream("Hi")) == ["one", " two"] or name == "acytoo"  # which has no pieces of its own
    assert len(chat_server.replies) == 1
    assert provider.ask("Hi") == "three"
    assert chat_server.replies == []


@every_protocol
def test_a_server_that_was_told_nothing_echoes(name: str, client: Any) -> None:
    assert client(name).ask("Hello").endswith("You said: Hello")


@every_protocol
def test_a_question_without_a_reply_left_is_told_so_and_not_asked_again(
    name: str, chat_server: LocalServer, client: Any
) -> None:
    chat_server.replies.append("the only one")
    provider = client(name, retries=2)
    provider.ask("Hi")
    with pytest.raises(APIStatusError, match="no reply left: it was told 1 reply, and all are used up") as caught:
        provider.ask("Hi")
    assert caught.value.status == 410
    assert caught.value.attempts == 1
    assert chat_server.replies.asked_too_often == 1


def test_a_reply_brings_all_that_is_known_about_it(chat_server: LocalServer, client: Any) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    chat_server.replies.append(Reply("Hi", finish_reason="length", usage=usage, reasoning="Hm."))
    reply = client("openai").ask("Hi")
    assert (reply, reply.finish_reason, reply.usage, reply.reasoning) == ("Hi", "length", usage, "Hm.")


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called(stream: bool, chat_server: LocalServer, sdk: openai.OpenAI) -> None:
    chat_server.replies.append(["I look.", ToolCall("weather", {"city": "Rome"}), ToolCall("time", "{broken", id="x")])
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    if stream:
        chunks = [chunk.choices[0] for chunk in sdk_asks(sdk, True, tools=tools)]
        calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
        finish, text = chunks[-1].finish_reason, "".join(chunk.delta.content or "" for chunk in chunks)
    else:
        choice = sdk_asks(sdk, tools=tools).choices[0]
        calls, finish, text = choice.message.tool_calls, choice.finish_reason, choice.message.content
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", '{"city": "Rome"}'),
        ("time", "{broken"),
    ]
    assert calls[0].id
    assert calls[1].id == "x"
    assert (finish, text) == ("tool_calls", "I look.")


def test_calls_of_tools_have_ids_of_their_own(chat_server: LocalServer, client: Any) -> None:
    chat_server.replies.extend([ToolCall("f"), [ToolCall("f"), ToolCall("g")]])
    provider = client("openai")
    calls = [*provider.ask("Hi").tool_calls, *provider.ask("Hi").tool_calls]
    assert len({call.id for call in calls}) == 3
    assert calls[0].parsed() == {}


def test_a_reply_is_given_whatever_was_asked_for(chat_server: LocalServer, client: Any) -> None:
    """The echo would refuse a picture, a form of the answer, and tools."""
    chat_server.replies.append("A cat.")
    picture = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image(b"\x89PNG\r\n\x1a\n")]}
    reply = client("openai").ask([picture], tools=[{"type": "function"}], response_format={"type": "json_object"})
    assert reply == "A cat."


def test_each_choice_takes_a_reply(chat_server: LocalServer, sdk: openai.OpenAI) -> None:
    chat_server.replies.extend(["one", "two"])
    assert [choice.message.content for choice in sdk_asks(sdk, n=2).choices] == ["one", "two"]


def test_a_question_that_is_wrong_in_itself_uses_no_reply(chat_server: LocalServer, sdk: openai.OpenAI) -> None:
    chat_server.replies.append("Hi")
    with pytest.raises(openai.BadRequestError):
        sdk_asks(sdk, temperature="hot")
    assert chat_server.replies == ["Hi"]


def test_threads_get_a_reply_each(chat_server: LocalServer, client: Any) -> None:
    texts = [f"reply-{number}" for number in range(40)]
    chat_server.replies.extend(texts)
    provider, found = client("openai"), []
    threads = [
        threading.Thread(target=lambda: found.extend(provider.ask("Hi") for _ in range(5)), daemon=True)
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(found) == sorted(texts)


# Failures


@every_protocol
def test_a_failure_has_its_status_and_words(name: str, chat_server: LocalServer, client: Any) -> None:
    chat_server.replies.extend([Fail(529, "overloaded now", retry_after=0.5), Fail(429), "Hi"])
    provider = client(name)
    with pytest.raises(APIStatusError, match="overloaded now") as caught:
        provider.ask("Hi")
    assert (caught.value.status, caught.value.retry_after) == (529, 0.5)
    with pytest.raises(RateLimitError, match="Too Many Requests") as limited:
        provider.ask("Hi")
    assert limited.value.retry_after is None
    assert provider.ask("Hi") == "Hi"


@pytest.mark.chat_server(strict=True)
@pytest.mark.parametrize("status", [400, 422])
def test_a_failure_that_is_asked_again_without_stream_options_uses_one_reply(
    status: int, chat_server: LocalServer, client: Any
) -> None:
    chat_server.replies.extend([Fail(status, "bad prompt"), Fail(status, "worse prompt"), "Hi"])
    provider = client("openai")
    for words in ("bad prompt", "worse prompt"):
        with pytest.raises(APIStatusError, match=words) as caught:
            provider.ask("Hi")
        assert caught.value.status == status
    assert provider.ask("Hi") == "Hi"
    assert ["stream_options" in request.json for request in chat_server.requests] == [True, False, True, False, True]
    provider.close()


def test_a_failure_that_is_not_asked_again_is_told_to_no_other_question(
    chat_server: LocalServer, sdk: openai.OpenAI
) -> None:
    chat_server.replies.extend([Fail(400, "bad"), "one", "two", "three", "four"])
    counted: Any = {"stream_options": {"include_usage": True}}

    def streamed(**options: Any) -> str:
        choices = [choice for chunk in sdk_asks(sdk, True, **options) for choice in chunk.choices]
        return "".join(choice.delta.content or "" for choice in choices)

    with pytest.raises(openai.BadRequestError, match="bad"):
        streamed(**counted)
    assert sdk_asks(sdk).choices[0].message.content == "one"
    assert [streamed(seed=1), streamed(**counted), streamed(**counted)] == ["two", "three", "four"]


def test_threads_get_a_failure_each_though_each_asks_twice(chat_server: LocalServer, client: Any) -> None:
    words = [f"bad-{number}." for number in range(8)]
    chat_server.replies.extend(Fail(400, word) for word in words)
    found: list[str] = []

    def ask(provider: Provider) -> None:
        with pytest.raises(APIStatusError) as caught:
            provider.ask("Hi")
        found.append(str(caught.value))

    threads = [threading.Thread(target=ask, args=[client("openai")], daemon=True) for _ in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(word for word in words for error in found if word in error) == words
    assert (chat_server.replies.asked_too_often, len(chat_server.requests)) == (0, 16)


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [(0, "0"), (2, "2"), (3.0, "3"), (1234567, "1234567"), (1e16, "10000000000000000"), (1234567.25, "1234567.25")],
)
def test_retry_after_is_sent_without_an_exponent(
    seconds: float, sent: str, chat_server: LocalServer, sdk: openai.OpenAI
) -> None:
    chat_server.replies.append(Fail(503, retry_after=seconds))
    with pytest.raises(openai.InternalServerError) as caught:
        sdk_asks(sdk)
    assert caught.value.response.headers["Retry-After"] == sent


def test_arguments_of_a_tool_may_be_any_mapping(chat_server: LocalServer, client: Any) -> None:
    inner = MappingProxyType({"city": "Rome"})
    chat_server.replies.append(ToolCall("weather", MappingProxyType({"where": inner})))
    assert client("openai").ask("Hi").tool_calls[0].parsed() == {"where": {"city": "Rome"}}


def test_a_failure_is_an_error_of_openais_client(chat_server: LocalServer, sdk: openai.OpenAI) -> None:
    chat_server.replies.extend([Fail(429, "slower", retry_after=1), Fail(401)])
    with pytest.raises(openai.RateLimitError, match="slower") as caught:
        sdk_asks(sdk)
    assert caught.value.response.headers["Retry-After"] == "1"
    with pytest.raises(openai.AuthenticationError):
        sdk_asks(sdk, True)


@pytest.mark.parametrize("name", ["berlin", "h2o"])
def test_a_login_can_fail(name: str, chat_server: LocalServer, client: Any) -> None:
    chat_server.replies.extend(["one", Fail(503, "later", at="login"), "two"])
    provider = client(name)
    assert provider.ask("Hi") == "one"  # the login before it was none of the failure's
    chat_server.expire_tokens()
    with pytest.raises(APIStatusError, match="later"):
        provider.ask("Hi")
    assert chat_server.replies == ["two"]
    assert provider.ask("Hi") == "two"


def test_a_failed_login_does_not_hold_up_a_protocol_without_one(chat_server: LocalServer, client: Any) -> None:
    failing = Fail(503, at="login")
    chat_server.replies.extend([failing, "Hi"])
    assert client("openai").ask("Hi") == "Hi"
    assert chat_server.replies == [failing]


@pytest.mark.parametrize("name", ["berlin", "h2o"])
def test_tokens_that_expire_are_got_anew(name: str, chat_server: LocalServer, client: Any) -> None:
    provider = client(name)
    provider.ask("Hi")
    before = len(chat_server.requests)
    chat_server.expire_tokens()
    assert provider.ask("Hi").endswith("Hi")
    login = {"berlin": "/api/login", "h2o": "/settings"}[name]
    assert [request.path for request in chat_server.requests[before:]].count(login) == 1


def test_a_token_that_was_given_expires_for_good(chat_server: LocalServer, client: Any) -> None:
    client("berlin").ask("Hi")
    token = chat_server.requests[-1].headers["token"]
    provider = client("berlin", token=token, account=None, password=None)
    assert provider.ask("Hi").endswith("Hi")
    chat_server.expire_tokens()
    with pytest.raises(AuthenticationError):
        provider.ask("Hi")


# Faults on the wire


@every_protocol
@pytest.mark.parametrize(
    ("reply", "partial"),
    [(Cut("one two three", after=2), "one two"), (Cut("one two"), "one two"), (Cut(["o", "ne"], after=9), "one")],
    ids=["in the middle", "at the end", "after more than there is"],
)
def test_a_reply_is_cut(name: str, reply: Cut, partial: str, chat_server: LocalServer, client: Any) -> None:
    chat_server.replies.append(reply)
    with pytest.raises(StreamInterrupted) as caught:
        client(name).ask("Hi")
    assert caught.value.partial == partial


@every_protocol
def test_a_connection_is_cut_before_anything_is_said_and_asked_again(
    name: str, chat_server: LocalServer, client: Any
) -> None:
    chat_server.replies.extend([Cut(after=0), Cut("x", after=0), "Hi"])
    with pytest.raises(APIConnectionError, match="closed the connection before it answered"):
        client(name).ask("Hi")
    assert client(name, retries=1).ask("Hi").attempts == 2


def test_a_fault_without_a_text_is_about_the_echo(chat_server: LocalServer, client: Any) -> None:
    chat_server.replies.extend([Cut(after=3), Slow(0.001)])
    with pytest.raises(StreamInterrupted) as caught:
        client("openai").ask("Hi")
    assert caught.value.partial == "This is the"
    assert client("openai").ask("Hi").endswith("You said: Hi")


@pytest.mark.parametrize("stream", [False, True])
def test_openais_client_sees_a_cut(stream: bool, chat_server: LocalServer, sdk: openai.OpenAI) -> None:
    import httpx

    chat_server.replies.append(Cut("one two three", after=2))
    pieces = []
    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
        for chunk in sdk_asks(sdk, stream):
            pieces.append(chunk.choices[0].delta.content or "")
    assert "".join(pieces) == ("one two" if stream else "")


@every_protocol
@pytest.mark.parametrize(
    ("reply", "partial"), [(Silence(), ""), (Silence("one two three", after=2), "one two"), (Silence("one"), "one")]
)
def test_a_server_falls_silent_until_the_client_leaves(
    name: str, reply: Silence, partial: str, chat_server: LocalServer, client: Any
) -> None:
    chat_server.replies.append(reply)
    provider = client(name, timeout=(5, 0.2))
    with pytest.raises(APITimeoutError) as caught:
        provider.ask("Hi")
    assert caught.value.partial == partial
    provider.close()
    wait_for(lambda: not chat_server.connections)


def test_a_silent_server_is_closed_at_once() -> None:
    with LocalServer(replies=[Silence("one")]) as server, server.provider("openai", retries=0) as provider:
        stream = provider.stream("Hi")
        assert next(stream) == "one"
        began = monotonic()
        server.close()
        with pytest.raises(StreamInterrupted):
            next(stream)
        assert monotonic() - began < AT_ONCE


def test_a_slow_server_is_closed_at_once() -> None:
    with LocalServer(replies=[Slow(60)]) as server, server.provider("openai", retries=0) as provider:
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                provider.ask("Hi")
            except ChatError as error:
                failed.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: server.requests)
        began = monotonic()
        server.close()
        thread.join(AT_ONCE)
        assert monotonic() - began < AT_ONCE
    assert len(failed) == 1


@every_protocol
def test_a_slow_reply_takes_its_time_before_each_piece(name: str, chat_server: LocalServer, client: Any) -> None:
    chat_server.replies.append(Slow(0.1, "one two three"))
    moments = []
    for _ in client(name).stream("Hi"):
        moments.append(monotonic())
    assert len(moments) == 3
    assert all(later - earlier > 0.05 for earlier, later in itertools.pairwise(moments))


def test_faults_stand_inside_each_other(chat_server: LocalServer, client: Any) -> None:
    chat_server.replies.extend([Slow(0.1, Cut("one two three", after=2)), Cut(Slow(0.1, "one two three"), after=2)])
    for _ in range(2):
        began = monotonic()
        with pytest.raises(StreamInterrupted) as caught:
            client("openai").ask("Hi")
        assert caught.value.partial == "one two"
        assert 0.2 <= monotonic() - began < AT_ONCE


@every_protocol
def test_garbage_comes_instead_of_a_reply(name: str, chat_server: LocalServer, client: Any) -> None:
    chat_server.replies.extend([Garbage(b"<html>Bad gateway</html>", "text/html"), Garbage(b'{"what": 1}')])
    with pytest.raises(ProtocolError, match="a web page came back"):
        client(name).ask("Hi")
    if name == "acytoo":  # to which all text is a reply
        assert client(name).ask("Hi") == '{"what": 1}'
    else:
        with pytest.raises(ChatError):
            client(name).ask("Hi")


def test_garbage_has_the_label_of_the_reply_that_was_asked_for(chat_server: LocalServer, sdk: openai.OpenAI) -> None:
    chat_server.replies.extend([Garbage(b"{"), Garbage(b"{}")])
    with pytest.raises(json.JSONDecodeError):
        sdk_asks(sdk)
    raw = sdk.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert raw.headers["Content-Type"] == "application/json"
    chat_server.replies.append(Garbage(b"data: {}\n\n"))
    with sdk.chat.completions.with_streaming_response.create(
        model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
    ) as streamed:
        assert streamed.headers["Content-Type"] == "text/event-stream"
        assert streamed.read() == b"data: {}\n\n"


# What arrived


def test_requests_are_kept_as_they_arrived(chat_server: LocalServer, client: Any) -> None:
    began = time()
    client("openai", api_key="sk-secret", params={"api-version": "1"}).ask("Hi", temperature=0.5)
    (request,) = chat_server.requests
    assert isinstance(request, Recorded)
    assert (request.method, request.path, request.query) == ("POST", "/v1/chat/completions", "api-version=1")
    assert request.headers["authorization"] == "Bearer sk-secret"
    assert request.headers["Content-Type"] == "application/json"
    assert request.json["temperature"] == 0.5
    assert json.loads(request.body) == request.json
    assert began <= request.time <= time()


def test_what_is_no_json_is_kept_as_bytes(chat_server: LocalServer, client: Any) -> None:
    client("h2o").ask("Hi")
    settings = chat_server.requests[0]
    assert settings.path == "/settings"
    assert settings.json is None
    assert b"ethicsModalAccepted=true" in settings.body


def test_a_request_that_is_printed_shows_no_secret(chat_server: LocalServer, client: Any) -> None:
    client("berlin", account="me", password="hunter2").ask("Hi")
    assert repr(chat_server.requests) == "[<Recorded POST /api/login>, <Recorded POST /api/chat/completions>]"


def test_conversations_are_there_while_a_reply_is_read(chat_server: LocalServer, client: Any) -> None:
    chat_server.replies.append(Silence("one"))
    stream = client("h2o").stream("Hi")
    next(stream)
    assert len(chat_server.conversations) == 1
    stream.close()
    assert chat_server.conversations == []


def test_a_server_that_is_no_tests_keeps_nothing() -> None:
    with LocalServer() as server:
        server.provider("openai").ask("Hi")
        with pytest.raises(InvalidRequest, match="replies="):
            _ = server.requests
        with pytest.raises(InvalidRequest, match="replies="):
            _ = server.replies


# What is no reply


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LocalServer(replies=[5]), "not int"),
        (lambda: LocalServer(replies=["Hi", b"bytes"]), "not bytes"),
        (lambda: LocalServer(replies="Hi"), "must be a list"),
        (lambda: LocalServer(replies=[["Hi", Fail(503)]]), "a piece of a reply"),
        (lambda: LocalServer(replies=[], upstream=object()), "give one of them"),
        (lambda: Fail(200), "status"),
        (lambda: Fail("503"), "status"),
        (lambda: Fail(503, at="breakfast"), "'breakfast'"),
        (lambda: Fail(503, retry_after=-1), "retry_after"),
        (lambda: Fail(503, retry_after=float("inf")), "finite"),
        (lambda: Fail(503, retry_after=float("nan")), "finite"),
        (lambda: Fail(503, retry_after=10**400), "finite"),
        (lambda: Fail(400, message=5), "message must be a str or None, not int"),
        (lambda: ToolCall("f", {"day": date(2026, 1, 1)}), "'f' cannot be sent as JSON: date has no form"),
        (lambda: ToolCall("f", MappingProxyType({"days": {1}})), "'f' cannot be sent as JSON: set has no form"),
        (lambda: ToolCall("f", {"x": float("nan")}), "'f' cannot be sent as JSON"),
        (lambda: ToolCall("f", {(1, 2): 3}), "'f' cannot be sent as JSON"),
        (lambda: ToolCall("f", ["x"]), "arguments must be a mapping or a str, not list"),
        (lambda: ToolCall(5), "name must be a str"),
        (lambda: ToolCall("f", id=5), "id a str"),
        (lambda: Cut(Fail(503)), "Fail is a whole answer"),
        (lambda: Cut("one", after=-1), "after"),
        (lambda: Silence("one", after=True), "after"),
        (lambda: Slow("fast"), "seconds"),
        (lambda: Slow(0.1, 5), "Slow: a reply is"),
        (lambda: Garbage("text"), "must be bytes"),
        (lambda: Garbage(b"x", "text/h\r\nX: y"), "content_type must be one line"),
        (lambda: Garbage(b"x", "text/html\n"), "content_type must be one line"),
        (lambda: Garbage(b"x", "tëxt/€"), "content_type must be one line"),
        (lambda: Garbage(b"x", b"text/html"), "content_type must be one line"),
    ],
)
def test_what_is_no_reply_is_refused_where_it_is_written(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        make()


def test_replies_are_a_list_that_refuses_what_is_none(chat_server: LocalServer) -> None:
    replies = chat_server.replies
    replies[:] = ["one", "two", "three"]
    replies[0] = Cut(after=1)
    del replies[1]
    replies.insert(0, "zero")
    for change in (
        lambda: replies.append(5),
        lambda: replies.__setitem__(0, 5),
        lambda: replies.__setitem__(slice(0, 1), [5]),
    ):
        with pytest.raises(InvalidRequest, match="not int"):
            change()
    assert replies == ["zero", Cut(after=1), "three"]
    assert repr(replies[:1]) == "['zero']"


# The plugin


def test_the_plugin_has_the_words_and_no_others() -> None:
    assert testing.Cut is Cut
    with pytest.raises(AttributeError, match="Nothing"):
        _ = testing.Nothing


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    """Runs a stranger's tests, in a process of its own."""
    pytester.makepyfile(source)
    # Without its entry point it is loaded by hand: the copy under test may not be the one that is installed.
    return pytester.runpytest_subprocess("-p", "berlin_chat.testing", "-p", "no:cacheprovider", *arguments)


#: A stranger's retry code, and the tests of it.
STRANGERS = '''
import pytest
from berlin_chat import APITimeoutError, RateLimitError, StreamInterrupted
from berlin_chat.testing import Cut, Fail, Silence


def patiently(provider, question, attempts=3):
    """The code under test: asks again, and says so in a question that was cut off."""
    for attempt in range(attempts):
        try:
            return provider.ask(question, retries=0)
        except StreamInterrupted as error:
            question = f"{question} Go on after: {error.partial}"
        except (RateLimitError, APITimeoutError):
            pass
    raise TimeoutError("nobody answers")


@pytest.mark.parametrize("name", ["openai", "berlin", "h2o", "acytoo"])
def test_too_many_requests_and_then_success(chat_server, name):
    chat_server.replies.extend([Fail(429, retry_after=1), "Hi"])
    with chat_server.provider(name) as provider:
        assert patiently(provider, "Hello") == "Hi"
    assert chat_server.replies == []


@pytest.mark.parametrize("name", ["openai", "berlin", "h2o", "acytoo"])
def test_a_cut_stream(chat_server, name):
    chat_server.replies.extend([Cut("one two three", after=2), " three"])
    with chat_server.provider(name) as provider:
        assert patiently(provider, "Count.") == " three"
    assert b"Go on after: one two" in chat_server.requests[-1 if name != "h2o" else -2].body


def test_an_expired_token(chat_server):
    with chat_server.provider("berlin") as provider:
        patiently(provider, "Hello")
        chat_server.expire_tokens()
        patiently(provider, "Hello")
    assert [request.path for request in chat_server.requests].count("/api/login") == 2


@pytest.mark.parametrize("name", ["openai", "berlin", "h2o", "acytoo"])
def test_a_silent_server(chat_server, name):
    chat_server.replies.extend([Silence(), Silence()])
    with chat_server.provider(name, timeout=0.1) as provider, pytest.raises(TimeoutError, match="nobody"):
        patiently(provider, "Hello", attempts=2)
    assert chat_server.conversations == []
'''


def test_a_strangers_retry_code_is_tested_in_a_few_lines(pytester: pytest.Pytester) -> None:
    for node in ast.parse(STRANGERS).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
            assert (node.end_lineno or 0) - first + 1 < 10, node.name
    run(pytester, STRANGERS, "-o", "chat_server_strict=true").assert_outcomes(passed=13)


def test_the_tests_in_the_readme_pass(pytester: pytest.Pytester) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "def test_" in block)
    run(pytester, block, "--strict-markers").assert_outcomes(passed=2)


def test_the_readme_shows_every_reply() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for word in (Cut, Fail, Garbage, Silence, Slow, ToolCall):
        (example,) = re.findall(rf"^\| `({word.__name__}\(.+\))` \|", text, re.MULTILINE)
        assert isinstance(eval(example), word)


LEAVING = """
import threading
import pytest

@pytest.mark.chat_server(strict=True, replies=["never asked for"])
def test_reply(chat_server):
    pass

@pytest.mark.chat_server(strict=True, replies=["Hi"])
def test_question(chat_server):
    with chat_server.provider("openai") as provider:
        provider.ask("Hi")
        with pytest.raises(RuntimeError):
            provider.ask("Hi")

@pytest.mark.chat_server(strict=True)
def test_connection(chat_server, request):
    provider = chat_server.provider("openai")
    provider.ask("Hi")
    request.config.kept = provider

@pytest.mark.chat_server(strict=True)
def test_conversation(chat_server):
    import requests
    with requests.Session() as session:
        form = dict(ethicsModalAccepted="true", shareConversationsWithModelAuthors="true", searchEnabled="true")
        session.post(chat_server.url + "/settings", data={**form, "ethicsModalAcceptedAt": "", "activeModel": "m"},
                     allow_redirects=False)
        session.post(chat_server.url + "/conversation", json={"model": "m"})

@pytest.mark.chat_server(strict=True, delay=0.001, password="secret")
def test_nothing(chat_server):
    with chat_server.provider("h2o") as provider:
        provider.ask("Hi")
    assert "Authorization" in chat_server.requests[0].headers

@pytest.mark.chat_server(replies=["never asked for"])
def test_lax(chat_server):
    pass
"""


def test_what_is_left_over_fails_a_test_that_asks_for_it(pytester: pytest.Pytester) -> None:
    result = run(pytester, LEAVING, "--strict-markers")
    result.assert_outcomes(passed=6, errors=4)
    told = [line for line in result.outlines if line.startswith("left over: ")]
    assert told[:3] == [
        "left over: replies that nobody asked for: ['never asked for']",
        "left over: questions that found no reply: 1",
        "left over: connections that a client holds (close the provider): 1",
    ]
    assert told[3].startswith("left over: conversations that nobody deleted: ['")


def test_the_setting_asks_all_tests_to_leave_nothing(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nchat_server_strict = true\n")
    source = """
        import pytest

        @pytest.mark.chat_server(replies=["x"])
        def test_left(chat_server):
            pass

        @pytest.mark.chat_server(replies=["x"], strict=False)
        def test_excepted(chat_server):
            pass

        @pytest.mark.chat_server("x")
        def test_nameless(chat_server):
            pass
    """
    result = run(pytester, source)
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines("*the marker chat_server wants names*")


def entry_points() -> str:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return settings["options.entry_points"]["pytest11"].strip()


def test_pytest_finds_the_plugin_by_itself(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a distribution that is not installed but only described, so that any checkout will do."""
    described = pytester.mkdir("described") / "berlin_chat_described-1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: berlin_chat_described\nVersion: 1\n")
    (described / "entry_points.txt").write_text(f"[pytest11]\n{entry_points()}\n")
    monkeypatch.setenv("PYTHONPATH", str(described.parent), prepend=os.pathsep)
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    pytester.makepyfile("def test_it(chat_server): assert chat_server.provider('openai').ask('Hi').endswith('Hi')")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
    # By hand as well, it is the same plugin.
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "berlin_chat.testing").assert_outcomes(passed=1)


def test_the_plugin_imports_no_server_until_it_is_used(pytester: pytest.Pytester) -> None:
    source = """
        import sys

        def test_it():
            assert "berlin_chat.testing" in sys.modules
            assert not [name for name in ("cheroot", "berlin_chat.server") if name in sys.modules]
            import berlin_chat.testing
            assert not hasattr(berlin_chat.testing, "Nothing")
            assert berlin_chat.testing.Fail(503).status == 503
    """
    run(pytester, source).assert_outcomes(passed=1)
