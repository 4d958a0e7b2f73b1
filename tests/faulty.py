"""A server that misbehaves at one point of an exchange, in one way, and is a good server before and after it."""

from __future__ import annotations

import json
import socket
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from wire import ACYTOO, BERLIN, H2O, OPENAI, PATIENCE, YLOKH, Connection, Speech, Wire

#: For each point of an exchange, who asks what there.
POINTS: dict[str, tuple[str, str]] = {
    "login": ("POST", "/api/login"),
    "settings": ("POST", "/settings"),
    "conversation": ("POST", "/conversation"),
    "question": ("POST", "(/api/chat/completions|/v1/chat/completions|/api/completions|/conversation/[^/]+)"),
    "stop": ("POST", "/conversation/[^/]+/stop-generating"),
    "delete": ("DELETE", "/conversation/[^/]+"),
    "models": ("GET", "/v1/models"),
}


class Place(NamedTuple):
    """Where a server misbehaves."""

    speech: Speech
    point: str

    def __str__(self) -> str:
        return f"{self.speech.name} {self.point}"


PLACES = [
    *(Place(BERLIN, point) for point in ("login", "question")),
    *(Place(H2O, point) for point in ("settings", "conversation", "question", "stop", "delete")),
    *(Place(OPENAI, point) for point in ("question", "models")),
    *(Place(speech, "question") for speech in (YLOKH, ACYTOO)),  # Ylokh's models are OpenAI's
]
QUESTIONS = [place for place in PLACES if place.point == "question"]
#: The reply of a server in order: to the question in which it misbehaves, and to the one behind it.
PIECES, LATER = ["a", "b"], ["fresh"]
FRAMINGS = ["length", "chunked", "close", "length gzip", "chunked gzip", "close gzip"]


class Answer(NamedTuple):
    """What a server in order says at a point: a status, headers, and a body in parts."""

    status: int
    headers: dict[str, str]
    parts: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def sent(self) -> bytes:
        return head(self.status, {"Content-Length": str(len(self.body)), **self.headers}) + self.body


def right_answer(place: Place, pieces: list[str], number: int = 1) -> Answer:
    """What is expected at a place. ``number`` makes names of conversations differ."""
    if place.point == "question":
        return Answer(200, {"Content-Type": place.speech.kind}, place.speech.parts(pieces))
    if place.point == "settings":
        return Answer(303, {"Location": "/", "Set-Cookie": "hf-chat=cookie-1; Path=/; HttpOnly"}, [b"moved"])
    said: dict[str, Any] = {
        "login": {"data": {"token": "token-1"}},
        "conversation": {"conversationId": f"c{number}"},
        "models": {"data": [{"id": "m-1"}]},
    }.get(place.point, {})
    return Answer(200, {"Content-Type": "application/json"}, [json.dumps(said).encode()])


def head(status: int | str, headers: dict[str, str], version: str = "HTTP/1.1") -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{version} {status} Said\r\n{lines}\r\n".encode("latin-1")


class Frames(NamedTuple):
    """An answer as it goes over the wire: a head, a frame for each part of the body, and what ends the body."""

    head: bytes
    parts: list[bytes]
    end: bytes

    @property
    def whole(self) -> bytes:
        return self.head + b"".join(self.parts) + self.end


