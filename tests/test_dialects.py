"""Every dialect comes out as it should: however its bytes are split, and as the ``openai`` package reads it."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import openai
import pytest
from requests.structures import CaseInsensitiveDict

from berlin_chat import (
    APIStatusError,
    ChatError,
    Metadata,
    OpenAICompatible,
    ProtocolError,
    Reply,
    StreamInterrupted,
    decoding,
)
from berlin_chat.http import transport
from dialects import DIALECTS
from dialects.form import DONE, FIRST, REST, STOP, TEXT, WHOLE, Dialect, chunk, data, encoded
from wire import PATIENCE, Connection, Recorded, Script, Wire, head

#: What a reply and its metadata are asked for. ``annotations: []`` is nothing: streamed replies have no word for it.
FACTS = ("finish_reason", "reasoning", "refusal", "logprobs", "citations", "annotations", "usage", "model", "id")
ROUTE = ("POST", "/v1/chat/completions")
MIB = 2**20
Form = tuple[Dialect, bytes, "str | None"]
Make = Callable[..., OpenAICompatible]

FORMS = [
    pytest.param((dialect, body, kind), id=f"{dialect.name} ({form})")
    for dialect in DIALECTS
    for form, body, kind in dialect.forms()
]
BOTH_FORMS = [
    pytest.param(dialect, id=dialect.name)
    for dialect in DIALECTS
    if dialect.body and dialect.whole and not dialect.error
]


# Helpers


def splits(body: bytes) -> Iterator[list[bytes]]:
    yield [body]
    yield from ([body[:place], body[place:]] for place in range(1, len(body)))
    yield [body[place : place + 1] for place in range(len(body))]
    yield [part for place in range(len(body)) for part in (b"", body[place : place + 1])]


class Answer:
    """What a provider's ``pieces`` needs of an exchange: it answers any question with these bytes."""

    interrupted = False
    status_code = 200

    def __init__(self, parts: Iterable[bytes], kind: str | None) -> None:
        self.headers = CaseInsensitiveDict({"Content-Type": kind} if kind else {})
        self._parts = iter(parts)

    def post(self, path: str, body: Any, **how: Any) -> Answer:
        return self

    def chunks(self, response: Answer) -> Iterator[bytes]:
        return self._parts

    def json(self, response: Answer) -> dict[str, Any]:
        return decoding.document(self._parts)

    def drain(self, response: Answer, chunks: Iterable[bytes] = ()) -> bytes:
        return b"".join(chunks)


def read(provider: OpenAICompatible, parts: Iterable[bytes], kind: str | None) -> tuple[str, Any, ChatError | None]:
    """The text, what is known beside it, and the error, if it ended with one."""
    said: list[str] = []
    metadata = Metadata()
    try:
        for piece in provider.pieces(Answer(parts, kind), b"{}", "asked", metadata):  # type: ignore[arg-type]
            if isinstance(piece, str):
                said.append(piece)
    except ChatError as error:
        return "".join(said), metadata, error
    return "".join(said), metadata, None


def called(known: Any) -> tuple[tuple[str | None, str, str], ...]:
    """The tool calls of a reply, None for the id of one that has none."""
    return tuple((call.id or None, call.name, call.arguments) for call in known.tool_calls)


def faults(dialect: Dialect, text: str, known: Any, error: ChatError | None) -> str:
    """What is wrong with an outcome, ``""`` for nothing."""
    wrong = []
    if text != dialect.text:
        wrong.append(f"the text is {text!r}, not {dialect.text!r}")
    if dialect.error is not None:
        if not isinstance(error, dialect.error):
            wrong.append(f"it ended with {error!r}, not with {dialect.error.__name__}")
        elif dialect.says not in str(error):
            wrong.append(f"the error says {str(error)!r}, and not {dialect.says!r}")
        return "; ".join(wrong)
    if error is not None:
        return "; ".join([*wrong, f"it failed: {type(error).__name__}: {error}"])
    calls, expected = called(known), dialect.tool_calls
    if dialect.parsed:
        calls, expected = (
            tuple((call[0], call[1], json.loads(call[2])) for call in some)  # type: ignore[misc]
            for some in (calls, expected)
        )
    if calls != expected:
        wrong.append(f"the tool calls are {calls!r}, not {expected!r}")
    wrong.extend(
        f"{name} is {getattr(known, name)!r}, not {getattr(dialect, name)!r}"
        for name in FACTS
        if getattr(known, name) != getattr(dialect, name)
    )
    return "; ".join(wrong)


