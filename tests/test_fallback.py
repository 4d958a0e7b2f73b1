"""Fallback and Race: who is asked, who answers, and that nothing is left of the others."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from berlin_chat import (
    Acytoo,
    AllProvidersFailed,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Berlin,
    Cancelled,
    CancelToken,
    ChatError,
    Fallback,
    H2o,
    InvalidRequest,
    ProtocolError,
    Provider,
    ProviderNotWorking,
    Race,
    RateLimitError,
    Reply,
    StreamInterrupted,
    Ylokh,
    ask_many,
    get_provider,
    race,
    stream_many,
)
from berlin_chat.server import LocalServer
from test_conversations import left
from test_pool import prompts, repeating
from test_resources import needs_proc, sockets_to
from wire import (
    ACYTOO,
    BERLIN,
    H2O,
    PATIENCE,
    YLOKH,
    Chunked,
    Connection,
    Recorded,
    Script,
    Speech,
    Stopwatch,
    Wire,
    log_in,
    speak,
)

#: How late something that happens "at once" may be on a busy machine, in seconds.
AT_ONCE = 0.5
#: A wait that no test sits through, in seconds.
FOREVER = 1000.0


class Peer(NamedTuple):
    """A provider, and the server that it asks."""

    provider: Provider
    wire: Wire

    @property
    def questions(self) -> int:
        return len(self.wire.requests)


Serve = Callable[..., Peer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Makes a provider with a server of its own, which answers its question with a script."""
    with ExitStack() as stack:
        wires: list[Wire] = []

        def make(speech: Speech, script: Script, **config: Any) -> Peer:
            wire = stack.enter_context(Wire([*speech.before, (*speech.route, script)]))
            wires.append(wire)
            config = {"base_url": wire.url, "retries": 0, **speech.config, **config}
            return Peer(stack.enter_context(get_provider(speech.name, **config)), wire)

        yield make
    faults = [fault for wire in wires for fault in wire.faults]
    assert not faults, f"a server's script failed: {faults!r}"


def eventually(happened: Callable[[], Any], otherwise: str) -> None:
    """Waits for what happens in a thread that cannot tell."""
    tick = threading.Event()
    until = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < until, otherwise
        tick.wait(0.01)


