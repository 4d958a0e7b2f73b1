"""``max_workers="auto"``: the concurrency that is found, on servers in virtual time; and real batches."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from berlin_chat import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ChatError,
    InvalidRequest,
    Provider,
    RateLimitError,
    Reply,
    Ylokh,
    ask_many,
    stream_many,
)
from berlin_chat.batch import questions
from berlin_chat.batch.concurrency import BACK_OFF, CAREFUL, FIRST, MOST, Concurrency, Measured
from berlin_chat.batch.threads import Threads
from berlin_chat.server import LocalServer
from test_pool import ours, prompts, repeating
from wire import PATIENCE, YLOKH, Connection, Recorded, wait_for

Make = Callable[..., Provider]
#: How much of the best fixed number's throughput is reached, from the first question on.
NEAR = 0.85


class Simulated:
    """A server that answers ``peak`` questions at once and queues the others, and its batch, in virtual time.

    Args:
        peak: how many at once; it may be changed in mid-run.
        seconds: how long one takes, on the average.
        spread: how unlike each other they are: 0, or the sigma of a lognormal distribution.
        penalty: by what part of a question's own seconds each takes longer where as many queue as are answered.
    """

    def __init__(self, peak: int, seconds: float = 0.05, spread: float = 0.0, penalty: float = 0.0) -> None:
        self.peak, self.penalty, self.spread, self._seconds = peak, penalty, spread, seconds
        self._random = random.Random(peak)
        self.now = 0.0
        self.answered = 0
        self._queue: deque[float] = deque()
        self._events: list[tuple[float, float, float]] = []

    def service(self) -> float:
        crowd = 1 + self.penalty * max(len(self._events) + len(self._queue) - self.peak, 0) / self.peak
        spread = self._random.lognormvariate(-(self.spread**2) / 2, self.spread) if self.spread else 1.0
        return self._seconds * crowd * spread

    def run(self, seconds: float, limit: Callable[[], int], concurrency: Concurrency | None = None) -> float:
        """Asks for so many seconds; returns how many questions were answered a second."""
        before, until = self.answered, self.now + seconds
        while True:
            while len(self._queue) + len(self._events) < limit():
                self._queue.append(self.now)
                if concurrency is not None:
                    concurrency.began(self.now)
            while self._queue and len(self._events) < self.peak:
                service = self.service()
                heapq.heappush(self._events, (self.now + service, self._queue[0], self.now + service / 10))
                self._queue.popleft()
            if self._events[0][0] > until:
                self.now = until
                return (self.answered - before) / seconds
            self.now, began, first = heapq.heappop(self._events)
            self.answered += 1
            if concurrency is not None:
                concurrency.ended(began, self.now, Reply(first_piece_seconds=first - began))


def best(peak: int, *args: float) -> float:
    """Questions a second with the best fixed number."""
    return Simulated(peak, *args).run(120, lambda: peak)


kinds = pytest.mark.parametrize(
    ("spread", "penalty"),
    [(0.0, 0.0), (0.0, 0.2), (0.5, 0.0), (0.5, 0.2)],
    ids=["queue", "slower", "spread, queue", "spread, slower"],
)


@kinds
@pytest.mark.parametrize(("peak", "seconds"), [(4, 0.05), (32, 0.1), (128, 0.4), (250, 0.4)])
def test_the_peak_of_a_server_is_found(peak: int, seconds: float, spread: float, penalty: float) -> None:
    concurrency = Concurrency()
    server = Simulated(peak, seconds, spread, penalty)
    reached = server.run(120, lambda: concurrency.limit, concurrency)
    assert reached >= NEAR * best(peak, seconds, spread, penalty)


@kinds
@pytest.mark.parametrize(("before", "after", "seconds"), [(4, 32, 0.1), (32, 4, 0.1), (32, 128, 0.4), (128, 32, 0.4)])
def test_a_peak_that_moves_is_found_again(
    before: int, after: int, seconds: float, spread: float, penalty: float
) -> None:
    concurrency = Concurrency()
    server = Simulated(before, seconds, spread, penalty)
    reached = server.run(120, lambda: concurrency.limit, concurrency)
    server.peak = after
    reached += server.run(120, lambda: concurrency.limit, concurrency)
    assert reached >= NEAR * sum(best(peak, seconds, spread, penalty) for peak in (before, after))


@pytest.mark.parametrize(("peak", "least", "most"), [(1, 1, 2), (4, 3, 6), (32, 23, 45), (2000, MOST, MOST)])
def test_the_limit_is_mostly_near_the_peak_and_always_within_its_bounds(peak: int, least: int, most: int) -> None:
    concurrency = Concurrency()
    server = Simulated(peak, seconds=0.2)
    limits = Counter[int]()

    def limit() -> int:
        limits[concurrency.limit] += 1
        return concurrency.limit

    server.run(200 if peak == 1 else 60, limit, concurrency)
    assert min(limits) >= 1
    assert max(limits) <= MOST
    limits.clear()
    server.run(60, limit, concurrency)
    ((usual, _),) = limits.most_common(1)
    assert least <= usual <= most, limits


def test_more_at_once_are_worth_it_only_for_a_fair_part_of_what_they_might_gain() -> None:
    few = Measured(10, 100.0, 1.0)
    assert Measured(20, 112.0, 1.0).is_worth(few), "the first piece comes as soon as before"
    assert not Measured(20, 112.0, 2.0).is_worth(few), "they wait in a queue"
    assert Measured(20, 130.0, 2.0).is_worth(few)
    assert not Measured(20, 104.0, 1.0).is_worth(few)
    assert not Measured(10, 200.0, 1.0).is_worth(few), "a new measurement is no other limit"


def test_fewer_at_once_are_worth_it_where_they_are_as_fast() -> None:
    many = Measured(20, 100.0, 2.0)
    assert Measured(10, 98.0, 1.0).is_worth(many)
    assert not Measured(10, 70.0, 1.0).is_worth(many)


def test_a_batch_that_its_caller_holds_up_does_not_ask_more_at_once() -> None:
    concurrency, now = Concurrency(), 0.0
    for _ in range(1000):
        concurrency.began(now)
        concurrency.ended(now, now + 0.1, Reply(first_piece_seconds=0.05))
        now += 0.1
    assert concurrency.limit == FIRST


# Refusals

TOO_MANY = RateLimitError("slow down", status=429, attempts=1)
UNAVAILABLE = APIStatusError("overloaded", status=503, attempts=1)
BACKED_OFF = int(FIRST * BACK_OFF)


def meet(concurrency: Concurrency, *ends: Reply | ChatError | None, now: float = 1.0) -> None:
    """Questions that begin together, and end so."""
    for _ in ends:
        concurrency.began(now)
    for met in ends:
        concurrency.ended(now, now + 0.1, met)


@pytest.mark.parametrize(
    "met",
    [TOO_MANY, UNAVAILABLE, APITimeoutError("too late", attempts=1), Reply(attempts=2)],
    ids=["429", "503", "timeout", "sent twice"],
)
def test_a_refusal_takes_some_of_the_limit_away(met: Reply | ChatError) -> None:
    concurrency = Concurrency()
    meet(concurrency, met)
    assert concurrency.limit == BACKED_OFF


@pytest.mark.parametrize(
    "met", [APIStatusError("no", status=400), APIConnectionError("gone", attempts=1), Reply(), None]
)
def test_other_ends_of_a_question_take_nothing_away(met: Reply | ChatError | None) -> None:
    concurrency = Concurrency()
    meet(concurrency, *[met] * 8)
    assert concurrency.limit == FIRST


def test_refusals_of_what_was_asked_before_count_once() -> None:
    concurrency = Concurrency()
    meet(concurrency, *[TOO_MANY] * 8)
    assert concurrency.limit == BACKED_OFF
    meet(concurrency, TOO_MANY, now=2.0)
    assert concurrency.limit == int(BACKED_OFF * BACK_OFF)
    for now in range(3, 20):
        meet(concurrency, TOO_MANY, now=now)
    assert concurrency.limit == 1


def test_a_refusal_that_was_tried_again_counts_at_once() -> None:
    concurrency = Concurrency()
    concurrency.refused(1.0)
    assert concurrency.limit == BACKED_OFF


def test_a_timeout_among_many_questions_is_no_refusal() -> None:
    concurrency = Concurrency()
    server = Simulated(128, 0.4)
    server.run(20, lambda: concurrency.limit, concurrency)
    before = concurrency.limit
    assert before >= 64
    meet(concurrency, APITimeoutError("too late", attempts=1), now=server.now)
    assert concurrency.limit == before
    meet(concurrency, *[APITimeoutError("too late", attempts=1)] * 20, now=server.now)
    assert concurrency.limit == int(before * BACK_OFF)


def test_what_was_refused_is_tried_again_only_later() -> None:
    concurrency = Concurrency()
    meet(concurrency, TOO_MANY)
    server = Simulated(100, 1.0)
    limits: list[int] = []

    def limit() -> int:
        if concurrency.limit not in limits[-1:]:
            limits.append(concurrency.limit)
        return concurrency.limit

    # A measurement takes at least two seconds here, and at most ten.
    server.run(CAREFUL * 2.0, limit, concurrency)
    assert max(limits) == FIRST - 1
    server.run(CAREFUL * 10.0, limit, concurrency)
    assert max(limits) > FIRST


# The threads


def test_threads_come_and_go_with_the_limit() -> None:
    limit, going_on, begun = 3, threading.Event(), threading.Semaphore(0)

    def work(number: int) -> int:
        begun.release()
        assert going_on.wait(PATIENCE)
        return number

    threads = Threads(lambda: limit)
    futures = [threads.submit(work, number) for number in range(6)]
    wait_for(lambda: len(ours()) == 3)
    limit = 6
    futures += [threads.submit(work, number) for number in range(6, 12)]
    wait_for(lambda: len(ours()) == 6)
    limit = 1
    going_on.set()
    assert [future.result(PATIENCE) for future in futures] == list(range(12))
    wait_for(lambda: len(ours()) == 1)
    limit = 2
    together = threading.Barrier(2)
    for future in [threads.submit(together.wait, PATIENCE) for _ in range(2)]:
        future.result(PATIENCE)
    threads.shutdown()
    assert not ours()


# Real batches


class Slots:
    """A model that answers so many questions at once; more of them make all slower."""

    def __init__(self, peak: int, seconds: float) -> None:
        self._slots = threading.Semaphore(peak)
        self._seconds = seconds

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        with self._slots:
            time.sleep(self._seconds)
        yield messages if isinstance(messages, str) else messages[-1]["content"]


class Noted(Concurrency):
    """One whose limits are kept."""

    def __init__(self) -> None:
        self.limits = [FIRST]
        super().__init__()

    def ended(self, *args: Any) -> None:
        super().ended(*args)
        self.limits.append(self.limit)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Noted]:
    """The concurrencies of this test's batches."""
    found: list[Noted] = []

    def make() -> Noted:
        found.append(Noted())
        return found[-1]

    monkeypatch.setattr(questions, "Concurrency", make)
    return found


