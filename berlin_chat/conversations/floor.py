"""Who has the floor in a conversation: one turn at a time."""

from __future__ import annotations

from weakref import ref

from ..errors import InvalidRequest

_BUSY = (
    "the conversation is in the middle of a turn: read that to its end or close it first, or give each thread a"
    " conversation of its own, such as fork()"
)


class Hold:
    """Has the floor as long as it lives."""


class Floor:
    """Gives the floor to one turn at a time, in whatever thread.

    There is no lock, which Ctrl-C could leave held. A turn has the floor until its ``Hold`` is gone, whatever has ended
    it: the generator that has it is the only one to refer to it. Who is next takes the next number by
    ``dict.setdefault``, which is atomic.

    >>> floor = Floor()
    >>> hold = floor.take()
    >>> floor.check()
    Traceback (most recent call last):
        ...
    berlin_chat.errors.InvalidRequest: the conversation is in the middle of a turn: ...
    >>> del hold
    >>> floor.check()
    """

    def __init__(self) -> None:
        self._holds: dict[int, ref[Hold]] = {}  # of all turns so far, for a number that was free twice could go twice

    def check(self) -> None:
        """Raises InvalidRequest if a turn has the floor."""
        newest = self._holds.get(len(self._holds) - 1)
        if newest is not None and newest() is not None:
            raise InvalidRequest(_BUSY)

    def take(self) -> Hold:
        """Returns what keeps the floor; raises InvalidRequest if a turn has it."""
        hold = Hold()
        mine, number = ref(hold), max(len(self._holds) - 1, 0)
        while (found := self._holds.setdefault(number, mine)) is not mine:
            if found() is not None:
                raise InvalidRequest(_BUSY)
            number += 1
        return hold
