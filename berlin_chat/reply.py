"""A whole reply, a ``str`` that knows where it came from; and what it is made of while it grows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .errors import ProtocolError
from .process import importing


class ToolCall(NamedTuple):
    """A call of one of the tools that the question offered.

    Attributes:
        id: what the answer to it must name as its ``tool_call_id``; ``""`` where the server gives none.
        name: the tool's name.
        arguments: the JSON as the model wrote it, which may be broken.
        extra: what else the server says of the call and wants back with it, such as a signature.

    >>> ToolCall("call_1", "weather", '{"city": "Berlin"}').parsed()
    {'city': 'Berlin'}
    """

    id: str
    name: str
    arguments: str
    extra: Mapping[str, Any] = {}

    @property
    def message(self) -> dict[str, Any]:
        """The call as it stands in a message."""
        kind, given = ("custom", "input") if self.extra.get("type") == "custom" else ("function", "arguments")
        call = {"type": kind, kind: {"name": self.name, given: self.arguments}, **self.extra}
        return {"id": self.id, **call} if self.id else call

    def parsed(self) -> dict[str, Any]:
        """Returns the arguments as a dict; none at all are an empty one.

        Raises:
            ProtocolError: the model wrote no JSON object.
        """
        try:
            value = json.loads(self.arguments.strip() or "{}")
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            said = f"the arguments of the tool call {self.name!r} are no JSON object"
            raise ProtocolError(said, detail=self.arguments, advice="Ask the model again")
        return value


class Event(NamedTuple):
    """A part of a reply, in the order in which it came: what ``LiveReply.events`` yields.

    Attributes:
        kind: ``"text"``, ``"reasoning"``, ``"refusal"`` or ``"tool_call"``; in a ``Conversation`` with tools also
            ``"tool_result"``.
        text: the next piece of it; of a tool call, of its arguments; of a result, all of it.
        call: of a tool call, its id and name as far as they are known, and this piece of its arguments; of a result,
            the whole call.
        place: of a tool call or its result, the call's place among ``Reply.tool_calls``.
    """

    kind: str
    text: str
    call: ToolCall | None = None
    place: int | None = None


class Facts:
    """What is known of a reply beside its text; None or empty where the server does not say.

    Attributes:
        model: the model that answered, by the server's own word where it gives one, else the one asked for.
        finish_reason: why the model stopped (``"stop"``, ``"length"``, ``"tool_calls"`` …).
        usage: the server's count of tokens.
        tool_calls: the calls of tools that the model wants, whole.
        reasoning: the text of the model's thinking.
        refusal: the text with which the model refused.
        logprobs: the logarithms of the tokens' probabilities, all in one, as in a reply that was not streamed.
        citations: the addresses that the reply cites.
        annotations: what the server notes on parts of the text.
        id: the server's name for the reply.
        extra: what else its message holds, such as audio and images.
    """

    model: str | None = None
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    refusal: str | None = None
    logprobs: Mapping[str, Any] | None = None
    citations: list[Any] | None = None
    annotations: list[Any] | None = None
    id: str | None = None
    extra: Mapping[str, Any] | None = None


class Metadata(Facts):
    """What a provider learns beside the text while it reads a reply, to be written by ``Provider.pieces``.

    Belongs to one reply. The attributes are those of :class:`Facts`.
    """


class Reply(str, Facts):
    """The text of a reply. It is a plain ``str`` wherever one is wanted, and can be pickled.

    Attributes (beside those of :class:`Facts`):
        provider: the provider's name, such as ``"openai"``.
        headers: the response's, such as a request id and what is left of a rate limit; their case does not matter.
        seconds: from the first use of the network to the end of the text.
        first_piece_seconds: from there to the first piece of text, None where there was none.
        attempts: how often the question was sent; 1 unless something was retried.

    >>> reply = Reply("Hello!", model="llama3", seconds=0.5)
    >>> reply.upper(), reply.model
    ('HELLO!', 'llama3')
    """

    provider: str | None = None
    headers: Mapping[str, str] = {}
    seconds: float = 0.0
    first_piece_seconds: float | None = None
    attempts: int = 1

    def __new__(cls, text: str = "", **facts: Any) -> Reply:
        reply = super().__new__(cls, text)
        for name, value in facts.items():
            if name not in Facts.__annotations__ and name not in Reply.__annotations__:
                raise TypeError(f"a Reply has no {name!r}")
            setattr(reply, name, value)
        return reply

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, to be appended to ``messages`` before the next question, tool calls included."""
        extra = dict(self.extra or {})
        if isinstance(extra.get("audio"), dict) and extra["audio"].get("id"):
            extra["audio"] = {"id": extra["audio"]["id"]}  # the server knows it by that
        message: dict[str, Any] = {
            "role": "assistant",
            "content": str(self) or (None if self.tool_calls or extra else ""),
        }
        if self.refusal is not None:
            message["refusal"] = self.refusal
        if self.tool_calls:
            message["tool_calls"] = [call.message for call in self.tool_calls]
        return {**message, **extra}

    def _repr_markdown_(self) -> str:
        """What a notebook shows: Markdown, in which HTML is text."""
        with importing:
            from .sanitizer import harmless  # here, for who shows nothing needs none of it

        return harmless(str(self))


