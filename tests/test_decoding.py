"""``decoding`` gives the same result however the bytes were split, as early as they allow, at bounded cost.

The references here are written for the whole input at once, and share no code with the module.
"""

from __future__ import annotations

import codecs
import inspect
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from random import Random
from time import process_time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from berlin_chat import decoding
from berlin_chat.decoding import Lines, document, events, lines, objects, parse, text, without_bom
from berlin_chat.errors import ProtocolError, StreamInterrupted, start
from berlin_chat.http import encodings, responses
from berlin_chat.http.encodings import decompressed
from berlin_chat.http.responses import ChunkedDecoder

BOM = codecs.BOM_UTF8

#: No deadline for one example: a busy machine is no failure.
prove = settings(deadline=None, max_examples=150)


# Helpers


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cuts at the places, in any order; a place that is named twice gives an empty chunk."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


def one_by_one(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def with_empty_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield b""
        yield chunk
    yield b""


def splits(data: bytes) -> Iterator[list[bytes]]:
    """All that can go wrong between two reads: no cut, every single cut, every byte alone, empty chunks."""
    yield [data]
    yield from (cut(data, [place]) for place in range(1, len(data)))
    yield one_by_one(data)
    yield list(with_empty_chunks(one_by_one(data)))


def arrivals(decoder: Callable[[Iterable[bytes]], Iterator[Any]], chunks: Iterable[bytes]) -> list[tuple[int, Any]]:
    """Returns what came, each with the number of bytes that had been read by then.

    What came only because the input ended has one more than the number of all bytes.
    """
    read = 0

    def source() -> Iterator[bytes]:
        nonlocal read
        for chunk in chunks:
            read += len(chunk)
            yield chunk
        read += 1

    return [(read, item) for item in decoder(source())]


def reads(chunks: Iterable[bytes]) -> list[int]:
    """Returns how many bytes have been read after each chunk."""
    return list(itertools.accumulate(len(chunk) for chunk in chunks))


def outcome(items: Iterable[Any]) -> tuple[list[Any], type[Exception] | None]:
    """Returns what came, and the class of the error that ended it, if one did."""
    came: list[Any] = []
    try:
        for item in items:
            came.append(item)
    except (ProtocolError, StreamInterrupted) as error:
        return came, type(error)
    return came, None


# Reference implementations

LINE_END = re.compile(rb"\r\n|\n|\r")


def reference_lines(data: bytes) -> list[bytes]:
    return LINE_END.split(data.removeprefix(BOM))[:-1]


def reference_events(data: bytes) -> list[str]:
    """The WHATWG's "interpreting an event stream", sentence by sentence, on text that was decoded first."""
    stream = data.decode("utf-8", "replace").removeprefix("\ufeff")
    dispatched = []
    buffer = ""
    for line in re.split("\r\n|\n|\r", stream)[:-1]:
        if line == "":
            if buffer != "":
                dispatched.append(buffer.removesuffix("\n"))
            buffer = ""
        elif line.startswith(":"):
            pass
        else:
            field, _, value = line.partition(":")
            if field == "data":
                buffer += value.removeprefix(" ") + "\n"
    return dispatched


STRING = re.compile(rb'"(?:\\.|[^"\\])*(?:"|\\?\Z)', re.DOTALL)


def closes_its_outermost_brace(line: bytes) -> bool:
    steps = [1 if brace == b"{" else -1 for brace in re.findall(rb"[{}]", STRING.sub(b"", line))]
    return 0 in itertools.accumulate(steps)


def reference_objects(data: bytes) -> tuple[list[Any], type[Exception] | None]:
    """Returns the values, and the class of the error that ends them."""
    values: list[Any] = []
    *complete, rest = LINE_END.split(data.removeprefix(BOM))
    for number, line in enumerate([*complete, rest]):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8", "replace"))
        except ValueError:
            value = None
        if isinstance(value, dict):
            values.append(value)
        elif line.lstrip().startswith(b"{"):
            cut_off = number == len(complete) and not closes_its_outermost_brace(line)
            with suppress(ValueError):  # it may break behind an object, which came before it did
                values.append(json.JSONDecoder().raw_decode(line.decode("utf-8", "replace").lstrip(" \t"))[0])
            return values, StreamInterrupted if cut_off else ProtocolError
        else:
            values.append(line.decode("utf-8", "replace").strip())
    return values, None


# Strategies

#: What ``str.splitlines`` takes for a line end, or ``strip`` for white space, is text for these protocols.
ODD_TEXT = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e", "\0", "\ufeff", "é", "€", "😀", "\ufffd"]
LINE_ENDS = ["\n", "\r", "\r\n", "\n\n", "\r\r", "\r\n\r\n", "\n\r", "\r\n\n", "\r\r\n"]
FIELDS = ["data", "data:", "data: ", "data:  ", ":", ": ping", "event: x", "id: 1", "Data: x", " data: x"]

text_parts = st.sampled_from([*ODD_TEXT, *LINE_ENDS, *FIELDS, "a", " "]) | st.text(max_size=3)
any_text = st.lists(text_parts).map("".join)
valid_utf8 = any_text.map(str.encode)
#: Text with bytes in it that are no UTF-8: wrong starts, torn characters, overlong forms, surrogates.
BROKEN = [b"\xff", b"\x80", b"\xc0\xaf", b"\xe2\x82", b"\xf0\x9f", b"\xed\xa0\x80", BOM, BOM[:1], BOM[:2]]
broken_bytes = st.sampled_from(BROKEN)
any_bytes = st.lists(broken_bytes | st.binary(max_size=4) | valid_utf8, max_size=8).map(b"".join)


@st.composite
def split(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """Contents, and the same in chunks: cut anywhere, every byte alone, with and without empty chunks."""
    data = draw(contents)
    if draw(st.booleans()):
        chunks = cut(data, draw(st.lists(st.integers(0, len(data)), max_size=12)))
    else:
        chunks = one_by_one(data)
    return data, list(with_empty_chunks(chunks)) if draw(st.booleans()) else chunks


# Lines


@prove
@given(split(any_bytes))
# The LF of a CRLF came alone: the next LF is a line end of its own.
@example((b"a\r\n\n", [b"a\r", b"\n", b"\n"]))
@example((b"a\r\n\r\n", [b"a\r", b"", b"\n\r", b"", b"\n"]))
def test_lines_are_the_same_however_the_bytes_were_split(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    assert list(lines(chunks)) == reference_lines(data)


@prove
@given(split(any_bytes))
@example((b"a\r\nb\rc\n\r\n\n", one_by_one(b"a\r\nb\rc\n\r\n\n")))
def test_a_line_comes_with_the_first_byte_of_its_line_end(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    came = arrivals(lines, chunks)
    for read in reads(chunks):
        # What has been read so far completes these lines, whatever comes behind it.
        assert [line for when, line in came if when <= read] == reference_lines(data[:read])
    assert len(came) == len(reference_lines(data)), "nothing more comes at the end"


@pytest.mark.parametrize("character", ODD_TEXT, ids=ascii)
def test_only_lf_and_cr_end_a_line(character: str) -> None:
    line = f"a{character}b".encode()
    for chunks in splits(line + b"\n"):
        assert list(lines(chunks)) == [line]


# Server-sent events

EVENT_STREAMS: dict[str, tuple[bytes, list[bytes]]] = {
    "a space after the colon is dropped": (b"data: a\n\n", [b"a"]),
    "no space after the colon": (b"data:a\n\n", [b"a"]),
    "only one of two spaces is dropped": (b"data:  a\n\n", [b" a"]),
    "a tab is not dropped": (b"data:\ta\n\n", [b"\ta"]),
    "trailing spaces are kept": (b"data: a  \n\n", [b"a  "]),
    "several events": (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    "several data lines are joined by LF": (b"data: a\ndata: b\ndata:c\n\n", [b"a\nb\nc"]),
    "data lines are joined by LF whatever their ends": (b"data: a\r\ndata: b\rdata: c\r\n\r\n", [b"a\nb\nc"]),
    "data alone is an empty line": (b"data\n\n", [b""]),
    "data alone twice": (b"data\ndata\n\n", [b"\n"]),
    "the standard's example of data alone": (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
    "empty data": (b"data:\n\n", [b""]),
    "data of one space": (b"data: \n\n", [b""]),
    "data of two spaces": (b"data:  \n\n", [b" "]),
    "an empty line between data lines": (b"data: a\ndata:\ndata: b\n\n", [b"a\n\nb"]),
    "empty data before and behind": (b"data\ndata: a\ndata\n\n", [b"\na\n"]),
    "the standard's example of spaces": (b"data:test\n\ndata: test\n\n", [b"test", b"test"]),
    "the standard's example of many fields": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [b"first event", b"second event", b" third event"],
    ),
    "a comment alone is no event": (b": ping\n\n", []),
    "an empty comment": (b":\n\ndata: a\n\n", [b"a"]),
    "a comment inside an event": (b"data: a\n: ping\ndata: b\n\n", [b"a\nb"]),
    "a comment that looks like data": (b":data: a\n\n", []),
    "an unknown field": (b"foo: x\ndata: a\nbar\n\n", [b"a"]),
    "a field whose name starts with data": (b"database: x\ndatas\n\n", []),
    "names have upper and lower case": (b"Data: x\nDATA: y\n\n", []),
    "a space before the name": (b" data: x\n\n", []),
    "a space before the colon": (b"data : x\n\n", []),
    "a name without a colon": (b"foo\n\ndata: a\n\n", [b"a"]),
    "event, id and retry are dropped": (b"event: add\nid: 7\nretry: 100\ndata: a\n\n", [b"a"]),
    "event, id and retry without data are no event": (b"event: add\nid: 7\nretry: 100\n\n", []),
    "a colon in the value": (b"data: a:b: c\n\n", [b"a:b: c"]),
    "a colon at once behind the colon": (b"data::a\n\n", [b":a"]),
    "NUL in the value": (b"data: a\0b\n\n", [b"a\0b"]),
    "NUL in an id": (b"id: \0\ndata: a\n\n", [b"a"]),
    "NUL in a name": (b"da\0ta: a\n\n", []),
    "LF": (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    "CR": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "CRLF is one line end, not two": (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
    "LF CR is two line ends": (b"data: a\n\rdata: b\n\r", [b"a", b"b"]),
    "LF and CRLF": (b"data: a\n\r\ndata: b\n\r\n", [b"a", b"b"]),
    "CRLF and LF": (b"data: a\r\n\ndata: b\r\n\n", [b"a", b"b"]),
    "CR and CRLF": (b"data: a\r\r\ndata: b\r\r\n", [b"a", b"b"]),
    "CRLF and CR": (b"data: a\r\n\rdata: b\r\n\r", [b"a", b"b"]),
    "blank lines alone": (b"\n\r\n\r\r\n\n", []),
    "many blank lines between events": (b"data: a\n\n\n\r\n\rdata: b\n\n", [b"a", b"b"]),
    "blank lines first": (b"\n\ndata: a\n\n", [b"a"]),
    "a line of spaces is not blank": (b"data: a\n \ndata: b\n\n", [b"a\nb"]),
    "a cut-off event is dropped": (b"data: a\n\ndata: b\n", [b"a"]),
    "a cut-off line is dropped": (b"data: a\n\ndata: b", [b"a"]),
    "a cut-off event with CRLF is dropped": (b"data: a\r\n\r\ndata: b\r\n", [b"a"]),
    "nothing": (b"", []),
    "a BOM is dropped": (BOM + b"data: a\n\n", [b"a"]),
    "a BOM alone": (BOM, []),
    "a BOM and a blank line": (BOM + b"\ndata: a\n\n", [b"a"]),
    "a second BOM belongs to the name": (BOM + BOM + b"data: a\n\ndata: b\n\n", [b"b"]),
    "a BOM behind the first line is text": (b"\n" + BOM + b"data: a\n\n", []),
    "a BOM in the value is text": (b"data: " + BOM + b"a\n\n", [BOM + b"a"]),
    "a part of a BOM is text": (BOM[:2] + b"data: a\n\ndata: b\n\n", [b"b"]),
    "U+2028, U+2029 and U+0085 are text": (
        "data: a\u2028b\u2029c\x85d\n\n".encode(),
        ["a\u2028b\u2029c\x85d".encode()],
    ),
    "U+000B, U+000C and U+001E are text": (b"data: a\x0bb\x0cc\x1ed\n\n", [b"a\x0bb\x0cc\x1ed"]),
    "characters of two, three and four bytes": ("data: é€😀\n\n".encode(), ["é€😀".encode()]),
    "bytes that are no UTF-8 are left alone": (b"data: \xff\xe2\x82\n\n", [b"\xff\xe2\x82"]),
    "JSON over two lines": (b'data: {"a":\ndata: 1}\n\n', [b'{"a":\n1}']),
    "an end marker is data like any other": (b"data: [DONE]\n\ndata: a\n\n", [b"[DONE]", b"a"]),
}


@pytest.mark.parametrize(("data", "expected"), EVENT_STREAMS.values(), ids=EVENT_STREAMS.keys())
def test_events_as_the_standard_says(data: bytes, expected: list[bytes]) -> None:
    for chunks in splits(data):
        assert list(events(chunks)) == expected, f"split as {chunks}"


@pytest.mark.parametrize(("data", "expected"), EVENT_STREAMS.values(), ids=EVENT_STREAMS.keys())
def test_the_reference_agrees_with_the_table(data: bytes, expected: list[bytes]) -> None:
    assert reference_events(data) == [event.decode("utf-8", "replace") for event in expected]


@prove
@given(split(any_bytes))
def test_events_are_the_same_however_the_bytes_were_split(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    assert [event.decode("utf-8", "replace") for event in events(chunks)] == reference_events(data)


@prove
@given(st.lists(any_text, max_size=5), st.sampled_from(["\n", "\r", "\r\n"]), st.data())
def test_events_that_were_written_are_read(values: list[str], end: str, data: st.DataObject) -> None:
    # The round trip: what a server writes line by line comes back with every line end as LF.
    values = [re.sub("\r\n|\r", "\n", value) for value in values]
    written = ""
    for value in values:
        written += "".join(f"data: {line}{end}" for line in value.split("\n")) + end
    _, chunks = data.draw(split(st.just(written.encode())))
    assert [event.decode() for event in events(chunks)] == values


@prove
@given(split(any_bytes))
@example((b"data: a\r\rdata: b\r\n\r\n", one_by_one(b"data: a\r\rdata: b\r\n\r\n")))
def test_an_event_comes_with_the_first_byte_that_ends_its_blank_line(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    came = arrivals(events, chunks)
    for read in reads(chunks):
        so_far = [event.decode("utf-8", "replace") for when, event in came if when <= read]
        assert so_far == reference_events(data[:read])
    assert len(came) == len(reference_events(data)), "nothing more comes at the end"


@pytest.mark.parametrize(
    ("data", "read"),
    [
        (b"data: a\n\n", 9),
        (b"data: a\r\r", 9),
        (b"data: a\n\r\n", 9),
        (b"data: a\r\n\n", 10),
        (b"data: a\r\n\r\n", 10),
    ],
)
def test_no_event_waits_for_the_lf_behind_a_cr(data: bytes, read: int) -> None:
    assert arrivals(events, one_by_one(data)) == [(read, b"a")]


# Objects

#: What a scanner for braces stumbles over.
TRICKY = ["{", "}", '"', "\\", '\\"', "\\\\", "}}", '"}', "\n", "\r", "/", *ODD_TEXT]
tricky_text = st.lists(st.sampled_from(TRICKY) | st.text(max_size=2), max_size=6).map("".join)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | tricky_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tricky_text, inner, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(tricky_text, json_values, max_size=3)

#: Lines that hold no object, although some look a little like one.
OTHER_LINES = [
    "null",
    "[1]",
    "[{}]",
    "[{},{}]",
    "x{}",
    "}",
    "}{",
    '"{"',
    '"}',
    "1}",
    "\\",
    "No such model",
    "…",
]


@st.composite
def object_streams(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, Any]]]:
    """A stream of lines, and what must come of it, each with the number of bytes that it takes."""
    stream = b""
    expected: list[tuple[int, Any]] = []
    entries = draw(st.lists(json_objects | st.sampled_from(OTHER_LINES), max_size=5))
    for number, entry in enumerate(entries):
        stream += draw(st.sampled_from([b"", b"", b" ", b"\t", b"\n", b"\r\n", b" \r"]))
        if isinstance(entry, dict):
            written = json.dumps(entry, ensure_ascii=draw(st.booleans()), indent=None)
            stream += written.encode()
            expected.append((len(stream), entry))
            stream += draw(st.sampled_from([b"", b" ", b"\t "]))
        else:
            stream += entry.encode()
            expected.append((len(stream) + 1, entry))  # only the line end, or the stream's, says that it is whole
        last = number == len(entries) - 1
        stream += draw(st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", *([b""] if last else [])]))
    return stream, expected


@prove
@given(object_streams(), st.data())
def test_objects_are_the_same_however_the_bytes_were_split(
    case: tuple[bytes, list[tuple[int, Any]]], data: st.DataObject
) -> None:
    stream, expected = case
    bom = data.draw(st.sampled_from([b"", BOM]))
    _, chunks = data.draw(split(st.just(bom + stream)))
    assert list(objects(chunks)) == [value for _, value in expected]


@prove
@given(object_streams(), st.data())
def test_an_object_comes_with_its_closing_brace_and_other_lines_with_their_end(
    case: tuple[bytes, list[tuple[int, Any]]], data: st.DataObject
) -> None:
    stream, expected = case
    assert arrivals(objects, one_by_one(stream)) == expected
    _, chunks = data.draw(split(st.just(stream)))
    ends = [*reads(chunks), len(stream) + 1]
    assert arrivals(objects, chunks) == [(next(end for end in ends if end >= when), value) for when, value in expected]


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"a": {"b": {}}}',
        b'{"a": [{}, {}, {"b": {}}]}',
        b'{"a": "}"}',
        b'{"a": "{"}',
        b'{"}": 1}',
        b'{"a": "\\"}"}',
        b'{"a": "\\\\"}',
        b'{"a": "\\\\\\"}{"}',
        b'{"a": "}\\u007d\\\\}"}',
        b'{"a":"\xe2\x82\xac}"}',
        b' \t{"a": {}}',
    ],
    ids=ascii,
)
def test_no_object_waits_for_the_byte_behind_it(line: bytes) -> None:
    value = json.loads(line)
    for chunks in splits(line):
        for more in ([], [b"\n"], [b"\r\n"], [b"  ", b"\r", b"\n", b"\n"]):
            # The second object shows that the state of the first line was left behind.
            stream = [*chunks, *more, *chunks] if more else chunks
            came = objects(iter(stream))
            assert next(came) == value, f"split as {stream}"
            assert list(came) == ([value] if more else [])
    assert arrivals(objects, one_by_one(line + b"\r\n")) == [(len(line), value)]
    # White space that came along is no reason to wait either.
    assert arrivals(objects, [line + b" \t", b"\n"]) == [(len(line) + 2, value)]


def test_a_line_that_was_scanned_does_not_confuse_the_next_one() -> None:
    # The first line's inner brace starts a scan, which its line end cuts short.
    assert list(objects([b'{"a": {}', b"}\n", b'{"b": 1}'])) == [{"a": {}}, {"b": 1}]


def test_an_empty_chunk_behind_a_backslash_changes_nothing() -> None:
    # Were the backslash forgotten, the last brace would seem to stand in a string.
    chunks = [b'{"a": "}', b"\\", b"", b'"{"}', b"\n"]
    length = len(b"".join(chunks)) - 1
    assert arrivals(objects, chunks) == [(length, {"a": '}"{'})]


JSON_PARTS = [b"{", b"}", b'"', b"\\", b'{"a":0}', b'{"a":"', b'":0', b",", b"[", b"]", b"null", b" ", b"\t"]
OTHER_PARTS = [b"x", b"\x0c", b"\n", b"\r", b"\r\n", b"\xff", b"\xe2\x82", "\u2028€".encode(), BOM]
fragments = st.sampled_from([*JSON_PARTS, *OTHER_PARTS])


@settings(prove, max_examples=400)
@given(split(st.lists(fragments, max_size=14).map(b"".join)))
@example((b'{"a":0}{"a":0}', [b'{"a":0}{"a":0}']))
@example((b'{"a":0}\x0c\n', [b'{"a":0}', b"\x0c\n"]))
@example((b'{"a":0} x', [b'{"a":0} x']))
def test_any_bytes_at_all_give_the_same_values_and_the_same_error(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    expected, expected_error = reference_objects(data)
    assert outcome(objects(chunks)) == (expected, expected_error)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"{a}",
        b'{"a" 1}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":1}}',
        b'{"a":1} x',
        b'{"a":"\t"}',
        b'{"a":1}\0',
    ],
    ids=ascii,
)
def test_a_line_that_starts_like_an_object_but_is_none_is_a_protocol_error(line: bytes) -> None:
    for end in (b"\n", b"\r", b"\r\n{}"):
        for chunks in splits(line + end):
            with pytest.raises(ProtocolError):
                list(objects(chunks))


@pytest.mark.parametrize("between", [b"", b" ", b"\t", b",", b"\x0c"], ids=ascii)
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"], ids=ascii)
def test_two_objects_on_one_line_are_a_protocol_error(between: bytes, end: bytes) -> None:
    line = b'{"a": 1}' + between + b'{"b": 2}'
    for chunks in splits(line + end):
        came, error = outcome(objects(chunks))
        assert error is ProtocolError
        assert came == [{"a": 1}], "what came before the line broke"


@pytest.mark.parametrize(
    "rest",
    [b"{", b' {"a', b'{"a": "}', b'{"a": "\\', b'{"a": {}', b'{"a": "\\"}', b'{"a": "\xe2\x82'],
    ids=ascii,
)
def test_an_end_inside_an_object_is_an_interruption(rest: bytes) -> None:
    for chunks in splits(b'{"a": 1}\n' + rest):
        assert outcome(objects(chunks)) == ([{"a": 1}], StreamInterrupted)


@pytest.mark.parametrize("line", OTHER_LINES)
def test_a_line_that_is_no_object_comes_as_the_text_that_it_is(line: str) -> None:
    for end in ("", "\n", "\r\n"):
        for chunks in splits(f" {line}\t{end}".encode()):
            assert list(objects(chunks)) == [line]


def test_a_line_that_is_no_text_comes_with_replacements() -> None:
    assert list(objects([b"caf\xe9\n"])) == ["caf\ufffd"]


def test_blank_lines_are_no_objects() -> None:
    for chunks in splits(b'\n \r\n{"a": 1}\n\n\t\n\r{"a": 2}\n \n  '):
        assert list(objects(chunks)) == [{"a": 1}, {"a": 2}]


def test_an_object_nested_too_deeply_is_a_protocol_error() -> None:
    depth = 100_000
    line = b'{"a":' * depth + b"1" + b"}" * depth + b"\n"
    for chunks in ([line], cut(line, range(0, len(line), 4096)), [line.rstrip(), b"\n"]):
        assert outcome(objects(chunks)) == ([], ProtocolError)


@pytest.mark.parametrize("rest", [b" x", b"}", b"]", b"{", b'"', b"\x0c", b'{"b": 1}'], ids=ascii)
def test_an_object_in_front_of_what_breaks_its_line_comes_however_it_was_cut(rest: bytes) -> None:
    line = b'{"c": {"d": "}\\""}}' + rest
    for chunks in splits(b'{"a": 1}\n' + line + b"\n"):
        assert outcome(objects(chunks)) == ([{"a": 1}, {"c": {"d": '}"'}}], ProtocolError)


# Compressed content


def compressed(content: bytes, bits: int) -> bytes:
    compressor = zlib.compressobj(wbits=bits)
    return compressor.compress(content) + compressor.flush()


CONTAINERS = {"gzip": 31, "deflate": 15, "deflate without its header": -15}


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_stands_before_a_fault_in_compressed_content_comes_however_it_was_cut(container: str) -> None:
    compressor = zlib.compressobj(wbits=CONTAINERS[container])
    data = compressor.compress(b"hello") + compressor.flush(zlib.Z_SYNC_FLUSH)
    for chunks in splits(data + b"\x07there is no block of this kind"):
        came, error = outcome(decompressed(chunks, container.split()[0], True))
        assert (b"".join(came), error) == (b"hello", ProtocolError)


@pytest.mark.parametrize("head", [b"\x1f\x8b\x08\0\0\0\0\0\0\xff", b"\x78\x01", b""], ids=CONTAINERS)
def test_what_stands_right_before_a_fault_in_compressed_content_comes_too(head: bytes) -> None:
    data = head + b"\0\x05\0\xfa\xffhello" + b"\x07"  # a block of five bytes as they are, then one of no kind
    for chunks in splits(data):
        came, error = outcome(decompressed(chunks, "gzip" if head[:1] == b"\x1f" else "deflate", True))
        assert (b"".join(came), error) == (b"hello", ProtocolError)


@pytest.mark.parametrize("container", CONTAINERS)
def test_all_content_of_a_byte_comes_with_it_although_it_passes_what_is_given_at_a_time(container: str) -> None:
    """zlib may have read a byte whole, and not have given all that it stands for."""
    for shift in range(0, 258, 6):
        data = compressed(bytes(range(shift % 256)) + b"a" * 70_000, CONTAINERS[container])
        for length in range(len(data)):
            part = data[:length]
            content = zlib.decompressobj(CONTAINERS[container]).decompress(part)
            if len(content) > encodings.MAX_CONTENT:
                break
        came, error = outcome(decompressed([part], container.split()[0], True))
        assert (len(b"".join(came)), error) == (len(content), StreamInterrupted)


def test_what_zlib_had_no_room_for_is_not_lost_where_a_fault_follows() -> None:
    """The last of what it has read may stand for 258 bytes, of which it gives as many as it may."""
    for size in range(encodings.MAX_CONTENT - 100, encodings.MAX_CONTENT + 300, 10):
        compressor = zlib.compressobj(wbits=-15, strategy=zlib.Z_FIXED)
        first, *more = compressor.compress(b"a" * size) + compressor.flush()
        data = bytes([first & ~1, *more]) + b"\x07" * 8  # not the last block, and none behind it
        for chunks in ([data], one_by_one(data)):
            came, error = outcome(decompressed(chunks, "deflate", True))
            assert (len(b"".join(came)), error) == (size, ProtocolError)


def test_a_checksum_that_is_wrong_takes_nothing_of_the_content_away() -> None:
    for chunks in splits(compressed(b"hello", 31)[:-8] + bytes(8)):
        came, error = outcome(decompressed(chunks, "gzip", True))
        assert (b"".join(came), error) == (b"hello", ProtocolError)


@pytest.mark.parametrize("container", CONTAINERS)
def test_padding_behind_compressed_content_is_never_read(container: str) -> None:
    """Not even where it looks like a further member of gzip, which comes at once or not at all."""
    for chunks in splits(compressed(b"hello", CONTAINERS[container]) + b"\0\x1f\x8b\0\x1f\xff"):
        assert b"".join(decompressed(chunks, container.split()[0], True)) == b"hello"


@pytest.mark.parametrize("bits", range(9, 16))
def test_deflate_has_any_window_in_its_header(bits: int) -> None:
    data = compressed(b"hello", bits)
    assert b"".join(decompressed([data], "deflate", True)) == b"hello"


def test_deflate_without_its_header_may_begin_with_bits_that_mean_nothing() -> None:
    data = b"\x09\x05\0\xfa\xffhello"  # the last block, as it is; the other bits of its first byte are padding
    assert b"".join(decompressed([data], "deflate", True)) == b"hello"


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_comes_again_may_be_as_far_back_as_the_window(container: str) -> None:
    content = Random(1).randbytes(32_000) * 2
    data = compressed(content, CONTAINERS[container])
    assert len(data) < 40_000, "it does not look so far back"
    assert b"".join(decompressed([data], container.split()[0], True)) == content


def test_gzip_is_not_deflate() -> None:
    assert outcome(decompressed([compressed(b"hello", 15)], "gzip", True)) == ([], ProtocolError)


def test_deflate_has_no_further_members() -> None:
    for chunks in splits(compressed(b"hello", 15) + compressed(b"you", 31)):
        assert b"".join(decompressed(chunks, "deflate", True)) == b"hello"


# Text


@prove
@given(split(any_bytes))
def test_text_is_the_same_however_the_bytes_were_split(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    pieces = list(text(chunks))
    assert "".join(pieces) == data.removeprefix(BOM).decode("utf-8", "replace")
    assert "" not in pieces


@prove
@given(split(valid_utf8))
def test_a_character_comes_with_its_last_byte(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    came = arrivals(text, chunks)
    for read in reads(chunks):
        whole = data[:read].decode("utf-8", "ignore").removeprefix("\ufeff")  # without the torn character
        assert "".join(piece for when, piece in came if when <= read) == whole
    assert all(when <= len(data) for when, _ in came), "nothing more comes at the end"


@prove
@given(split(any_text.map(lambda characters: characters.encode("utf-16"))))
def test_text_in_another_encoding_is_the_same_however_it_was_split(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    assert "".join(text(chunks, "utf-16")) == data.decode("utf-16")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xe2\x82", "\ufffd"),
        (b"a\xe2\x82b", "a\ufffdb"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"\xf0\x9f\x98", "\ufffd"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xc0\xaf", "\ufffd\ufffd"),
        (BOM + b"a", "a"),
        (BOM + BOM + b"a", "\ufeffa"),
        (BOM[:2], "\ufffd"),
        (BOM, ""),
        (b"", ""),
        ("a\u2028b\x85c".encode(), "a\u2028b\x85c"),
    ],
    ids=ascii,
)
def test_what_is_no_text_is_replaced_as_in_browsers(data: bytes, expected: str) -> None:
    for chunks in splits(data):
        assert "".join(text(chunks)) == expected


@prove
@given(split(any_bytes))
def test_one_leading_bom_is_dropped_and_nothing_else(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    assert b"".join(without_bom(chunks)) == data.removeprefix(BOM)


# The chunked transfer coding


@st.composite
def chunked_bodies(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """A framed body, and for each of its bytes how many bytes of the body are known once it has arrived."""
    framed = b""
    known: list[int] = []
    end = st.sampled_from([b"\r\n", b"\r\n", b"\n"])
    extension = st.sampled_from([b"", b"", b";a", b" ;a=b", b'; a="1\t\xe9;"', b"\t", b"; 0"])
    # Contents that look like framing must not be taken for it.
    contents = st.binary(min_size=1, max_size=300) | st.sampled_from([b"0\r\n\r\n", b"\r\n", b"\n5\r\n", b"a"])

    def add(part: bytes, content: bool = False) -> None:
        nonlocal framed
        framed += part
        so_far = known[-1] if known else 0
        known.extend(so_far + i if content else so_far for i in range(1, len(part) + 1))

    for content in draw(st.lists(contents)):
        digits = draw(st.sampled_from(["{:x}", "{:X}", "{:06x}", "{:016X}"])).format(len(content))
        add(digits.encode() + draw(extension) + draw(end))
        add(content, content=True)
        add(draw(end))
    add(draw(st.sampled_from([b"0", b"000"])) + draw(extension) + draw(end))
    for trailer in draw(st.lists(st.sampled_from([b"Digest: x", b"X-A:", b"5", b"a: \xe9"]), max_size=3)):
        add(trailer + draw(end))
    add(draw(end))
    return framed, known


def body_of(framed: bytes, known: list[int]) -> bytes:
    steps = itertools.pairwise([0, *known])
    return bytes(byte for byte, (before, after) in zip(framed, steps, strict=True) if after > before)


@prove
@given(chunked_bodies(), st.data())
def test_a_chunked_body_is_the_same_however_the_bytes_were_split(
    case: tuple[bytes, list[int]], data: st.DataObject
) -> None:
    framed, known = case
    # What follows the end belongs to nobody, even where it looks like one more chunk.
    behind = data.draw(st.sampled_from([b"", b"5\r\nhello\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\n"]))
    _, chunks = data.draw(split(st.just(framed + behind)))
    decoder = ChunkedDecoder()
    assert b"".join(decoder.feed(chunk) for chunk in chunks) == body_of(framed, known)
    assert decoder.done


def test_nothing_behind_the_end_is_looked_at() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"5\r\nhello\r\n0\r\n\r\n" + b"x" * (2 * responses.MAX_FRAMING)) == b"hello"
    assert decoder.feed(b"x" * (3 * responses.MAX_FRAMING)) == b""
    assert decoder.done


@prove
@given(chunked_bodies())
def test_the_bytes_of_a_chunk_come_at_once_and_the_end_with_its_last_byte(
    case: tuple[bytes, list[int]],
) -> None:
    framed, known = case
    decoder = ChunkedDecoder()
    received = 0
    for position, byte in enumerate(one_by_one(framed)):
        assert not decoder.done
        received += len(decoder.feed(byte))
        assert received == known[position]
    assert decoder.done


@prove
@given(chunked_bodies(), st.data())
def test_a_chunked_body_that_was_cut_off_is_not_done(case: tuple[bytes, list[int]], data: st.DataObject) -> None:
    framed, known = case
    length = data.draw(st.integers(0, len(framed) - 1))
    _, chunks = data.draw(split(st.just(framed[:length])))
    decoder = ChunkedDecoder()
    received = b"".join(decoder.feed(chunk) for chunk in chunks)
    assert received == body_of(framed, known)[: known[length - 1] if length else 0]
    assert not decoder.done


def test_chunks_of_every_size_around_a_read_are_joined() -> None:
    contents = [bytes([65 + n % 26]) * n for n in range(1, 300)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(content), content) for content in contents) + b"0\r\n\r\n"
    for size in (1, 2, 3, 100, 101, 4096, len(framed)):
        decoder = ChunkedDecoder()
        chunks = cut(framed, range(0, len(framed), size))
        assert b"".join(decoder.feed(chunk) for chunk in chunks) == b"".join(contents)
        assert decoder.done


@pytest.mark.parametrize(
    "framed",
    [
        pytest.param(b"\r\n5\r\nhello\r\n0\r\n\r\n", id="a line end first"),
        pytest.param(b"\n", id="an empty size line"),
        pytest.param(b"zz\r\n", id="no hexadecimal digit"),
        pytest.param(b"5g\r\n", id="a wrong digit behind a right one"),
        pytest.param(b"-5\r\nhello\r\n", id="a negative size"),
        pytest.param(b"-0\r\n\r\n", id="a negative zero"),
        pytest.param(b"+5\r\nhello\r\n", id="a plus sign"),
        pytest.param(b"0x5\r\nhello\r\n", id="0x"),
        pytest.param(b"1_0\r\n", id="an underscore"),
        pytest.param(b" 5\r\nhello\r\n", id="a space first"),
        pytest.param(b"5 5\r\nhello\r\n", id="two sizes"),
        pytest.param(b"5\r\r\nhello\r\n", id="a bare CR"),
        pytest.param(b";a=b\r\nhello\r\n", id="an extension without a size"),
        pytest.param(b"\xd9\xa5\r\nhello\r\n", id="a digit that is not ASCII"),
        pytest.param(b"1" * 17 + b"\r\n", id="a size of more than 64 bits"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", id="another response"),
        pytest.param(b"<html>\n", id="a web page"),
        pytest.param(b'{"a": 1}\n', id="a body without framing"),
        pytest.param(b"5\r\nhello0\r\n\r\n", id="no line end behind the data"),
        pytest.param(b"5\r\nhello5\r\nworld\r\n0\r\n\r\n", id="no line end between chunks"),
        pytest.param(b"4\r\nhello\r\n0\r\n\r\n", id="more data than announced"),
        pytest.param(b"8\r\nhello\r\n0\r\n\r\n\r\n", id="less data than announced"),
        pytest.param(b"5\r\nhello\r\n\r\n0\r\n\r\n", id="two line ends behind the data"),
        pytest.param(b"5\r\nhello\r\n-1\r\n", id="a negative second size"),
        pytest.param(b"5\r\nhello\r\n0x0\r\n\r\n", id="0x in the second size"),
        pytest.param(b"5\r\nhello\r\nzz\r\n", id="no digit in the second size"),
    ],
)
def test_broken_chunk_framing_is_a_value_error(framed: bytes) -> None:
    for chunks in splits(framed):
        decoder = ChunkedDecoder()
        with pytest.raises(ValueError, match="chunk framing"):
            for chunk in [*chunks, b""]:  # bytes that stand before the fault are given first
                decoder.feed(chunk)
        assert not decoder.done


@pytest.mark.parametrize(
    ("begin", "endless"),
    [
        pytest.param(b"", b"0", id="a size"),
        pytest.param(b"5", b" ", id="spaces"),
        pytest.param(b"5;", b"a", id="an extension"),
        pytest.param(b"5\r\nhello\r\n5;", b"a", id="a later extension"),
        pytest.param(b"0\r\n", b"a", id="a trailer"),
        pytest.param(b"0\r\n", b"a: b\r\n", id="trailers"),
    ],
)
@pytest.mark.parametrize("times", [1, 100])
def test_framing_that_never_ends_is_a_value_error(
    begin: bytes, endless: bytes, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MAX_FRAMING", 2000)  # the real limit only takes longer
    decoder = ChunkedDecoder()
    decoder.feed(begin)
    fed = 0
    with pytest.raises(ValueError, match="chunk framing"):
        while fed < 2 * responses.MAX_FRAMING:
            decoder.feed(endless * times)
            fed += len(endless) * times
    assert fed <= responses.MAX_FRAMING, "what is kept is bounded"


@pytest.mark.parametrize("before", [b"5;", b"5\r\nhello\r\n5;", b"0;", b"0\r\nX: "], ids=ascii)
def test_the_limit_of_framing_does_not_depend_on_how_it_was_split(before: bytes) -> None:
    framed = before + b"a" * responses.MAX_FRAMING + b"\r\n\r\n"
    for chunks in ([framed], cut(framed, [len(framed) - 3]), cut(framed, range(0, len(framed), 1000))):
        decoder = ChunkedDecoder()
        with pytest.raises(ValueError, match="chunk framing"):
            for chunk in [*chunks, b""]:
                decoder.feed(chunk)


@pytest.mark.parametrize(
    ("begin", "end"),
    [(b"1;", b"\r\nx\r\n0\r\n\r\n"), (b"1\r\nx\r\n0;", b"\r\n\r\n"), (b"1\r\nx\r\n0\r\nX: ", b"\r\n\r\n")],
    ids=["a size", "the last size", "trailers"],
)
def test_framing_may_be_as_long_as_the_limit_and_no_longer(begin: bytes, end: bytes) -> None:
    after = 4 if begin.endswith(b"X: ") else 2  # the blank line belongs to the trailers
    room = responses.MAX_FRAMING - len(begin.rpartition(b"\n")[2]) - after
    for length, whole in ((room, True), (room + 1, False)):
        framed = begin + b"a" * length + end
        for chunks in ([framed], cut(framed, [len(begin) + length]), cut(framed, range(0, len(framed), 1000))):
            decoder, came, error = ChunkedDecoder(), b"", None
            try:
                for chunk in [*chunks, b""]:
                    came += decoder.feed(chunk)
            except ValueError as broken:
                error = broken
            assert (decoder.done, error is None) == (whole, whole)
            assert came == (b"x" if whole or begin.startswith(b"1\r") else b"")


@pytest.mark.parametrize("size", range(4070, 4100))
def test_the_limit_of_framing_does_not_depend_on_where_it_stands(size: int) -> None:
    decoder = ChunkedDecoder()
    framed = b"%x\r\n%b\r\n1\r\nx\r\n0\r\n\r\n" % (size, b"a" * size)
    assert (len(decoder.feed(framed)), decoder.done) == (size + 1, True)
    decoder = ChunkedDecoder()
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"a" * size)
    assert (len(decoder.feed(framed)), decoder.done) == (size, True)


# Limits


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit so low that every split can be tried."""
    monkeypatch.setattr(decoding, "MAX_LINE", 30)
    return 30


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=ascii)
def test_a_line_may_be_as_long_as_the_limit_and_no_longer(short_limit: int, end: bytes) -> None:
    longest = b"x" * short_limit
    for chunks in splits(b"a" + end + longest + end + b"b" + end):
        assert list(lines(chunks)) == [b"a", longest, b"b"]
    for chunks in splits(b"a" + end + longest + b"x" + end + b"b" + end):
        # What stands before it comes all the same, also in one read with it.
        assert outcome(lines(chunks)) == ([b"a"], ProtocolError)


def test_a_line_that_is_too_long_is_so_for_ever(short_limit: int) -> None:
    splitter = Lines()
    for data in (b"a\n" + b"x" * (short_limit + 1), b"b\n", b"c\n"):
        came, error = outcome(iter(splitter.feed(data)))
        assert (came, error) == ([b"a"] if data.startswith(b"a") else [], ProtocolError)


def test_a_bom_does_not_count_as_part_of_the_line(short_limit: int) -> None:
    for chunks in splits(BOM + b"x" * short_limit + b"\n"):
        assert list(lines(chunks)) == [b"x" * short_limit]


def test_a_rest_without_line_end_has_the_same_limit(short_limit: int) -> None:
    # Nothing is known of a line whose end has not come but that it is too long already.
    for chunks in splits(b"a\n" + b"x" * (short_limit + 1)):
        with pytest.raises(ProtocolError):
            list(lines(chunks))


@pytest.mark.parametrize(
    ("data", "allowed"),
    [
        pytest.param(b"data: " + b"x" * 24 + b"\n\n", True, id="a line at the limit"),
        pytest.param(b"data: " + b"x" * 25 + b"\n\n", False, id="a line over the limit"),
        pytest.param(b"data: 123456789\n" * 3 + b"\n", True, id="lines below the limit"),
        pytest.param(b"data: 123456789\n" * 3 + b"data:0\n\n", False, id="lines over the limit"),
        pytest.param(b"data: 123456789\n" * 3 + b"data\n\n", True, id="lines at the limit"),
        pytest.param(b"data: 123456789\n" * 3 + b"data\ndata:\n\n", False, id="line ends count too"),
        pytest.param(b"data\n" * 31 + b"\n", True, id="nothing but line ends at the limit"),
        pytest.param(b"data\n" * 32 + b"\n", False, id="nothing but line ends over the limit"),
        pytest.param(b"data:\n" * 32 + b"\n", False, id="nothing but line ends, with colons"),
        pytest.param(b"data: 123456789\n\n" * 9, True, id="many events"),
        pytest.param(b": 123456789\n" * 9 + b"data: a\n\n", True, id="comments are not kept"),
        pytest.param(b": " + b"x" * 29 + b"\n", False, id="a comment over the limit"),
    ],
)
def test_an_event_may_be_as_long_as_the_limit_and_no_longer(short_limit: int, data: bytes, allowed: bool) -> None:
    for chunks in splits(data):
        came, error = outcome(events(chunks))
        if allowed:
            assert error is None
            assert [event.decode() for event in came] == reference_events(data)
        else:
            assert (came, error) == ([], ProtocolError)


def test_each_event_has_the_whole_limit_for_itself(short_limit: int) -> None:
    first, longest = b"data: a\n\n", b"data\n" * (short_limit + 1) + b"\n"
    for chunks in splits(first + longest + first):
        assert list(events(chunks)) == [b"a", b"\n" * short_limit, b"a"]
    for chunks in splits(first + b"data\n" + longest):
        assert outcome(events(chunks)) == ([b"a"], ProtocolError)


def test_an_object_may_be_as_long_as_the_limit_and_no_longer(short_limit: int) -> None:
    longest = b'{"a":"' + b"x" * (short_limit - 8) + b'"}'
    for end in (b"", b"\n", b"\r\n"):
        for chunks in splits(longest + end):
            assert list(objects(chunks)) == [json.loads(longest)]
        for chunks in splits(b" " + longest + end):
            assert outcome(objects(chunks)) == ([], ProtocolError)


@pytest.mark.parametrize("decoder", [lines, events, objects])
@pytest.mark.parametrize(
    "endless", [b"x", b"\xff\0", b"data: x", b'{"a":"', b"}", b"x" * 65536], ids=lambda part: ascii(part[:7])
)
def test_a_line_that_never_ends_is_given_up_at_the_limit(
    decoder: Callable[[Iterable[bytes]], Iterator[Any]], endless: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = decoding.MAX_LINE if len(endless) > 1000 else 20_000
    monkeypatch.setattr(decoding, "MAX_LINE", limit)
    read = 0

    def source() -> Iterator[bytes]:
        nonlocal read
        while read <= 2 * limit:
            read += len(endless)
            yield endless

    with pytest.raises(ProtocolError):
        list(decoder(source()))
    assert read <= limit + len(endless), "what is kept is bounded"


@pytest.mark.parametrize("endless", [b"data\n", b"data:\n", b"data: \r\n", b"data: x\r", b": ping\ndata\n"], ids=ascii)
def test_an_event_that_never_ends_is_given_up_at_the_limit(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_LINE", 10_000)
    read = 0

    def source() -> Iterator[bytes]:
        nonlocal read
        while read < 20_000:
            read += 1
            yield endless

    with pytest.raises(ProtocolError):
        list(events(source()))
    assert read <= decoding.MAX_LINE + 2, "also a line without a value is kept, and counts"


# Cost


def test_a_long_line_in_parts_of_one_byte_is_read() -> None:
    # Were the parts joined each time, this would copy half a terabyte.
    line = b"data: " + b"x" * (decoding.MAX_LINE - 6)
    same = list(events(one_by_one(line + b"\n\n"))) == [line[6:]]
    assert same  # pytest is not to explain a difference in so many bytes


def test_an_event_of_very_many_lines_is_read() -> None:
    count = decoding.MAX_LINE // 2
    same = list(events([b"data: x\n"] * count + [b"\n"])) == [b"\n".join([b"x"] * count)]
    assert same


LONG_LINES: dict[str, tuple[bytes, bytes, bytes]] = {
    "closing braces in a string": (b'{"a":"', b"}", b'"}'),
    "opening braces in a string": (b'{"a":"}', b"{", b'"}'),
    "escaped quotes and braces in a string": (b'{"a":"', b'\\"}', b'"}'),
    "backslashes in a string": (b'{"a":"}', b"\\\\", b'"}'),
    "inner objects": (b'{"a":[{}', b",{}", b"]}"),
    "inner objects far apart": (b'{"a":[{}', b',{"b": 123456}', b"]}"),
    "a list of objects": (b"[{}", b",{}", b"]"),
    "objects with commas between them": (b"{}", b",{}", b""),
    "no JSON, in braces": (b"{x}", b"{x}", b""),
    "text with braces": (b"x{}", b"{}", b""),
    "text that closes more than it opens": (b"}", b"}{", b""),
}


@pytest.mark.parametrize(("begin", "middle", "end"), LONG_LINES.values(), ids=LONG_LINES.keys())
@pytest.mark.parametrize(("length", "size"), [(2**20 - 64, 64), (2**15, 1), (2**15, 3)])
def test_the_end_of_an_object_is_found_with_few_attempts(
    begin: bytes, middle: bytes, end: bytes, length: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    def counted(data: bytes) -> Any:
        nonlocal attempts
        attempts += 1
        # The first brace that ends a part, the outermost brace, and the line's end: each is worth one attempt.
        assert attempts <= 3
        return parse(data)

    monkeypatch.setattr(decoding, "parse", counted)
    line = begin + middle * (length // len(middle)) + end
    expected, expected_error = reference_objects(line + b"\n")
    came, error = outcome(objects(cut(line + b"\n", range(0, len(line) + 1, size))))
    assert error is expected_error
    same = came[: len(expected)] == expected
    assert same
    assert attempts > 0


def test_a_backslash_that_a_read_has_torn_off_escapes_one_byte() -> None:
    source = iter([b'{"a": {}', b', "b": "\\', b'""}', b"\n"])
    assert next(objects(source)) == {"a": {}, "b": '"'}
    assert list(source) == [b"\n"], "the object was held back"


def test_an_object_that_comes_whole_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[bytes] = []

    def counted(data: bytes) -> Any:
        attempts.append(data)
        return parse(data)

    monkeypatch.setattr(decoding, "parse", counted)
    monkeypatch.setattr(decoding._EarlyObject, "closed", None)  # nor are its bytes scanned
    stream = [b'{"a": {"b": "}"}}', b'\n{"a": 2}', b'\n{"a": 3}\n{"a": 4}\n']
    assert [value["a"] for value in objects(stream) if isinstance(value, dict)] == [{"b": "}"}, 2, 3, 4]
    assert len(attempts) == 4


# JSON


@pytest.fixture(params=["standard", "orjson"])
def loads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both parsers in turn: ``parse`` must not show which of them is installed."""
    if request.param == "orjson":
        monkeypatch.setattr(decoding, "_loads", decoding._shallow(pytest.importorskip("orjson").loads))
    else:
        monkeypatch.setattr(decoding, "_loads", decoding._standard_loads)
    return str(request.param)


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
        (b' \t\r\n{"a" : 1}\n', {"a": 1}),
        (b'"plain"', "plain"),
        (b"0", 0),
        (b"-1e2", -100.0),
        (b"1e999", float("inf")),
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"Infinity", float("inf")),
        (b'{"a": -Infinity}', {"a": float("-inf")}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'"\\ud83d\\ude00"', "😀"),
        (b'"\\ud83d"', "\ud83d"),
        (b'{"a": "x\\ude00y"}', {"a": "x\ude00y"}),
        (b'"\\ude00\\ud83d"', "\ude00\ud83d"),
        (b'"\xf0\x9f\x98\x80"', "😀"),
        (b'"\xff"', "\ufffd"),
        (b'{"a": "\xe2\x82"}', {"a": "\ufffd"}),
        (b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd"),
        (b'{"\xc3": NaN, "b": "\\ud800"}', None),  # compared below: NaN is not equal to itself
        (b'"\\u0000\x7f\xe2\x80\xa8"', "\0\x7f\u2028"),
    ],
    ids=ascii,
)
def test_json_has_the_same_value_with_either_parser(data: bytes, expected: Any) -> None:
    if expected is None:
        value = parse(data)
        assert list(value) == ["\ufffd", "b"]
        assert value["\ufffd"] != value["\ufffd"]
        assert value["b"] == "\ud800"
    else:
        assert parse(data) == expected
        assert type(parse(data)) is type(expected)


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{'a':1}",
        b"[1,]",
        b"01",
        b"nan",
        b"x",
        b'"\n"',
        b'"\\x"',
        b"\xff",
        BOM + b"{}",
    ],
    ids=ascii,
)
def test_what_is_no_json_is_a_value_error_with_either_parser(data: bytes) -> None:
    with pytest.raises(ValueError):  # its words are the parser's own
        parse(data)


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"[" * 500_000, id="open lists"),
        pytest.param(b"[" * 500_000 + b"]" * 500_000, id="lists"),
        pytest.param(b'{"a":' * 150_000 + b"1" + b"}" * 150_000, id="objects"),
        # What makes the first attempt fail early leaves the second one to meet the depth.
        pytest.param(b'["\xff",' + b"[" * 500_000, id="no UTF-8"),
        pytest.param(b"[NaN," + b"[" * 500_000, id="NaN"),
    ],
)
def test_json_nested_too_deeply_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse(data)


