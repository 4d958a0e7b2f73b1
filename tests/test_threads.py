"""Where the system has no more threads: an error that says so, or fewer of them, and nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from berlin_chat import ChatError, Conversation, Provider, ask_many, race, stream_many
from wire import H2O, OPENAI, Wire, speak

Make = Callable[..., Provider]
NONE_LEFT = "no thread could be started"


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> Callable[[int], None]:
    """Lets only so many more of our own threads start: none of the server's counts."""
    start = threading.Thread.start
    left = [1000]

    def starting(thread: threading.Thread) -> None:
        if thread.name.startswith(("berlin_chat", "race", "cleaning up")):
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)

    def set_left(count: int) -> None:
        left[0] = count

    return set_left


@pytest.fixture(autouse=True)
def _no_thread_is_left(wire: Wire) -> Any:
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("berlin_chat", "race"))]


def test_a_batch_goes_on_with_the_threads_that_it_gets(provider_for: Make, only: Callable[[int], None]) -> None:
    provider = provider_for(OPENAI, speak(OPENAI, ["ok"]))
    only(2)
    answers = list(ask_many(provider, ["Hi"] * 20, max_workers=8))
    assert [str(answer.reply) for answer in answers] == ["ok"] * 20


@pytest.mark.parametrize("ask", [ask_many, stream_many])
def test_a_batch_without_any_thread_says_so(ask: Any, provider_for: Make, only: Callable[[int], None]) -> None:
    provider = provider_for(OPENAI, speak(OPENAI, ["ok"]))
    only(0)
    with pytest.raises(ChatError, match=NONE_LEFT):
        list(ask(provider, ["Hi"] * 20, max_workers=8))
    only(8)
    assert len(list(ask_many(provider, ["Hi"] * 3))) == 3


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_race_is_run_by_those_that_can_start(count: int, provider_for: Make, only: Callable[[int], None]) -> None:
    provider = provider_for(OPENAI, speak(OPENAI, ["ok"]))
    only(count)
    pieces = race([provider, provider], "Hi")
    if count:
        assert list(pieces) == ["ok"]
    else:
        with pytest.raises(ChatError, match=NONE_LEFT):
            list(pieces)


@pytest.mark.parametrize("how", ["ask", "open", "conversation"])
def test_a_conversation_that_no_thread_can_make_is_an_error(
    how: str, provider_for: Make, wire: Wire, only: Callable[[int], None]
) -> None:
    provider = provider_for(H2O, speak(H2O, ["ok"]))
    only(0)
    with pytest.raises(ChatError, match=NONE_LEFT):
        if how == "ask":
            provider.ask("Hi")
        elif how == "open":
            list(provider.open("Hi"))
        else:
            Conversation(provider).ask("Hi")
    assert not wire.asked("POST", "/conversation")
    only(1)
    assert provider.ask("Hi") == "ok"
    provider.close()
    assert len(wire.asked("DELETE", "/conversation/.*")) == 1


def test_what_no_thread_can_delete_is_deleted_all_the_same(
    provider_for: Make, wire: Wire, only: Callable[[int], None]
) -> None:
    provider = provider_for(H2O, speak(H2O, ["a", "b"]))
    stream = provider.stream("Hi")
    assert next(stream) == "a"
    provider._conversations.workers.close(5)  # type: ignore[attr-defined] - so that none is idle
    only(0)
    stream.close()
    assert len(wire.asked("DELETE", "/conversation/c1")) == 1
