"""How many questions are asked at once, where the caller leaves it to the batch: as many as make it faster."""

from __future__ import annotations

import threading
from collections.abc import Generator
from math import log
from typing import NamedTuple

from ..errors import APITimeoutError, ChatError
from ..reply import Reply

#: How many questions are under way at the start, and at the most.
FIRST, MOST = 8, 256
#: How many times the limit is answered before a measurement begins, and while it lasts; and how many answers and
#: seconds it takes at least.
SETTLING, ROUNDS = 2, 1
FEWEST, SHORTEST = 32, 0.2
#: The limit is one only if so much of it is under way: else the caller, or a rate, holds the batch up.
BUSY = 0.8
#: By what the limit is multiplied, or divided, for a trial; one that succeeds is followed by another.
STEP = 1.4
#: Of what would be gained if throughput grew as the limit does, the part that must be gained for it: where the first
#: piece comes as soon as before, and where it comes later by as much as the limit has grown.
FAIR, FAIR_IN_QUEUE = 0.1, 0.2
#: How many measurements, at the most, lie between two trials. It is one at first, and twice as many each time.
PATIENCE = 4
#: By these a server says that it is asked too much.
REFUSALS = (429, 503)
#: What a refusal leaves of the limit; and how many measurements long it is not gone beyond what was refused.
BACK_OFF, CAREFUL = 0.7, 16
#: The part of a limit's questions that may time out, or be sent twice, before that counts as a refusal.
TROUBLE = 0.1


class Measured(NamedTuple):
    """What was found at a limit.

    Attributes:
        throughput: questions a second.
        waiting: seconds to the first piece.
    """

    limit: int
    throughput: float
    waiting: float

    def is_worth(self, other: Measured) -> bool:
        """Whether this limit is better than the other: faster, or as good as that with less under way."""
        low, high = sorted((self, other))
        if low.limit == high.limit:
            return False
        growth = log(high.limit / low.limit)
        queued = min(max(log(high.waiting / low.waiting) / growth, 0.0), 1.0)
        needed = FAIR + (FAIR_IN_QUEUE - FAIR) * queued
        return (log(high.throughput / low.throughput) > needed * growth) == (high is self)


class Window:
    """What happens at a limit, until it is enough for a measurement.

    Throughput is what is under way divided by the seconds of an answer (Little's law), for answers often come in
    bursts, which a count would break anywhere.

    Args:
        limit: how many questions may be under way.
        under_way: how many are.
        now: the moment, in seconds.
        settling: how many answers belong to what was before: of those that began since, the short ones come first.
    """

    def __init__(self, limit: int, under_way: int, now: float, settling: int) -> None:
        self._limit = limit
        self._under_way = under_way
        self._settling = settling
        self._since = self._moved = now
        self._area = 0.0  # seconds of all questions, under way or done
        self._answers, self._seconds, self._waiting = 0, 0.0, 0.0

    def move(self, now: float, change: int) -> int:
        """Notes that a question has begun (1) or ended (-1); returns how many are under way then."""
        self._area += self._under_way * (now - self._moved)
        self._moved = now
        self._under_way += change
        return self._under_way

    def add(self, began: float, now: float, waiting: float) -> None:
        """Notes a question that was answered."""
        if self._settling:
            self._settling -= 1
            if not self._settling:
                self._since, self._area = now, 0.0
        else:
            self._answers += 1
            self._seconds += now - began
            self._waiting += waiting

    def measured(self) -> Measured | None:
        """Returns the measurement, None as long as it is not complete."""
        if self._answers < max(ROUNDS * self._limit, FEWEST) or self._moved - self._since < SHORTEST:
            return None
        under_way = self._area / (self._moved - self._since)
        seconds, waiting = (max(total / self._answers, 1e-6) for total in (self._seconds, self._waiting))
        return Measured(self._limit, min(under_way, self._limit) / seconds, waiting)

    def is_busy(self) -> bool:
        """Whether as many were under way as the limit allows."""
        return self._area >= BUSY * self._limit * (self._moved - self._since)


