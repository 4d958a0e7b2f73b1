"""``Balance``: many servers that do the work of one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from time import monotonic

from ..cancellation import Deadline, Limiter
from ..errors import APIStatusError, Cancelled, ChatError, InvalidRequest, RateLimitError
from ..process import after_fork
from ..provider import Parts, Provider, Question
from .group import Group

log = logging.getLogger("berlin_chat")

#: How long a server that failed is left alone, in seconds: at first, and at the most. It is twice as long each time.
REST, LONGEST_REST = 1.0, 60.0
#: Statuses by which a server refuses one question, and not all.
QUESTIONS_OWN = (400, 413, 414, 415, 422)


class Balance(Group):
    """Asks, for each question, the provider that has the fewest under way.

    One that fails is left alone for a second, and twice as long each time it fails again, a minute at the most; then
    one question tries it. If none of them is fit, the one whose rest ends first is asked. A question that has not had
    its first piece moves on to the next provider, as in ``Fallback``. With ``retries=0`` a provider's questions move on
    at once; otherwise it tries them again first.

    Itself a provider, as safe to share between threads as its providers are: one lock guards what is known of them. A
    copy, in another process, counts for itself.

    Args:
        providers: instances, classes, or names.

    Raises:
        AllProvidersFailed: while reading: none of them delivered a piece; its ``errors`` say why.
        APITimeoutError: while reading: none of them did so before the deadline.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as one, LocalServer() as other:
    ...     balance = Balance([one.provider("ylokh"), other.provider("berlin")])
    ...     [balance.ask("Hi").provider for _ in range(4)]
    ['ylokh', 'berlin', 'ylokh', 'berlin']
    """

    name = "balance"

    def __init__(self, providers: Iterable[Provider | type[Provider] | str]) -> None:
        super().__init__(providers)
        self.reset()
        after_fork(self)

    def reset(self) -> None:
        """Starts afresh, in a child of a fork: what is under way is its parent's, and so may be the lock."""
        # Reentrant, for what is under way may be garbage that is collected while the lock is held.
        self._lock = threading.RLock()
        self._members = [_Member(provider) for provider in self.providers]
        self._turn = 0

    def _answer(self, question: Question) -> Parts:
        deadline = Deadline(question.limits.seconds)
        errors: dict[_Member, ChatError] = {}
        attempt = _Attempt()
        limiter = question.limits.limiter
        if limiter is not None:
            of_all = _LimiterOfAll(limiter, lambda: self._is_another_fit(attempt))
            question = question._replace(limits=question.limits._replace(limiter=of_all))
        try:
            while (member := self._next(attempt, errors)) is not None:
                try:
                    with closing(question.put_to(member.provider, deadline, question.limits.cancel)) as pieces:
                        first = next(pieces)
                        self._delivers(member, attempt)
                        yield first
                        return (yield from pieces)
                except StopIteration as end:  # a reply without a piece
                    self._delivers(member, attempt)
                    return end.value  # type: ignore[no-any-return]
                except Cancelled:
                    raise
                except ChatError as error:
                    if not deadline.passed:
                        self._fails(member, attempt, error)
                    if attempt.has_begun:
                        raise
                    errors[member] = error
                    if deadline.passed:
                        break
                    if len(errors) < len(self._members):
                        log.warning("%s. Another provider is asked.", error)
        finally:
            self._leave(attempt)
        raise self._failed(errors.values(), deadline)

    def _next(self, attempt: _Attempt, tried: Collection[_Member]) -> _Member | None:
        """Returns the provider that is to be asked next, None where all were tried."""
        with self._lock:
            self._leave(attempt)
            now = monotonic()
            left = [member for member in self._members if member not in tried]
            member = min(left, key=lambda member: member.rank(now), default=None)
            if member is not None:
                self._turn += 1
                attempt.turn = member.turn = self._turn
                member.rest_again(now)
                member.under_way.add(attempt)
            return member

    def _leave(self, attempt: _Attempt) -> None:
        for member in self._members:
            member.under_way.discard(attempt)

    def _delivers(self, member: _Member, attempt: _Attempt) -> None:
        attempt.has_begun = True
        with self._lock:
            if attempt.turn > member.failed_at:  # else it was asked before the failure, and may be gone since
                member.failures, member.rests_until = 0, 0.0

    def _fails(self, member: _Member, attempt: _Attempt, error: ChatError) -> None:
        if isinstance(error, InvalidRequest) or (isinstance(error, APIStatusError) and error.status in QUESTIONS_OWN):
            return
        with self._lock:
            now = monotonic()
            if attempt.turn > member.failed_at:  # else it is one of several that failed together
                member.failures, member.failed_at = member.failures + 1, self._turn
                member.rest_again(now)
            if isinstance(error, RateLimitError):
                asked = now + min(error.retry_after or 0.0, LONGEST_REST)
                member.rests_until = max(member.rests_until, asked)

    def _is_another_fit(self, attempt: _Attempt) -> bool:
        now = monotonic()
        return any(member.rests_until <= now and attempt not in member.under_way for member in self._members)


class _Attempt:
    """A question on its way."""

    def __init__(self) -> None:
        self.turn = 0  # when it was given to the provider that it is at
        self.has_begun = False


class _Member:
    """What is known of a provider. Guarded by the lock of its ``Balance``."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.under_way: set[_Attempt] = set()
        self.turn = 0  # when it was last asked: all questions count up
        self.failures = 0  # since it has last delivered
        self.failed_at = 0  # the turn
        self.rests_until = 0.0

    def rank(self, now: float) -> tuple[float, int, int]:
        """The lower, the better: who is fit, has little to do, and was not asked for long."""
        return max(self.rests_until - now, 0.0), len(self.under_way), self.turn

    def rest_again(self, now: float) -> None:
        """Is left alone, if it has failed: by others, too, while one question tries it."""
        if self.failures:
            self.rests_until = now + min(REST * 2 ** min(self.failures - 1, 16), LONGEST_REST)


class _LimiterOfAll:
    """Slows a whole batch by the refusals of one server only if no other is fit."""

    def __init__(self, limiter: Limiter, is_another_fit: Callable[[], bool]) -> None:
        self._limiter = limiter
        self._is_another_fit = is_another_fit

    def wait(self, sleep: Callable[[float], None]) -> None:
        self._limiter.wait(sleep)

    def refused(self, retry_after: float | None) -> None:
        if not self._is_another_fit():
            self._limiter.refused(retry_after)
