"""Real clients of OpenAI's protocol, through the embedded server in front of a model server.

``openai``, LangChain, instructor, pydantic-ai and the command ``llm`` call tools, and are told what came back. Nothing
leaves the machine: a name that is looked up is a failure.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from berlin_chat import OpenAICompatible, image
from berlin_chat.server import LocalServer
from scripted import USAGE, call, chunk, end, questions, replies, text, two_calls
from wire import Wire

PATIENCE = 30.0
KEY = "sk-the-clients-key"
HI: list[Any] = [{"role": "user", "content": "Weather in Berlin?"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
CITIES = ["Berlin", "Osló 🙂"]

# The first import of some of these packages takes long on a busy machine.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def _nothing_leaves_the_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("LANGCHAIN_TRACING_V2", "LANGSMITH_TRACING"):
        monkeypatch.setenv(name, "false")
    looked_up = []
    look_up = socket.getaddrinfo

    def local_only(host: Any, *others: Any, **more: Any) -> Any:
        if host not in ("127.0.0.1", "::1", "localhost", None):
            looked_up.append(host)
            raise socket.gaierror(f"{host} is not of this machine")
        return look_up(host, *others, **more)

    monkeypatch.setattr(socket, "getaddrinfo", local_only)
    yield
    assert looked_up == []


@pytest.fixture
def gateway(wire: Wire) -> Iterator[LocalServer]:
    """An embedded server in front of the model server at ``wire``."""
    with (
        OpenAICompatible(wire.url, proxy="", retries=0) as upstream,
        LocalServer(upstream=upstream, password=KEY) as server,
    ):
        yield server


@pytest.fixture
def client(gateway: LocalServer) -> Iterator[openai.OpenAI]:
    """The openai package, in front of it."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as client:
        yield client


# openai


