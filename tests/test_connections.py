"""Connections: whose answer it is, who makes them interruptible, and that nothing outlasts its end."""

from __future__ import annotations

import gzip
import queue
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import trustme
from urllib3.connection import HTTPConnection

from berlin_chat import (
    APIStatusError,
    APITimeoutError,
    Cancelled,
    CancelToken,
    ChatError,
    ProtocolError,
    Provider,
    StreamInterrupted,
    Ylokh,
    ask_many,
    get_provider,
)
from berlin_chat.http.connections import Session, Stack, close_pool
from wire import (
    ACYTOO,
    BERLIN,
    DUE,
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
    head,
    speak,
)

Make = Callable[..., Provider]


# The answer to the question, and not to the one before it


@pytest.mark.parametrize("statuses", [[100], [102], [103], [103, 103, 100], [199], [103] * 90], ids=str)
def test_informational_answers_are_no_answer(
    statuses: list[int], speech: Speech, provider_for: Make, wire: Wire
) -> None:
    asked = []

    def hints_first(request: Recorded, connection: Connection) -> None:
        asked.append(request)
        connection.send(b"".join(head(status, {"Link": "</style.css>"}) for status in statuses))
        speak(speech, [f"answer {len(asked)}"])(request, connection)

    provider = provider_for(speech, hints_first)
    assert [provider.ask("Hi") for _ in range(3)] == ["answer 1", "answer 2", "answer 3"]
    assert len({request.connection for request in asked}) == 1, "the connection was not used again"


@pytest.mark.parametrize("status", [100, 103])
def test_informational_answers_without_end_are_a_protocol_error(status: int, provider_for: Make) -> None:
    def endless(request: Recorded, connection: Connection) -> None:
        while not connection.gone.is_set():
            connection.send(head(status, {}) * 100)

    with pytest.raises(ProtocolError):
        provider_for(YLOKH, endless).ask("Hi")


def test_a_switch_to_another_protocol_is_an_error_and_closes_the_connection(provider_for: Make, wire: Wire) -> None:
    def switch(request: Recorded, connection: Connection) -> None:
        if len(wire.requests) > 1:
            return speak(YLOKH, ["second"])(request, connection)
        connection.send(head(101, {"Upgrade": "h2c", "Connection": "Upgrade"}))
        return connection.wait_until_client_closes()

    provider = provider_for(YLOKH, switch)
    with pytest.raises(APIStatusError) as caught:
        provider.ask("Hi")
    assert caught.value.status == 101
    assert wire.connections[0].gone.wait(PATIENCE), "the connection is still open"
    assert provider.ask("Hi") == "second"


# Threads that make and use connections at the same moment


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns after each few bytecodes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Replacing:
    """A pool whose class of connections another thread replaces as soon as it was looked at."""

    def __init__(self) -> None:
        self._class: Any = HTTPConnection
        self.looks = 0

    @property
    def ConnectionCls(self) -> Any:
        self.looks += 1
        return self._class if self.looks == 1 else type("Theirs", (self._class,), {})

    @ConnectionCls.setter
    def ConnectionCls(self, value: Any) -> None:
        self._class = value


def test_what_a_pool_has_is_read_once() -> None:
    from berlin_chat.http.connections import Interruptible
    from berlin_chat.http.sessions import make_interruptible

    pool = Replacing()
    make_interruptible(pool)
    assert pool.looks == 1
    assert issubclass(pool._class, Interruptible)


def together(threads: int, work: Callable[[int], Any]) -> list[Any]:
    """Has so many threads begin at the same moment; what they return or raise."""
    barrier = threading.Barrier(threads)

    def one(number: int) -> Any:
        barrier.wait(PATIENCE)
        try:
            return work(number)
        except ChatError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(threads)))


@pytest.mark.parametrize("threads", [16, 64])
@pytest.mark.parametrize("own_session", [False, True], ids=["", "a session of the caller's"])
def test_the_first_use_by_many_threads_is_no_race(
    threads: int, own_session: bool, speech: Speech, provider_for: Make, wire: Wire, switching: None
) -> None:
    for _ in range(3 if threads == 64 else 6):
        with requests.Session() as session:
            config = {"session": session} if own_session else {}
            provider = provider_for(speech, speak(speech, ["a", "b"]), **config)
            assert together(threads, lambda _: provider.ask("Hi")) == ["ab"] * threads  # noqa: B023
    assert len(wire.asked("POST", "/api/login")) in (0, 3, 6), "they logged in more than once"
    assert len(wire.asked("POST", "/settings")) in (0, 3, 6)


def test_cancels_deadlines_and_closes_hit_nobody_else(
    speech: Speech, provider_for: Make, wire: Wire, switching: None
) -> None:
    """Of the threads on one provider a third is cancelled, a third has no time: the others get their reply."""

    def drip(request: Recorded, connection: Connection) -> None:
        with suppress(OSError):
            speak(speech, ["a", "b"])(request, connection)

    provider = provider_for(speech, drip)

    def ask(number: int) -> Any:
        if number % 3 == 1:
            token = CancelToken()
            threading.Timer(number / 10_000, token.cancel).start()
            return provider.ask("Hi", cancel=token)
        return provider.ask("Hi", deadline=0.001 * (1 + number % 5) if number % 3 == 2 else 30)

    for _ in range(4):
        found = together(24, ask)
        assert [one for one in found[::3] if one != "ab"] == [], "a question of somebody else was hit"
        assert {type(one) for one in found[1::3]} <= {Cancelled, type(provider.ask("Hi"))}
        assert {type(one) for one in found[2::3]} <= {APITimeoutError, type(provider.ask("Hi"))}
    asking = ThreadPoolExecutor(16)
    futures = [asking.submit(ask, 0) for _ in range(64)]
    provider.close()
    outcomes = [future.exception(PATIENCE) or future.result() for future in futures]
    asking.shutdown()
    assert {str(one) if isinstance(one, str) else type(one) for one in outcomes} <= {"ab", Cancelled}


def test_tokens_that_expire_under_many_threads_are_replaced_once(
    provider_for: Make, wire: Wire, switching: None
) -> None:
    valid = ["token-1"]

    def strict(request: Recorded, connection: Connection) -> None:
        if request.header("token") == valid[0]:
            speak(BERLIN, ["ok"])(request, connection)
        else:
            connection.respond(401, {"code": 401, "msg": "expired"})

    provider = provider_for(BERLIN, strict)
    for number in range(1, 6):
        valid[0] = f"token-{number}"
        assert together(32, lambda _: provider.ask("Hi")) == ["ok"] * 32
    assert len(wire.asked("POST", "/api/login")) == 5


def test_an_error_that_is_none_of_the_librarys_ends_a_batch_as_itself(provider_for: Make) -> None:
    class Faulty(Ylokh):
        def payload(self, messages: Any, model: str, options: Any) -> Any:
            raise ZeroDivisionError(messages[0]["content"])

    with pytest.raises(ZeroDivisionError):
        list(ask_many(Faulty(base_url="http://127.0.0.1:1"), ["q0", "q1"]))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("berlin_chat")]


# Ends that end


def bomb() -> bytes:
    """Some megabytes that are four gigabytes of blank lines."""
    compress = zlib.compressobj(9, wbits=31)
    first, other = (compress.compress(b"\n" * 2**20) + compress.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + other * 4096


def test_a_body_that_goes_on_without_the_network_is_ended(speech: Speech, provider_for: Make) -> None:
    headers = {"Content-Type": speech.kind, "Content-Encoding": "gzip"}
    provider = provider_for(speech, lambda request, connection: connection.respond(200, bomb(), headers))

    def ask(deadline: float | None, cancel: CancelToken | None) -> None:
        for _ in provider.stream("Hi", deadline=deadline, cancel=cancel):
            pass  # Acytoo's text is blank lines

    ends_in_time(ask, 0.1)  # soon, for what has come is kept, and putting it together takes its time


@pytest.mark.parametrize("path", ["/api/login", "/api/chat/completions"])
def test_a_body_in_several_encodings_is_refused_before_it_unfolds(path: str, provider_for: Make, wire: Wire) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip, gzip, gzip"}
    provider = provider_for(BERLIN, speak(BERLIN, ["x"]))
    wire.on("POST", path, lambda request, connection: connection.respond(200, gzip.compress(b"{}"), headers))
    started = time.process_time()
    with pytest.raises(ProtocolError, match="Content-Encoding"):
        provider.ask("Hi")
    assert time.process_time() - started < 5


def dripping(what: bytes) -> Script:
    def script(request: Recorded, connection: Connection) -> None:
        connection.send(head(200, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}))
        while not connection.gone.wait(0.02):
            connection.send(what)

    return script


