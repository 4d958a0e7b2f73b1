"""Many questions at once: a thread pool over one provider, for batches of any length.

``ask_many`` gives whole answers, ``stream_many`` gives pieces. Both read the prompts in the caller's thread, a
bounded number ahead, so that an endless generator works and memory does not grow with its length.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import lru_cache
from itertools import chain, islice
from operator import length_hint
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Generic, Literal, TypeVar, cast

from .cancelling import SIGNAL_INTERVAL, CancelToken
from .checkpoint import Answer, Checkpoint
from .errors import Cancelled, ChatError, InvalidRequest
from .messages import Messages
from .pace import Pace, seconds_between, working_at
from .provider import Provider, checked_count, checked_deadline

T = TypeVar("T")
_Chunk = list[tuple[int, Messages]]
#: A piece of a reply; None at its end, or the error that ended it.
_Heard = tuple[int, "str | ChatError | None"]

#: How many prompts are taken ahead for each worker: in turn, a slow one must not let the others run out of work.
AHEAD, AHEAD_IN_TURN = 2, 4
#: How many chunks are on their way to other processes.
CHUNKS_AHEAD = 256
#: How many prompts of a chunk each thread of a worker process gets, unless told otherwise.
CHUNK_ROUNDS = 8
#: How many pieces wait for a slow loop, for each thread.
PIECES_AHEAD = 4
#: How far the prompts are read before the first question, to see whether a checkpoint belongs to them.
LOOK_AHEAD = 10_000


def ask_many(
    provider: Provider,
    prompts: Iterable[Messages],
    *,
    max_workers: int = 8,
    ordered: bool = True,
    model: str | None = None,
    progress: bool = False,
    rate: str | None = None,
    checkpoint: Any = None,
    executor: Executor | None = None,
    chunk_size: int | None = None,
    on_error: Literal["return", "raise"] = "return",
    deadline: float | None = None,
    cancel: CancelToken | None = None,
    **options: Any,
) -> Generator[Answer, None, None]:
    """Asks many questions over a pool of threads; a generator of :class:`Answer`.

    The arguments are checked at the call; the first ``next`` starts the threads. Leaving the loop, however that
    happens, cancels what is in flight, and returns when the threads have ended; a chunk that another process has begun
    is finished there, and its answers are lost.

    Args:
        provider: shared by all threads; a ``Fallback`` or ``Race`` too.
        prompts: any iterable of what ``Provider.stream`` takes as messages. It is read in the caller's thread, as far
            ahead as the threads need.
        max_workers: how many questions are in flight at the same time.
        ordered: yield in the order of the prompts; otherwise in the order in which they are answered.
        model, deadline, options: of each question, as in ``Provider.stream``.
        progress: show a progress bar (extra ``[notebook]`` or ``[cli]``).
        rate: at most so many questions, such as ``"60/min"``, evenly spaced. With or without it, a 429 slows the
            whole batch as long as the server asks.
        checkpoint: a file to which each answer is appended. With the same file, only what is missing is asked. Errors
            are not kept: they are asked again.
        executor: runs the questions instead of threads of its own. If it is a ``ThreadPoolExecutor``, give the number
            of its threads as ``max_workers``. One that crosses processes gets chunks of prompts, at most 256 ahead,
            each of which a pool of ``max_workers`` threads answers there; the provider crosses as configuration. The
            rate is then kept from chunk to chunk, and a 429 slows the process that met it.
        chunk_size: how many prompts such a chunk holds; 8 for each thread unless told otherwise.
        on_error: ``"return"`` an Answer with its error, or ``"raise"`` the first, which ends everything.
        cancel: ends everything, from any thread: the loop gets ``Cancelled``.

    Raises:
        InvalidRequest, ProviderNotWorking: at the call.
        InvalidRequest: at the first ``next``, where the checkpoint belongs to other prompts.
        ChatError: with ``on_error="raise"``.

    >>> from berlin_chat.server import LocalServer
    >>> with LocalServer() as server:
    ...     for answer in ask_many(server.provider("ylokh"), ["one", "two"], max_workers=2):
    ...         print(answer.index, answer.reply[-3:])
    0 one
    1 two
    """
    provider.check_address()
    checked_count(max_workers, "max_workers", 1)
    if chunk_size is not None:
        checked_count(chunk_size, "chunk_size", 1)
    checked_deadline(deadline)
    _checked_choice(on_error)
    interval = seconds_between(rate) if rate is not None else 0.0
    kept = checkpoint if checkpoint is None or isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    questions = _Questions(provider, model, deadline, options)
    crosses = executor is not None and not isinstance(executor, ThreadPoolExecutor)
    size = (chunk_size or CHUNK_ROUNDS * max_workers) if crosses else 1
    ahead = CHUNKS_AHEAD if crosses else max_workers * (AHEAD_IN_TURN if ordered else AHEAD)
    crew: _Crew[Answer] = _Crew(executor, max_workers, ahead * size, cancel)
    batch = _Batch(crew, kept, size, on_error, _InTurn() if ordered else None, interval if crosses else None)
    if crosses:
        batch.work = _Elsewhere(questions, max_workers)
        crew.keep = batch.record
    else:
        batch.work = _Here(questions, Pace(interval), crew, kept)
    return batch.answers(iter(prompts), _Progress(prompts) if progress else None)


class _Batch:
    """One call of ``ask_many``: takes prompts, has them asked, and yields what comes."""

    work: Callable[[_Chunk], list[Answer]]

    def __init__(
        self,
        crew: _Crew[Answer],
        checkpoint: Checkpoint | None,
        size: int,
        on_error: str,
        in_turn: _InTurn | None,
        interval: float | None = None,
    ) -> None:
        self._crew = crew
        self._checkpoint = checkpoint
        self._size = size
        self._on_error = on_error
        self._in_turn = in_turn
        # The seconds between two questions that are asked elsewhere; what is asked here waits in its own thread.
        self._elsewhere = interval is not None
        self._interval = interval or 0.0
        self._next: _Chunk | Answer | None = None  # taken, and waiting for its moment
        self._moment = 0.0

    def answers(
        self, prompts: Iterator[Messages], progress: _Progress | None
    ) -> Generator[Answer, None, None]:
        """Yields the answers; owns all that is open meanwhile."""
        with ExitStack() as stack:
            if self._checkpoint is not None:
                stack.enter_context(self._checkpoint)
                prompts = _belonging(self._checkpoint, prompts)
            if progress is not None:
                stack.enter_context(progress)
            stack.callback(self._crew.end)
            self._crew.begin()
            chunks = _chunks(prompts, self._size, self._checkpoint)
            while self._take(chunks):
                due_in = SIGNAL_INTERVAL if self._next is None else self._moment - monotonic()
                for answer in self._crew.arrival(min(max(due_in, 0.0), SIGNAL_INTERVAL)):
                    for due in self._due(answer):
                        if progress is not None:
                            progress.advance(due)
                        yield due
                        self._crew.done_with_one()

    def _take(self, chunks: Iterator[_Chunk | Answer]) -> bool:
        """Takes prompts as long as there is room; says whether anything is still to come."""
        while self._crew.has_room:
            if self._next is None:
                self._next = next(chunks, None)
            if self._next is None:
                return not self._crew.is_done
            if isinstance(self._next, Answer):
                self._crew.pass_on(self._next)
            else:
                now = monotonic()
                if now < self._moment:
                    break
                self._moment = now + self._interval * len(self._next)
                self._crew.submit(self.work, self._next, len(self._next))
            self._next = None
            if self._elsewhere and not self._crew.arrived.empty():
                break  # there is room for so many that an answer must not wait until they are all taken
        return True

    def _due(self, answer: Answer) -> Iterable[Answer]:
        """The answers that may be yielded now that this one has arrived."""
        if answer.error is not None and self._on_error == "raise":
            raise answer.error
        return (answer,) if self._in_turn is None else self._in_turn.add(answer)

    def record(self, answers: list[Answer]) -> None:
        """Keeps what was answered elsewhere; what is answered here is recorded there."""
        if self._checkpoint is not None:
            for answer in answers:
                self._checkpoint.record(answer)


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
    provider.check_address()
    checked_count(max_workers, "max_workers", 1)
    checked_deadline(deadline)
    _checked_choice(on_error)
    pace = Pace(seconds_between(rate) if rate is not None else 0.0)
    crew: _Crew[_Heard] = _Crew(None, max_workers, max_workers * AHEAD, cancel)
    speaker = _Speaker(_Questions(provider, model, deadline, options), pace, crew, max_workers * PIECES_AHEAD)
    return _pieces(crew, speaker, enumerate(iter(prompts)), on_error)


def _pieces(
    crew: _Crew[_Heard], speaker: _Speaker, prompts: Iterator[tuple[int, Messages]], on_error: str
) -> Generator[tuple[int, str | ChatError], None, None]:
    try:
        crew.begin()
        while True:
            while crew.has_room and (numbered := next(prompts, None)) is not None:
                crew.submit(speaker, numbered)
            if crew.is_done:
                return
            for index, piece in crew.arrival():
                if isinstance(piece, str):
                    speaker.heard()
                    yield index, piece
                    continue
                crew.done_with_one()
                if piece is not None:
                    if on_error == "raise":
                        raise piece
                    yield index, piece
    finally:
        speaker.stop()
        crew.end()


class _Questions:
    """How each prompt of a batch is asked. Crosses processes as configuration."""

    def __init__(
        self, provider: Provider, model: str | None, deadline: float | None, options: dict[str, Any]
    ) -> None:
        self.provider = provider
        self._model = model
        self._arguments = {"deadline": deadline, **options}

    def ask(self, index: int, prompt: Messages, stop: CancelToken) -> Answer:
        """Returns the answer to one prompt; an error of the provider's is in it."""
        started = monotonic()
        try:
            reply = self.provider.ask(prompt, self._model, cancel=stop, **self._arguments)
        except ChatError as error:
            return Answer(index, prompt, None, error, monotonic() - started, error.attempts)
        return Answer(index, prompt, reply, None, monotonic() - started, reply.attempts)

    def stream(self, prompt: Messages, stop: CancelToken) -> Iterator[str]:
        """Yields the pieces of the reply to one prompt."""
        return self.provider.stream(prompt, self._model, cancel=stop, **self._arguments)


