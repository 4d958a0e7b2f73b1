"""``ask_many``: many questions at once, whole answers.

The prompts are read in the caller's thread, a bounded number ahead, so that an endless generator works and memory
does not grow with its length.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain, islice
from operator import length_hint
from time import monotonic
from typing import Any, Literal

from ..cancellation import SIGNAL_INTERVAL, CancelToken
from ..errors import InvalidRequest
from ..messages import Messages
from ..process import importing
from ..provider import Provider
from .answers import Answer
from .checkpoint import Checkpoint
from .description import described
from .in_flight import InFlight
from .keys import Asked, Keyed, checked_labels, checked_prompts, taken
from .processes import ForProcesses, warn_of_hanging
from .progress import Progress
from .questions import AUTO, Chunk, Questions, checked_arguments, checked_options
from .rate_limit import seconds_between

#: How many prompts are taken ahead for each worker: in turn, a slow one must not let the others run out of work.
AHEAD, AHEAD_IN_TURN = 2, 4
#: How many chunks are on their way to other processes.
CHUNKS_AHEAD = 256
#: How many prompts of a chunk each thread of a worker process gets, unless told otherwise.
CHUNK_ROUNDS = 8
#: How far the prompts are read before the first question, to see whether a checkpoint belongs to them.
LOOK_AHEAD = 10_000
#: How far for prompts with keys, which may stand in any order.
KEYS_AHEAD = 100


def ask_many(
    provider: Provider,
    prompts: Iterable[Messages] | Mapping[Any, Messages] | Keyed,
    *,
    max_workers: int | Literal["auto"] = 8,
    ordered: bool = True,
    model: str | None = None,
    progress: bool = False,
    rate: str | None = None,
    checkpoint: Any = None,
    checkpoint_mismatch: Literal["refuse", "ask"] = "refuse",
    executor: Executor | None = None,
    chunk_size: int | None = None,
    on_error: Literal["return", "raise"] = "return",
    deadline: float | None = None,
    cancel: CancelToken | None = None,
    **options: Any,
) -> Generator[Answer, None, None]:
    """Asks many questions over a pool of threads; a generator of :class:`Answer`.

    The arguments are checked at the call; the first ``next`` starts the threads. Leaving the loop, however that
    happens, cancels what is in flight, also in other processes of this machine, and returns when the threads have
    ended. A chunk that a process on another machine has begun is finished there, and its answers are lost.

    Args:
        provider: shared by all threads; a ``Fallback`` or ``Race`` too.
        prompts: any iterable of what ``Provider.stream`` takes as messages. It is read in the caller's thread, as far
            ahead as the threads need. A mapping of keys to prompts, a pandas ``Series``, anything else with ``items()``
            and ``keyed(…)`` give each prompt a key, which comes back as ``Answer.key``.
        max_workers: how many questions are in flight at the same time. ``"auto"`` finds out how many make the batch
            faster, from 1 to 256: it measures questions a second and the seconds to the first piece, tries more and
            fewer all along, and takes some away when the server refuses (429, 503) or questions time out. For threads
            of its own only, and for batches that are long: it starts with 8.
        ordered: yield in the order of the prompts; otherwise in the order in which they are answered.
        model, deadline, options: of each question, as in ``Provider.stream``.
        progress: show a progress bar (extra ``[notebook]`` or ``[cli]``).
        rate: at most so many questions, such as ``"60/min"``, evenly spaced. With or without it, a 429 slows the
            whole batch as long as the server asks.
        checkpoint: a file to which each answer is appended. With the same file, only what is missing is asked: the
            answers of prompts with keys are known by them, in whatever order they come; those of others, by their
            places. Errors are not kept: they are asked again. One batch at a time writes to a file. Where Ctrl-C ends
            the batch, the text of the ``KeyboardInterrupt`` says how much is kept; with a progress bar, a line below it
            does wherever your loop is left.
        checkpoint_mismatch: what becomes of answers in the file to other questions, of another provider (class,
            address), with another model or other options, or to other prompts: ``"refuse"`` the file, or ``"ask"``
            those prompts anew.
        executor: runs the questions instead of threads of its own. If it is a ``ThreadPoolExecutor``, give the number
            of its threads as ``max_workers``. One that crosses processes gets chunks of prompts, at most 256 ahead,
            each of which a pool of ``max_workers`` threads answers there; the provider crosses as configuration, and
            the token of a login that is made here first. All processes of this machine keep the rate together, and a
            429 slows all; their answers come one by one, over loopback. On another machine, the answers of a chunk come
            together, the rate is kept from chunk to chunk, and a 429 slows the process that met it. With a checkpoint,
            a process that dies costs what it had not answered; the executor says whether that ends the batch.
        chunk_size: how many prompts such a chunk holds; 8 for each thread unless told otherwise.
        on_error: ``"return"`` an Answer with its error, or ``"raise"`` the first, which ends everything.
        cancel: ends everything, from any thread: the loop gets ``Cancelled``.

    Raises:
        InvalidRequest, ProviderNotWorking: at the call.
        InvalidRequest: at the first ``next``, where the checkpoint belongs to other questions, cannot be opened, or
            is in use; later, where a key comes twice, or a prompt far behind is not the one that was answered.
        OSError: where an answer cannot be written. All that were written before are kept.
        ChatError: with ``on_error="raise"``.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server:
    ...     for answer in ask_many(server.provider("ylokh"), ["one", "two"], max_workers=2):
    ...         print(answer.index, answer.reply[-3:])
    0 one
    1 two
    """
    checked_arguments(max_workers, chunk_size, on_error)
    if max_workers == AUTO and executor is not None:
        raise InvalidRequest(
            'max_workers="auto" needs threads that come and go, and an executor has its own: give the number of'
            " threads for each of its workers, or no executor"
        )
    checked_options(options, ask_many)
    has_keys = checked_prompts(prompts, "ask_many")
    interval = seconds_between(rate) if rate is not None else 0.0
    questions = Questions(provider, interval, model=model, deadline=deadline, **options)
    workers = questions.workers(max_workers)
    if has_keys and checkpoint is not None:
        checked_labels(prompts)
    kept = _opening(checkpoint, checkpoint_mismatch, described(provider, model, options), has_keys)
    if kept is not None:
        kept.expected, kept.is_watched = length_hint(prompts), progress
    if executor is None or isinstance(executor, ThreadPoolExecutor):
        ahead = AHEAD_IN_TURN if ordered else AHEAD
        in_flight: InFlight[Answer] = InFlight(executor, workers, ahead, cancel)
        questions.stop, questions.checkpoint = in_flight.stop, kept
        batch = Batch(questions, in_flight, kept, 1, 0.0)
    else:
        warn_of_hanging(executor)
        size = chunk_size or CHUNK_ROUNDS * workers()
        with importing:
            from concurrent.futures import ProcessPoolExecutor  # here, for it brings all of multiprocessing

        crossing = ForProcesses(questions, workers(), interval, not isinstance(executor, ProcessPoolExecutor))
        in_flight = InFlight(executor, lambda: CHUNKS_AHEAD, size, cancel, crossing.keep)
        questions.stop, questions.checkpoint = in_flight.stop, kept
        crossing.arrived = in_flight.arrived.put
        # Chunks too, for those on other machines know nothing of one another's questions.
        batch = Batch(questions, in_flight, kept, size, interval, crossing)
    bar = Progress(prompts, workers if max_workers == AUTO else None) if progress else None
    return batch.answers(taken(prompts, has_keys), bar, InTurn() if ordered else None, on_error)


class Batch:
    """One call of ``ask_many``: takes prompts, has them asked, and yields what comes.

    Args:
        questions: answers a chunk of prompts, in another thread.
        size: how many prompts such a chunk holds.
        interval: the seconds between two questions, for which chunks of several wait.
        crossing: has chunks answered in other processes instead.
    """

    def __init__(
        self,
        questions: Questions,
        in_flight: InFlight[Answer],
        checkpoint: Checkpoint | None,
        size: int,
        interval: float,
        crossing: ForProcesses | None = None,
    ) -> None:
        self._questions = questions
        self._crossing = crossing
        self._in_flight = in_flight
        self._checkpoint = checkpoint
        self._size = size
        self._interval = interval
        self._next: Chunk | Answer | None = None  # taken, and waiting for its moment
        self._moment = 0.0

    def answers(
        self, prompts: Iterator[Asked], progress: Progress | None, in_turn: InTurn | None, on_error: str
    ) -> Generator[Answer, None, None]:
        """Yields the answers; owns all that is open meanwhile."""
        with ExitStack() as stack:
            if self._checkpoint is not None:
                stack.enter_context(self._checkpoint)
                prompts = _belonging(self._checkpoint, prompts)
            if progress is not None:
                stack.enter_context(progress)
            if self._crossing is not None:
                stack.enter_context(self._crossing)
            stack.enter_context(self._in_flight)
            chunks = _chunks(prompts, self._size, self._checkpoint)
            while self._take(chunks):
                due_in = SIGNAL_INTERVAL if self._next is None else self._moment - monotonic()
                for answer in self._in_flight.results(min(max(due_in, 0.0), SIGNAL_INTERVAL)):
                    if answer.error is not None and on_error == "raise":
                        raise answer.error
                    for due in (answer,) if in_turn is None else in_turn.add(answer):
                        if progress is not None:
                            progress.advance(due)
                        yield due
                        self._in_flight.taken -= 1

    def _take(self, chunks: Iterator[Chunk | Answer]) -> bool:
        """Takes prompts as long as there is room; says whether anything is still to come."""
        while self._in_flight.has_room:
            if self._next is None:
                self._next = next(chunks, None)
            if self._next is None:
                return not self._in_flight.is_done
            if isinstance(self._next, Answer):
                self._in_flight.pass_on(self._next)
            else:
                now = monotonic()
                if now < self._moment:
                    break
                self._moment = now + self._interval * len(self._next)
                if self._crossing is not None:
                    self._crossing.submit(self._in_flight, self._next)
                else:
                    self._in_flight.submit(self._questions.ask_chunk, self._next, prompts=len(self._next))
            self._next = None
            if self._size > 1 and not self._in_flight.arrived.empty():
                break  # there is room for so many that an answer must not wait until they are all taken
        return True


class InTurn:
    """Puts answers into the order of their prompts."""

    def __init__(self) -> None:
        self._early: dict[int, Answer] = {}
        self._turn = 0

    def add(self, answer: Answer) -> Iterator[Answer]:
        """Yields all answers whose turn has come."""
        self._early[answer.index] = answer
        while self._turn in self._early:
            due = self._early.pop(self._turn)
            self._turn += 1
            yield due


def _opening(checkpoint: Any, mismatch: str, description: dict[str, Any], has_keys: bool) -> Checkpoint | None:
    """Returns the checkpoint, which is told what it is for."""
    if mismatch not in ("refuse", "ask"):
        raise InvalidRequest(f'checkpoint_mismatch must be "refuse" or "ask", not {mismatch!r}')
    if checkpoint is None:
        return None
    if not isinstance(checkpoint, (Checkpoint, str, os.PathLike)):
        raise InvalidRequest(f"checkpoint is of type {type(checkpoint).__name__}: give the path of a file")
    kept = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    kept.description, kept.has_keys, kept.ask_anew = description, has_keys, mismatch == "ask"
    return kept


def _chunks(prompts: Iterator[Asked], size: int, checkpoint: Checkpoint | None) -> Iterator[Chunk | Answer]:
    """Yields chunks of what is to be asked, and the answers that are there already."""
    chunk: Chunk = []
    for asked in prompts:
        if checkpoint is not None:
            checkpoint.take(asked)
            if (answer := checkpoint.find(asked)) is not None:
                yield answer
                continue
        chunk.append(asked)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _belonging(checkpoint: Checkpoint, prompts: Iterator[Asked]) -> Iterator[Asked]:
    """Returns the prompts, of which a few were read to see whether the checkpoint belongs to them."""
    first = checkpoint.first
    if first is None or checkpoint.ask_anew:
        return prompts
    if checkpoint.has_keys:
        read = []
        for asked in islice(prompts, KEYS_AHEAD):
            read.append(asked)
            if checkpoint.find(asked) is not None:
                break
        return chain(read, prompts)
    if first > LOOK_AHEAD:
        return prompts
    read = list(islice(prompts, first + 1))
    if len(read) <= first:
        raise InvalidRequest(
            f"{checkpoint.path} belongs to other prompts: it has an answer {first}, but there are {len(read)} prompts"
        )
    checkpoint.find(read[first])
    return chain(read, prompts)
