"""Many questions at once: order, laziness, back pressure, errors, and that nothing is left behind."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from berlin_chat import (
    Answer,
    APIConnectionError,
    APIStatusError,
    Cancelled,
    CancelToken,
    ChatError,
    InvalidRequest,
    Provider,
    ProviderNotWorking,
    Reply,
    Ylokh,
    ask_many,
    stream_many,
)
from berlin_chat.server import LocalServer
from test_resources import needs_proc, sockets_to
from wire import H2O, PATIENCE, SPEECHES, YLOKH, Chunked, Connection, Recorded, Speech, Stopwatch, Wire, speak, wait_for

Make = Callable[..., Provider]


def repeating(speech: Speech) -> Any:
    """Says the question back."""

    def script(request: Recorded, connection: Connection) -> None:
        speak(speech, [prompt_of(request)])(request, connection)

    return script


def prompt_of(request: Recorded) -> str:
    body = request.json
    return str(body.get("prompt") or body.get("inputs") or body["messages"][-1]["content"])


def silent(request: Recorded, connection: Connection) -> None:
    connection.wait_until_client_closes()


def prompts(count: int) -> list[str]:
    return [f"q{n}" for n in range(count)]


def test_every_prompt_is_answered_in_order(speech: Speech, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(speech, repeating(speech))
    answers = list(ask_many(provider, prompts(100), max_workers=8))
    assert [answer.reply for answer in answers] == prompts(100)
    assert [answer.index for answer in answers] == list(range(100))
    assert [answer.prompt for answer in answers] == prompts(100)
    assert all(isinstance(answer.reply, Reply) and answer.error is None for answer in answers)
    assert all(answer.attempts == 1 and 0 < answer.seconds < PATIENCE for answer in answers)
    assert len(wire.connections) <= 8


def test_unordered_answers_come_as_they_are_finished(provider_for: Make) -> None:
    others = threading.Event()

    def first_is_slow(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q0":
            assert others.wait(PATIENCE)
        repeating(YLOKH)(request, connection)

    seen = []
    for answer in ask_many(provider_for(YLOKH, first_is_slow), prompts(20), max_workers=4, ordered=False):
        seen.append(answer.index)
        if len(seen) == 19:
            assert 0 not in seen
            others.set()
    assert seen[-1] == 0
    assert sorted(seen) == list(range(20))


def test_a_slow_first_answer_does_not_stop_the_others_in_order(provider_for: Make) -> None:
    others = threading.Semaphore(0)

    def first_waits(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q0":
            for _ in range(7):
                assert others.acquire(timeout=PATIENCE), "the others were not asked meanwhile"
        else:
            others.release()
        repeating(YLOKH)(request, connection)

    answers = list(ask_many(provider_for(YLOKH, first_waits), prompts(50), max_workers=2))
    assert [answer.index for answer in answers] == list(range(50))


@pytest.mark.parametrize("ordered", [True, False])
def test_prompts_are_read_lazily_and_in_the_callers_thread(ordered: bool, provider_for: Make) -> None:
    taken: list[str] = []
    threads: set[threading.Thread] = set()

    def endless() -> Iterator[str]:
        for number in itertools.count():
            threads.add(threading.current_thread())
            taken.append(f"q{number}")
            yield taken[-1]

    provider = provider_for(YLOKH, repeating(YLOKH))
    for count, _ in enumerate(ask_many(provider, endless(), max_workers=4, ordered=ordered), 1):
        assert len(taken) - count <= 16, "too many prompts were taken ahead"
        if count == 100:
            break
    assert threads == {threading.current_thread()}


def test_nothing_happens_before_the_first_next(provider_for: Make, wire: Wire) -> None:
    before = threading.enumerate()
    ask_many(provider_for(YLOKH, repeating(YLOKH)), iter(prompts(5)))
    stream_many(provider_for(YLOKH, repeating(YLOKH)), iter(prompts(5)))
    assert wire.requests == []
    assert threading.enumerate() == before


def test_an_error_is_an_answer_and_the_others_go_on(provider_for: Make) -> None:
    def some_fail(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q3":
            connection.respond(500, {"error": "bang"})
        else:
            repeating(YLOKH)(request, connection)

    questions: list[Any] = [*prompts(5), "", 7]
    answers = list(ask_many(provider_for(YLOKH, some_fail), questions))
    assert [answer.reply for answer in answers] == ["q0", "q1", "q2", None, "q4", None, None]
    assert [type(answer.error) for answer in answers[3:]] == [
        APIStatusError,
        type(None),
        InvalidRequest,
        InvalidRequest,
    ]


def test_on_error_raise_stops_everything_at_the_first(provider_for: Make, wire: Wire) -> None:
    def one_fails(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q3":
            connection.respond(500, {"error": "bang"})
        else:
            silent(request, connection)

    with pytest.raises(APIStatusError, match="bang"):
        list(ask_many(provider_for(YLOKH, one_fails), prompts(100), max_workers=8, on_error="raise"))
    assert len(wire.requests) <= 16
    assert not ours()


def test_options_reach_every_question(provider_for: Make, wire: Wire) -> None:
    list(ask_many(provider_for(YLOKH, repeating(YLOKH)), prompts(3), model="m-9", temperature=0.1))
    assert {(request.json["model"], request.json["temperature"]) for request in wire.requests} == {("m-9", 0.1)}


def test_a_deadline_is_each_questions_own(provider_for: Make) -> None:
    answers = list(ask_many(provider_for(YLOKH, silent), prompts(4), max_workers=2, deadline=0.1))
    assert all(isinstance(answer.error, TimeoutError) for answer in answers)


@pytest.mark.parametrize(
    "config",
    [
        {"max_workers": 0},
        {"max_workers": 1.5},
        {"rate": "fast"},
        {"rate": 5},
        {"rate": "0/s"},
        {"chunk_size": -1},
        {"on_error": "ignore"},
        {"deadline": -1},
    ],
)
def test_wrong_arguments_are_named_at_the_call(config: dict[str, Any]) -> None:
    (name,) = config
    with pytest.raises(InvalidRequest, match=f"^{name} "):
        ask_many(Ylokh(base_url="http://127.0.0.1:1"), [], **config)


def test_a_provider_without_an_address_is_refused_at_the_call() -> None:
    for many in (ask_many, stream_many):
        with pytest.raises(ProviderNotWorking):
            many(Ylokh(), ["Hi"])


def test_no_prompts_are_no_answers(provider_for: Make) -> None:
    assert list(ask_many(provider_for(YLOKH, repeating(YLOKH)), [])) == []
    assert list(stream_many(provider_for(YLOKH, repeating(YLOKH)), [])) == []


# Leaving


def ours() -> list[threading.Thread]:
    """The threads of batches, races and cleaning up."""
    names = ("berlin_chat", "race", "obtaining", "cleaning up")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def leave_by_break(loop: Iterator[Any], token: CancelToken, wire: Wire) -> None:
    for _ in loop:
        break


def leave_by_exception(loop: Iterator[Any], token: CancelToken, wire: Wire) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in loop:
            raise ZeroDivisionError


def leave_by_close(loop: Any, token: CancelToken, wire: Wire) -> None:
    next(loop)
    loop.close()


def leave_by_cancel(loop: Iterator[Any], token: CancelToken, wire: Wire) -> None:
    with pytest.raises(Cancelled):
        for _ in loop:
            threading.Timer(0.05, token.cancel).start()


def leave_by_garbage(loop: Iterator[Any], token: CancelToken, wire: Wire) -> None:
    next(loop)


LEAVING = [leave_by_break, leave_by_exception, leave_by_close, leave_by_cancel, leave_by_garbage]


@needs_proc
@pytest.mark.parametrize("leave", LEAVING, ids=lambda leave: leave.__name__)
@pytest.mark.parametrize("many", [ask_many, stream_many], ids=lambda many: many.__name__)
def test_leaving_the_loop_ends_what_is_in_flight_at_once(
    many: Any, leave: Any, speech: Speech, provider_for: Make, wire: Wire
) -> None:
    def first_only(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q0":
            repeating(speech)(request, connection)
        else:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            silent(request, connection)

    provider = provider_for(speech, first_only)
    token = CancelToken()
    watch = Stopwatch()
    leave(many(provider, map("q{}".format, itertools.count()), max_workers=8, cancel=token), token, wire)
    assert watch.undisturbed < 2
    gc.collect()
    wait_for(lambda: not ours())  # H2o's cleaning up goes on behind a caller whom it would keep waiting
    made = {f"/conversation/c{n + 1}" for n in range(len(wire.asked("POST", "/conversation")))}
    assert made == {request.path for request in wire.asked("DELETE", "/conversation/.*")}
    provider.close()
    wait_for(lambda: sockets_to(wire) == 0)


def test_a_cancel_before_the_start_asks_nothing(provider_for: Make, wire: Wire) -> None:
    token = CancelToken()
    token.cancel()
    for many in (ask_many, stream_many):
        with pytest.raises(Cancelled):
            list(many(provider_for(YLOKH, repeating(YLOKH)), prompts(3), cancel=token))
    assert wire.requests == []


def test_an_error_of_the_prompts_themselves_comes_through(provider_for: Make) -> None:
    def broken() -> Iterator[str]:
        yield "q0"
        raise ZeroDivisionError

    for many in (ask_many, stream_many):
        with pytest.raises(ZeroDivisionError):
            list(many(provider_for(YLOKH, repeating(YLOKH)), broken()))
    assert not ours()


SCRIPT = """
import sys, itertools
from berlin_chat import H2o, ask_many
print("ready", flush=True)
for answer in ask_many(H2o(base_url=sys.argv[1]), map(str, itertools.count()), max_workers=8):
    print(answer.index, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to another process")
def test_ctrl_c_ends_the_batch_and_leaves_no_conversation() -> None:
    with LocalServer(delay=0.05) as server:
        command = [sys.executable, "-c", SCRIPT, server.url]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert process.stdout.readline() == b"0\n"
        wait_for(lambda: server.conversations)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=PATIENCE)
        assert b"KeyboardInterrupt" in complaint
        assert server.conversations == []