class _Here:
    """Answers a chunk in the thread that calls it."""

    def __init__(
        self, questions: _Questions, pace: Pace, crew: _Crew[Answer], checkpoint: Checkpoint | None
    ) -> None:
        self._questions = questions
        self._pace = pace
        self._crew = crew
        self._checkpoint = checkpoint

    def __call__(self, chunk: _Chunk) -> list[Answer]:
        with working_at(self._pace):
            return [self._answer(index, prompt) for index, prompt in chunk]

    def _answer(self, index: int, prompt: Messages) -> Answer:
        try:
            self._pace.wait(self._crew.sleep)
        except Cancelled as error:
            return Answer(index, prompt, None, error, 0.0, 0)
        answer = self._questions.ask(index, prompt, self._crew.stop)
        # Here, and not where it is yielded: a loop that is slow, or killed, must not lose it.
        if self._checkpoint is not None:
            self._checkpoint.record(answer)
        return answer


class _Elsewhere:
    """Answers a chunk in another process, by a pool of threads there. Crosses as pickled configuration."""

    def __init__(self, questions: _Questions, max_workers: int) -> None:
        import pickle  # here, as it is not needed by those who stay in one process

        self._pickled = pickle.dumps(questions)
        self._max_workers = max_workers

    def __call__(self, chunk: _Chunk) -> list[Answer]:
        questions, pace = _unpickled(self._pickled)
        crew: _Crew[Answer] = _Crew(None, min(self._max_workers, len(chunk)), len(chunk), None)
        batch = _Batch(crew, None, 1, "return", None)
        numbers = [index for index, _ in chunk]
        batch.work = _Here(questions, pace, crew, None)
        answers = batch.answers(iter([prompt for _, prompt in chunk]), None)
        return [answer._replace(index=numbers[answer.index]) for answer in answers]