def test_a_conversation_that_drips_while_it_is_made_is_ended(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]))
    wire.on("POST", "/conversation", dripping(b"1\r\n \r\n"))
    ends_in_time(lambda deadline, cancel: provider.ask("Hi", deadline=deadline, cancel=cancel))


def test_a_login_that_drips_is_ended(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(BERLIN, speak(BERLIN, ["a"]))
    wire.on("POST", "/api/login", dripping(b"1\r\n \r\n"))
    ends_in_time(lambda deadline, cancel: provider.ask("Hi", deadline=deadline, cancel=cancel))


def dripping_head(request: Recorded, connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not connection.gone.wait(0.02):
        connection.send(b"x")


@pytest.mark.parametrize("script", [dripping(b"1\r\n \r\n"), dripping_head], ids=["body", "head"])
def test_a_delete_that_drips_does_not_keep_the_caller_beyond_the_deadline(
    script: Script, provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(H2O, speak(H2O, ["a"]))
    wire.on("DELETE", "/conversation/.*", script)
    watch = Stopwatch()
    assert provider.ask("Hi", deadline=DUE) == "a", "the reply was complete in time"
    assert watch.undisturbed < DUE + PROMISE
    assert provider.ask("Hi", deadline=DUE) == "a", "the next question waits for the last one's end"


def test_a_request_that_the_server_does_not_read_is_ended(speech: Speech, wire: Wire) -> None:
    """A listener that accepts and never reads: a long question fills the buffers, and sending blocks."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        config = {"token": "t"} if speech is BERLIN else speech.config
        if speech is H2O:
            return  # its first request is a short form
        with get_provider(speech.name, base_url=url, retries=0, timeout=60, **config) as provider:
            long = "x" * 20_000_000
            ends_in_time(lambda deadline, cancel: provider.ask(long, deadline=deadline, cancel=cancel))


def test_a_proxy_that_drips_its_answer_to_connect_is_ended(wire: Wire) -> None:
    wire.on("CONNECT", ".*", dripping_head)
    with Ylokh(base_url="https://chat.example", proxy=wire.url, retries=0, timeout=60) as provider:
        ends_in_time(lambda deadline, cancel: provider.ask("Hi", deadline=deadline, cancel=cancel))


def test_a_tls_handshake_that_hangs_is_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with Ylokh(base_url=url, retries=0, timeout=60) as provider:
            ends_in_time(lambda deadline, cancel: provider.ask("Hi", deadline=deadline, cancel=cancel))


def test_a_silent_server_behind_tls_is_ended(tmp_path: Any) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    over = threading.Event()

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), context.wrap_socket(plain, server_side=True) as sock:
                while sock.recv(65536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with Ylokh(base_url=url, retries=0, timeout=60, verify=str(tmp_path / "ca.pem")) as provider:
            ends_in_time(lambda deadline, cancel: provider.ask("Hi", deadline=deadline, cancel=cancel))
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)


# Bodies that are compressed


@pytest.mark.parametrize("framing", ["chunked", "until close"])
def test_a_compressed_reply_that_is_cut_off_is_interrupted(framing: str, provider_for: Make) -> None:
    data = gzip.compress(b"one two three" * 1000)[:-30]

    def cut(request: Recorded, connection: Connection) -> None:
        headers = {"Content-Type": ACYTOO.kind, "Content-Encoding": "gzip"}
        if framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
            connection.send(head(200, headers) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        else:
            connection.send(head(200, {**headers, "Connection": "close"}) + data)
            connection.close()

    with pytest.raises(StreamInterrupted, match="compressed"):
        provider_for(ACYTOO, cut).ask("Hi")


def test_a_reply_in_an_encoding_that_was_not_asked_for_is_a_protocol_error(speech: Speech, provider_for: Make) -> None:
    headers = {"Content-Type": speech.kind, "Content-Encoding": "br"}
    with pytest.raises(ProtocolError, match="br"):
        provider_for(speech, lambda r, connection: connection.respond(200, b"\x8b\x00\x80abc", headers)).ask("Hi")


def raw_deflate(data: bytes) -> bytes:
    compress = zlib.compressobj(wbits=-15)
    return compress.compress(data) + compress.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"abc") + gzip.compress(b"def")),
        ("x-gzip", gzip.compress(b"abcdef")),
        ("GZIP", gzip.compress(b"abcdef") + b"\0" * 100),
        ("deflate", zlib.compress(b"abcdef")),
        ("deflate", raw_deflate(b"abcdef")),
        ("gzip", b""),
    ],
    ids=["two members", "x-gzip", "padding behind it", "deflate", "deflate without its header", "no body"],
)
@pytest.mark.parametrize("size", [1, 7, 65536])
def test_every_way_to_compress_is_read_however_it_is_torn(
    encoding: str, body: bytes, size: int, provider_for: Make
) -> None:
    def torn(request: Recorded, connection: Connection) -> None:
        framed = Chunked(connection, f"{ACYTOO.kind}\r\nContent-Encoding: {encoding}", b"")
        for begin in range(0, len(body), size):
            framed.part(body[begin : begin + size])
        framed.end()

    assert provider_for(ACYTOO, torn).ask("Hi") == ("abcdef" if body else "")


def test_a_provider_may_be_closed_while_a_connection_too_many_is_put_away(
    provider_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """urllib3 looks into the pool once more then, which is None by now."""
    together = threading.Barrier(2, timeout=PATIENCE)

    def both(request: Recorded, connection: Connection) -> None:
        together.wait()
        speak(ACYTOO, ["ok"])(request, connection)

    provider = provider_for(ACYTOO, both, pool_size=1)
    close = HTTPConnection.close

    def closing(connection: HTTPConnection) -> None:
        close(connection)
        provider.close()

    monkeypatch.setattr(HTTPConnection, "close", closing)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(provider.ask, "Hi") for _ in range(2)]
        ended = [future.exception(PATIENCE) for future in asked]
    assert all(isinstance(error, (Cancelled, type(None))) for error in ended), ended


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9", "socks5h://127.0.0.1:9"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_pool_has_a_lock_that_a_finalizer_could_wait_for(scheme: str, proxy: str | None) -> None:
    """The thread that runs it may hold that lock: urllib3's own queue of connections has one."""
    session = Session(4, set())
    request = session.prepare_request(requests.Request("GET", f"{scheme}://127.0.0.1:9/"))
    adapter: Any = session.get_adapter(request.url or "")
    pool = adapter.get_connection_with_tls_context(request, True, proxies={scheme: proxy} if proxy else None)
    assert type(pool.pool) is Stack
    close_pool(pool)


def test_a_stack_keeps_as_many_connections_as_it_may_and_closes_the_others() -> None:
    closed: list[str] = []
    first, second, third = (SimpleNamespace(close=lambda name=name: closed.append(name)) for name in "123")
    stack = Stack(2)
    for connection in (None, first, None, second, None, third):
        stack.put(connection)
    assert (stack.qsize(), closed) == (2, ["3"])
    assert [stack.get(), stack.get()] == [second, first]
    with pytest.raises(queue.Empty):
        stack.get()
    stack.close()
    stack.put(first)
    assert (stack.qsize(), closed) == (0, ["3", "1"])


def test_a_stack_whose_last_connection_is_taken_while_it_closes_is_closed() -> None:
    class Taken(list[Any]):
        def pop(self, *_: Any) -> Any:
            self.clear()
            raise IndexError("another thread was first")

    stack = Stack(2)
    stack._idle = Taken(["connection"])
    stack.close()
    assert stack.qsize() == 0


def test_a_connection_that_comes_back_while_its_pool_is_closed_is_closed_too() -> None:
    """urllib3 reads ``pool.pool`` and puts a moment later; another thread may have closed the pool in between."""
    closed = []

    class Given(HTTPConnection):
        def close(self) -> None:
            closed.append(self)
            super().close()

    pools: set[Any] = set()
    session = Session(4, pools)
    request = session.prepare_request(requests.Request("GET", "http://127.0.0.1:9/"))
    adapter: Any = session.get_adapter(request.url or "")
    pool = adapter.get_connection_with_tls_context(request, True)
    before, late = Given("127.0.0.1", 9), Given("127.0.0.1", 9)
    put = pool.pool.put
    put(before)
    assert pools == {pool}
    close_pool(pool)
    put(late)
    assert closed == [before, late]
    close_pool(pool)  # a second time, which does nothing


def test_what_the_environment_says_is_remembered_for_a_server_and_not_for_an_address() -> None:
    """Each conversation of chat-ui has an address of its own."""
    session = Session(4, set())
    for url in ("http://a.example/x/y", "http://a.example/z?q", "http://a.example"):
        session.merge_environment_settings(url, {}, True, None, None)
    assert len(session._found) == 1
    session.merge_environment_settings("http://b.example/x", {}, True, None, None)
    session.merge_environment_settings("https://b.example/x", {}, True, None, None)
    assert len(session._found) == 3