def racing() -> list[threading.Thread]:
    """The threads of races and of cleaning up after them."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(("race", "obtaining"))]


def assert_gone(peer: Peer) -> None:
    """The server sees that each of its connections is closed with the provider, and has no conversation left."""
    peer.provider.close()
    for connection in peer.wire.connections:
        assert connection.gone.wait(PATIENCE), "a connection is still open"
    if isinstance(peer.provider, H2o) and peer.wire.asked("POST", "/conversation"):
        eventually(lambda: not left(peer.wire), "a conversation is left")


def unanswered() -> Provider:
    """A provider whose server is not there."""
    return Ylokh(base_url="http://127.0.0.1:1", retries=0)


def silent(request: Recorded, connection: Connection) -> None:
    connection.wait_until_client_closes()


def silent_after_headers(request: Recorded, connection: Connection) -> None:
    Chunked(connection, YLOKH.kind, b"")
    connection.wait_until_client_closes()


def refuse(status: int, **headers: str) -> Script:
    return lambda request, connection: connection.respond(status, {"error": "no"}, headers)


def web_page(request: Recorded, connection: Connection) -> None:
    connection.respond(200, b"<html>Welcome</html>", {"Content-Type": "text/html"})


def cut_before_the_first_piece(request: Recorded, connection: Connection) -> None:
    Chunked(connection, YLOKH.kind, b"")
    connection.close()


def error_event(request: Recorded, connection: Connection) -> None:
    Chunked(connection, YLOKH.kind, b"").part(b'data: {"error": {"message": "overloaded"}}\n\n')
    connection.wait_until_client_closes()


def one_piece_and(then: Callable[[Connection], None], speech: Speech) -> Script:
    def script(request: Recorded, connection: Connection) -> None:
        Chunked(connection, speech.kind, b"").part(speech.parts(["one", " two"])[0])
        then(connection)

    return script


def one_piece_then_silence(speech: Speech) -> Script:
    return one_piece_and(Connection.wait_until_client_closes, speech)


def one_piece_then_cut(speech: Speech) -> Script:
    return one_piece_and(Connection.close, speech)


def in_two_steps(speech: Speech, go_on: threading.Event) -> Script:
    """Says a piece, and another one when the test says so."""

    def script(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, speech.kind, b"")
        first, *rest = speech.parts(["one", " two"])
        body.part(first)
        assert go_on.wait(PATIENCE), "the test never let the server go on"
        for part in rest:
            body.part(part)
        body.end()

    return script


def when(event: threading.Event, script: Script) -> Script:
    """Answers when the test says so."""

    def waiting(request: Recorded, connection: Connection) -> None:
        assert event.wait(PATIENCE), "the test never let the server answer"
        script(request, connection)

    return waiting


# Fallback: who is tried


class Failure(NamedTuple):
    """A way to fail before the first piece."""

    name: str
    make: Callable[[Serve], Provider]
    error: type[ChatError]


def failing(script: Script, **config: Any) -> Callable[[Serve], Provider]:
    return lambda serve: serve(YLOKH, script, **config).provider


def refused_login(serve: Serve) -> Provider:
    peer = serve(BERLIN, silent)
    peer.wire.on("POST", "/api/login", refuse(401))
    return peer.provider


FAILURES = [
    Failure("refused connection", lambda serve: unanswered(), APIConnectionError),
    Failure("401", failing(refuse(401)), AuthenticationError),
    Failure("refused login", refused_login, AuthenticationError),
    Failure("404", failing(refuse(404)), APIStatusError),
    Failure("429", failing(refuse(429)), RateLimitError),
    Failure("500", failing(refuse(500)), APIStatusError),
    Failure("error in a 200", failing(error_event), APIStatusError),
    Failure("web page", failing(web_page), ProtocolError),
    Failure("cut before the first piece", failing(cut_before_the_first_piece), StreamInterrupted),
    Failure("closed before the headers", failing(lambda _, connection: connection.close()), APIConnectionError),
    Failure("timeout", failing(silent, timeout=0.1), APITimeoutError),
    Failure("unknown option", lambda serve: serve(ACYTOO, silent).provider, InvalidRequest),
    Failure("no address", lambda serve: Ylokh(), ProviderNotWorking),
    Failure("no account", lambda serve: Berlin(base_url="http://127.0.0.1:1"), InvalidRequest),
]


@pytest.mark.parametrize("several", [Fallback, Race], ids=lambda several: several.name)
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_after_any_failure_before_the_first_piece_another_one_answers(
    failure: Failure, several: type[Fallback] | type[Race], serve: Serve
) -> None:
    second = serve(YLOKH, speak(YLOKH, ["b"]))
    with several([failure.make(serve), second.provider]) as provider:
        assert provider.ask("Hi", top_p=0.5) == "b"
    assert second.questions == 1
    assert second.wire.requests[0].json["top_p"] == 0.5


def test_the_first_is_retried_before_the_second_is_tried(serve: Serve) -> None:
    first = serve(YLOKH, refuse(500), retries=1)
    second = serve(YLOKH, speak(YLOKH, ["b"]))
    assert Fallback([first.provider, second.provider]).ask("Hi") == "b"
    assert (first.questions, second.questions) == (2, 1)


@pytest.mark.parametrize("several", [Fallback, Race], ids=lambda several: several.name)
def test_when_all_have_failed_their_errors_come_in_the_order_of_the_providers(
    several: type[Fallback] | type[Race], serve: Serve
) -> None:
    with pytest.raises(AllProvidersFailed) as caught:
        several([failure.make(serve) for failure in FAILURES]).ask("Hi", top_p=0.5)
    assert [type(error) for error in caught.value.errors] == [failure.error for failure in FAILURES]
    assert caught.value.provider == several.name
    assert all(str(error) in str(caught.value) for error in caught.value.errors), "people read this"
    assert caught.value.attempts == sum(error.attempts for error in caught.value.errors)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert [str(error) for error in copy.errors] == [str(error) for error in caught.value.errors]


def test_after_the_first_piece_nobody_else_is_tried(speech: Speech, serve: Serve) -> None:
    first = serve(speech, one_piece_then_cut(speech))
    second = serve(YLOKH, speak(YLOKH, ["b"]))
    pieces = []
    with pytest.raises(StreamInterrupted) as caught:
        for piece in Fallback([first.provider, second.provider]).stream("Hi"):
            pieces.append(piece)
    assert "".join(pieces) == "one"
    assert (caught.value.partial, caught.value.provider) == ("one", speech.name)
    assert second.questions == 0


def test_while_the_first_works_the_second_is_not_even_connected_to(speech: Speech, serve: Serve) -> None:
    first = serve(speech, speak(speech, ["a", "b"]))
    second = serve(H2O, speak(H2O, ["c"]))
    fallback = Fallback([first.provider, second.provider])
    assert [fallback.ask("Hi") for _ in range(3)] == ["ab"] * 3
    assert second.wire.connections == []


def test_each_piece_comes_as_soon_as_it_is_sent(speech: Speech, serve: Serve) -> None:
    go_on = threading.Event()
    peer = serve(speech, in_two_steps(speech, go_on))
    stream = Fallback([unanswered(), Race([peer.provider])]).stream("Hi")
    assert next(stream) == "one"
    go_on.set()
    assert "".join(stream) == " two"


def test_the_reply_says_who_has_answered(speech: Speech, serve: Serve) -> None:
    provider = serve(speech, speak(speech, ["a"])).provider
    single = provider.ask("Hi", model="m-1")
    for several in (Fallback([unanswered(), provider]), Race([unanswered(), provider])):
        reply = several.ask("Hi", model="m-1")
        assert isinstance(reply, Reply)
        assert (reply.provider, reply.model) == (speech.name, single.model)
        assert (reply.finish_reason, reply.attempts) == (single.finish_reason, 1)


def test_each_provider_is_asked_with_its_own_model_unless_one_is_given(serve: Serve) -> None:
    first = serve(YLOKH, refuse(500), model="m-first")
    second = serve(YLOKH, speak(YLOKH, ["b"]), model="m-second")
    fallback = Fallback([first.provider, second.provider])
    fallback.ask("Hi")
    fallback.ask("Hi", "m-both")
    assert [request.json["model"] for request in first.wire.requests] == ["m-first", "m-both"]
    assert [request.json["model"] for request in second.wire.requests] == ["m-second", "m-both"]


@pytest.mark.parametrize("several", [Fallback, Race], ids=lambda several: several.name)
def test_an_empty_reply_is_an_answer(several: type[Fallback] | type[Race], serve: Serve) -> None:
    first = serve(YLOKH, speak(YLOKH, []))
    second = serve(YLOKH, silent)
    with several([first.provider, second.provider]) as provider:
        assert list(provider.stream("Hi")) == []
        reply = provider.ask("Hi")
    assert (reply, reply.provider, reply.finish_reason) == ("", "ylokh", "stop")
    if several is Fallback:
        assert second.questions == 0
    assert_gone(second)


# Fallback: how it ends


def test_a_cancel_ends_it_and_nobody_else_is_asked(speech: Speech, serve: Serve) -> None:
    token = CancelToken()
    asked = threading.Event()

    def script(request: Recorded, connection: Connection) -> None:
        asked.set()
        silent(request, connection)

    first, second = serve(speech, script), serve(YLOKH, speak(YLOKH, ["b"]))
    canceller = threading.Thread(target=lambda: asked.wait(PATIENCE) and token.cancel())
    canceller.start()
    with pytest.raises(Cancelled):
        Fallback([first.provider, second.provider]).ask("Hi", cancel=token)
    canceller.join(PATIENCE)
    assert second.questions == 0
    assert_gone(first)


def test_a_cancel_between_two_providers_ends_it(serve: Serve) -> None:
    token = CancelToken()

    def cancel_and_fail(request: Recorded, connection: Connection) -> None:
        token.cancel()
        connection.respond(500)

    first, second = serve(YLOKH, cancel_and_fail), serve(YLOKH, speak(YLOKH, ["b"]))
    with pytest.raises(Cancelled):
        Fallback([first.provider, second.provider]).ask("Hi", cancel=token)
    assert second.questions == 0


def test_a_close_of_the_one_that_is_asked_ends_it(serve: Serve) -> None:
    asked = threading.Event()
    second = serve(YLOKH, speak(YLOKH, ["b"]))

    def script(request: Recorded, connection: Connection) -> None:
        asked.set()
        silent(request, connection)

    first = serve(YLOKH, script)
    closer = threading.Thread(target=lambda: asked.wait(PATIENCE) and first.provider.close())
    closer.start()
    with pytest.raises(Cancelled):
        Fallback([first.provider, second.provider]).ask("Hi")
    closer.join(PATIENCE)
    assert second.questions == 0


def test_the_deadline_is_for_all_providers_together(serve: Serve) -> None:
    def late_failure(request: Recorded, connection: Connection) -> None:
        connection.gone.wait(0.6)
        connection.respond(500)

    first, second = serve(YLOKH, late_failure), serve(YLOKH, one_piece_then_silence(YLOKH))
    watch = Stopwatch()
    with pytest.raises(APITimeoutError, match="deadline") as caught:
        Fallback([first.provider, second.provider]).ask("Hi", deadline=0.7)
    assert watch.seconds >= 0.7
    assert watch.undisturbed < 0.7 + AT_ONCE
    assert caught.value.partial == "one"


@pytest.mark.parametrize(
    ("scripts", "connections"),
    [([silent, speak(YLOKH, ["b"])], [1, 0]), ([refuse(500), silent], [1, 1])],
    ids=["with the first", "with the last"],
)
def test_when_the_time_is_over_nobody_else_is_asked(
    scripts: list[Script], connections: list[int], serve: Serve
) -> None:
    peers = [serve(YLOKH, script) for script in scripts]
    with pytest.raises(APITimeoutError, match="deadline"):
        Fallback([peer.provider for peer in peers]).ask("Hi", deadline=0.2)
    assert [len(peer.wire.connections) for peer in peers] == connections


def test_a_break_closes_the_connection_and_the_conversation(speech: Speech, serve: Serve) -> None:
    peer = serve(speech, one_piece_then_silence(speech))
    for piece in Fallback([unanswered(), peer.provider]).stream("Hi"):
        assert piece == "one"
        break
    assert_gone(peer) if speech is not H2O else eventually(lambda: not left(peer.wire), "a conversation is left")


def test_closing_it_ends_what_is_under_way_and_closes_all(serve: Serve) -> None:
    first, second = serve(YLOKH, refuse(500)), serve(YLOKH, one_piece_then_silence(YLOKH))
    fallback = Fallback([first.provider, second.provider])
    with pytest.raises(Cancelled) as caught:
        for _ in fallback.stream("Hi"):
            threading.Timer(0.02, fallback.close).start()
    assert caught.value.partial == "one"
    for peer in (first, second):
        assert_gone(peer)
        with pytest.raises(Cancelled):
            peer.provider.stream("Hi")
    with pytest.raises(Cancelled):
        fallback.ask("Hi")


# What both have in common with every provider

SEVERAL = [Fallback, Race, lambda providers: Race(providers, stagger=0.5)]
each_kind = pytest.mark.parametrize("several", SEVERAL, ids=["Fallback", "Race", "staggered Race"])


@each_kind
@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": ""},
        {"messages": []},
        {"messages": 7},
        {"messages": [{"role": "user"}]},
        {"messages": "Hi", "deadline": 0},
        {"messages": "Hi", "cancel": "now"},
    ],
    ids=str,
)
def test_wrong_arguments_are_named_at_the_call(wrong: dict[str, Any], several: Any) -> None:
    with pytest.raises(InvalidRequest):
        several([unanswered()]).stream(**wrong)


def test_it_needs_a_provider_and_a_time_to_wait() -> None:
    for several in (Fallback, Race):
        with pytest.raises(InvalidRequest, match="at least one provider"):
            several([])
    for stagger in (-1, "1", None, float("nan")):
        with pytest.raises(InvalidRequest, match="stagger"):
            Race([unanswered()], stagger=stagger)


@each_kind
def test_messages_that_can_be_read_only_once_reach_every_provider(several: Any, serve: Serve) -> None:
    peers = [serve(YLOKH, refuse(500)), serve(YLOKH, refuse(500))]
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    with pytest.raises(AllProvidersFailed):
        several([peer.provider for peer in peers]).ask(iter(messages))
    for peer in peers:
        assert [request.json["messages"] for request in peer.wire.requests] == [messages]


@each_kind
def test_nothing_is_connected_before_the_first_next(several: Any, serve: Serve) -> None:
    peer = serve(YLOKH, speak(YLOKH, ["a"]))
    before = threading.enumerate()
    stream = several([peer.provider]).stream("Hi")
    assert peer.wire.connections == []
    assert threading.enumerate() == before
    assert list(stream) == ["a"]


@each_kind
def test_it_is_a_provider(several: Any, serve: Serve) -> None:
    provider = several([serve(YLOKH, speak(YLOKH, ["a", "b"])).provider])
    assert isinstance(provider, Provider)
    stream = provider.stream([{"role": "user", "content": "Hi"}])
    pieces = []
    with pytest.raises(StopIteration) as end:
        while True:
            pieces.append(next(stream))
    assert end.value.value == "ab" == "".join(pieces)
    assert isinstance(end.value.value, Reply)


@each_kind
def test_create_completion_works_on_an_instance(several: Any, serve: Serve) -> None:
    provider = several([unanswered(), serve(YLOKH, speak(YLOKH, ["a", "b"])).provider])
    assert "".join(provider.create_completion("m-9", "Hi")) == "ab"
    assert list(provider.create_completion("m-9", [{"role": "user", "content": "Hi"}], stream=False)) == ["ab"]
    assert list(provider.create_completion("m-9", "Hi", timeout=3)) == ["a", "b"]  # a setting of each question
    with pytest.raises(InvalidRequest, match="proxy is a setting"):
        provider.create_completion("m-9", "Hi", proxy="http://127.0.0.1:1")


@each_kind
def test_with_closes_all_of_them(several: Any, serve: Serve) -> None:
    peers = [serve(YLOKH, refuse(500)), serve(YLOKH, speak(YLOKH, ["a"]))]
    with several([peer.provider for peer in peers]) as provider:
        assert provider.ask("Hi") == "a"
    for peer in peers:
        assert_gone(peer)


def test_its_repr_shows_the_providers_and_no_secret() -> None:
    berlin = Berlin(base_url="http://127.0.0.1:1", account="me", password="sesame")
    for several in (Fallback([berlin]), Race([berlin])):
        assert repr(several) == f"{type(several).__name__}([{berlin!r}])"
        assert "sesame" not in repr(several)


@each_kind
def test_it_crosses_in_a_pickle_as_configuration(several: Any, serve: Serve) -> None:
    peer = serve(BERLIN, speak(BERLIN, ["a"]))
    provider = several([unanswered(), peer.provider])
    assert provider.ask("Hi") == "a"
    pickled = pickle.dumps(provider)
    assert b"token-1" not in pickled
    copy = pickle.loads(pickled)
    assert repr(copy) == repr(provider)
    assert getattr(copy, "stagger", None) == getattr(provider, "stagger", None)
    with copy:
        assert copy.ask("Hi") == "a"
    assert len(peer.wire.asked("POST", "/api/login")) == 2


@each_kind
def test_threads_may_share_it(several: Any, speech: Speech, serve: Serve) -> None:
    first, second = serve(YLOKH, refuse(500)), serve(speech, repeating(speech))
    provider = several([first.provider, second.provider])
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(provider.ask, prompts(64))) == prompts(64)
    assert len(second.wire.asked("POST", "/api/login")) == (speech is BERLIN)
    assert len(second.wire.connections) <= 32
    eventually(lambda: not racing(), "a thread is left")


@each_kind
def test_a_provider_without_an_address_is_refused_at_the_call_of_ask_many(several: Any) -> None:
    with pytest.raises(ProviderNotWorking):
        ask_many(several([Ylokh(), Acytoo()]), ["Hi"])
    ask_many(several([Ylokh(), unanswered()]), ["Hi"]).close()


class Faulty(Ylokh):
    """A provider with a bug."""

    def stream(self, *args: Any, **options: Any) -> Any:
        raise ZeroDivisionError


@each_kind
def test_a_bug_in_a_provider_is_not_hidden(several: Any, serve: Serve) -> None:
    peer = serve(YLOKH, silent)
    with pytest.raises(ZeroDivisionError):
        several([Faulty(base_url="http://127.0.0.1:1"), peer.provider]).ask("Hi")
    assert_gone(peer)


# Race: who wins


def test_the_first_piece_wins_and_the_losers_are_cancelled_at_once(speech: Speech, serve: Serve) -> None:
    asked, noticed, won = threading.Event(), threading.Event(), threading.Event()

    def loses(request: Recorded, connection: Connection) -> None:
        asked.set()
        silent(request, connection)
        noticed.set()

    loser = serve(speech, loses)
    winner = serve(YLOKH, when(asked, in_two_steps(YLOKH, won)))
    stream = race([loser.provider, winner.provider], "Hi")
    assert next(stream) == "one"
    # The winner has not ended, and the loop does not go on: the loser is gone nevertheless.
    assert noticed.wait(PATIENCE), "the loser's server was not told"
    if speech is H2O:
        eventually(lambda: not left(loser.wire), "a conversation is left")
    won.set()
    assert list(stream) == [" two"]
    eventually(lambda: not racing(), "a thread is left")


@pytest.mark.parametrize("stage", ["settings", "conversation", "question", "after the headers"])
def test_a_loser_leaves_no_conversation_wherever_it_stands(stage: str, serve: Serve) -> None:
    asked, answer = threading.Event(), threading.Event()
    loser = serve(H2O, silent_after_headers if stage == "after the headers" else silent)
    routes = {"settings": "/settings", "conversation": "/conversation"}
    held = next(script for _, path, script in loser.wire.routes if path == routes.get(stage, "/conversation"))

    def holding(request: Recorded, connection: Connection) -> None:
        asked.set()
        if stage in routes:
            assert answer.wait(PATIENCE)
        held(request, connection)

    loser.wire.on("POST", routes.get(stage, "/conversation"), holding)
    winner = serve(YLOKH, when(asked, speak(YLOKH, ["a"])))
    assert Race([loser.provider, winner.provider]).ask("Hi") == "a"
    answer.set()
    eventually(lambda: not racing(), "a thread is left")
    if stage == "settings":
        assert not loser.wire.asked("POST", "/conversation")
    else:
        eventually(lambda: not left(loser.wire), "a conversation is left")


def test_of_many_that_answer_at_the_same_moment_one_wins(serve: Serve) -> None:
    together = threading.Barrier(8)

    def at_once(text: str) -> Script:
        def script(request: Recorded, connection: Connection) -> None:
            together.wait(PATIENCE)
            speak(H2O, [text, text, text])(request, connection)

        return script

    peers = [serve(H2O, at_once(str(number))) for number in range(8)]
    for _ in range(5):
        reply = Race([peer.provider for peer in peers]).ask("Hi")
        assert reply in [str(number) * 3 for number in range(8)]
        together.reset()
    eventually(lambda: not racing(), "a thread is left")
    for peer in peers:
        if peer.wire.asked("POST", "/conversation"):
            eventually(lambda peer=peer: not left(peer.wire), "a conversation is left")


def test_one_that_has_failed_does_not_end_the_race(serve: Serve) -> None:
    failed = threading.Event()

    def fails(request: Recorded, connection: Connection) -> None:
        connection.respond(500)
        failed.set()

    first, second = serve(YLOKH, fails), serve(YLOKH, when(failed, speak(YLOKH, ["b"])))
    assert Race([first.provider, second.provider]).ask("Hi") == "b"


def test_a_silent_loser_keeps_nobody_waiting(speech: Speech, serve: Serve) -> None:
    loser, winner = serve(speech, silent), serve(YLOKH, speak(YLOKH, ["a", "b"]))
    watch = Stopwatch()
    stream = race([loser.provider, winner.provider], "Hi")
    assert next(stream)
    assert watch.undisturbed < AT_ONCE, "the first piece came late"
    list(stream)
    assert watch.undisturbed < 2 * AT_ONCE, "the end came late"


@pytest.fixture
def deaf_url() -> Iterator[str]:
    """The address of a server that takes no more connections and refuses none: connecting lasts until its timeout."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse where the backlog is full")
