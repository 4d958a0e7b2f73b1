"""Balance: who is asked, who is left alone and tried again, and that the load is near the best split."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import pairwise
from typing import Any

import pytest

from berlin_chat import (
    AllProvidersFailed,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Balance,
    Cancelled,
    CancelToken,
    ChatError,
    Fallback,
    InvalidRequest,
    StreamInterrupted,
    Ylokh,
    ask_many,
)
from berlin_chat.server import LocalServer
from test_executors import Across
from test_fallback import Peer, Serve, refuse, serve, silent, unanswered
from test_pool import prompt_of, prompts, repeating
from wire import BERLIN, H2O, PATIENCE, YLOKH, Chunked, Connection, Recorded, Script, wait_for

__all__ = ["serve"]  # the fixture


class Clock:
    """The time that a Balance sees."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("berlin_chat.groups.balance.monotonic", clock)
    return clock


class Gate:
    """A script that answers a question when it is let go."""

    def __init__(self) -> None:
        self.waiting: list[threading.Event] = []

    def __call__(self, request: Recorded, connection: Connection) -> None:
        gate = threading.Event()
        self.waiting.append(gate)
        assert gate.wait(PATIENCE)
        repeating(YLOKH)(request, connection)

    def let_go(self) -> None:
        self.waiting.pop(0).set()


