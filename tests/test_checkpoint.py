"""Answers on disk: nothing finished is asked again, a torn line is mended, other prompts are refused."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from requests.structures import CaseInsensitiveDict

from berlin_chat import Answer, Fallback, InvalidRequest, Provider, Reply, ToolCall, Ylokh, ask_many
from berlin_chat.batch.answers import REPLY_FIELDS
from berlin_chat.batch.checkpoint import Checkpoint
from berlin_chat.batch.keys import Asked
from berlin_chat.reply import Facts
from test_pool import prompt_of, prompts, repeating
from wire import PATIENCE, YLOKH, Connection, Recorded, Wire, wait_for

Make = Callable[..., Provider]


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
    expected = {
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
    assert {name: value for name, value in first.items() if name in expected} == expected
    assert first.keys() - {"asked"} == {"index", "prompt", "reply", *REPLY_FIELDS}
    assert second["prompt"] == [{"role": "user", "content": "q1 ы\n"}]
    (asked,) = (line["asked"] for line in (first, second) if "asked" in line)
    model = Ylokh.default_model
    address = provider.base_url
    assert asked == {"format": 2, "provider": "Ylokh", "address": address, "model": model, "options": {}}
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
        found = checkpoint.find(Asked(1, "q1"))
        assert found is not None
        assert found.reply == text
        assert checkpoint.first == 0
        assert checkpoint.find(Asked(3, "q3")) is None


SCRIPT = """
import sys
from berlin_chat import Ylokh, ask_many
provider = Ylokh(base_url=sys.argv[1])
for answer in ask_many(provider, (f"q{n}" for n in range(int(sys.argv[3]))), max_workers=8, checkpoint=sys.argv[2]):
    assert answer.reply == f"q{answer.index}", answer
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_fifty_kills_at_random_moments_lose_nothing_and_ask_nothing_again(path: Path, wire: Wire) -> None:
    count, chance = 1500, random.Random(50)
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
    for _ in range(50):
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


LIST = SCRIPT.replace('(f"q{n}" for n in range(int(sys.argv[3])))', '[f"q{n}" for n in range(int(sys.argv[3]))]')


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to another process")
@pytest.mark.parametrize(("script", "there"), [(LIST, b"3 of 10"), (SCRIPT, b"3")], ids=["list", "generator"])
def test_ctrl_c_says_how_much_is_kept_and_how_to_go_on(script: str, there: bytes, path: Path, wire: Wire) -> None:
    waiting, go_on = threading.Semaphore(0), threading.Event()
    asked: list[str] = []

    def answer(request: Recorded, connection: Connection) -> None:
        asked.append(prompt_of(request))
        if prompt_of(request) not in ("q0", "q1", "q2") and not go_on.is_set():
            waiting.release()
            connection.wait_until_client_closes()
        else:
            repeating(YLOKH)(request, connection)

    wire.on(*YLOKH.route, answer)
    command = [sys.executable, "-c", script, wire.url, str(path), "10"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    for _ in range(7):
        assert waiting.acquire(timeout=PATIENCE)
    wait_for(lambda: path.exists() and len(path.read_bytes().splitlines()) == 3)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=PATIENCE)
    last = complaint.splitlines()[-1]
    assert last == b"KeyboardInterrupt: %b are answered, and kept in %b: run the same again to go on" % (
        there,
        bytes(path),
    )
    asked.clear()
    go_on.set()
    assert subprocess.run(command, timeout=60).returncode == 0
    assert sorted(asked) == [f"q{n}" for n in range(3, 10)]


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


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("index", ["-1", "1.5", "true", '"0"', "null", "Infinity", "NaN", "1e400", "1" * 4000, DEEP])
def test_an_index_that_is_none_is_an_error_with_its_line(
    index: str, provider: Provider, path: Path, wire: Wire
) -> None:
    list(ask_many(provider, prompts(2), checkpoint=path))
    wire.requests.clear()
    whole, broken = path.read_text().splitlines()
    beginning = '{"index": '
    path.write_text(f"{whole}\n{beginning}{index}{broken[len(beginning) + 1 :]}\n")
    with pytest.raises(InvalidRequest, match="line 2, is no answer of a batch"):
        list(ask_many(provider, prompts(2), checkpoint=path))
    assert wire.requests == []


def test_an_answer_that_is_nested_too_deeply_is_an_error_with_its_place(provider: Provider, path: Path) -> None:
    path.write_text(f'{{"index": 0, "prompt": "q0", "reply": "q0", "usage": {DEEP}}}\n')
    with pytest.raises(InvalidRequest, match="the answer at byte 0 cannot be read"):
        list(ask_many(provider, prompts(1), checkpoint=path))


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


