"""A whole reply: a ``str`` that knows where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Metadata:
    """What a provider learns beside the text while it reads a reply, to be written by ``Provider.pieces``.

    Belongs to one reply. The attributes are those of :class:`Reply`; what stays None is not known.
    """

    __slots__ = ("finish_reason", "model", "usage")

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.usage: Mapping[str, Any] | None = None


class Reply(str):
    """The text of a reply. It is a plain ``str`` wherever one is wanted, and can be pickled.

    Attributes:
        provider: the provider's name, such as ``"ylokh"``.
        model: the model that answered, by the server's own word where it gives one, else the one asked for.
        finish_reason: why the model stopped (``"stop"``, ``"length"`` …), None where the protocol has no word for it.
        usage: the server's count of tokens, None where the protocol has none.
        seconds: from the first use of the network to the end of the text.
        attempts: how often the question was sent; 1 unless something was retried.

    >>> reply = Reply("Hello!", model="llama3", seconds=0.5)
    >>> reply.upper(), reply.model
    ('HELLO!', 'llama3')
    """

    provider: str | None
    model: str | None
    finish_reason: str | None
    usage: Mapping[str, Any] | None
    seconds: float
    attempts: int

    def __new__(
        cls,
        text: str = "",
        *,
        provider: str | None = None,
        model: str | None = None,
        finish_reason: str | None = None,
        usage: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
        attempts: int = 1,
    ) -> Reply:
        reply = super().__new__(cls, text)
        reply.provider = provider
        reply.model = model
        reply.finish_reason = finish_reason
        reply.usage = usage
        reply.seconds = seconds
        reply.attempts = attempts
        return reply