def framed(answer: Answer, framing: str) -> Frames:
    """Puts an answer into one of ``FRAMINGS``."""
    parts, headers, end = answer.parts, dict(answer.headers), b""
    if "gzip" in framing:
        pack = zlib.compressobj(wbits=31)
        parts = [pack.compress(part) + pack.flush(zlib.Z_SYNC_FLUSH) for part in parts]
        end = pack.flush()
        headers["Content-Encoding"] = "gzip"
    if "length" in framing:
        headers["Content-Length"] = str(len(b"".join(parts) + end))
    elif "chunked" in framing:
        headers["Transfer-Encoding"] = "chunked"
        parts = [chunk(part) for part in parts]
        end = (chunk(end) if end else b"") + b"0\r\n\r\n"
    else:
        headers["Connection"] = "close"
    return Frames(head(answer.status, headers), parts, end)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Scene:
    """What a fault has at hand: the connection, what would be right here, and how far the client has read.

    Attributes:
        right: the answer that would be right.
        frames: the same, in the framing of the cell.
    """

    def __init__(self, server: FaultyServer, connection: Connection, framing: str) -> None:
        self.connection = connection
        self.framing = framing
        self.server = server
        self.right = right_answer(server.place, PIECES)
        self.frames = framed(self.right, framing)

    def send(self, data: bytes) -> None:
        self.connection.send(data)

    def seen(self, pieces: int) -> None:
        """Waits until the client has read so many pieces."""
        with self.server.progress:
            self.server.progress.wait_for(lambda: self.server.pieces >= pieces, PATIENCE)

    def begin(self) -> None:
        """Sends the head and, in a reply, the first piece, and waits until it has been read."""
        reply = self.server.place.point == "question"
        self.send(self.frames.head + (self.frames.parts[0] if reply else b""))
        if reply:
            self.seen(1)

    def close(self) -> None:
        self.connection.close()

    def reset(self) -> None:
        self.connection.reset()

    def hold(self) -> None:
        """Says nothing until the client has gone."""
        self.connection.wait_until_client_closes()

    def drip(self, data: bytes) -> None:
        """Says it a byte at a time, and again, until the client has gone."""
        while not self.connection.gone.wait(0.02):
            self.send(data[:1])
            data = data[1:] + data[:1]

    def forever(self, data: bytes) -> None:
        """Says it again and again until the client has gone."""
        with suppress(OSError):
            while True:
                self.send(data)


class FaultyServer(Wire):
    """Answers all of one protocol; at ``place`` it does ``act`` as long as ``faulty`` is set.

    Attributes:
        faulty: whether the first question is still under way.
        times: how often it misbehaves.
        pieces: how many pieces of the reply the client has read; who reads tells it by ``read``.
    """

    def __init__(self, place: Place, framing: str, act: Callable[[Scene], object], times: int = 99) -> None:
        self.place, self.framing, self.act = place, framing, act
        self.faulty = True
        self.times = times
        self.pieces = 0
        self.progress = threading.Condition()
        self.acting: list[Connection] = []
        self.created: list[str] = []
        #: What is said to a client that has not asked yet.
        self.greeting = b""
        super().__init__()
        for point, (method, pattern) in POINTS.items():
            self.on(method, pattern, lambda request, connection, point=point: self._answer(point, connection))
        self.routes.sort(key=lambda route: "[^/]+)" in route[1])  # the question's pattern is the widest

    def read(self) -> None:
        """Is told that the client has read a piece."""
        with self.progress:
            self.pieces += 1
            self.progress.notify_all()

    def refuse(self) -> None:
        """Lets nobody connect any more, and keeps the address."""
        address = self._listener.getsockname()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(PATIENCE)
        self._listener.close()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(address)

    def accept_again(self) -> None:
        """Ends ``refuse``."""
        self._listener.listen(512)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _answer(self, point: str, connection: Connection) -> None:
        place = Place(self.place.speech, point)
        if self.faulty and place == self.place and self.times:
            self.times -= 1
            self.acting.append(connection)
            try:
                self.act(Scene(self, connection, self.framing))
            finally:
                self.acting.remove(connection)
            return
        pieces = PIECES if self.faulty else LATER
        answer = right_answer(place, pieces, len(self.created) + 1)
        if point == "conversation":
            self.created.append(f"c{len(self.created) + 1}")
        if self.faulty and self._next(point) == self.place.point and self.act is refuse:
            self.refuse()
            answer.headers["Connection"] = "close"
        if self.faulty and self.place.point == "stop" and point == "question":
            frames = framed(answer, "chunked")
            connection.send(frames.head + frames.parts[0])
            Scene(self, connection, "chunked").seen(1)
            if self.act is refuse:
                self.refuse()
            connection.close()  # the server is told to stop only where the reply was not read to its end
            return
        connection.send(answer.sent())

    @staticmethod
    def _next(point: str) -> str:
        order = ["login", "settings", "conversation", "question", "delete"]
        return "question" if point == "login" else order[order.index(point) + 1] if point in order[:-1] else ""

    def _serve(self, connection: Connection) -> None:
        if self.greeting and not connection.number:
            with suppress(OSError):
                connection.send(self.greeting)
        super()._serve(connection)


def refuse(scene: Scene) -> None:
    """Is never called: nobody comes as far as that."""