def answer(body: bytes, kind: str | None, step: int | None = None) -> Script:
    """A script that answers with these bytes, so many in each chunk, and keeps the connection."""

    def script(request: Recorded, connection: Connection) -> None:
        labels = {"Content-Type": kind} if kind else {}
        connection.send(head(200, {**labels, "Transfer-Encoding": "chunked"}))
        size = step or len(body) or 1
        for place in range(0, len(body), size):
            part = body[place : place + size]
            connection.send(b"%x\r\n%b\r\n" % (len(part), part))
        connection.send(b"0\r\n\r\n")

    return script


@pytest.fixture(params=["standard", "orjson"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra [speed] and without it."""
    if request.param == "orjson":
        monkeypatch.setattr(decoding, "_loads", decoding._shallow(pytest.importorskip("orjson").loads))
    else:
        monkeypatch.setattr(decoding, "_loads", decoding._standard_loads)


@pytest.fixture
def served(wire: Wire) -> Iterator[Make]:
    """Makes a provider, and a server at ``wire`` that answers it with a script."""
    made: list[OpenAICompatible] = []

    def make(script: Script, **config: Any) -> OpenAICompatible:
        wire.routes[:] = [(*ROUTE, script)]
        made.append(OpenAICompatible(wire.url, **{"model": "asked", "retries": 0, **config}))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


# The openai package


@pytest.fixture(scope="module")
def package() -> Iterator[openai.OpenAI]:
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        yield openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key="any", max_retries=0, http_client=client)


Read = tuple[str, tuple[tuple[str | None, str, str], ...], "str | None"]


def streamed_by_openai(client: openai.OpenAI) -> Read:
    """The text, the tool calls put together by index, and the finish reason, as the package's readers do it."""
    text, finish = "", None
    calls: dict[Any, list[Any]] = {}
    asked: Any = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}], stream=True)
    with asked as stream:  # one that the garbage collector closed could wait for a lock of its own thread's
        for each in stream:
            for choice in each.choices or []:
                if choice.index != 0:
                    continue
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
                for delta in choice.delta.tool_calls or []:
                    call = calls.setdefault(delta.index, [None, "", ""])
                    call[0] = delta.id or call[0]
                    call[1] += delta.function.name or ""
                    call[2] += delta.function.arguments or ""
    return text, tuple((id, name, arguments) for id, name, arguments in calls.values()), finish


def whole_by_openai(client: openai.OpenAI) -> Read:
    completion = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    choice = next(choice for choice in completion.choices if choice.index == 0)
    calls: Any = choice.message.tool_calls or ()
    return (
        choice.message.content or "",
        tuple((call.id, call.function.name, call.function.arguments) for call in calls),
        choice.finish_reason,
    )


def openai_disagrees(dialect: Dialect, reader: Callable[[openai.OpenAI], Read], client: openai.OpenAI) -> str:
    """What the package makes of it that is not what we must make of it, ``""`` where both agree."""
    try:
        outcome = reader(client)
    except openai.APIError as error:
        return "" if dialect.error is not None else repr(error)
    except (AttributeError, TypeError, ValueError, StopIteration) as error:
        return repr(error)
    agreed = (dialect.text, dialect.tool_calls, dialect.finish_reason)
    return "" if dialect.error is None and outcome == agreed else repr(outcome)


# Every dialect


