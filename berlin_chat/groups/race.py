"""``Race``: several providers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

from ..cancellation import SIGNAL_INTERVAL, CancelToken, Deadline
from ..errors import Cancelled, ChatError, InvalidRequest
from ..messages import Messages
from ..process import no_thread
from ..provider import Parts, Pieces, Provider, Question
from ..reply import Event, Reply
from .group import Group

#: How long the end of a race waits for the threads of those who lost, in seconds. One that is still connecting
#: ends by itself, with its connect timeout at the latest.
LOSERS_GRACE = 0.25


class Race(Group):
    """Asks all of its providers; the first to deliver a piece wins, and the others are cancelled at once.

    Itself a provider, as safe to share between threads as its providers are. Each question has a thread for each
    provider that takes part, which ends with the first piece.

    Args:
        providers: those that take part: instances, classes, or names.
        stagger: how many seconds of silence it takes before the next provider starts too; one that failed is
            replaced at once.

    Raises:
        AllProvidersFailed: while reading: none of them delivered a piece; its ``errors`` say why.
        APITimeoutError: while reading: none of them did so before the deadline.
    """

    name = "race"

    def __init__(self, providers: Iterable[Provider | type[Provider] | str], stagger: float = 0.0) -> None:
        if not isinstance(stagger, (int, float)) or not 0 <= stagger < threading.TIMEOUT_MAX:
            raise InvalidRequest("stagger must be seconds, and not negative")
        super().__init__(providers, stagger=stagger)
        self.stagger = stagger

    def _answer(self, question: Question) -> Parts:
        deadline = Deadline(question.limits.seconds)
        attempts: list[_Attempt] = []
        first: dict[str, _Attempt | None] = {}  # whose "winner" is set once: ``dict.setdefault`` is atomic
        try:
            winner = self._winner(question, deadline, attempts, first)
            if winner is None:
                raise self._failed([one.error for one in attempts if isinstance(one.error, ChatError)], deadline)
            if winner.whole is not None:
                return winner.whole
            yield winner.first
            return (yield from winner.pieces)
        finally:
            _end(attempts, first.setdefault("winner", None))

    def _winner(
        self, question: Question, deadline: Deadline, attempts: list[_Attempt], first: dict[str, _Attempt | None]
    ) -> _Attempt | None:
        """Returns the first that has delivered a piece, None where all have failed or the time is over."""
        arrived: SimpleQueue[_Attempt] = SimpleQueue()

        def arrive(attempt: _Attempt) -> None:
            if attempt.error is not None or first.setdefault("winner", attempt) is attempt:
                arrived.put(attempt)
            else:
                attempt.pieces.close()

        waiting = list(self.providers)
        running = 0
        while waiting or running:
            if waiting:
                attempts.append(_Attempt(waiting.pop(0), question, deadline, arrive))
                running += 1
            try:
                found = arrived.get(timeout=self.stagger if waiting else SIGNAL_INTERVAL)
            except Empty:
                continue
            running -= 1
            if found.error is None:
                for attempt in attempts:
                    if attempt is not found:
                        attempt.cancel.cancel()
                return found
            cancelled = question.limits.cancel is not None and question.limits.cancel.cancelled
            if not isinstance(found.error, ChatError) or (cancelled and isinstance(found.error, Cancelled)):
                raise found.error
            if deadline.passed:
                break
        return None


class _Attempt:
    """One provider in a race. Its thread ends when the first piece, or an error, has arrived.

    Args:
        arrive: is told by the thread.
    """

    def __init__(
        self, provider: Provider, question: Question, deadline: Deadline, arrive: Callable[[_Attempt], None]
    ) -> None:
        self.cancel = CancelToken(question.limits.cancel)
        self.error: BaseException | None = None
        self.whole: Reply | None = None  # of a reply without a piece
        self.first: str | Event = ""
        self.pieces: Parts
        arguments = (provider, question, deadline, arrive)
        self.thread = threading.Thread(target=self._run, args=arguments, name=f"race {provider.name}", daemon=True)
        try:
            self.thread.start()
        except RuntimeError as error:
            self.error = no_thread(error)
            arrive(self)

    def _run(
        self, provider: Provider, question: Question, deadline: Deadline, arrive: Callable[[_Attempt], None]
    ) -> None:
        try:
            self.pieces = question.put_to(provider, deadline, self.cancel)
            self.first = next(self.pieces)
        except StopIteration as end:
            self.whole = end.value
        except BaseException as error:
            self.error = error
        arrive(self)


def _end(attempts: list[_Attempt], winner: _Attempt | None) -> None:
    """Cancels who is still running, and closes what the winner has opened."""
    grace = Deadline(LOSERS_GRACE)
    for attempt in attempts:
        attempt.cancel.cancel()
    for attempt in attempts:
        # Not this one, whose garbage it may be, nor one that could not be started.
        if attempt.thread.is_alive() and attempt.thread is not threading.current_thread():
            attempt.thread.join(grace.left())
        attempt.cancel.__exit__()
    if winner is not None:
        winner.pieces.close()


def race(
    providers: Iterable[Provider | type[Provider] | str],
    messages: Messages,
    model: str | None = None,
    *,
    stagger: float = 0.0,
    **question: Any,
) -> Pieces:
    """Asks several providers at once; the first to deliver a piece wins, the others are cancelled.

    A generator like ``Provider.stream``, with the same arguments and errors. ``Race`` is the same as a provider, for
    wherever one is taken.

    Args:
        stagger: how many seconds of silence it takes before the next provider starts too.
        question: the other arguments of ``Provider.stream``: ``deadline``, ``cancel``, and options.

    Raises:
        AllProvidersFailed: none of them delivered a piece.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as fast, LocalServer(delay=5) as slow:
    ...     "".join(race([slow.provider("berlin"), fast.provider("acytoo")], "Hi", stagger=0.1)).endswith("Hi")
    True
    """
    return Race(providers, stagger).stream(messages, model, **question)
