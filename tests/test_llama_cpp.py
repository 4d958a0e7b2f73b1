"""A real peer that nobody here wrote: llama.cpp's own server, directly and behind the embedded server.

The model is tiny, random and made by the tests: it says a dozen words, thousands a second, without end if it may.
Two facts about the server explain the settings: it closes the connection behind each streamed reply although it says
that it keeps it, so that the next question may have to be sent again; and with one slot it answers nobody while a
reply goes on, so that whoever gets an answer proves that the one before was ended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from berlin_chat import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Cancelled,
    CancelToken,
    ChatError,
    OpenAICompatible,
    Provider,
    StreamInterrupted,
)
from berlin_chat.server import LocalServer
from command import run, started
from llama_cpp import KEY, MODEL, WORDS, LlamaCpp
from peer import PATIENCE

PROTOCOLS = ("berlin", "ylokh", "h2o", "acytoo", "openai")
#: The likeliest words, always the same, and a few of them.
BRIEF = {"temperature": 0, "max_tokens": 24}
#: Without an end, whatever a protocol's own limit is: the model may not say that it has done.
ENDLESS = {"temperature": 0, "ignore_eos": True, "max_tokens": -1}
#: How many pieces are read before something happens to a reply.
SOME = 40


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    server = LlamaCpp(tmp_path_factory.mktemp("llama"))
    try:
        server.start()
        yield server
    finally:
        server.close()


class Asking(OpenAICompatible):
    """Asks with options of its own, whatever the question's protocol has words for."""

    def __init__(self, options: dict[str, Any] | None = None, **config: Any) -> None:
        super().__init__(**config)
        self._options = options or {}

    def payload(self, messages: list[dict[str, Any]], model: str, options: dict[str, Any]) -> dict[str, Any]:
        return {**super().payload(messages, model, options), **self._options}


Ask = Callable[..., Provider]


@pytest.fixture
def ask(llama: LlamaCpp) -> Iterator[Ask]:
    """Makes providers that ask the server, closed at the end of the test."""
    with ExitStack() as stack:

        def make(**config: Any) -> Provider:
            known = {"base_url": llama.url, "api_key": KEY, "proxy": "", "timeout": PATIENCE}
            return stack.enter_context(Asking(**{**known, **config}))

        yield make


@pytest.fixture
def gateway(ask: Ask) -> Iterator[Callable[..., Provider]]:
    """Makes providers of any protocol that ask an embedded server, which asks llama.cpp's with the given options."""
    with ExitStack() as stack:

        def make(name: str, **options: Any) -> Provider:
            server = stack.enter_context(LocalServer(upstream=ask(options=options)))
            return stack.enter_context(server.provider(name, timeout=PATIENCE))

        yield make


def some(provider: Provider, **how: Any) -> tuple[Generator[str, None, Any], list[str]]:
    """A reply under way, and its first pieces."""
    stream = provider.stream("Hi", **how)
    return stream, [next(stream) for _ in range(SOME)]


# What it says


def test_a_reply_streams_word_by_word_with_all_that_is_told_beside_it(ask: Ask) -> None:
    provider = ask()
    pieces = list(provider.stream("Why is the sky blue?", **BRIEF))
    assert len(pieces) == BRIEF["max_tokens"]
    assert set("".join(pieces).split()) <= set(WORDS)
    reply = provider.ask("Why is the sky blue?", **BRIEF, stream_options={"include_usage": True})
    assert reply == "".join(pieces)
    assert (reply.finish_reason, reply.model) == ("length", MODEL)
    assert reply.id
    assert reply.usage
    assert reply.usage["completion_tokens"] == BRIEF["max_tokens"]
    assert reply.usage["total_tokens"] == reply.usage["prompt_tokens"] + BRIEF["max_tokens"]


def test_a_reply_that_is_not_streamed_is_the_same(ask: Ask) -> None:
    provider = ask()
    whole = provider.ask("Hi", stream=False, **BRIEF)
    assert (whole, whole.finish_reason) == (provider.ask("Hi", **BRIEF), "length")


def test_its_models_are_listed(ask: Ask) -> None:
    assert ask().models() == [MODEL]


def test_a_stop_sequence_ends_the_reply_before_it(ask: Ask) -> None:
    provider = ask()
    whole = provider.ask("Hi", **BRIEF)
    stop = whole.split()[3]
    reply = provider.ask("Hi", **BRIEF, stop=[stop])
    assert (reply, reply.finish_reason) == (whole[: whole.index(stop)], "stop")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_log_probabilities_are_those_of_the_text(stream: bool, ask: Ask) -> None:
    reply = ask().ask("Hi", **BRIEF, logprobs=True, top_logprobs=2, stream=stream)
    assert reply.logprobs
    tokens = reply.logprobs["content"]
    assert "".join(token["token"] for token in tokens).strip() == reply.strip()
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in tokens)


def test_a_json_schema_is_obeyed(ask: Ask) -> None:
    schema = {"type": "string", "enum": ["небо 🙂"]}
    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": schema}}
    assert ask().ask("Hi", max_tokens=64, response_format=form) == '"небо 🙂"'


# What it refuses


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}, "nonsense"),
        ({"max_tokens": "many"}, "max_tokens"),
    ],
    ids=["a schema that is none", "a number that is none"],
)
def test_a_refused_question_is_a_status_error_in_its_words(options: dict[str, Any], says: str, ask: Ask) -> None:
    with pytest.raises(APIStatusError, match=says) as caught:
        ask().ask("Hi", **options)
    assert (caught.value.status, caught.value.partial) == (400, "")


