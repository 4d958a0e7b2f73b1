"""A model server as people run them, for the README's examples: it thinks, calls tools and sees images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from wire import Chunked, Connection, Recorded, Wire

#: Each city that a question may name has a call of the tool.
CITIES = ("Berlin", "Rome")


class ModelServer(Wire):
    """Streams OpenAI's chat completions.

    Args:
        says_why: whether it ends a reply with a ``finish_reason``.
    """

    def __init__(self, says_why: bool = True) -> None:
        super().__init__()
        self.on("POST", r"(/v1|/openai/deployments/[^/]+)/chat/completions(\?.*)?", self._complete)
        self.on("GET", "/v1/models", self._models)
        self._says_why = says_why

    def questions(self) -> list[Any]:
        """The JSON of the questions so far."""
        return [request.json for request in self.asked("POST", ".*")]

    def _models(self, request: Recorded, connection: Connection) -> None:
        connection.respond(200, {"object": "list", "data": [{"id": "llama3"}, {"id": "deepseek-r1"}]})

    def _complete(self, request: Recorded, connection: Connection) -> None:
        question = request.json
        assert question["stream"] is True
        body = Chunked(connection, "text/event-stream", b"")
        finish = None
        for delta in _deltas(question):
            finish = "tool_calls" if "tool_calls" in delta else "stop"
            body.part(_event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))
        if self._says_why:
            body.part(_event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}))
        if question.get("stream_options") == {"include_usage": True}:
            body.part(
                _event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}})
            )
        body.part(b"data: [DONE]\n\n")
        body.end()


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"id": "chatcmpl-1", "model": "m-1", **chunk}).encode() + b"\n\n"


def _deltas(question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the model says: calls of tools where it is offered some, else a few words about the last messages."""
    *_, last = messages = question["messages"]
    if question["model"] == "deepseek-r1":
        yield {"reasoning_content": "Short waves "}
        yield {"reasoning_content": "scatter most."}
    if question.get("tools") and last["role"] == "user":
        for index, city in enumerate(city for city in CITIES if city in last["content"]):
            function = {"name": question["tools"][0]["function"]["name"], "arguments": ""}
            yield {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]}
            for piece in json.dumps({"city": city}).split(" "):
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
    elif last["role"] == "tool":
        yield {"content": " and ".join(message["content"] for message in messages if message["role"] == "tool")}
    elif isinstance(last["content"], list):
        kinds = [part["image_url"]["url"][:14] for part in last["content"] if part["type"] == "image_url"]
        yield {"content": f"I see {', '.join(kinds)}."}
    else:
        yield {"content": "Because short "}
        yield {"content": "waves scatter most."}
