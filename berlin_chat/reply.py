"""A whole reply, a ``str`` that knows where it came from; and what it is made of while it grows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import ProtocolError


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

    def parsed(self) -> dict[str, Any]:
        """Returns the arguments as a dict; none at all are an empty one.

        Raises:
            ProtocolError: the model wrote no JSON object.
        """
        try:
            value = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            said = f"the arguments of the tool call {self.name!r} are no JSON object"
            raise ProtocolError(said, detail=self.arguments, advice="Ask the model again")
        return value


class Event(NamedTuple):
    """A part of a reply, in the order in which it came: what ``LiveReply.events`` yields.

    Attributes:
        kind: ``"text"``, ``"reasoning"``, ``"refusal"`` or ``"tool_call"``.
        text: the next piece of it; of a tool call, of its arguments.
        call: of a tool call, its id and name as far as they are known, and this piece of its arguments.
        place: of a tool call, its place among ``Reply.tool_calls``.
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
        message: dict[str, Any] = {"role": "assistant", "content": str(self) or (None if self.tool_calls else "")}
        if self.refusal is not None:
            message["refusal"] = self.refusal
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    **({"id": call.id} if call.id else {}),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                    **call.extra,
                }
                for call in self.tool_calls
            ]
        return message

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return str(self)