def test_openai_calls_tools(client: openai.OpenAI, wire: Wire) -> None:
    replies(wire, two_calls(), text("Sunny"))
    choice = client.chat.completions.create(model="m-1", messages=HI, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [json.loads(one.function.arguments)["city"] for one in choice.message.tool_calls or ()] == CITIES  # type: ignore[union-attr]
    answers = [{"role": "tool", "tool_call_id": one.id, "content": "21 °C"} for one in choice.message.tool_calls or ()]
    completion = client.chat.completions.create(
        model="m-1",
        messages=[*HI, choice.message, *answers],  # type: ignore[list-item]
        tools=TOOLS,
    )
    assert completion.choices[0].message.content == "Sunny"
    assert completion.usage is not None
    assert completion.usage.total_tokens == USAGE["total_tokens"]
    messages = questions(wire)[1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert [one["id"] for one in messages[1]["tool_calls"]] == ["call_a", "call_b"]
    assert [message["tool_call_id"] for message in messages[2:]] == ["call_a", "call_b"]


def test_openai_puts_streamed_tool_calls_together(client: openai.OpenAI, wire: Wire) -> None:
    replies(wire, two_calls())
    with client.chat.completions.stream(model="m-1", messages=HI, tools=TOOLS) as stream:
        choice: Any = stream.get_final_completion().choices[0]
    calls = [(one.id, one.function.name, json.loads(one.function.arguments)) for one in choice.message.tool_calls]
    assert calls == [(f"call_{name}", "weather", {"city": city}) for name, city in zip("ab", CITIES, strict=True)]
    assert choice.finish_reason == "tool_calls"


def test_openai_shows_an_image(client: openai.OpenAI, wire: Wire) -> None:
    replies(wire, text("A square"))
    picture = [{"type": "text", "text": "What is this?"}, image(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))]
    message: Any = {"role": "user", "content": picture}
    completion = client.chat.completions.create(model="m-1", messages=[message])
    assert completion.choices[0].message.content == "A square"
    assert questions(wire)[0]["messages"] == [message]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_openai_reads_logprobs_reasoning_and_refusals(stream: bool, client: openai.OpenAI, wire: Wire) -> None:
    token = {"token": "Sunny", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    script = [
        chunk({"reasoning_content": "Hm."}),
        chunk({"content": "Sunny"}, logprobs={"content": [token], "refusal": None}),
        chunk({"refusal": "No more."}),
        end("content_filter"),
    ]
    replies(wire, script)
    if stream:
        with client.chat.completions.stream(model="m-1", messages=HI, logprobs=True) as live:
            thoughts = [
                getattr(event.chunk.choices[0].delta, "reasoning_content", "")
                for event in live
                if event.type == "chunk" and event.chunk.choices
            ]
            choice: Any = live._state.current_completion_snapshot.choices[0]  # a filtered reply has no final one
        assert "".join(thoughts) == "Hm."
    else:
        choice = client.chat.completions.create(model="m-1", messages=HI, logprobs=True).choices[0]
        assert choice.message.reasoning_content == "Hm."
    assert (choice.message.content, choice.message.refusal, choice.finish_reason) == (
        "Sunny",
        "No more.",
        "content_filter",
    )
    assert [one.logprob for one in choice.logprobs.content] == [-0.5]


def test_openai_gets_as_many_choices_as_it_asks_for(client: openai.OpenAI, wire: Wire) -> None:
    replies(wire, text("one"), text("two"))
    choices = client.chat.completions.create(model="m-1", messages=HI, n=2).choices
    assert [(choice.index, choice.message.content) for choice in choices] == [(0, "one"), (1, "two")]


def test_openai_parses_a_reply_of_a_form(client: openai.OpenAI, wire: Wire) -> None:
    from pydantic import BaseModel

    class Report(BaseModel):
        city: str

    replies(wire, text('{"city": ', '"Berlin"}'))
    parsed = client.chat.completions.parse(model="m-1", messages=HI, response_format=Report).choices[0].message.parsed
    assert parsed == Report(city="Berlin")
    assert questions(wire)[0]["response_format"]["type"] == "json_schema"


def test_openai_retrieves_a_model(client: openai.OpenAI, wire: Wire) -> None:
    data = [{"id": "org/llama3", "object": "model"}]
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, {"data": data}))
    assert client.models.retrieve("org/llama3").id == "org/llama3"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_openai_takes_no_cut_reply_for_a_whole_one(stream: bool, client: openai.OpenAI, wire: Wire) -> None:
    replies(wire, [chunk({"content": "Once upon"}), b"data: [DONE]\n\n"])
    with pytest.raises(openai.APIError, match="without a finish_reason"):
        answer: Any = client.chat.completions.create(model="m-1", messages=HI, stream=stream)
        list(answer)


# LangChain


@pytest.fixture
def langchain(gateway: LocalServer) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="m-1", base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE)


def weather(city: str) -> str:
    """The weather of a city."""
    return f"21 °C in {city}"


def test_langchain_calls_tools(langchain: Any, wire: Wire) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    replies(wire, two_calls(), text("Sunny"))
    model = langchain.bind_tools([weather])
    messages: list[Any] = [HumanMessage("Weather in Berlin?")]
    messages.append(model.invoke(messages))
    assert [(one["id"], one["name"]) for one in messages[-1].tool_calls] == [
        ("call_a", "weather"),
        ("call_b", "weather"),
    ]
    assert [one["args"]["city"] for one in messages[-1].tool_calls] == CITIES
    messages += [ToolMessage(weather(**one["args"]), tool_call_id=one["id"]) for one in messages[-1].tool_calls]
    answer = model.invoke(messages)
    assert (answer.content, answer.response_metadata["finish_reason"]) == ("Sunny", "stop")
    assert answer.usage_metadata["total_tokens"] == USAGE["total_tokens"]
    assert [message["role"] for message in questions(wire)[1]["messages"]] == ["user", "assistant", "tool", "tool"]


def test_langchain_streams_tool_calls(langchain: Any, wire: Wire) -> None:
    replies(wire, two_calls())
    whole: Any = None
    for piece in langchain.bind_tools([weather]).stream("Weather in Berlin?"):
        whole = piece if whole is None else whole + piece
    assert [(one["id"], one["args"]["city"]) for one in whole.tool_calls] == list(
        zip(["call_a", "call_b"], CITIES, strict=True)
    )
    assert whole.response_metadata["finish_reason"] == "tool_calls"


# instructor


def test_instructor_gets_an_object_by_a_tool(client: openai.OpenAI, wire: Wire) -> None:
    import instructor
    from pydantic import BaseModel

    class Report(BaseModel):
        city: str

    replies(wire, [call(0, "call_a", "Report", '{"city": '), call(0, arguments='"Berlin"}'), end("tool_calls")])
    patched = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    report = patched.chat.completions.create(model="m-1", messages=HI, response_model=Report, max_retries=0)
    assert report.city == "Berlin"
    assert questions(wire)[0]["tool_choice"] == {"type": "function", "function": {"name": "Report"}}


# pydantic-ai


def with_agent(gateway: LocalServer, use: Callable[[Any], Coroutine[Any, Any, str]]) -> str:
    """Lets an agent with a tool work, in an event loop of its own, which its connections do not survive."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async def work() -> str:
        url = f"{gateway.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=PATIENCE) as client:
            model = OpenAIChatModel("m-1", provider=OpenAIProvider(openai_client=client))
            return await use(Agent(model, tools=[weather]))

    return asyncio.run(work())


def test_pydantic_ais_agent_uses_its_tool(gateway: LocalServer, wire: Wire) -> None:
    async def ask(agent: Any) -> str:
        return str((await agent.run("Weather in Berlin?")).output)

    replies(wire, two_calls(), text("Sunny", " in both"))
    assert with_agent(gateway, ask) == "Sunny in both"
    asked = questions(wire)[1]["messages"]
    assert [message["content"] for message in asked if message["role"] == "tool"] == [weather(city) for city in CITIES]


def test_pydantic_ais_agent_streams(gateway: LocalServer, wire: Wire) -> None:
    async def stream(agent: Any) -> str:
        async with agent.run_stream("Weather in Berlin?") as result:
            return "".join([piece async for piece in result.stream_text(delta=True, debounce_by=None)])

    replies(wire, two_calls(), text("Sunny", " in both"))
    assert with_agent(gateway, stream) == "Sunny in both"


# llm


def run_llm(gateway: LocalServer, folder: Path, *arguments: str) -> str:
    """Runs the command ``llm`` with a model behind the gateway; returns what it prints."""
    model = {"model_id": "local", "model_name": "m-1", "api_base": f"{gateway.url}/v1", "api_key_name": "local"}
    (folder / "extra-openai-models.yaml").write_text(json.dumps([{**model, "supports_tools": True}]))  # JSON is YAML
    (folder / "keys.json").write_text(json.dumps({"local": KEY}))
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    nowhere = "http://127.0.0.1:9"
    proxies = {"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": "127.0.0.1,localhost"}
    ran = subprocess.run(
        [str(Path(sys.executable).parent / "llm"), "-m", "local", *arguments],
        env={**kept, **proxies, "LLM_USER_PATH": str(folder), "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE * 4,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout.decode()


@pytest.mark.parametrize("how", [["--no-stream"], []], ids=["whole", "streamed"])
def test_llm_asks(how: list[str], gateway: LocalServer, wire: Wire, tmp_path: Path) -> None:
    replies(wire, text("Sunny", " there 🙂"))
    assert run_llm(gateway, tmp_path, *how, "Weather in Berlin?") == "Sunny there 🙂\n"


@pytest.mark.parametrize("how", [["--no-stream"], []], ids=["whole", "streamed"])
def test_llm_calls_a_function(how: list[str], gateway: LocalServer, wire: Wire, tmp_path: Path) -> None:
    replies(wire, two_calls(), text("Sunny"))
    function = "def weather(city: str) -> str:\n    'The weather of a city.'\n    return f'21 °C in {city}'\n"
    assert run_llm(gateway, tmp_path, *how, "--functions", function, "Weather in Berlin?") == "Sunny\n"
    asked = questions(wire)[1]["messages"]
    assert [message["content"] for message in asked if message["role"] == "tool"] == [weather(city) for city in CITIES]