def test_without_orjson_the_standard_librarys_parser_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orjson", None)
    monkeypatch.setattr(decoding, "_loads", decoding._first_loads)
    assert parse(b'{"a": 1}') == {"a": 1}
    assert decoding.parser() is decoding._standard_loads


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        pytest.param(["["], ["]"], id="lists"),
        pytest.param(['{"a":'], ["}"], id="objects"),
        pytest.param(["[", '{"a":'], ["]", "}"], id="both"),
        pytest.param(['["\\"]]",[],{},'], ["]"], id="lists beside what looks like their ends, and beside others"),
    ],
)
def test_json_may_be_nested_as_deeply_as_the_limit_and_no_deeper(begin: list[str], end: list[str]) -> None:
    def nested(depth: int) -> bytes:
        layers = [place % len(begin) for place in range(depth)]
        return ("".join(begin[n] for n in layers) + "1" + "".join(end[n] for n in reversed(layers))).encode()

    inner = len(begin[0]) > 10  # what stands beside is a layer of its own
    assert parse(nested(decoding.DEEPEST - inner)) == json.loads(nested(decoding.DEEPEST - inner))
    with pytest.raises(ValueError, match="nested too deeply"):
        parse(nested(decoding.DEEPEST + 1))


@pytest.mark.usefixtures("loads")
def test_a_string_without_an_end_costs_linear_time() -> None:
    """Escaped quotes, in each of which another search for its end began: 80 KB took a minute."""
    data = b'{"a":"' + b'\\"' * 500_000 + b"[" * 201
    before = process_time()
    with pytest.raises(ValueError):
        parse(data)
    assert process_time() - before < 5


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("depth", [50, 150, 199])
def test_what_parse_cannot_read_for_its_callers_depth_is_a_value_error(depth: int) -> None:
    data = b"[" * depth + b"]" * depth

    def read(calls: int) -> Any:
        if calls:
            return read(calls - 1)
        try:
            return str(depth) if parse(data) else ""
        except ValueError as error:
            return str(error)

    limit, deep = sys.getrecursionlimit(), len(inspect.stack(0))
    for left in range(20, 300, 10):
        assert read(limit - deep - left) in (str(depth), "JSON nested too deeply for a caller that is itself so deep")


