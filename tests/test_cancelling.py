"""A cancel from another thread, a deadline and close() end whatever blocks, within 0.2 s."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest
import requests

from berlin_chat import APITimeoutError, Cancelled, CancelToken, ChatError, Provider, get_provider
from wire import (
    FRAMINGS,
    PATIENCE,
    YLOKH,
    Chunked,
    Connection,
    Framing,
    Recorded,
    Script,
    Speech,
    Stopwatch,
    Wire,
    head,
    speak,
)

Make = Callable[..., Provider]
#: How late an end may come, in seconds: the promise of the design.
PROMISE = 0.2
DUE = 0.3


def silent(request: Recorded, connection: Connection) -> None:
    connection.wait_until_client_closes()


def silent_after_headers(request: Recorded, connection: Connection) -> None:
    connection.send(head(200, {"Content-Type": "text/plain", "Transfer-Encoding": "chunked"}))
    connection.wait_until_client_closes()


def dripping(what: bytes) -> Script:
    def script(request: Recorded, connection: Connection) -> None:
        while not connection.gone.wait(0.02):
            connection.send(what)

    return script


def dripping_header(request: Recorded, connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    dripping(b"x")(request, connection)


def dripping_chunk_size(request: Recorded, connection: Connection) -> None:
    connection.send(head(200, {"Content-Type": "text/plain", "Transfer-Encoding": "chunked"}) + b"5;x=")
    dripping(b"y")(request, connection)


def dripping_body(request: Recorded, connection: Connection) -> None:
    connection.send(head(200, {"Content-Type": "text/event-stream", "Connection": "close"}))
    dripping(b" ")(request, connection)


BLOCKING = [silent, silent_after_headers, dripping_header, dripping_chunk_size, dripping_body]


@pytest.mark.parametrize("script", BLOCKING, ids=lambda script: script.__name__)
def test_a_deadline_is_kept(script: Script, speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, script)
    watch = Stopwatch()
    with pytest.raises(APITimeoutError, match="deadline"):
        for _ in provider.stream("Hi", deadline=DUE):
            pass  # Acytoo's text is whatever comes
    assert watch.seconds > DUE - 0.01
    late = watch.undisturbed - DUE
    assert late < PROMISE, f"the end came {late:.2f} s late"


@pytest.mark.parametrize("script", BLOCKING, ids=lambda script: script.__name__)
def test_a_cancel_ends_a_blocked_read(script: Script, speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, script)
    token = CancelToken()
    due: list[Stopwatch] = []

    def cancel() -> None:
        due.append(Stopwatch())
        token.cancel()

    threading.Timer(DUE, cancel).start()
    with pytest.raises(Cancelled):
        for _ in provider.stream("Hi", cancel=token):
            pass
    late = due[0].undisturbed
    assert late < PROMISE, f"the end came {late:.2f} s late"


@pytest.mark.parametrize("framing", FRAMINGS, ids=lambda framing: framing.name)
def test_a_cancel_in_mid_stream_keeps_the_text_and_closes_the_connection(
    framing: type[Framing], speech: Speech, provider_for: Make
) -> None:
    noticed = threading.Event()

    def stall(request: Recorded, connection: Connection) -> None:
        parts = speech.parts(["one", " two"])
        framing(connection, speech.kind, b"".join(parts)).part(parts[0])
        connection.wait_until_client_closes()
        noticed.set()

    token = CancelToken()
    with pytest.raises(Cancelled) as caught:
        for _ in provider_for(speech, stall).stream("Hi", cancel=token):
            threading.Timer(0.02, token.cancel).start()
    assert caught.value.partial == "one"
    assert noticed.wait(PATIENCE), "the server was not told"


def test_close_ends_what_is_under_way(speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, silent)
    threading.Timer(0.05, provider.close).start()
    with pytest.raises(Cancelled):
        provider.ask("Hi")
    with pytest.raises(Cancelled, match="closed"):
        provider.stream("Hi")


def test_one_token_ends_many_questions(speech: Speech, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(speech, silent)
    token = CancelToken()
    outcomes: list[ChatError] = []

    def ask() -> None:
        with pytest.raises(Cancelled) as caught:
            provider.ask("Hi", cancel=token)
        outcomes.append(caught.value)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while len(wire.asked(*speech.route)) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    token.cancel()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(outcomes) == 20


def test_a_cancelled_token_ends_a_question_before_anything_is_sent(
    speech: Speech, provider_for: Make, wire: Wire
) -> None:
    token = CancelToken()
    token.cancel()
    stream = provider_for(speech, silent).stream("Hi", cancel=token)
    with pytest.raises(Cancelled):
        next(stream)
    assert wire.requests == []
    assert token.cancelled
    assert "cancelled" in repr(token)


def test_a_token_that_is_cancelled_after_the_reply_harms_nobody(speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, speak(speech, ["a"]))
    for _ in range(20):
        token = CancelToken()
        assert provider.ask("Hi", cancel=token) == "a"
        token.cancel()


def test_a_deadline_that_is_long_enough_harms_nobody_and_leaves_no_thread(speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, speak(speech, ["a", "b"]))
    before = {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)}
    for _ in range(5):
        assert provider.ask("Hi", deadline=60) == "ab"
    assert {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)} == before


def test_a_deadline_also_counts_while_the_loop_is_busy(provider_for: Make) -> None:
    def two_pieces(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, YLOKH.kind, b"")
        for part in YLOKH.parts(["a", "b"])[:2]:
            body.part(part)
        connection.wait_until_client_closes()

    pieces = []
    with pytest.raises(APITimeoutError) as caught:
        for piece in provider_for(YLOKH, two_pieces).stream("Hi", deadline=0.2):
            pieces.append(piece)
            time.sleep(0.15)
    assert caught.value.partial == "".join(pieces) != ""


def test_a_session_of_the_callers_can_be_cancelled_too(speech: Speech, wire: Wire) -> None:
    wire.routes[:] = [*speech.before, (*speech.route, silent)]
    with requests.Session() as session:
        provider = get_provider(speech.name, base_url=wire.url, session=session, **speech.config)
        watch = Stopwatch()
        with pytest.raises(APITimeoutError):
            provider.ask("Hi", deadline=DUE)
        assert watch.undisturbed < DUE + PROMISE


def test_a_finished_question_is_forgotten_by_its_token(provider_for: Make) -> None:
    token = CancelToken()
    provider = provider_for(YLOKH, speak(YLOKH, ["a"]))
    provider.ask("Hi", cancel=token)
    gc.collect()
    assert token._callbacks == {}
    assert provider._transport._live == set()
