"""Connections, sockets, threads and warnings: how many there are, and that none is left."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from berlin_chat import Berlin, H2o, Provider, Ylokh, get_provider
from berlin_chat.cancellation import Limits
from wire import BERLIN, H2O, PATIENCE, YLOKH, Chunked, Connection, Recorded, Speech, Wire, speak

Make = Callable[..., Provider]


def open_sockets() -> set[str]:
    """The sockets of this process, as the kernel names them."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts sockets with /proc")


def test_200_questions_over_8_threads_use_at_most_8_connections(speech: Speech, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(speech, speak(speech, ["a", "b"]))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(provider.ask, ["Hi"] * 200)) == ["ab"] * 200
    assert len(wire.connections) <= 8


@needs_proc
def test_200_abandoned_generators_leave_no_socket_and_no_warning(
    speech: Speech, provider_for: Make, wire: Wire
) -> None:
    def endless(request: Recorded, connection: Connection) -> None:
        Chunked(connection, speech.kind, b"").part(speech.parts(["a", "b"])[0])
        connection.wait_until_client_closes()

    provider = provider_for(speech, endless)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(200):
            stream = provider.stream("Hi")
            if index % 2:
                assert next(stream) == "a"
        del stream
        gc.collect()
    provider.close()
    for connection in wire.connections:
        assert connection.gone.wait(PATIENCE), "a connection is still open"
    assert provider._transport._live == set()


@needs_proc
def test_close_leaves_no_socket_and_no_thread(speech: Speech, wire: Wire) -> None:
    wire.routes[:] = [*speech.before, (*speech.route, speak(speech, ["a"]))]
    ours = {thread for thread in threading.enumerate() if thread not in wire._threads}
    with get_provider(speech.name, base_url=wire.url, **speech.config) as provider:
        provider.ask("Hi")
        assert sockets_to(wire) == 1
    assert sockets_to(wire) == 0
    left = {thread for thread in threading.enumerate() if thread not in wire._threads}
    assert left == ours