class Turn:
    """A script that another one can stand in for."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def __call__(self, request: Recorded, connection: Connection) -> None:
        self.script(request, connection)


def asking(balance: Balance, prompt: str) -> threading.Thread:
    thread = threading.Thread(target=balance.ask, args=(prompt,))
    thread.start()
    return thread


def counts(*peers: Peer) -> list[int]:
    return [peer.questions for peer in peers]


# Who is asked


def test_each_question_goes_to_the_one_with_the_fewest_under_way(serve: Serve) -> None:
    gates = [Gate(), Gate(), Gate()]
    peers = [serve(YLOKH, gate) for gate in gates]
    balance = Balance([peer.provider for peer in peers])
    threads = []
    for n, expected in enumerate([[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [2, 2, 1]]):
        threads.append(asking(balance, f"q{n}"))
        wait_for(lambda expected=expected: [len(gate.waiting) for gate in gates] == expected)
    gates[0].let_go()
    threads[0].join(PATIENCE)
    gates[0].let_go()
    threads[3].join(PATIENCE)  # now there are 0, 2 and 1
    for expected in ([1, 2, 1], [1, 2, 2], [2, 2, 2]):
        threads.append(asking(balance, "q"))
        wait_for(lambda expected=expected: [len(gate.waiting) for gate in gates] == expected)
    for gate in gates:
        while gate.waiting:
            gate.let_go()
    for thread in threads:
        thread.join(PATIENCE)


def test_those_with_nothing_to_do_take_turns(serve: Serve) -> None:
    peers = [serve(speech, repeating(speech)) for speech in (YLOKH, YLOKH, YLOKH)]
    balance = Balance([peer.provider for peer in peers])
    for _ in range(9):
        assert balance.ask("q") == "q"
    assert counts(*peers) == [3, 3, 3]


@pytest.mark.parametrize("way", ["a reply", "an error", "closed", "garbage", "cancelled", "never begun"])
def test_a_question_counts_until_it_ends_however_it_does(way: str, serve: Serve) -> None:
    def endless(request: Recorded, connection: Connection) -> None:
        Chunked(connection, YLOKH.kind, b"").part(YLOKH.parts(["a"])[0])
        connection.wait_until_client_closes()

    script = {"a reply": repeating(YLOKH), "an error": refuse(500)}.get(way, endless)
    balance = Balance([serve(YLOKH, script).provider])
    token = CancelToken()
    pieces: Any = balance.stream("q", cancel=token)
    if way == "a reply":
        assert "".join(pieces) == "q"
    elif way == "an error":
        with pytest.raises(AllProvidersFailed):
            next(pieces)
    elif way != "never begun":
        assert next(pieces) == "a"
        assert len(balance._members[0].under_way) == 1
        if way == "closed":
            pieces.close()
        elif way == "cancelled":
            token.cancel()
            with pytest.raises(Cancelled):
                next(pieces)
        else:
            del pieces
            gc.collect()
    assert not balance._members[0].under_way


def test_a_question_moves_on_until_its_first_piece_has_arrived(serve: Serve) -> None:
    good = serve(H2O, repeating(H2O))
    balance = Balance([unanswered(), serve(YLOKH, refuse(500)).provider, good.provider])
    reply = balance.ask("q")
    assert (reply, reply.provider) == ("q", "h2o")


def test_a_live_reply_moves_on_too_and_the_log_says_so(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    balance = Balance([serve(YLOKH, refuse(500)).provider, serve(YLOKH, repeating(YLOKH)).provider])
    with balance.open("q") as live:
        assert [event.text for event in live.events()] == ["q"]
    assert "Another provider is asked" in caplog.text


def test_after_the_first_piece_nobody_else_is_asked_and_the_one_that_broke_off_rests(
    serve: Serve, clock: Clock
) -> None:
    def cut(request: Recorded, connection: Connection) -> None:
        Chunked(connection, YLOKH.kind, b"").part(YLOKH.parts(["a", "b"])[0])
        connection.close()

    bad, good = serve(YLOKH, cut), serve(YLOKH, repeating(YLOKH))
    balance = Balance([bad.provider, good.provider])
    with pytest.raises(StreamInterrupted) as caught:
        balance.ask("q")
    assert caught.value.partial == "a"
    assert counts(bad, good) == [1, 0]
    for _ in range(3):
        assert balance.ask("q") == "q"
    assert counts(bad, good) == [1, 3]


def test_if_all_fail_the_error_has_each_ones_own(serve: Serve) -> None:
    balance = Balance([unanswered(), serve(YLOKH, refuse(503)).provider])
    for _ in range(2):
        with pytest.raises(AllProvidersFailed) as caught:
            balance.ask("q")
        assert {type(error) for error in caught.value.errors} == {APIConnectionError, APIStatusError}
        assert caught.value.attempts == 2


def test_a_deadline_holds_for_all_together(serve: Serve) -> None:
    quiet, other = serve(YLOKH, silent), serve(YLOKH, silent)
    balance = Balance([quiet.provider, other.provider])
    with pytest.raises(APITimeoutError):
        balance.ask("q", deadline=0.2)
    assert counts(quiet, other) == [1, 0]


def test_a_cancel_ends_the_question_and_nobody_else_is_asked(serve: Serve) -> None:
    quiet, other = serve(YLOKH, silent), serve(YLOKH, repeating(YLOKH))
    token = CancelToken()
    threading.Timer(0.1, token.cancel).start()
    with pytest.raises(Cancelled):
        Balance([quiet.provider, other.provider]).ask("q", cancel=token)
    assert counts(quiet, other) == [1, 0]


# Who is left alone


def test_one_that_fails_is_left_alone_for_a_time_that_grows_and_is_then_tried_by_one_question(
    serve: Serve, clock: Clock
) -> None:
    gate = Gate()
    turn = Turn(refuse(500))
    bad, good = serve(YLOKH, turn), serve(YLOKH, repeating(YLOKH))
    balance = Balance([bad.provider, good.provider])
    tried = 0
    for rest in (1, 2, 4, 8, 16, 32, 60, 60):
        assert balance.ask("q") == "q"
        tried += 1
        assert bad.questions == tried
        clock.now += rest - 0.01
        for _ in range(3):
            assert balance.ask("q") == "q"
        assert bad.questions == tried, f"it was not left alone for {rest} s"
        clock.now += 0.02
    turn.script = gate
    trying = asking(balance, "try")
    wait_for(lambda: gate.waiting)
    for _ in range(3):
        assert balance.ask("q") == "q"
    assert bad.questions == tried + 1, "more than one question tries it"
    gate.let_go()
    trying.join(PATIENCE)
    turn.script = repeating(YLOKH)
    before = good.questions
    for _ in range(10):
        assert balance.ask("q") == "q"
    assert good.questions - before == 5, "it has come back, and does half of the work"
    turn.script = refuse(500)
    balance.ask("q")
    balance.ask("q")
    clock.now += 1.01
    before = bad.questions
    balance.ask("q")
    assert bad.questions == before + 1, "after a success the rest is short again"


def test_questions_that_fail_together_count_as_one_failure(serve: Serve, clock: Clock) -> None:
    together = threading.Barrier(4)

    def fail_together(request: Recorded, connection: Connection) -> None:
        together.wait(PATIENCE)
        connection.respond(500)

    bad = serve(YLOKH, fail_together)
    balance = Balance([bad.provider])
    for _ in ask_many(balance, prompts(4), max_workers=4):
        pass
    assert bad.questions == 4
    assert balance._members[0].failures == 1
    assert balance._members[0].rests_until == clock.now + 1


def test_if_nobody_is_fit_the_one_whose_rest_ends_first_is_asked(serve: Serve, clock: Clock) -> None:
    turns = [Turn(refuse(500)), Turn(refuse(500))]
    peers = [serve(YLOKH, turn) for turn in turns]
    balance = Balance([peer.provider for peer in peers])
    with pytest.raises(AllProvidersFailed):
        balance.ask("q")
    for turn in turns:
        turn.script = repeating(YLOKH)
    assert balance.ask("q") == "q"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_of_one_question_does_not_speak_against_the_server(status: int, serve: Serve) -> None:
    def some(request: Recorded, connection: Connection) -> None:
        (refuse(status) if prompt_of(request) == "bad" else repeating(YLOKH))(request, connection)

    peers = [serve(YLOKH, some), serve(YLOKH, some)]
    balance = Balance([peer.provider for peer in peers])
    with pytest.raises(AllProvidersFailed):
        balance.ask("bad")
    for _ in range(4):
        assert balance.ask("q") == "q"
    assert counts(*peers) == [3, 3]


def test_a_question_that_a_protocol_cannot_say_does_not_speak_against_the_server(serve: Serve) -> None:
    class Short(Ylokh):
        def payload(self, messages: Any, model: str, options: Any) -> Any:
            if len(messages[0]["content"]) > 5:
                raise InvalidRequest("too long")
            return super().payload(messages, model, options)

    peer = serve(YLOKH, repeating(YLOKH))
    short = Short(base_url=peer.provider.base_url, retries=0)
    balance = Balance([short, peer.provider])
    assert balance.ask("longer than that") == "longer than that"
    assert [member.failures for member in balance._members] == [0, 0]


def test_a_retry_after_is_kept(serve: Serve, clock: Clock) -> None:
    busy = serve(YLOKH, refuse(429, **{"Retry-After": "20"}))
    good = serve(YLOKH, repeating(YLOKH))
    balance = Balance([busy.provider, good.provider])
    balance.ask("q")
    clock.now += 19.9
    balance.ask("q")
    assert busy.questions == 1
    clock.now += 0.2
    balance.ask("q")
    assert busy.questions == 2


class Told:
    """A limiter that notes what it is told."""

    def __init__(self) -> None:
        self.refusals: list[float | None] = []

    def wait(self, sleep: Callable[[float], None]) -> None:
        pass

    def refused(self, retry_after: float | None) -> None:
        self.refusals.append(retry_after)


def test_a_refusal_slows_a_batch_only_if_no_other_server_is_fit(serve: Serve, clock: Clock) -> None:
    busy = [serve(YLOKH, refuse(429, **{"Retry-After": "20"})) for _ in range(2)]
    told = Told()
    with pytest.raises(AllProvidersFailed):
        Balance([peer.provider for peer in busy]).ask("q", limiter=told)
    assert told.refusals == [20.0], "the first could be avoided, the second not"


# Copies


def test_a_copy_counts_for_itself_and_crosses_processes(serve: Serve) -> None:
    peers = [serve(YLOKH, repeating(YLOKH)), serve(BERLIN, repeating(BERLIN))]
    balance = Balance([peer.provider for peer in peers])
    pieces = balance.stream("q")
    next(pieces)
    with closing(pieces):
        copy = pickle.loads(pickle.dumps(balance))
        assert [len(member.under_way) for member in copy._members] == [0, 0]
        assert [provider.name for provider in copy.providers] == ["ylokh", "berlin"]
    answers = list(ask_many(Fallback([balance]), prompts(20), executor=Across(), chunk_size=5))
    assert [answer.reply for answer in answers] == prompts(20)
    assert {answer.reply.provider for answer in answers if answer.reply is not None} == {"ylokh", "berlin"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_of_a_fork_starts_afresh_although_the_lock_was_held(serve: Serve) -> None:
    balance = Balance([serve(YLOKH, repeating(YLOKH)).provider])
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with balance._lock:
            held.set()
            done.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if balance.ask("q", deadline=5) == "q" else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join(PATIENCE)
    assert status == 0


# The load


class OneAtATime:
    """A model that answers one question after the other, each in so many seconds; it can be stopped between two."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.answered: dict[str, float] = {}  # the moments
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.is_dead = False
        self.lock = threading.Lock()
        self._never = threading.Event()

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        prompt = str(messages[-1]["content"])
        assert self.goes_on.wait(PATIENCE)
        with self.lock:
            if self.is_dead:
                raise ChatError("it was killed")
            self._never.wait(self.seconds)
            self.answered[prompt] = time.monotonic()
        yield prompt


