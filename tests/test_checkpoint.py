"""Answers on disk: nothing finished is asked again, a torn line is mended, other prompts are refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from berlin_chat import Answer, InvalidRequest, Provider, Reply, ask_many
from berlin_chat.batch.checkpoint import Checkpoint
from test_pool import prompt_of, prompts, repeating
from wire import YLOKH, Connection, Recorded, Wire

Make = Callable[..., Provider]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


@pytest.fixture
def provider(provider_for: Make) -> Provider:
    return provider_for(YLOKH, repeating(YLOKH))


def asked(wire: Wire) -> list[str]:
    found = sorted((prompt_of(request) for request in wire.requests), key=lambda prompt: int(prompt[1:]))
    wire.requests.clear()
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_answer_is_one_json_object_a_line(provider: Provider, path: Path) -> None:
    answers = list(ask_many(provider, ["q0", [{"role": "user", "content": "q1 ы\n"}]], checkpoint=path))
    first, second = sorted(lines(path), key=lambda line: int(line["index"]))
    assert first == {
        "index": 0,
        "prompt": "q0",
        "reply": "q0",
        "provider": "ylokh",
        "model": "m-1",
        "finish_reason": "stop",
        "usage": None,
        "seconds": answers[0].reply.seconds,  # type: ignore[union-attr]
        "attempts": 1,
    }
    assert second["prompt"] == [{"role": "user", "content": "q1 ы\n"}]
    assert "ы" in path.read_text(encoding="utf-8"), "people read this file"


@pytest.mark.parametrize("ordered", [True, False])
def test_with_the_same_file_only_what_is_missing_is_asked(
    ordered: bool, provider: Provider, path: Path, wire: Wire
) -> None:
    list(ask_many(provider, prompts(10), checkpoint=path))
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in kept if json.loads(line)["index"] not in (3, 7)))
    wire.requests.clear()
    answers = list(ask_many(provider, prompts(12), checkpoint=str(path), ordered=ordered))
    assert asked(wire) == ["q3", "q7", "q10", "q11"]
    assert sorted((answer.index, str(answer.reply)) for answer in answers) == [(n, f"q{n}") for n in range(12)]
    assert all(answer.reply.model == "m-1" for answer in answers if answer.reply is not None)


def test_an_error_is_not_kept_and_is_asked_again(provider_for: Make, path: Path, wire: Wire) -> None:
    failing = [True]

    def unsteady(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q1" and failing:
            connection.respond(500)
        else:
            repeating(YLOKH)(request, connection)

    provider = provider_for(YLOKH, unsteady)
    first = list(ask_many(provider, prompts(3), checkpoint=path))
    assert first[1].error is not None
    failing.clear()
    wire.requests.clear()
    assert [answer.reply for answer in ask_many(provider, prompts(3), checkpoint=path)] == prompts(3)
    assert asked(wire) == ["q1"]


@pytest.mark.parametrize("keep", [1, 20, -2])
def test_a_torn_last_line_is_mended(keep: int, provider: Provider, path: Path, wire: Wire) -> None:
    list(ask_many(provider, prompts(3), max_workers=1, checkpoint=path))
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[:keep])
    wire.requests.clear()
    assert [answer.reply for answer in ask_many(provider, prompts(3), checkpoint=path)] == prompts(3)
    assert asked(wire) == ["q2"]
    assert len(lines(path)) == 3


def test_a_last_line_that_lacks_only_its_end_is_not_asked_again(provider: Provider, path: Path, wire: Wire) -> None:
    list(ask_many(provider, prompts(3), checkpoint=path))
    path.write_bytes(path.read_bytes()[:-1])
    wire.requests.clear()
    assert [answer.reply for answer in ask_many(provider, prompts(4), checkpoint=path)] == prompts(4)
    assert asked(wire) == ["q3"]
    assert len(lines(path)) == 4


@pytest.mark.parametrize("content", [b"hello\n", b'{"a": 1}\n', b'{"index": "x"}\n', b"[]\n", b"\n", b"\xff\n"])
def test_a_file_that_is_no_checkpoint_is_refused_and_left_alone(
    content: bytes, provider: Provider, path: Path, wire: Wire
) -> None:
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="line 1"):
        list(ask_many(provider, prompts(3), checkpoint=path))
    assert path.read_bytes() == content
    assert wire.requests == []


@pytest.mark.parametrize("first_kept", [0, 5])
def test_a_file_that_belongs_to_other_prompts_is_refused_before_anything_is_asked(
    first_kept: int, provider: Provider, path: Path, wire: Wire
) -> None:
    list(ask_many(provider, prompts(10), max_workers=1, checkpoint=path))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[first_kept:]))
    wire.requests.clear()
    with pytest.raises(InvalidRequest, match="belongs to other prompts"):
        list(ask_many(provider, [f"other {n}" for n in range(10)], checkpoint=path))
    assert wire.requests == []


def test_a_file_of_more_prompts_than_there_are_is_refused_if_none_of_them_fits(provider: Provider, path: Path) -> None:
    list(ask_many(provider, prompts(10), max_workers=1, checkpoint=path))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[5:]))
    with pytest.raises(InvalidRequest, match="belongs to other prompts"):
        list(ask_many(provider, prompts(2), checkpoint=path))


def test_a_path_that_cannot_be_opened_is_named(provider: Provider, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be opened"):
        list(ask_many(provider, prompts(3), checkpoint=tmp_path / "no" / "folder.jsonl"))


def test_what_is_answered_is_on_disk_although_the_loop_does_not_go_on(
    provider: Provider, path: Path, wire: Wire
) -> None:
    loop = ask_many(provider, prompts(100), max_workers=4, checkpoint=path)
    next(loop)
    idle = threading.Event()
    for _ in range(100):
        if len(path.read_bytes().splitlines()) >= 8:
            break
        idle.wait(0.02)
    assert len(lines(path)) >= 8, "answers that were not yet yielded are not on disk"
    loop.close()


def test_a_checkpoint_is_written_by_many_threads(provider: Provider, path: Path) -> None:
    list(ask_many(provider, prompts(300), max_workers=32, checkpoint=path, ordered=False))
    assert sorted(int(line["index"]) for line in lines(path)) == list(range(300))


def test_a_long_answer_is_found_again(path: Path) -> None:
    text = "ы" * 200_000
    with Checkpoint(path) as checkpoint:
        for index in range(3):
            checkpoint.record(Answer(index, f"q{index}", Reply(text), None, 0.1, 1))
    with Checkpoint(path) as checkpoint:
        found = checkpoint.find(1, "q1")
        assert found is not None
        assert found.reply == text
        assert checkpoint.first == 0
        assert checkpoint.find(3, "q3") is None


SCRIPT = """
import sys
from berlin_chat import Ylokh, ask_many
provider = Ylokh(base_url=sys.argv[1])
for answer in ask_many(provider, (f"q{n}" for n in range(int(sys.argv[3]))), max_workers=8, checkpoint=sys.argv[2]):
    assert answer.reply == f"q{answer.index}", answer
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_twenty_kills_at_random_moments_lose_nothing_and_ask_nothing_again(path: Path, wire: Wire) -> None:
    count, chance = 600, random.Random(20)
    on_disk: set[str] = set()
    asked_again: set[str] = set()
    due = threading.Event()
    left = [0]

    def answer(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) in on_disk:
            asked_again.add(prompt_of(request))
        repeating(YLOKH)(request, connection)
        left[0] -= 1
        if left[0] == 0:
            due.set()

    wire.on(*YLOKH.route, answer)
    command = [sys.executable, "-c", SCRIPT, wire.url, str(path), str(count)]
    for _ in range(20):
        left[0] = chance.randint(1, 25)
        due.clear()
        process = subprocess.Popen(command)
        assert due.wait(30), "the batch did not go on"
        time.sleep(chance.random() * 0.01)  # the moment is to be random
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
        on_disk.update(json.loads(line)["prompt"] for line in whole)
    assert len(on_disk) < count, "the batch was finished before the last kill"
    assert subprocess.run(command, timeout=60).returncode == 0
    assert asked_again == set()
    assert sorted(int(line["index"]) for line in lines(path)) == list(range(count))
    assert all(line["reply"] == line["prompt"] == f"q{line['index']}" for line in lines(path))