# Answers that know their question

#: A file as the versions before the description have written it.
OLD = (
    '{"index": 0, "prompt": "q0", "reply": "q0", "provider": "ylokh", "model": "m-1", "finish_reason": "stop",'
    ' "usage": {"total_tokens": 3}, "seconds": 0.5, "attempts": 1}\n'
    '{"index": 2, "prompt": "q2", "reply": "q2", "provider": "ylokh", "model": "m-1", "finish_reason": "stop",'
    ' "usage": null, "seconds": 0.5, "attempts": 2}\n'
)


class Another(Ylokh):
    """A provider of another class."""


def other_class(provider: Provider) -> tuple[Provider, dict[str, Any]]:
    return Another(base_url=provider.base_url, retries=0), {}


def other_address(provider: Provider) -> tuple[Provider, dict[str, Any]]:
    return Ylokh(base_url=str(provider.base_url).replace("127.0.0.1", "localhost"), retries=0), {}


def other_model(provider: Provider) -> tuple[Provider, dict[str, Any]]:
    return Ylokh(base_url=provider.base_url, model="m-2", retries=0), {}


def other_model_for_the_questions(provider: Provider) -> tuple[Provider, dict[str, Any]]:
    return provider, {"model": "m-2"}


def other_option(provider: Provider) -> tuple[Provider, dict[str, Any]]:
    return provider, {"temperature": 0.5}


def a_group(provider: Provider) -> tuple[Provider, dict[str, Any]]:
    return Fallback([provider]), {}


OTHERS = [
    (other_class, "provider: 'Ylokh' in the file, 'Another' now"),
    (other_address, "address: 'http://127.0.0.1.*' in the file, 'http://localhost.*' now"),
    (other_model, "model: 'gpt-3.5-turbo' in the file, 'm-2' now"),
    (other_model_for_the_questions, "model: 'gpt-3.5-turbo' in the file, 'm-2' now"),
    (other_option, "options.temperature: none in the file, 0.5 now"),
    (a_group, "provider: 'Ylokh' in the file, 'Fallback' now"),
]


