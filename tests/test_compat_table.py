"""The README's table of what old code does, and what does the same: both sides are run, and say the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import berlin_chat
import berlin_chat.compat.g4f as g4f
from berlin_chat import APIStatusError, LiveReply, OpenAICompatible, Provider
from berlin_chat.compat import Client
from berlin_chat.compat.chunk import Stream
from berlin_chat.compat.client import SyncPage
from berlin_chat.compat.completion import ChatCompletion
from berlin_chat.server import LocalServer
from model_server import ModelServer
from test_documentation import rows

ROWS = rows("old")[1:]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def old() -> str:
    """Unless a test has its own."""
    return ""


@pytest.fixture
def names(old: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the table's expressions may name. The model is offered tools where its calls of them are looked at."""
    options = {"tools": TOOLS} if "tool_calls" in old else {}
    messages = [{"role": "user", "content": "Weather in Berlin?"}]
    with (
        ModelServer() as models,
        OpenAICompatible(models.url) as upstream,
        LocalServer(upstream=upstream) as server,
        OpenAICompatible(server.url) as provider,
        Client(base_url=server.url) as client,
    ):
        monkeypatch.setenv("BERLIN_CHAT_URL", server.url)
        given = {"g4f": g4f, "OpenAI": Client, "client": client, "provider": provider, "messages": messages}
        completion = client.chat.completions.create(messages=messages, **options)
        replies = {"completion": completion, "reply": provider.ask(messages, **options)}
        g4f.ChatCompletion.create("m", messages, OpenAICompatible)
        yield {**vars(berlin_chat), **given, **replies, "error": APIStatusError("no", status=500)}


def told(value: Any) -> Any:
    """What a result says, whatever it is."""
    if isinstance(value, type) and issubclass(value, Provider):
        return [value.name]
    if isinstance(value, (Provider, Client)):
        with value:
            provider = value.provider if isinstance(value, Client) else value
            return [one.name for one in getattr(provider, "providers", [provider])]
    if isinstance(value, ChatCompletion):
        return value.choices[0].message.content
    if isinstance(value, Stream):
        return "".join(chunk.choices[0].delta.content or "" for chunk in value)
    if isinstance(value, SyncPage):
        return [model.id for model in value]
    return "".join(value) if isinstance(value, (LiveReply, Iterator)) else value


@pytest.mark.parametrize(("old", "new"), ROWS, ids=[old for old, _ in ROWS])
def test_the_readmes_old_and_new_calls_say_the_same(old: str, new: str, names: dict[str, Any]) -> None:
    said, wanted = (told(eval(cell.strip("`"), names)) for cell in (old, new))
    assert said == wanted
    assert said


def test_a_new_call_that_says_something_else_would_be_found(names: dict[str, Any]) -> None:
    pairs = [("completion.choices[0].finish_reason", "reply.model"), ("OpenAI()", "Ylokh()")]
    pairs.append(("g4f.Provider.RetryProvider([Ylokh, H2o])", "Fallback([H2o])"))
    for old, new in pairs:
        assert told(eval(old, names)) != told(eval(new, names))
