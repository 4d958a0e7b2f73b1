"""``ask_many`` with an executor of the caller's: threads, processes, and a real Dask cluster of them."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
import requests
from distributed import Client
from joblib.externals.loky import get_reusable_executor

from berlin_chat import (
    AllProvidersFailed,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Cancelled,
    CancelToken,
    Fallback,
    InvalidRequest,
    Provider,
    Race,
    Ylokh,
    ask_many,
)
from berlin_chat.server import LocalServer
from test_pool import prompt_of, prompts, repeating
from wire import BERLIN, H2O, PATIENCE, YLOKH, Connection, Recorded, Script, Wire

Make = Callable[..., Provider]
#: How long processes may take to start on a busy machine, in seconds.
STARTING = 60.0


def silent(request: Recorded, connection: Connection) -> None:
    connection.wait_until_client_closes()


def asked(wire: Wire) -> Counter[str]:
    """How often each prompt has reached the server."""
    return Counter(prompt_of(request) for request in wire.requests if request.path not in ("/api/login", "/settings"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def indices(path: Path) -> list[int]:
    return sorted(line["index"] for line in lines(path))


def some_fail(request: Recorded, connection: Connection) -> None:
    """Fails every fifth question."""
    if int(prompt_of(request)[1:]) % 5 == 3:
        connection.respond(500, {"error": "bang"})
    else:
        repeating(YLOKH)(request, connection)


def first_only(request: Recorded, connection: Connection) -> None:
    """Answers the first question, and is silent to all others."""
    (repeating(YLOKH) if prompt_of(request) == "q0" else silent)(request, connection)


# Threads of the caller's


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4, thread_name_prefix="mine") as executor:
        yield executor


class Noting(Ylokh):
    """Notes which threads ask it."""

    seen: set[str]

    def stream(self, *args: Any, **options: Any) -> Any:
        self.seen.add(threading.current_thread().name.partition("_")[0])
        return super().stream(*args, **options)


def test_the_callers_threads_ask_and_stay(threads: ThreadPoolExecutor, wire: Wire) -> None:
    wire.routes[:] = [(*YLOKH.route, repeating(YLOKH))]
    with Noting(base_url=wire.url) as provider:
        provider.seen = set()
        for _ in range(2):
            answers = list(ask_many(provider, prompts(50), executor=threads))
            assert [answer.reply for answer in answers] == prompts(50)
        assert provider.seen == {"mine"}
    assert len(wire.connections) <= 4
    assert threads.submit(int, "7").result(PATIENCE) == 7


def test_leaving_early_cancels_and_waits_for_the_callers_threads(
    threads: ThreadPoolExecutor, provider_for: Make, wire: Wire
) -> None:
    noticed = threading.Semaphore(0)

    def noticing(request: Recorded, connection: Connection) -> None:
        first_only(request, connection)
        noticed.release()

    running = set[Future[Any]]()
    submit = threads.submit
    threads.submit = lambda *args: running.add(future := submit(*args)) or future  # type: ignore
    for answer in ask_many(provider_for(YLOKH, noticing), map("q{}".format, itertools.count()), executor=threads):
        assert answer.reply == "q0"
        break
    assert running
    assert all(future.done() for future in running)
    for _ in wire.requests:
        assert noticed.acquire(timeout=PATIENCE), "a connection is still open"


def test_an_executor_that_is_shut_down_in_the_loop_ends_it_with_an_error(
    threads: ThreadPoolExecutor, provider_for: Make
) -> None:
    loop = ask_many(provider_for(YLOKH, first_only), prompts(100), executor=threads)
    assert next(loop).reply == "q0"
    threads.shutdown(wait=False, cancel_futures=True)
    with pytest.raises((CancelledError, RuntimeError)):
        next(loop)


# What crosses, as seen by an executor that pickles everything and then works at once, in this process


class Across(Executor):
    """Pickles what goes there and what comes back, which is finished so many chunks together."""

    def __init__(self, together: int = 1) -> None:
        self.chunks: list[list[int]] = []
        self.finished: list[int] = []
        self.moments: list[float] = []
        self._together = together
        self._waiting: list[tuple[Future[Any], bytes]] = []

    def submit(self, work: Any, chunk: Any) -> Future[Any]:  # type: ignore[override]
        self.chunks.append([index for index, *_ in chunk])
        self.moments.append(time.monotonic())
        future = Future[Any]()
        self._waiting.append((future, pickle.dumps((work, chunk))))
        if len(self._waiting) == self._together:
            for waiting, pickled in self._waiting:
                work, chunk = pickle.loads(pickled)
                waiting.set_result(pickle.loads(pickle.dumps(work(chunk))))
                self.finished += [index for index, *_ in chunk]
            self._waiting.clear()
        return future


class Idle(Executor):
    """Never gets to it."""

    def submit(self, work: Any, chunk: Any) -> Future[Any]:  # type: ignore[override]
        return Future()


@pytest.fixture
def provider(provider_for: Make) -> Provider:
    return provider_for(YLOKH, repeating(YLOKH))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(("chunk_size", "size"), [(None, 8 * 2), (1, 1), (7, 7), (1000, 100)])
def test_the_prompts_cross_in_chunks(
    chunk_size: int | None, size: int, ordered: bool, provider: Provider, wire: Wire
) -> None:
    executor = Across()
    answers = list(
        ask_many(provider, prompts(100), executor=executor, max_workers=2, chunk_size=chunk_size, ordered=ordered)
    )
    assert sorted((answer.index, answer.prompt, answer.reply) for answer in answers) == sorted(
        (n, f"q{n}", f"q{n}") for n in range(100)
    )
    if ordered:
        assert [answer.index for answer in answers] == list(range(100))
    assert executor.chunks == [list(range(n, min(n + size, 100))) for n in range(0, 100, size)]
    assert set(asked(wire).values()) == {1}


def test_a_chunk_has_as_many_questions_in_flight_as_there_are_workers(provider_for: Make, wire: Wire) -> None:
    together = threading.Barrier(4)

    def four_at_a_time(request: Recorded, connection: Connection) -> None:
        together.wait(PATIENCE)
        repeating(YLOKH)(request, connection)

    provider = provider_for(YLOKH, four_at_a_time)
    answers = list(ask_many(provider, prompts(20), executor=Across(), max_workers=4, chunk_size=20))
    assert [answer.reply for answer in answers] == prompts(20)
    assert len(wire.connections) == 4


def test_all_chunks_of_a_process_share_one_provider_and_one_login(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, repeating(BERLIN))
    for _ in range(2):
        list(ask_many(provider, prompts(20), executor=Across(), chunk_size=5))
    assert len(wire.asked("POST", "/api/login")) == 1


def test_endless_prompts_are_read_a_bounded_number_ahead(provider: Provider) -> None:
    taken: list[str] = []
    token = CancelToken()

    def endless() -> Iterator[str]:
        for number in itertools.count():
            taken.append(f"q{number}")
            yield taken[-1]

    threading.Timer(0.3, token.cancel).start()
    with pytest.raises(Cancelled):
        list(ask_many(provider, endless(), executor=Idle(), chunk_size=2, cancel=token))
    assert len(taken) == 256 * 2


def test_an_answer_does_not_wait_until_so_many_prompts_are_read(provider: Provider) -> None:
    taken = iter(itertools.count())
    for number, answer in enumerate(ask_many(provider, map("q{}".format, taken), executor=Across(), chunk_size=5)):
        assert answer.reply == f"q{answer.index}"
        assert next(taken) <= 6 * 5 * (number + 1), "many chunks were read before the first answer"
        if number == 3:
            break


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_a_rate_spaces_the_chunks_and_withholds_no_answer(chunk_size: int, provider: Provider) -> None:
    executor = Across()
    arrivals = []
    count = 4 * chunk_size
    for _ in ask_many(provider, prompts(count), executor=executor, chunk_size=chunk_size, rate="20/s"):
        arrivals.append(time.monotonic())
    spaces = [later - earlier for earlier, later in itertools.pairwise(executor.moments)]
    assert len(spaces) == 3
    assert all(space > 0.05 * chunk_size - 0.005 for space in spaces)
    assert arrivals[0] < executor.moments[1]
    assert arrivals[-1] - executor.moments[0] < 0.05 * count + 0.5


def test_the_end_of_a_batch_does_not_wait_for_the_moment_of_a_next_chunk(provider: Provider) -> None:
    started = time.monotonic()
    assert len(list(ask_many(provider, prompts(1), executor=Across(), chunk_size=1, rate="1/min"))) == 1
    assert time.monotonic() - started < 5


def test_a_cancel_ends_the_wait_for_the_moment_of_the_next_chunk(provider: Provider) -> None:
    token = CancelToken()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        for answer in ask_many(provider, prompts(4), executor=Across(), chunk_size=1, rate="1/min", cancel=token):
            if answer.index == 0:
                threading.Timer(0.05, token.cancel).start()
    assert time.monotonic() - started < 5


def test_a_provider_that_cannot_cross_is_refused_at_the_call() -> None:
    with requests.Session() as session:
        mine = Ylokh(base_url="http://127.0.0.1:1", session=session)
        for provider in (mine, Fallback([mine]), Race([mine])):
            with pytest.raises(TypeError, match="session of the caller's"):
                ask_many(provider, ["Hi"], executor=Across())


@pytest.mark.parametrize("chunk_size", [0, -1, 1.5])
def test_a_wrong_chunk_size_is_named_at_the_call(chunk_size: Any, provider: Provider) -> None:
    with pytest.raises(InvalidRequest, match="chunk_size"):
        ask_many(provider, ["Hi"], executor=Across(), chunk_size=chunk_size)


def test_no_prompts_are_no_answers(provider: Provider) -> None:
    assert list(ask_many(provider, [], executor=Across())) == []


# Checkpoints


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_with_the_same_file_only_what_is_missing_crosses(
    chunk_size: int, provider: Provider, path: Path, wire: Wire
) -> None:
    list(ask_many(provider, prompts(10), executor=Across(), chunk_size=chunk_size, checkpoint=path))
    assert indices(path) == list(range(10))
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in kept if json.loads(line)["index"] not in (3, 7)))
    wire.requests.clear()
    executor = Across()
    for _ in range(2):
        answers = list(ask_many(provider, prompts(12), executor=executor, chunk_size=chunk_size, checkpoint=path))
        assert [answer.reply for answer in answers] == prompts(12)
        assert indices(path) == list(range(12)), "an answer stands there twice, or not at all"
    assert asked(wire) == Counter(["q3", "q7", "q10", "q11"])
    assert sorted(itertools.chain(*executor.chunks)) == [3, 7, 10, 11]


@pytest.mark.parametrize("way", ["break", "cancel", "exception in the loop"])
def test_what_has_come_back_is_kept_however_the_loop_is_left(way: str, provider: Provider, path: Path) -> None:
    executor, token = Across(together=3), CancelToken()
    loop = ask_many(
        provider, prompts(100), executor=executor, chunk_size=5, checkpoint=path, cancel=token, ordered=False
    )
    next(loop)
    if way == "break":
        loop.close()
    elif way == "cancel":
        for _ in range(4):
            next(loop)  # the last of its chunk; the next two have come back
        token.cancel()
        with pytest.raises(Cancelled):
            next(loop)
    else:
        with pytest.raises(ZeroDivisionError):
            loop.throw(ZeroDivisionError())
    assert indices(path) == executor.finished
    assert len(executor.finished) >= 15


def test_with_on_error_raise_the_others_of_the_chunk_are_kept(provider_for: Make, path: Path) -> None:
    provider = provider_for(YLOKH, some_fail)
    executor = Across()
    with pytest.raises(APIStatusError, match="bang"):
        list(
            ask_many(
                provider,
                prompts(100),
                executor=executor,
                chunk_size=10,
                checkpoint=path,
                on_error="raise",
            )
        )
    assert indices(path) == [number for number in executor.finished if number % 5 != 3]
    assert executor.finished


# Real processes

kills = pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL to another process")


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def from_two_processes(wire: Wire, script: Script) -> Script:
    """Answers no question before more of them are open than one process of four threads asks."""

    def waiting(request: Recorded, connection: Connection) -> None:
        until = time.monotonic() + STARTING
        while len(wire.connections) <= 1 + 4 and time.monotonic() < until:  # the first one is the login's
            connection.gone.wait(0.01)
        script(request, connection)

    return waiting


@pytest.mark.parametrize("ordered", [True, False])
def test_processes_answer_every_prompt_once_with_one_login_for_all(
    ordered: bool, processes: ProcessPoolExecutor, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(BERLIN, from_two_processes(wire, repeating(BERLIN)))
    answers = list(ask_many(provider, prompts(200), executor=processes, chunk_size=10, max_workers=4, ordered=ordered))
    if not ordered:
        answers.sort(key=lambda answer: answer.index)
    assert [(answer.index, answer.reply, answer.error) for answer in answers] == [
        (n, f"q{n}", None) for n in range(200)
    ]
    assert all(answer.reply.provider == "berlin" for answer in answers if answer.reply is not None)
    assert set(asked(wire).values()) == {1}
    assert len(wire.asked("POST", "/api/login")) == 1
    assert {request.header("token") for request in wire.asked(*BERLIN.route)} == {"token-1"}
    names = processes.submit(eval, "[t.name for t in __import__('threading').enumerate()]").result(PATIENCE)
    assert not [name for name in names if name.startswith("berlin_chat")], "a thread is left in the process"


class OneSession:
    """A server of one session an account: each login ends the token of the one before."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.valid: str | None = None
        self.questions = 0
        self.ends_at: set[int] = set()  # at how many questions somebody else logs in
        self._lock = threading.Lock()
        wire.on(*BERLIN.route, self.answer).on("POST", "/api/login", self.log_in)

    def log_in(self, request: Recorded, connection: Connection) -> None:
        with self._lock:
            self.valid = f"token-{len(self.logins)}"
        connection.respond(200, {"code": 0, "data": {"token": self.valid}, "message": "ok"})

    def answer(self, request: Recorded, connection: Connection) -> None:
        with self._lock:
            self.questions += 1
            if self.questions in self.ends_at:
                self.valid = None
            right = request.header("token") == self.valid
        if right:
            repeating(BERLIN)(request, connection)
        else:
            connection.respond(401, {"code": 4001, "data": [], "message": "log in again"})

    @property
    def logins(self) -> list[Recorded]:
        return self._wire.asked("POST", "/api/login")


