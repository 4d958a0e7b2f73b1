"""A model behind a ``LocalServer`` whose replies come when the test lets them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

#: How long something may stay away, in seconds.
PATIENCE = 30.0
#: Ends a reply.
END = None


class Upstream:
    """A model whose replies are what the test puts into ``pieces``; ``END`` ends one.

    Attributes:
        asked: the messages of each question.
        left: how many of its replies were ended before their end.
    """

    default_model = "m-1"

    def __init__(self) -> None:
        self.pieces: SimpleQueue[str | None] = SimpleQueue()
        self.asked: list[Any] = []
        self.left = 0
        self.ended = threading.Event()

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        self.asked.append(messages)
        self.ended.clear()
        try:
            while (piece := self.pieces.get(timeout=PATIENCE)) is not END:
                yield piece
        except GeneratorExit:
            self.left += 1
            raise
        finally:
            self.ended.set()

    def has_been_asked(self, times: int) -> bool:
        """Waits until so many questions have arrived; says whether they have."""
        until = time.monotonic() + PATIENCE
        while len(self.asked) < times and time.monotonic() < until:
            time.sleep(0.01)
        return len(self.asked) >= times

    def was_left(self) -> bool:
        """Whether its reader has gone, which the server sees when it sends more."""
        until = time.monotonic() + PATIENCE
        while not self.ended.wait(0.01) and time.monotonic() < until:
            self.pieces.put("more")
        return self.left == 1

    def say(self, *pieces: str) -> None:
        """Lets it answer with these."""
        for piece in pieces:
            self.pieces.put(piece)
        self.pieces.put(END)