SPEEDS = [0.02, 0.04, 0.08, 0.16]


def serving(stack: ExitStack, models: list[OneAtATime]) -> list[LocalServer]:
    return [stack.enter_context(LocalServer(upstream=model)) for model in models]


def test_four_servers_of_different_speed_share_the_load_near_the_best_split() -> None:
    count, models = 600, [OneAtATime(seconds) for seconds in SPEEDS]
    with ExitStack() as stack:
        servers = serving(stack, models)
        balance = stack.enter_context(Balance([server.provider("ylokh", retries=0) for server in servers]))
        answers = list(ask_many(balance, prompts(count), max_workers=12, ordered=False))
    assert sorted(str(answer.reply) for answer in answers) == sorted(prompts(count))
    moments = [list(model.answered.values()) for model in models]
    # By what each can really do on this machine: its shortest times but one in ten.
    speeds = [1 / sorted(later - earlier for earlier, later in pairwise(one))[len(one) // 10] for one in moments]
    best = [speed / sum(speeds) for speed in speeds]
    shares = [len(one) / count for one in moments]
    assert sum(abs(share - good) for share, good in zip(shares, best, strict=True)) / 2 < 0.1, (shares, best)


def test_one_of_four_is_killed_and_comes_back_and_nothing_is_lost() -> None:
    count, models = 500, [OneAtATime(seconds) for seconds in SPEEDS]
    victim = models[0]
    with ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        first = stack.enter_context(LocalServer(port=port, upstream=victim))
        servers = [first, *serving(stack, models[1:])]
        balance = stack.enter_context(Balance([server.provider("ylokh", retries=0) for server in servers]))
        replies = Counter[str]()
        for answer in ask_many(balance, prompts(count), max_workers=12, ordered=False):
            replies[str(answer.reply if answer.error is None else answer.error)] += 1
            if replies.total() == 100:
                victim.goes_on.clear()
            if not victim.goes_on.is_set():
                with victim.lock:
                    victim.is_dead = replies.keys() >= victim.answered.keys()  # none of its replies is half sent
                if victim.is_dead:
                    victim.goes_on.set()
                    first.close()
                    gone = len(victim.answered)
                    back_at = replies.total() + 50
            if victim.is_dead and replies.total() == back_at:
                victim.is_dead = False
                stack.enter_context(LocalServer(port=port, upstream=victim))
    assert replies == Counter(prompts(count)), "a question was lost, or has failed"
    assert gone >= 40
    assert len(victim.answered) - gone > 0.25 * (count - back_at - 100), "it has not come back"
