"""No piece is held back, whatever the framing; nothing depends on how the bytes were split."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from berlin_chat import Provider
from wire import (
    ACYTOO,
    BERLIN,
    FRAMINGS,
    H2O,
    PATIENCE,
    YLOKH,
    Chunked,
    Connection,
    ContentLength,
    Framing,
    Recorded,
    Speech,
    Wire,
    speak,
)

PIECES = ["Why", " is", " the sky", " blue? ", "ы🙂", '{"braces": "}"}', "\u2028 end \\"]
Make = Callable[..., Provider]


@pytest.mark.parametrize("framing", FRAMINGS, ids=lambda framing: framing.name)
def test_a_piece_reaches_the_loop_before_the_server_sends_the_next(
    speech: Speech, framing: type[Framing], provider_for: Make
) -> None:
    received = [threading.Event() for _ in PIECES]

    def lock_step(request: Recorded, connection: Connection) -> None:
        parts = speech.parts(PIECES)
        body = framing(connection, speech.kind, b"".join(parts))
        for part, arrived in zip(parts, received, strict=False):
            body.part(part)
            assert arrived.wait(PATIENCE), f"the loop did not get the piece of {part!r}"
        for part in parts[len(PIECES) :]:
            body.part(part)
        body.end()

    pieces = []
    for piece in provider_for(speech, lock_step).stream("Hi"):
        pieces.append(piece)
        received[len(pieces) - 1].set()
    assert pieces == PIECES


@pytest.mark.parametrize("framing", [Chunked, ContentLength], ids=lambda framing: framing.name)
def test_one_byte_at_a_time_gives_the_same_text_as_all_at_once(
    speech: Speech, framing: type[Framing], provider_for: Make
) -> None:
    def trickle(request: Recorded, connection: Connection) -> None:
        whole = b"".join(speech.parts(PIECES))
        body = framing(connection, speech.kind, whole)
        for index in range(len(whole)):
            body.part(whole[index : index + 1])
        body.end()

    trickled = provider_for(speech, trickle).ask("Hi")
    at_once = provider_for(speech, speak(speech, PIECES, framing)).ask("Hi")
    assert trickled == at_once == "".join(PIECES)


def test_pieces_inside_one_http_chunk_are_not_held_back_until_its_end(speech: Speech, provider_for: Make) -> None:
    received = [threading.Event() for _ in PIECES]

    def one_chunk(request: Recorded, connection: Connection) -> None:
        parts = speech.parts(PIECES)
        Chunked(connection, speech.kind, b"")
        connection.send(b"%x\r\n" % sum(map(len, parts)))
        for part, arrived in zip(parts, received, strict=False):
            connection.send(part)
            assert arrived.wait(PATIENCE), f"the loop did not get the piece of {part!r}"
        connection.send(b"".join(parts[len(PIECES) :]) + b"\r\n0\r\n\r\n")

    pieces = []
    for piece in provider_for(speech, one_chunk).stream("Hi"):
        pieces.append(piece)
        received[len(pieces) - 1].set()
    assert pieces == PIECES


def test_the_generator_returns_the_reply_that_ask_returns(speech: Speech, provider_for: Make) -> None:
    stream = provider_for(speech, speak(speech, ["a", "b"])).stream("Hi")
    pieces = []
    with pytest.raises(StopIteration) as end:
        while True:
            pieces.append(next(stream))
    reply = end.value.value
    assert reply == "".join(pieces) == "ab"
    assert reply.provider == speech.name
    assert reply.attempts == 1
    assert 0 < reply.seconds < PATIENCE


def ylokh_body(body: bytes, kind: str = "text/event-stream") -> Any:
    def script(request: Recorded, connection: Connection) -> None:
        connection.respond(200, body, {"Content-Type": kind})

    return script


CHUNK = b'{"choices":[{"delta":{"content":"%b"}}]}'
STOP = b'{"choices":[{"delta":{},"finish_reason":"stop"}]}'


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"data:" + CHUNK % b"Hi" + b"\n\ndata:[DONE]\n\n", id="no space after data:"),
        pytest.param(b"data: " + CHUNK % b"Hi" + b"\r\n\r\ndata: [DONE]\r\n\r\n", id="CRLF"),
        pytest.param(b": ping\n\ndata: " + CHUNK % b"Hi" + b"\n\n: ping\n\ndata: [DONE]\n\n", id="heartbeats"),
        pytest.param(
            b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
            b'data: {"choices":[{"delta":{"content":null}}]}\n\n'
            b"data: " + CHUNK % b"Hi" + b"\n\ndata: [DONE]\n\n",
            id="role only, and null content",
        ),
        pytest.param(
            b'data: {"choices":[],"prompt_filter_results":[]}\n\ndata: ' + CHUNK % b"Hi" + b"\n\ndata: [DONE]\n\n",
            id="empty choices",
        ),
        pytest.param(b"data: " + CHUNK % b"Hi" + b"\n\ndata: " + STOP + b"\n\n", id="no [DONE] after finish_reason"),
        pytest.param(b"data: " + CHUNK % b"Hi" + b"\n\ndata: [DONE]\n\nmore\n\ndata: x\n\n", id="bytes after [DONE]"),
        pytest.param(b"event: x\nid: 1\ndata: " + CHUNK % b"Hi" + b"\n\ndata: [DONE]\n\n", id="event and id"),
        pytest.param(
            b'data: {"choices":\ndata: [{"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\n',
            id="several data lines",
        ),
    ],
)
def test_what_real_chat_completion_servers_send_is_understood(body: bytes, provider_for: Make) -> None:
    assert provider_for(YLOKH, ylokh_body(body)).ask("Hi") == "Hi"


def test_a_plain_completion_is_understood_although_a_stream_was_asked_for(provider_for: Make) -> None:
    completion = (
        b'{"model":"m-2","usage":{"total_tokens":3},"choices":[{"message":{"content":"Hi"},"finish_reason":"length"}]}'
    )
    reply = provider_for(YLOKH, ylokh_body(completion, "application/json; charset=utf-8")).ask("Hi")
    assert (reply, reply.model, reply.finish_reason) == ("Hi", "m-2", "length")
    assert reply.usage == {"total_tokens": 3}


def test_usage_behind_the_last_text_is_kept(provider_for: Make) -> None:
    body = (
        b'data: {"model":"m-3","choices":[{"delta":{"content":"Hi"}}]}\n\ndata: '
        + STOP
        + b'\n\ndata: {"choices":[],"usage":{"total_tokens":5}}\n\ndata: [DONE]\n\n'
    )
    reply = provider_for(YLOKH, ylokh_body(body)).ask("Hi")
    assert (reply.model, reply.finish_reason, reply.usage) == ("m-3", "stop", {"total_tokens": 5})


def test_special_tokens_of_h2o_are_dropped(provider_for: Make) -> None:
    from wire import h2o_event

    parts = h2o_event("a") + h2o_event("<unk>", special=True) + h2o_event("b", generated="ab")

    def script(request: Recorded, connection: Connection) -> None:
        connection.respond(200, parts, {"Content-Type": "text/event-stream"})

    assert list(provider_for(H2O, script).stream("Hi")) == ["a", "b"]


def test_blank_lines_and_other_keys_of_berlin_are_skipped(provider_for: Make) -> None:
    body = b'\n{"id":"1","role":"assistant","content":"a","detail":{"x":[1]}}\n\r\n\n{"content":""}\n{"content":"b"}\n'

    def script(request: Recorded, connection: Connection) -> None:
        connection.respond(200, body)

    assert list(provider_for(BERLIN, script).stream("Hi")) == ["a", "b"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [("text/plain", "ы"), ("text/plain; charset=utf-8", "ы"), ("text/markdown; charset=windows-1251", "ы")],
)
def test_acytoo_takes_the_charset_of_the_response_and_utf8_otherwise(kind: str, body: str, provider_for: Make) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        encoding = "windows-1251" if "1251" in kind else "utf-8"
        connection.respond(200, body.encode(encoding), {"Content-Type": kind})

    assert provider_for(ACYTOO, script).ask("Hi") == body


def test_the_connection_is_used_again_after_the_end_marker(provider_for: Make, wire: Wire) -> None:
    for speech in (YLOKH, H2O):
        provider = provider_for(speech, speak(speech, ["a"]))
        before = len(wire.connections)
        for _ in range(5):
            provider.ask("Hi")
        assert len(wire.connections) - before == 1, f"{speech.name} made new connections"


@pytest.mark.parametrize("speech", [YLOKH, H2O], ids=lambda speech: speech.name)
def test_a_server_that_keeps_the_reply_open_after_its_end_does_not_keep_the_caller(
    speech: Speech, provider_for: Make
) -> None:
    def open_end(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, speech.kind, b"")
        for part in speech.parts(["a"]):
            body.part(part)
        connection.wait_until_client_closes()

    reply = provider_for(speech, open_end).ask("Hi")
    assert reply == "a"
    assert reply.seconds < 1.0


@pytest.mark.parametrize("kind", ["application/grpc", "application/octet-stream", "text/markdown; charset=utf-8"])
def test_acytoo_takes_what_is_labelled_neither_as_json_nor_as_a_page_for_text(kind: str, provider_for: Make) -> None:
    provider = provider_for(ACYTOO, lambda request, connection: connection.respond(200, b"a", {"Content-Type": kind}))
    assert provider.ask("Hi") == "a"
