"""The fault matrix: what a server can do wrong × where × in which framing, and what must come of it.

As a program it fills the matrix and prints it: ``scripts/matrix``, or ``scripts/matrix redirect openai`` for the cells
whose names hold these words. Its exit status is 1 where a cell is not as it must be.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import sys
import threading
import traceback
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

from berlin_chat import ChatError, get_provider
from faulty import (
    FRAMINGS,
    LATER,
    PLACES,
    QUESTIONS,
    Answer,
    FaultyServer,
    Place,
    Scene,
    chunk,
    framed,
    head,
    refuse,
    right_answer,
)
from wire import Stopwatch, wait_for

#: How long a cell may take, in seconds in which nobody waited for a processor.
PATIENCE = 2.5
#: How much more memory a cell may take, in KiB.
MEMORY = 64 * 1024
#: How long an error's text may be, in characters.
SHORT = 500
#: What comes of a fault that is none to the client.
REPLY = "reply"


class Expected(NamedTuple):
    """What must come of a cell.

    Attributes:
        result: ``"reply"``, or the name of the error's class.
        text: of the reply, or the error's ``partial``; None for whatever had been read.
        facts: what else the error or reply must know.
    """

    result: str
    text: str | None = ""
    facts: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Fault:
    """Something that a server does wrong.

    Attributes:
        name: for people.
        act: does it.
        expected: what must come of it at a place, in a framing.
        places: where it can be done.
        framings: in which; ``"-"`` where that does not matter.
        config: how the provider is made that meets it.
        question: the question's own settings.
        greeting: is said by the server before it was asked.
        times: how often it is done.
    """

    name: str
    act: Callable[[Scene], object]
    expected: Callable[[Place, str], Expected]
    places: list[Place] = field(default_factory=lambda: PLACES)
    framings: list[str] = field(default_factory=lambda: ["-"])
    config: dict[str, Any] = field(default_factory=dict)
    question: dict[str, Any] = field(default_factory=dict)
    greeting: bytes = b""
    times: int = 99


class Cell(NamedTuple):
    """One fault at one place in one framing."""

    fault: Fault
    place: Place
    framing: str

    def __str__(self) -> str:
        return f"{self.fault.name}-{self.place}-{self.framing}".replace("--", "")

    @property
    def expected(self) -> Expected:
        """What must come of it. What happens while a conversation is stopped and deleted changes nothing."""
        if self.place.point == "stop":
            return Expected("StreamInterrupted", "a")
        return Expected(REPLY, "ab") if self.place.point == "delete" else self.fault.expected(self.place, self.framing)


class Outcome(NamedTuple):
    """What came of a cell.

    Attributes:
        result: as in ``Expected``.
        seconds: until it had come.
        wrong: in what it is not as it must be.
    """

    result: str
    seconds: float
    wrong: list[str]


# What must come of it


def error(kind: str, text: str | None = "", **facts: Any) -> Callable[[Place, str], Expected]:
    """An error; before the question is sent nothing has been read."""

    def expected(place: Place, framing: str) -> Expected:
        return Expected(kind, text if place.point == "question" else "", facts)

    return expected


def in_body(kind: str, text: str | None = "a", **others: str | Expected) -> Callable[[Place, str], Expected]:
    """An error in a body. Nobody needs that of the settings.

    Args:
        kind: of the error.
        text: that was read before.
        others: where something else comes of it: by the name of a point or protocol, or of a protocol and framing.
    """

    def expected(place: Place, framing: str) -> Expected:
        if place.point == "settings":
            return Expected(REPLY, "ab")
        keys = [f"{place.speech.name}_{framing.replace(' ', '_')}", place.speech.name, "question"]
        if place.point != "question":
            keys = [f"document_{framing.replace(' ', '_')}", place.point, "document"]
        found = next((others[key] for key in keys if key in others), kind)
        if isinstance(found, Expected):
            return found
        return Expected(found, text if place.point == "question" else "")

    return expected


def harmless(place: Place, framing: str) -> Expected:
    return Expected(REPLY, "ab" if place.point != "models" else "m-1")


def by_status(status: int) -> Callable[[Place, str], Expected]:
    """The error of a status, which it knows."""
    kind = {
        401: "AuthenticationError",
        403: "AuthenticationError",
        407: "APIConnectionError",
        429: "RateLimitError",
    }.get(status, "APIStatusError")
    kind = "ProtocolError" if 300 <= status < 400 else kind

    def expected(place: Place, framing: str) -> Expected:
        refused = place.point == "login" and 400 <= status < 500 and status not in (408, 425, 429)
        if place.point == "settings" and status == 303:
            return Expected(REPLY, "ab")
        return Expected("AuthenticationError" if refused else kind, "", {"status": status})

    return expected


# What is done


def says(data: bytes | Callable[[Scene], bytes]) -> Callable[[Scene], None]:
    """Sends these bytes as the answer, and closes."""

    def act(scene: Scene) -> None:
        scene.send(data if isinstance(data, bytes) else data(scene))
        scene.close()

    return act


def keeps_on(before: bytes | Callable[[Scene], bytes], again: bytes) -> Callable[[Scene], None]:
    """Sends these bytes, and then others again and again."""

    def act(scene: Scene) -> None:
        with suppress(OSError):
            scene.send(before if isinstance(before, bytes) else before(scene))
            scene.forever(again)

    return act


def then(*steps: str | bytes | Callable[[Scene], bytes]) -> Callable[[Scene], None]:
    """Begins the right answer, and goes on with these steps: bytes, or the names of what a scene can do."""

    def act(scene: Scene) -> None:
        announced(scene, 999_999_999)
        scene.begin()
        for step in steps:
            if isinstance(step, str):
                getattr(scene, step)()
            else:
                scene.send(step if isinstance(step, bytes) else step(scene))

    return act


def answering(status: int, headers: dict[str, str], body: bytes) -> Callable[[Scene], None]:
    """A whole answer, behind which the connection stays open."""
    lines = {"Content-Type": "text/plain", "Content-Length": str(len(body)), **headers}
    return lambda scene: scene.send(head(status, lines) + body)


def labelled(**headers: str) -> Callable[[Scene], bytes]:
    """The right answer with further headers, or other ones."""
    lines = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda scene: scene.right._replace(headers={**scene.right.headers, **lines}).sent()


def packed(data: bytes, times: int = 1) -> bytes:
    """In gzip."""
    pack = zlib.compressobj(9, wbits=31)
    return b"".join([*(pack.compress(data) for _ in range(times)), pack.flush()])


#: 256 MiB of blank lines.
BOMB = packed(b"\n" * 2**20, 256)


def part(scene: Scene, data: bytes) -> bytes:
    """The next part of a body that ``begin`` has begun, in its framing."""
    before = scene.right.parts[:1] if scene.server.place.point == "question" else []
    return framed(scene.right._replace(parts=[*before, data]), scene.framing).parts[-1]


def announced(scene: Scene, size: int) -> None:
    """Lets the head promise so many bytes, where it promises any."""
    if "length" in scene.framing:
        top = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % size, scene.frames.head)
        scene.frames = scene.frames._replace(head=top)


# The faults

DEADLINE = {"deadline": 0.2}
SILENCE = {"timeout": (1, 0.1)}
GZIPPED = [name for name in FRAMINGS if "gzip" in name]
CHUNKED = [name for name in FRAMINGS if "chunked" in name]
#: Berlin and Acytoo have no word for the end: that of the connection is one, unless the framing knows better.
UNPROVEN = {
    "berlin_close": Expected(REPLY, "a"),
    "acytoo_close": Expected(REPLY, "a"),
    "document_close": "ProtocolError",
}


def connections() -> Iterator[Fault]:
    """What happens before the first byte of an answer."""
    lost = error("APIConnectionError")
    yield Fault("refused", refuse, lost)
    yield Fault("reset", Scene.reset, lost)
    yield Fault("closed", Scene.close, lost)
    yield Fault("silence", Scene.hold, error("APITimeoutError"), config=SILENCE)
    for name, data in {
        "a status line": b"HTTP/1.1 2",
        "a header's name": b"HTTP/1.1 200 OK\r\nContent-Le",
        "a header's value": b"HTTP/1.1 200 OK\r\nContent-Length: 1",
        "the headers": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n",
        "an informational answer": b"HTTP/1.1 103 Early Hints\r\nLink: </x>",
    }.items():
        yield Fault(f"closed inside {name}", says(data), lost)


def heads() -> Iterator[Fault]:
    """Heads that are none, or too much of one."""
    none = error("ProtocolError")
    line = b"X-Line: 0123456789\r\n"
    yield Fault(
        "a head, a byte at a time", lambda s: s.drip(s.frames.head * 9), error("APITimeoutError"), question=DEADLINE
    )
    yield Fault("headers without end", keeps_on(b"HTTP/1.1 200 OK\r\n", line * 100), none)
    yield Fault("100,000 headers", says(lambda s: b"HTTP/1.1 200 OK\r\n" + line * 100_000 + b"\r\n"), none)
    yield Fault("a header without end", keeps_on(b"HTTP/1.1 200 OK\r\nX-Line: ", b"x" * 8192), none)
    yield Fault("a status line without end", keeps_on(b"HTTP/1.1 200 ", b"x" * 8192), none)
    for name, data in {
        "HTTP/0.9": b"hello",
        "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
        "binary": bytes(range(256)) + b"\r\n\r\n",
        "HTTP/9.9": b"HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n",
        "a status of letters": b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
        "the status 99": b"HTTP/1.1 99 OK\r\nContent-Length: 0\r\n\r\n",
        "the status 1000": b"HTTP/1.1 1000 OK\r\nContent-Length: 0\r\n\r\n",
        "no status": b"HTTP/1.1\r\n\r\n",
        "a header without a colon": b"HTTP/1.1 200 OK\r\nbroken\r\nContent-Length: 0\r\n\r\n",
    }.items():
        yield Fault(name, says(data), none)
    for length in ("5, 6", "-1", "abc", "1e3", "+5", ""):
        yield Fault(f"Content-Length: {length}", says(labelled(Content_Length=length)), none)
    for coding in ("gzip, chunked", "gzip", "chunked, chunked", "x"):
        yield Fault(f"Transfer-Encoding: {coding}", says(labelled(Transfer_Encoding=coding)), none)


def tolerated() -> Iterator[Fault]:
    """What is unusual, but no fault to the client."""

    def old(scene: Scene, **headers: str) -> bytes:
        right = scene.right
        return head(right.status, {**right.headers, **headers}, "HTTP/1.0") + right.body

    def both(scene: Scene) -> bytes:
        return framed(scene.right._replace(headers={**scene.right.headers, "Content-Length": "3"}), "chunked").whole

    yield Fault("HTTP/1.0", says(old), harmless)
    yield Fault(
        "HTTP/1.0, kept",
        lambda scene: scene.send(
            old(scene, **{"Content-Length": str(len(scene.right.body)), "Connection": "keep-alive"})
        ),
        harmless,
    )
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    for times in (1, 100):
        yield Fault(
            f"{times} informational answers", says(lambda s, n=times: early * min(n, 99) + s.right.sent()), harmless
        )
    yield Fault("101 informational answers", says(lambda s: early * 101 + s.right.sent()), error("ProtocolError"))
    yield Fault("informational answers without end", keeps_on(b"", early * 10), error("ProtocolError"))
    yield Fault(
        "a first header that continues none",
        says(lambda s: s.right.sent().replace(b"\r\n", b"\r\n  broken\r\n", 1)),
        harmless,
    )
    yield Fault("a length beside chunks", lambda scene: scene.send(both(scene)), harmless)
    first = [place for place in PLACES if place.point in ("login", "settings", "models")]
    first += [place for place in QUESTIONS if place.speech.name != "h2o"]
    for place in first:
        said = labelled(Connection="close")
        yield Fault(
            "an answer before the request",
            Scene.close,
            harmless,
            [place],
            greeting=right_answer(place, ["a", "b"])._replace(headers={"Connection": "close"}).sent() if said else b"",
        )


#: Statuses of the 4xx and 5xx.
STATUSES = [*range(400, 419), *range(421, 427), 428, 429, 431, 451, 499, *range(500, 509), 510, 511, 520, 529, 599]
ERROR = json.dumps({"error": {"message": "no", "code": "x"}}).encode()
BODIES = {"JSON": ERROR, "text": b"no", "empty": b"", "huge": b"no " * 2**18}


def statuses() -> Iterator[Fault]:
    """Answers that say that there is no reply."""
    for number, (status, (name, body)) in enumerate(product(STATUSES, BODIES.items())):
        headers = {"Content-Type": "application/json"} if name == "JSON" else {}
        # Each status at each place with one body, and with all bodies at one.
        places = PLACES if number % 4 == number // 4 % 4 else QUESTIONS[2:3]
        yield Fault(f"{status}, {name}", answering(status, headers, body), by_status(status), places)
    for status in (600, 999):
        yield Fault(str(status), answering(status, {}, b""), by_status(status))
    yield Fault("101", says(head(101, {"Upgrade": "x"}) + b"x"), by_status(101))
    start = head(0, {"Content-Type": "application/json", "Content-Length": "1000000"}) + ERROR[:9]
    for status in (302, 401, 429, 503):
        begun = start.replace(b" 0 ", b" %d " % status)
        right = by_status(status)
        yield Fault(f"{status}, then silence", lambda s, b=begun: (s.send(b), s.hold()), right)
        yield Fault(f"{status}, then closed", says(begun), right)
        yield Fault(f"{status}, then reset", lambda s, b=begun: (s.send(b), s.reset()), right)
        yield Fault(f"{status}, then a byte at a time", lambda s, b=begun: (s.send(b), s.drip(b" ")), right, QUESTIONS)
        yield Fault(
            f"{status}, then without end",
            keeps_on(begun.replace(b"Content-Length: 1000000", b"Connection: close"), b"x" * 8192),
            right,
        )
        yield Fault(f"{status}, a gzip bomb", answering(status, {"Content-Encoding": "gzip"}, BOMB), right)
        yield Fault(f"{status}, no gzip", answering(status, {"Content-Encoding": "gzip"}, b"hello"), right, QUESTIONS)
        yield Fault(f"{status}, br", answering(status, {"Content-Encoding": "br"}, b"hello"), right, QUESTIONS)
    empty = in_body(
        "StreamInterrupted", "", berlin=Expected(REPLY, ""), acytoo=Expected(REPLY, ""), document="ProtocolError"
    )
    for status in (204, 205):
        yield (
            Fault(str(status), lambda s, n=status: s.send(head(n, {})), empty, config=SILENCE)
            if status == 204
            else Fault(str(status), answering(status, {}, b""), empty)
        )
    yield Fault("304", lambda s: s.send(head(304, {"Content-Length": "100"})), by_status(304), config=SILENCE)


def redirects() -> Iterator[Fault]:
    """Answers that lead elsewhere."""
    targets = {
        "another host": "http://192.0.2.1/x",
        "a file": "file:///etc/passwd",
        "itself": "",
        "a path": "/elsewhere",
        "control characters": "http://a\x01b\x7f/",
        "no address": "http://[",
        "half an address": "http://[::1",
        "no port": "http://a:b/",
        "letters beyond ASCII": "http://h\xe9/",
        "what is very long": "x" * 60_000,
        "JavaScript": "javascript:alert(1)",
        "credentials": "http://me:sesame@192.0.2.1/",
        "a tab": "\t",
    }
    for status in (300, 301, 302, 303, 305, 306, 307, 308):
        yield Fault(f"{status} to nowhere", answering(status, {}, b""), by_status(status))
        for name, target in targets.items():
            places = PLACES if status == 302 else QUESTIONS[:2]
            yield Fault(
                f"{status} to {name}", answering(status, {"Location": target}, b"moved"), by_status(status), places
            )


def waits() -> Iterator[Fault]:
    """``Retry-After`` in every form."""
    seconds: dict[str, float | None] = {
        "3": 3.0, "0": 0.0, "2.5": 2.5, " 7 ": 7.0, "-1": None, "1e309": None, "1e9": None, "NaN": None,
        "Infinity": None, "soon": None, "": None, "1,2": None, "\xb2": None, "\xe9": None, "9" * 400: None,
        "9" * 5000: None,
        "Thu, 01 Jan 1970 00:00:00 GMT": 0.0, "Fri, 99 Xyz 99999 99:99:99 GMT": None,
        "Mon, 01 Jan 0001 00:00:00 GMT": 0.0,
        "1_0": None, "0x10": None,
    }  # fmt: skip
    for (value, wanted), status in product(seconds.items(), (429, 503)):
        kind = "RateLimitError" if status == 429 else "APIStatusError"
        right = error(kind, retry_after=wanted, status=status)
        shown = value if len(value) < 40 else f"{len(value)} digits"
        yield Fault(
            f"{status}, Retry-After: {shown!a}", answering(status, {"Retry-After": value}, b""), right, QUESTIONS
        )


def bodies() -> Iterator[Fault]:
    """Bodies that are cut off, fall silent, or never end."""
    cut = in_body("StreamInterrupted", **UNPROVEN)
    yield Fault("closed in the body", then("close"), cut, framings=FRAMINGS)
    yield Fault("reset in the body", then("reset"), in_body("StreamInterrupted"), framings=FRAMINGS)
    yield Fault("silence in the body", then("hold"), in_body("APITimeoutError"), framings=FRAMINGS, config=SILENCE)

    def slowly(scene: Scene) -> None:
        announced(scene, 999_999_999)
        scene.begin()
        scene.drip(part(scene, b"\n"))

    yield Fault(
        "a body, a byte at a time",
        slowly,
        in_body("APITimeoutError", None),
        framings=["length", "chunked", "close"],
        question=DEADLINE,
    )

    def torn(scene: Scene, upto: bytes, instead: bytes) -> bytes:
        second = scene.right.parts[1].replace(b'"b"', b'"' + instead) if len(scene.right.parts[1]) > 1 else instead
        return part(scene, second[: second.index(upto) + len(upto)])

    half = Expected(REPLY, "a\ufffd")
    yield Fault(
        "closed inside a character",
        then(lambda s: torn(s, b"\xf0\x9f", b"\xf0\x9f\x98\x80"), "close"),
        in_body("StreamInterrupted", acytoo_close=half),
        QUESTIONS,
        FRAMINGS,
    )
    spoken = [place for place in QUESTIONS if place.speech.name != "acytoo"]
    for name, upto in {"a name": b'{"', "an object": b": ", "a text": b"content"}.items():
        yield Fault(
            f"closed inside {name}",
            then(
                lambda s, u=upto: torn(
                    s, u if u != b"content" or s.server.place.speech.name != "h2o" else b"text", b"b"
                ),
                "close",
            ),
            in_body("StreamInterrupted"),
            spoken,
            FRAMINGS,
        )
    whole = {name: Expected(REPLY, "ab") for name in ("openai", "ylokh", "h2o")}

    def longer(scene: Scene) -> bytes:
        return labelled(Content_Length=str(len(scene.right.body) + 10))(scene)

    def shorter(scene: Scene) -> None:
        scene.send(labelled(Content_Length=str(max(len(scene.right.body) - 1, 0)))(scene))

    yield Fault(
        "less than its Content-Length", says(longer), in_body("StreamInterrupted", "ab", **whole), framings=["length"]
    )
    yield Fault(
        "more than its Content-Length", shorter,
        in_body(
            "ProtocolError", acytoo=Expected(REPLY, "a"), berlin=Expected("StreamInterrupted", "a"),
            openai=whole["openai"], ylokh=whole["ylokh"], h2o=Expected("StreamInterrupted", "ab"),
        ),
        framings=["length"],
    )  # fmt: skip
    #: Where the next request is that of the next question.
    last = [place for place in PLACES if place.point in ("question", "models") and place.speech.name != "h2o"]
    poison = Answer(200, {"Content-Type": "text/plain"}, [b"poison"]).sent()
    for name, behind in {
        "an answer": poison,
        "a little": b"x",
        "half an answer": poison[:20],
        "a chunk": b"5\r\nhello\r\n",
    }.items():
        yield Fault(
            f"{name} behind a whole body",
            lambda s, b=behind: s.send(s.frames.whole + b),
            harmless,
            framings=["length", "chunked", "length gzip", "chunked gzip"],
        )
        yield Fault(
            f"{name} a moment behind a whole body",
            lambda s, b=behind: (s.send(s.frames.whole), s.send(b)),
            harmless,
            last,
            framings=["length", "chunked"],
        )


def chunks() -> Iterator[Fault]:
    """Chunks that are none."""
    for name, data in {
        "no number": b"xyz\r\nhello\r\n",
        "a negative number": b"-5\r\nhello\r\n",
        "0x5": b"0x5\r\nhello\r\n",
        "2^70": b"%x\r\nhello\r\n" % 2**70,
        "nothing": b"\r\nhello\r\n",
        "an extension without end": b"5;" + b"x" * 10_000,
    }.items():
        yield Fault(f"the chunk size is {name}", then(data, "close"), in_body("ProtocolError"), framings=CHUNKED)
    yield Fault(
        "the chunk size is 2^60", then(b"%x\r\n" % 2**60, "close"), in_body("StreamInterrupted"), framings=CHUNKED
    )
    yield Fault(
        "a chunk without its line end",
        then(b"1\r\n\nxx\r\n", "close"),
        in_body("ProtocolError"),
        framings=["chunked"],
        places=[place for place in PLACES if place.speech.name != "acytoo"],
    )
    yield Fault("closed inside a chunk's size", then(b"1", "close"), in_body("StreamInterrupted"), framings=CHUNKED)
    yield Fault(
        "closed inside a chunk's line end", then(b"1\r", "close"), in_body("StreamInterrupted"), framings=CHUNKED
    )
    yield Fault(
        "closed inside a chunk",
        then(lambda s: part(s, b"\n" * 9)[:-4], "close"),
        in_body("StreamInterrupted", None),
        framings=CHUNKED,
    )
    read = {name: Expected(REPLY, "ab") for name in ("openai", "ylokh", "h2o")}
    yield Fault(
        "closed before the last chunk",
        says(lambda s: s.frames.whole[:-5]),
        in_body("StreamInterrupted", "ab", **read),
        framings=CHUNKED,
    )
    yield Fault(
        "closed inside the last chunk",
        says(lambda s: s.frames.whole[:-2]),
        in_body("StreamInterrupted", "ab", **read),
        framings=CHUNKED,
    )
    yield Fault(
        "trailers without end",
        keeps_on(lambda s: s.frames.whole[:-2], b"X-Line: 1\r\n" * 100),
        in_body("ProtocolError", "ab", **read),
        framings=CHUNKED,
    )
    yield Fault("trailers", says(lambda s: s.frames.whole[:-2] + b"X-Sum: 1\r\n\r\n"), harmless, framings=CHUNKED)


def encodings() -> Iterator[Fault]:
    """Bodies that are not in the encoding that was asked for, or that unfold without end."""
    wrong = in_body("ProtocolError", "")
    for encoding in (
        "br",
        "zstd",
        "compress",
        "unknown",
        "gzip, gzip",
        "gzip, br",
        "identity, gzip",
        "\xe9",
        "x" * 1000,
    ):
        data = packed(packed(b"hello")) if encoding == "gzip, gzip" else b"hello"
        shown = encoding if len(encoding) < 40 else "long"
        yield Fault(
            f"Content-Encoding: {shown!a}",
            says(
                lambda s, e=encoding, d=data: s.right._replace(
                    parts=[d], headers={**s.right.headers, "Content-Encoding": e}
                ).sent()
            ),
            wrong,
        )
    yield Fault("no gzip", says(labelled(Content_Encoding="gzip")), wrong)
    yield Fault(
        "no deflate",
        says(
            lambda s: s.right._replace(
                parts=[b"\xff" * 50], headers={**s.right.headers, "Content-Encoding": "deflate"}
            ).sent()
        ),
        wrong,
    )
    yield Fault(
        "gzip that is broken later",
        then(lambda s: b"\xff" * 60 if s.framing == "close gzip" else chunk(b"\xff" * 60), "close"),
        in_body("ProtocolError"),
        QUESTIONS,
        ["chunked gzip", "close gzip"],
    )

    def without_trailer(scene: Scene) -> bytes:
        frames = framed(scene.right, "close gzip")
        return frames.whole[:-4]

    whole = {name: Expected(REPLY, "ab") for name in ("openai", "ylokh", "h2o")}
    yield Fault(
        "gzip without its trailer",
        says(without_trailer),
        in_body("StreamInterrupted", "ab", **whole),
        framings=["close gzip"],
    )

    def bomb(scene: Scene) -> None:
        headers = {**scene.right.headers, "Content-Encoding": "gzip"}
        scene.send(framed(Answer(scene.right.status, headers, [BOMB]), scene.framing).whole)
        scene.close()

    yield Fault(
        "a gzip bomb",
        bomb,
        in_body("ProtocolError", "", acytoo=Expected("ProtocolError", None)),
        framings=["length", "chunked", "close"],
        config={"max_reply_bytes": 2**20},
    )
    yield Fault(
        "gzip inside gzip",
        says(
            lambda s: Answer(
                s.right.status, {**s.right.headers, "Content-Encoding": "gzip"}, [packed(packed(s.right.body))]
            ).sent()
        ),
        in_body(
            "StreamInterrupted", "", berlin="APIStatusError", acytoo=Expected(REPLY, None), document="ProtocolError"
        ),
    )
    empty = packed(b"")

    def nothing(scene: Scene) -> None:
        headers = {**scene.right.headers, "Content-Encoding": "gzip", "Connection": "close"}
        scene.send(head(scene.right.status, headers))
        scene.forever(empty * 400)

    yield Fault("empty gzip without end", nothing, in_body("ProtocolError", ""), config={"max_reply_bytes": 2**20})


def endless() -> Iterator[Fault]:
    """Bodies that never end."""
    few = {"max_reply_bytes": 300_000}
    longest = {"openai": {"max_event_bytes": 100_000}, "ylokh": {"max_event_bytes": 100_000}}
    for place in QUESTIONS:
        if place.speech.name != "acytoo":
            yield Fault(
                "a line without end",
                endlessly(b"data: " + b"x" * 8192),
                error("ProtocolError", "a"),
                [place],
                FRAMINGS,
                config={"max_reply_bytes": 3 * 2**20, **longest.get(place.speech.name, {})},
            )
    quiet = in_body("ProtocolError", acytoo=Expected("ProtocolError", None))
    for name, data in {
        "blank lines": b"\n" * 8192,
        "comments": b": still here\n\n" * 500,
        "spaces": b" " * 8192,
    }.items():
        places = [
            place for place in PLACES if name != "comments" or place.speech.name in ("openai", "ylokh", "h2o", "acytoo")
        ]
        yield Fault(
            f"{name} without end",
            endlessly(data),
            quiet,
            places,
            ["chunked", "close", "chunked gzip", "close gzip"],
            config=few,
        )
    yield Fault(
        "a reply without end",
        endlessly(b""),
        in_body("ProtocolError", None),
        QUESTIONS,
        ["chunked", "close", "chunked gzip", "close gzip"],
        config=few,
    )


def endlessly(data: bytes) -> Callable[[Scene], None]:
    """Goes on with these bytes, or with more of the reply, in the framing."""

    def act(scene: Scene) -> None:
        place = scene.server.place
        more = data or b"".join(place.speech.parts(["a" * 500, *["a" * 500] * 50])[1:-1])
        announced(scene, 999_999_999)
        before = place.point == "question"
        pack = zlib.compressobj(wbits=31) if "gzip" in scene.framing else None
        if pack and before:
            pack.compress(scene.right.parts[0])
            pack.flush(zlib.Z_SYNC_FLUSH)
        scene.begin()
        with suppress(OSError):
            while True:
                body = pack.compress(more * 20) + pack.flush(zlib.Z_SYNC_FLUSH) if pack else more
                scene.send(chunk(body) if "chunked" in scene.framing else body)

    return act


def pages() -> Iterator[Fault]:
    """Web pages and other labels."""
    page = b"<!DOCTYPE html><html><body>Sign in</body></html>"
    for name, kind in {"HTML": "text/html", "HTML in upper case": "Text/HTML; Charset=UTF-8"}.items():
        yield Fault(name, answering(200, {"Content-Type": kind}, page), in_body("ProtocolError", ""))
    yield Fault(
        "HTML, then silence",
        lambda s: (s.send(head(200, {"Content-Type": "text/html", "Content-Length": "99"}) + page[:9]), s.hold()),
        in_body("ProtocolError", "", openai="ProtocolError"),
        config=SILENCE,
    )
    acytoo = [place for place in QUESTIONS if place.speech.name == "acytoo"]
    for kind in ("application/json", "Application/JSON", "application/json; charset=utf-8", "application/problem+json"):
        yield Fault(
            f"an error as {kind}", answering(200, {"Content-Type": kind}, ERROR), error("APIStatusError"), acytoo
        )


# Errors of the server's own, and JSON of the wrong shape

SAID = {
    "berlin": b'{"code": 500, "msg": "out of order"}\n',
    "h2o": b'data:{"error": "out of order", "error_type": "overloaded"}\n\n',
    "openai": b'data: {"error": {"message": "out of order"}}\n\n',
    "ylokh": b'data: {"error": {"message": "out of order"}}\n\n',
}


def said() -> Iterator[Fault]:
    """Errors in a reply, at each position."""
    for position in range(3):

        def act(scene: Scene, position: int = position) -> None:
            name = scene.server.place.speech.name
            parts = [*scene.right.parts[:position], (b"\n" if position and name == "berlin" else b"") + SAID[name]]
            scene.send(framed(scene.right._replace(parts=parts), scene.framing).whole)
            if "close" in scene.framing:
                scene.close()

        spoken = [place for place in QUESTIONS if place.speech.name in SAID]
        right = error("APIStatusError", "ab"[:position], detail="out of order")
        yield Fault(f"an error behind {position} pieces", act, right, spoken, FRAMINGS)
    whole = b'{"error": "out of order", "error_type": "overloaded"}'
    spoken = [place for place in QUESTIONS if place.speech.name in ("openai", "ylokh", "h2o", "berlin")]
    right = error("APIStatusError", detail="out of order")
    yield Fault("an error as JSON with 200", answering(200, {"Content-Type": "application/json"}, whole), right, spoken)


SHAPES = {
    "null": b"null", "true": b"true", "a number": b"5", "a huge number": b"1e999", "NaN": b"NaN", "a text": b'"x"',
    "no text": b'""', "a list": b"[]", "a list of null": b"[null]", "a list of lists": b"[[]]", "an object": b"{}",
    "an object of null": b'{"message": null}', "100,000 lists": b"[" * 100_000 + b"]" * 100_000, "half": b'{"',
    "half a surrogate": b'"\\ud800"',
}  # fmt: skip
TEXTS = {"a text", "half a surrogate"}
#: Shapes that end what stands around them.
BROKEN = {"100,000 lists", "half"}
EMPTY = {"an object", "an object of null"}
SPOKEN = {*TEXTS, "no text", "null", "a list", "a list of null", "a list of lists"}


class Field(NamedTuple):
    """A field of a protocol, and what must come of the wrong shapes.

    Attributes:
        where: the point, or the protocol of a question.
        around: the JSON around it.
        right: the shapes that are no fault.
        others: what comes of some shapes instead of ``kind``.
    """

    where: str
    name: str
    around: bytes
    right: set[str]
    kind: str
    others: Mapping[str, set[str]] = MappingProxyType({})


REFUSED, STATUS, PROTOCOL, CUT = "AuthenticationError", "APIStatusError", "ProtocolError", "StreamInterrupted"
FIELDS = [
    Field("login", "*", b"%b", set(), PROTOCOL, {REFUSED: EMPTY}),
    Field("login", "data", b'{"data": %b}', set(), REFUSED, {PROTOCOL: BROKEN}),
    Field(
        "login",
        "data.token",
        b'{"data": {"token": %b}}',
        {"a text"},
        REFUSED,
        {PROTOCOL: {*BROKEN, "half a surrogate"}},
    ),
    Field("conversation", "*", b"%b", set(), PROTOCOL),
    Field("conversation", "conversationId", b'{"conversationId": %b}', TEXTS, PROTOCOL),
    Field("models", "*", b"%b", set(), PROTOCOL),
    Field("models", "data", b'{"data": %b}', {"a list"}, PROTOCOL),
    Field("models", "data[]", b'{"data": [%b]}', set(), PROTOCOL),
    Field("models", "data[].id", b'{"data": [{"id": %b}]}', TEXTS, PROTOCOL),
    Field("berlin", "*", b"%b", set(), STATUS, {CUT: {"half"}}),
    Field(
        "berlin",
        "content",
        b'{"content": %b}',
        {*TEXTS, "no text"},
        STATUS,
        {PROTOCOL: {"100,000 lists"}, CUT: {"half"}},
    ),
    Field("h2o", "*", b"data: %b\n\n", set(), PROTOCOL),
    Field("h2o", "token", b'data: {"token": %b, "generated_text": null}\n\n', set(), PROTOCOL),
    Field(
        "h2o",
        "token.text",
        b'data: {"token": {"special": false, "text": %b}, "generated_text": "x"}\n\n',
        {*TEXTS, "no text"},
        PROTOCOL,
    ),
    Field("openai", "*", b"data: %b\n\n", set(), PROTOCOL, {CUT: {*EMPTY, "null"}}),
    Field("openai", "choices", b'data: {"choices": %b}\n\n', set(), PROTOCOL, {CUT: {"null", "a list"}}),
    Field("openai", "choices[]", b'data: {"choices": [%b]}\n\n', set(), PROTOCOL, {CUT: EMPTY}),
    Field("openai", "delta", b'data: {"choices": [{"delta": %b}]}\n\n', set(), PROTOCOL, {CUT: {*EMPTY, "null"}}),
    Field(
        "openai",
        "delta.content",
        b'data: {"choices": [{"delta": {"content": %b}, "finish_reason": "stop"}]}\n\n',
        SPOKEN,
        PROTOCOL,
    ),
    Field("openai", "message", b'{"choices": [{"message": %b}]}', set(), PROTOCOL),
    Field("openai", "message.content", b'{"choices": [{"message": {"content": %b}}]}', SPOKEN, PROTOCOL),
]
_TOKEN = b'"token": {"text": "ab", "special": false}, "generated_text": "ab"'
_CHOICE = b'"choices": [{"delta": {"content": "ab"}, "finish_reason": "stop"}]'
_DELTA = b'data: {"choices": [{"delta": {"content": "ab", "%b": @}, "finish_reason": "stop"}]}\n\n'
_BESIDE = b'data: {"choices": [{"delta": {"content": "ab"}, "finish_reason": "stop", "%b": @}]}\n\n'
#: What may be anything, for no text depends on it: protocol, JSON around it, names.
BESIDE = [
    ("berlin", b'{"content": "ab", "%b": @}\n', "id role detail parentMessageId code msg"),
    ("h2o", b"data: {" + _TOKEN + b', "%b": @}\n\n', "details error_type extra"),
    ("openai", b"data: {" + _CHOICE + b', "%b": @}\n\n', "id model usage created citations x_groq service_tier"),
    ("openai", _DELTA, "role tool_calls function_call refusal reasoning reasoning_content annotations audio"),
    ("openai", _BESIDE, "logprobs content_filter_results"),
]


def shapes() -> Iterator[Fault]:
    """JSON of the wrong shape, in every field of every protocol."""
    kind = {"Content-Type": "application/json"}
    for found, (shape, value) in product(FIELDS, SHAPES.items()):
        if shape not in found.right:
            expected = next((name for name, some in found.others.items() if shape in some), found.kind)
            places = [place for place in PLACES if found.where in (place.point, place.speech.name)]
            places = [place for place in places if found.where == place.point or place.point == "question"]
            yield Fault(f"{found.name} is {shape}", answering(200, kind, found.around % value), error(expected), places)
    for (protocol, around, names), (shape, value) in product(BESIDE, SHAPES.items()):
        places = [place for place in QUESTIONS if place.speech.name == protocol]
        for name in names.split() if shape not in BROKEN else ():
            body = (around % name.encode()).replace(b"@", value)
            yield Fault(f"{name} is {shape}", answering(200, kind, body), harmless, places)


def repeated() -> Iterator[Fault]:
    """What is tried again: the fault is there once, or for good."""
    config = {"retries": 1}
    begun = head(503, {"Content-Length": "10"})
    for name, act in {
        "closed": Scene.close,
        "reset": Scene.reset,
        "a cut status line": says(b"HTTP/1.1 2"),
        "429": answering(429, {"Retry-After": "0"}, b""),
        "503, then silence": lambda s: (s.send(begun), s.hold()),
        "503, then closed": says(begun),
        "502, huge": answering(502, {}, BODIES["huge"]),
    }.items():
        places = [place for place in PLACES if place.point not in ("stop", "delete")]
        yield Fault(f"once: {name}", act, harmless, places, config=config, times=1)
    for name, act, kind in (
        ("silence", Scene.hold, "APITimeoutError"),
        ("another protocol", says(b"SSH-2.0\r\n"), "ProtocolError"),
        ("400", answering(404, {}, b""), "APIStatusError"),
        ("501", answering(501, {}, b""), "APIStatusError"),
    ):
        places = [place for place in QUESTIONS if place.speech.name != "h2o"]
        yield Fault(f"never again: {name}", act, error(kind, attempts=1), places, config={**config, **SILENCE}, times=1)
    for name, act in {
        "closed": then("close"),
        "reset": then("reset"),
        "a broken chunk": then(b"xyz\r\n", "close"),
    }.items():
        right = error("ProtocolError" if "broken" in name else "StreamInterrupted", "a", attempts=1)
        yield Fault(f"never after a piece: {name}", act, right, QUESTIONS, ["chunked"], config, times=1)
    for value in ("99999999999", "Fri, 31 Dec 9999 23:59:59 GMT"):
        yield Fault(
            f"Retry-After: {value} within a deadline",
            answering(429, {"Retry-After": value}, b""),
            error("APITimeoutError"),
            QUESTIONS[:3],
            config=config,
            question=DEADLINE,
        )


GROUPS = [
    connections,
    heads,
    tolerated,
    statuses,
    redirects,
    waits,
    bodies,
    chunks,
    encodings,
    endless,
    pages,
    said,
    shapes,
    repeated,
]
FAULTS = [fault for group in GROUPS for fault in group()]
CELLS = [Cell(fault, place, framing) for fault in FAULTS for place in fault.places for framing in fault.framings]


# How a cell is filled


def play(cell: Cell) -> Outcome:
    """Lets a server do what is wrong, asks it, and looks at all that came of it."""
    threads, sockets, memory = set(threading.enumerate()), open_sockets(), _memory()
    with (
        patch("berlin_chat.http.cleanup.LAST_TIMEOUT", 0.3),
        patch("berlin_chat.http.retries.FIRST_WAIT", 0.001),
        patch("berlin_chat.http.transport.ERROR_SECONDS", 0.1),
        FaultyServer(
            cell.place, cell.framing if cell.framing != "-" else "length", cell.fault.act, cell.fault.times
        ) as server,
    ):
        server.greeting = cell.fault.greeting
        if cell.fault.act is refuse and cell.place.point in ("login", "settings", "models"):
            server.refuse()
        if cell.fault.act is refuse and cell.place.point == "question" and cell.place.speech.name != "h2o":
            server.refuse()
        outcome = _play(cell, server)
        for connection in server.connections:
            connection.close()
    left = {thread for thread in threading.enumerate() if thread not in threads}
    for thread in left:
        thread.join(1)
    outcome.wrong.extend(f"the thread {thread.name} is left" for thread in left if thread.is_alive())
    if more := open_sockets() - sockets:
        outcome.wrong.append(f"{len(more)} sockets are left")
    outcome.wrong.extend(f"the server failed: {fault!r}" for fault in server.faults)
    if (more := _memory() - memory) > MEMORY:
        outcome.wrong.append(f"{more} KiB more memory")
    return outcome


def open_sockets() -> set[str]:
    """The sockets of this process, as the kernel names them; none where it does not tell."""
    found = set()
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {name for name in found if name.startswith("socket:")}


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _play(cell: Cell, server: FaultyServer) -> Outcome:
    place = cell.place
    login = {"account": "me", "password": "hunter2-secret"} if place.point == "login" else {"token": "sesame-token"}
    # A connection that closes behind a whole answer, unannounced, may be tried for the next request.
    retries = int(cell.expected.result == REPLY)
    config = {
        "retries": retries,
        "timeout": (2, 2),
        **(login if place.speech.name == "berlin" else {}),
        **cell.fault.config,
    }
    wrong: list[str] = []
    with get_provider(place.speech.name, base_url=server.url, **config) as provider:
        watch, read, failure, facts = Stopwatch(), [], None, None
        try:
            if place.point == "models":
                read = provider.models(**cell.fault.question)
            else:
                stream = provider.stream("Hi", **cell.fault.question)
                while True:
                    read.append(next(stream))
                    server.read()
        except StopIteration as end:
            facts = end.value
        except ChatError as caught:
            failure = facts = caught
        except BaseException as caught:  # what must never come
            wrong.append("".join(traceback.format_exception(caught))[-2000:])
        seconds = watch.seconds
        if watch.undisturbed > PATIENCE:
            wrong.append(f"it took {seconds:.1f} s")
        result = type(failure).__name__ if failure is not None else REPLY
        wrong += _compared(cell.expected, result, "".join(read), facts)
        if failure is not None:
            wrong += _shown(failure)
        wait_for(lambda: not server.acting)
        server.faulty = False
        if cell.fault.act is refuse:
            server.accept_again()
        with suppress(ChatError):
            later = provider.ask("And now?", retries=1)
            if later != "".join(LATER):
                wrong.append(f"the next reply is {later!r}")
        if "later" not in locals():
            wrong.append("the next question failed")
        if place.point == "models" and provider.models() != ["m-1"]:
            wrong.append("the next list of models is another")
    if place.speech.name == "h2o" and cell.fault.act is not refuse:
        gone = [request.path.rpartition("/")[2] for request in server.asked("DELETE", ".*")]
        if set(gone) != set(server.created) and place.point != "conversation":
            wrong.append(f"of the conversations {server.created}, {gone} were deleted")
    return Outcome(result, seconds, wrong)


def _compared(expected: Expected, result: str, read: str, facts: Any) -> list[str]:
    wrong = []
    if result != expected.result:
        wrong.append(f"{result} instead of {expected.result}: {facts}")
    if isinstance(facts, ChatError):
        if facts.partial != read:
            wrong.append(f"partial is {facts.partial[:50]!r}, but {read[:50]!r} was read")
        if isinstance(facts.__cause__, MemoryError):
            wrong.append("a MemoryError")
    if expected.text is not None and read != expected.text:
        wrong.append(f"{read[:50]!r} was read instead of {expected.text!r}")
    for name, value in expected.facts.items():
        found = getattr(facts, name, None)
        if value not in str(found) if name == "detail" else found != value:
            wrong.append(f"{name} is {found!r}, not {value!r}")
    return wrong


def _shown(error: ChatError) -> list[str]:
    """What is wrong with how an error can be shown."""
    wrong = []
    if len(str(error)) > SHORT:
        wrong.append(f"its text is {len(str(error))} characters long")
    try:
        repr(error), "".join(traceback.format_exception(error))
        if str(pickle.loads(pickle.dumps(error))) != str(error):
            wrong.append("a pickle changes it")
    except Exception as failure:
        wrong.append(f"it cannot be shown: {failure!r}")
    return wrong


# The table


def main(words: list[str]) -> int:
    """Fills the cells whose names hold all words, prints the matrix, and returns the exit status."""
    cells = [cell for cell in CELLS if all(word.lower() in str(cell).lower() for word in words)]
    rows: dict[str, list[tuple[Cell, Outcome]]] = defaultdict(list)
    watch, failed = Stopwatch(), []
    for cell in cells:
        outcome = play(cell)
        rows[cell.fault.name].append((cell, outcome))
        if outcome.wrong:
            failed.append((cell, outcome))
    for name, row in rows.items():
        print(name)
        for cell, outcome in row:
            mark = "WRONG" if outcome.wrong else ""
            print(
                f"    {cell.place!s:18} {cell.framing:13} {outcome.result:20} {outcome.seconds:6.3f} s {mark}".rstrip()
            )
    for cell, outcome in failed:
        print(f"\nWRONG: {cell}", *outcome.wrong, sep="\n    ")
    print(f"\n{len(cells)} cells in {watch.seconds:.0f} s, {len(failed)} of them wrong")
    return 1 if failed or not cells else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