def sockets_to(wire: Wire) -> int:
    """How many connections to the server this process has open, by the kernel's word.

    Those to an earlier server that had the same port, which somebody may still hold, are none of them.
    """
    port = f":{int(wire.url.rpartition(':')[2]):04X}"
    ours = {f":{connection.port:04X}" for connection in wire.connections}
    mine = {name[8:-1] for name in open_sockets()}
    with open("/proc/self/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return sum(row[2].endswith(port) and row[1][-5:] in ours and row[9] in mine for row in rows)


@needs_proc
def test_a_forgotten_provider_closes_its_connections(wire: Wire, speech: Speech) -> None:
    wire.routes[:] = [*speech.before, (*speech.route, speak(speech, ["a"]))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for deadline in (None, 60):
            get_provider(speech.name, base_url=wire.url, **speech.config).ask("Hi", deadline=deadline)
        gc.collect()
    assert sockets_to(wire) == 0


def test_nothing_is_connected_before_the_first_next(speech: Speech, provider_for: Make, wire: Wire) -> None:
    stream = provider_for(speech, speak(speech, ["a"])).stream("Hi")
    assert wire.connections == []
    assert next(stream) == "a"
    assert wire.connections


def test_a_pickle_holds_the_configuration_and_not_the_login(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, speak(BERLIN, ["a"]), model="m-1", headers={"X-Own": "1"})
    provider.ask("Hi")
    pickled = pickle.dumps(provider)
    assert b"token-1" not in pickled
    copy = pickle.loads(pickled)
    assert repr(copy) == repr(provider)
    with copy:
        assert copy.ask("Hi") == "a"
    assert [request.header("token") for request in wire.asked(*BERLIN.route)] == ["token-1", "token-2"]
    assert wire.requests[-1].header("X-Own") == "1"


def test_a_pickle_does_not_hold_a_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERLIN_CHAT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("BERLIN_CHAT_API_KEY", "sesame")
    pickled = pickle.dumps(Ylokh())
    assert b"sesame" not in pickled
    monkeypatch.delenv("BERLIN_CHAT_URL")
    assert pickle.loads(pickled).base_url == "http://127.0.0.1:1"


def test_a_provider_with_a_session_of_the_callers_is_not_pickled() -> None:
    with requests.Session() as session, pytest.raises(TypeError, match="session"):
        pickle.dumps(Ylokh(base_url="http://127.0.0.1:1", session=session))


def ask_in_process(provider: Provider) -> str:
    return provider.ask("Hi")


def test_a_provider_crosses_to_another_process(speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, speak(speech, ["a"]))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(ask_in_process, provider).result(30) == "a"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that it forks with threads is the point
def test_a_provider_is_usable_after_fork_and_its_parent_too(speech: Speech, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(speech, speak(speech, ["a"]))
    assert provider.ask("Hi") == "a"
    child = os.fork()
    if not child:
        os._exit(0 if provider.ask("Hi") == "a" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert provider.ask("Hi") == "a"
    assert len(wire.connections) == 2, "the child has used the parent's connection"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_in_the_loop_leaves_the_parents_conversation_alone(provider_for: Make, wire: Wire) -> None:
    go_on = threading.Event()

    def script(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, H2O.kind, b"")
        first, *rest = H2O.parts(["a", "b"])
        body.part(first)
        assert go_on.wait(PATIENCE)
        for part in rest:
            body.part(part)
        body.end()

    provider = provider_for(H2O, script)
    stream = provider.stream("Hi")
    assert next(stream) == "a"
    child = os.fork()
    if not child:
        stream.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not wire.asked("DELETE", "/conversation/c1")
    go_on.set()
    assert list(stream) == ["b"]


def test_a_session_of_the_callers_is_used_and_not_closed(wire: Wire) -> None:
    wire.routes[:] = [(*YLOKH.route, speak(YLOKH, ["a"]))]
    with requests.Session() as session:
        session.headers["X-Mine"] = "yes"
        with Ylokh(base_url=wire.url, session=session) as provider:
            assert provider.ask("Hi") == "a"
        assert wire.requests[0].header("X-Mine") == "yes"
        session.post(wire.url + "/v1/chat/completions", json={}).close()
    assert len(wire.connections) == 1


def test_cookies_belong_to_the_instance(wire: Wire) -> None:
    wire.routes[:] = [*H2O.before, (*H2O.route, speak(H2O, ["a"]))]
    for _ in range(2):
        with H2o(base_url=wire.url) as provider:
            provider.ask("Hi")
    assert [r.header("Cookie") for r in wire.asked("POST", "/settings")] == [None, None]


def test_a_netrc_does_not_replace_the_key(wire: Wire, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = f"{tmp_path}/netrc"
    with open(netrc, "w") as file:
        file.write("machine 127.0.0.1 login me password other\n")
    os.chmod(netrc, 0o600)
    monkeypatch.setenv("NETRC", netrc)
    wire.routes[:] = [(*YLOKH.route, speak(YLOKH, ["a"]))]
    with Ylokh(base_url=wire.url, api_key="sk-1") as provider:
        provider.ask("Hi")
    assert wire.requests[0].header("Authorization") == "Bearer sk-1"


def test_no_repr_shows_a_secret() -> None:
    provider = Berlin(
        base_url="http://127.0.0.1:1",
        account="me",
        password="sesame-1",
        token="sesame-2",
        proxy="http://me:sesame-3@127.0.0.1:1",
        headers={"Authorization": "sesame-4"},
    )
    assert "sesame" not in repr(provider) + str(provider) + repr(provider._transport)


def test_more_threads_than_pool_size_work(provider_for: Make) -> None:
    provider = provider_for(BERLIN, speak(BERLIN, ["a"]), pool_size=2)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(provider.ask, ["Hi"] * 64)) == ["a"] * 64


@pytest.mark.parametrize("own", [False, True], ids=["", "a session of the caller's"])
def test_only_a_callers_connection_is_given_back_by_another_thread(
    own: bool, provider_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pool may have a lock that this very thread holds."""
    started = []

    class Noted(threading.Thread):
        def start(self) -> None:
            started.append((self.name, self.daemon))
            super().start()

    with requests.Session() as session:
        provider = provider_for(YLOKH, speak(YLOKH, ["a", "b"]), session=session if own else None)
        stream = provider.stream("Hi")
        next(stream)
        monkeypatch.setattr(threading, "Thread", Noted)
        stream.close()
        monkeypatch.undo()
    assert [daemon for _, daemon in started] == ([True] if own else [])


def test_ctrl_c_in_a_request_gives_the_next_one_fresh_connections(provider_for: Make, wire: Wire) -> None:
    provider: Any = provider_for(YLOKH, speak(YLOKH, ["a"]))
    provider.ask("Hi")
    before, pools = provider._transport.session, provider._transport._pools
    before.cookies.set("kept", "yes")
    before.send = interrupted
    with pytest.raises(KeyboardInterrupt):
        provider.ask("Hi")
    assert provider._transport.session is not before
    assert [pool.pool for pool in pools] == [None], "the old ones are still open"
    assert provider.ask("Hi") == "a"
    assert wire.requests[-1].header("Cookie") == "kept=yes"
    assert wire.requests[-1].connection is not wire.requests[0].connection


def test_ctrl_c_leaves_a_session_that_another_thread_has_made_meanwhile(provider_for: Make) -> None:
    provider: Any = provider_for(YLOKH, speak(YLOKH, ["a"]))
    provider.ask("Hi")
    old, transport = provider._transport.session, provider._transport
    transport._distrust(old)
    new = transport.session
    transport._distrust(old)
    assert transport.session is new is not old


def test_ctrl_c_leaves_a_callers_session_alone(provider_for: Make) -> None:
    with requests.Session() as session:
        provider: Any = provider_for(YLOKH, speak(YLOKH, ["a"]), session=session)
        session.send = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            provider.ask("Hi")
        assert provider._transport.session is session


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_a_cookie_is_remembered_once(provider_for: Make) -> None:
    """Else the same one would soon stand in the place of all others that no error may tell."""
    provider: Any = provider_for(YLOKH, speak(YLOKH, ["a"]), headers={"Cookie": "sid=1"})
    for _ in range(3):
        provider.ask("Hi")
    assert list(provider._transport.cookies) == ["sid=1"]
    provider = provider_for(YLOKH, speak(YLOKH, ["a"]))
    provider.ask("Hi")
    assert list(provider._transport.cookies) == []


@pytest.mark.parametrize(
    ("taken", "stopped", "closed"),
    [(True, True, True), (False, True, False), (True, False, False), (False, False, False)],
)
def test_a_connection_that_somebody_is_about_to_shut_down_is_not_used_again(
    taken: bool, stopped: bool, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stops an exchange takes its socket first, and shuts it down a moment later."""
    done: list[str] = []
    raw = SimpleNamespace(close=lambda: done.append("closed"), release_conn=lambda: done.append("given back"))
    with Ylokh("http://127.0.0.1:9") as provider:
        exchange: Any = provider._transport.exchange(Limits(), provider._transport.settings)
        monkeypatch.setattr(exchange, "check", lambda: None)  # it was stopped after that
        exchange._socket[:] = [] if taken else ["socket"]
        exchange._stopped = stopped
        exchange._read_to_end(SimpleNamespace(raw=raw))
    assert done == (["closed", "given back"] if closed else ["given back"])