def test_a_loser_that_is_still_connecting_keeps_nobody_waiting(deaf_url: str, serve: Serve) -> None:
    loser = Ylokh(base_url=deaf_url, timeout=(2.0, 2.0), retries=0)
    winner = serve(YLOKH, speak(YLOKH, ["a"]))
    watch = Stopwatch()
    stream = race([loser, winner.provider], "Hi")
    assert next(stream) == "a"
    assert watch.undisturbed < AT_ONCE, "the first piece came late"
    list(stream)
    assert watch.undisturbed < 2 * AT_ONCE, "the end came late"
    eventually(lambda: not racing(), "a thread is left after its connect timeout")


def test_a_winner_that_breaks_later_is_an_error_and_nobody_else_is_tried(speech: Speech, serve: Serve) -> None:
    winner, reserve = serve(speech, one_piece_then_cut(speech)), serve(YLOKH, speak(YLOKH, ["b"]))
    with pytest.raises(StreamInterrupted) as caught:
        Race([winner.provider, reserve.provider], stagger=FOREVER).ask("Hi")
    assert (caught.value.partial, caught.value.provider) == ("one", speech.name)
    assert reserve.questions == 0


def test_errors_come_in_the_order_of_the_providers_whoever_failed_first(serve: Serve) -> None:
    failed = threading.Event()

    def fails(request: Recorded, connection: Connection) -> None:
        connection.respond(403)
        failed.set()

    first, second = serve(YLOKH, when(failed, refuse(500))), serve(YLOKH, fails)
    with pytest.raises(AllProvidersFailed) as caught:
        Race([first.provider, second.provider]).ask("Hi")
    assert [error.status for error in caught.value.errors] == [500, 403]


