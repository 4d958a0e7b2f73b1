"""``History`` between processes: many write one file, one is killed in mid-reply, one forks."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from berlin_chat import Conversation, History, OpenAICompatible
from berlin_chat.conversations.database import Database
from berlin_chat.conversations.steps import WRITE_INTERVAL
from scripted import chunk, replies, text
from test_history import answering, check_talks, in_a_child, rows
from wire import OPENAI, Chunked, Connection, Recorded, Wire

#: That some of them fork while there are threads is the point.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
THREADS, TURNS = 16, 4
has_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

#: Talks in 16 threads at once, all of which have one history; the arguments are a URL, a file and a name.
TALKING = f"""
import sys, threading
from berlin_chat import Conversation, History, OpenAICompatible

url, file, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()

def talk(number):
    conversation = Conversation(provider, history=history)
    for turn in range({TURNS}):
        conversation.ask(f"{{name}}{{number}}-{{turn}}")

with OpenAICompatible(base_url=url, retries=0) as provider, History(file) as history:
    threads = [threading.Thread(target=talk, args=(number,)) for number in range({THREADS})]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""

#: Asks one question, and prints each piece of the reply.
ASKING = """
import sys
from berlin_chat import Conversation, History, OpenAICompatible

url, file = sys.argv[1:]
conversation = Conversation(OpenAICompatible(base_url=url, retries=0), "Be brief.", History(file))
for piece in conversation.stream("Tell me a long story."):
    print(piece, flush=True)
"""


def start(code: str, *arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "chats.db"


def test_two_processes_with_sixteen_threads_each_lose_nothing(wire: Wire, file: Path) -> None:
    wire.on(*OPENAI.route, answering)
    processes = [start(TALKING, wire.url, file, name) for name in "ab"]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None  # now both of them make the file, at the same time
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert (process.returncode, errors) == (0, "")
    with History(file) as history:
        check_talks(history, [f"{name}{number}" for name in "ab" for number in range(THREADS)], TURNS)
        assert len(history.search("To", limit=1000)) == 2 * THREADS * TURNS
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]
    assert rows(file, "SELECT count(*) FROM messages WHERE cut OR undone") == [(0,)]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_a_process_that_is_killed_in_mid_reply_leaves_what_had_come(wire: Wire, file: Path) -> None:
    go_on = threading.Event()

    def slow(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, "text/event-stream", b"")
        body.part(chunk({"content": "Once upon "}))
        assert go_on.wait(20)
        for piece in ("a time ", "there was "):
            body.part(chunk({"content": piece}))
        connection.wait_until_client_closes()

    wire.on(*OPENAI.route, slow)
    process = start(ASKING, wire.url, file)
    assert process.stdout is not None
    assert process.stdout.readline() == "Once upon \n"
    partial = "SELECT content FROM messages WHERE role = 'assistant'"
    assert rows(file, partial) == [("Once upon ",)]
    time.sleep(WRITE_INTERVAL + 0.1)  # a piece that comes sooner is written with a later one
    go_on.set()
    assert process.stdout.readline() == "a time \n"
    process.kill()
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert rows(file, "SELECT role, content, cut FROM messages") == [
        ("user", "Tell me a long story.", 0),
        ("assistant", "Once upon a time ", 1),
    ]
    replies(wire, text("The end."))
    with History(file) as history, OpenAICompatible(base_url=wire.url, retries=0) as provider:
        assert [found.text for found in history.search("upon")] == ["Once upon a time "]
        conversation = history.conversation(1, provider)
        assert [turn.cut for turn in conversation.turns] == [True]
        assert conversation.ask("Go on.") == "The end."
    said = ["Be brief.", "Tell me a long story.", "Once upon a time ", "Go on.", "The end."]
    with History(file) as history:
        assert [message["content"] for message in history.messages(1)] == said


