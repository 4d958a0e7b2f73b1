"""What is tried again before the first piece, and what never is."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate

import pytest

from berlin_chat import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Cancelled,
    CancelToken,
    ChatError,
    Provider,
    RateLimitError,
    StreamInterrupted,
    Ylokh,
)
from berlin_chat.http import connecting
from berlin_chat.http.retries import LONGEST_RETRY_AFTER, retry_after, retry_policy
from berlin_chat.http.transport import Exchange
from wire import YLOKH, Chunked, Connection, Recorded, Script, Speech, Wire, speak

Make = Callable[..., Provider]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("berlin_chat.http.retries.FIRST_WAIT", 0.01)


def first(failures: int, failing: Script, then: Script) -> Script:
    """Fails so often, then works."""
    asked = []

    def script(request: Recorded, connection: Connection) -> None:
        asked.append(1)
        (failing if len(asked) <= failures else then)(request, connection)

    return script


def status(number: int, headers: dict[str, str] | None = None) -> Script:
    return lambda request, connection: connection.respond(number, {"error": "not now"}, headers)


def close(request: Recorded, connection: Connection) -> None:
    connection.close()


@pytest.mark.parametrize("number", [408, 425, 429, 500, 502, 503, 504])
def test_a_transient_status_is_tried_again(number: int, speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, first(2, status(number), speak(speech, ["ok"])), retries=2)
    reply = provider.ask("Hi")
    assert (reply, reply.attempts) == ("ok", 3)


def test_a_connection_closed_before_the_answer_is_tried_again(speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, first(2, close, speak(speech, ["ok"])), retries=2)
    assert provider.ask("Hi") == "ok"


@pytest.mark.parametrize("number", [400, 401, 403, 404, 405, 410, 422, 501])
def test_another_status_is_not_tried_again(number: int, provider_for: Make, wire: Wire) -> None:
    with pytest.raises(ChatError):
        provider_for(YLOKH, status(number), retries=5).ask("Hi")
    assert len(wire.requests) == 1


def test_retries_zero_means_never(provider_for: Make, wire: Wire) -> None:
    with pytest.raises(APIStatusError) as caught:
        provider_for(YLOKH, status(503), retries=0).ask("Hi")
    assert len(wire.requests) == 1
    assert caught.value.attempts == 1


def test_after_the_retries_the_last_error_is_raised(provider_for: Make, wire: Wire) -> None:
    with pytest.raises(RateLimitError) as caught:
        provider_for(YLOKH, status(429, {"Retry-After": "0"}), retries=3).ask("Hi")
    assert len(wire.requests) == 4
    assert caught.value.attempts == 4


def test_no_connection_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    real = Ylokh(base_url="http://127.0.0.1:1", retries=2)
    send = real._transport.send
    monkeypatch.setattr(real._transport, "send", lambda *args: (sent.append(1), send(*args))[1])
    with pytest.raises(APIConnectionError):
        real.ask("Hi")
    assert len(sent) == 3


def test_nothing_is_tried_again_after_the_first_piece(speech: Speech, provider_for: Make, wire: Wire) -> None:
    def cut(request: Recorded, connection: Connection) -> None:
        Chunked(connection, speech.kind, b"").part(speech.parts(["a", "b"])[0])
        connection.close()

    with pytest.raises(StreamInterrupted):
        provider_for(speech, cut, retries=5).ask("Hi")
    assert len(wire.asked(*speech.route)) == 1


def test_a_read_timeout_is_not_tried_again(provider_for: Make, wire: Wire) -> None:
    silent: Script = lambda request, connection: connection.wait_until_client_closes()  # noqa: E731
    with pytest.raises(APITimeoutError):
        provider_for(YLOKH, silent, retries=5, timeout=0.05).ask("Hi")
    assert len(wire.requests) == 1


def test_retry_after_in_seconds_is_obeyed(provider_for: Make) -> None:
    provider = provider_for(YLOKH, first(1, status(429, {"Retry-After": "0.3"}), speak(YLOKH, ["ok"])), retries=1)
    assert provider.ask("Hi").seconds >= 0.3


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("", None), ("soon", None), ("-5", None), (formatdate(0, usegmt=True), 0.0)],
)
def test_retry_after_is_read(value: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": value}) == seconds


def test_retry_after_as_a_date_is_read() -> None:
    found = retry_after({"Retry-After": formatdate(time.time() + 30, usegmt=True)})
    assert found is not None
    assert 27 < found <= 31


def test_the_policy_is_exponential_capped_and_obeys_the_server_up_to_a_limit() -> None:
    waits: list[float] = []
    policy = retry_policy(12, waits.append)

    def fail() -> None:
        asked = 10_000.0 if len(waits) == 11 else None
        raise RateLimitError("slow", status=429, retry_after=asked)

    with pytest.raises(RateLimitError):
        policy(fail)
    assert len(waits) == 12
    assert all(2**n * 0.01 <= wait <= 2**n * 0.01 + 0.01 for n, wait in enumerate(waits[:9]))
    assert max(waits[:11]) <= 8.0 + 0.01
    assert waits[11] == LONGEST_RETRY_AFTER


def test_a_wait_is_cut_short_by_the_deadline(provider_for: Make) -> None:
    provider = provider_for(YLOKH, status(503, {"Retry-After": "30"}), retries=3)
    started = time.monotonic()
    with pytest.raises(APITimeoutError) as caught:
        provider.ask("Hi", deadline=0.2)
    assert time.monotonic() - started < 0.4
    assert isinstance(caught.value.__cause__, APIStatusError), "the reason for the wait is not told"


def test_a_wait_is_cut_short_by_a_cancel(provider_for: Make, wire: Wire) -> None:
    token = CancelToken()

    def refuse(request: Recorded, connection: Connection) -> None:
        status(503, {"Retry-After": "30"})(request, connection)
        token.cancel()

    started = time.monotonic()
    with pytest.raises(Cancelled):
        provider_for(YLOKH, refuse, retries=3).ask("Hi", cancel=token)
    assert time.monotonic() - started < 0.5
    assert len(wire.requests) == 1


def test_a_kept_connection_that_the_server_has_closed_is_no_failure(
    speech: Speech, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(speech, speak(speech, ["ok"]))
    for _ in range(3):
        assert provider.ask("Hi") == "ok"
        for connection in list(wire.connections):
            connection.close()


def test_a_kept_connection_that_closes_when_it_is_used_again_is_asked_again_at_once(
    speech: Speech, provider_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers announce that they keep a connection, and do not: the question may come just before its end."""
    used: set[Connection] = set()

    def once(request: Recorded, connection: Connection) -> None:
        (close if connection in used else speak(speech, ["ok"]))(request, connection)
        used.add(connection)

    monkeypatch.setattr("berlin_chat.http.retries.FIRST_WAIT", 60.0)
    provider = provider_for(speech, once, retries=1)
    for attempts in (1, 2):
        reply = provider.ask("Hi", deadline=5)
        assert (reply, reply.attempts) == ("ok", attempts)


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_only_where_a_kept_connection_was_closed_there_is_no_wait(
    secure: bool, provider_for: Make, make_secure: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS urllib3 connects before it asks."""
    asked, waits = [], []

    def once(request: Recorded, connection: Connection) -> None:
        asked.append(request)
        (close if len(asked) > 1 else speak(YLOKH, ["ok"]))(request, connection)

    def refuse(*_: object) -> None:
        raise ConnectionRefusedError("nobody listens")

    provider = (make_secure if secure else provider_for)(YLOKH, once, retries=3)
    assert provider.ask("Hi") == "ok"
    monkeypatch.setattr(Exchange, "sleep", lambda exchange, seconds, reason: waits.append(seconds))
    monkeypatch.setattr(connecting, "_one", refuse)
    with pytest.raises(APIConnectionError, match="nobody listens"):
        provider.ask("Hi")
    assert waits[0] == 0
    assert len(waits) == 3
    assert min(waits[1:]) > 0


def test_where_nobody_listens_any_more_there_is_a_wait(
    provider_for: Make, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept connection was closed long before: it is made anew, and that fails."""
    waits: list[float] = []

    def refuse(*_: object) -> None:
        raise ConnectionRefusedError("nobody listens")

    provider = provider_for(YLOKH, speak(YLOKH, ["ok"]), retries=1)
    assert provider.ask("Hi") == "ok"
    wire.connections[0].close()
    monkeypatch.setattr(Exchange, "sleep", lambda exchange, seconds, reason: waits.append(seconds))
    monkeypatch.setattr(connecting, "_one", refuse)
    with pytest.raises(APIConnectionError, match="nobody listens"):
        provider.ask("Hi")
    assert [wait > 0 for wait in waits] == [True]
