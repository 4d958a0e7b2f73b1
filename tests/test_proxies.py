"""Proxies as they are: tinyproxy for HTTP and CONNECT, microsocks for SOCKS5, each a process of its own.

They are packages of Debian's, and the tests are skipped where one is missing; in CI it may not be.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from berlin_chat import (
    APIConnectionError,
    APITimeoutError,
    Cancelled,
    CancelToken,
    ChatError,
    InvalidRequest,
    Provider,
    StreamInterrupted,
    Ylokh,
)
from tls import Authority, Secure
from wire import (
    H2O,
    PATIENCE,
    PROMISE,
    YLOKH,
    Chunked,
    Connection,
    Recorded,
    Script,
    Speech,
    Stopwatch,
    Wire,
    ends_in_time,
    speak,
    wait_for,
)

Make = Callable[..., Provider]

USER = "me"
#: Each proxy's password; tinyproxy takes few characters.
PASSWORDS = {"http": "open-sesame.9", "socks5h": "open:se%same@9"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Proxy:
    """A proxy's process.

    Attributes:
        url: its address, without a password.
        given: its address as a caller gives it.
        scheme: how it is spoken to.
    """

    def __init__(self, scheme: str, command: list[str], port: int, log: Path, secret: bool) -> None:
        self.scheme = scheme
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.given = self.url.replace("://", f"://{USER}:{quote(PASSWORDS[scheme], safe='')}@") if secret else self.url
        self._log = log
        with open(log, "wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file)
        wait_for(self._is_there)

    def _is_there(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} is missing: .ci/run installs it")
    return found or pytest.skip(f"{name} is missing: apt-get install {name}")  # type: ignore[return-value]


def started(kind: str, folder: Path) -> Proxy:
    """Starts a proxy: ``http`` or ``socks5h``, and with ``+ password`` one that wants a password."""
    scheme, _, secret = kind.partition(" + ")
    port, log = free_port(), folder / "proxy.log"
    if scheme.startswith("socks"):
        auth = ["-u", USER, "-P", PASSWORDS[scheme]] if secret else []
        command = [program("microsocks"), "-i", "127.0.0.1", "-p", str(port), *auth]
    else:
        config = folder / "tinyproxy.conf"
        lines = [f"Port {port}", "Listen 127.0.0.1", "MaxClients 50", "Timeout 600", "LogLevel Info"]
        lines += [f"BasicAuth {USER} {PASSWORDS[scheme]}"] if secret else []
        config.write_text("\n".join(lines) + "\n")
        command = [program("tinyproxy"), "-d", "-c", str(config)]
    return Proxy(scheme, command, port, log, bool(secret))


KINDS = ["http", "http + password", "socks5h", "socks5h + password"]


@pytest.fixture(scope="module", params=KINDS)
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Each kind of proxy in turn."""
    made = started(request.param, tmp_path_factory.mktemp("proxy"))
    yield made
    made.kill()


