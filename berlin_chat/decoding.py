"""Bytes as they arrive → lines → events and objects → JSON and text.

Everything here is pure: it knows neither HTTP nor a provider, and gives the same result however the
bytes were split on their way. Whatever can be told from the bytes so far is given at once; what is
kept back is kept in pieces and joined once, so that the cost is linear in the length, and bounded.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from .errors import ProtocolError, StreamInterrupted
from .process import importing

#: The longest line, and the most data of one event, that is read, in bytes.
MAX_LINE = 2**20
#: How deeply JSON may be nested.
DEEPEST = 200
#: What tells how deeply JSON is nested. A whole string would be fewer matches, but one without an end is searched for
#: from each of its quotes.
_NESTING = re.compile(rb'\\.|[]["{}]', re.DOTALL)
#: The longest JSON document that is read whole, in bytes.
MAX_DOCUMENT = 64 * 2**20


class Lines:
    """Splits bytes into lines that end with LF, CR or CRLF, also where these are torn apart.

    Args:
        limit: the longest line, in bytes; ``MAX_LINE`` unless another is given.
        advice: what to do about a longer one.
    """

    def __init__(self, limit: int | None = None, advice: str = "") -> None:
        self._limit = MAX_LINE if limit is None else limit
        self._advice = advice
        self.unfinished: list[bytes] = []  # the parts of the line whose end has not arrived
        self._size = 0
        self._after_cr = False  # a LF that comes now belongs to the line end before it

    def feed(self, data: bytes) -> Iterable[bytes]:
        """Returns the lines that ``data`` completes; behind them comes ProtocolError where the next is too long."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        too_long = self._size + len(lines[0]) > self._limit
        # pragma: no mutate - the first look at data spares the second, which decides
        if too_long or (len(data) > self._limit and max(map(len, lines)) > self._limit):
            return self._until_too_long(lines)
        rest = lines.pop()
        if lines and self.unfinished:
            lines[0] = b"".join([*self.unfinished, lines[0]])
            self.unfinished, self._size = [], 0
        if rest:
            self.unfinished.append(rest)
            self._size += len(rest)
        return lines

    def _until_too_long(self, lines: list[bytes]) -> Iterator[bytes]:
        lines[0] = b"".join([*self.unfinished, lines[0]])
        for line in lines:
            if len(line) > self._limit:
                self.unfinished, self._size = [line], len(line)  # it goes on, and is too long for ever
                said = f"a line of more than {self._limit} bytes: this is not the protocol"
                raise ProtocolError(said, advice=self._advice)
            yield line