# Race: the stagger


def test_the_next_one_starts_only_after_so_much_silence(serve: Serve) -> None:
    moments: dict[str, float] = {}

    def noting(name: str, script: Script) -> Script:
        def noted(request: Recorded, connection: Connection) -> None:
            moments[name] = time.monotonic()
            script(request, connection)

        return noted

    first = serve(YLOKH, noting("first", silent))
    second = serve(YLOKH, noting("second", silent))
    third = serve(YLOKH, noting("third", speak(YLOKH, ["c"])))
    providers = [first.provider, second.provider, third.provider]
    started = time.monotonic()
    assert Race(providers, stagger=0.3).ask("Hi") == "c"
    assert moments["first"] - started < 0.3
    assert 0.3 <= moments["second"] - started < 0.3 + AT_ONCE
    assert 0.6 <= moments["third"] - started < 0.6 + AT_ONCE
    for peer in (first, second):
        assert_gone(peer)


def test_while_the_first_is_quick_the_next_one_is_not_asked(serve: Serve) -> None:
    first, second = serve(YLOKH, speak(YLOKH, ["a"])), serve(YLOKH, silent)
    assert Race([first.provider, second.provider], stagger=FOREVER).ask("Hi") == "a"
    assert second.wire.connections == []


def test_after_the_first_piece_no_silence_starts_the_next_one(serve: Serve) -> None:
    def pausing(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, YLOKH.kind, b"")
        for part in YLOKH.parts(["a", "b"]):
            body.part(part)
            connection.gone.wait(0.3)
        body.end()

    first, second = serve(YLOKH, pausing), serve(YLOKH, silent)
    assert Race([first.provider, second.provider], stagger=0.2).ask("Hi") == "ab"
    assert second.wire.connections == []


