"""Targets: the decoders, which are pure."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from berlin_chat import ProtocolError, StreamInterrupted, decoding
from berlin_chat.http import encodings, responses
from dialects import DIALECTS
from fuzzing import references
from fuzzing.form import Target, headed, outcome, same, same_however_cut, seeded
from wire import SPEECHES

#: What is decompressed of one input at the most, in bytes: the limit of a whole reply stands elsewhere.
ENOUGH = 2**20
#: Charsets that Python decodes in parts as it does at once; of others it is only asked that nothing breaks.
SAME_AT_ONCE = ("utf-8", "iso-8859-1", "windows-1252", "koi8-r", "us-ascii", "shift_jis", "euc-kr", "gb18030", "big5")

BODIES = [b"".join(speech.parts(["Gr\xfc\xdfe", " \U0001f642", "\n", 'a "b" {c}'])) for speech in SPEECHES]
STREAMS = [*BODIES, *(dialect.body for dialect in DIALECTS if dialect.body)]
DOCUMENTS = [
    *(dialect.whole for dialect in DIALECTS if dialect.whole),
    *(b'{"code":401,"msg":"no"}', b"[1,2.5,-0,1e400,NaN,null,true]", b'{"a":"\\ud83d\\ude42\\ud83d"}', b"[" * 201),
    *(b"18446744073709551616", b'{"a":{"b":[[]]}} ', b'"\xff"'),
]


def lines(data: bytes) -> None:
    """As the reference, however cut."""
    seed, data = headed(data)
    found, error = same_however_cut(data, seed, lambda chunks: outcome(decoding.lines(chunks)))
    assert not error
    same(found, references.lines(data))


def events(data: bytes) -> None:
    """As the reference, however cut."""
    seed, data = headed(data)
    found, error = same_however_cut(data, seed, lambda chunks: outcome(decoding.events(chunks)))
    assert not error
    same(found, references.events(data))


def objects(data: bytes) -> None:
    """As the reference, however cut; each object is one that JSON has."""
    seed, data = headed(data)
    declared = (ProtocolError, StreamInterrupted)
    found, error = same_however_cut(data, seed, lambda chunks: _shown(outcome(decoding.objects(chunks), declared)))
    if not error:
        same(found, repr(references.objects(data)))


def text(data: bytes) -> None:
    """UTF-8 as Python decodes it at once; without empty pieces."""
    seed, data = headed(data)

    def read(chunks: Iterable[bytes]) -> str:
        pieces, error = outcome(decoding.text(chunks))
        assert not error
        assert all(pieces)
        return "".join(pieces)

    same(same_however_cut(data, seed, read), data.removeprefix(references.BOM).decode("utf-8", "replace"))


def charset(data: bytes) -> None:
    """The first line names it: text, or a ``ProtocolError``."""
    seed, data = headed(data)
    name, _, data = data.partition(b"\n")
    encoding = name.decode("latin-1")
    pieces, error = outcome(decoding.text([data], encoding))
    assert all(isinstance(piece, str) for piece in pieces)
    if encoding.lower() in SAME_AT_ONCE:
        found = same_however_cut(data, seed, lambda chunks: "".join(decoding.text(chunks, encoding)))
        same(found, data.removeprefix(references.BOM).decode(encoding, "replace"))
        assert not error


def json_document(data: bytes) -> None:
    """Either parser gives the same value as the reference, or ValueError; however a document is cut."""
    seed, data = headed(data)
    expected = _value(references.json_value, data)
    try:
        import orjson
    except ImportError:
        parsers = [decoding._standard_loads]
    else:
        parsers = [decoding._standard_loads, decoding._shallow(orjson.loads)]
    chosen = decoding._loads
    try:
        for number, parser in enumerate(parsers):
            decoding._loads = parser
            value = _value(decoding.parse, data)
            if value == "nested":
                assert expected == "no JSON" or references.depth(data) > decoding.DEEPEST
            elif number:
                same(value, expected, "orjson")
            else:
                same(value, _value(lambda data: json.loads(data.decode("utf-8", "replace")), data))
            same_however_cut(data, seed, lambda chunks: outcome(_document(chunks)))
    finally:
        decoding._loads = chosen


def _document(chunks: Iterable[bytes]) -> Iterator[str]:
    yield repr(decoding.document(chunks, behind=b"data: [DONE]"))


def _value(parse: Callable[[bytes], Any], data: bytes) -> str:
    try:
        return repr(parse(data))
    except decoding._TooDeep:
        return "nested"
    except (ValueError, RecursionError):
        return "no JSON"


def _shown(found: tuple[list[Any], str]) -> tuple[str, str]:
    """Comparable, for NaN is not equal to itself."""
    return repr(found[0]), found[1]


def chunked(data: bytes) -> None:
    """The body, and whether it is whole, as the reference says, however cut."""
    seed, data = headed(data)

    def read(chunks: Iterable[bytes]) -> tuple[bytes, str]:
        decoder, body = responses.ChunkedDecoder(), b""
        for chunk in chunks:
            try:
                body += decoder.feed(chunk)
            except ValueError:
                assert decoder.broken is not None
                return body, "broken"
            if decoder.done:
                return body, "whole"
        return body, "cut" if decoder.broken is None else "broken"

    same(same_however_cut(data, seed, read), references.chunked(data, responses.MAX_FRAMING))


def compressed(data: bytes) -> None:
    """As the reference says, however cut; never more at a time than is allowed."""
    seed, data = headed(data)
    encoding = ("gzip", "deflate", "x-gzip", "br")[seed % 4]

    def read(chunks: Iterable[bytes]) -> tuple[bytes, str]:
        def content() -> Iterator[bytes]:
            left = ENOUGH
            for part in encodings.decompressed(chunks, encoding, may_be_empty=True):
                assert 0 < len(part) <= encodings.MAX_CONTENT
                yield part[:left]
                if (left := left - len(part)) <= 0:
                    return

        parts, error = outcome(content(), (ProtocolError, StreamInterrupted))
        return b"".join(parts), error

    found, error = same_however_cut(data, seed, read)
    expected = references.decompressed(data, encoding)
    if expected is None:
        assert error or len(found) == ENOUGH
    elif len(expected) < ENOUGH:
        same((found, error), (expected, ""))


def _compressed() -> list[bytes]:
    seeds = []
    for body in STREAMS[:8]:
        seeds += [b"\0" + gzip.compress(body, mtime=0), b"\2" + gzip.compress(body, mtime=0) + b"\0\0"]
        seeds += [b"\1" + zlib.compress(body), b"\1" + zlib.compress(body)[2:-4], b"\3" + body]
        seeds.append(b"\0" + gzip.compress(body, mtime=0) + gzip.compress(body[::-1], mtime=0))
        parts = zlib.compressobj(wbits=31)
        seeds.append(b"\0" + b"".join(parts.compress(part) + parts.flush(zlib.Z_SYNC_FLUSH) for part in (body, body)))
    return [*seeds, b"\0" + gzip.compress(bytes(200_000), mtime=0)]


def _chunked() -> list[bytes]:
    extended = b"5;a=b\r\nhello\r\nA \n0123456789\n0;x\r\nTrailer: y\r\n\r\n"
    broken = [b"5\r\nhello0\r\n\r\n", b"-5\r\n", b"0x5\r\n", b"ffffffffffffffff\r\nabc", b"5\r\nhel", b"g\r\n"]
    whole = b"".join(b"%x\r\n%b\r\n" % (len(body[:40]), body[:40]) for body in BODIES) + b"0\r\n\r\n"
    return [extended, *broken, whole, whole + b"HTTP/1.1 200 OK\r\n"]


CHARSETS = [*SAME_AT_ONCE, "utf-16", "utf-7", "hex", "idna", "undefined", "punycode", "rot13", "utf-8\0", "iso2022_jp"]

TARGETS = {
    "lines": Target(lines, seeded(*STREAMS, b"a\rb\r\nc\n\n\r\r\nd", references.BOM + b"a\n")),
    "events": Target(events, seeded(*STREAMS, b"data\n\ndata:\n\ndata: a\ndata:  b\r\r: c\nid: 1\r\n\r\n")),
    "objects": Target(objects, seeded(*BODIES, *DOCUMENTS, b'{"a":"}\\"{"}\nx\r\n\n{"b":{}}', b'{"a":0}{"a":1}\n')),
    "text": Target(text, seeded(*BODIES, b"\xf0\x9f\x99\x82\xf0\x9f", references.BOM + b"\xed\xa0\x80\xc0\xaf")),
    "charset": Target(charset, seeded(*(f"{name}\nGr\xfc\xdfe \u7ea2".encode() for name in CHARSETS))),
    "json": Target(json_document, seeded(*DOCUMENTS)),
    "chunked": Target(chunked, seeded(*_chunked())),
    "compressed": Target(compressed, _compressed()),
}
