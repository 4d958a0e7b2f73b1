"""Several providers that look like one: ``Fallback`` tries one after the other, ``Race`` all at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from contextvars import copy_context
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, ClassVar

from .cancelling import SIGNAL_INTERVAL, CancelToken
from .errors import AllProvidersFailed, APITimeoutError, Cancelled, ChatError, InvalidRequest
from .messages import Messages, as_list
from .provider import Provider, checked_deadline
from .reply import Reply

Pieces = Generator[str, None, Reply]
_Question = tuple["list[dict[str, Any]]", "str | None", "float | None", "dict[str, Any]"]

#: How long the end of a race waits for the threads of those who lost, in seconds. One that is still connecting
#: ends by itself, with its connect timeout at the latest.
LOSERS_GRACE = 0.25


class _Several(Provider):
    """What ``Fallback`` and ``Race`` share. It has no connections of its own; its state is its providers'."""

    supports_message_history: ClassVar[bool] = True

    def __init__(self, providers: Iterable[Provider]) -> None:
        self.providers = tuple(providers)
        if not self.providers:
            raise InvalidRequest(f"{type(self).__name__} needs at least one provider")
        self.base_url = None

    def stream(
        self,
        messages: Messages,
        model: str | None = None,
        *,
        deadline: float | None = None,
        cancel: CancelToken | None = None,
        **options: Any,
    ) -> Pieces:
        """As ``Provider.stream``. The model is left to each provider unless one is given here.

        Raises:
            AllProvidersFailed: none of them delivered a piece; its ``errors`` say why.
            APITimeoutError: none of them did so before the deadline.
        """
        checked_deadline(deadline)
        if cancel is not None and not isinstance(cancel, CancelToken):
            raise InvalidRequest(f"cancel is of type {type(cancel).__name__}, not CancelToken")
        return self._first_to_answer(as_list(messages), model, deadline, cancel, options)

    def create_completion(
        self,
        model: str | None,
        messages: Messages,
        stream: bool = True,
        proxy: str | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """As ``Provider.create_completion``, on an instance."""
        if proxy is not None or timeout is not None:
            raise InvalidRequest(
                f"proxy and timeout are settings of each provider of a {type(self).__name__}"
            )
        pieces: Iterator[str] = super().create_completion(model, messages, stream, **options)
        return pieces

    def _first_to_answer(
        self,
        messages: list[dict[str, Any]],
        model: str | None,
        deadline: float | None,
        cancel: CancelToken | None,
        options: dict[str, Any],
    ) -> Pieces:
        raise NotImplementedError

    def _failed(self, errors: Iterable[ChatError], due: float | None) -> ChatError:
        """The error of a question that nobody has answered."""
        errors = tuple(errors)
        closed = next((error for error in errors if isinstance(error, Cancelled)), None)
        if closed is not None:
            return closed
        reasons = "; ".join(str(error) for error in errors)
        attempts = sum(error.attempts for error in errors)
        if due is not None and monotonic() >= due:
            return APITimeoutError(
                f"no piece within the deadline: {reasons}", provider=self.name, attempts=attempts
            )
        return AllProvidersFailed(
            f"every provider failed: {reasons}", provider=self.name, attempts=attempts, errors=errors
        )

    def close(self) -> None:
        """Closes all of its providers."""
        for provider in self.providers:
            provider.close()

    def check_address(self) -> None:
        """Raises the first provider's ProviderNotWorking if none of them has an address."""
        errors = []
        for provider in self.providers:
            try:
                provider.check_address()
            except ChatError as error:
                errors.append(error)
        if len(errors) == len(self.providers):
            raise errors[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.providers)!r})"


class Fallback(_Several):
    """Asks its providers in turn, until a first piece has arrived; never another one after it.

    Itself a provider, as safe to share between threads as its providers are.

    Args:
        providers: in the order in which they are tried.

    >>> from berlin_chat import Ylokh
    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server:
    ...     reply = Fallback([Ylokh("http://127.0.0.1:9", retries=0), server.provider("berlin")]).ask("Hi")
    >>> reply.provider
    'berlin'
    """

    name = "fallback"

    def __reduce__(self) -> Any:
        return Fallback, (self.providers,)

    def _first_to_answer(
        self,
        messages: list[dict[str, Any]],
        model: str | None,
        deadline: float | None,
        cancel: CancelToken | None,
        options: dict[str, Any],
    ) -> Pieces:
        due = monotonic() + deadline if deadline is not None else None
        errors: list[ChatError] = []
        for provider in self.providers:
            left = None if due is None else max(due - monotonic(), 0.001)
            try:
                pieces = provider.stream(messages, model, deadline=left, cancel=cancel, **options)
                first = next(pieces)
            except StopIteration as end:
                reply: Reply = end.value
                return reply
            except Cancelled:
                raise
            except ChatError as error:
                errors.append(error)
                if due is not None and monotonic() >= due:
                    break
            else:
                with closing(pieces):
                    yield first
                    return (yield from pieces)
        raise self._failed(errors, due)


