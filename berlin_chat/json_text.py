"""JSON texts → values: with whichever parser is there, of bounded depth and length.

Pure, like ``decoding``: it knows neither HTTP nor a provider.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from .errors import ProtocolError
from .process import importing

#: How deeply JSON may be nested.
DEEPEST = 200
#: What tells how deeply JSON is nested. A whole string would be fewer matches, but one without an end is searched for
#: from each of its quotes.
_NESTING = re.compile(rb'\\.|[]["{}]', re.DOTALL)
#: The longest JSON document that is read whole, in bytes.
MAX_DOCUMENT = 64 * 2**20


class _TooDeep(ValueError):
    """JSON that is nested more than ``DEEPEST`` deep, so that it could be read, but not shown or written again."""


def _check_depth(data: bytes) -> None:
    """RFC 8259, section 9: "an implementation may set limits on the maximum depth of nesting"."""
    if data.count(b"[") + data.count(b"{") > DEEPEST:
        depth, in_string = 0, False
        for found in _NESTING.finditer(data):
            if found[0] == b'"':
                in_string = not in_string
            elif not in_string:
                depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found[0], 0)
                if depth > DEEPEST:
                    raise _TooDeep("JSON nested too deeply")


def _shallow(loads: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A parser that refuses what is nested too deeply."""

    def shallow(data: bytes) -> Any:
        if len(data) > 2 * DEEPEST:  # fewer could not be
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
    value = object_or_none(body)
    if value is None:
        raise ProtocolError("a JSON object was expected", detail=body, body=body)
    return value


def object_or_none(line: bytes) -> dict[str, Any] | None:
    """Returns the JSON object that a line is; None where it is none."""
    try:
        value = parse(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