#: Yields limits, and is sent what was measured there.
Climb = Generator[int, Measured, None]


def climbing(first: int) -> Climb:
    """Doubles the limit as long as that is worth it, and then goes on ``trying``."""
    here = yield first
    while (limit := min(2 * here.limit, MOST)) > here.limit:
        there = yield limit
        if not there.is_worth(here):
            break
        here = there
    yield from trying(here.limit)


def trying(limit: int) -> Climb:
    """Tries more and fewer without end, for a server may change."""
    here, patience = (yield limit), 1
    while True:
        moved = False
        for up in (True, False):
            while (limit := _stepped(here.limit, up)) != here.limit:
                there = yield limit
                if not there.is_worth(here):
                    here = yield here.limit  # again, for what it was may not hold any more
                    break
                here, moved = there, True
        patience = 1 if moved else min(2 * patience, PATIENCE)
        for _ in range(patience):
            here = yield here.limit


def _stepped(limit: int, up: bool) -> int:
    return min(max(round(limit * STEP), limit + 1), MOST) if up else max(min(round(limit / STEP), limit - 1), 1)


class Concurrency:
    """Says how many questions of a batch may be under way. Shared by its threads; one lock guards it.

    It is told of each question, and measures how many a second are answered. While more at once are worth it, there are
    more: at first twice as many each time, then by small steps up and down, without end. A refusal (429, 503) and
    timeouts take some of them away at once. The moments are the caller's, in seconds of any clock.

    Attributes:
        limit: how many may be under way, from 1 to ``MOST``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._climb = climbing(FIRST)
        self.limit = next(self._climb)
        self._window = Window(self.limit, 0, 0.0, 0)
        self._set_at = 0.0
        self._under_way = 0
        self._troubles = 0
        self._ceiling, self._careful = MOST, 0  # what was refused, and for how many measurements it holds

    def began(self, now: float) -> None:
        """Is told that a question begins."""
        with self._lock:
            self._under_way = self._window.move(now, 1)

    def ended(self, began: float, now: float, met: Reply | ChatError | None) -> None:
        """Is told that a question has ended, when it had begun, and how: with None if nobody knows."""
        with self._lock:
            self._under_way = self._window.move(now, -1)
            if isinstance(met, ChatError) and met.status in REFUSALS:
                self._back_off(began, now)
            elif isinstance(met, APITimeoutError) or (met is not None and met.attempts > 1):
                self._troubles += 1
                if self._troubles > TROUBLE * self.limit:
                    self._back_off(began, now)
            elif isinstance(met, Reply):
                self._window.add(began, now, met.first_piece_seconds or now - began)
                self._look(now)

    def refused(self, now: float) -> None:
        """Is told that the server refused a question that will be sent again."""
        with self._lock:
            self._back_off(now, now)

    def _back_off(self, began: float, now: float) -> None:
        """Takes some of the limit away, but only once for all that was asked at the same limit."""
        if began >= self._set_at:
            self._ceiling, self._careful = max(self.limit - 1, 1), CAREFUL
            self._climb = trying(max(int(self.limit * BACK_OFF), 1))
            self._set(next(self._climb), now)

    def _look(self, now: float) -> None:
        """Sets the next limit when this one is measured; one that was not used up teaches nothing."""
        limit = self.limit
        if (measured := self._window.measured()) is None:
            return
        if self._window.is_busy():
            self._careful -= 1
            if self._careful < 0:
                self._ceiling = MOST
            limit = min(self._climb.send(measured), self._ceiling)
        self._set(limit, now)

    def _set(self, limit: int, now: float) -> None:
        settling = 0
        if limit != self.limit:
            self.limit, self._set_at, settling = limit, now, SETTLING * limit
        self._window = Window(limit, self._under_way, now, settling)
        self._troubles = 0
