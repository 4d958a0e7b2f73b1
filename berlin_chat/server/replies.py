"""What a server of a test says: replies in their order, and faults. ``berlin_chat.testing`` shows the names to users.

Wherever a word takes a ``reply``, None stands for what the server says otherwise: the echo of the question.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from http import HTTPStatus
from itertools import count, islice
from typing import Any, overload

from ..errors import InvalidRequest
from ..live import LiveReply
from ..reply import Event, Reply
from ..reply import ToolCall as Called
from .faults import Broken, Fault, Refused

#: How a text is said: word by word, each with the space before it.
WORDS = re.compile(r"\s*\S+|\s+\Z")
#: What a header can say: what Latin-1 has, without what could end the line.
HEADER = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
#: What is told when there is no reply left. It is no status that a client tries again.
USED_UP = 410

Parts = Generator["str | Event", None, Reply]


@dataclass(frozen=True)
class ToolCall:
    """A reply that calls a tool; several, and text between them, are a list. Only OpenAI's protocol has calls of tools.

    Attributes:
        name: the tool's.
        arguments: what is sent as its JSON; a ``str`` is sent as it is, broken JSON too.
        id: the call's; None for one that no other call of the server has.

    Raises InvalidRequest, also when made, for arguments that JSON has no form for.
    """

    name: str
    arguments: Mapping[str, Any] | str = "{}"
    id: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.id, (str, type(None))):
            raise InvalidRequest("ToolCall: name must be a str, and id a str or None")
        if not isinstance(self.arguments, (str, Mapping)):
            raise InvalidRequest(f"ToolCall: arguments must be a mapping or a str, not {type(self.arguments).__name__}")
        self.written()

    def written(self) -> str:
        """The arguments as they are sent."""
        if isinstance(self.arguments, str):
            return self.arguments
        try:
            return json.dumps(self.arguments, default=_as_dict, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"ToolCall: arguments of {self.name!r} cannot be sent as JSON: {error}") from None


@dataclass(frozen=True)
class Fail:
    """An error instead of a reply, in the words of the client's protocol.

    ``OpenAICompatible`` asks a server that is new to it once more, without ``stream_options``, when it answers 400 or
    422. That is the same question, and gets the same ``Fail``.

    Attributes:
        status: the HTTP status, 400 to 599.
        message: what is told; None for the words that belong to the status.
        retry_after: seconds, sent as ``Retry-After``; None sends none.
        at: ``"question"``, or ``"login"`` for the next login instead: Berlin's, or H2o's settings. The other protocols
            have none.
    """

    status: int
    message: str | None = None
    _: KW_ONLY
    retry_after: float | None = None
    at: str = "question"

    def __post_init__(self) -> None:
        if not isinstance(self.status, int) or not 400 <= self.status < 600:
            raise InvalidRequest(f"Fail: status must be a number from 400 to 599, not {self.status!r}")
        if self.at not in ("question", "login"):
            raise InvalidRequest(f"Fail: at must be 'question' or 'login', not {self.at!r}")
        if self.message is not None and not isinstance(self.message, str):
            raise InvalidRequest(f"Fail: message must be a str or None, not {type(self.message).__name__}")
        seconds = self.retry_after
        if seconds is not None and not (_is_number(seconds) and 0 <= seconds <= sys.float_info.max):
            raise InvalidRequest(f"Fail: retry_after must be seconds, finite and not negative, not {seconds!r}")

    def refusal(self) -> Refused:
        """What the protocol puts into its own words."""
        headers = {} if self.retry_after is None else {"Retry-After": _seconds(self.retry_after)}
        phrases = {status.value: status.phrase for status in HTTPStatus}
        return Refused(self.status, self.message or phrases.get(self.status, "Error"), headers)


@dataclass(frozen=True)
class Cut:
    """A reply whose connection is closed before its end, so that neither the protocol nor HTTP says that it is whole.

    Attributes:
        reply: what is said.
        after: how many of its pieces come before the cut; None for all of them. After 0, not even a status comes.
    """

    reply: Any = None
    _: KW_ONLY
    after: int | None = None

    def __post_init__(self) -> None:
        _checked(self, self.reply, self.after)


@dataclass(frozen=True)
class Silence:
    """A reply after which the server falls silent: nothing more comes, and the connection stays open.

    It lasts until the client leaves, or the server is closed.

    Attributes:
        reply: what is said before.
        after: how many of its pieces come before the silence; None for all of them. After 0, which is the default for
            no ``reply``, not even a status comes.
    """

    reply: Any = None
    _: KW_ONLY
    after: int | None = None

    def __post_init__(self) -> None:
        if self.reply is None and self.after is None:
            object.__setattr__(self, "after", 0)
        _checked(self, self.reply, self.after)


@dataclass(frozen=True)
class Slow:
    """A reply that takes its time.

    Attributes:
        seconds: before each of its pieces.
        reply: what is said, which may be ``Cut`` or ``Silence``, too.
    """

    seconds: float
    reply: Any = None

    def __post_init__(self) -> None:
        if not _is_number(self.seconds) or not 0 <= self.seconds < threading.TIMEOUT_MAX:
            raise InvalidRequest("Slow: seconds must be a number, and not negative")
        _checked(self, self.reply)


@dataclass(frozen=True)
class Garbage:
    """Bytes instead of a reply: the status is 200, and the body has a proper end.

    Attributes:
        data: the body.
        content_type: its label, such as ``"text/html"``; None for that of the protocol's replies.
    """

    data: bytes
    content_type: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.data, bytes):
            raise InvalidRequest(f"Garbage: data must be bytes, not {type(self.data).__name__}")
        label = self.content_type
        if label is not None and not (isinstance(label, str) and HEADER.fullmatch(label)):
            raise InvalidRequest(f"Garbage: content_type must be one line of Latin-1, as in a header, not {label!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seconds(value: float) -> str:
    """As a header says it: whole seconds as a whole number, and never with an exponent."""
    return str(int(value)) if value == int(value) else f"{value:f}".rstrip("0")


def _as_dict(value: Any) -> dict[Any, Any]:
    """What JSON sends a mapping as that is no dict."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _checked(word: Any, reply: Any, after: int | None = None) -> None:
    """Raises InvalidRequest where one of these words was given what it cannot say."""
    name = type(word).__name__
    if isinstance(reply, (Fail, Garbage)):
        raise InvalidRequest(f"{name}: {type(reply).__name__} is a whole answer by itself, and says no pieces")
    if reply is not None:
        _check(reply, name)
    if after is not None and (not isinstance(after, int) or isinstance(after, bool) or after < 0):
        raise InvalidRequest(f"{name}: after must be a number of pieces, not {after!r}")


