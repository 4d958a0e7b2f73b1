"""``berlin-chat chat`` in a real terminal, and from a pipe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from berlin_chat.server import LocalServer
from terminal import Terminal, needs_tmux
from wire import PATIENCE


class Upstream:
    """Says a reply in Markdown; the rest of one to "Wait" only when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        self.models: list[str | None] = []
        self.go_on = threading.Event()

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        self.asked.append([*messages])
        self.models.append(model)
        said = messages[-1]["content"]
        yield f"You said **{said}**"
        if said == "Wait":
            yield " and now"
            assert self.go_on.wait(PATIENCE)
        yield ", *turn* "
        yield f"{sum(message['role'] == 'user' for message in messages)}."

    def contents(self) -> list[str]:
        """What the last question said, message by message."""
        return [message["content"] for message in self.asked[-1]]


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def server(upstream: Upstream) -> Iterator[LocalServer]:
    with LocalServer(upstream=upstream) as running:
        yield running
        upstream.go_on.set()  # lest a reply that nobody reads keeps the end waiting


@needs_tmux
def test_a_chat_in_a_terminal(upstream: Upstream, server: LocalServer) -> None:
    with Terminal("chat", "--base-url", server.url) as terminal:
        terminal.wait_for("Ctrl-D leaves.")
        terminal.type("Hello")
        shown = terminal.wait_for("You said Hello, turn 1.")
        assert "*" not in shown
        terminal.type("Wait")
        terminal.wait_for("You said Wait and now")
        terminal.press("C-c")
        terminal.wait_for("stopped: the part above stays in the conversation")
        terminal.type("Another")
        terminal.wait_for("You said Another, turn 3.")
        assert upstream.contents() == [
            *("Hello", "You said **Hello**, *turn* 1.", "Wait", "You said **Wait** and now", "Another")
        ]
        terminal.type("/undo")
        terminal.wait_for("taken back: Another")
        terminal.type("Once more")
        terminal.wait_for("You said Once more, turn 3.")
        terminal.type("/exit")
        assert terminal.code() == 0
