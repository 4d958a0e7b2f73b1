"""Connections that do not come about: a cancel, a deadline and Ctrl-C end each of them at once, wherever it hangs."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import urllib3.util.connection
from requests.adapters import HTTPAdapter
from urllib3.exceptions import NameResolutionError, NewConnectionError

from berlin_chat import APIConnectionError, APITimeoutError, ChatError, Provider, Ylokh, get_provider
from berlin_chat.cancellation import Deadline
from berlin_chat.http.connections import Owner
from berlin_chat.http.failures import causes
from berlin_chat.http.transport import _time_left
from wire import PROMISE, YLOKH, Speech, Stopwatch, Wire, ends_in_time, speak

Make = Callable[..., Provider]
Address = tuple[str, int]


@pytest.fixture
def deaf() -> Iterator[Address]:
    """An address where no connection comes about: Linux drops what comes when the queue of a listener is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(listener.getsockname())
        if not hangs(listener.getsockname()):
            pytest.skip("this system takes connections beyond the queue of a listener")
        yield listener.getsockname()


def hangs(address: Address) -> bool:
    with socket.socket() as sock:
        sock.settimeout(0.1)
        try:
            sock.connect(address)
        except TimeoutError:
            return True
        except OSError:
            pass
        return False


@pytest.fixture
def mute() -> Iterator[Address]:
    """An address where a connection comes about, and nobody says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()


HANGING = {
    "connect": {"base_url": "http://{deaf}"},
    "connect, tls": {"base_url": "https://{deaf}"},
    "connect to a proxy": {"base_url": "http://chat.example", "proxy": "http://{deaf}"},
    "connect to a proxy, tls": {"base_url": "https://chat.example", "proxy": "http://{deaf}"},
    "connect to a proxy by tls": {"base_url": "https://chat.example", "proxy": "https://{deaf}"},
    "connect to a proxy for socks": {"base_url": "http://chat.example", "proxy": "socks5h://{deaf}"},
    "connect to a proxy for socks, tls": {"base_url": "https://chat.example", "proxy": "socks5h://{deaf}"},
    "handshake": {"base_url": "https://{mute}"},
    "answer of a proxy": {"base_url": "http://chat.example", "proxy": "http://{mute}"},
    "answer to CONNECT": {"base_url": "https://chat.example", "proxy": "http://{mute}"},
    "handshake with a proxy": {"base_url": "http://chat.example", "proxy": "https://{mute}"},
    "answer of a proxy for socks 4": {"base_url": "http://chat.example", "proxy": "socks4a://{mute}"},
    "answer of a proxy for socks 5": {"base_url": "https://chat.example", "proxy": "socks5h://{mute}"},
}


@pytest.fixture(params=HANGING)
def hanging(request: pytest.FixtureRequest, deaf: Address, mute: Address) -> dict[str, str]:
    """What leads to each place where a connection can hang."""
    places = {"deaf": "{}:{}".format(*deaf), "mute": "{}:{}".format(*mute)}
    return {name: value.format(**places) for name, value in HANGING[request.param].items()}


@pytest.mark.parametrize("own", [False, True], ids=["", "a session of the caller's"])
def test_a_connection_that_does_not_come_about_is_left_at_once(own: bool, hanging: dict[str, str]) -> None:
    with (
        requests.Session() as session,
        Ylokh(**hanging, retries=0, timeout=60, session=session if own else None) as provider,  # type: ignore[arg-type]
    ):
        ends_in_time(lambda deadline, cancel: provider.ask("Hi", deadline=deadline, cancel=cancel), 0.1)


def test_every_provider_leaves_a_connection_that_does_not_come_about(speech: Speech, deaf: Address) -> None:
    address = "http://{}:{}".format(*deaf)
    with get_provider(speech.name, base_url=address, retries=0, timeout=60, **speech.config) as provider:
        ends_in_time(lambda deadline, cancel: provider.ask("Hi", deadline=deadline, cancel=cancel), 0.1)


def test_close_leaves_a_connection_that_does_not_come_about(deaf: Address) -> None:
    provider = Ylokh("http://{}:{}".format(*deaf), retries=0, timeout=60)
    threading.Timer(0.1, provider.close).start()
    watch = Stopwatch()
    with pytest.raises(ChatError, match="cancelled"):
        provider.ask("Hi")
    assert watch.undisturbed < 0.1 + PROMISE


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")  # Python's own way out of a handshake
def test_ctrl_c_leaves_a_connection_that_does_not_come_about(hanging: dict[str, str]) -> None:
    pressed: list[Stopwatch] = []

    def press() -> None:
        pressed.append(Stopwatch())
        os.kill(os.getpid(), signal.SIGINT)

    with Ylokh(**hanging, retries=0, timeout=60) as provider:  # type: ignore[arg-type]
        timer = threading.Timer(0.1, press)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            provider.ask("Hi")
        assert pressed[0].undisturbed < PROMISE
        timer.join()
    gc.collect()  # while the warning is expected


def test_the_timeout_of_connecting_is_kept(deaf: Address) -> None:
    with Ylokh("http://{}:{}".format(*deaf), retries=0, timeout=(0.2, 60)) as provider:
        watch = Stopwatch()
        with pytest.raises(APITimeoutError, match=r"no connection within 0.2 s"):
            provider.ask("Hi")
        assert watch.seconds >= 0.2
        assert watch.undisturbed < 0.2 + PROMISE


def test_a_stop_at_any_moment_of_a_connect_is_not_missed(deaf: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the socket is known and does not connect yet: then there is nothing that could be shut down."""
    with Ylokh("http://{}:{}".format(*deaf), retries=0, timeout=60) as provider:
        attach = Owner.attach

        def stopped(owner: Owner, sock: Any) -> None:
            attach(owner, sock)
            owner.stop()

        monkeypatch.setattr(Owner, "attach", stopped)
        watch = Stopwatch()
        with pytest.raises(ChatError, match="cancelled"):
            provider.ask("Hi")
        assert watch.undisturbed < PROMISE


