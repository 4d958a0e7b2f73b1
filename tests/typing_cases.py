"""Right and wrong calls, as a user's type checker sees them; ``test_typing.py`` runs two of them. Nothing here runs.

Each wrong call has an ignore, which both checkers must need. What stands without one must be right, and of the type
that is asserted.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from berlin_chat import (
    Acytoo,
    Answer,
    Berlin,
    CancelToken,
    ChatError,
    Conversation,
    Event,
    Exchange,
    Fallback,
    Found,
    H2o,
    History,
    Listed,
    LiveReply,
    Metadata,
    OpenAICompatible,
    Provider,
    Race,
    Reply,
    ToolCall,
    Turn,
    Ylokh,
    ask_many,
    fits,
    get_provider,
    image,
    last_turns,
    provider_names,
    race,
    stream_many,
)
from berlin_chat.compat import ChatCompletion, Client, RetryProvider, g4f
from berlin_chat.compat.chunk import Stream
from berlin_chat.compat.completion import ChatCompletion as WholeCompletion
from berlin_chat.decoding import text

if TYPE_CHECKING:
    from typing_extensions import assert_type

URL = "http://127.0.0.1:8080"


def the_arguments_of_a_provider() -> None:
    OpenAICompatible(
        URL, api_key="x", params={"api-version": "1"}, end="close", max_event_bytes=1, model="m", proxy="", timeout=3
    )
    OpenAICompatible(base_url=URL, timeout=(1, None), headers={"a": "b", "c": None}, verify="ca.pem", retries=0)
    Ylokh(URL, api_key=None, pool_size=3, session=requests.Session())
    Berlin(URL, account="me", password="x", token=None, timeout=None)
    H2o(URL, model="m", verify=False)
    H2o(URL, cert="me.pem")
    H2o(URL, verify=Path("ca.pem"), cert=(Path("me.pem"), "me.key"))
    Acytoo(URL, key="k", password="p", retries=2)

    OpenAICompatible(timeout="3")  # type: ignore[arg-type]
    OpenAICompatible(params=[("a", "b")])  # type: ignore[arg-type]
    OpenAICompatible(api_kye="x")  # type: ignore[call-arg]
    Ylokh(timeut=3)  # type: ignore[call-arg]
    Ylokh(max_event_bytes="1")  # type: ignore[arg-type]
    Berlin(acount="me")  # type: ignore[call-arg]
    Berlin(api_key="x")  # type: ignore[call-arg]
    H2o(api_key="x")  # type: ignore[call-arg]
    H2o(headers="x")  # type: ignore[arg-type]
    Acytoo(retries="2")  # type: ignore[arg-type]
    Acytoo(URL, "key")  # type: ignore[call-arg]


def a_question(provider: Provider, messages: list[dict[str, str]], token: CancelToken) -> None:
    provider.ask("Hi")
    provider.ask({"role": "user", "content": "Hi"}, "m")
    provider.ask(messages, model=None, deadline=3, cancel=token, timeout=(1, 2.5), headers={"a": None}, retries=0)
    provider.ask([{"role": "user", "content": [image("photo.png"), {"type": "text", "text": "?"}]}])
    provider.ask("Hi", temperature=0.5, tools=[{"type": "function"}], seed=None, extra_body={"a": [1]})
    provider.ask(message for message in messages)

    provider.ask()  # type: ignore[call-arg]
    provider.ask(3)  # type: ignore[arg-type]
    provider.ask([b"Hi"])  # type: ignore[list-item]
    provider.ask("Hi", timeout="3")  # type: ignore[arg-type]
    provider.ask("Hi", retries="2")  # type: ignore[arg-type]
    provider.ask("Hi", "m", 3)  # type: ignore[call-arg]
    provider.stream("Hi", deadline="x")  # type: ignore[arg-type]
    provider.stream("Hi", cancel=True)  # type: ignore[arg-type]
    provider.open("Hi", headers="x")  # type: ignore[arg-type]
    provider.open("Hi", extra_body="x")  # type: ignore[arg-type]


def what_a_question_gives(provider: Provider) -> None:
    assert_type(provider.stream("Hi"), Generator[str, None, Reply])
    assert_type(provider.ask("Hi"), Reply)
    assert_type(provider.open("Hi"), LiveReply)
    assert_type(provider.models(), list[str])
    for piece in provider.stream("Hi"):
        assert_type(piece, str)
    with provider as same, same.open("Hi") as live:
        assert_type(same, Provider)
        assert_type(live, LiveReply)
        for piece in live:
            assert_type(piece, str)
        for event in live.events():
            assert_type(event, Event)
            assert_type(event.call, ToolCall | None)
        assert_type(live.text, str)
        assert_type(live.reply, Reply | None)
        print(live.reply.model)  # type: ignore[union-attr]
    with OpenAICompatible() as own:
        assert_type(own, OpenAICompatible)


def a_reply(reply: Reply, no_reply: str) -> None:
    assert_type(reply.upper(), str)
    assert_type(reply.model, str | None)
    assert_type(reply.finish_reason, str | None)
    assert_type(reply.usage, Mapping[str, Any] | None)
    assert_type(reply.tool_calls, tuple[ToolCall, ...])
    assert_type(reply.tool_calls[0].arguments, str)
    assert_type(reply.tool_calls[0].parsed(), dict[str, Any])
    assert_type(reply.reasoning, str | None)
    assert_type(reply.refusal, str | None)
    assert_type(reply.logprobs, Mapping[str, Any] | None)
    assert_type(reply.citations, list[Any] | None)
    assert_type(reply.headers, Mapping[str, str])
    assert_type(reply.message, dict[str, Any])
    assert_type(reply.seconds, float)
    assert_type(reply.first_piece_seconds, float | None)
    assert_type(reply.attempts, int)
    text: str = reply
    reply = no_reply  # type: ignore[assignment]
    print(text, reply.tool_call)  # type: ignore[attr-defined]


def a_conversation(provider: Provider, messages: list[dict[str, str]]) -> None:
    def weather(city: str, days: int = 1) -> str:
        return city * days

    conversation = Conversation(provider, "Be brief.", None, [weather], model="m", max_steps=3, temperature=0.5)
    Conversation(provider, messages=messages, trim=last_turns(3))
    Conversation(provider, trim=fits(100, lambda message: len(message["content"])))
    Conversation(provider, trim=lambda messages: messages[-1:])
    assert_type(conversation.stream("Hi"), Generator[str, None, Reply])
    assert_type(conversation.ask({"role": "user", "content": "Hi"}, "m", deadline=3, seed=1), Reply)
    assert_type(conversation.open("Hi", timeout=(1, None)), LiveReply)
    assert_type(conversation.messages, list[dict[str, Any]])
    assert_type(conversation.turns, tuple[Turn, ...])
    assert_type(conversation.turns[-1].reply, Reply | None)
    assert_type(conversation.fork(), Conversation)
    assert_type(conversation.undo().cut, bool)

    Conversation("openai")  # type: ignore[arg-type]
    Conversation(provider, history=messages)  # type: ignore[arg-type]
    Conversation(provider, tools=weather)  # type: ignore[arg-type]
    Conversation(provider, trim=3)  # type: ignore[arg-type]
    conversation.ask()  # type: ignore[call-arg]
    conversation.ask("Hi", retries="2")  # type: ignore[arg-type]


def a_history(provider: Provider) -> None:
    with History("chats.db", timeout=3) as history:
        assert_type(history, History)
        Conversation(provider, history=history)
        assert_type(history.conversation(1, provider, tools=[], temperature=0.5), Conversation)
        assert_type(history.latest(), int | None)
        assert_type(history.conversations(limit=3), list[Listed])
        assert_type(history.messages(1), list[dict[str, Any]])
        assert_type(history.search("sky")[0], Found)
        assert_type(history.jsonl(1, 2), Iterator[str])
        assert_type(history.markdown(), Iterator[str])

    History(3)  # type: ignore[arg-type]
    Conversation(provider, history="chats.db")  # type: ignore[arg-type]


def the_calls_of_old_code(provider: Ylokh, messages: list[dict[str, str]]) -> None:
    assert_type(Ylokh.create_completion("m", messages), Iterator[str])
    assert_type(provider.create_completion(None, "Hi", stream=False, proxy="", timeout=3), Iterator[str])
    Berlin.create_completion("m", messages, True, None, (1, 2), base_url=URL, account="me", temperature=0)

    Ylokh.create_completion("m")  # type: ignore[call-arg]
    Ylokh.create_completion("m", messages, timeout="3")  # type: ignore[arg-type]
    provider.create_completion("m", 3)  # type: ignore[arg-type]
    provider.create_completion("m", messages, stream="yes")  # type: ignore[arg-type]
    print(provider.create_completion("m", messages).reply)  # type: ignore[attr-defined]


def g4fs_calls(messages: list[dict[str, str]]) -> None:
    assert_type(ChatCompletion.create("m", messages, g4f.Provider.H2o), Reply)
    assert_type(ChatCompletion.create(g4f.models.Model("m"), messages, stream=True), Generator[str, None, Reply])
    assert_type(RetryProvider([Ylokh, "berlin"], shuffle=False).create_completion("m", messages), Iterator[str])

    ChatCompletion.create("m", messages, 3)  # type: ignore[call-overload]
    RetryProvider(["berlin"], shufle=False)  # type: ignore[call-arg]


def openais_calls(messages: list[dict[str, str]], stream: bool) -> None:
    client = Client(base_url=URL, api_key="x", timeout=3, max_retries=0)
    completion = client.chat.completions.create(model="m", messages=messages, temperature=0)
    assert_type(completion.choices[0].message.content, str | None)
    for chunk in client.with_options(timeout=5).chat.completions.create(model="m", messages=messages, stream=True):
        assert_type(chunk.choices[0].delta.content, str | None)
    assert_type(client.chat.completions.create(messages=messages, stream=stream), WholeCompletion | Stream)
    assert_type([model.id for model in client.models.list()], list[str])
    if completion.usage is not None:
        assert_type(completion.usage.total_tokens, int)

    print(completion.choice)  # type: ignore[attr-defined]
    client.chat.completions.create(model=3, messages=messages)  # type: ignore[call-overload]
    Client(URL)  # type: ignore[call-arg]


def several(provider: Provider) -> None:
    assert_type(Fallback([provider, H2o, "berlin"]).ask("Hi"), Reply)
    assert_type(Race([provider], stagger=0.5).stream("Hi"), Generator[str, None, Reply])
    assert_type(race([provider, "ylokh"], "Hi", stagger=1), Generator[str, None, Reply])
    assert_type(get_provider("h2o", base_url=URL), Provider)
    assert_type(provider_names(), list[str])
    for answer in ask_many(provider, ["one", "two"], max_workers=2, temperature=0):
        assert_type(answer, Answer)
        assert_type(answer.reply, Reply | None)
    for index, piece in stream_many(provider, ["one", "two"]):
        assert_type(index, int)
        assert_type(piece, str | ChatError)

    Fallback([3])  # type: ignore[list-item]
    Fallback([provider], model="m")  # type: ignore[call-arg]
    Race([provider], stagger="x")  # type: ignore[arg-type]
    ask_many(provider, ["one"], max_workers="2")  # type: ignore[arg-type]
    ask_many(provider, ["one"], on_error="ignore")  # type: ignore[arg-type]


class Plain(Provider):
    """A provider of one's own, with its types."""

    name = "plain"
    default_model = "any"

    def payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": messages[-1]["content"], **options}

    def pieces(
        self, exchange: Exchange, body: bytes, model: str, metadata: Metadata
    ) -> Generator[str | Event, None, None]:
        response = exchange.post("/say", body, any_label=True)
        yield Event("reasoning", "Hm.")
        yield from text(exchange.chunks(response))
        metadata.finish_reason, metadata.id = "stop", "1"
        metadata.usage = 3  # type: ignore[assignment]

    def model_names(self, exchange: Exchange) -> list[str]:
        return list(exchange.json(exchange.request("GET", "/models")))


class Broken(Provider):
    def payload(self, messages: str) -> str:  # type: ignore[override]
        return messages


def takes_a_callable(ask: Callable[[str], Reply], provider: Provider) -> None:
    takes_a_callable(provider.ask, Plain(URL, timeout=3))
    Plain(URL, timeut=3)  # type: ignore[call-arg]
