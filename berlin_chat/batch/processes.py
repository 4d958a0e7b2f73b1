"""Chunks of prompts in other processes."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, count
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from ..cancellation import Limits
from ..errors import Cancelled, ChatError
from ..groups.group import Group
from ..http.login import AMONG_OTHERS, LoggedIn, Login
from ..process import importing
from ..provider import Provider
from .answers import Answer
from .in_flight import InFlight
from .keys import Asked
from .questions import Chunk, Questions
from .rate_limit import RateLimiter

if TYPE_CHECKING:
    from .channel import Address


@runtime_checkable
class Account(Protocol):
    """A provider whose server may let each login end the one before: processes that share it share its login."""

    login: Login[Any]

    def log_in(self, limits: Limits) -> None: ...


def accounts(provider: Provider) -> list[Account]:
    """Returns a provider that is an account, or those in a group; in the same order for a copy."""
    inside = chain.from_iterable(map(accounts, provider.providers)) if isinstance(provider, Group) else [provider]
    return [one for one in inside if isinstance(one, Account)]


class Answers(list[Answer]):
    """The answers to a chunk that have not gone through a channel, and the logins that its process has by then.

    Attributes:
        chunk: its first index.
    """

    logins: tuple[LoggedIn | None, ...] = ()
    chunk = 0


class ForProcesses:
    """What is given to an executor that crosses processes, with a chunk, and crosses as an :class:`InProcess`.

    The provider crosses as configuration. The login crosses beside it: this process logs in for all, and what another
    one learns comes back with its answers.

    A chunk on this machine reports each answer through a channel at once, asks there when it may send, and ends with
    it. One on another machine, or where loopback cannot be used, returns its answers together.

    Of two answers to one question, as an executor that starts a chunk anew may give them, the first counts.

    Args:
        questions: its checkpoint keeps the answers.
        workers: how many threads answer a chunk.
        interval: the seconds between two questions.
        early: whether the executor may have a chunk done before ``submit`` returns.

    Attributes:
        arrived: is given answers that came through the channel, and what went wrong with them.
    """

    arrived: Callable[[Future[list[Answer]] | list[Answer]], None]

    def __init__(self, questions: Questions, workers: int, interval: float, early: bool) -> None:
        with importing:
            import pickle  # here, as neither is needed by those who stay in one process

            from .channel import Channel

        self._pickled = pickle.dumps(questions)
        self._questions = questions
        self._workers = workers
        self._early = early
        self._accounts = accounts(questions.provider)
        self._logged_in = False
        self._unkept: OSError | None = None
        self._missing: dict[int, set[int]] = {}  # of each chunk under way, by its first index
        self._lock = threading.Lock()
        self._channel = Channel(RateLimiter(interval), self._answered, self._still_missing)

    def __reduce__(self) -> Any:
        logins = tuple(account.login.hand_down() for account in self._accounts)
        return InProcess, (self._pickled, self._workers, logins, self._channel.address)

    def __call__(self, chunk: Chunk) -> list[Answer]:
        """Answers here, for an executor that crosses nothing after all."""
        _, arguments = self.__reduce__()
        return InProcess(*arguments)(chunk)

    def __enter__(self) -> ForProcesses:
        self._channel.open()
        self._questions.stop.watch(self, self._channel.end)  # a loop that is slow must not keep the others asking
        return self

    def __exit__(self, kind: object = None, error: object = None, traceback: object = None) -> None:
        """Ends what other processes have under way, and keeps what has come: the OSError of that is raised."""
        self._questions.stop.unwatch(self)
        self._channel.close()
        if self._unkept is not None and not isinstance(error, OSError):  # else that one says it
            raise self._unkept

    def submit(self, in_flight: InFlight[Answer], chunk: Chunk) -> None:
        """Has a chunk answered. Before the first, logs in; where that fails, each question says why."""
        if not self._logged_in:
            self._logged_in = True
            for account in self._accounts:
                with suppress(ChatError):
                    account.log_in(Limits(self._questions.arguments.get("deadline"), in_flight.stop))
        with self._lock:
            self._missing[chunk[0].index] = {asked.index for asked in chunk}
        if self._early:
            self._channel.listen()
        in_flight.submit(self, chunk, prompts=len(chunk))
        self._channel.listen()  # behind the fork of a process pool, which should not be one of several threads

    def _still_missing(self, chunk: int) -> frozenset[int]:
        with self._lock:
            return frozenset(self._missing.get(chunk, ()))

    def _answered(self, chunk: int, answer: Answer) -> None:
        with self._lock:  # to the end, lest another copy of the chunk is done while its last answer is on its way
            missing = self._missing.get(chunk, set())
            if answer.index not in missing:
                return
            missing.discard(answer.index)
            try:
                self._record(answer)
            except BaseException as error:
                if isinstance(error, OSError):
                    self._unkept = self._unkept or error
                failed: Future[list[Answer]] = Future()
                failed.set_exception(error)
                self.arrived(failed)
            else:
                self.arrived([answer])

    def _record(self, answer: Answer) -> None:
        if self._questions.checkpoint is not None:
            self._questions.checkpoint.record(answer)

    def keep(self, answers: list[Answer]) -> None:
        """Takes up what a chunk returns: answers that did not come through the channel, and logins.

        Raises:
            BrokenExecutor: its process could not tell all answers, although the batch goes on.
        """
        assert isinstance(answers, Answers)
        for account, login in zip(self._accounts, answers.logins, strict=True):
            account.login.take_up(login)
        with self._lock:
            missing = self._missing.pop(answers.chunk, set())
        answers[:] = [answer for answer in answers if answer.index in missing]
        unkept: OSError | None = None
        for answer in answers:
            try:
                self._record(answer)
            except OSError as failed:  # there may be room for another
                unkept = unkept or failed
        if unkept is not None:
            raise unkept
        if len(answers) < len(missing) and not self._questions.stop.cancelled:
            raise BrokenExecutor("a worker process lost its connection to the batch, on loopback, and its answers")


class InProcess:
    """Answers a chunk in another process, by as many threads there as a plain executor's ``map`` needs.

    The chunks of one process share one provider, and so one login.

    Args:
        address: of the batch's channel.
    """

    #: What crossed to this process, by its pickle: no chunk knows of the others in another way.
    _crossed: ClassVar[dict[bytes, Questions]] = {}
    _KEPT: ClassVar[int] = 16  # a process may live through many batches

    def __init__(
        self, pickled: bytes, workers: int, logins: tuple[LoggedIn | None, ...], address: Address | None
    ) -> None:
        self._pickled = pickled
        self._workers = workers
        self._logins = logins
        self._address = address

    def __call__(self, chunk: Chunk) -> Answers:
        import pickle

        from .channel import machine

        crossed = self._crossed
        questions = crossed.get(self._pickled) or crossed.setdefault(self._pickled, pickle.loads(self._pickled))
        for old in list(crossed)[: -self._KEPT]:
            crossed.pop(old, None)
        here = accounts(questions.provider)
        for account, login in zip(here, self._logins, strict=True):
            account.login.take_up(login)
            account.login.chances = AMONG_OTHERS
        answers = Answers()
        if self._address is not None and self._address.machine == machine():
            self._report(Questions(questions.provider, **questions.arguments), chunk, self._address)
        else:
            with ThreadPoolExecutor(min(self._workers, len(chunk)), "berlin_chat") as threads:
                answers.extend(threads.map(questions.ask, *zip(*chunk, strict=True)))
        answers.chunk = chunk[0].index
        answers.logins = tuple(account.login.hand_down() for account in here)
        return answers

    def _report(self, questions: Questions, chunk: Chunk, address: Address) -> None:
        """Answers what is missing, through the channel. Ends with the batch, also with one that was killed."""
        from .channel import Link

        try:
            link = Link(address, chunk[0].index, questions.stop)
        except ConnectionError:
            return
        with link:
            missing = [asked for asked in chunk if asked.index in link.missing]
            if not missing:
                return
            questions.limiter = link
            done = count(1)

            def answer(asked: Asked) -> None:
                if not questions.stop.cancelled:
                    answer = questions.ask(*asked)
                    if not isinstance(answer.error, Cancelled):
                        link.answer(answer)

            def answered(_: object) -> None:
                if next(done) == len(missing):
                    link.end()

            with ThreadPoolExecutor(min(self._workers, len(missing)), "berlin_chat") as threads:
                try:
                    running = [threads.submit(answer, asked) for asked in missing]
                    for future in running:
                        future.add_done_callback(answered)
                    link.follow()
                finally:
                    questions.stop.cancel()
            for future in running:
                future.result()


def warn_of_hanging(executor: Executor) -> None:
    """Warns of Dask's profile below Python 3.12, where it may stop a worker for good.

    It calls ``sys._current_frames()`` every 10 ms, which deadlocks with threads that start while it allocates:
    python/cpython #106883, dask/distributed #8616.
    """
    if sys.version_info < (3, 12) and type(executor).__module__.startswith("distributed"):
        import dask

        if dask.config.get("distributed.worker.profile.enabled", True):
            warnings.warn(
                "Dask's workers may hang on Python below 3.12, for their profile stops threads that start: set"
                " distributed.worker.profile.enabled to False where the cluster is made",
                RuntimeWarning,
                stacklevel=3,
            )