@pytest.fixture
def through(proxy: Proxy, provider_for: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes providers that ask through the proxy.

    tinyproxy closes each connection behind its answer without having said so: the next request may come to its end.
    """
    monkeypatch.setattr("berlin_chat.http.retries.FIRST_WAIT", 0.01)
    return lambda speech, script, **config: provider_for(
        speech, script, **{"proxy": proxy.given, "retries": 5, **config}
    )


def failing(provider: Provider, **options: Any) -> ChatError:
    with pytest.raises(ChatError) as caught:
        provider.ask("Hi", **options)
    return caught.value


# Every provider through every proxy


def in_two(speech: Speech, go_on: threading.Event) -> Script:
    """Says one piece, and the rest when it is told to."""

    def script(request: Recorded, connection: Connection) -> None:
        parts = speech.parts(["one ", "two"])
        body = Chunked(connection, speech.kind, b"")
        body.part(parts[0] + (b"\n" if speech.name == "berlin" else b""))
        assert go_on.wait(PATIENCE)
        for part in parts[1:]:
            body.part(part)
        body.end()

    return script


def silent_after(speech: Speech) -> Script:
    """Says one piece, and then nothing until the client goes."""

    def script(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, speech.kind, b"")
        body.part(speech.parts(["one ", "two"])[0] + (b"\n" if speech.name == "berlin" else b""))
        connection.wait_until_client_closes()

    return script


def test_a_reply_comes_piece_by_piece_through_a_proxy(speech: Speech, through: Make) -> None:
    go_on = threading.Event()
    provider = through(speech, in_two(speech, go_on))
    for _ in range(2):  # the second time over connections that were kept
        go_on.clear()
        pieces = provider.stream("Hi")
        assert next(pieces) == "one "
        go_on.set()
        assert "".join(pieces) == "two"


def test_a_cancel_ends_a_reply_through_a_proxy_at_once(speech: Speech, through: Make) -> None:
    provider = through(speech, silent_after(speech), timeout=60)
    token = CancelToken()
    pieces = provider.stream("Hi", cancel=token)
    assert next(pieces) == "one "
    begun: list[Stopwatch] = []
    timer = threading.Timer(0.05, lambda: (begun.append(Stopwatch()), token.cancel()))
    timer.start()
    with pytest.raises(Cancelled) as caught:
        next(pieces)
    assert begun[0].undisturbed < PROMISE
    assert caught.value.partial == "one "
    timer.join()


def test_a_deadline_is_kept_through_a_proxy(speech: Speech, through: Make) -> None:
    provider = through(speech, silent_after(speech), timeout=60)
    watch, due = Stopwatch(), 1.2 if speech is H2O else 0.4  # it asks several times before the first piece comes
    error = failing(provider, deadline=due)
    assert isinstance(error, APITimeoutError)
    assert error.partial == "one "
    assert watch.undisturbed < due + PROMISE


@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_that_is_killed_in_the_middle_of_a_reply_interrupts_it(
    kind: str, speech: Speech, provider_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berlin_chat.http.retries.FIRST_WAIT", 0.01)
    mortal = started(kind, tmp_path)
    try:
        provider = provider_for(speech, silent_after(speech), proxy=mortal.given, timeout=60, retries=5)
        pieces = provider.stream("Hi")
        assert next(pieces) == "one "
        mortal.kill()
        with pytest.raises(StreamInterrupted) as caught:
            next(pieces)
        assert caught.value.partial == "one "
        provider.close()
    finally:
        mortal.kill()


# TLS through a proxy


def test_a_reply_behind_tls_comes_piece_by_piece_through_a_proxy(
    speech: Speech, proxy: Proxy, make_secure: Make
) -> None:
    go_on = threading.Event()
    provider = make_secure(speech, in_two(speech, go_on), proxy=proxy.given)
    pieces = provider.stream("Hi")
    assert next(pieces) == "one "
    go_on.set()
    assert "".join(pieces) == "two"


def test_a_certificate_is_checked_through_a_proxy(proxy: Proxy, make_secure: Make) -> None:
    error = failing(make_secure(YLOKH, speak(YLOKH, ["x"]), proxy=proxy.given, verify=True))
    assert isinstance(error, APIConnectionError)
    assert "certificate verify failed" in str(error)


def test_a_client_shows_its_certificate_through_a_proxy(proxy: Proxy, authority: Authority, make_secure: Make) -> None:
    both = authority.client()[2]
    provider = make_secure(YLOKH, speak(YLOKH, ["x"]), authority.demanding(), cert=both, proxy=proxy.given)
    assert provider.ask("Hi") == "x"


def test_a_cancel_ends_a_reply_behind_tls_through_a_proxy_at_once(proxy: Proxy, make_secure: Make) -> None:
    provider = make_secure(YLOKH, silent_after(YLOKH), proxy=proxy.given, timeout=60)
    token = CancelToken()
    pieces = provider.stream("Hi", cancel=token)
    assert next(pieces) == "one "
    begun: list[Stopwatch] = []
    timer = threading.Timer(0.05, lambda: (begun.append(Stopwatch()), token.cancel()))
    timer.start()
    with pytest.raises(Cancelled):
        next(pieces)
    assert begun[0].undisturbed < PROMISE
    timer.join()


# What can be wrong with a proxy


@pytest.mark.parametrize("kind", ["http + password", "socks5h + password"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_wrong_password_of_a_proxy_is_a_clear_error_without_it(
    kind: str, secure: bool, provider_for: Make, make_secure: Make, tmp_path: Path
) -> None:
    asked = started(kind, tmp_path)
    wrong = asked.url.replace("://", f"://{USER}:wrong-password-7@")
    make = make_secure if secure else provider_for
    error = failing(make(YLOKH, speak(YLOKH, ["x"]), proxy=wrong, retries=2))
    asked.kill()
    assert "wrong-password" not in "".join(traceback.format_exception(error))
    if kind.startswith("socks"):
        assert "authentication failed" in str(error)
    else:
        assert error.status == 401, "what tinyproxy says instead of 407"
        assert error.attempts == 1, "the same password is not tried again"
    if secure or kind.startswith("socks"):
        assert isinstance(error, APIConnectionError)
        assert "proxy=" in str(error), "what to look at"


@pytest.mark.parametrize("target", ["http", "https"])
def test_a_407_is_the_proxys_and_is_not_asked_again(target: str, wire: Wire) -> None:
    for method in ("POST", "CONNECT"):
        wire.on(method, ".*", lambda request, connection: connection.respond(407, b"who are you?"))
    with Ylokh(base_url=f"{target}://chat.example", proxy=wire.url) as provider:
        error = failing(provider)
    assert isinstance(error, APIConnectionError)
    assert error.status == 407
    assert "proxy=" in str(error)
    assert len(wire.requests) == 1


@pytest.mark.parametrize("kind", ["http + password", "socks5h + password"])
def test_a_proxy_that_wants_a_password_and_gets_none_is_a_clear_error(
    kind: str, provider_for: Make, tmp_path: Path
) -> None:
    asked = started(kind, tmp_path)
    error = failing(provider_for(YLOKH, speak(YLOKH, ["x"]), proxy=asked.url))
    asked.kill()
    assert isinstance(error, APIConnectionError)
    assert "proxy=" in str(error)


@pytest.mark.parametrize("scheme", ["http", "https", "socks4", "socks4a", "socks5", "socks5h"])
@pytest.mark.parametrize("target", ["http", "https"])
def test_a_proxy_that_is_not_there_is_a_clear_error(scheme: str, target: str) -> None:
    proxy = f"{scheme}://me:sesame-7@127.0.0.1:{free_port()}"
    with Ylokh(base_url=f"{target}://chat.example", proxy=proxy, retries=0) as provider:
        error = failing(provider)
    assert isinstance(error, APIConnectionError)
    assert "See proxy=" in str(error)
    assert "sesame" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_a_proxy_with_an_address_of_ipv6_that_is_not_there_is_a_clear_error(scheme: str) -> None:
    with Ylokh("http://chat.example", proxy=f"{scheme}://[::1]:{free_port()}", retries=0) as provider:
        error = failing(provider)
    assert isinstance(error, APIConnectionError)
    assert "not known" not in str(error), "it is taken for a name"


def test_a_server_that_the_proxy_cannot_reach_is_a_clear_error(proxy: Proxy) -> None:
    with Ylokh(base_url=f"https://127.0.0.1:{free_port()}", proxy=proxy.given, retries=0) as provider:
        error = failing(provider)
    assert isinstance(error, APIConnectionError)
    assert "proxy" in str(error)


def test_a_proxy_for_socks_without_pysocks_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socks", None)  # what an import of it then meets
    with pytest.raises(InvalidRequest, match=r"pip install 'berlin_chat\[socks\]'"):
        Ylokh(base_url="http://chat.example", proxy="socks5://127.0.0.1:1")


# Which proxy it is


def test_the_environment_names_the_proxy(
    speech: Speech, proxy: Proxy, through: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy.given)
    with through(speech, speak(speech, ["x"]), proxy=None) as provider:
        assert provider.ask("Hi") == "x"
        [pool] = provider._transport._pools
        asked = pool.proxy.port if pool.proxy else pool.conn_kw["_socks_options"]["proxy_port"]
        assert asked == proxy.port


def test_the_environment_may_leave_out_the_scheme_of_a_proxy(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.on("POST", ".*", speak(YLOKH, ["x"]))
    monkeypatch.setenv("HTTP_PROXY", wire.url.removeprefix("http://"))
    with Ylokh("http://chat.example", retries=0) as provider:
        assert provider.ask("Hi") == "x"
    assert wire.requests[0].path.startswith("http://chat.example/")


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_no_proxy_and_an_empty_proxy_go_past_that_of_the_environment(
    scheme: str, provider_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:{free_port()}")
    assert provider_for(YLOKH, speak(YLOKH, ["x"]), proxy="").ask("Hi") == "x"
    error = failing(provider_for(YLOKH, speak(YLOKH, ["x"])))
    assert isinstance(error, APIConnectionError)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert provider_for(YLOKH, speak(YLOKH, ["x"])).ask("Hi") == "x"


@pytest.mark.parametrize(
    "address",
    ["socks://127.0.0.1:1", "ftp://127.0.0.1:1", "http://me:se/same@127.0.0.1:1", "http://[::1", "http://127.0.0.1:0"],
)
@pytest.mark.parametrize("own", [False, True], ids=["", "a session of the caller's"])
def test_a_bad_proxy_in_the_environment_is_refused_before_anything_is_sent(
    address: str, own: bool, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", address)
    with requests.Session() as session, Ylokh(wire.url, session=session if own else None, retries=0) as provider:
        failing(provider)
        error = failing(provider)  # nor the second time
    assert isinstance(error, InvalidRequest)
    assert "environment" in str(error)
    assert "same" not in "".join(traceback.format_exception(error))
    assert wire.requests == []


def test_a_missing_pysocks_is_named_where_the_environment_names_a_proxy_for_socks(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "socks", None)
    with Ylokh(wire.url, retries=0) as provider, pytest.raises(InvalidRequest, match=r"berlin_chat\[socks\]"):
        provider.ask("Hi")


# What hangs


@pytest.mark.parametrize("scheme", ["http", "https", "socks4a", "socks5h"])
def test_a_proxy_that_says_nothing_is_left_at_once(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        with Ylokh(base_url="https://chat.example", proxy=address, retries=0, timeout=60) as provider:
            ends_in_time(lambda deadline, cancel: provider.ask("Hi", deadline=deadline, cancel=cancel))


def test_a_proxy_for_socks_that_drips_its_answer_is_left_at_the_deadline() -> None:
    def drip() -> None:
        sock, _ = listener.accept()
        with sock, suppress(OSError):
            for byte in b"\x05\x00" + b"\x05\x00\x00\x03\xff" + b"x" * 255:
                sock.sendall(bytes([byte]))
                if over.wait(0.05):
                    return

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        address = f"socks5h://127.0.0.1:{listener.getsockname()[1]}"
        with Ylokh(base_url="https://chat.example", proxy=address, retries=0, timeout=60) as provider:
            watch = Stopwatch()
            assert isinstance(failing(provider, deadline=0.4), APITimeoutError)
            assert watch.undisturbed < 0.4 + PROMISE
        over.set()
        thread.join(PATIENCE)


# TLS inside TLS: a proxy that is itself spoken to by TLS


def tunnel(request: Recorded, connection: Connection) -> None:
    """What a proxy does behind CONNECT: passes everything on, both ways."""
    host, _, port = request.path.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as server:
        connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")

        def back() -> None:
            with suppress(OSError):
                while data := server.recv(65536):
                    connection.send(data)
            connection.close()

        thread = threading.Thread(target=back)
        thread.start()
        with suppress(OSError):
            connection.sock.settimeout(PATIENCE)
            while data := connection.sock.recv(65536):
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)


@pytest.fixture
def tls_proxy(authority: Authority) -> Iterator[str]:
    """The address of a proxy behind TLS."""
    with Secure(authority.server(), [("CONNECT", ".*", tunnel)]) as server:
        yield server.url


def test_a_reply_behind_tls_comes_through_a_proxy_behind_tls(speech: Speech, tls_proxy: str, make_secure: Make) -> None:
    go_on = threading.Event()
    provider = make_secure(speech, in_two(speech, go_on), proxy=tls_proxy)
    pieces = provider.stream("Hi")
    assert next(pieces) == "one "
    go_on.set()
    assert "".join(pieces) == "two"


def test_a_silent_reply_is_ended_through_a_proxy_behind_tls(tls_proxy: str, make_secure: Make) -> None:
    provider = make_secure(YLOKH, silent_after(YLOKH), proxy=tls_proxy, timeout=60)
    ends_in_time(lambda deadline, cancel: provider.ask("Hi", deadline=deadline, cancel=cancel))


def test_the_certificate_of_a_proxy_is_checked_too(make_secure: Make, tmp_path: Path) -> None:
    stranger = Authority(tmp_path)
    with Secure(stranger.server(), [("CONNECT", ".*", tunnel)]) as server:
        error = failing(make_secure(YLOKH, speak(YLOKH, ["x"]), proxy=server.url))
        assert isinstance(error, APIConnectionError)
        assert "certificate verify failed" in str(error)
        assert server.requests == []
