"""OpenAI's chat completions, streamed or whole → pieces of text, events, facts. ``PROTOCOLS.md``, "OpenAICompatible".

No HTTP here. A completion that came in one piece is read by the same functions as the chunks of a stream: its
``message`` is a ``delta`` that holds everything. So both give equal replies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, TypeVar

from .decoding import Lines, document, parse, parser, without_bom
from .errors import APIStatusError, ProtocolError, StreamInterrupted
from .http.failures import reason_in, reason_of
from .reply import Event, Metadata, Text, ToolCalls, joined

T = TypeVar("T")
#: What proves the end of a streamed reply, and what to do where it does not come.
ENDS = {
    "finish_reason": 'If this server never sends one: end="done", where [DONE] is enough, or end="close"',
    "done": 'If this server sends neither: end="close"',
    "close": "",
}
#: What is read of a message or delta. Of what else it holds, lists and objects are kept as they are.
_READ = {
    *("role", "content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call"),
    *("annotations", "citations"),
}
_DONE = (b"[DONE]", b'"[DONE]"')
#: Ends a body's last line, and its last event.
_END = b"\n\n"


class Completion:
    """Reads one reply. Belongs to the question that it answers.

    Args:
        metadata: where all is noted that is no text.
        limit: the longest event of a stream, in bytes.

    Attributes:
        finished: whether a ``finish_reason`` has come.
        done: whether ``[DONE]`` has.
    """

    def __init__(self, metadata: Metadata, limit: int) -> None:
        self.finished = False
        self.done = False
        self._metadata = metadata
        self._limit = limit
        self._lines = Lines(limit, "See max_event_bytes=")
        self._pending: list[bytes] = []  # data that is no JSON yet
        self._kept = 0  # bytes of it
        self._texts = self._text, self._reasoning, self._refusal = Text(), Text(), Text()
        self._calls = ToolCalls()
        self._failed = False  # whether the next event is called "error"
        self._skipped = b""  # what came last and said nothing, to be shown where nothing else came

    def read(self, chunks: Iterable[bytes]) -> Iterator[str | Event]:
        """Returns what yields all that comes, as soon as it has, until ``[DONE]`` or the end of the body.

        The first byte tells a stream from a completion that came in one piece, for their labels do not.

        Raises:
            APIStatusError: the server says that it failed.
            ProtocolError: it does not speak the protocol.
            StreamInterrupted: the body breaks off inside an event.
        """
        body = without_bom(chunks)
        head = b""
        for data in body:
            head = (head + data).lstrip()
            if head:
                break
        body = chain([head], body)
        return self._whole(body) if head.startswith((b"{", b"[")) else self._stream(body)

    def _whole(self, body: Iterable[bytes]) -> Iterator[str | Event]:
        whole = document(body, behind=b"data: [DONE]")
        yield from self._chunk(whole, whole, ("message", "delta"))
        if not (self.finished or self._began()):
            said = "a completion without choices[0].message"
            raise ProtocolError(said, detail=_shown(whole), status=200, body=_shown(whole))
        self.finished = True  # a whole document is its own proof

    def after(self, rest: bytes) -> None:
        """Notes what stands behind ``[DONE]``: some servers count the tokens there."""
        self._note_behind(self._lines.feed(rest + _END))

    def finish(self, end: str) -> Iterator[str | Event]:
        """Yields what was kept back, and notes what was collected.

        Args:
            end: what proves that the reply is whole: one of ``ENDS``.

        Raises:
            StreamInterrupted: it is not.
        """
        if not (self.finished or self._text.parts or self._calls.found):
            said = "the stream ended before the first text, tool call or finish_reason"
            raise StreamInterrupted(said, detail=self._skipped, body=self._skipped or None)
        if not self.finished and end != "close" and not (end == "done" and self.done):
            missing = "a finish_reason" if end == "finish_reason" else "[DONE] or a finish_reason"
            raise StreamInterrupted(f"the stream ended without {missing}", advice=ENDS[end])
        texts = zip(("text", "reasoning", "refusal"), self._texts, strict=True)
        yield from ("\ufffd" if kind == "text" else Event(kind, "\ufffd") for kind, text in texts if text.held)
        self._metadata.tool_calls = self._calls.whole()
        self._metadata.reasoning = self._reasoning.whole() or None
        self._metadata.refusal = self._refusal.whole() or None

    # Streams

    def _stream(self, chunks: Iterable[bytes]) -> Iterator[str | Event]:
        """Data that is JSON is read when its line has come: the blank line behind it may be missing.

        Nearly always a chunk holds a piece of text and nothing else. ``_plain`` tells that case; ``_chunk`` reads the
        others, and those before the first text, for what all of them repeat.
        """
        feed, loads, pending, known = self._lines.feed, parser(), self._pending, self._metadata
        plainly = False
        for received in chain(chunks, (_END,)):
            lines = iter(feed(received))
            for line in lines:
                if pending or not line.startswith(b"data:"):
                    if pending or line:
                        yield from self._other(line, cut=received is _END)
                    continue
                try:
                    chunk = loads(line[5:])
                except (ValueError, RecursionError):
                    chunk = _parsed(line[5:])
                if plainly and (piece := _plain(chunk, line)):
                    if (usage := chunk.get("usage")).__class__ is dict and usage:
                        known.usage = usage
                    if "citations" in chunk:
                        known.citations = _typed(chunk["citations"], list) or known.citations
                    yield piece
                elif isinstance(chunk, dict):
                    yield from self._chunk(chunk, line[5:])
                    plainly = bool(self._text.parts) and not self._text.held
                elif line[5:].strip() in _DONE:
                    self.done = True
                    self._note_behind(lines)
                    return
                else:
                    self._keep(line[5:])

    def _other(self, line: bytes, cut: bool) -> Iterator[str | Event]:
        """Reads a line that is not the whole of an event's data."""
        if line.startswith(b"data:"):
            self._keep(line[5:])
        elif line.startswith(b"error:"):  # a field that no standard knows
            raise APIStatusError("the server says", detail=reason_in(line[6:].strip()), status=200, body=line)
        elif not line and self._pending:
            data = b"\n".join(self._pending)
            self._pending.clear()
            try:
                chunk = parse(data)
            except ValueError:
                if cut:
                    raise StreamInterrupted("the stream ended inside an event", detail=data) from None
                raise ProtocolError("an event that is broken JSON", detail=data, status=200, body=data) from None
            yield from self._chunk(chunk, data)
        elif line.startswith(b"event:"):
            self._failed = line[6:].strip() == b"error"
        elif line and not line.startswith(b":"):
            self._skipped = line

    def _began(self) -> bool:
        return bool(self._calls.found) or any(text.parts for text in self._texts)

    def _keep(self, data: bytes) -> None:
        if data.strip() not in (b"", b"null"):  # otherwise it only keeps the connection alive
            self._kept = self._kept + len(data) if self._pending else len(data)
            self._pending.append(data)
            if self._kept > self._limit:
                raise ProtocolError(f"an event of more than {self._limit} bytes", advice="See max_event_bytes=")

    def _note_behind(self, lines: Iterable[bytes]) -> None:
        with suppress(ProtocolError):  # the reply is complete, whatever stands there
            for line in lines:
                chunk = _parsed(line[5:]) if line.startswith(b"data:") else None
                if isinstance(chunk, dict):
                    self._note(chunk)

    # Chunks

    def _chunk(self, chunk: Any, data: Any, parts: tuple[str, ...] = ("delta",)) -> Iterator[str | Event]:
        """Reads one chunk, or a whole completion, whose ``parts`` hold the text; what says nothing is skipped."""
        choices = chunk.get("choices") if isinstance(chunk, dict) else False
        if not isinstance(choices, (list, type(None))) or not all(isinstance(one, dict) for one in choices or ()):
            raise _unexpected(data)
        self._note(chunk)
        # Nobody has asked for a second choice; one that comes all the same is not mixed into the first.
        choice: dict[str, Any] = next((one for one in choices or () if not one.get("index")), {})
        if "delta" not in choice and not self._began():
            parts = ("message",)  # a stream of one message; otherwise it repeats what has come
        yield from self._choice(choice, parts, data)
        if said := _error_in(chunk, choice, self._failed):
            raise APIStatusError("the server says", detail=said, status=200, body=_shown(data))
        if not choice:
            self._skipped = data

    def _note(self, chunk: dict[str, Any]) -> None:
        """Notes what stands beside the choices: the last word counts, but for names."""
        known = self._metadata
        known.model = known.model or _typed(chunk.get("model"), str)
        known.id = known.id or _typed(chunk.get("id"), str)
        groq = _typed(chunk.get("x_groq"), dict) or {}
        known.usage = _typed(chunk.get("usage") or groq.get("usage"), dict) or known.usage
        known.citations = _typed(chunk.get("citations"), list) or known.citations

    def _choice(self, choice: dict[str, Any], parts: tuple[str, ...], data: Any) -> Iterator[str | Event]:
        known = self._metadata
        part: Any = next((choice[key] for key in parts if choice.get(key) is not None), {})
        if not isinstance(part, dict):
            raise _unexpected(data)
        content, thinking = _content(part.get("content"), data)
        for kind, collected, said in (
            ("reasoning", self._reasoning, thinking or part.get("reasoning_content") or part.get("reasoning")),
            ("text", self._text, content),
            ("refusal", self._refusal, part.get("refusal")),
        ):
            if isinstance(said, str) and (piece := collected.feed(said)):
                yield piece if kind == "text" else Event(kind, piece)
        older = part.get("function_call")  # what came before tools
        calls = part.get("tool_calls") if older is None else {"function": older}
        yield from self._calls.feed(calls, whole=parts[0] == "message")
        known.annotations = joined(known.annotations, _typed(part.get("annotations"), list))
        known.logprobs = joined(known.logprobs, _typed(choice.get("logprobs"), dict))
        known.citations = _typed(part.get("citations"), list) or known.citations
        known.usage = _typed(choice.get("usage"), dict) or known.usage
        further = {key: value for key, value in part.items() if key not in _READ and isinstance(value, (dict, list))}
        known.extra = joined(known.extra, {key: value for key, value in further.items() if value} or None)
        if choice.get("finish_reason"):
            known.finish_reason, self.finished = str(choice["finish_reason"]), True


