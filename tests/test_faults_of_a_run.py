"""What disks, other programs and callers do to a batch with a file: one clear error, and all answers are kept."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from berlin_chat import Answer, InvalidRequest, Provider, Reply, ask_many, keyed
from berlin_chat.batch.checkpoint import Checkpoint
from berlin_chat.batch.keys import Asked
from berlin_chat.batch.processes import InProcess
from test_conversations import left
from test_executors import Across
from test_pool import ours, prompt_of, prompts, repeating
from test_resources import sockets_to
from wire import H2O, PATIENCE, YLOKH, Connection, Recorded, Wire, wait_for

Make = Callable[..., Provider]


@pytest.fixture
def provider(provider_for: Make, wire: Wire) -> Iterator[Provider]:
    """One of conversations; at the end nothing is left of the batch."""
    provider = provider_for(H2O, repeating(H2O))
    yield provider
    InProcess._crossed.clear()  # what stands for other processes
    gc.collect()
    wait_for(lambda: not ours())
    if wire.asked("POST", "/conversation"):
        wait_for(lambda: not left(wire))
    provider.close()
    if os.path.isdir("/proc/self/fd"):
        wait_for(lambda: sockets_to(wire) == 0)


@pytest.fixture(params=["threads", "other processes"])
def executor(request: pytest.FixtureRequest) -> Executor | None:
    return None if request.param == "threads" else Across()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def assert_goes_on(provider: Provider, path: Path, wire: Wire, count: int = 40) -> None:
    """The next run asks what is not in the file, and nothing else."""
    kept = {line["prompt"] for line in lines(path)}
    assert kept
    wire.requests.clear()
    answers = list(ask_many(provider, prompts(count), checkpoint=path))
    assert [answer.reply for answer in answers] == prompts(count)
    assert sorted(asked(wire)) == sorted(set(prompts(count)) - kept)
    assert sorted(line["prompt"] for line in lines(path)) == sorted(prompts(count))


def asked(wire: Wire) -> list[str]:
    return [prompt_of(request) for request in wire.asked(*H2O.route) if request.method == "POST"]


# The disk

FULL = """
import resource, signal, sys, threading
from berlin_chat import H2o, ask_many
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is then short, or fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    forked = ProcessPoolExecutor(2, mp_context=get_context("fork")) if sys.argv[3] == "other processes" else None
    with H2o(base_url=sys.argv[1]) as provider:
        try:
            for _ in ask_many(provider, map("q{}".format, range(100)), checkpoint=sys.argv[2], executor=forked,
                              max_workers=4, chunk_size=3):
                pass
        except OSError as error:
            print(error)
            context = error
            while context := context.__cause__ or (None if context.__suppress_context__ else context.__context__):
                print("because", context)
        print(sum(thread.name.startswith("berlin_chat") for thread in threading.enumerate()))
    if forked:
        forked.shutdown()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no RLIMIT_FSIZE")
@pytest.mark.parametrize("way", ["threads", "other processes"])
def test_a_full_disk_is_one_error_and_every_line_before_it_is_whole(
    way: str, provider: Provider, path: Path, wire: Wire
) -> None:
    command = [sys.executable, "-c", FULL, wire.url, str(path), way]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    told, *because, threads = ran.stdout.splitlines()
    assert "is not on disk" in told
    assert str(path) in told
    assert len(because) == 1, "the error has one cause, the system's"
    assert threads == "0"
    content = path.read_bytes()
    assert 0 < len(content) <= 3000
    assert content.endswith(b"\n"), "a torn line is left"
    assert_goes_on(provider, path, wire, 100)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no modes")
def test_a_folder_that_is_read_only_is_told_before_anything_is_asked(provider: Provider, wire: Wire) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)  # for root nothing is read-only
        try:
            with pytest.raises(InvalidRequest, match=r"cannot be opened: .*Permission denied.*answers\.jsonl"):
                list(ask_many(provider, prompts(3), checkpoint=f"{folder}/answers.jsonl"))
        finally:
            if was_root:
                os.seteuid(0)
        assert os.listdir(folder) == []
    assert wire.requests == []


@pytest.mark.parametrize("what", ["folder", "pipe", "device"])
def test_what_is_no_file_is_refused(what: str, provider: Provider, tmp_path: Path, wire: Wire) -> None:
    path = tmp_path / "it"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        if sys.platform == "win32":
            pytest.skip("there are no named pipes in folders")
        os.mkfifo(path)
    else:
        path = Path(os.devnull)
    with pytest.raises(InvalidRequest, match=r"cannot be opened|no regular file"):
        list(ask_many(provider, prompts(3), checkpoint=path))
    assert wire.requests == []


# Other programs


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text("something else\n")
    new.replace(path)


def move(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))


def cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(lines(path)[0]["reply"].encode())


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open cannot be removed")
@pytest.mark.parametrize("change", [remove, replace, move], ids=lambda change: change.__name__)
def test_a_file_that_is_removed_or_replaced_ends_the_batch_and_all_answers_are_saved(
    change: Any, executor: Executor | None, provider: Provider, path: Path, wire: Wire
) -> None:
    got = []
    with pytest.raises(OSError, match="removed or replaced") as caught:
        for answer in ask_many(provider, prompts(400), checkpoint=path, executor=executor, chunk_size=2):
            got.append(answer.prompt)
            if len(got) == 10:
                change(path)
    assert len(got) < 400
    others = [one for one in path.parent.iterdir() if one != path]
    assert len(others) == 1, "it was saved more than once, or not at all"
    (saved,) = others
    assert change is move or str(saved) in str(caught.value)
    assert {line["prompt"] for line in lines(saved)} >= set(got)
    if sys.platform != "win32":
        assert saved.stat().st_mode & 0o777 == 0o600
    saved.replace(path)
    assert_goes_on(provider, path, wire, 400)


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open cannot be removed")
@pytest.mark.parametrize("way", ["going on", "leaving"])
@pytest.mark.parametrize("change", [remove, move], ids=lambda change: change.__name__)
def test_what_has_come_back_is_saved_too_and_there_is_one_error(
    change: Any, way: str, provider: Provider, path: Path, wire: Wire
) -> None:
    def changing(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q10":  # in the last of the chunks that have come when the loop begins
            wait_for(lambda: len(lines(path)) == 10)
            change(path)
        repeating(H2O)(request, connection)

    wire.on(*H2O.route, changing)
    executor = Across(together=3)
    loop = ask_many(
        provider, prompts(100), executor=executor, chunk_size=5, max_workers=1, checkpoint=path, ordered=False
    )
    next(loop)
    with pytest.raises(OSError, match="removed or replaced") as caught:
        loop.close() if way == "leaving" else list(loop)
    error: BaseException | None = caught.value
    told = []
    while error is not None:
        told.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert len([one for one in told if one]) == 2, "beside the error and its cause there is another"
    (saved,) = path.parent.iterdir()
    assert sorted(line["index"] for line in lines(saved)) == sorted(executor.finished)
    saved.replace(path)
    assert len(list(ask_many(provider, prompts(20), checkpoint=path))) == 20


@pytest.mark.parametrize("change", [cut, cut_to_nothing, append], ids=lambda change: change.__name__)
def test_a_file_that_is_cut_or_written_to_ends_the_batch_and_what_is_left_counts(
    change: Any, executor: Executor | None, provider: Provider, path: Path, wire: Wire
) -> None:
    got = []
    changed = threading.Event()

    def gated(request: Recorded, connection: Connection) -> None:
        if executor is None and int(prompt_of(request)[1:]) >= 12:
            assert changed.wait(PATIENCE)  # no answer is on its way to the file while it is changed
        repeating(H2O)(request, connection)

    wire.on(*H2O.route, gated)
    with pytest.raises(OSError, match=r"has changed the file while it was in use: it has .* bytes, not"):
        for answer in ask_many(provider, prompts(400), checkpoint=path, executor=executor, chunk_size=2):
            got.append(answer.prompt)
            if len(got) == 12:
                change(path)
                after = path.read_bytes()
                changed.set()
    assert path.read_bytes() == after, "it was written to nevertheless"
    if change is append:
        with pytest.raises(InvalidRequest, match="is no answer of a batch"):
            list(ask_many(provider, prompts(400), checkpoint=path))
    else:
        wire.requests.clear()
        assert len(list(ask_many(provider, prompts(400), checkpoint=path))) == 400
        kept = after.rpartition(b"\n")[0].splitlines()
        assert len(asked(wire)) == 400 - len(kept)


def test_an_answer_that_is_overwritten_before_it_is_read_is_an_error(
    provider: Provider, path: Path, wire: Wire
) -> None:
    list(ask_many(provider, prompts(100), checkpoint=path))
    wire.requests.clear()
    loop = ask_many(provider, prompts(100), checkpoint=path)
    assert next(loop).reply == "q0"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(InvalidRequest, match="cannot be read: another program has changed the file"):
        list(loop)
    assert wire.requests == []


def test_a_program_that_changes_its_folder_keeps_its_file(
    provider: Provider, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    for answer in ask_many(provider, prompts(40), checkpoint=path.name):
        if answer.index == 3:
            monkeypatch.chdir("/")
    assert len(lines(path)) == 40


# NUL bytes, which a power failure leaves


@pytest.mark.parametrize("torn", [0, 30])
@pytest.mark.parametrize("count", [1, 5000, 2**21])
def test_nul_bytes_at_the_end_are_taken_away(torn: int, count: int, provider: Provider, path: Path, wire: Wire) -> None:
    list(ask_many(provider, prompts(10), max_workers=1, checkpoint=path))
    whole = path.read_bytes()
    *_, last = whole.splitlines()
    path.write_bytes(whole + last[:torn] + bytes(count))
    assert_ends_as(path, whole)
    assert_goes_on(provider, path, wire)


def assert_ends_as(path: Path, whole: bytes) -> None:
    with Checkpoint(path):
        assert path.read_bytes() == whole


def test_nul_bytes_between_answers_are_refused_with_their_line(provider: Provider, path: Path, wire: Wire) -> None:
    list(ask_many(provider, prompts(10), max_workers=1, checkpoint=path))
    whole = path.read_bytes()
    first, second, *others = whole.splitlines(keepends=True)
    wire.requests.clear()
    for damaged in (bytes(100) + second, second[:-20] + bytes(18) + b"}\n", bytes(2**21) + b"\n"):
        content = b"".join([first, damaged, *others])
        path.write_bytes(content)
        with pytest.raises(InvalidRequest, match=r"line 2, is no answer of a batch.*delete the line"):
            list(ask_many(provider, prompts(10), checkpoint=path))
        assert path.read_bytes() == content
    assert wire.requests == []
    path.write_bytes(b"".join([first, *others]))
    assert_goes_on(provider, path, wire)


@pytest.mark.parametrize("count", [1, 2**21])
def test_a_file_of_nul_bytes_alone_is_somebody_elses(count: int, provider: Provider, path: Path) -> None:
    path.write_bytes(bytes(count))
    with pytest.raises(InvalidRequest, match="line 1"):
        list(ask_many(provider, prompts(3), checkpoint=path))
    assert path.stat().st_size == count


# Large files

MEGABYTE = 2**20


def peak_of(work: Callable[[], object]) -> int:
    """The most memory that it takes, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("has_keys", [False, True])
def test_a_long_file_is_opened_in_seconds_and_little_memory(has_keys: bool, path: Path) -> None:
    count, reply = 20_000, "a" * 3000
    with open(path, "wb") as file:
        for n in range(count):
            key = b'"key": "row-%d", ' % n if has_keys else b""
            file.write(
                b'{"index": %d, %b"prompt": "q%d", "reply": "%b", "seconds": 0.5}\n' % (n, key, n, reply.encode())
            )
    assert path.stat().st_size > 50 * MEGABYTE
    checkpoint = Checkpoint(path)
    checkpoint.has_keys = has_keys
    started = time.monotonic()
    checkpoint.open()
    assert time.monotonic() - started < 3
    checkpoint.close()
    assert peak_of(checkpoint.open) < 2 * MEGABYTE
    found = checkpoint.find(Asked(count - 1, f"q{count - 1}", f"row-{count - 1}"))
    assert found is not None
    assert found.reply == reply
    checkpoint.close()


def test_a_file_of_a_gigabyte_that_is_no_checkpoint_is_refused_in_little_memory(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(b"x")
        file.truncate(2**30)  # no room is taken on the disk

    def refused() -> None:
        with pytest.raises(InvalidRequest, match="line 1"):
            Checkpoint(path).open()

    assert peak_of(refused) < 5 * MEGABYTE


def test_a_gigabyte_of_nul_bytes_behind_answers_is_taken_away_in_little_memory(
    provider: Provider, path: Path, wire: Wire
) -> None:
    list(ask_many(provider, prompts(10), checkpoint=path))
    whole = path.read_bytes()
    os.truncate(path, 2**30)
    assert peak_of(lambda: assert_ends_as(path, whole)) < 5 * MEGABYTE


def test_an_index_of_any_size_takes_no_memory(path: Path) -> None:
    with Checkpoint(path) as checkpoint:
        for index in (0, 10**12, 10**17):
            checkpoint.record(Answer(index, "q", Reply("r"), None, 0.1, 1))

    def opened() -> None:
        with Checkpoint(path) as checkpoint:
            assert checkpoint.find(Asked(10**17, "q")) is not None

    assert peak_of(opened) < MEGABYTE


# Memory of a batch


@pytest.mark.parametrize("resumed", [False, True])
def test_memory_grows_by_some_bytes_a_question_with_keys_and_a_file(
    resumed: bool, provider_for: Make, path: Path
) -> None:
    def forgetful(request: Recorded, connection: Connection) -> None:
        connection.wire.requests.clear()
        repeating(YLOKH)(request, connection)

    provider = provider_for(YLOKH, forgetful)

    def run(count: int) -> None:
        checkpoint = path.with_suffix(f".{count}")
        for answer in ask_many(provider, keyed((f"row-{n}", "q") for n in range(count)), checkpoint=checkpoint):
            assert answer.error is None

    if resumed:
        write_answers(path.with_suffix(".100"), 100, provider)
        write_answers(path.with_suffix(".20000"), 20_000, provider)
        few, many = peak_of(lambda: run(100)), peak_of(lambda: run(20_000))
        assert many - few < MEGABYTE * 2
    else:
        few, many = peak_of(lambda: run(100)), peak_of(lambda: run(1000))
        assert many - few < MEGABYTE


def write_answers(path: Path, count: int, provider: Provider) -> None:
    with Checkpoint(path) as checkpoint:
        checkpoint.has_keys = True
        for n in range(count):
            checkpoint.record(Answer(n, "q", Reply("q", provider="ylokh"), None, 0.1, 1, f"row-{n}"))


# Prompts


@pytest.mark.parametrize("with_keys", [False, True])
def test_a_generator_of_prompts_that_raises_ends_the_batch_with_that_and_answers_are_kept(
    with_keys: bool, executor: Executor | None, provider: Provider, path: Path, wire: Wire
) -> None:
    def failing() -> Iterator[Any]:
        for n in range(30):
            yield (f"row-{n}", f"q{n}") if with_keys else f"q{n}"
        raise ZeroDivisionError("mine")

    given: Any = keyed(failing()) if with_keys else failing()
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        list(ask_many(provider, given, checkpoint=path, executor=executor, chunk_size=2, max_workers=2))
    assert caught.value.__context__ is None
    assert len(lines(path)) > 10
    if not with_keys:
        assert_goes_on(provider, path, wire)


def circular() -> list[Any]:
    prompt: list[Any] = [{"role": "user", "content": "Hi"}]
    prompt[0]["itself"] = prompt
    return prompt


@pytest.mark.parametrize(
    "bad",
    [
        [{"role": "user", "content": "Hi", "extra": {1, 2}}],
        [{"role": "user", "content": "Hi", "extra": object()}],
        [{"role": "user", "content": "Hi", "extra": float("nan")}],
        [{"role": "user", "content": "Hi", "extra": b"bytes"}],
        circular(),
        {"a", "set"},
        b"bytes",
    ],
    ids=["set inside", "object inside", "nan inside", "bytes inside", "circular", "set", "bytes"],
)
def test_a_prompt_that_no_json_can_hold_is_an_error_before_it_is_sent_and_the_others_go_on(
    bad: Any, executor: Executor | None, provider: Provider, path: Path, wire: Wire
) -> None:
    questions: list[Any] = [*prompts(5), bad, "q6"]
    answers = list(ask_many(provider, questions, checkpoint=path, executor=executor, chunk_size=2))
    assert [answer.reply for answer in answers] == ["q0", "q1", "q2", "q3", "q4", None, "q6"]
    assert isinstance(answers[5].error, InvalidRequest)
    assert str(path) in str(answers[5].error)
    assert "prompt 5" in str(answers[5].error)
    assert sorted(asked(wire)) == [*prompts(5), "q6"]
    assert len(lines(path)) == 6
    with pytest.raises(InvalidRequest, match="prompt 5"):
        list(ask_many(provider, questions, checkpoint=path, executor=executor, on_error="raise"))


@pytest.mark.parametrize("with_file", [True, False])
def test_a_prompt_that_can_be_read_once_only_and_one_of_other_mappings_are_asked_and_kept(
    with_file: bool, executor: Executor | None, provider: Provider, path: Path, wire: Wire
) -> None:
    if executor is not None and not with_file:
        pytest.skip("a mappingproxy cannot be pickled")

    def questions() -> list[Any]:
        message = {"role": "user", "content": "q0"}
        other = message if executor is not None else MappingProxyType(message)
        return [iter([message]), [other], other]

    checkpoint = path if with_file else None
    for expected in (3, 0 if with_file else 3):
        wire.requests.clear()
        answers = list(ask_many(provider, questions(), checkpoint=checkpoint, executor=executor))
        assert [answer.reply for answer in answers] == ["q0"] * 3
        assert len(asked(wire)) == expected


def test_the_next_prompts_are_not_read_after_an_error(provider: Provider, path: Path) -> None:
    taken = itertools.count()
    with pytest.raises(OSError, match="in use"):
        for answer in ask_many(provider, map("q{}".format, taken), checkpoint=path, max_workers=2):
            if answer.index == 5:
                path.write_bytes(b"")
    assert next(taken) < 100


def test_a_process_pool_is_usable_after_a_fault_of_the_file(provider: Provider, path: Path, wire: Wire) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        with pytest.raises(OSError, match="in use"):
            for answer in ask_many(provider, prompts(400), checkpoint=path, executor=executor, chunk_size=2):
                if answer.index == 5:
                    path.write_bytes(b"")
        assert executor.submit(int, "7").result(60) == 7