def test_there_are_more_than_sixty_dialects_each_with_its_origin() -> None:
    names = [dialect.name for dialect in DIALECTS]
    assert len({(dialect.server, dialect.oddity) for dialect in DIALECTS}) >= 60
    assert len(names) == len(set(names)), "two dialects have one name"
    for dialect in DIALECTS:
        assert dialect.seen, f"{dialect.name}: it does not say where it was seen"
        assert dialect.forms(), f"{dialect.name}: it has no bytes"
        assert all(len(body) < 1600 for _, body, _ in dialect.forms()), f"{dialect.name}: too long for every split"


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize("form", FORMS)
def test_a_dialect_is_understood_at_every_split_of_its_bytes(form: Form) -> None:
    dialect, body, kind = form
    with OpenAICompatible("http://127.0.0.1:1", end=dialect.end, retries=0) as provider:
        for parts in splits(body):
            text, known, error = read(provider, parts, kind)
            wrong = faults(dialect, text, known, error)
            at = f"cut at {len(parts[0])}" if len(parts) == 2 else f"in {len(parts)} parts"
            assert not wrong, f"{dialect.name} ({dialect.seen}), {at}: {wrong}"
            text.encode()  # what cannot be encoded would fail far from here


@pytest.mark.parametrize("form", FORMS)
def test_a_dialect_is_understood_over_a_connection_and_as_the_openai_package_does(
    form: Form, served: Make, wire: Wire, package: openai.OpenAI
) -> None:
    dialect, body, kind = form
    streamed = body is dialect.body
    for way, step in (({} if streamed else {"stream": False}, 1), ({"stream": False} if streamed else {}, None)):
        provider = served(answer(body, kind, step), end=dialect.end)
        reply, error = Reply(""), None
        try:
            reply = provider.ask("Hi", **way)
        except ChatError as caught:
            error = caught
        wrong = faults(dialect, str(reply) if error is None else error.partial, reply, error)
        asked = "asked for a stream" if not way else "asked for no stream"
        assert not wrong, f"{dialect.name} ({dialect.seen}), {asked}: {wrong}"
    reason = dialect.openai if streamed else dialect.openai_whole
    client = package.copy(base_url=f"{wire.url}/v1")
    disagrees = openai_disagrees(dialect, streamed_by_openai if streamed else whole_by_openai, client)
    if reason:
        assert disagrees, f"{dialect.name}: the openai package reads it after all, and no longer {reason}"
    else:
        assert not disagrees, f"{dialect.name}: the openai package makes {disagrees} of it"


