"""Content codings (RFC 9110, section 8.4): what a server has compressed, as it arrives. Bytes go in, bytes come out."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import ProtocolError, StreamInterrupted

#: The most that is decompressed at a time, in bytes.
MAX_CONTENT = 64 * 1024


def decompressed(chunks: Iterable[bytes], encoding: str, may_be_empty: bool) -> Iterator[bytes]:
    """Yields what is compressed, each part as soon as it can be told, ``MAX_CONTENT`` bytes at a time at the most.

    gzip with one or more members (RFC 1952), and deflate with its zlib header (RFC 1950) or, as some servers send it,
    without (RFC 1951).

    Args:
        may_be_empty: whether nothing at all is a whole body, too, as where the framing says that this is its end.

    Raises:
        ProtocolError: it is in another encoding, in several, or not in the one that it says.
        StreamInterrupted: it ends before its end.
    """
    name = encoding.lower()
    if name not in ("gzip", "x-gzip", "deflate"):
        raise ProtocolError("the body has a Content-Encoding that was not asked for", detail=encoding)
    decoder, over = None, False
    for data in chunks:
        more = False  # what was given back by zlib may have been cut by MAX_CONTENT alone
        while (data or more) and not over:
            if decoder is None or decoder.eof:
                # Where no member of gzip follows, all that does is padding, which browsers ignore too.
                # pragma: no mutate - no other of the names comes before this one
                over = decoder is not None and (name == "deflate" or not data.startswith(b"\x1f"))
                if over:
                    break  # pragma: no mutate - the loop ends either way
                decoder = zlib.decompressobj(_window_bits(name, data))
            before = decoder.copy()
            try:
                content = decoder.decompress(data, MAX_CONTENT)
            except zlib.error:
                if content := _before_the_fault(before, data):
                    yield content
                raise ProtocolError("the body is not in the encoding that its Content-Encoding names") from None
            data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            more = len(content) == MAX_CONTENT and not decoder.eof  # pragma: no mutate - it is never longer
            if content:
                yield content
    if not (may_be_empty if decoder is None else decoder.eof):
        raise StreamInterrupted("the compressed body was cut off")


def _before_the_fault(decoder: Any, data: bytes) -> bytes:
    """What stands before the byte that zlib does not take: what it had found by then, it keeps to itself."""
    # Nothing at all may still bring what it had no room for before. pragma: no mutate - and less than that, too
    content, good, bad = b"", -1, len(data)
    while bad - good > 1:  # pragma: no mutate - it comes down to 1, and never below
        middle = (good + bad) // 2
        try:
            content, good = decoder.copy().decompress(data[:middle], MAX_CONTENT), middle
        except zlib.error:
            bad = middle
    return content


def _window_bits(name: str, data: bytes) -> int:
    """What tells zlib which container it reads, by the encoding's name and the first byte."""
    if name != "deflate":  # pragma: no mutate - no other of the names comes before this one
        return 16 + zlib.MAX_WBITS  # pragma: no mutate - it has no bit of the other
    return zlib.MAX_WBITS if data[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS
