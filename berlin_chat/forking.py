"""What a child process must not share with its parent: locks that were held, connections, logins."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forgetful(Protocol):
    """Has a state that belongs to its process."""

    def forget(self) -> None:
        """Starts afresh."""


_forgetful: weakref.WeakSet[Forgetful] = weakref.WeakSet()


def after_fork(one: Forgetful) -> None:
    """Has it forget in each child process that a fork makes, as long as it lives."""
    _forgetful.add(one)


def _forget_all() -> None:
    for one in _forgetful:
        one.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_all)