# Memory


def test_memory_does_not_grow_with_the_number_of_prompts(provider_for: Make) -> None:
    def forgetful(request: Recorded, connection: Connection) -> None:
        connection.wire.requests.clear()
        repeating(YLOKH)(request, connection)

    provider = provider_for(YLOKH, forgetful)

    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in ask_many(provider, (f"q{n} " * 5000 for n in range(count)), max_workers=4):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # A prompt and its answer, if they were kept, are 60 kB: 30 MB in all.
    peak(20)
    assert peak(600) - peak(60) < 10_000_000, "answers or prompts pile up"


def test_a_slow_loop_stops_the_taking_of_prompts(provider_for: Make, wire: Wire) -> None:
    loop = ask_many(provider_for(YLOKH, repeating(YLOKH)), prompts(1000), max_workers=2, ordered=False)
    next(loop)
    idle = threading.Event()
    for _ in range(20):
        before = len(wire.requests)
        idle.wait(0.05)
        if len(wire.requests) == before:
            break
    assert len(wire.requests) <= 2 * 2 + 1
    loop.close()


# stream_many


@pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.name)
def test_pieces_come_interleaved_as_they_arrive(speech: Speech, provider_for: Make) -> None:
    together = threading.Barrier(4)

    def in_step(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, speech.kind, b"")
        parts = speech.parts([f"{prompt_of(request)}a", "b", "c"])
        for part in parts[:3]:
            together.wait(PATIENCE)
            body.part(part)
        for part in parts[3:]:
            body.part(part)
        body.end()

    replies = dict.fromkeys(range(4), "")
    order = []
    for index, piece in stream_many(provider_for(speech, in_step), prompts(4), max_workers=4):
        assert isinstance(piece, str)
        replies[index] += piece
        order.append(index)
    assert replies == {n: f"q{n}abc" for n in range(4)}
    assert set(order[:5]) != {order[0]}, "one reply was read to its end before the others"