def value_or_error(loads: Callable[[bytes], Any], data: bytes) -> str:
    """The value as ``repr`` writes it, which tells 1 from 1.0 and True, and finds NaN equal to itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_loads", loads)
        try:
            return repr(parse(data))
        except ValueError:
            return "ValueError"


@prove
@given(json_values, st.booleans())
def test_json_that_was_written_is_read_with_either_parser(value: Any, ascii_only: bool) -> None:
    orjson = pytest.importorskip("orjson")
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert value_or_error(decoding._standard_loads, data) == repr(value)
    assert value_or_error(orjson.loads, data) == repr(value)


GRAMMAR = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b'"a"',
    b'"b":',
    b"\\",
    b'\\"',
    b"1",
    b"-",
    b".5",
    b"e3",
    b" ",
]
DISPUTED = [
    b"NaN",
    b"-Infinity",
    b'"\\ud800"',
    b'"\\udc00"',
    b"\n",
    b"\x0c",
    b"\0",
    b"\xff",
    b"\xe2\x82",
    BOM,
]
json_tokens = st.sampled_from([*GRAMMAR, *DISPUTED])


@settings(prove, max_examples=400)
@given(st.lists(json_tokens, max_size=8).map(b"".join) | st.binary(max_size=8))
def test_any_bytes_at_all_mean_the_same_to_either_parser(data: bytes) -> None:
    orjson = pytest.importorskip("orjson")
    assert value_or_error(orjson.loads, data) == value_or_error(decoding._standard_loads, data)


# What errors show


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", ""),
        (b"x" * 200, "x" * 200),
        (b"x" * 201, "x" * 200 + "…"),
        (b"caf\xe9", "caf\ufffd"),
    ],
    ids=["empty", "at the length", "over the length", "no text"],
)
def test_the_start_of_a_body_is_shown_as_text(data: bytes, shown: str) -> None:
    assert start(data) == shown


def test_an_error_shows_the_start_of_the_line_and_not_all_of_it() -> None:
    line = b'{"error": oops' + b"x" * 100_000
    with pytest.raises(ProtocolError) as broken:
        list(objects([line + b"\n"]))
    with pytest.raises(StreamInterrupted) as interrupted:
        list(objects([line]))
    for raised in (broken, interrupted):
        assert '{"error": oops' in str(raised.value)
        assert len(str(raised.value)) < 300


def test_a_document_may_be_as_long_as_the_limit_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_DOCUMENT", 20)
    longest = b'{"a":"' + b"x" * 12 + b'"}'
    for chunks in splits(longest):
        assert document(chunks) == json.loads(longest)
    for chunks in splits(longest + b" "):
        with pytest.raises(ProtocolError, match="more than 20 bytes"):
            document(chunks)