def test_processes_share_the_one_session_of_an_account(
    processes: ProcessPoolExecutor, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(BERLIN, repeating(BERLIN))
    server = OneSession(wire)
    wire.on(*BERLIN.route, from_two_processes(wire, server.answer))
    for _ in range(2):  # the second batch has the first one's login
        answers = list(ask_many(provider, prompts(100), executor=processes, chunk_size=10, max_workers=4))
        assert [answer.error or answer.reply for answer in answers] == prompts(100)
    assert len(server.logins) == 1


def test_processes_go_on_when_somebody_else_has_ended_their_session(
    processes: ProcessPoolExecutor, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(BERLIN, repeating(BERLIN))
    server = OneSession(wire)
    server.ends_at = {50}
    answers = list(ask_many(provider, prompts(200), executor=processes, chunk_size=10, max_workers=4))
    assert [answer.error or answer.reply for answer in answers] == prompts(200)
    assert 2 <= len(server.logins) <= 8, "the processes fight for the session"
    seen = len(server.logins)
    assert provider.ask("q0") == "q0"
    assert len(server.logins) == seen, "the batch's login has not come back"


def test_the_processes_of_a_fallback_are_handed_down_the_logins_of_all_its_providers(
    processes: ProcessPoolExecutor, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(BERLIN, repeating(BERLIN))
    server = OneSession(wire)
    with Fallback([Ylokh(base_url="http://127.0.0.1:1", retries=0), Race([provider])]) as several:
        answers = list(ask_many(several, prompts(40), executor=processes, chunk_size=10, max_workers=4))
    assert [answer.error or answer.reply for answer in answers] == prompts(40)
    assert len(server.logins) == 1


def test_a_login_that_is_refused_is_the_error_of_each_answer(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, repeating(BERLIN))
    wire.on("POST", "/api/login", lambda request, connection: connection.respond(406, {"message": "wrong password"}))
    answers = list(ask_many(provider, prompts(3), executor=Across(), chunk_size=3, max_workers=1))
    assert [type(answer.error) for answer in answers] == [AuthenticationError] * 3
    assert "hunter2-secret" not in "".join(map(repr, answers))


def test_nothing_is_asked_before_the_first_next_and_a_cancel_ends_the_login(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, repeating(BERLIN))
    token = CancelToken()

    def cancel(request: Recorded, connection: Connection) -> None:
        token.cancel()
        connection.wait_until_client_closes()

    wire.on("POST", "/api/login", cancel)
    answers = ask_many(provider, prompts(3), executor=Idle(), cancel=token)
    assert wire.requests == []
    started = time.monotonic()
    with pytest.raises(Cancelled):
        next(answers)
    assert time.monotonic() - started < 5


def test_the_token_that_is_handed_down_is_in_no_pickle_of_the_provider_and_in_no_text(
    provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(BERLIN, repeating(BERLIN))
    wire.on("POST", "/api/login", lambda r, connection: connection.respond(200, {"data": {"token": "sesame-open"}}))
    crossed: list[bytes] = []
    told: list[str] = []

    class Keeping(Across):
        def submit(self, work: Any, chunk: Any) -> Future[Any]:  # type: ignore[override]
            crossed.append(pickle.dumps(work))
            told.append(f"{work!r} {vars(work)!r} {vars(pickle.loads(crossed[-1]))!r} {pickle.loads(crossed[-1])!r}")
            return super().submit(work, chunk)

    wire.on(*BERLIN.route, lambda r, connection: connection.respond(400, {"message": f"no: {r.header('token')}"}))
    (answer,) = ask_many(provider, ["q0"], executor=Keeping())
    assert b"sesame-open" in crossed[0]
    assert b"sesame-open" not in pickle.dumps(provider)
    assert "sesame-open" not in f"{told} {answer!r} {answer.error} {provider!r} {vars(provider)['login']!r}"
    assert "no: ***" in str(answer.error)


def test_errors_cross_as_answers(processes: ProcessPoolExecutor, provider_for: Make) -> None:
    def troublesome(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q1":
            silent(request, connection)
        else:
            some_fail(request, connection)

    questions: list[Any] = [*prompts(5), "", 7]
    provider = provider_for(YLOKH, troublesome)
    answers = list(ask_many(provider, questions, executor=processes, chunk_size=4, deadline=1.0))
    assert [answer.reply for answer in answers] == ["q0", None, "q2", None, "q4", None, None]
    assert [answer.prompt for answer in answers] == questions
    kinds = {1: APITimeoutError, 3: APIStatusError, 5: InvalidRequest, 6: InvalidRequest}
    assert {answer.index: type(answer.error) for answer in answers if answer.error is not None} == kinds
    bang = answers[3].error
    assert bang is not None
    assert (bang.status, bang.attempts, bang.provider, answers[3].attempts) == (500, 1, "ylokh", 1)
    assert "bang" in str(bang)


def test_a_fallback_and_a_race_cross_processes(processes: ProcessPoolExecutor, provider_for: Make, wire: Wire) -> None:
    good = provider_for(H2O, repeating(H2O))
    refused = Ylokh(base_url="http://127.0.0.1:1", retries=0)
    for provider in (Fallback([refused, good]), Race([refused, good]), Fallback([Race([refused]), good])):
        answers = list(ask_many(provider, prompts(20), executor=processes, chunk_size=5, max_workers=2))
        assert [answer.reply for answer in answers] == prompts(20)
    (answer,) = ask_many(Fallback([refused, refused]), ["Hi"], executor=processes)
    assert isinstance(answer.error, AllProvidersFailed)
    assert len(answer.error.errors) == answer.attempts == 2
    made = {f"/conversation/c{n + 1}" for n in range(len(wire.asked("POST", "/conversation")))}
    assert made == {request.path for request in wire.asked("DELETE", "/conversation/.*")}


def test_leaving_early_does_not_wait_for_the_processes_and_leaves_them_usable(
    processes: ProcessPoolExecutor, provider_for: Make, wire: Wire
) -> None:
    def first_chunk_only(request: Recorded, connection: Connection) -> None:
        (repeating(YLOKH) if int(prompt_of(request)[1:]) < 2 else silent)(request, connection)

    endless = map("q{}".format, itertools.count())
    provider = provider_for(YLOKH, first_chunk_only)
    for answer in ask_many(provider, endless, executor=processes, chunk_size=2, deadline=1.0):
        assert answer.reply == "q0"
        started = time.monotonic()
        break
    gc.collect()
    assert time.monotonic() - started < 0.9, "the loop waited for the questions of other processes"
    assert processes.submit(int, "7").result(PATIENCE) == 7
    assert len(wire.requests) < 20, "what had not begun was asked nevertheless"


@kills
def test_a_worker_that_is_killed_ends_the_loop_and_costs_nothing_that_was_finished(
    provider_for: Make, wire: Wire, path: Path
) -> None:
    victims: list[int] = []

    def deadly(request: Recorded, connection: Connection) -> None:
        if victims and prompt_of(request) == "q20":
            os.kill(victims.pop(), signal.SIGKILL)
        repeating(YLOKH)(request, connection)

    provider = provider_for(YLOKH, deadly)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        victims.append(executor.submit(os.getpid).result(STARTING))
        with pytest.raises(BrokenExecutor):
            for answer in ask_many(provider, prompts(40), executor=executor, chunk_size=5, checkpoint=path):
                assert answer.error is None
    kept = indices(path)  # perhaps some of the others that were in flight, too
    assert kept[:20] == list(range(20))
    assert set(kept[20:]) <= {21, 22, 23, 24}
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        answers = list(ask_many(provider, prompts(40), executor=executor, chunk_size=5, checkpoint=path))
    assert [answer.reply for answer in answers] == prompts(40)
    assert indices(path) == list(range(40))
    assert all(count == 1 for prompt, count in asked(wire).items() if int(prompt[1:]) in kept)


# joblib's processes


def test_joblibs_processes_answer_and_stop(provider_for: Make, wire: Wire) -> None:
    def slowly(request: Recorded, connection: Connection) -> None:
        connection.gone.wait(0.01)
        repeating(BERLIN)(request, connection)

    executor = get_reusable_executor(2)
    try:
        provider = provider_for(BERLIN, slowly)
        answers = list(ask_many(provider, prompts(100), executor=executor, chunk_size=10))
        assert [answer.reply for answer in answers] == prompts(100)
        assert set(asked(wire).values()) == {1}
        assert len(wire.asked("POST", "/api/login")) == 1
        endless = ask_many(provider, map("q{}".format, itertools.count()), executor=executor, chunk_size=1000)
        next(endless)
        endless.close()
        left = time.monotonic()
        assert executor.submit(int).result(STARTING) == 0, "a chunk goes on"
        assert time.monotonic() - left < 1
    finally:
        executor.shutdown()


# A real Dask cluster


@pytest.fixture(scope="module")
def client(cluster: Any) -> Iterator[Any]:
    with Client(cluster) as client:
        yield client


def test_a_dask_cluster_answers_every_prompt_once_with_one_login_for_all(
    client: Any, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(BERLIN, from_two_processes(wire, repeating(BERLIN)))
    executor = client.get_executor()
    answers = list(ask_many(provider, prompts(200), executor=executor, chunk_size=10, max_workers=4))
    assert [(answer.index, answer.reply, answer.error) for answer in answers] == [
        (n, f"q{n}", None) for n in range(200)
    ]
    assert set(asked(wire).values()) == {1}
    assert len(wire.asked("POST", "/api/login")) == 1


@kills
def test_a_killed_dask_worker_costs_no_answer_and_doubles_none(
    client: Any, provider_for: Make, wire: Wire, path: Path
) -> None:
    client.wait_for_workers(2, timeout=STARTING)
    victims = list(client.run(os.getpid).values())[:1]

    def deadly(request: Recorded, connection: Connection) -> None:
        if victims and prompt_of(request) == "q50":
            os.kill(victims.pop(), signal.SIGKILL)
        connection.gone.wait(0.01)
        repeating(BERLIN)(request, connection)

    provider = provider_for(BERLIN, deadly)
    executor = client.get_executor()
    answers = list(ask_many(provider, prompts(200), executor=executor, chunk_size=5, max_workers=2, checkpoint=path))
    assert not victims
    assert [(answer.index, answer.reply, answer.error) for answer in answers] == [
        (n, f"q{n}", None) for n in range(200)
    ]
    assert indices(path) == list(range(200))
    assert set(asked(wire)) == set(prompts(200))
    client.wait_for_workers(2, timeout=STARTING)
    wire.requests.clear()
    assert len(list(ask_many(provider, prompts(200), executor=executor, checkpoint=path))) == 200
    assert not wire.requests


def test_leaving_early_leaves_a_dask_cluster_usable_and_no_conversation(client: Any) -> None:
    client.wait_for_workers(2, timeout=STARTING)
    with LocalServer(delay=0.01) as server, server.provider("h2o") as provider:
        executor = client.get_executor()
        started = time.monotonic()
        for answer in ask_many(provider, map("q{}".format, itertools.count()), executor=executor, chunk_size=4):
            assert answer.error is None
            if answer.index == 5:
                left = time.monotonic()
                break
        gc.collect()
        assert time.monotonic() - left < 3
        answers = list(ask_many(provider, prompts(8), executor=executor, chunk_size=4))
        assert [answer.reply[-2:] for answer in answers if answer.reply is not None] == prompts(8)
        assert time.monotonic() - started < STARTING
        until = time.monotonic() + PATIENCE
        while server.conversations and time.monotonic() < until:
            threading.Event().wait(0.02)
        assert server.conversations == []


def test_twenty_clusters_worth_of_work_does_not_hang(client: Any, provider_for: Make, wire: Wire) -> None:
    """About one in ten clusters stood still with Dask's profile, on Python below 3.12."""
    for number in range(20):
        provider = provider_for(YLOKH, repeating(YLOKH), model=f"m-{number}")  # another one crosses each time
        answers = list(ask_many(provider, prompts(60), executor=client.get_executor(), chunk_size=5, max_workers=8))
        assert [answer.reply for answer in answers] == prompts(60)


class Profiled(Across):
    """Stands for Dask's executor, which is told by the module of its class."""


Profiled.__module__ = "distributed.cfexecutor"


@pytest.mark.parametrize(
    ("version", "enabled", "warned"),
    [((3, 10), True, 1), ((3, 11), True, 1), ((3, 11), False, 0), ((3, 12), True, 0)],
)
def test_an_executor_that_may_hang_is_warned_of_once(
    version: tuple[int, int],
    enabled: bool,
    warned: int,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("berlin_chat.batch.processes.sys", SimpleNamespace(version_info=version))
    with dask.config.set({"distributed.worker.profile.enabled": enabled}), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            assert len(list(ask_many(provider, prompts(2), executor=Profiled()))) == 2
    assert len(seen) == warned
    for warning in seen:
        assert "distributed.worker.profile.enabled" in str(warning.message), "it does not say what to do"
        assert warning.filename == __file__


def test_errors_and_races_cross_a_dask_cluster(client: Any, provider_for: Make) -> None:
    refused = Ylokh(base_url="http://127.0.0.1:1", retries=0)
    provider = Race([refused, Fallback([refused, provider_for(YLOKH, some_fail)])])
    answers = list(ask_many(provider, prompts(20), executor=client.get_executor(), chunk_size=5))
    assert [answer.reply for answer in answers] == [None if n % 5 == 3 else f"q{n}" for n in range(20)]
    assert all(isinstance(answers[n].error, AllProvidersFailed) for n in range(3, 20, 5))