@pytest.mark.parametrize("ordered", [True, False])
def test_every_prompt_of_a_real_batch_is_answered(ordered: bool, noted: list[Noted]) -> None:
    with LocalServer(upstream=Slots(24, 0.02)) as server, server.provider("ylokh") as provider:
        answers = list(ask_many(provider, prompts(1500), max_workers="auto", ordered=ordered))
    assert sorted(answer.index for answer in answers) == list(range(1500))
    assert all(answer.reply == answer.prompt for answer in answers)
    assert [answer.index for answer in answers] == list(range(1500)) or not ordered
    (concurrency,) = noted
    assert all(1 <= limit <= MOST for limit in concurrency.limits)
    assert max(concurrency.limits) > FIRST
    assert not ours()


@pytest.mark.parametrize("retries", [0, 1])
def test_a_429_takes_workers_away(retries: int, provider_for: Make, noted: list[Noted]) -> None:
    first = threading.Lock()

    def refuse_the_first(request: Recorded, connection: Connection) -> None:
        if first.acquire(blocking=False):
            connection.respond(429, {"error": "slow down"}, {"Retry-After": "0"})
        else:
            repeating(YLOKH)(request, connection)

    provider = provider_for(YLOKH, refuse_the_first, retries=retries)
    answers = list(ask_many(provider, prompts(20), max_workers="auto"))
    assert sum(answer.error is not None for answer in answers) == 1 - retries
    (concurrency,) = noted
    assert concurrency.limits[-1] == BACKED_OFF


