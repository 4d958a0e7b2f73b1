"""Chunks that other processes have begun: answers come one by one, and the batch's end, its rate and a kill reach them.

Over real processes, a real Dask cluster, and an executor that pickles what goes to its threads.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
from distributed import Client

from berlin_chat import Answer, APIStatusError, Cancelled, CancelToken, Provider, Reply, ask_many
from berlin_chat.batch import channel
from berlin_chat.batch.in_flight import sleeper
from berlin_chat.batch.rate_limit import RateLimiter
from test_executors import STARTING, asked, indices, kills, lines
from test_pool import ours, prompt_of, prompts, repeating
from test_resources import needs_proc, open_sockets
from wire import PATIENCE, YLOKH, Connection, Recorded, Wire, wait_for

Make = Callable[..., Provider]


class Pickling(Executor):
    """Threads that get what goes there, and give what comes back, as other processes do."""

    def __init__(self) -> None:
        self.work: list[Any] = []
        self._threads = ThreadPoolExecutor(2)

    def submit(self, work: Any, chunk: Any) -> Future[Any]:  # type: ignore[override]
        self.work.append(work)
        return self._threads.submit(self._run, pickle.dumps((work, chunk)))

    @staticmethod
    def _run(pickled: bytes) -> Any:
        work, chunk = pickle.loads(pickled)
        return pickle.loads(pickle.dumps(work(chunk)))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait)


@pytest.fixture(params=["threads", "spawn", "fork", "dask"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "threads":
        with Pickling() as executor:
            yield executor
    elif request.param == "dask":
        with Client(request.getfixturevalue("cluster")) as client:
            client.wait_for_workers(2, timeout=STARTING)
            yield client.get_executor()
    elif request.param not in multiprocessing.get_all_start_methods():
        pytest.skip("there is no fork")
    else:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(request.param)) as processes:
            yield processes


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    wait_for(lambda: not ours())


class Slowly:
    """Answers each question after a while, and notes when."""

    def __init__(self, seconds: float = 0.02, failing: str = "") -> None:
        self.answered: dict[str, float] = {}
        self._seconds = seconds
        self._failing = failing

    def __call__(self, request: Recorded, connection: Connection) -> None:
        connection.gone.wait(self._seconds)
        if prompt_of(request) == self._failing:
            connection.respond(500, {"error": "bang"})
        else:
            repeating(YLOKH)(request, connection)
            self.answered[prompt_of(request)] = time.monotonic()

    def before(self, moment: float) -> set[str]:
        return {prompt for prompt, answered in self.answered.items() if answered < moment}


def kept(path: Path) -> set[str]:
    return {line["prompt"] for line in lines(path)}


def assert_nobody_asks(wire: Wire, since: float) -> None:
    time.sleep(max(since + 1.0 - time.monotonic(), 0))
    count = len(wire.requests)
    time.sleep(0.5)
    assert len(wire.requests) == count, "a chunk goes on a second later"
    assert all(connection.gone.is_set() or not connection.number for connection in wire.connections[count:])


# The end of a batch


@pytest.mark.parametrize("way", ["break", "exception", "cancel", "error"])
def test_however_it_is_left_chunks_that_have_begun_stop_and_their_answers_are_kept(
    way: str, executor: Executor, provider_for: Make, wire: Wire, path: Path
) -> None:
    # So slowly that no machine is too slow to take each answer in before a chunk is over.
    slowly = Slowly(0.1, failing="q1040" if way == "error" else "")
    provider, token = provider_for(YLOKH, slowly), CancelToken()
    loop = ask_many(
        provider,
        map("q{}".format, itertools.count()),
        executor=executor,
        chunk_size=1000,
        max_workers=4,
        ordered=False,
        checkpoint=path,
        cancel=token,
        on_error="raise" if way == "error" else "return",
    )
    got = []
    with pytest.raises((ZeroDivisionError, Cancelled, APIStatusError)):
        for answer in loop:
            got.append(answer.prompt)
            if way == "error" or len(got) < 60:
                continue
            if way == "cancel":
                token.cancel()
            else:
                break
        left = time.monotonic()
        loop.close()
        assert time.monotonic() - left < 1
        raise ZeroDivisionError
    left = time.monotonic()
    assert_nobody_asks(wire, left)
    assert len(slowly.answered) < 900
    assert kept(path) >= set(got) | slowly.before(left - 1.0)
    assert len(kept(path)) == len(lines(path)), "an answer stands there twice"
    wire.requests.clear()
    answers = list(ask_many(provider, prompts(20), executor=executor, checkpoint=path, chunk_size=5))
    assert [answer.reply for answer in answers] == prompts(20)
    assert not kept(path) & set(got) & set(asked(wire)), "what stands in the file was asked again"


def test_a_cancel_reaches_the_chunks_although_the_loop_is_busy(
    executor: Executor, provider_for: Make, wire: Wire
) -> None:
    token = CancelToken()
    provider = provider_for(YLOKH, Slowly())
    loop = ask_many(provider, prompts(5000), executor=executor, chunk_size=1000, max_workers=4, cancel=token)
    next(loop)
    token.cancel()
    assert_nobody_asks(wire, time.monotonic())
    with pytest.raises(Cancelled):
        list(loop)


def test_an_answer_is_yielded_and_on_disk_before_its_chunk_is_done(
    executor: Executor, provider_for: Make, path: Path
) -> None:
    last = threading.Event()

    def all_but_one(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q9":
            assert last.wait(PATIENCE)
        repeating(YLOKH)(request, connection)

    provider = provider_for(YLOKH, all_but_one)
    answers = ask_many(provider, prompts(10), executor=executor, chunk_size=10, max_workers=2, checkpoint=path)
    assert [next(answers).reply for _ in range(9)] == prompts(9)
    assert indices(path) == list(range(9))
    last.set()
    assert next(answers).reply == "q9"
    assert list(answers) == []


def test_a_chunk_that_begins_when_the_batch_is_over_asks_nothing(provider_for: Make, wire: Wire) -> None:
    waiting: list[bytes] = []

    class Late(Executor):
        def submit(self, work: Any, chunk: Any) -> Future[Any]:  # type: ignore[override]
            waiting.append(pickle.dumps((work, chunk)))
            return Future()

    token = CancelToken()
    threading.Timer(0.3, token.cancel).start()
    with pytest.raises(Cancelled):
        list(ask_many(provider_for(YLOKH, Slowly()), prompts(10), executor=Late(), chunk_size=5, cancel=token))
    for pickled in waiting:
        work, chunk = pickle.loads(pickled)
        assert work(chunk) == []
    assert len(waiting) == 2
    assert wire.requests == []


def test_of_two_answers_to_a_question_the_first_counts(provider_for: Make, path: Path) -> None:
    class Twice(Pickling):
        """As a cluster that has lost sight of a worker, and gives its work to another."""

        def submit(self, work: Any, chunk: Any) -> Future[Any]:  # type: ignore[override]
            super().submit(work, chunk)
            return super().submit(work, chunk)

    with Twice() as executor:
        answers = list(ask_many(provider_for(YLOKH, Slowly()), prompts(40), executor=executor, checkpoint=path))
    assert [answer.reply for answer in answers] == prompts(40)
    assert indices(path) == list(range(40))


def test_an_answer_behind_a_question_for_a_turn_is_kept_although_the_batch_is_over() -> None:
    answered: list[tuple[int, Answer]] = []
    way_back = channel.Channel(
        RateLimiter(), lambda chunk, answer: answered.append((chunk, answer)), lambda chunk: frozenset([7, 8])
    )
    way_back.open()
    way_back.listen()
    assert way_back.address is not None
    stop, answer = CancelToken(), Answer(7, "q7", Reply("q7"), None, 0.1, 1)
    with channel.Link(way_back.address, 7, stop) as link:
        assert link.missing == {7, 8}
        way_back.end()
        link.follow()
        assert stop.cancelled
        with pytest.raises(Cancelled):
            link.wait(sleeper(stop))
        link.answer(answer)
    way_back.close()
    assert answered == [(7, answer)]


@kills
def test_a_worker_that_stands_still_keeps_the_end_of_the_batch_for_a_second(
    provider_for: Make, wire: Wire, path: Path
) -> None:
    provider = provider_for(YLOKH, Slowly())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        worker = processes.submit(os.getpid).result(STARTING)
        try:
            for answer in ask_many(provider, prompts(500), executor=processes, chunk_size=500, checkpoint=path):
                if answer.index == 20:
                    os.kill(worker, signal.SIGSTOP)
                    left = time.monotonic()
                    break
            assert 0.5 < time.monotonic() - left < 4
            wait_for(lambda: not ours())
        finally:
            os.kill(worker, signal.SIGCONT)
        assert processes.submit(int, "7").result(PATIENCE) == 7
    assert len(wire.requests) < 100, "the worker goes on"
    assert set(indices(path)) >= set(range(21))


@needs_proc
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that it forks with threads is the point
def test_a_child_that_is_forked_meanwhile_holds_no_end_of_the_channel(provider_for: Make) -> None:
    """Else a batch that is killed would not be over for its workers as long as the child lives."""
    looked = threading.Event()

    def script(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) != "q0":
            looked.wait(PATIENCE)  # so that no chunk can be over by then
        repeating(YLOKH)(request, connection)

    before = open_sockets()
    with Pickling() as executor:
        answers = ask_many(provider_for(YLOKH, script), prompts(100), executor=executor, chunk_size=50)
        with closing(answers):
            next(answers)
            batch = {f"socket:[{os.fstat(sock.fileno()).st_ino}]" for sock in sockets_of(executor.work[0]._channel)}
            assert len(batch) > 1
            assert batch <= open_sockets() - before
            child = os.fork()
            if child == 0:
                try:
                    os._exit(len(batch & open_sockets()))
                finally:  # else it would go on as another run of all tests
                    os._exit(100)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            looked.set()
            assert len(list(answers)) == 99


def sockets_of(way_back: channel.Channel) -> list[socket.socket]:
    assert way_back._listener is not None
    return [way_back._listener, *way_back._links]


# Where there is no way back


@pytest.mark.parametrize("why", ["another machine", "no loopback"])
def test_without_a_way_back_answers_come_chunk_by_chunk(
    why: str, provider_for: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "another machine":
        numbers = itertools.count()
        monkeypatch.setattr(channel, "machine", lambda: (str(next(numbers)), ""))
        monkeypatch.setattr(channel.Link, "__init__", None)
    else:

        def refuse(*_: Any, **options: Any) -> Any:
            raise PermissionError

        monkeypatch.setattr(channel.socket, "create_server", refuse)
    with Pickling() as executor:
        answers = list(
            ask_many(provider_for(YLOKH, Slowly()), prompts(40), executor=executor, checkpoint=path, chunk_size=7)
        )
    assert [answer.reply for answer in answers] == prompts(40)
    assert indices(path) == list(range(40))


def test_a_process_that_loses_its_connection_ends_the_loop_and_costs_nothing_else(
    provider_for: Make, path: Path
) -> None:
    executor = Pickling()

    def losing(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q20":
            for sock in list(executor.work[0]._channel._links):
                sock.shutdown(socket.SHUT_RDWR)
        repeating(YLOKH)(request, connection)

    provider = provider_for(YLOKH, losing)
    with executor, pytest.raises(BrokenExecutor, match="lost its connection"):
        list(ask_many(provider, prompts(40), executor=executor, checkpoint=path, chunk_size=40, max_workers=1))
    assert indices(path) == list(range(20))


class Exploding:
    """Does harm to whoever unpickles it."""

    done: ClassVar[list[int]] = []

    def __reduce__(self) -> Any:
        return self.done.append, (1,)


def test_who_has_not_the_key_says_nothing_and_hears_nothing(provider_for: Make) -> None:
    strangers: list[socket.socket] = []
    with Pickling() as executor:
        for answer in ask_many(provider_for(YLOKH, Slowly()), prompts(40), executor=executor, chunk_size=5):
            if not strangers:
                address = executor.work[0]._channel.address
                assert repr(address.key) not in f"{address!r} {vars(executor.work[0])!r} {executor.work!r}"
                for _ in range(3):
                    strangers.append(socket.create_connection(("127.0.0.1", address.port), PATIENCE))
                mirror, guessing, _ = strangers
                challenge = mirror.recv(32)
                mirror.sendall(challenge)
                mirror.sendall(mirror.recv(32))  # its own proof
                guessing.sendall(bytes(64) + pickle.dumps(Exploding()))
            assert answer.reply == f"q{answer.index}"
    for stranger in strangers:
        with stranger:
            try:
                while data := stranger.recv(4096):
                    assert len(data) in (32, 64), "more than a challenge and a proof"
            except ConnectionResetError:
                pass
    assert Exploding.done == []


# The rate of all processes together


def test_a_rate_holds_for_all_processes_together(executor: Executor, provider_for: Make, wire: Wire) -> None:
    moments: list[float] = []

    def noting(request: Recorded, connection: Connection) -> None:
        moments.append(time.monotonic())
        connection.gone.wait(0.15)
        repeating(YLOKH)(request, connection)

    provider = provider_for(YLOKH, noting)
    answers = list(ask_many(provider, prompts(60), executor=executor, chunk_size=6, max_workers=3, rate="30/s"))
    assert [answer.reply for answer in answers] == prompts(60)
    assert len(wire.connections) > 3, "one process has asked them all"
    for earlier, later in zip(moments, moments[10:], strict=False):
        assert later - earlier > 10 / 30 * 0.8, "faster than the rate"
    assert moments[-1] - moments[0] < 59 / 30 + 3


@pytest.mark.parametrize("executor", ["spawn"], indirect=True)
def test_a_refusal_slows_all_processes(executor: Executor, provider_for: Make, wire: Wire) -> None:
    moments: list[float] = []
    refused: list[float] = []

    def refusing(request: Recorded, connection: Connection) -> None:
        moments.append(time.monotonic())
        if prompt_of(request) == "q20" and not refused:
            refused.append(time.monotonic())
            connection.respond(429, {"error": "slowly"}, {"Retry-After": "1"})
        else:
            Slowly(0.1)(request, connection)

    provider = provider_for(YLOKH, refusing, retries=2)
    answers = list(ask_many(provider, prompts(30), executor=executor, chunk_size=4, max_workers=2))
    assert [answer.reply for answer in answers] == prompts(30)
    assert len(wire.connections) > 2, "one process has asked them all"
    assert [moment for moment in moments if 0.3 < moment - refused[0] < 0.95] == []
    assert max(moments) > refused[0] + 0.95


# Kills


@kills
def test_a_killed_worker_costs_its_unanswered_questions_only(provider_for: Make, wire: Wire, path: Path) -> None:
    victims: list[int] = []

    def deadly(request: Recorded, connection: Connection) -> None:
        if victims and prompt_of(request) == "q60":
            time.sleep(0.2)  # what was answered is on its way
            os.kill(victims.pop(), signal.SIGKILL)
        repeating(YLOKH)(request, connection)

    provider = provider_for(YLOKH, deadly)
    spawn = multiprocessing.get_context("spawn")
    for number in range(2):
        with ProcessPoolExecutor(1, mp_context=spawn) as executor:
            answers = ask_many(
                provider, prompts(100), executor=executor, chunk_size=100, max_workers=1, checkpoint=path
            )
            if number == 0:
                victims.append(executor.submit(os.getpid).result(STARTING))
                with pytest.raises(BrokenExecutor):
                    list(answers)
                assert indices(path) == list(range(60))
            else:
                assert [answer.reply for answer in answers] == prompts(100)
    assert indices(path) == list(range(100))
    assert [prompt for prompt, count in asked(wire).items() if count > 1] == ["q60"]


@kills
def test_a_killed_dask_worker_costs_its_unanswered_questions_only(
    cluster: Any, provider_for: Make, wire: Wire, path: Path
) -> None:
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=STARTING)
        victims = list(client.run(os.getpid).values())

        def deadly(request: Recorded, connection: Connection) -> None:
            if victims and prompt_of(request) == "q60":
                time.sleep(0.2)  # what was answered is on its way
                while victims:
                    os.kill(victims.pop(), signal.SIGKILL)
            repeating(YLOKH)(request, connection)

        provider = provider_for(YLOKH, deadly)
        answers = ask_many(
            provider, prompts(100), executor=client.get_executor(), chunk_size=100, max_workers=1, checkpoint=path
        )
        assert [answer.reply for answer in answers] == prompts(100)
        client.wait_for_workers(2, timeout=STARTING)
    assert indices(path) == list(range(100))
    assert [prompt for prompt, count in asked(wire).items() if count > 1] == ["q60"]


RUN = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from berlin_chat import Ylokh, ask_many

if __name__ == "__main__":
    url, path, count, engine = sys.argv[1:]
    if engine == "processes":
        executor = ProcessPoolExecutor(2, mp_context=get_context("fork"))
    else:
        from distributed import Client
        executor = Client(engine).get_executor()
    for answer in ask_many(
        Ylokh(base_url=url), map("q{}".format, range(int(count))),
        executor=executor, max_workers=4, chunk_size=100, checkpoint=path,
    ):
        assert answer.reply == f"q{answer.index}", answer
    executor.shutdown()
"""


