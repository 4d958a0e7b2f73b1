"""Chunks of prompts in other processes."""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ClassVar

from .answers import Answer
from .questions import Chunk, Questions


class InProcess:
    """Answers a chunk in another process, by as many threads there as a plain executor's ``map`` needs.

    The chunks of one process share one provider, and so one login, and one rate limiter.

    Args:
        workers: how many threads answer a chunk.
    """

    #: What crossed to this process, by its pickle: no chunk knows of the others in another way.
    _crossed: ClassVar[dict[bytes, Questions]] = {}
    _KEPT: ClassVar[int] = 16  # a process may live through many batches

    def __init__(self, questions: Questions, workers: int) -> None:
        import pickle  # here, as it is not needed by those who stay in one process

        self._pickled = pickle.dumps(questions)
        self._workers = workers

    def __call__(self, chunk: Chunk) -> list[Answer]:
        import pickle

        crossed = self._crossed
        questions = crossed.get(self._pickled) or crossed.setdefault(self._pickled, pickle.loads(self._pickled))
        for old in list(crossed)[: -self._KEPT]:
            crossed.pop(old, None)
        with ThreadPoolExecutor(min(self._workers, len(chunk)), "berlin_chat") as threads:
            return list(threads.map(questions.ask, *zip(*chunk, strict=True)))


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