# While it grows

#: Keys that a server repeats in each part, and whose value is not a part of anything.
_REPEATED = ("id", "type", "role", "format", "index", "object")


def whole_characters(text: str) -> str:
    """Returns the text with its surrogate pairs put together, and U+FFFD for each half that is alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def joined(before: Any, more: Any) -> Any:
    """Returns a value that comes in parts: texts behind each other, lists too (in place), dicts key by key."""
    if isinstance(before, list) and isinstance(more, list):
        before.extend(more)
        return before
    if isinstance(before, dict) and isinstance(more, dict):
        for key, value in more.items():
            before[key] = joined(before.get(key), value) if key not in _REPEATED else value
        return before
    if isinstance(before, str) and isinstance(more, str):
        return before + more
    if more is None or more == []:
        return before
    return list(more) if isinstance(more, list) else dict(more) if isinstance(more, dict) else more


class Text:
    """A text that comes in pieces, some of which tear a surrogate pair."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.held = ""  # the first half of a pair, whose second may follow

    def feed(self, piece: str) -> str:
        """Returns what can be told of it."""
        piece = self.held + piece
        self.held = piece[-1] if "\ud800" <= piece[-1:] <= "\udbff" else ""
        told = whole_characters(piece.removesuffix(self.held) if self.held else piece)
        if told:
            self.parts.append(told)
        return told

    def whole(self) -> str:
        """Returns all of it."""
        return "".join([*self.parts, "\ufffd" if self.held else ""])


class _Call:
    """A call of a tool that is being put together."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.id = self.name = ""
        self.arguments = Text()
        self.extra: dict[str, Any] = {}


class ToolCalls:
    """Calls of tools, from deltas or from calls that came whole. Each step costs the same, however many there are."""

    def __init__(self) -> None:
        self.found: list[_Call] = []
        self._at: dict[int, _Call] = {}  # by the server's index
        self._named: dict[str, _Call] = {}  # by id

    def feed(self, deltas: Any, whole: bool) -> Iterator[Event]:
        """Adds what one chunk brings; yields the event that tells of each.

        Args:
            deltas: a list of calls, or one of them.
            whole: whether they belong to a whole message: then each is a call.
        """
        deltas = [deltas] if isinstance(deltas, dict) else deltas if isinstance(deltas, list) else []
        first = len(self.found)
        for delta in deltas:
            if isinstance(delta, dict):
                yield self._feed(delta, 0 if whole else first)

    def _feed(self, delta: dict[str, Any], first: int) -> Event:
        custom = delta.get("custom")  # a tool of free text instead of JSON
        function = custom if isinstance(custom, dict) else delta.get("function")
        function = function if isinstance(function, dict) else {}
        name, identity = str(function.get("name") or ""), str(delta.get("id") or "")
        arguments = function.get("input" if function is custom else "arguments") or ""
        if not isinstance(arguments, str):  # some servers parse it, which nobody has asked for
            arguments = json.dumps(arguments, ensure_ascii=False)
        index = delta.get("index")
        call = self._call(index if isinstance(index, int) else None, identity, name, first)
        if identity and not call.id:
            call.id = identity
            self._named[identity] = call
        call.name += "" if name == call.name else name
        if function is custom:
            call.extra["type"] = "custom"
        known = ("index", "id", "type", "function", "custom")
        call.extra.update({key: value for key, value in delta.items() if key not in known and value is not None})
        piece = call.arguments.feed(arguments)
        return Event("tool_call", piece, ToolCall(call.id, call.name, piece, dict(call.extra)), call.place)

    def _call(self, index: int | None, identity: str, name: str, first: int) -> _Call:
        """The call that a delta belongs to.

        One with a name begins a new call if it has another id than the call at its index, or if that call was begun by
        the same chunk, at the place ``first`` or later.
        """
        call = self._at.get(index) if index is not None else self._named.get(identity)
        if call is None and index is None and self.found and not (identity or name):
            call = self.found[-1]
        another = call is not None and bool(identity and call.id) and identity != call.id
        if call is None or (name and (another or call.place >= first)):
            call = _Call(len(self.found))
            self.found.append(call)
            if index is not None:
                self._at[index] = call
        return call

    def whole(self) -> tuple[ToolCall, ...]:
        """Returns all of them."""
        return tuple(ToolCall(call.id, call.name, call.arguments.whole(), call.extra) for call in self.found)