# The lock makes sure that one and the same is not unpickled twice.
_arrived_lock = threading.Lock()


def _unpickled(pickled: bytes) -> tuple[_Questions, Pace]:
    """What crossed to this process, so that its chunks share one provider, one login and one pace."""
    with _arrived_lock:
        return _arrived(pickled)


@lru_cache(maxsize=16)  # a worker may live through many batches
def _arrived(pickled: bytes) -> tuple[_Questions, Pace]:
    import pickle

    return pickle.loads(pickled), Pace()


class _Speaker:
    """Hands on the pieces of one reply in the thread that calls it, as fast as the loop takes them."""

    def __init__(self, questions: _Questions, pace: Pace, crew: _Crew[_Heard], ahead: int) -> None:
        self._questions = questions
        self._pace = pace
        self._crew = crew
        self._ahead = ahead
        self._room = threading.Semaphore(ahead)

    def __call__(self, numbered: tuple[int, Messages]) -> list[_Heard]:
        index, prompt = numbered
        try:
            with working_at(self._pace):
                self._pace.wait(self._crew.sleep)
                for piece in self._questions.stream(prompt, self._crew.stop):
                    self._room.acquire()
                    if self._crew.stop.cancelled:
                        break
                    self._crew.arrived.put([(index, piece)])
        except ChatError as error:
            return [(index, error)]
        return [(index, None)]

    def heard(self) -> None:
        """Is told that the loop takes a piece."""
        self._room.release()

    def stop(self) -> None:
        """Lets go of whoever waits for the loop."""
        self._crew.stop.cancel()
        self._room.release(self._ahead + self._crew.max_workers)


