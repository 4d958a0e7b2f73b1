"""The decoders for a whole input at once, as the standards have them, without a thought for speed or early arrival."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

BOM = b"\xef\xbb\xbf"
LINE_END = re.compile(rb"\r\n|\n|\r")


def lines(data: bytes) -> list[bytes]:
    """All but the last, which has no end."""
    return LINE_END.split(data.removeprefix(BOM))[:-1]


def events(data: bytes) -> list[bytes]:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html, "interpreting an event stream"."""
    found, buffer = [], None
    for line in lines(data):
        if not line:
            if buffer is not None:
                found.append(b"\n".join(buffer))
            buffer = None
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            buffer = [*(buffer or []), value.removeprefix(b" ")]
    return found


def chunked(data: bytes, limit: int) -> tuple[bytes, str]:
    """RFC 9112, section 7.1: the body, and whether it is ``"whole"``, ``"cut"`` or ``"broken"``.

    As lenient as the decoder means to be: a LF alone ends a line. What is no framing is broken as soon as its line has
    ended, or is longer than the limit.
    """
    body = b""
    while True:
        size, data = _line(data, rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?", limit)
        if isinstance(size, str):
            return body, size
        length = int(size[1], 16)
        if not length:
            return body, _trailers(data, limit)
        body, data = body + data[:length], data[length:]
        end, data = _line(data, rb"\r?", limit)
        if isinstance(end, str):
            return body, end


def _line(data: bytes, pattern: bytes, limit: int) -> tuple[re.Match[bytes] | str, bytes]:
    line, end, rest = data.partition(b"\n")
    match = re.fullmatch(pattern, line) if end and len(line) < limit else None
    if match:
        return match, rest
    return "broken" if end or len(data) > limit else "cut", b""


def _trailers(data: bytes, limit: int) -> str:
    size, cut = 0, "broken" if len(data) > limit else "cut"
    while True:
        line, end, data = data.partition(b"\n")
        size += len(line) + 1
        if not end or size > limit or b"\r" in line[:-1]:
            return cut
        if line in (b"", b"\r"):
            return "whole"


def decompressed(data: bytes, encoding: str) -> bytes | None:
    """What is compressed, None where it is not, or not to its end; what stands behind it is padding."""
    if encoding == "identity":
        return data
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return None
    content, bits = b"", 31
    if encoding == "deflate":
        bits = 15 if data[:1] and data[0] & 15 == 8 else -15
    while data:
        decoder = zlib.decompressobj(bits)
        try:
            content += decoder.decompress(data)
        except zlib.error:
            return None
        if not decoder.eof:
            return None
        data = decoder.unused_data if bits == 31 and decoder.unused_data[:1] == b"\x1f" else b""
    return content


def json_value(data: bytes) -> Any:
    """The value of JSON, as Python reads it; integers beyond 64 bits as floats. Raises ValueError where it is none."""

    def number(digits: str) -> int | float:
        if len(digits) > 400:
            return float(digits)
        return int(digits) if -(2**63) <= int(digits) < 2**64 else float(digits)

    return json.loads(data.decode("utf-8", "replace"), parse_int=number)


def depth(data: bytes) -> int:
    """How deeply brackets are nested, those inside of strings not counted."""
    deepest = level = 0
    for bracket in re.findall(rb'"(?:\\.|[^"\\])*(?:"|\\?\Z)|[][{}]', data, re.DOTALL):
        level += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(bracket, 0)
        deepest = max(deepest, level)
    return deepest


def objects(data: bytes) -> list[Any]:
    """The values of lines that hold an object each, or are the text that they are."""
    values: list[Any] = []
    for line in LINE_END.split(data.removeprefix(BOM)):
        if line.strip():
            try:
                value = json_value(line)
            except ValueError:
                value = None
            values.append(value if isinstance(value, dict) else line.decode("utf-8", "replace").strip())
    return values