@pytest.mark.parametrize(("change", "told"), OTHERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_run_that_asks_otherwise_is_refused_and_told_the_field(
    change: Any, told: str, provider: Provider, path: Path, wire: Wire
) -> None:
    list(ask_many(provider, prompts(3), checkpoint=path))
    content = path.read_bytes()
    wire.requests.clear()
    other, arguments = change(provider)
    with pytest.raises(InvalidRequest, match=told) as caught:
        list(ask_many(other, prompts(5), checkpoint=path, **arguments))
    assert 'checkpoint_mismatch="ask"' in str(caught.value)
    assert path.read_bytes() == content
    assert wire.requests == []


def test_a_group_is_known_by_its_members(provider: Provider, path: Path, wire: Wire) -> None:
    list(ask_many(Fallback([provider]), prompts(3), checkpoint=path))
    wire.requests.clear()
    list(ask_many(Fallback([provider]), prompts(3), checkpoint=path))
    assert wire.requests == []
    other = Ylokh(base_url=provider.base_url, model="m-2")
    with pytest.raises(InvalidRequest, match=r"providers\[0\].model"):
        list(ask_many(Fallback([other]), prompts(3), checkpoint=path))
    with pytest.raises(InvalidRequest, match="providers: "):
        list(ask_many(Fallback([provider, other]), prompts(3), checkpoint=path))


def test_an_option_that_comes_in_another_form_or_order_is_the_same(provider: Provider, path: Path, wire: Wire) -> None:
    list(ask_many(provider, prompts(3), checkpoint=path, stop=("a", "b"), seed=1))
    wire.requests.clear()
    list(ask_many(provider, prompts(3), checkpoint=path, seed=1, stop=["a", "b"]))
    assert wire.requests == []


@pytest.mark.parametrize(("change", "told"), OTHERS, ids=lambda value: getattr(value, "__name__", ""))
def test_with_mismatch_ask_those_that_differ_are_asked_anew_and_none_is_lost(
    change: Any, told: str, provider: Provider, path: Path, wire: Wire
) -> None:
    list(ask_many(provider, prompts(4), checkpoint=path))
    other, arguments = change(provider)
    for expected in (["q0", "q1", "q2", "q3"], []):
        wire.requests.clear()
        answers = list(ask_many(other, prompts(4), checkpoint=path, checkpoint_mismatch="ask", **arguments))
        assert [answer.reply for answer in answers] == prompts(4)
        assert asked(wire) == expected
    with pytest.raises(InvalidRequest, match="other questions"):
        list(ask_many(provider, prompts(4), checkpoint=path))
    wire.requests.clear()
    assert len(list(ask_many(provider, prompts(6), checkpoint=path, checkpoint_mismatch="ask"))) == 6
    assert asked(wire) == ["q4", "q5"], "the answers of the first run count for its questions still"


def test_with_mismatch_ask_other_prompts_are_asked_anew(provider: Provider, path: Path, wire: Wire) -> None:
    list(ask_many(provider, prompts(4), checkpoint=path))
    changed = ["q0", "q10", "q2", "q30"]
    for expected in (["q10", "q30"], []):
        wire.requests.clear()
        answers = list(ask_many(provider, changed, checkpoint=path, checkpoint_mismatch="ask"))
        assert [answer.reply for answer in answers] == changed
        assert asked(wire) == expected


@pytest.mark.parametrize("wrong", ["Ask", None, True])
def test_another_mismatch_is_refused_at_the_call(wrong: Any, provider: Provider, path: Path) -> None:
    with pytest.raises(InvalidRequest, match='"refuse" or "ask"'):
        ask_many(provider, prompts(1), checkpoint=path, checkpoint_mismatch=wrong)


def test_a_file_without_a_description_is_read_and_belongs_to_the_first_run_that_goes_on(
    provider: Provider, path: Path, wire: Wire
) -> None:
    path.write_text(OLD)
    answers = list(ask_many(provider, prompts(4), checkpoint=path))
    assert asked(wire) == ["q1", "q3"]
    assert [answer.reply for answer in answers] == prompts(4)
    assert answers[0].reply is not None
    assert answers[0].reply.usage == {"total_tokens": 3}
    assert answers[2].attempts == 2
    with pytest.raises(InvalidRequest, match="model"):
        list(ask_many(provider, prompts(4), checkpoint=path, model="m-2"))
    wire.requests.clear()
    list(ask_many(provider, prompts(4), checkpoint=path, model="m-2", checkpoint_mismatch="ask"))
    assert asked(wire) == prompts(4)


def test_a_file_of_a_newer_format_is_refused_by_its_number(provider: Provider, path: Path) -> None:
    list(ask_many(provider, prompts(2), checkpoint=path))
    path.write_bytes(path.read_bytes().replace(b'"format": 2', b'"format": 3'))
    with pytest.raises(InvalidRequest, match="format: 3 in the file, 2 now"):
        list(ask_many(provider, prompts(2), checkpoint=path))


def test_each_run_describes_itself_once(provider: Provider, path: Path) -> None:
    list(ask_many(provider, prompts(50), checkpoint=path))
    list(ask_many(provider, prompts(99), checkpoint=path))
    list(ask_many(provider, prompts(99), checkpoint=path))
    assert ["asked" in line for line in lines(path)].count(True) == 2


def test_no_secret_is_in_the_file(wire: Wire, path: Path) -> None:
    wire.on(*YLOKH.route, repeating(YLOKH))
    secrets = {"api_key": "sesame-1", "headers": {"X-Api-Key": "sesame-2"}}
    options: dict[str, Any] = {"extra": {"api_key": "sesame-3"}, "password": "sesame-4", "max_tokens": 7}
    with Ylokh(base_url=wire.url, **secrets) as provider:
        list(ask_many(provider, prompts(2), checkpoint=path, **options))
    assert "sesame" not in path.read_text()
    (described,) = (line["asked"] for line in lines(path) if "asked" in line)
    assert described["options"] == {"extra": {"api_key": "***"}, "password": "***", "max_tokens": 7}


def test_what_a_reply_knows_comes_back(path: Path) -> None:
    known: dict[str, Any] = {
        "provider": "ylokh",
        "model": "m-1",
        "finish_reason": "length",
        "usage": {"total_tokens": 3, "details": {"cached": 1}},
        "seconds": 0.25,
        "attempts": 3,
        "first_piece_seconds": 0.125,
        "tool_calls": (ToolCall("call_1", "weather", '{"city": "Berlin"}', {"signature": "s"}), ToolCall("", "f", "{")),
        "reasoning": "because",
        "refusal": "no",
        "logprobs": {"content": [{"token": "a", "logprob": -0.5}]},
        "citations": ["http://a.example"],
        "annotations": [{"type": "url_citation"}],
        "id": "chatcmpl-1",
        "extra": {"audio": {"id": "audio_1"}},
        "headers": CaseInsensitiveDict({"X-Request-Id": "r-1", "X-RateLimit-Remaining-Tokens": "7"}),
    }
    cookie = {"Set-Cookie": "session=sesame"}
    reply = Reply("half \ud83d of a pair", **{**known, "headers": CaseInsensitiveDict({**known["headers"], **cookie})})
    with Checkpoint(path) as checkpoint:
        checkpoint.record(Answer(0, "q0", reply, None, 0.3, 3))
    assert "sesame" not in path.read_text()
    with Checkpoint(path) as checkpoint:
        found = checkpoint.find(Asked(0, "q0"))
    assert found is not None
    assert found.reply == "half \ud83d of a pair"
    assert vars(found.reply) == known
    assert found.reply.headers["x-request-id"] == "r-1"
    assert known.keys() == REPLY_FIELDS.keys()
    named = {*Facts.__annotations__, *Reply.__annotations__}
    assert REPLY_FIELDS.keys() == named, "a checkpoint would lose what a reply knows"


# One writer


@pytest.mark.skipif(os.name == "nt", reason="there are no modes")
def test_the_file_is_its_owners_alone(provider: Provider, path: Path) -> None:
    before = os.umask(0)
    try:
        list(ask_many(provider, prompts(1), checkpoint=path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_batch_on_the_same_file_is_refused_before_it_asks(provider: Provider, path: Path, wire: Wire) -> None:
    first = ask_many(provider, prompts(50), max_workers=1, checkpoint=path)
    next(first)
    refused: list[str] = []

    def second() -> None:
        try:
            list(ask_many(provider, ["other"], checkpoint=path))
        except InvalidRequest as error:
            refused.append(str(error))

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(PATIENCE)
    assert len(refused) == 1
    assert str(path) in refused[0]
    assert "in use" in refused[0]
    assert len(list(first)) == 49
    assert "other" not in [prompt_of(request) for request in wire.requests]
    assert len(list(ask_many(provider, prompts(50), checkpoint=path))) == 50


def test_one_checkpoint_object_is_not_used_by_two_batches_at_once(provider: Provider, path: Path) -> None:
    checkpoint = Checkpoint(path)
    first = ask_many(provider, prompts(20), checkpoint=checkpoint)
    next(first)
    with pytest.raises(InvalidRequest, match="in use"):
        next(ask_many(provider, prompts(20), checkpoint=checkpoint))
    assert len(list(first)) == 19


HOLDING = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from berlin_chat import Ylokh, ask_many
if __name__ == "__main__":
    forked = ProcessPoolExecutor(1, mp_context=get_context("fork")) if sys.argv[3] == "fork" else None
    provider = Ylokh(base_url=sys.argv[1])
    for answer in ask_many(provider, map("q{}".format, range(10**6)), checkpoint=sys.argv[2], executor=forked):
        if answer.index == 8:
            print(*(forked._processes if forked else ()), flush=True)
            sys.stdin.readline()
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize("kind", ["threads", "fork"])
def test_another_process_is_refused_until_the_first_is_dead_although_its_children_live(
    kind: str, provider: Provider, path: Path, wire: Wire
) -> None:
    command = [sys.executable, "-c", HOLDING, wire.url, str(path), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        children = [int(pid) for pid in process.stdout.readline().split()]
        try:
            with pytest.raises(InvalidRequest, match="in use"):
                list(ask_many(provider, prompts(9), checkpoint=path))
            process.kill()
            process.wait(PATIENCE)
            for child in children:
                os.kill(child, 0)  # it lives
            wire.requests.clear()
            assert len(list(ask_many(provider, prompts(9), checkpoint=path))) == 9
            assert not {"q0", "q8"} & set(asked(wire)), "what stands in the file was asked again"
        finally:
            process.kill()
            for child in children:
                os.kill(child, signal.SIGKILL)
    assert bool(children) == (kind == "fork")


@pytest.mark.skipif(os.name == "nt", reason="there is no flock")
def test_a_file_system_without_locks_is_warned_of(
    provider: Provider, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.warns(RuntimeWarning, match="cannot be locked"):
        assert len(list(ask_many(provider, prompts(2), checkpoint=path))) == 2


@pytest.mark.parametrize("make", [deque, tuple, iter, lambda messages: dict(enumerate(messages)).values()])
@pytest.mark.parametrize("has_keys", [False, True])
def test_messages_in_anything_that_can_be_iterated_are_kept_and_found_again(
    make: Callable[[Any], Any], has_keys: bool, provider: Provider, wire: Wire, path: Path
) -> None:
    for _ in range(2):
        prompt = make([{"role": "user", "content": "Hi"}])
        [answer] = ask_many(provider, {"a": prompt} if has_keys else [prompt], checkpoint=path)
        assert answer.error is None
    assert len(wire.asked(*YLOKH.route)) == 1