def test_a_question_that_is_too_long_is_a_status_error(ask: Ask) -> None:
    with pytest.raises(APIStatusError, match="context size") as caught:
        ask().ask("long " * 1000)
    assert caught.value.status == 400


def test_an_unknown_route_is_a_status_error(ask: Ask) -> None:
    with pytest.raises(APIStatusError) as caught:
        ask(base_url=f"{ask().base_url}/nowhere").ask("Hi")
    assert caught.value.status == 404


def test_a_wrong_key_is_refused_and_not_told(ask: Ask) -> None:
    with pytest.raises(AuthenticationError) as caught:
        ask(api_key="sk-somebody-elses").ask("Hi")
    assert caught.value.status == 401
    assert "sk-somebody-elses" not in str(caught.value)


# Through the embedded server


@pytest.mark.parametrize("name", PROTOCOLS)
def test_all_protocols_stream_through_the_server(name: str, ask: Ask, gateway: Callable[..., Provider]) -> None:
    pieces = list(gateway(name, **BRIEF).stream("Hi"))
    assert "".join(pieces) == ask().ask("Hi", **BRIEF)
    assert len(pieces) > (0 if name == "acytoo" else 5), f"this is no stream: {pieces}"


@pytest.mark.parametrize("name", ["berlin", "ylokh", "h2o", "openai"])
def test_its_refusal_reaches_all_protocols_through_the_server(name: str, gateway: Callable[..., Provider]) -> None:
    with pytest.raises(APIStatusError, match="max_tokens") as caught:
        gateway(name, max_tokens="many").ask("Hi")
    assert caught.value.status == 400
    assert KEY not in str(caught.value) + str(caught.value.body)


def test_the_command_asks_it_through_the_commands_server(llama: LlamaCpp, ask: Ask) -> None:
    secret = {"BERLIN_CHAT_API_KEY": KEY}
    with started("serve", "--port", "0", "--upstream", llama.url, **secret) as process:
        assert process.stderr
        found = re.search(r"http://\S+", process.stderr.readline().decode())
        assert found
        ran = run("ask", "-p", "h2o", "--base-url", found[0], "Hi", "-o", "max_new_tokens=24")
    assert (ran.code, ran.err) == (0, "")
    assert set(ran.out.split()) <= set(WORDS)


# Left in the middle


def cancelled(provider: Provider) -> None:
    token = CancelToken()
    stream, pieces = some(provider, cancel=token)
    token.cancel()
    with pytest.raises(Cancelled) as caught:
        pieces.extend(stream)
    assert caught.value.partial == "".join(pieces)


def out_of_time(provider: Provider) -> None:
    pieces = []
    with pytest.raises(APITimeoutError) as caught:
        for piece in provider.stream("Hi", deadline=1.0):
            pieces.append(piece)
    assert pieces
    assert caught.value.partial == "".join(pieces)


def left(provider: Provider) -> None:
    stream, _ = some(provider)
    stream.close()


@pytest.mark.parametrize(
    ("way", "how"),
    [("directly", out_of_time), *((way, how) for way in ("directly", *PROTOCOLS) for how in (cancelled, left))],
)
def test_a_reply_that_nobody_reads_is_stopped_there(
    way: str, how: Callable[[Provider], Any], llama: LlamaCpp, ask: Ask, gateway: Callable[..., Provider]
) -> None:
    provider = ask(options=ENDLESS) if way == "directly" else gateway(way, **ENDLESS)
    before = len(llama.log())
    how(provider)
    task = llama.wait_for_log(r"cancel task, id_task = (\d+)", before)[1]
    llama.wait_for_log(rf"task {task} \| stop processing", before)
    assert ask().ask("Hi", **BRIEF)


# Killed in the middle


def test_a_server_that_is_killed_interrupts_the_reply_and_answers_when_it_is_back(llama: LlamaCpp, ask: Ask) -> None:
    provider = ask()
    stream, pieces = some(provider, **ENDLESS)
    llama.kill()
    try:
        with pytest.raises(StreamInterrupted) as caught:
            pieces.extend(stream)
        assert caught.value.partial == "".join(pieces)
        with pytest.raises(APIConnectionError):
            provider.ask("Hi", retries=0)
    finally:
        llama.start()
    reply = provider.ask("Hi", **BRIEF)
    assert "".join(pieces).startswith(reply)


#: What a reply ends in that was cut behind the embedded server: the error that the protocol has for it.
CUT = {
    "berlin": APIStatusError,
    "ylokh": APIStatusError,
    "h2o": APIStatusError,
    "acytoo": StreamInterrupted,
    "openai": APIStatusError,
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_protocol_tells_of_a_killed_server_through_the_embedded_one(
    name: str, llama: LlamaCpp, gateway: Callable[..., Provider]
) -> None:
    provider = gateway(name, **ENDLESS)
    stream, pieces = some(provider)
    llama.kill()
    try:
        with pytest.raises(CUT[name]) as caught:
            pieces.extend(stream)
        assert type(caught.value) is CUT[name]
        assert caught.value.partial == "".join(pieces)
        with pytest.raises(ChatError):
            provider.ask("Hi", retries=0)
    finally:
        llama.start()
    stream, again = some(provider)
    stream.close()
    assert "".join(again)