def test_the_next_one_starts_at_once_when_the_first_has_failed(serve: Serve) -> None:
    second = serve(YLOKH, speak(YLOKH, ["b"]))
    watch = Stopwatch()
    providers = [unanswered(), Ylokh(), serve(YLOKH, refuse(500)).provider, second.provider]
    assert race(providers, "Hi", stagger=FOREVER).send(None) == "b"
    assert watch.undisturbed < 2 * AT_ONCE


def test_the_slow_first_may_still_win_after_the_next_one_has_started(serve: Serve) -> None:
    second_asked = threading.Event()

    def script(request: Recorded, connection: Connection) -> None:
        second_asked.set()
        silent(request, connection)

    first, second = serve(YLOKH, when(second_asked, speak(YLOKH, ["a"]))), serve(YLOKH, script)
    assert Race([first.provider, second.provider], stagger=0.05).ask("Hi") == "a"
    assert_gone(second)


def test_with_a_stagger_the_deadline_is_for_all_together(serve: Serve) -> None:
    peers = [serve(YLOKH, silent), serve(YLOKH, silent), serve(YLOKH, silent)]
    watch = Stopwatch()
    with pytest.raises(APITimeoutError, match="deadline"):
        Race([peer.provider for peer in peers], stagger=0.25).ask("Hi", deadline=0.4)
    assert watch.seconds >= 0.4
    assert watch.undisturbed < 0.4 + AT_ONCE
    assert peers[2].wire.connections == []


