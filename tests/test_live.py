"""``Provider.open``: a reply while it grows, with all that comes beside its text."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from berlin_chat import (
    Cancelled,
    CancelToken,
    Event,
    Fallback,
    InvalidRequest,
    LiveReply,
    Provider,
    Race,
    StreamInterrupted,
    ToolCall,
)
from test_cancelling import silent
from wire import OPENAI, Chunked, Connection, Recorded, Speech, Wire, speak, wait_for

Make = Callable[..., Provider]

DELTAS: list[dict[str, Any]] = [
    {"role": "assistant", "content": "", "reasoning_content": "Hm"},
    {"reasoning_content": "…"},
    {"content": "I look"},
    {"content": " it up."},
    {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "find", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"what":'}}]},
    {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "ask", "arguments": "{}"}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"sky"}'}}]},
    {"refusal": "No."},
]
#: The kinds and texts of the events that stand for them.
EVENTS = [
    ("reasoning", "Hm"),
    ("reasoning", "…"),
    ("text", "I look"),
    ("text", " it up."),
    ("tool_call", ""),
    ("tool_call", '{"what":'),
    ("tool_call", "{}"),
    ("tool_call", '"sky"}'),
    ("refusal", "No."),
]


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


def says(*deltas: dict[str, Any], finish: str | None = "stop") -> Callable[[Recorded, Connection], None]:
    def script(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, "text/event-stream", b"")
        for delta in deltas:
            body.part(chunk(delta))
        body.part(chunk({}, finish) if finish else b"")
        body.end()

    return script


def test_events_come_in_the_order_of_the_reply(provider_for: Make) -> None:
    with provider_for(OPENAI, says(*DELTAS, finish="tool_calls")).open("Hi") as live:
        assert live.reply is None
        events = list(live.events())
    assert [(event.kind, event.text) for event in events] == EVENTS
    reply = live.reply
    assert reply is not None
    assert (reply, live.text, reply.reasoning, reply.refusal) == ("I look it up.", "I look it up.", "Hm…", "No.")
    assert reply.tool_calls == (ToolCall("c1", "find", '{"what":"sky"}'), ToolCall("c2", "ask", "{}"))
    assert reply.finish_reason == "tool_calls"
    calls = [(event.place, event.call.id, event.call.arguments) for event in events if event.call]
    assert calls == [(0, "c1", ""), (0, "c1", '{"what":'), (1, "c2", "{}"), (0, "c1", '"sky"}')]


def test_the_loop_over_it_gives_the_text_and_leaves_the_reply(speech: Speech, provider_for: Make) -> None:
    with provider_for(speech, speak(speech, ["one", "two"])).open("Hi") as live:
        found = []
        for piece in live:
            found.append(piece)
            assert live.text == "".join(found)
            assert live.reply is None
    assert ("".join(found), live.reply, live.text) == ("onetwo", "onetwo", "onetwo")
    assert list(live) == []
    assert list(live.events()) == []


def test_it_is_an_iterator_that_goes_on_where_it_was_left(provider_for: Make) -> None:
    with provider_for(OPENAI, says(*DELTAS)).open("Hi") as live:
        assert isinstance(live, Iterator)
        assert next(live) == "I look"
        assert next(live.events()) == Event("text", " it up.")
        assert next(live, "no more") == "no more"
        assert live.reply is not None


def test_an_event_is_there_before_the_server_goes_on(provider_for: Make) -> None:
    seen, unseen = threading.Event(), []

    def script(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, "text/event-stream", b"")
        for delta in ({"reasoning_content": "Hm"}, {"content": "Hi"}):
            body.part(chunk(delta))
            if not seen.wait(5):
                unseen.append(delta)
            seen.clear()
        body.part(chunk({}, "stop"))
        body.end()

    with provider_for(OPENAI, script).open("Hi") as live:
        for _ in live.events():
            seen.set()
    assert unseen == []
    assert live.reply == "Hi"


def test_stream_stays_a_plain_generator_of_text(provider_for: Make) -> None:
    assert list(provider_for(OPENAI, says(*DELTAS)).stream("Hi")) == ["I look", " it up."]


def test_the_first_piece_is_the_first_text(provider_for: Make) -> None:
    provider = provider_for(OPENAI, says({"reasoning_content": "Hm"}))
    with provider.open("Hi") as live:
        assert [event.kind for event in live.events()] == ["reasoning"]
    assert live.reply is not None
    assert (live.reply.first_piece_seconds, provider.ask("Hi").first_piece_seconds) == (None, None)
    provider = provider_for(OPENAI, says(*DELTAS))
    with provider.open("Hi") as live:
        list(live)
    for reply in (live.reply, provider.ask("Hi")):
        assert reply is not None
        assert reply.first_piece_seconds is not None
        assert 0 < reply.first_piece_seconds <= reply.seconds


def test_a_reply_that_is_cut_off_keeps_its_text(provider_for: Make) -> None:
    with provider_for(OPENAI, says({"content": "Half a"}, finish=None)).open("Hi") as live:
        with pytest.raises(StreamInterrupted) as caught:
            list(live.events())
        assert (live.text, live.reply, caught.value.partial) == ("Half a", None, "Half a")


def test_what_was_shown_is_not_asked_again(provider_for: Make, wire: Wire) -> None:
    script = says({"reasoning_content": "Hm"}, finish=None)
    with provider_for(OPENAI, script, retries=2).open("Hi") as live, pytest.raises(StreamInterrupted):
        list(live.events())
    assert len(wire.requests) == 1


def test_cancel_ends_it_from_another_thread(speech: Speech, provider_for: Make) -> None:
    with provider_for(speech, silent).open("Hi") as live:
        threading.Timer(0.1, live.cancel).start()
        with pytest.raises(Cancelled):
            next(live)


def test_it_has_a_cancel_of_its_own_beside_the_callers(provider_for: Make) -> None:
    token = CancelToken()
    provider = provider_for(OPENAI, silent)
    first, second = provider.open("Hi", cancel=token), provider.open("Hi", cancel=token)
    first.cancel()
    with pytest.raises(Cancelled):
        next(first)
    assert not token.cancelled
    token.cancel()
    with pytest.raises(Cancelled):
        next(second)
    assert not token._callbacks, "a reply that has ended is still watched"


def test_one_that_is_left_or_refused_keeps_nothing_in_the_callers_token(provider_for: Make) -> None:
    token = CancelToken()
    provider = provider_for(OPENAI, says(*DELTAS))
    with pytest.raises(InvalidRequest):
        provider.open("", cancel=token)
    provider.open("Hi", cancel=token)
    next(provider.open("Hi", cancel=token))
    gc.collect()
    assert not token._callbacks


@pytest.mark.parametrize("key", ["reasoning_content", "refusal"])
def test_half_of_a_character_at_the_end_of_thinking_or_refusal_is_told_as_in_the_reply(
    key: str, provider_for: Make
) -> None:
    provider = provider_for(OPENAI, says({"content": "a"}, {key: "Hm\ud83d"}))
    with provider.open("Hi") as live:
        told = "".join(event.text for event in live.events() if event.kind != "text")
    assert told == (live.reply.reasoning or live.reply.refusal) == "Hm\ufffd"


def test_a_torn_pair_in_the_arguments_is_put_together_in_the_events(provider_for: Make) -> None:
    halves = ('{"a":"\ud83d', '\ude42"}')
    deltas = [
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": half}}]} for half in halves
    ]
    with provider_for(OPENAI, says(*deltas)).open("Hi") as live:
        assert "".join(event.text for event in live.events()) == '{"a":"🙂"}'


def test_leaving_it_closes_its_connection(speech: Speech, provider_for: Make, wire: Wire) -> None:
    def half(request: Recorded, connection: Connection) -> None:
        Chunked(connection, speech.kind, b"").part(speech.parts(["one", "two"])[0] + b"\n")
        connection.wait_until_client_closes()

    with provider_for(speech, half).open("Hi") as live:
        assert next(live).strip() == "one"
    assert (live.text.strip(), live.reply) == ("one", None)
    assert list(live) == []
    assert wait_for(lambda: any(connection.gone.is_set() for connection in wire.connections))


@pytest.mark.parametrize("group", [Fallback, Race])
def test_a_group_hands_the_events_on(group: Any, provider_for: Make) -> None:
    with group([provider_for(OPENAI, says(*DELTAS))]).open("Hi") as live:
        assert [(event.kind, event.text) for event in live.events()] == EVENTS
    assert live.reply is not None
    assert live.reply.reasoning == "Hm…"


@pytest.mark.parametrize("wrong", [{"cancel": 5}, {"deadline": -1}, {"messages": ""}], ids=str)
def test_its_arguments_are_checked_at_the_call(wrong: dict[str, Any], provider_for: Make, wire: Wire) -> None:
    with pytest.raises(InvalidRequest):
        provider_for(OPENAI, says()).open(**{"messages": "Hi", **wrong})
    assert wire.requests == []


def test_nothing_is_sent_before_something_is_read(speech: Speech, provider_for: Make, wire: Wire) -> None:
    with provider_for(speech, speak(speech, ["Hi"])).open("Hi") as live:
        assert isinstance(live, LiveReply)
    assert wire.requests == []