def _parsed(data: bytes) -> Any:
    """The value of JSON, None where it is none."""
    try:
        return parse(data)
    except ValueError:
        return None


def _plain(chunk: Any, line: bytes) -> str | None:
    """The text of a chunk that holds nothing else, None for all others: the one that decides what a piece costs."""
    try:
        choice = chunk["choices"][0]
        delta = choice["delta"]
        piece = delta["content"]
        if (
            piece.__class__ is str
            and (piece.isascii() or b"\\u" not in line)  # no half of a surrogate pair
            and choice.get("finish_reason") is None
            and not choice.get("index")
            and choice.get("logprobs") is None
            and "error" not in choice
            and "error" not in chunk
        ):
            if len(delta) > 1:
                for key, value in delta.items():
                    if value and key != "content" and key != "role":
                        return None
            return piece
    except (KeyError, TypeError, IndexError, AttributeError):
        pass
    return None


def _content(content: Any, data: Any) -> tuple[str, str]:
    """The text and the thinking in a content: a string, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise _unexpected(data)
    text, thinking = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str) or kind in ("text", "summary_text"):
            text.append(part if isinstance(part, str) else str(part.get("text") or ""))
        elif kind in ("thinking", "reasoning"):
            inner = part.get("thinking") or part.get("summary")
            thinking.append(inner if isinstance(inner, str) else _content(inner, data)[0])
    return "".join(text), "".join(thinking)


def _error_in(chunk: dict[str, Any], choice: dict[str, Any], failed: bool) -> str:
    """What the server says of its failure, ``""`` where it has not failed."""
    for holder in (chunk, choice, chunk.get("x_groq")):
        if isinstance(holder, dict) and holder.get("error"):
            return reason_of(holder)
    failed = failed or chunk.get("object") == "error" or bool(chunk.get("error_code"))
    if not choice:
        coded = bool(chunk.get("message")) and chunk.get("code") not in (None, 0, 200, "0", "200", "")
        failed = failed or coded or chunk.get("type") == "error" or bool(chunk.get("detail"))
    if failed:
        return reason_of(chunk) or "an error"
    return "finish_reason: error" if choice.get("finish_reason") == "error" else ""


def _unexpected(data: Any) -> ProtocolError:
    shown = _shown(data)
    return ProtocolError("an event without choices[0].delta.content", detail=shown, status=200, body=shown)


def _shown(data: Any) -> bytes:
    """The data of an event, or a whole completion, for an error."""
    try:
        return data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")
    except RecursionError:
        return b"JSON nested too deeply"


def _typed(value: Any, kind: type[T]) -> T | None:
    """The value if it is of that type and not empty."""
    return value if isinstance(value, kind) and value else None