def test_a_slow_loop_slows_the_readers(provider_for: Make) -> None:
    sent = []

    def flood(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, YLOKH.kind, b"")
        for part in YLOKH.parts(["x" * 10_000] * 5000)[:-1]:
            body.part(part)
            sent.append(1)
        connection.wait_until_client_closes()

    loop = stream_many(provider_for(YLOKH, flood), prompts(2), max_workers=2)
    next(loop)
    idle = threading.Event()
    before = -1
    while before != len(sent):
        before = len(sent)
        idle.wait(0.2)
    assert len(sent) < 10_000, "the readers did not wait for the loop"
    loop.close()
    assert not ours()


def test_stream_many_raises_the_first_error(provider_for: Make) -> None:
    def cut(request: Recorded, connection: Connection) -> None:
        Chunked(connection, YLOKH.kind, b"").part(YLOKH.parts(["a", "b"])[0])
        connection.close()

    provider = provider_for(YLOKH, cut)
    with pytest.raises(ChatError) as caught:
        list(stream_many(provider, prompts(3)))
    assert caught.value.partial == "a"
    pieces = list(stream_many(provider, prompts(3), on_error="return"))
    assert sorted(index for index, piece in pieces if piece == "a") == [0, 1, 2]
    assert sorted(index for index, piece in pieces if isinstance(piece, ChatError)) == [0, 1, 2]


def test_many_providers_in_one_process_do_not_mix(provider_for: Make) -> None:
    first = Ylokh(base_url="http://127.0.0.1:1", retries=0)
    answers = list(ask_many(first, prompts(3)))
    assert all(isinstance(answer.error, APIConnectionError) for answer in answers)
    assert all(isinstance(answer, Answer) for answer in answers)


def test_settings_and_login_happen_once_a_batch(provider_for: Make, wire: Wire) -> None:
    list(ask_many(provider_for(H2O, repeating(H2O)), prompts(40), max_workers=16))
    assert len(wire.asked("POST", "/settings")) == 1


def test_a_progress_bar_counts_answers_and_errors(provider_for: Make, capsys: pytest.CaptureFixture[str]) -> None:
    questions: list[Any] = [*prompts(5), ""]
    list(ask_many(provider_for(YLOKH, repeating(YLOKH)), questions, progress=True))
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "errors=1" in shown


def test_without_tqdm_a_progress_bar_says_what_to_install(provider_for: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="tqdm"):
        ask_many(provider_for(YLOKH, repeating(YLOKH)), [], progress=True)


def test_1000_replies_stream_at_the_same_moment(provider_for: Make) -> None:
    resource = pytest.importorskip("resource", reason="the limit of open files is raised with it")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:  # two sockets a stream, for the server is in this process too
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    together = threading.Barrier(1000)

    def at_once(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, YLOKH.kind, b"")
        first, *rest = YLOKH.parts([prompt_of(request), "!"])
        body.part(first)
        together.wait(60)
        for part in rest:
            body.part(part)
        body.end()

    answers = list(ask_many(provider_for(YLOKH, at_once), prompts(1000), max_workers=1000))
    assert [answer.reply for answer in answers] == [f"{prompt}!" for prompt in prompts(1000)]