# Files of somebody else's, and disks that are full


@pytest.mark.parametrize(
    "content",
    [
        b'{"api_key": "sk-1", "port": 8080}',
        b'{"index": 5, "name": "mine"}',
        b"a note without a line end",
        b'{"index',
        b"{",
        b"[1, 2,",
        b'"index"',
    ],
)
def test_a_file_of_one_line_without_its_end_is_left_untouched(
    content: bytes, provider: Provider, path: Path, wire: Wire
) -> None:
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="name another file"):
        list(ask_many(provider, prompts(3), checkpoint=path))
    assert path.read_bytes() == content
    assert wire.requests == []


def test_a_foreign_line_behind_answers_is_left_untouched(provider: Provider, path: Path) -> None:
    list(ask_many(provider, prompts(2), checkpoint=path))
    content = path.read_bytes() + b"remember: buy milk"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="line 3"):
        list(ask_many(provider, prompts(3), checkpoint=path))
    assert path.read_bytes() == content


def test_an_answer_that_begins_and_was_torn_is_mended_in_the_first_line_too(
    provider: Provider, path: Path, wire: Wire
) -> None:
    path.write_bytes(b'{"index": 0, "prompt": "q0", "rep')
    assert [answer.reply for answer in ask_many(provider, prompts(2), checkpoint=path)] == prompts(2)
    assert len(lines(path)) == 2


FULL = """
import resource, signal, sys
from berlin_chat import ChatError, Ylokh, ask_many
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is then short, or fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
provider = Ylokh(base_url=sys.argv[1])
try:
    list(ask_many(provider, map("q{}".format, range(100)), checkpoint=sys.argv[2], max_workers=2))
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no RLIMIT_FSIZE")
def test_a_full_disk_ends_the_batch_and_leaves_no_torn_line(provider: Provider, path: Path, wire: Wire) -> None:
    wire.on(*YLOKH.route, repeating(YLOKH))
    command = [sys.executable, "-c", FULL, wire.url, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "is not on disk" in ran.stdout
    assert str(path) in ran.stdout
    content = path.read_bytes()
    assert 0 < len(content) <= 1500
    assert content.endswith(b"\n"), "a torn line is left"
    assert [answer.reply for answer in ask_many(provider, prompts(100), checkpoint=path)] == prompts(100)
    assert sorted(line["index"] for line in lines(path)) == list(range(100))