# Several addresses


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a name stand for addresses, in their order."""
    plain = socket.getaddrinfo

    def let(name: str, *addresses: tuple[str, int]) -> None:
        def find(host: Any, port: Any, *how: Any, **more: Any) -> Any:
            if host != name:
                return plain(host, port, *how, **more)
            return [place for address in addresses for place in plain(*address, 0, socket.SOCK_STREAM)]

        monkeypatch.setattr(socket, "getaddrinfo", find)

    return let


def address_of(wire: Wire) -> Address:
    host, _, port = wire.url.removeprefix("http://").removeprefix("https://").partition(":")
    return host, int(port)


def closed() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()  # type: ignore[no-any-return]


def test_the_next_address_is_tried_where_one_refuses(
    wire: Wire, resolved: Callable[..., None], speech: Speech, provider_for: Make
) -> None:
    provider = provider_for(speech, speak(speech, ["x"]), base_url="http://chat.example")
    resolved("chat.example", ("::1", closed()[1]), closed(), address_of(wire))
    assert provider.ask("Hi") == "x"


def test_the_next_address_is_tried_where_one_hangs_each_with_the_timeout(
    deaf: Address, wire: Wire, resolved: Callable[..., None], provider_for: Make
) -> None:
    provider = provider_for(YLOKH, speak(YLOKH, ["x"]), base_url="http://chat.example", timeout=(0.2, 60))
    resolved("chat.example", deaf, deaf, address_of(wire))
    watch = Stopwatch()
    assert provider.ask("Hi") == "x"
    assert watch.seconds >= 0.4


def test_all_addresses_together_have_the_deadline(deaf: Address, resolved: Callable[..., None]) -> None:
    resolved("chat.example", *[deaf] * 50)
    with Ylokh("http://chat.example", retries=0, timeout=(0.7, 60)) as provider:
        watch = Stopwatch()
        with pytest.raises(APITimeoutError, match="deadline"):
            provider.ask("Hi", deadline=0.8)
        assert watch.undisturbed < 0.8 + PROMISE


def test_a_cancel_ends_the_way_through_many_addresses(deaf: Address, resolved: Callable[..., None]) -> None:
    resolved("chat.example", *[deaf] * 50)
    with Ylokh("http://chat.example", retries=0, timeout=60) as provider:
        ends_in_time(lambda deadline, cancel: provider.ask("Hi", deadline=deadline, cancel=cancel), 0.1)


def test_where_no_address_can_be_connected_to_the_last_says_why(resolved: Callable[..., None]) -> None:
    resolved("chat.example", closed(), closed())
    with Ylokh("http://chat.example", retries=0) as provider, pytest.raises(APIConnectionError, match="refused"):
        provider.ask("Hi")


def test_a_name_that_nobody_knows_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with Ylokh("http://chat.example", retries=0) as provider, pytest.raises(APIConnectionError, match="not known"):
        provider.ask("Hi")
    provider = Ylokh("http://127.0.0.1:9", proxy="socks5h://proxy.example", retries=0)
    with provider, pytest.raises(APIConnectionError, match="See proxy="):
        provider.ask("Hi")


def test_only_a_name_that_nobody_knows_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def cause() -> Any:
        with Ylokh(f"http://127.0.0.1:{closed()[1]}", retries=0) as provider, pytest.raises(ChatError) as caught:
            provider.ask("Hi")
        return next(one for one in causes(caught.value.__cause__) if isinstance(one, NewConnectionError))

    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert not isinstance(cause(), NameResolutionError)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert isinstance(cause(), NameResolutionError)


def test_a_name_that_cannot_be_written_is_one_that_nobody_knows() -> None:
    provider = Ylokh("http://127.0.0.1:9", proxy="http://pr\u00f6xy..example:9", retries=0)
    with provider, pytest.raises(APIConnectionError, match="label empty or too long"):
        provider.ask("Hi")


def test_an_address_of_ipv6_is_connected_to(speech: Speech) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = listener.getsockname()[1]
    with listener, get_provider(speech.name, base_url=f"http://[::1]:{port}", retries=0, **speech.config) as provider:
        threading.Thread(target=lambda: listener.accept()[0].close()).start()
        with pytest.raises(APIConnectionError, match="closed"):
            provider.ask("Hi")


# A handshake has what the connect has left


def test_a_deadline_is_one_for_the_tunnel_and_the_handshake_behind_it(wire: Wire) -> None:
    """The proxy takes its time to answer, and the server behind it says nothing."""

    def late(request: Any, connection: Any) -> None:
        time.sleep(0.8)
        connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        connection.wait_until_client_closes()

    wire.on("CONNECT", ".*", late)
    with Ylokh("https://chat.example", proxy=wire.url, retries=0, timeout=60) as provider:
        watch = Stopwatch()
        with pytest.raises(APITimeoutError, match="deadline"):
            provider.ask("Hi", deadline=1)
        assert watch.undisturbed < 1 + PROMISE


# What somebody else has made of connecting is left as it is


def test_a_callers_own_address_options_and_way_of_connecting_are_kept(
    wire: Wire, provider_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            kwargs["socket_options"] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
            kwargs["source_address"] = ("127.0.0.3", 0)
            super().init_poolmanager(*args, **kwargs)

    with requests.Session() as session:
        own = Own()
        session.mount("http://", own)
        assert provider_for(YLOKH, speak(YLOKH, ["x"]), session=session).ask("Hi") == "x"
        [pool] = own.poolmanager.pools._container.values()
        kept: Any = pool.pool.get()  # type: ignore[union-attr]
        assert kept.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        kept.close()
    peers: list[Any] = []
    plain = urllib3.util.connection.create_connection

    def connect(*args: Any, **kwargs: Any) -> Any:
        sock = plain(*args, **kwargs)
        peers.append(sock.getpeername())
        return sock

    assert wire.connections[0].host == "127.0.0.3"
    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    assert provider_for(YLOKH, speak(YLOKH, ["x"])).ask("Hi") == "x"
    assert peers == [address_of(wire)]


@pytest.mark.parametrize(
    ("deadline", "given", "most"),
    [(None, (3.0, 7.0), (3.0, 7.0)), (None, (None, None), (None, None)), (5.0, (3.0, 7.0), (3.0, 5.0))],
)
def test_a_request_has_the_timeouts_and_no_more_than_is_left_of_the_deadline(
    deadline: float | None, given: Any, most: Any
) -> None:
    exchange: Any = SimpleNamespace(settings=SimpleNamespace(timeout=given), deadline=deadline and Deadline(deadline))
    assert _time_left(exchange) == (pytest.approx(most, abs=0.5) if deadline else most)


def test_a_request_at_the_deadline_has_next_to_no_time() -> None:
    """To urllib3, 0 is no timeout at all."""
    exchange: Any = SimpleNamespace(settings=SimpleNamespace(timeout=(3.0, 7.0)), deadline=Deadline(0))
    assert _time_left(exchange) == (0.001, 0.001)
