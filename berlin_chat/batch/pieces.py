"""``stream_many``: pieces of many replies over one bounded queue."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Literal

from ..cancellation import CancelToken
from ..errors import ChatError, InvalidRequest
from ..messages import Messages
from ..provider import Provider
from .in_flight import InFlight
from .keys import checked_prompts
from .questions import Questions, checked_arguments, checked_options
from .rate_limit import seconds_between

#: How many prompts are taken ahead, and how many pieces wait for a slow loop, for each thread.
AHEAD, PIECES_AHEAD = 2, 4

#: A piece of a reply; None at its end, or the error that ended it.
_Piece = tuple[int, "str | ChatError | None"]


def stream_many(
    provider: Provider,
    prompts: Iterable[Messages],
    *,
    max_workers: int = 8,
    model: str | None = None,
    rate: str | None = None,
    on_error: Literal["return", "raise"] = "raise",
    deadline: float | None = None,
    cancel: CancelToken | None = None,
    **options: Any,
) -> Generator[tuple[int, str | ChatError], None, None]:
    """Asks many questions over a pool of threads; yields ``(index, piece)`` in the order of arrival.

    A slow loop slows the readers: only a few pieces for each thread wait for it. Otherwise as ``ask_many``.

    Args:
        on_error: ``"raise"`` the first error, which ends everything, or ``"return"`` it as the last piece of its reply.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server:
    ...     replies = ["", ""]
    ...     for index, piece in stream_many(server.provider("h2o"), ["one", "two"]):
    ...         replies[index] += piece
    >>> [reply[-3:] for reply in replies]
    ['one', 'two']
    """
    if isinstance(max_workers, str):
        raise InvalidRequest(
            'stream_many cannot find max_workers="auto", as the loop decides how fast pieces are read: give a number'
        )
    checked_arguments(max_workers, None, on_error)
    checked_options(options, stream_many)
    if checked_prompts(prompts, "stream_many"):
        raise InvalidRequest(
            "stream_many knows prompts by their places, not by keys: give the prompts alone, as a list"
        )
    interval = seconds_between(rate) if rate is not None else 0.0
    questions = Questions(provider, interval, model=model, deadline=deadline, **options)
    in_flight: InFlight[_Piece] = InFlight(None, lambda: max_workers, AHEAD, cancel)
    questions.stop = in_flight.stop
    return _pieces(questions, in_flight, enumerate(iter(prompts)), max_workers * PIECES_AHEAD, on_error)


def _pieces(
    questions: Questions,
    in_flight: InFlight[_Piece],
    prompts: Iterator[tuple[int, Messages]],
    ahead: int,
    on_error: str,
) -> Generator[tuple[int, str | ChatError], None, None]:
    # A permit for each piece that may wait for the loop. No lock, which Ctrl-C might leave held.
    permits: SimpleQueue[None] = SimpleQueue()

    def read(index: int, prompt: Messages) -> list[_Piece]:
        """Hands on the pieces of one reply, as fast as the loop takes them."""
        try:
            for piece in questions.stream(prompt):
                permits.get()
                if in_flight.stop.cancelled:
                    break  # for more pieces may have come already than there are permits
                in_flight.arrived.put([(index, piece)])
        except ChatError as error:
            return [(index, error)]
        return [(index, None)]

    def permit() -> None:
        for _ in range(ahead):
            permits.put(None)

    permit()
    in_flight.stop.watch(permits, permit)  # at the end each reader that waits gets one
    with in_flight:
        while True:
            while in_flight.has_room and (numbered := next(prompts, None)) is not None:
                in_flight.submit(read, *numbered)
            if in_flight.is_done:
                return
            for index, piece in in_flight.results():
                if isinstance(piece, str):
                    permits.put(None)
                else:
                    in_flight.taken -= 1
                if isinstance(piece, ChatError) and on_error == "raise":
                    raise piece
                if piece is not None:
                    yield index, piece
