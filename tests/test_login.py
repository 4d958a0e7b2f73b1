"""Berlin: one login for any number of threads, and one more when the token has expired."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from berlin_chat import (
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Berlin,
    Cancelled,
    CancelToken,
    InvalidRequest,
    ProtocolError,
    Provider,
    RateLimitError,
    cancellation,
)
from berlin_chat.cancellation import Limits
from berlin_chat.http.login import LoggedIn, Login
from wire import BERLIN, PATIENCE, Connection, Recorded, Script, Wire, log_in, speak, wait_for

Make = Callable[..., Provider]
SAY_OK = speak(BERLIN, ["ok"])


def only_with(valid: set[str], refuse: Script) -> Script:
    def script(request: Recorded, connection: Connection) -> None:
        (SAY_OK if request.header("token") in valid else refuse)(request, connection)

    return script


def refuse_401(request: Recorded, connection: Connection) -> None:
    connection.respond(401, {"code": 401, "msg": "token expired", "data": None})


def refuse_in_a_200(request: Recorded, connection: Connection) -> None:
    connection.respond(200, {"code": 401, "msg": "token expired", "data": None})


def ask_together(provider: Provider, threads: int) -> list[str]:
    start = threading.Barrier(threads)

    def ask(_: int) -> str:
        start.wait(PATIENCE)
        return provider.ask("Hi")

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, range(threads)))


def test_64_threads_on_a_fresh_provider_log_in_once(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, SAY_OK)
    assert ask_together(provider, 64) == ["ok"] * 64
    assert len(wire.asked("POST", "/api/login")) == 1


@pytest.mark.parametrize("refuse", [refuse_401, refuse_in_a_200])
def test_an_expired_token_causes_one_more_login_and_nobody_notices(
    refuse: Script, provider_for: Make, wire: Wire
) -> None:
    valid = {"token-1"}
    provider = provider_for(BERLIN, only_with(valid, refuse))
    assert provider.ask("Hi") == "ok"
    valid.remove("token-1")
    valid.add("token-2")
    assert ask_together(provider, 64) == ["ok"] * 64
    assert len(wire.asked("POST", "/api/login")) == 2


@pytest.mark.parametrize("refuse", [refuse_401, refuse_in_a_200])
def test_a_token_that_is_refused_again_is_an_authentication_error(
    refuse: Script, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(BERLIN, refuse, retries=3)
    with pytest.raises(AuthenticationError):
        provider.ask("Hi")
    assert len(wire.asked("POST", "/api/login")) == 2
    assert len(wire.asked(*BERLIN.route)) == 2


def test_a_login_that_fails_with_503_twice_and_then_works_works(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, SAY_OK, retries=2)

    def unsteady(request: Recorded, connection: Connection) -> None:
        if len(wire.asked("POST", "/api/login")) <= 2:
            connection.respond(503, {"msg": "not now"}, {"Retry-After": "0"})
        else:
            log_in(request, connection)

    wire.on("POST", "/api/login", unsteady)
    assert provider.ask("Hi") == "ok"
    assert len(wire.asked("POST", "/api/login")) == 3


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"code": 401, "msg": "wrong password"}),
        (400, {"code": 400, "msg": "wrong password"}),
        (403, {}),
        (404, {}),
        (200, {"code": 401, "msg": "wrong password", "data": None}),
        (200, {"data": {}}),
        (200, {"data": {"token": ""}}),
        (200, {"data": {"token": 5}}),
    ],
)
def test_a_refused_login_is_an_authentication_error_after_one_attempt(
    status: int, body: dict[str, object], provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(BERLIN, SAY_OK, retries=3)
    wire.on("POST", "/api/login", lambda request, connection: connection.respond(status, body))
    with pytest.raises(AuthenticationError, match="refused"):
        provider.ask("Hi")
    assert len(wire.requests) == 1


def test_a_login_that_is_limited_is_a_rate_limit_error(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, SAY_OK)
    wire.on("POST", "/api/login", lambda request, connection: connection.respond(429, {}, {"Retry-After": "9"}))
    with pytest.raises(RateLimitError) as caught:
        provider.ask("Hi")
    assert caught.value.retry_after == 9


@pytest.mark.parametrize("token", ["a\nb", "ключ"])
def test_a_token_that_fits_no_header_is_a_protocol_error(token: str, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, SAY_OK)
    wire.on("POST", "/api/login", lambda r, connection: connection.respond(200, {"data": {"token": token}}))
    with pytest.raises(ProtocolError) as caught:
        provider.ask("Hi")
    assert token not in str(caught.value)


def test_threads_that_wait_for_a_login_share_its_refusal(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, SAY_OK)
    waiting = threading.Event()

    def refuse_late(request: Recorded, connection: Connection) -> None:
        assert waiting.wait(PATIENCE)
        connection.respond(401, {"msg": "wrong password"})

    wire.on("POST", "/api/login", refuse_late)
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(provider.ask, "Hi") for _ in range(16)]
        attempt = wait_for(lambda: provider.login._attempt)  # type: ignore[attr-defined]
        wait_for(lambda: len(attempt.waiting) == 15)  # type: ignore[attr-defined]
        waiting.set()
        errors = [future.exception(PATIENCE) for future in futures]
    assert [type(error) for error in errors] == [AuthenticationError] * 16
    assert len({id(error) for error in errors}) == 16, "threads share one exception object"
    assert len(wire.requests) == 1


def test_a_cancelled_login_leaves_the_next_thread_to_log_in(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, SAY_OK)
    token = CancelToken()

    def only_the_second(request: Recorded, connection: Connection) -> None:
        if len(wire.asked("POST", "/api/login")) == 1:
            connection.wait_until_client_closes()
        else:
            log_in(request, connection)

    wire.on("POST", "/api/login", only_the_second)
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(provider.ask, "Hi", cancel=token)
        wait_for(lambda: wire.asked("POST", "/api/login"))
        attempt = wait_for(lambda: provider.login._attempt)  # type: ignore[attr-defined]
        follower = pool.submit(provider.ask, "Hi")
        wait_for(lambda: attempt.waiting)  # type: ignore[attr-defined]
        token.cancel()
        assert isinstance(leader.exception(PATIENCE), Cancelled)
        assert follower.result(PATIENCE) == "ok"


def test_who_waits_for_a_login_keeps_its_own_deadline_and_cancel(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, SAY_OK)
    wire.on("POST", "/api/login", lambda request, connection: connection.wait_until_client_closes())
    token = CancelToken()
    with ThreadPoolExecutor(3) as pool:
        leader = pool.submit(provider.ask, "Hi")
        attempt = wait_for(lambda: provider.login._attempt)  # type: ignore[attr-defined]
        late = pool.submit(provider.ask, "Hi", deadline=0.1)
        cancelled = pool.submit(provider.ask, "Hi", cancel=token)
        wait_for(lambda: len(attempt.waiting) == 2)  # type: ignore[attr-defined]
        token.cancel()
        assert isinstance(cancelled.exception(1), Cancelled)
        assert isinstance(late.exception(1), APITimeoutError)
        assert not leader.done()
        provider.close()
        assert isinstance(leader.exception(1), Cancelled)


def test_a_token_that_is_given_is_used_without_a_login(provider_for: Make, wire: Wire) -> None:
    wire.routes[:] = [(*BERLIN.route, only_with({"mine"}, refuse_401))]
    with Berlin(base_url=wire.url, token="mine") as provider:
        assert provider.ask("Hi") == "ok"
    with Berlin(base_url=wire.url, token="old") as provider, pytest.raises(AuthenticationError):
        provider.ask("Hi")
    assert not wire.asked("POST", "/api/login")


@pytest.mark.parametrize("token", ["a\r\nX-Other: 1", "a\nb", "ключ"])
def test_a_token_that_no_header_can_hold_is_refused_where_it_is_given(token: str, wire: Wire) -> None:
    with pytest.raises(InvalidRequest, match="token") as caught:
        Berlin(base_url=wire.url, token=token)
    assert token not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that it forks with threads is the point
@pytest.mark.parametrize("moment", ["during the parent's login", "after it"])
def test_a_child_of_a_fork_logs_in_by_itself(moment: str, provider_for: Make, wire: Wire) -> None:
    provider, go_on = provider_for(BERLIN, SAY_OK), threading.Event()

    def first_waits(request: Recorded, connection: Connection) -> None:
        if moment != "after it" and len(wire.asked("POST", "/api/login")) == 1:
            assert go_on.wait(PATIENCE)
        log_in(request, connection)

    wire.on("POST", "/api/login", first_waits)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(provider.ask, "Hi")
        wait_for(lambda: wire.asked("POST", "/api/login"))
        if moment == "after it":
            assert asked.result(PATIENCE) == "ok"
        child = os.fork()
        if not child:
            signal.alarm(int(PATIENCE))  # ends one that hangs
            os._exit(0 if provider.ask("Hi") == "ok" else 1)
        assert os.waitpid(child, 0)[1] == 0
        go_on.set()
        assert asked.result(PATIENCE) == "ok"
    assert len(wire.asked("POST", "/api/login")) == 2


def test_a_given_token_that_has_expired_is_replaced_where_there_is_an_account(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, only_with({"token-1"}, refuse_401), token="old")
    assert provider.ask("Hi") == "ok"
    assert len(wire.asked("POST", "/api/login")) == 1


def test_two_providers_do_not_share_a_token(provider_for: Make, wire: Wire) -> None:
    first, second = provider_for(BERLIN, SAY_OK), provider_for(BERLIN, SAY_OK)
    first.ask("Hi")
    second.ask("Hi")
    assert [request.header("token") for request in wire.asked(*BERLIN.route)] == ["token-1", "token-2"]


def test_a_refusal_in_mid_stream_does_not_log_in_again(provider_for: Make, wire: Wire) -> None:
    body = b'{"content": "a"}\n{"code": 401, "msg": "token expired"}'
    provider = provider_for(BERLIN, lambda request, connection: connection.respond(200, body))
    with pytest.raises(APIStatusError) as caught:
        provider.ask("Hi")
    assert caught.value.partial == "a"
    assert len(wire.asked("POST", "/api/login")) == 1


def test_a_login_is_handed_on_and_the_latest_is_gone_on_with() -> None:
    login = Login("given")
    assert login.hand_down() is None, "what was given, others have been given, too"
    login.take_up(None)
    assert login.value == "given"
    for handed, value in (("second", 2.0), "second"), (("first", 1.0), "second"), (("other", 2.0), "second"):
        login.take_up(LoggedIn(*handed))
        assert login.value == value
    assert login.hand_down() == LoggedIn("second", 2.0)


def test_nobody_logs_in_who_has_what_another_thread_has_just_got() -> None:
    def log_in() -> str:
        pytest.fail("it logs in")

    nobody: Any = None
    login: Login[str] = Login("old")
    login.take_up(LoggedIn("new", 1.0))
    attempt = login._attempt
    assert login.get(nobody, log_in, stale="old") == "new"
    assert not attempt.over, "what is known costs an attempt"
    assert login._lead(attempt, nobody, log_in, stale="old") == "new", "where it came after the last look"


def test_who_waits_for_a_login_goes_on_as_soon_as_it_has_come(
    provider_for: Make, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when somebody looks again, nor when the question of who has logged in is over."""
    monkeypatch.setattr(cancellation, "SIGNAL_INTERVAL", 60.0)
    together = threading.Barrier(2, timeout=PATIENCE)

    def both(request: Recorded, connection: Connection) -> None:
        together.wait()
        speak(BERLIN, ["ok"])(request, connection)

    provider: Any = provider_for(BERLIN, both)

    def slowly(request: Recorded, connection: Connection) -> None:
        wait_for(lambda: provider.login._attempt.waiting)
        log_in(request, connection)

    wire.on("POST", "/api/login", slowly)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(provider.ask, ["Hi"] * 2)) == ["ok"] * 2


def test_to_log_in_beforehand_is_to_log_in_once_and_only_with_an_account(provider_for: Make, wire: Wire) -> None:
    provider: Any = provider_for(BERLIN, SAY_OK)
    provider.log_in(Limits())
    provider.log_in(Limits())
    assert provider.ask("Hi") == "ok"
    assert len(wire.asked("POST", "/api/login")) == 1
    with Berlin(wire.url, token="token-1") as other:
        other.log_in(Limits())
    assert len(wire.asked("POST", "/api/login")) == 1


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (200, AuthenticationError, 200),
        (301, ProtocolError, 301),
        (399, ProtocolError, 399),
        (400, AuthenticationError, 400),
        (499, AuthenticationError, 499),
        (500, APIStatusError, 500),
    ],
)
def test_what_refuses_a_login(status: int, kind: type[Exception], told: int, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, SAY_OK)
    wire.on("POST", "/api/login", lambda request, connection: connection.respond(status, {"code": 1, "msg": "no"}))
    with pytest.raises(kind) as caught:
        provider.ask("Hi")
    error: Any = caught.value
    assert (type(error), error.status) == (kind, told)
