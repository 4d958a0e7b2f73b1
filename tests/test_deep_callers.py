"""A caller that has most of Python's stack below itself gets a ``ChatError``, whatever the server sends."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import pytest

from berlin_chat import ChatError, Provider, decoding
from berlin_chat.http import login
from wire import OPENAI, PATIENCE, SPEECHES, Connection, Recorded, Speech, Wire

Make = Callable[..., Provider]
DEEP = b"[" * 150 + b"]" * 150
KEYS = b'{"a": ' * 150 + b'""' + b"}" * 150
#: How many calls are left on the stack: some too few, some enough.
LEFT = (120, 170, 220, 270, 320)
#: Where a server may put something that is nested deeply.
BODIES = {
    "a whole body": DEEP,
    "an error": b'{"code": 401, "error": %b}\n' % DEEP,
    "a text": b'{"content": %b}\n' % DEEP,
    "an event": b"data: %b\n\n" % DEEP,
    "an error in an event": b'data: {"error": %b}\n\n' % DEEP,
    "thinking": b'data: {"choices": [{"delta": {"content": %b}}]}\n\n'
    % (b'[{"type": "thinking", "thinking": ' * 75 + b'""' + b"}]" * 75),
    "what is joined": b'data: {"choices": [{"delta": {"content": "a"}, "logprobs": %b}]}\n\n' % KEYS * 2,
}


def deeply(act: Callable[[], object], left: int) -> BaseException | None:
    """The error of what is done where so many calls are left on the stack."""

    def call(calls: int) -> None:
        if calls:
            call(calls - 1)
        else:
            act()

    try:
        call(sys.getrecursionlimit() - len(inspect.stack(0)) - left)
    except Exception as error:
        return error
    return None


@pytest.fixture(params=["standard", "orjson"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra [speed] and without it."""
    if request.param == "orjson":
        monkeypatch.setattr(decoding, "_loads", decoding._shallow(pytest.importorskip("orjson").loads))
    else:
        monkeypatch.setattr(decoding, "_loads", decoding._standard_loads)


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.name)
def test_a_deep_caller_of_a_deep_answer_gets_a_chat_error(
    speech: Speech, body: bytes, provider_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: Recorded, connection: Connection) -> None:
        connection.respond(200, body, {"Content-Type": speech.kind})

    monkeypatch.setattr(login, "uniform", lambda low, high: 0.0)  # nobody else logs in here
    provider = provider_for(speech, answer, timeout=PATIENCE)
    assert not isinstance(deeply(lambda: provider.ask("Hi"), 900), RecursionError)  # which imports what it needs
    for left in LEFT:
        error = deeply(lambda: provider.ask("Hi"), left)
        assert error is None or isinstance(error, ChatError), f"with {left} calls left: {error!r}"


def test_a_list_of_models_that_is_nested_deeply_is_a_chat_error(provider_for: Make, wire: Wire) -> None:
    provider = provider_for(OPENAI, lambda request, connection: None)
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, b'{"data": [%b]}' % DEEP))
    for left in (900, *LEFT):
        assert isinstance(deeply(provider.models, left), ChatError)


def test_what_came_before_the_deep_part_is_kept(provider_for: Make) -> None:
    def answer(request: Recorded, connection: Connection) -> None:
        connection.respond(200, BODIES["what is joined"], {"Content-Type": OPENAI.kind})

    provider = provider_for(OPENAI, answer)
    deeply(lambda: provider.ask("Hi"), 900)
    errors = [deeply(lambda: provider.ask("Hi"), left) for left in LEFT]
    cut = [error for error in errors if "recursion limit" in str(error)]
    assert cut, "none was too deep"
    assert {error.partial for error in cut if isinstance(error, ChatError)} <= {"a", "aa"}
    assert isinstance(errors[-1], ChatError)
    assert errors[-1].partial == "aa", "it has no finish_reason, but could be read"