# Race: leaving it


def cancel_it(loop: Iterator[str], provider: Provider, token: CancelToken) -> None:
    threading.Timer(0.05, token.cancel).start()
    with pytest.raises(Cancelled):
        list(loop)


def close_the_providers(loop: Iterator[str], provider: Provider, token: CancelToken) -> None:
    threading.Timer(0.05, provider.close).start()
    with pytest.raises(Cancelled):
        list(loop)


def miss_the_deadline(loop: Iterator[str], provider: Provider, token: CancelToken) -> None:
    with pytest.raises(APITimeoutError, match="deadline"):
        list(loop)


def break_out(loop: Iterator[str], provider: Provider, token: CancelToken) -> None:
    for _ in loop:
        break


def fail_in_the_loop(loop: Iterator[str], provider: Provider, token: CancelToken) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in loop:
            raise ZeroDivisionError


def close_the_generator(loop: Any, provider: Provider, token: CancelToken) -> None:
    next(loop)
    loop.close()


def forget_it(loop: Iterator[str], provider: Provider, token: CancelToken) -> None:
    next(loop)


BEFORE = [cancel_it, close_the_providers, miss_the_deadline]
AFTER = [*BEFORE, break_out, fail_in_the_loop, close_the_generator, forget_it]


@needs_proc
@pytest.mark.parametrize("stagger", [0.0, 0.02], ids=["", "staggered"])
@pytest.mark.parametrize(
    ("leave", "started"),
    [*((leave, False) for leave in BEFORE), *((leave, True) for leave in AFTER)],
    ids=lambda value: value.__name__ if callable(value) else "after a piece" if value else "before a piece",
)
def test_leaving_a_race_leaves_nothing_behind(
    leave: Any, started: bool, stagger: float, speech: Speech, serve: Serve
) -> None:
    threads = set(threading.enumerate())
    scripts = [silent, silent_after_headers, one_piece_then_silence(speech) if started else silent]
    peers = [serve(speech, script) for script in scripts]
    provider, token = Race([peer.provider for peer in peers], stagger), CancelToken()
    deadline = 0.3 if leave is miss_the_deadline else None
    watch = Stopwatch()
    leave(provider.stream("Hi", cancel=token, deadline=deadline), provider, token)
    assert watch.undisturbed < (deadline or 0.1) + 2 * AT_ONCE
    gc.collect()
    eventually(lambda: not racing(), "a thread is left")
    assert not token._callbacks, "the token still knows the race"
    provider.close()
    for peer in peers:
        assert_gone(peer)
        # The server sees a connection end when it is shut down, a moment before its thread has closed it.
        eventually(lambda peer=peer: sockets_to(peer.wire) == 0, "a socket stays open")
        threads |= {peer.wire._acceptor, *peer.wire._threads}
    eventually(lambda: set(threading.enumerate()) <= threads, "a thread is left")


