"""A real socket server that records what it is sent, byte by byte, and answers as a test tells it to."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from berlin_chat import APITimeoutError, Cancelled, CancelToken

#: No wait of a test lasts longer, in seconds.
PATIENCE = 10.0
#: How late an end may come, in seconds: the promise of the design; and when it is due.
PROMISE, DUE = 0.2, 0.3


@dataclass
class Recorded:
    """A request as it arrived."""

    method: str
    path: str
    header_lines: list[tuple[str, str]]
    body: bytes
    connection: int

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.header_lines if key.lower() == name.lower()), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """What a script answers through."""

    def __init__(self, wire: Wire, sock: socket.socket, number: int, peer: tuple[str, int]) -> None:
        self.wire = wire
        self.sock = sock
        self.number = number
        self.host, self.port = peer  # the client's
        self.gone = threading.Event()
        self.last = False  # whether the client, or a proxy, wants it closed behind the answer
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError:
            self.gone.set()
            raise

    def respond(
        self, status: int = 200, body: bytes | dict[str, Any] = b"", headers: dict[str, str] | None = None
    ) -> None:
        """A whole response."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        kind = "application/json" if isinstance(body, dict) else "text/plain"
        lines = {"Content-Type": kind, "Content-Length": str(len(content)), **self.its_end, **(headers or {})}
        self.send(head(status, lines) + content)

    @property
    def its_end(self) -> dict[str, str]:
        """What a head says of it."""
        return {"Connection": "close"} if self.last else {}

    def reset(self) -> None:
        """Closes with a RST instead of a FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.sock.close()  # without a shutdown, which would send a FIN before it

    def close(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    def wait_until_client_closes(self) -> None:
        """Returns when the client has closed its end: how a silent server waits."""
        self.sock.settimeout(PATIENCE)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            raise
        except OSError:
            pass
        self.gone.set()

    def read_request(self) -> Recorded | None:
        self.sock.settimeout(PATIENCE * 3)
        received = b""
        while b"\r\n\r\n" not in received:
            data = self.sock.recv(65536)
            if not data:
                return None
            received += data
        top, _, body = received.partition(b"\r\n\r\n")
        request_line, *lines = top.decode("latin-1").split("\r\n")
        method, path, _ = request_line.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        length = int(next((value for name, value in headers if name.lower() == "content-length"), "0"))
        while len(body) < length:
            data = self.sock.recv(65536)
            if not data:
                return None
            body += data
        return Recorded(method, path, headers, body, self.number)


Script = Callable[[Recorded, Connection], None]


def head(status: int, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode()


class Wire:
    """The server. ``routes`` are tried in order: (method, pattern of the path, script)."""

    def __init__(self, routes: Iterable[tuple[str, str, Script]] = ()) -> None:
        self.routes = list(routes)
        self.requests: list[Recorded] = []
        self.connections: list[Connection] = []
        self.faults: list[BaseException] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def on(self, method: str, pattern: str, script: Script) -> Wire:
        """Adds a route, before those that are there."""
        self.routes.insert(0, (method, pattern, script))
        return self

    def asked(self, method: str, pattern: str) -> list[Recorded]:
        with self._lock:
            return [r for r in self.requests if r.method == method and re.fullmatch(pattern, r.path)]

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            with self._lock:
                connection = Connection(self, sock, len(self.connections), peer)
                self.connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            while (request := connection.read_request()) is not None:
                with self._lock:
                    self.requests.append(request)
                script = self._script(request)
                connection.last = (request.header("Connection") or "").lower() == "close"
                script(request, connection)
                if connection.last:
                    return
        except OSError:
            pass  # the client went away, or the script closed the connection
        except BaseException as fault:
            self.faults.append(fault)
        finally:
            connection.gone.set()
            connection.close()

    def _script(self, request: Recorded) -> Script:
        for method, pattern, script in self.routes:
            if method == request.method and re.fullmatch(pattern, request.path):
                return script
        return lambda request, connection: connection.respond(404, {"error": "no route"})

    def close(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        with self._lock:
            connections = list(self.connections)
        for connection in connections:
            connection.close()
        self._acceptor.join(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Framing:
    """A way to send a body in parts."""

    name = ""
    gzip = False

    def __init__(self, connection: Connection, kind: str, whole: bytes) -> None:
        self.connection = connection
        self._compress = zlib.compressobj(wbits=31) if self.gzip else None
        headers = {"Content-Type": kind, **connection.its_end, **self.headers(whole)}
        if self.gzip:
            headers["Content-Encoding"] = "gzip"
        connection.send(head(200, headers))

    def headers(self, whole: bytes) -> dict[str, str]:
        raise NotImplementedError

    def part(self, data: bytes) -> None:
        if self._compress is not None:
            data = self._compress.compress(data) + self._compress.flush(zlib.Z_SYNC_FLUSH)
        self.frame(data)

    def frame(self, data: bytes) -> None:
        self.connection.send(data)

    def end(self) -> None:
        if self._compress is not None:
            self.frame(self._compress.flush())


class Chunked(Framing):
    name = "chunked"

    def headers(self, whole: bytes) -> dict[str, str]:
        return {"Transfer-Encoding": "chunked"}

    def frame(self, data: bytes) -> None:
        if data:
            self.connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        super().end()
        self.connection.send(b"0\r\n\r\n")


class ChunkedGzip(Chunked):
    name = "chunked gzip"
    gzip = True


class ContentLength(Framing):
    name = "Content-Length"

    def headers(self, whole: bytes) -> dict[str, str]:
        return {"Content-Length": str(len(whole))}


class UntilClose(Framing):
    name = "until close"

    def headers(self, whole: bytes) -> dict[str, str]:
        return {"Connection": "close"}

    def end(self) -> None:
        super().end()
        self.connection.close()


class UntilCloseGzip(UntilClose):
    name = "until close gzip"
    gzip = True


FRAMINGS: list[type[Framing]] = [Chunked, ContentLength, UntilClose, ChunkedGzip, UntilCloseGzip]


@dataclass
class Speech:
    """How a server of one protocol says pieces of text: what a test needs to know of it, and no more."""

    name: str
    kind: str
    route: tuple[str, str]
    before: list[tuple[str, str, Script]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def parts(self, pieces: list[str]) -> list[bytes]:
        """The body in parts, one a piece, and then those that end it."""
        return _PARTS[self.name](pieces)

    def ends(self) -> bool:
        """Whether the protocol has an end marker."""
        return self.name in ("openai", "ylokh", "h2o")


def _berlin_parts(pieces: list[str]) -> list[bytes]:
    lines = [json.dumps({"content": piece, "id": 1}).encode() for piece in pieces]
    return [lines[0], *(b"\n" + line for line in lines[1:])]


def _ylokh_parts(pieces: list[str]) -> list[bytes]:
    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        chunk = {"model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    return [*(event({"content": piece}) for piece in pieces), event({}, "stop") + b"data: [DONE]\n\n"]


def h2o_event(text: str, special: bool = False, generated: str | None = None) -> bytes:
    token = {"id": 1, "text": text, "logprob": -0.1, "special": special}
    event = {"token": token, "generated_text": generated, "details": None}
    return b"data:" + json.dumps(event).encode() + b"\n\n"


def _h2o_parts(pieces: list[str]) -> list[bytes]:
    return [*map(h2o_event, pieces), h2o_event("</s>", special=True, generated="".join(pieces))]


_PARTS: dict[str, Callable[[list[str]], list[bytes]]] = {
    "berlin": _berlin_parts,
    "openai": _ylokh_parts,
    "ylokh": _ylokh_parts,
    "h2o": _h2o_parts,
    "acytoo": lambda pieces: [piece.encode() for piece in pieces],
}


def log_in(request: Recorded, connection: Connection) -> None:
    connection.respond(200, {"data": {"token": f"token-{len(connection.wire.asked('POST', '/api/login'))}"}})


def settings(request: Recorded, connection: Connection) -> None:
    connection.respond(
        303, b"", {"Location": connection.wire.url + "/", "Set-Cookie": "hf-chat=cookie-1; Path=/; HttpOnly"}
    )


def create(request: Recorded, connection: Connection) -> None:
    number = len(connection.wire.asked("POST", "/conversation"))
    connection.respond(200, {"conversationId": f"c{number}"})


def delete(request: Recorded, connection: Connection) -> None:
    connection.respond(200, {})


BERLIN = Speech(
    "berlin",
    "application/octet-stream",
    ("POST", "/api/chat/completions"),
    [("POST", "/api/login", log_in)],
    {"account": "me@example.org", "password": "hunter2-secret"},
)
OPENAI = Speech("openai", "text/event-stream", ("POST", "/v1/chat/completions"))
YLOKH = Speech("ylokh", "text/event-stream", ("POST", "/v1/chat/completions"))
H2O = Speech(
    "h2o",
    "text/event-stream",
    ("POST", "/conversation/[^/]+"),
    [
        ("POST", "/settings", settings),
        ("POST", "/conversation", create),
        ("POST", "/conversation/[^/]+/stop-generating", delete),
        ("DELETE", "/conversation/[^/]+", delete),
    ],
)
ACYTOO = Speech("acytoo", "text/plain; charset=utf-8", ("POST", "/api/completions"))
SPEECHES = [OPENAI, BERLIN, YLOKH, H2O, ACYTOO]


def speak(speech: Speech, pieces: list[str], framing: type[Framing] = Chunked) -> Script:
    """A script that says the pieces, all at once."""

    def script(request: Recorded, connection: Connection) -> None:
        parts = speech.parts(pieces)
        body = framing(connection, speech.kind, b"".join(parts))
        for part in parts:
            body.part(part)
        body.end()

    return script


def wait_for(condition: Callable[[], object]) -> object:
    """Looks until there is something: for states that nobody signals."""
    done = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        if found := condition():
            return found
        done.wait(0.01)
    raise AssertionError("it did not happen")


class Stopwatch:
    """Runs from the moment that it is made.

    Attributes:
        seconds: since then.
        undisturbed: those in which nobody on this machine waited for a processor, so that whether something is done at
            once does not depend on what else the machine has to do. Linux tells; elsewhere they are all.
    """

    def __init__(self) -> None:
        self._began, self._waited = time.monotonic(), self._waits()

    @staticmethod
    def _waits() -> float:
        with suppress(OSError):
            return int(Path("/proc/pressure/cpu").read_text().partition("total=")[2].split()[0]) / 1e6
        return 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def undisturbed(self) -> float:
        return self.seconds - (self._waits() - self._waited)


def ends_in_time(ask: Callable[[float | None, CancelToken | None], Any], due_in: float = DUE) -> None:
    """A deadline and a cancel each end it within what the design promises."""
    watch = Stopwatch()
    with pytest.raises(APITimeoutError, match="deadline"):
        ask(due_in, None)
    late = watch.undisturbed - due_in
    assert late < PROMISE, f"the deadline was kept {late:.2f} s late"
    token = CancelToken()
    due: list[Stopwatch] = []
    threading.Timer(due_in, lambda: (due.append(Stopwatch()), token.cancel())).start()
    with pytest.raises(Cancelled):
        ask(None, token)
    late = due[0].undisturbed
    assert late < PROMISE, f"the cancel came {late:.2f} s late"
