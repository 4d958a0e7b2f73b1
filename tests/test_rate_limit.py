"""Rates: the caller's, and the one that a server's refusals teach."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from berlin_chat import InvalidRequest, Provider, RateLimitError, ask_many, stream_many
from berlin_chat.batch import rate_limit
from berlin_chat.batch.rate_limit import LONGEST_PAUSE, RateLimiter, seconds_between
from wire import YLOKH, Connection, Recorded, Script, Wire, speak

Make = Callable[..., Provider]


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(rate_limit, "monotonic", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [("60/min", 1.0), ("20/s", 0.05), ("1000/hour", 3.6), ("0.5/second", 2.0), (" 5 / minute ", 12.0)],
)
def test_a_rate_is_read(rate: str, seconds: float) -> None:
    assert seconds_between(rate) == seconds


@pytest.mark.parametrize("rate", ["", "60", "60/fortnight", "0/s", "-1/s", "x/s", None, 5])
def test_a_wrong_rate_is_refused(rate: Any) -> None:
    with pytest.raises(InvalidRequest, match="60/min"):
        seconds_between(rate)


def moments(limiter: RateLimiter, clock: Clock, count: int) -> list[float]:
    started = clock.now
    found = []
    for _ in range(count):
        limiter.wait(clock.sleep)
        found.append(round(clock.now - started, 6))
    return found


def test_questions_are_evenly_spaced(clock: Clock) -> None:
    assert moments(RateLimiter(0.5), clock, 4) == [0, 0.5, 1.0, 1.5]
    assert moments(RateLimiter(), clock, 4) == [0, 0, 0, 0]


def test_time_that_was_not_used_is_not_saved_up(clock: Clock) -> None:
    limiter = RateLimiter(0.5)
    moments(limiter, clock, 2)
    clock.sleep(60)
    assert moments(limiter, clock, 3) == [0, 0.5, 1.0]


def test_a_refusal_pauses_everybody_and_teaches_the_limiter(clock: Clock) -> None:
    limiter = RateLimiter()
    moments(limiter, clock, 20)
    limiter.refused(1.0)
    first, second, third = moments(limiter, clock, 3)
    assert first == 1.0
    assert second - first == pytest.approx(1.1 / 20)
    assert third - second == pytest.approx(1.1 / 20)


def test_refusals_of_questions_that_were_sent_before_the_pause_teach_nothing_more(clock: Clock) -> None:
    limiter = RateLimiter()
    moments(limiter, clock, 20)
    for _ in range(12):
        limiter.refused(1.0)
    first, second = moments(limiter, clock, 2)
    assert second - first == pytest.approx(1.1 / 20)


def test_a_refusal_is_told_once_a_pause(clock: Clock) -> None:
    limiter, told = RateLimiter(), []
    limiter.told = lambda: told.append(clock.now)
    for _ in range(3):
        limiter.refused(1.0)
    assert told == [1000.0]
    moments(limiter, clock, 1)
    limiter.refused(1.0)
    assert told == [1000.0, 1001.0]


def test_a_later_refusal_does_not_shorten_the_pause_that_is_running(clock: Clock) -> None:
    limiter = RateLimiter()
    moments(limiter, clock, 1)
    limiter.refused(5.0)
    clock.sleep(1)
    limiter.refused(0.5)  # of a question that was sent before
    assert moments(limiter, clock, 1) == [5.0 - 1]


def test_a_pause_without_a_length_and_one_too_long_are_bounded(clock: Clock) -> None:
    limiter = RateLimiter()
    limiter.refused(None)
    assert moments(limiter, clock, 1) == [rate_limit.PAUSE]
    limiter.refused(100_000)
    assert moments(limiter, clock, 1) == [LONGEST_PAUSE]


def test_a_moment_that_was_given_before_a_pause_is_given_anew(clock: Clock) -> None:
    limiter = RateLimiter(0.5)
    limiter.wait(clock.sleep)

    def sleep_through_a_refusal(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now < 1001:
            limiter.refused(5.0)

    limiter.wait(sleep_through_a_refusal)
    assert clock.now >= 1005.5


def test_the_rate_recovers_but_never_beyond_the_callers_rate(clock: Clock) -> None:
    limiter = RateLimiter(0.01)
    moments(limiter, clock, 10)
    limiter.refused(1.0)
    slow = moments(limiter, clock, 2)
    clock.sleep(rate_limit.QUIET)
    moments(limiter, clock, 1000)
    quick = moments(limiter, clock, 3)
    assert slow[1] - slow[0] > 0.1
    assert quick[2] - quick[1] == pytest.approx(0.01)


def refusing_the_first(retry_after: str) -> Script:
    """Refuses one question, and answers all that follow."""
    refused = []

    def script(request: Recorded, connection: Connection) -> None:
        if refused:
            speak(YLOKH, ["ok"])(request, connection)
        else:
            refused.append(1)
            connection.respond(429, {}, {"Retry-After": retry_after})

    return script


def test_questions_of_a_persons_own_loop_may_share_a_limiter(provider_for: Make, wire: Wire) -> None:
    limiter = RateLimiter()
    provider = provider_for(YLOKH, refusing_the_first("1"), retries=1)
    started = time.monotonic()
    assert provider.ask("Hi", limiter=limiter) == "ok"
    assert time.monotonic() - started >= 1
    assert limiter._interval > 0, "the limiter was not told of the refusal"
    assert "limiter" not in wire.requests[0].json


def test_a_batch_keeps_its_rate(provider_for: Make, wire: Wire) -> None:
    started = time.monotonic()
    for many in (ask_many, stream_many):
        list(many(provider_for(YLOKH, speak(YLOKH, ["a"])), ["Hi"] * 5, rate="20/s"))
    assert time.monotonic() - started >= 2 * 4 * 0.05
    assert len(wire.requests) == 10


class TwentyASecond:
    """Refuses what comes above 20 in any second, with Retry-After: 1."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: deque[float] = deque()
        self.refused: list[float] = []
        self.started = time.monotonic()

    def __call__(self, request: Recorded, connection: Connection) -> None:
        with self._lock:
            now = time.monotonic()
            while self._taken and self._taken[0] <= now - 1:
                self._taken.popleft()
            takes = len(self._taken) < 20
            (self._taken if takes else self.refused).append(now)
        if takes:
            speak(YLOKH, ["ok"])(request, connection)
        else:
            connection.respond(429, {"error": "slow down"}, {"Retry-After": "1"})


def test_a_server_that_limits_the_rate_sees_a_handful_of_refusals_after_the_first_second(
    provider_for: Make,
) -> None:
    limited = TwentyASecond()
    answers = list(ask_many(provider_for(YLOKH, limited, retries=2), ["Hi"] * 120, max_workers=32))
    assert [answer.reply for answer in answers] == ["ok"] * 120
    late = [moment for moment in limited.refused if moment > limited.started + 1]
    assert len(late) <= 5, f"{len(late)} refusals after the first second"


def test_outside_of_a_batch_a_refusal_slows_nobody_else(provider_for: Make) -> None:
    provider = provider_for(YLOKH, refusing_the_first("60"), retries=0)
    with pytest.raises(RateLimitError):
        provider.ask("Hi")
    assert provider.ask("Hi").seconds < 5