@pytest.mark.parametrize("form", [form for form in FORMS if "html" in str(form.values[0][2])])  # type: ignore[index]
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 100])
def test_the_label_of_a_web_page_is_seen_through_however_few_bytes_come_first(
    form: Form, size: int, served: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialect, body, kind = form

    def script(request: Recorded, connection: Connection) -> None:
        connection.respond(200, body, {"Content-Type": str(kind)})

    monkeypatch.setattr(transport, "READ_SIZE", size)
    assert served(script, end=dialect.end).ask("Hi") == dialect.text


@pytest.mark.parametrize("dialect", BOTH_FORMS)
def test_a_reply_is_the_same_streamed_and_unstreamed(dialect: Dialect, served: Make) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        form = dialect.forms()[0 if request.json["stream"] else 1]
        answer(form[1], form[2])(request, connection)

    provider = served(script, end=dialect.end)
    streamed, unstreamed = provider.ask("Hi"), provider.ask("Hi", stream=False)
    assert str(streamed) == str(unstreamed)
    for name in (*FACTS, "tool_calls", "message"):
        assert getattr(streamed, name) == getattr(unstreamed, name), f"{dialect.name}: {name} differs"


# What no single server is known for


@pytest.mark.parametrize("nothing", [None, {}, "", []], ids=repr)
@pytest.mark.parametrize("where", ["chunk", "choice"])
def test_an_error_of_nothing_is_no_error(nothing: Any, where: str) -> None:
    more: dict[str, Any] = {"error": nothing} if where == "chunk" else {"choice": {"error": nothing}}
    body = data(chunk({"content": "Hi"}, **more), chunk({}, "stop", **more)) + DONE
    with OpenAICompatible("http://127.0.0.1:1") as provider:
        text, known, error = read(provider, [body], "text/event-stream")
    assert (text, known.finish_reason, error) == ("Hi", "stop", None)


def test_a_message_in_a_stream_counts_where_no_delta_came() -> None:
    """The other side of the two servers whose messages repeat what their deltas have said."""
    with OpenAICompatible("http://127.0.0.1:1") as provider:
        text, known, error = read(provider, [data(WHOLE) + DONE], "text/event-stream")
    assert (text, known.finish_reason, error) == (TEXT, "stop", None)


@pytest.mark.parametrize("end", ["finish_reason", "done", "close"])
def test_a_connection_that_is_cut_is_never_a_whole_reply(end: str, served: Make) -> None:
    def cut(request: Recorded, connection: Connection) -> None:
        part = data(FIRST, REST)
        connection.send(head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
        connection.send(b"%x\r\n%b\r\n" % (len(part), part))
        connection.close()

    with pytest.raises(StreamInterrupted) as caught:
        served(cut, end=end).ask("Hi")
    assert caught.value.partial == TEXT


@pytest.mark.parametrize("end", ["finish_reason", "done", "close"])
@pytest.mark.parametrize(
    "nothing", [DONE, data(chunk({"role": "assistant"})) + DONE, data(b"{}"), b""], ids=["DONE", "role", "{}", "empty"]
)
def test_an_end_before_the_first_text_is_asked_again(nothing: bytes, end: str, served: Make, wire: Wire) -> None:
    def script(request: Recorded, connection: Connection) -> None:
        whole = len(wire.asked(*ROUTE)) > 1
        answer(data(FIRST, REST, STOP) + DONE if whole else nothing, "text/event-stream")(request, connection)

    reply = served(script, end=end, retries=1).ask("Hi")
    assert (reply, reply.attempts, len(wire.asked(*ROUTE))) == (TEXT, 2, 2)


def test_an_error_in_the_stream_is_not_asked_again_after_the_first_text(served: Make, wire: Wire) -> None:
    failure = data(FIRST, encoded({"error": {"message": "overloaded", "code": 503}}))
    with pytest.raises(APIStatusError) as caught:
        served(answer(failure, "text/event-stream"), retries=2).ask("Hi")
    assert (caught.value.partial, len(wire.asked(*ROUTE))) == ("Grü", 1)


# Large events


def image(size: int) -> bytes:
    """A chunk with an image of so many bytes."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * size}}
    return chunk({"content": "", "images": [picture]})


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize("size", [MIB + 1, 3 * MIB, 15 * MIB], ids=lambda size: f"{size / MIB:.0f} MiB")
@pytest.mark.parametrize("after", [b"\n\n", b"\n"], ids=["blank lines", "no blank lines"])
def test_an_event_with_an_image_is_read_up_to_16_mib(size: int, after: bytes, served: Make) -> None:
    body = data(FIRST, image(size), REST, STOP, after=after) + DONE
    reply = served(answer(body, "text/event-stream", 64 * 1024)).ask("Hi")
    assert (reply, reply.finish_reason) == (TEXT, "stop")


def test_an_unstreamed_reply_with_an_image_is_read(served: Make) -> None:
    picture = b'"images":[{"type":"image_url","image_url":{"url":"data:image/png;base64,' + b"A" * (3 * MIB) + b'"}}],'
    body = WHOLE.replace(b'"content":', picture + b'"content":')
    assert served(answer(body, "application/json", 64 * 1024)).ask("Hi", stream=False) == TEXT


def endless(begin: bytes, part: bytes, taken: list[int]) -> Iterator[bytes]:
    """A body that does not end; ``taken`` gets the size of what was taken of it."""
    for piece in (begin, *[part] * 10_000):
        taken.append(len(piece))
        yield piece


@pytest.mark.parametrize(
    ("begin", "part"),
    [
        pytest.param(b'data: {"choices":[{"index":0,"delta":{"content":"', b"A" * 65536, id="one line"),
        pytest.param(b"data: [\n", b"data: " + b"1," * 500 + b"\n", id="many lines"),
        pytest.param(b": ", b"A" * 65536, id="a comment"),
    ],
)
@pytest.mark.parametrize("limit", [MIB // 4, 2 * MIB], ids=lambda limit: f"{limit / MIB} MiB")
def test_a_larger_event_is_a_protocol_error_in_bounded_memory(begin: bytes, part: bytes, limit: int) -> None:
    taken: list[int] = []
    with OpenAICompatible("http://127.0.0.1:1", max_event_bytes=limit) as provider:
        tracemalloc.start()
        try:
            _, _, error = read(provider, endless(data(FIRST) + begin, part, taken), "text/event-stream")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert isinstance(error, ProtocolError), f"it ended with {error!r}"
    assert str(limit) in str(error), "the error does not name the limit"
    assert sum(taken) < limit + 128 * 1024, "it read on behind the limit"
    assert peak < 4 * limit + MIB, f"it took {peak / MIB:.1f} MiB of memory"


def at_once(body: bytes) -> Script:
    return lambda request, connection: connection.respond(200, body, {"Content-Type": "text/event-stream"})


def test_what_stands_before_a_larger_event_is_not_lost_where_one_read_brings_both(served: Make) -> None:
    larger = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"A" * 2000 + b'"}}]}\n\n'
    with pytest.raises(ProtocolError, match="1000 bytes") as caught:
        served(at_once(data(FIRST, REST) + larger + data(STOP)), max_event_bytes=1000).ask("Hi")
    assert caught.value.partial == TEXT


def test_a_larger_event_behind_the_end_is_not_looked_at(served: Make) -> None:
    larger = b'data: {"usage":{"total_tokens":1},"x":"' + b"A" * 2000 + b'"}\n\n'
    whole = data(FIRST, REST, STOP) + b"data: [DONE]\n\n"
    assert served(at_once(whole + larger), max_event_bytes=1000).ask("Hi") == TEXT


def test_16_mib_are_the_limit_unless_told_otherwise() -> None:
    taken: list[int] = []
    body = endless(data(FIRST) + b'data: {"x":"', b"A" * 65536, taken)
    with OpenAICompatible("http://127.0.0.1:1") as provider:
        text, _, error = read(provider, body, "text/event-stream")
    assert isinstance(error, ProtocolError), f"it ended with {error!r}"
    assert text == "Grü"
    assert 16 * MIB <= sum(taken) < 17 * MIB


def test_an_event_of_many_lines_costs_no_more_than_its_length() -> None:
    def seconds(lines: int) -> float:
        body = data(FIRST) + b"data: [\n" + b"data:1,\n" * lines + b"data: 1]\n\n"
        least = float("inf")
        for _ in range(3):
            with OpenAICompatible("http://127.0.0.1:1") as provider:
                started = time.thread_time()
                read(provider, [body], "text/event-stream")
                least = min(least, time.thread_time() - started)
        return least

    few, many = seconds(2_000), seconds(16_000)
    assert many < 24 * few, f"8 times the lines cost {many / few:.0f} times as much"


# As soon as they can be told


@pytest.mark.parametrize("after", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n", b"\r\n"], ids=repr)
def test_text_is_given_before_the_next_event_comes(after: bytes, served: Make) -> None:
    """Also where no blank line parts the events: JSON that is whole waits for nothing."""
    arrived = threading.Event()

    def script(request: Recorded, connection: Connection) -> None:
        connection.send(head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
        for part in (data(FIRST, after=after), data(REST, STOP, after=after) + b"data: [DONE]" + after):
            connection.send(b"%x\r\n%b\r\n" % (len(part), part))
            assert arrived.wait(PATIENCE), "the first text was held back"
        connection.send(b"0\r\n\r\n")

    pieces = []
    for piece in served(script).stream("Hi"):
        pieces.append(piece)
        arrived.set()
    assert "".join(pieces) == TEXT