def without_bom(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Passes bytes on without one leading byte order mark, as UTF-8 decoding in browsers does."""
    chunks = iter(chunks)
    head = b""
    for data in chunks:
        head += data
        if not codecs.BOM_UTF8.startswith(head):
            break
    return chain([head.removeprefix(codecs.BOM_UTF8)], chunks)


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields lines without their ends, each as soon as its end has arrived.

    A CR ends its line at once: nobody waits for a LF that may belong to it. What follows the last
    line end is not yielded. U+2028, U+2029 and U+0085 are text. Raises ProtocolError past ``MAX_LINE``.
    """
    feed = Lines().feed
    for data in without_bom(chunks):
        yield from feed(data)


def events(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the data of server-sent events, each as soon as its blank line has arrived.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    The other fields (``event``, ``id``, ``retry``) mean nothing to these protocols, and are dropped like
    comments. An event that the stream's end cuts off is dropped too, as the standard says.
    Raises ProtocolError where an event's data passes ``MAX_LINE``.
    """
    data: list[bytes] = []
    size = -1  # every line brings its value and, but for the first, a line end
    feed = Lines().feed  # as in lines(), without a second generator that every line would pass
    for received in without_bom(chunks):
        for line in feed(received):
            if line.startswith(b"data:") or line == b"data":
                value = line[6:] if line.startswith(b"data: ") else line[5:]
                size += len(value) + 1
                if size > MAX_LINE:
                    raise ProtocolError(f"an event of more than {MAX_LINE} bytes: this is not the protocol")
                data.append(value)
            elif not line and data:
                yield b"\n".join(data)
                data = []
                size = -1


def objects(chunks: Iterable[bytes]) -> Iterator[dict[str, Any] | str]:
    """Yields the JSON objects of a stream that has one a line; blank lines are skipped.

    An object is yielded as soon as its last byte has arrived: the line end, which stands *between*
    objects, is not waited for. A line that holds no object is yielded as the ``str`` that it is.

    Raises:
        ProtocolError: a line starts like an object but is none, or is longer than ``MAX_LINE``.
        StreamInterrupted: the bytes end inside an object.
    """
    splitter = Lines()
    early = _EarlyObject()
    for data in without_bom(chunks):
        for line in splitter.feed(data):
            if early.length:
                _check_nothing_follows(line, early.length)
            elif line and not line.isspace():
                yield from _object_or_text(line)
            if early.length or early.scanning:
                early = _EarlyObject()
        if splitter.unfinished and not early.length:
            value = early.look(splitter.unfinished)
            if value is not None:
                yield value
    rest = b"".join(splitter.unfinished)
    if early.length:
        _check_nothing_follows(rest, early.length)
    elif rest.lstrip().startswith(b"{") and not early.closed(splitter.unfinished):
        raise StreamInterrupted("the stream ended inside an object", detail=rest)
    elif rest and not rest.isspace():
        yield from _object_or_text(rest)


class _EarlyObject:
    """Finds the end of the JSON object that stands on a line whose own end has not arrived.

    Nearly always a read ends where an object ends, so the first look is to parse what is there. Where
    that fails (a brace inside a string, an inner object), the bytes are scanned, each of them once.
    """

    _OUTSIDE = re.compile(rb'["{}]')
    _IN_STRING = re.compile(rb'["\\]')

    def __init__(self) -> None:
        self.length = 0  # bytes of the line up to the object's end; 0 until it has been found
        self.scanning = False  # the first look failed
        # Where the scan found the outermost brace closed, counted from the start of what was new; 0 until it has. What
        # is no object by then never becomes one.
        self.end = 0
        self._scanned = 0  # parts of the line
        self._depth = 0
        self._in_string = False
        self._escaped = False  # a backslash ended the last part: the next byte is no quote

    def look(self, parts: list[bytes]) -> dict[str, Any] | None:
        """Returns the object if the parts of the line end with its end, else None."""
        if self.scanning:
            return self._parsed(parts) if not self.end and self.closed(parts) else None
        if not parts[-1].rstrip().endswith(b"}"):
            return None
        value = self._parsed(parts)
        if value is None:
            self.scanning = True
            self.closed(parts)
        return value

    def _parsed(self, parts: list[bytes]) -> dict[str, Any] | None:
        line = b"".join(parts)
        value = _object_or_none(line)
        if value is not None:
            self.length = len(line)
        return value

    def closed(self, parts: list[bytes]) -> bool:
        """Scans the parts that are new; says whether the outermost brace has been closed."""
        new = b"".join(parts[self._scanned :])
        if not new:
            return self.end > 0
        self._scanned = len(parts)
        position = int(self._escaped)
        self._escaped = False
        while match := (self._IN_STRING if self._in_string else self._OUTSIDE).search(new, position):
            position = match.end()
            byte = match[0]
            # pragma: no mutate - none of the four bytes that are looked for comes before this one
            if byte == b'"':
                self._in_string = not self._in_string
            # pragma: no mutate - nor any of the others before this one
            elif byte == b"\\":
                self._escaped = position == len(new)  # pragma: no mutate - it is never greater
                position += 1
            else:
                # pragma: no mutate - either sign will do, for all that counts is the way back to 0
                self._depth += 1 if byte == b"{" else -1
                # pragma: no mutate - of an object, which begins with a brace, the depth is never below 0
                if self._depth == 0 and not self.end:
                    self.end = position
        return self.end > 0


def text(chunks: Iterable[bytes], encoding: str = "utf-8") -> Iterator[str]:
    """Yields text as it arrives, without empty pieces; what is no text becomes U+FFFD, as in browsers.

    The bytes of a character that is torn apart wait for the rest of it.
    """
    try:
        if encoding.lower() != "utf-8":
            with importing:  # for most codecs are modules
                b" ".decode(encoding, "replace")  # not all of them are of text, and not all can replace
    except (LookupError, ValueError):
        raise ProtocolError("the text is in an unknown charset", detail=encoding) from None
    decode = codecs.getincrementaldecoder(encoding)("replace").decode
    try:
        for data in without_bom(chunks):
            if piece := decode(data):
                yield piece
        if piece := decode(b"", True):
            yield piece
    except UnicodeError as error:
        raise ProtocolError(f"the text is not in its charset, {encoding}", detail=str(error)) from None


class _TooDeep(ValueError):
    """JSON that is nested more than ``DEEPEST`` deep, so that it could be read, but not shown or written again."""


def _check_depth(data: bytes) -> None:
    """RFC 8259, section 9: "an implementation may set limits on the maximum depth of nesting"."""
    if data.count(b"[") + data.count(b"{") > DEEPEST:  # pragma: no mutate - only spares the rest, which decides
        depth, in_string = 0, False
        for found in _NESTING.finditer(data):
            mark = found[0]
            if mark == b'"':  # pragma: no mutate - no other mark comes before it
                in_string = not in_string
            elif in_string:
                continue
            elif mark in (b"[", b"{"):
                depth += 1
                if depth > DEEPEST:
                    raise _TooDeep("JSON nested too deeply")
            elif mark in (b"]", b"}"):
                depth -= 1


def _shallow(loads: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A parser that refuses what is nested too deeply."""

    def shallow(data: bytes) -> Any:
        if len(data) > 2 * DEEPEST:  # pragma: no mutate - only spares the check of what could not be too deep
            _check_depth(data)
        return loads(data)

    return shallow


@_shallow
def _standard_loads(data: bytes) -> Any:
    return _decode_json(data.decode())


_decode_json = json.JSONDecoder().decode


def _first_loads(data: bytes) -> Any:
    """Chooses the parser at its first use, for orjson takes as long to import as this whole package."""
    global _loads
    try:
        with importing:
            import orjson  # the extra [speed]
    except ImportError:
        _loads = _standard_loads
    else:
        _loads = _shallow(orjson.loads)
    return _loads(data)


_loads: Callable[[bytes], Any] = _first_loads


def parser() -> Callable[[bytes], Any]:
    """Returns the parser itself, for loops that count every call; what it raises for, ``parse`` may still read."""
    return _loads


def parse(data: bytes) -> Any:
    """Returns the value of JSON in UTF-8; raises ValueError where it is none.

    Bytes that are no UTF-8 become U+FFFD. What the faster parser of the extra ``[speed]`` refuses (NaN, half
    of a surrogate pair) is left to the standard library's, so that the result does not depend on the extra, but for
    integers beyond 64 bits, which it makes floats.
    """
    try:
        try:
            return _loads(data)
        except _TooDeep:
            raise
        except ValueError:
            return _decode_json(data.decode("utf-8", "replace"))
    except RecursionError:  # the standard library's, where many calls are under way already
        raise _TooDeep("JSON nested too deeply for a caller that is itself so deep") from None


def document(chunks: Iterable[bytes], behind: bytes = b"") -> dict[str, Any]:
    """Returns the JSON object that is all of a body, but for what may stand ``behind`` it.

    Raises ProtocolError where it holds none, or is too long.
    """
    parts, size = [], 0
    for data in chunks:
        parts.append(data)
        size += len(data)
        if size > MAX_DOCUMENT:
            raise ProtocolError(f"a body of more than {MAX_DOCUMENT} bytes")
    body = b"".join(parts).strip().removesuffix(behind)
    value = _object_or_none(body)
    if value is None:
        raise ProtocolError("a JSON object was expected", detail=body, body=body)
    return value


def _object_or_none(line: bytes) -> dict[str, Any] | None:
    """Returns the JSON object that a line is; None where it is none."""
    try:
        value = parse(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _object_or_text(line: bytes) -> Iterator[dict[str, Any] | str]:
    value = _object_or_none(line)
    if value is not None:
        yield value
    elif line.lstrip().startswith(b"{"):
        # An object in front of what breaks the line is yielded if it comes alone, and so it is if all comes at once.
        early = _EarlyObject()
        if early.closed([line]) and (value := _object_or_none(line[: early.end])) is not None:
            yield value
            _check_nothing_follows(line, early.end)
        raise ProtocolError("a line that is broken JSON", detail=line)
    else:
        yield line.decode("utf-8", "replace").strip()


def _check_nothing_follows(line: bytes, length: int) -> None:
    if rest := line[length:].strip(b" \t"):
        raise ProtocolError("no line end behind an object", detail=rest)