def descriptors(file: Path) -> list[str]:
    """What this process has open of the file."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return [path for path in found if path.startswith(str(file))]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="there is no /proc")
def test_no_fork_copies_the_open_file_and_both_go_on(wire: Wire, file: Path) -> None:
    wire.on(*OPENAI.route, answering)
    with History(file) as history, OpenAICompatible(base_url=wire.url, retries=0) as provider:
        conversation = Conversation(provider, history=history)
        conversation.ask("a-0")
        assert descriptors(file)

        def act() -> None:
            assert descriptors(file) == []
            other = Conversation(provider, history=history)
            for turn in range(3):
                other.ask(f"b-{turn}")
            history.close()

        assert in_a_child(act) == 0
        conversation.ask("a-1"), conversation.ask("a-2")
        check_talks(history, ["a", "b"], 3)
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]


@has_fork
def test_a_child_can_be_forked_while_threads_write(wire: Wire, file: Path) -> None:
    wire.on(*OPENAI.route, answering)
    with History(file) as history, OpenAICompatible(base_url=wire.url, retries=0) as provider:

        def talk(name: str) -> None:
            conversation = Conversation(provider, history=history)
            for turn in range(10):
                conversation.ask(f"{name}-{turn}")

        threads = [threading.Thread(target=talk, args=(f"t{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        codes = [in_a_child(lambda name=f"c{number}": talk(name)) for number in range(5)]  # type: ignore[misc]
        for thread in threads:
            thread.join(60)
        assert codes == [0] * 5
        check_talks(history, [*(f"t{number}" for number in range(4)), *(f"c{number}" for number in range(5))], 10)
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]


@has_fork
def test_a_child_leaves_the_turn_of_its_parent_alone(wire: Wire, file: Path) -> None:
    replies(wire, text("one ", "two ", "three"))
    with History(file) as history, OpenAICompatible(base_url=wire.url, retries=0) as provider:
        conversation = Conversation(provider, history=history)
        pieces = [conversation.stream("Hi")]
        next(pieces[0]), next(pieces[0])  # of which the second is not written yet

        def act() -> None:
            pieces.clear()  # the child's copy of it ends here
            gc.collect()

        assert in_a_child(act) == 0
        assert rows(file, "SELECT content, cut FROM messages WHERE role = 'assistant'") == [("one ", 1)]
        assert list(pieces[0]) == ["three"]
        assert rows(file, "SELECT content, cut FROM messages WHERE role = 'assistant'") == [("one two three", 0)]


def pickled_talk(pickled: bytes, name: str) -> None:
    history, provider = pickle.loads(pickled)
    with history, provider:
        conversation = Conversation(provider, history=history)
        for turn in range(2):
            conversation.ask(f"{name}-{turn}")


def test_a_history_can_be_pickled_for_another_process(wire: Wire, file: Path) -> None:
    wire.on(*OPENAI.route, answering)
    with History(file, timeout=20) as history, OpenAICompatible(base_url=wire.url, retries=0) as provider:
        pickled = pickle.dumps((history, provider))
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            pool.starmap(pickled_talk, [(pickled, name) for name in "abcd"])
        check_talks(history, list("abcd"), 2)


@pytest.fixture
def left(wire: Wire, file: Path) -> Iterator[tuple[History, Callable[[], Any]]]:
    """A history, and what ends a reply that was left in the middle."""
    replies(wire, text("one ", "two ", "three"))
    with History(file) as history, OpenAICompatible(base_url=wire.url, retries=0) as provider:
        pieces = Conversation(provider, history=history).stream("Hi")
        next(pieces), next(pieces)
        yield history, pieces.close


def test_a_reply_that_a_finalizer_ends_in_the_middle_of_a_write_is_kept(
    left: tuple[History, Callable[[], Any]], file: Path
) -> None:
    history, end = left
    database: Database = history._database

    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO conversations (started, title) VALUES ('', 'outer')")
        end()

    database.write(work)
    assert rows(file, "SELECT title FROM conversations") == [("Hi",), ("outer",)]
    assert rows(file, "SELECT content, cut FROM messages") == [("Hi", 0), ("one two ", 1)]


def test_if_that_write_fails_what_the_finalizer_wrote_can_be_written_again(
    left: tuple[History, Callable[[], Any]], file: Path
) -> None:
    history, end = left
    taken = []

    def work(connection: sqlite3.Connection) -> None:
        history._database.write(lambda connection: None, lambda: taken.append("inner"))
        end()
        raise KeyError

    with pytest.raises(KeyError):
        history._database.write(work, lambda: taken.append("outer"))
    assert sorted(taken) == ["inner", "outer"]
    assert rows(file, "SELECT content, cut FROM messages") == [("Hi", 0), ("one ", 1)]
    assert history.latest() == 1


def test_what_ctrl_c_has_torn_off_does_not_stay_open(left: tuple[History, Callable[[], Any]], file: Path) -> None:
    history, end = left
    with history._database.reading() as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM messages")
    end()
    assert rows(file, "SELECT content, cut FROM messages") == [("Hi", 0), ("one two ", 1)]


#: Opens the file and closes it; the argument is its name.
VISITING = "import sys; from berlin_chat import History; History(sys.argv[1]).close()"


@pytest.mark.parametrize("how", ["another history", "a pickled conversation"])
def test_a_second_history_of_the_same_process_takes_no_lock_away(how: str, wire: Wire, tmp_path: Path) -> None:
    """POSIX drops all locks that a process has on a file when it closes any descriptor of it."""
    file = tmp_path / "chats.db"
    replies(wire, text("a"), text("b"))
    with OpenAICompatible(base_url=wire.url, retries=0) as provider, History(file) as history:
        conversation = Conversation(provider, history=history)
        conversation.ask("one")
        if how == "another history":
            other: Any = History(file)
        else:
            other = pickle.loads(pickle.dumps(conversation))
        subprocess.run([sys.executable, "-c", VISITING, str(file)], check=True, timeout=60)
        conversation.ask("two")
        assert rows(file, "SELECT content FROM messages ORDER BY id") == [("one",), ("a",), ("two",), ("b",)]
        (other if how == "another history" else other.history).close()
