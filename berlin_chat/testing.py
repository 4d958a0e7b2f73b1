"""A pytest plugin: the fixture ``chat_server``, and what its server can be told to answer (extra ``[server]``).

pytest finds it by itself where ``berlin_chat`` is installed. The fixture is a
:class:`~berlin_chat.server.LocalServer` of its own for each test, which speaks all protocols. Until it is told
something it echoes. ``replies`` is the list of what it says, one reply a question, in their order:

==========================================  ==========================================================================
``"Hi there"``                              the text, word by word
``["Hi ", "there"]``                        the text, in these pieces, each of which may also be a ``ToolCall``
``ToolCall("f", {"city": "Rome"})``         a call of a tool
``Fail(503, retry_after=1)``                an error; with ``at="login"``, the answer to the next login instead
``Cut("one two three", after=2)``           two pieces, and then the connection is closed without a proper end
``Silence("one two three", after=2)``       two pieces, and then nothing more; ``Silence()`` does not answer at all
``Slow(0.05, "one two three")``             a wait before each piece
``Garbage(b"<html>", "text/html")``         these bytes instead of a reply, and their label
``berlin_chat.Reply("Hi", usage={…})``      the text, and what is told of it beside
==========================================  ==========================================================================

``Cut(after=3)``, ``Silence(after=3)`` and ``Slow(0.05)`` are about the echo; and one stands inside another, such as
``Slow(0.05, Cut("one two", after=1))``. A question that is wrong in itself is refused, and uses no reply. When the list
is used up, questions are answered 410, which no client tries again. With ``n`` choices a question takes ``n`` replies.
A ``Fail`` of 400 or 422 also answers the same question when it comes again without ``stream_options``, as the provider
``"openai"`` asks a server that is new to it: that uses one reply, and makes two ``requests``.

The marker ``chat_server`` has the arguments of ``LocalServer``, and ``strict``: whether a test fails that leaves
something over when it ends: replies that nobody asked for, questions that found no reply, H2o conversations, and
connections that a client still holds. The setting ``chat_server_strict`` of pytest is the default of ``strict``.

>>> from berlin_chat.server import LocalServer
>>> from berlin_chat.testing import Fail
>>> with LocalServer(replies=[Fail(429, retry_after=0.1), "Hi"]) as server:
...     reply = server.provider("openai").ask("Hello!")
...     [request.path for request in server.requests]
['/v1/chat/completions', '/v1/chat/completions']
>>> reply, reply.attempts
('Hi', 2)
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .server import LocalServer
    from .server.record import Recorded
    from .server.replies import Cut, Fail, Garbage, Replies, Silence, Slow, ToolCall

__all__ = ["Cut", "Fail", "Garbage", "LocalServer", "Recorded", "Replies", "Silence", "Slow", "ToolCall", "chat_server"]

#: How long the server may take to notice that a client has left, in seconds.
LEAVING = 1.0


def __getattr__(name: str) -> Any:
    """Imports the server when it is first used: every run of pytest imports this module, and many need no server."""
    if name in __all__:
        from . import server
        from .server import record, replies

        return next(getattr(module, name) for module in (replies, record, server) if hasattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("chat_server_strict", "chat_server fails a test that leaves something over", type="bool")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "chat_server(strict=False, **arguments): of LocalServer; strict fails a test that leaves something over",
    )


@pytest.fixture
def chat_server(request: pytest.FixtureRequest) -> Iterator[LocalServer]:
    """A server of all protocols, which can be told what to answer, and how to misbehave: ``chat_server.replies``."""
    from .server import LocalServer

    marker = request.node.get_closest_marker("chat_server")
    if marker and marker.args:
        raise pytest.UsageError("the marker chat_server wants names: chat_server(replies=[…])")
    arguments = {"replies": (), **(marker.kwargs if marker else {})}
    strict = arguments.pop("strict", request.config.getini("chat_server_strict"))
    with LocalServer(**arguments) as server:
        yield server
        left = _left_over(server) if strict else []
    if left:
        pytest.fail("left over: " + "; ".join(left), pytrace=False)


def _left_over(server: LocalServer) -> list[str]:
    """Returns in words what is left over at a server made with ``replies``, an empty list for nothing."""
    until = monotonic() + LEAVING
    while (server.connections or server.conversations) and monotonic() < until:
        sleep(0.01)
    found = {
        "replies that nobody asked for": server.replies,
        "questions that found no reply": server.replies.asked_too_often,
        "conversations that nobody deleted": server.conversations,
        "connections that a client holds (close the provider)": server.connections,
    }
    return [f"{what}: {value}" for what, value in found.items() if value]