@kills
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_ten_kills_of_the_whole_run_at_random_moments(
    engine: str, seed: int, request: pytest.FixtureRequest, path: Path, wire: Wire, tmp_path: Path
) -> None:
    """The workers live on, and hear of it. Fifty kills with each engine, in five files."""
    times, chance = 10, random.Random(seed)
    count = times * 60
    on_disk: set[str] = set()
    again: set[str] = set()
    due = threading.Event()
    left = [0]

    def answer(asked: Recorded, connection: Connection) -> None:
        if prompt_of(asked) in on_disk:
            again.add(prompt_of(asked))
        connection.gone.wait(0.005)
        repeating(YLOKH)(asked, connection)
        left[0] -= 1
        if left[0] == 0:
            due.set()

    wire.on(*YLOKH.route, answer)
    script = tmp_path / "run.py"
    script.write_text(RUN)
    if engine == "dask":
        engine = request.getfixturevalue("cluster").scheduler_address
    environment = {**os.environ, "PYTHONPATH": str(Path(channel.__file__).parents[2])}
    command = [sys.executable, str(script), wire.url, str(path), str(count), engine]
    for _ in range(times):
        left[0] = chance.randint(1, 50)
        due.clear()
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            assert due.wait(STARTING), "the batch did not go on"
            time.sleep(chance.random() * 0.01)  # the moment is to be random
            process.kill()
            process.wait(PATIENCE)
            whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
            on_disk.update(json.loads(line)["prompt"] for line in whole)
            seen = len(wire.requests)
            time.sleep(0.2)
            assert len(wire.requests) - seen < 20, "the workers go on"
        finally:
            with suppress(ProcessLookupError):  # Dask's workers are the cluster's
                os.killpg(process.pid, signal.SIGKILL)
    assert 0 < len(on_disk) < count, "the batch was finished before the last kill"
    assert subprocess.run(command, timeout=60, env=environment).returncode == 0
    assert again == set()
    assert indices(path) == list(range(count))
    assert all(line["reply"] == line["prompt"] == f"q{line['index']}" for line in lines(path))
