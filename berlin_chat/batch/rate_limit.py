"""How fast questions are asked: a rate that the caller sets, and the rate that a server's refusals teach."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from ..errors import InvalidRequest

#: The pause after a refusal that names none, and the longest that is obeyed, in seconds.
PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: How much slower than what the server took is asked after a refusal.
CAUTION = 1.1
#: After so many seconds without a refusal each question comes a little sooner again.
QUIET, RECOVERY = 30.0, 0.99

_UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}


def seconds_between(rate: str) -> float:
    """Returns the seconds between two questions at a rate such as ``"60/min"``.

    Raises:
        InvalidRequest: it is no number of questions a second, minute or hour.

    >>> seconds_between("60/min"), seconds_between("20/s")
    (1.0, 0.05)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*/\s*([a-z]+)\s*", rate) if isinstance(rate, str) else None
    if not match or match[2] not in _UNITS or not float(match[1]):
        raise InvalidRequest(f'rate must look like "20/s", "60/min" or "1000/hour", not {rate!r}')
    return _UNITS[match[2]] / float(match[1])


class Turn(NamedTuple):
    """How many seconds a question must wait, and how many refusals were known when that was said."""

    seconds: float
    refusals: int


def wait_for(turn: Callable[[Turn | None], Turn | None], sleep: Callable[[float], None]) -> None:
    """Asks for a turn, and sleeps, until a question is to be sent."""
    waited = turn(None)
    while waited is not None:
        sleep(waited.seconds)
        waited = turn(waited)


class RateLimiter:
    """Says when the next question may be sent. Shared by all threads of a batch; one lock guards it.

    A refusal (429) makes everybody wait as long as the server asked, and then ask a little slower than what it
    took before. After a while without refusals the rate recovers, never beyond the rate that the caller set.

    Args:
        interval: the least seconds between two questions; 0 for no limit.

    Attributes:
        told: is called at a refusal, but not for others of what was sent before it.
    """

    def __init__(self, interval: float = 0.0) -> None:
        self.told: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._least = interval
        self._interval = interval
        self._next = 0.0  # the moment of the next question
        self._paused_until = 0.0
        self._refused_at = 0.0
        self._refusals = 0
        self._sent: deque[float] = deque(maxlen=10_000)

    def wait(self, sleep: Callable[[float], None]) -> None:
        """Waits for the moment to send, by ``sleep``, which takes seconds; what it raises ends the wait."""
        wait_for(self.turn, sleep)

    def turn(self, waited: Turn | None = None) -> Turn | None:
        """Returns how long a question must wait before it comes again, None when it is to be sent now.

        Args:
            waited: what an earlier call returned, and was waited for.
        """
        with self._lock:
            now = monotonic()
            if waited is None or waited.refusals != self._refusals:  # or it was given before a pause that has begun
                moment = max(now, self._next)
                self._recover(now)
                self._next = moment + self._interval
                if moment > now:
                    return Turn(moment - now, self._refusals)
            self._sent.append(now)
            return None

    def refused(self, retry_after: float | None) -> None:
        """Is told that the server refused a question, and how many seconds it asked to wait."""
        pause = min(PAUSE if retry_after is None else retry_after, LONGEST_PAUSE)
        with self._lock:
            now = monotonic()
            is_new = now >= self._paused_until  # else it was sent before the pause began
            if is_new:
                window = max(pause, PAUSE)
                taken = sum(now - sent < window for sent in self._sent)
                self._interval = max(self._interval, window / max(taken, 1)) * CAUTION
            self._paused_until = max(self._paused_until, now + pause)
            self._next = self._paused_until
            self._refused_at = now
            self._refusals += 1
        if is_new:
            self.told()

    def _recover(self, now: float) -> None:
        if self._interval > self._least and now - self._refused_at > QUIET:
            self._interval = max(self._interval * RECOVERY, self._least)