class _Crew(Generic[T]):
    """The threads of one batch, or the caller's executor, and what has come from them.

    Belongs to the thread that runs the loop; only ``stop`` and ``arrived`` are shared, which are safe to share.

    Args:
        executor: the caller's, which is not shut down; None for threads of its own.
        ahead: how many prompts may be taken and not done with.
        cancel: the caller's.
    """

    def __init__(
        self, executor: Executor | None, max_workers: int, ahead: int, cancel: CancelToken | None
    ) -> None:
        self.max_workers = max_workers
        self.stop = CancelToken()
        self.arrived: SimpleQueue[Future[list[T]] | list[T]] = SimpleQueue()
        self.keep: Callable[[list[T]], None] | None = None  # is given all results, also when the loop is left
        self._given = executor
        self._threads: ThreadPoolExecutor | None = None
        self._ahead = ahead
        self._cancel = cancel
        self._running: set[Future[list[T]]] = set()
        self._taken = 0

    def begin(self) -> None:
        """Starts the threads."""
        if self._given is None:
            self._threads = ThreadPoolExecutor(self.max_workers, thread_name_prefix="berlin_chat")
        if self._cancel is not None:
            self._cancel.watch(self, self._cancelled)

    def _cancelled(self) -> None:
        self.stop.cancel()
        self.arrived.put([])  # wakes the loop

    @property
    def has_room(self) -> bool:
        """Whether more prompts may be taken."""
        return self._taken < self._ahead

    @property
    def is_done(self) -> bool:
        """Whether nothing is left that could arrive."""
        return not self._running and self.arrived.empty()

    def submit(self, work: Callable[[Any], list[T]], chunk: Any, prompts: int = 1) -> None:
        """Has a chunk worked on; its results arrive by themselves."""
        future = (self._given or cast(Executor, self._threads)).submit(work, chunk)
        self._running.add(future)
        self._taken += prompts
        future.add_done_callback(self.arrived.put)

    def pass_on(self, result: T) -> None:
        """Lets a result arrive that needs no work."""
        self._taken += 1
        self.arrived.put([result])

    def arrival(self, seconds: float = SIGNAL_INTERVAL) -> list[T]:
        """Waits for the next results, but only so many seconds. Raises Cancelled if the caller has cancelled."""
        try:
            found = self.arrived.get(timeout=seconds)
        except Empty:
            return []
        if self._cancel is not None and self._cancel.cancelled:
            self.arrived.put(found)  # for ``keep``
            raise Cancelled("the batch was cancelled")
        if isinstance(found, list):
            return found
        self._running.discard(found)
        results = found.result()
        if self.keep is not None:
            self.keep(results)
        return results

    def done_with_one(self) -> None:
        """Is told that the loop has done with a prompt."""
        self._taken -= 1

    def sleep(self, seconds: float) -> None:
        """Waits, unless the batch ends; then raises Cancelled."""
        if self.stop.wait(seconds):
            raise Cancelled("the batch was ended")

    def end(self) -> None:
        """Cancels what is in flight, and waits for the threads."""
        self.stop.cancel()
        if self._cancel is not None:
            self._cancel.unwatch(self)
        under_way = {future for future in self._running if not future.cancel()}
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        elif isinstance(self._given, ThreadPoolExecutor):
            wait(under_way)  # those of other processes end by themselves
        while self.keep is not None and not self.arrived.empty():
            found = self.arrived.get()
            if isinstance(found, Future) and not found.cancelled() and not found.exception():
                self.keep(found.result())


class _InTurn:
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


def _chunks(
    prompts: Iterable[Messages], size: int, checkpoint: Checkpoint | None
) -> Iterator[_Chunk | Answer]:
    """Yields chunks of what is to be asked, and the answers that are there already."""
    chunk: _Chunk = []
    for index, prompt in enumerate(prompts):
        answer = checkpoint.find(index, prompt) if checkpoint is not None else None
        if answer is not None:
            yield answer
            continue
        chunk.append((index, prompt))
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _belonging(checkpoint: Checkpoint, prompts: Iterator[Messages]) -> Iterator[Messages]:
    """Returns the prompts, of which a few were read to see whether the checkpoint belongs to them."""
    first = checkpoint.first
    if first is None or first > LOOK_AHEAD:
        return prompts
    read = list(islice(prompts, first + 1))
    if len(read) <= first:
        raise InvalidRequest(
            f"{checkpoint.path} belongs to other prompts: it has an answer {first}, but there are {len(read)} prompts"
        )
    checkpoint.find(first, read[first])
    return chain(read, prompts)


def _checked_choice(on_error: Any) -> None:
    if on_error not in ("return", "raise"):
        raise InvalidRequest(f'on_error must be "return" or "raise", not {on_error!r}')


class _Progress:
    """A bar of tqdm: in a notebook one of the notebook's."""

    def __init__(self, prompts: Iterable[Messages]) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("a progress bar needs tqdm: pip install 'berlin_chat[cli]'") from error
        self._make = tqdm
        self._total = length_hint(prompts) or None
        self._errors = 0

    def __enter__(self) -> _Progress:
        self._bar = self._make(total=self._total, unit=" answers", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, answer: Answer) -> None:
        """Counts an answer."""
        if answer.error is not None:
            self._errors += 1
            self._bar.set_postfix(errors=self._errors, refresh=False)
        self._bar.update()