def _check(reply: Any, where: str) -> None:
    if isinstance(reply, (str, ToolCall, Fail, Cut, Silence, Slow, Garbage)):
        return
    if not isinstance(reply, Sequence) or isinstance(reply, (bytes, bytearray)):
        said = "a text, a list of pieces, ToolCall, Fail, Cut, Silence, Slow or Garbage"
        raise InvalidRequest(f"{where}: a reply is {said}, not {type(reply).__name__}")
    for piece in reply:
        if not isinstance(piece, (str, ToolCall)):
            raise InvalidRequest(f"{where}: a piece of a reply is a text or a ToolCall, not {type(piece).__name__}")


class Replies(MutableSequence[Any]):
    """The replies that are left: a list, whose first one answers the next question. Threads may share it.

    A reply is looked at when it is added: ``append`` and the like raise InvalidRequest for what is none. One lock
    guards it all.

    Attributes:
        asked_too_often: how many questions found no reply left.
    """

    def __init__(self, replies: Iterable[Any] = ()) -> None:
        if isinstance(replies, (str, bytes)):
            raise InvalidRequest("replies must be a list of replies")
        self.asked_too_often = 0
        self._lock = threading.Lock()
        self._left: list[Any] = []
        self._taken = 0
        self._calls = count(1)
        self.extend(replies)

    def insert(self, index: int, value: Any) -> None:
        _check(value, "replies")
        with self._lock:
            self._left.insert(index, value)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._left[index]

    def __setitem__(self, index: int | slice, value: Any) -> None:
        given = list(value) if isinstance(index, slice) else value
        for reply in given if isinstance(index, slice) else [given]:
            _check(reply, "replies")
        with self._lock:
            self._left[index] = given

    def __delitem__(self, index: int | slice) -> None:
        with self._lock:
            del self._left[index]

    def __len__(self) -> int:
        return len(self._left)

    def __eq__(self, other: object) -> bool:
        return self._left == (other._left if isinstance(other, Replies) else other)

    def __repr__(self) -> str:
        return repr(self._left)

    def log_in(self) -> None:
        """Raises Refused where the next reply is a login that fails."""
        with self._lock:
            if not self._left or getattr(self._left[0], "at", "") != "login":
                return
            self._taken += 1
            failed: Fail = self._left.pop(0)
        raise failed.refusal()

    def take(self) -> Any:
        """Returns the next reply to a question; None where nothing was ever said here.

        Raises:
            Refused: all replies are used up.
        """
        with self._lock:
            for place, reply in enumerate(self._left):
                if getattr(reply, "at", "") != "login":
                    self._taken += 1
                    return self._left.pop(place)
            if not self._taken and not self._left:
                return None
            self.asked_too_often += 1
            told = f"{self._taken} {'reply' if self._taken == 1 else 'replies'}"
        raise Refused(USED_UP, f"the server of this test has no reply left: it was told {told}, and all are used up")

    def parts(self, reply: Any, otherwise: Callable[[], LiveReply], wait: Callable[[float], object]) -> Parts:
        """Says a reply, as an upstream does.

        Args:
            otherwise: asks what answers where there is no reply.
            wait: waits so many seconds, or shorter where nobody waits any longer.

        Raises:
            Refused, Broken: what the reply says.
        """
        if reply is None:
            with otherwise() as live:
                yield from live.events()
            return live.reply if isinstance(live.reply, Reply) else Reply(live.text)
        if isinstance(reply, Fail):
            raise reply.refusal()
        if isinstance(reply, Garbage):
            raise Broken(Fault(reply.data, "whole", reply.content_type))
        if isinstance(reply, Slow):
            return (yield from _delayed(self.parts(reply.reply, otherwise, wait), reply.seconds, wait))
        if isinstance(reply, (Cut, Silence)):
            yield from _first(self.parts(reply.reply, otherwise, wait), reply.after)
            raise Broken(Fault(end="cut" if isinstance(reply, Cut) else "silent"))
        return (yield from self._said(reply))

    def _said(self, reply: str | ToolCall | Sequence[str | ToolCall]) -> Parts:
        if isinstance(reply, Reply) and reply.reasoning:
            yield Event("reasoning", reply.reasoning)
        pieces = WORDS.findall(reply) if isinstance(reply, str) else [reply] if isinstance(reply, ToolCall) else reply
        calls: list[Called] = []
        for piece in pieces:
            if isinstance(piece, ToolCall):
                given = piece.written()
                call = Called(piece.id or f"call_{next(self._calls)}", piece.name, given)
                yield Event("tool_call", given, call, len(calls))
                calls.append(call)
            elif piece:
                yield piece
        if isinstance(reply, Reply):
            return reply
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        return Reply(text, tool_calls=tuple(calls), finish_reason="tool_calls" if calls else "stop")


def _delayed(parts: Parts, seconds: float, wait: Callable[[float], object]) -> Parts:
    while True:
        try:
            part = next(parts)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        wait(seconds)
        yield part


def _first(parts: Parts, number: int | None) -> Iterator[str | Event]:
    with closing(parts):
        yield from islice(parts, number)
