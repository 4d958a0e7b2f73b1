"""Chunks of prompts in other processes."""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from typing import Any, ClassVar, Protocol, runtime_checkable

from ..cancellation import CancelToken, Limits
from ..errors import ChatError
from ..groups.group import Group
from ..http.login import AMONG_OTHERS, LoggedIn, Login
from ..provider import Provider
from .answers import Answer
from .questions import Chunk, Questions


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
    """The answers to a chunk, and the logins that its process has by then."""

    logins: tuple[LoggedIn | None, ...] = ()


class ForProcesses:
    """What is given to an executor that crosses processes, with a chunk, and crosses as an :class:`InProcess`.

    The provider crosses as configuration. The login crosses beside it: this process logs in for all, and what another
    one learns comes back with its answers.

    Args:
        workers: how many threads answer a chunk.
    """

    def __init__(self, questions: Questions, workers: int) -> None:
        import pickle  # here, as it is not needed by those who stay in one process

        self._pickled = pickle.dumps(questions)
        self._workers = workers
        self._accounts = accounts(questions.provider)
        self._seconds = questions.arguments.get("deadline")

    def __reduce__(self) -> Any:
        logins = tuple(account.login.hand_down() for account in self._accounts)
        return InProcess, (self._pickled, self._workers, logins)

    def __call__(self, chunk: Chunk) -> list[Answer]:
        """Answers here, for an executor that crosses nothing after all."""
        _, arguments = self.__reduce__()
        return InProcess(*arguments)(chunk)

    def log_in(self, cancel: CancelToken) -> None:
        """Logs in before the first chunk. Where that fails, each question says why."""
        for account in self._accounts:
            with suppress(ChatError):
                account.log_in(Limits(self._seconds, cancel))

    def learn(self, answers: list[Answer]) -> None:
        """Takes up the logins of another process."""
        for account, login in zip(self._accounts, getattr(answers, "logins", ()), strict=False):
            account.login.take_up(login)


class InProcess:
    """Answers a chunk in another process, by as many threads there as a plain executor's ``map`` needs.

    The chunks of one process share one provider, and so one login, and one rate limiter.
    """

    #: What crossed to this process, by its pickle: no chunk knows of the others in another way.
    _crossed: ClassVar[dict[bytes, Questions]] = {}
    _KEPT: ClassVar[int] = 16  # a process may live through many batches

    def __init__(self, pickled: bytes, workers: int, logins: tuple[LoggedIn | None, ...]) -> None:
        self._pickled = pickled
        self._workers = workers
        self._logins = logins

    def __call__(self, chunk: Chunk) -> Answers:
        import pickle

        crossed = self._crossed
        questions = crossed.get(self._pickled) or crossed.setdefault(self._pickled, pickle.loads(self._pickled))
        for old in list(crossed)[: -self._KEPT]:
            crossed.pop(old, None)
        here = accounts(questions.provider)
        for account, login in zip(here, self._logins, strict=True):
            account.login.take_up(login)
            account.login.chances = AMONG_OTHERS
        with ThreadPoolExecutor(min(self._workers, len(chunk)), "berlin_chat") as threads:
            answers = Answers(threads.map(questions.ask, *zip(*chunk, strict=True)))
        answers.logins = tuple(account.login.hand_down() for account in here)
        return answers


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