class Race(_Several):
    """Asks all of its providers; the first to deliver a piece wins, and the others are cancelled at once.

    Itself a provider, as safe to share between threads as its providers are. Each question has a thread for each
    provider that takes part, which ends with the first piece.

    Args:
        providers: those that take part.
        stagger: how many seconds of silence it takes before the next provider starts too; one that failed is
            replaced at once.
    """

    name = "race"

    def __init__(self, providers: Iterable[Provider], stagger: float = 0.0) -> None:
        super().__init__(providers)
        if not isinstance(stagger, (int, float)) or not 0 <= stagger < threading.TIMEOUT_MAX:
            raise InvalidRequest("stagger must be seconds, and not negative")
        self.stagger = stagger

    def __reduce__(self) -> Any:
        return Race, (self.providers, self.stagger)

    def _first_to_answer(
        self,
        messages: list[dict[str, Any]],
        model: str | None,
        deadline: float | None,
        cancel: CancelToken | None,
        options: dict[str, Any],
    ) -> Pieces:
        due = monotonic() + deadline if deadline is not None else None
        heat = _Heat(cancel)
        try:
            winner = heat.run(self.providers, self.stagger, (messages, model, due, options))
            if winner is None:
                raise self._failed(heat.errors, due)
            if winner.whole is not None:
                return winner.whole
            yield winner.first
            return (yield from winner.pieces)
        finally:
            heat.end()


class _Heat:
    """One question's race. ``lock`` guards who won; all else belongs to the thread that asks.

    Args:
        cancel: cancels all contestants.
    """

    def __init__(self, cancel: CancelToken | None) -> None:
        self._cancel = cancel
        self._lock = threading.Lock()
        self._over = False
        self._arrived: SimpleQueue[_Contestant] = SimpleQueue()
        self._contestants: list[_Contestant] = []
        self._winner: _Contestant | None = None

    @property
    def errors(self) -> list[ChatError]:
        """Why each contestant failed."""
        return [one.error for one in self._contestants if isinstance(one.error, ChatError)]

    def run(self, providers: Iterable[Provider], stagger: float, question: _Question) -> _Contestant | None:
        """Returns the winner, None where all have failed or the time is over."""
        messages, model, due, options = question
        waiting = list(providers)
        running = 0
        while waiting or running:
            if waiting:
                left = None if due is None else max(due - monotonic(), 0.001)
                self._start(waiting.pop(0), (messages, model, left, options))
                running += 1
            try:
                found = self._arrived.get(timeout=stagger if waiting else SIGNAL_INTERVAL)
            except Empty:
                continue
            running -= 1
            if found.error is None:
                self._winner = found
                self._cancel_losers()
                return found
            cancelled = self._cancel is not None and self._cancel.cancelled
            if not isinstance(found.error, ChatError) or (cancelled and isinstance(found.error, Cancelled)):
                raise found.error
            if due is not None and monotonic() >= due:
                return None
        return None

    def _start(self, provider: Provider, question: _Question) -> None:
        contestant = _Contestant(provider, question, self._arrive)
        self._contestants.append(contestant)
        if self._cancel is not None:
            self._cancel.watch(contestant, contestant.token.cancel)
        contestant.thread.start()

    def _arrive(self, contestant: _Contestant) -> bool:
        """Is told by a contestant's thread that it has a piece or an error; says whether that is wanted."""
        with self._lock:
            if self._over:
                return False
            self._over = contestant.error is None
            self._arrived.put(contestant)
            return True

    def _cancel_losers(self) -> None:
        for contestant in self._contestants:
            if contestant is not self._winner:
                contestant.token.cancel()

    def end(self) -> None:
        """Cancels who is still running, and closes what the winner has opened."""
        with self._lock:
            self._over = True
        for contestant in self._contestants:
            contestant.token.cancel()
        until = monotonic() + LOSERS_GRACE
        for contestant in self._contestants:
            contestant.thread.join(max(until - monotonic(), 0))
            if self._cancel is not None:
                self._cancel.unwatch(contestant)
        while not self._arrived.empty():
            self._arrived.get().close()
        if self._winner is not None:
            self._winner.close()


class _Contestant:
    """One provider in a race. Its thread ends when the first piece, or an error, has arrived."""

    def __init__(
        self, provider: Provider, question: _Question, arrive: Callable[[_Contestant], bool]
    ) -> None:
        self.token = CancelToken()
        # In the caller's context, for that is where a batch keeps its pace.
        self.thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name=f"race {provider.name}", daemon=True
        )
        self.error: BaseException | None = None
        self.whole: Reply | None = None  # of a reply without a piece
        self.first = ""
        self.pieces: Pieces
        self._provider = provider
        self._question = question
        self._arrive = arrive

    def _run(self) -> None:
        messages, model, deadline, options = self._question
        try:
            self.pieces = self._provider.stream(
                messages, model, deadline=deadline, cancel=self.token, **options
            )
            self.first = next(self.pieces)
        except StopIteration as end:
            self.whole = end.value
        except BaseException as error:
            self.error = error
        if not self._arrive(self):
            self.close()

    def close(self) -> None:
        """Ends the reply, wherever it stands."""
        if self.error is None:
            self.pieces.close()


def race(
    providers: Iterable[Provider],
    messages: Messages,
    model: str | None = None,
    *,
    stagger: float = 0.0,
    deadline: float | None = None,
    cancel: CancelToken | None = None,
    **options: Any,
) -> Pieces:
    """Asks several providers at once; the first to deliver a piece wins, the others are cancelled.

    A generator like ``Provider.stream``, with the same arguments and errors. ``Race`` is the same as a provider, for
    wherever one is taken.

    Args:
        stagger: how many seconds of silence it takes before the next provider starts too.

    Raises:
        AllProvidersFailed: none of them delivered a piece.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as fast, LocalServer(delay=5) as slow:
    ...     "".join(race([slow.provider("berlin"), fast.provider("acytoo")], "Hi", stagger=0.1)).endswith("Hi")
    True
    """
    return Race(providers, stagger).stream(messages, model, deadline=deadline, cancel=cancel, **options)