def test_leaving_the_loop_ends_its_threads(provider_for: Make) -> None:
    endless = map("q{}".format, itertools.count())
    for answer in ask_many(provider_for(YLOKH, repeating(YLOKH)), endless, max_workers="auto"):
        if answer.index == 200:
            break
    assert not ours()


def test_the_bar_shows_the_workers(provider_for: Make, capsys: pytest.CaptureFixture[str]) -> None:
    provider = provider_for(YLOKH, repeating(YLOKH))
    list(ask_many(provider, [*prompts(5), ""], max_workers="auto", progress=True))
    shown = capsys.readouterr().err
    assert f"workers={FIRST}" in shown
    assert "errors=1" in shown
    list(ask_many(provider, prompts(5), max_workers=4, progress=True))
    assert "workers" not in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["automatic", "8", ""])
def test_another_word_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf'^max_workers is {wrong!r}: give .* or "auto"$'):
        ask_many(Ylokh(base_url="http://127.0.0.1:1"), [], max_workers=wrong)


def test_an_executor_and_stream_many_take_a_number_only() -> None:
    provider = Ylokh(base_url="http://127.0.0.1:1")
    with ThreadPoolExecutor(1) as threads, pytest.raises(InvalidRequest, match="give the number of threads"):
        ask_many(provider, [], max_workers="auto", executor=threads)
    with pytest.raises(InvalidRequest, match="give a number"):
        stream_many(provider, [], max_workers="auto")  # type: ignore[arg-type]
