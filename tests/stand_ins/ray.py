"""Stands in for Ray where the README's recipe runs: the few names that it uses, over threads of this process.

Ray itself takes half a minute to start on a busy machine, and 240 MB.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


class ObjectRef:
    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def future(self) -> Future[Any]:
        return self._future


class RemoteFunction:
    """Its arguments and its result are pickled, as those that cross processes are."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *arguments: Any) -> ObjectRef:
        return ObjectRef(_threads.submit(self._run, pickle.dumps(arguments)))

    def _run(self, arguments: bytes) -> Any:
        return pickle.loads(pickle.dumps(self._function(*pickle.loads(arguments))))


remote = RemoteFunction


@contextmanager
def init(num_cpus: int, include_dashboard: bool) -> Iterator[None]:
    global _threads
    with ThreadPoolExecutor(num_cpus) as _threads:
        yield
