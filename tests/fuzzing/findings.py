"""Inputs for which a target has failed, each with its fault, which a test of its own names elsewhere.

The shortest that still fail, some of them written by hand after what was found.
"""

from __future__ import annotations

import gzip
import zlib


def _stored(content: bytes) -> bytes:
    """The beginning of gzip that ends with a whole block: anything may follow."""
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH)


def _raw(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(content) + compressor.flush()


#: The target, the input, and what was wrong.
FINDINGS: list[tuple[str, bytes, str]] = [
    ("objects", b'N{"a":0}{"a":1}\n', "the object in front of what breaks its line was lost where both came at once"),
    (
        "berlin",
        b'\x04200 OK\nContent-Type: text/plain\n\n{"content":"a"}..............\n{"content":null}',
        "the same, as the reply that was lost with it",
    ),
    ("compressed", b"\0" + _stored(b"hello") + b"\x07", "what stands before a fault was lost where both came at once"),
    (
        "compressed",
        b"\0" + gzip.compress(b"hello", mtime=0)[:-8] + bytes(8),
        "so was all content before a wrong checksum",
    ),
    ("compressed", b"\1" + _raw(b"hello") + b"\0\x1f\x8b", "padding was a member where a read began with its byte"),
    (
        "completion",
        b'\2data: {"choices":[{"delta":{"reasoning_content":"\\ud83d","content":"a"}}]}\n\ndata: [DONE]\n\n',
        "half of a character that thinking ended with was in the reply, and in no event",
    ),
    (
        "berlin",
        b'\x00200 OK\n\n{"content":"a\\ude42"}',
        "half of a surrogate pair was in the reply, which could then not be printed",
    ),
    (
        "h2o",
        b'\x00200 OK\n\ndata:{"token":{"text":"a\\ud83d","special":false},"generated_text":"a"}\n\n',
        "the same",
    ),
    (
        "h2o",
        b'\x00200 OK\n\n\n{"error":"x"}',
        "the server's own error was told only where it came in the first read",
    ),
    (
        "answers",
        b"\0HTTP/1.1 200 OK\r\nno field\r\nContent-Length: 17\r\n\r\nabc",
        "a line of the head that is no field hid those behind it, so that a body that was cut passed for whole",
    ),
    ("json", b'\0{"a":"' + b'\\"' * 1500 + b"[" * 201, "a string without an end took quadratic time"),
]