SCRIPT = """
import sys
from berlin_chat import H2o, Race
Race([H2o(base_url=url) for url in sys.argv[1:]]).ask("Hi")
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to another process")
def test_ctrl_c_ends_a_race_and_leaves_no_conversation() -> None:
    with LocalServer(delay=FOREVER) as first, LocalServer(delay=FOREVER) as second:
        command = [sys.executable, "-c", SCRIPT, first.url, second.url]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        eventually(lambda: first.conversations and second.conversations, "the race has not begun")
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=PATIENCE)
        assert b"KeyboardInterrupt" in complaint
        assert (first.conversations, second.conversations) == ([], [])


def test_a_cancel_before_the_start_asks_nobody(serve: Serve) -> None:
    peers = [serve(YLOKH, speak(YLOKH, ["a"])), serve(YLOKH, speak(YLOKH, ["a"]))]
    token = CancelToken()
    token.cancel()
    for several in (Fallback, Race):
        with pytest.raises(Cancelled):
            several([peer.provider for peer in peers]).ask("Hi", cancel=token)
    assert [peer.questions for peer in peers] == [0, 0]


def test_one_that_was_closed_does_not_spoil_the_race_for_the_others(serve: Serve) -> None:
    first, second = serve(YLOKH, silent), serve(YLOKH, speak(YLOKH, ["b"]))
    first.provider.close()
    assert Race([first.provider, second.provider]).ask("Hi") == "b"


# Groups are providers


@each_kind
def test_a_group_has_all_that_a_provider_has(several: Any, serve: Serve) -> None:
    group = several([serve(YLOKH, speak(YLOKH, ["a"])).provider])
    for name in dir(Provider):
        if not name.startswith("_"):
            assert hasattr(group, name), name
    assert (group.base_url, group.model, group.url, group.working) == (None, "", "", False)
    assert vars(group).keys() >= vars(Provider(base_url="http://127.0.0.1:1")).keys()


@each_kind
def test_a_group_that_was_closed_refuses_at_the_call(several: Any, serve: Serve) -> None:
    group = several([serve(YLOKH, speak(YLOKH, ["a"])).provider])
    group.close()
    with pytest.raises(Cancelled, match="closed"):
        group.stream("Hi")


@each_kind
def test_a_group_without_any_address_is_refused_at_the_call(several: Any) -> None:
    with pytest.raises(ProviderNotWorking):
        several([Ylokh(), Berlin()]).stream("Hi")


def test_classes_and_names_are_providers_too(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = serve(YLOKH, speak(YLOKH, ["a"]))
    monkeypatch.setenv("BERLIN_CHAT_URL", peer.wire.url)
    for providers in ([Ylokh], ["ylokh"], [Ylokh, "acytoo", peer.provider]):
        for several in (Fallback, Race):
            with several(providers) as group:
                assert type(group.providers[0]) is Ylokh
                if len(providers) == 1:
                    assert group.ask("Hi") == "a"


@pytest.mark.parametrize(
    "wrong", ["ylokh", Ylokh, 5, None, [5], ["nobody"], [None], [CancelToken], []], ids=lambda wrong: repr(wrong)[:20]
)
@pytest.mark.parametrize("several", [Fallback, Race], ids=lambda several: several.name)
def test_what_is_no_provider_is_refused_where_the_group_is_made(several: Any, wrong: Any) -> None:
    with pytest.raises(InvalidRequest):
        several(wrong)


# All together


def test_races_and_fallbacks_nest(serve: Serve) -> None:
    losers = [serve(YLOKH, refuse(500)), serve(BERLIN, refuse(500))]
    reserve = serve(H2O, speak(H2O, ["c"]))
    in_front = Race([peer.provider for peer in losers])
    reply = Fallback([in_front, reserve.provider]).ask("Hi")
    assert (reply, reply.provider) == ("c", "h2o")
    with pytest.raises(AllProvidersFailed) as caught:
        Race([Fallback([unanswered()]), Fallback([unanswered(), in_front])]).ask("Hi")
    assert [type(error) for error in caught.value.errors] == [AllProvidersFailed, AllProvidersFailed]
    assert not left(reserve.wire)
    eventually(lambda: not racing(), "a thread is left")


def test_a_race_in_a_fallback_is_cancelled_with_it(serve: Serve) -> None:
    peers = [serve(H2O, silent), serve(BERLIN, silent)]
    reserve = serve(YLOKH, speak(YLOKH, ["c"]))
    token = CancelToken()
    threading.Timer(0.1, token.cancel).start()
    with pytest.raises(Cancelled):
        Fallback([Race([peer.provider for peer in peers]), reserve.provider]).ask("Hi", cancel=token)
    assert reserve.questions == 0
    eventually(lambda: not racing(), "a thread is left")


def many(serve: Serve, speech: Speech) -> list[Provider]:
    """Ways to stand before a provider that answers."""
    good = serve(speech, repeating(speech)).provider
    return [
        Fallback([unanswered(), good]),
        Race([serve(YLOKH, silent).provider, good]),
        Race([serve(YLOKH, silent).provider, good], stagger=0.01),
        Fallback([Race([unanswered(), serve(YLOKH, refuse(500)).provider]), good]),
    ]


def test_both_work_in_ask_many(speech: Speech, serve: Serve) -> None:
    for provider in many(serve, speech):
        answers = list(ask_many(provider, prompts(20), max_workers=4))
        assert [answer.reply for answer in answers] == prompts(20)
        assert {answer.reply.provider for answer in answers if answer.reply is not None} == {speech.name}
    eventually(lambda: not racing(), "a thread is left")


def test_both_work_in_stream_many(speech: Speech, serve: Serve) -> None:
    for provider in many(serve, speech):
        replies = dict.fromkeys(range(20), "")
        for index, piece in stream_many(provider, prompts(20), max_workers=4):
            assert isinstance(piece, str)
            replies[index] += piece
        assert list(replies.values()) == prompts(20)
    eventually(lambda: not racing(), "a thread is left")


def test_in_ask_many_the_failure_of_all_is_an_answer(serve: Serve) -> None:
    provider = Fallback([serve(YLOKH, refuse(500)).provider, serve(YLOKH, refuse(404)).provider])
    for answer in ask_many(provider, prompts(3)):
        assert isinstance(answer.error, AllProvidersFailed)
        assert [error.status for error in answer.error.errors] == [500, 404]
        assert answer.attempts == 2


@each_kind
def test_leaving_ask_many_ends_its_races(several: Any, serve: Serve) -> None:
    def first_only(request: Recorded, connection: Connection) -> None:
        (repeating(H2O) if request.json["inputs"] == "q0" else silent)(request, connection)

    peers = [serve(H2O, silent), serve(H2O, first_only)] if several is not Fallback else [serve(H2O, first_only)]
    provider = several([unanswered(), *(peer.provider for peer in peers)])
    for answer in ask_many(provider, prompts(100), max_workers=4):
        assert answer.reply == "q0"
        break
    eventually(lambda: not racing(), "a thread is left")
    provider.close()
    for peer in peers:
        assert_gone(peer)


@pytest.mark.parametrize("several", [Fallback, Race], ids=lambda several: several.name)
def test_a_refusal_slows_the_whole_batch(several: type[Fallback] | type[Race], serve: Serve) -> None:
    moments: list[float] = []
    refused: list[float] = []

    def first_is_refused(request: Recorded, connection: Connection) -> None:
        moments.append(time.monotonic())
        if not refused:
            refused.append(moments[-1])
            connection.respond(429, {"error": "slowly"}, {"Retry-After": "1"})
        else:
            connection.gone.wait(0.05)
            repeating(YLOKH)(request, connection)

    provider = several([serve(YLOKH, first_is_refused, retries=2).provider])
    for _ in ask_many(provider, map("q{}".format, itertools.count()), max_workers=2, ordered=False):
        if time.monotonic() - refused[0] > 0.95:
            break
    early = [moment for moment in moments if 0.3 < moment - refused[0] < 0.9]
    assert not early, "another thread asked during the pause"


def test_the_embedded_server_sees_a_race_from_begin_to_end() -> None:
    with LocalServer(delay=5) as slow, LocalServer() as fast:
        providers = [slow.provider("h2o"), fast.provider("h2o"), slow.provider("berlin")]
        with Race(providers) as provider:
            assert provider.ask("Hi").endswith("Hi")
        for server in (slow, fast):
            eventually(lambda server=server: not server.conversations, "a conversation is left")


def test_a_login_that_a_race_cuts_off_is_made_the_next_time(serve: Serve) -> None:
    asked = threading.Event()
    loser = serve(BERLIN, speak(BERLIN, ["b"]))

    def first_hangs(request: Recorded, connection: Connection) -> None:
        if asked.is_set():
            log_in(request, connection)
        else:
            asked.set()
            silent(request, connection)

    loser.wire.on("POST", "/api/login", first_hangs)
    winner = serve(YLOKH, when(asked, speak(YLOKH, ["a"])))
    assert Race([loser.provider, winner.provider]).ask("Hi") == "a"
    assert loser.provider.ask("Hi") == "b"
