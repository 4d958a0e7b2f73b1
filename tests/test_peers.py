"""Real peers that nobody here wrote: the ``openai`` package, and LiteLLM's proxy.

The package drives the embedded server. The proxy is a process of its own with a mock answer; our providers ask
it directly and through the embedded server, and it asks the embedded server itself. Nothing leaves the machine.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from berlin_chat import (
    APIStatusError,
    AuthenticationError,
    Cancelled,
    ChatError,
    LiveReply,
    Provider,
    RateLimitError,
    StreamInterrupted,
    Ylokh,
)
from berlin_chat.server import LocalServer
from peer import Peer

#: Seconds for LiteLLM to start; nothing else waits as long.
START_UP = 120.0
PATIENCE = 20.0
NAMES = ("berlin", "ylokh", "h2o", "acytoo")
ANSWER = "The sky is blue because air scatters blue light: Rayleigh, 1871. Голубое небо 🙂"
KEY = "sk-the-peers-key"
STAY = "Stay, please."
HI = [{"role": "user", "content": "Why is the sky blue?"}]

# The fixture that starts LiteLLM may take longer than a test may.
pytestmark = pytest.mark.timeout(START_UP * 2)


class Answers:
    """Says what a test puts into it, and remembers the options that it was asked with."""

    def __init__(self) -> None:
        self.error: ChatError | None = None
        self.options: dict[str, Any] = {}

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        self.options = options
        if self.error is not None:
            raise self.error
        yield from (f"{model}", " heard:", " ", messages[-1]["content"])


@contextlib.contextmanager
def openai_client(server: LocalServer, key: str = "any") -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE) as client:
        yield client


# The openai package, at the embedded server


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def client(answers: Answers) -> Iterator[openai.OpenAI]:
    """The openai package, in front of ``answers``."""
    with LocalServer(upstream=answers) as server, openai_client(server) as client:
        yield client


def test_openai_streams_from_the_server(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="m-1", messages=HI, stream=True) as stream:  # type: ignore[call-overload]
        chunks = list(stream)
    assert [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content] == [
        "m-1",
        " heard:",
        " ",
        "Why is the sky blue?",
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["stop"]
    assert {chunk.model for chunk in chunks} == {"m-1"}


def test_openai_asks_the_server_without_a_stream(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="m-1", messages=HI)  # type: ignore[arg-type]
    assert completion.choices[0].message.content == "m-1 heard: Why is the sky blue?"
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "m-1"


def test_openais_options_reach_the_upstream(client: openai.OpenAI, answers: Answers) -> None:
    client.chat.completions.create(
        model="m-1",
        messages=HI,  # type: ignore[arg-type]
        temperature=0.5,
        max_tokens=7,
        stop=["\n"],
        seed=1,
    )
    assert answers.options == {"temperature": 0.5, "max_tokens": 7, "stop": ["\n"], "seed": 1}


def test_openais_text_parts_are_understood(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    completion = client.chat.completions.create(
        model="m-1",
        messages=[{"role": "user", "content": parts}],  # type: ignore[list-item,misc]
    )
    assert completion.choices[0].message.content == "m-1 heard: two parts"


def test_openai_reads_the_usage_chunk(client: openai.OpenAI) -> None:
    with client.chat.completions.create(  # type: ignore[call-overload]
        model="m-1", messages=HI, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *others, last = list(stream)
    assert last.choices == []
    assert all(len(chunk.choices) == 1 for chunk in others)


def test_openai_reads_each_piece_before_the_next_is_produced() -> None:
    received = threading.Semaphore(0)

    class LockStep:
        def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
            for piece in ("one", " two", " three"):
                yield piece
                assert received.acquire(timeout=PATIENCE), f"{piece!r} was held back"

    pieces = []
    with LocalServer(upstream=LockStep()) as server, openai_client(server) as client:
        stream = client.chat.completions.create(model="m", messages=HI, stream=True)  # type: ignore[call-overload]
        for chunk in stream:
            if piece := chunk.choices[0].delta.content:
                pieces.append(piece)
                received.release()
    assert pieces == ["one", " two", " three"]


def test_openai_lists_the_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert {"gpt-3.5-turbo"} < {model.id for model in models}
    assert {model.object for model in models} == {"model"}


def test_openai_gets_an_authentication_error_for_a_wrong_key() -> None:
    with LocalServer(password="secret") as server:
        with openai_client(server, "wrong") as client:
            for call in (
                lambda: client.chat.completions.create(model="m", messages=HI),  # type: ignore[arg-type]
                lambda: client.models.list(),
            ):
                with pytest.raises(openai.AuthenticationError) as caught:
                    call()
                assert "API key" in caught.value.message
        with openai_client(server, "secret") as client:
            assert client.models.list().data


def test_openai_gets_a_bad_request_error_for_a_wrong_question(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="m", messages=[])
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="m", messages=HI, temperature="hot")  # type: ignore[call-overload]


def test_openai_gets_a_not_found_error_for_what_the_server_does_not_have(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="m", input="text")


def test_openai_gets_the_upstreams_rate_limit(client: openai.OpenAI, answers: Answers) -> None:
    answers.error = RateLimitError("slow down", retry_after=3)
    with pytest.raises(openai.RateLimitError, match="slow down") as caught:
        client.chat.completions.create(model="m", messages=HI, stream=True)  # type: ignore[call-overload]
    assert caught.value.response.headers["Retry-After"] == "3"


def test_openai_gets_an_error_in_the_middle_of_a_stream() -> None:
    class Breaks:
        def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
            yield "one"
            raise APIStatusError("the model fell over")

    pieces = []
    with LocalServer(upstream=Breaks()) as server, openai_client(server) as client:
        stream = client.chat.completions.create(model="m", messages=HI, stream=True)  # type: ignore[call-overload]
        with pytest.raises(openai.APIError, match="the model fell over"):
            for chunk in stream:
                pieces.append(chunk.choices[0].delta.content)
    assert pieces == ["", "one"]


# LiteLLM's proxy


class Storyteller:
    """A model that counts to three; asked to ``STAY``, it stops at two, and says more later, until its reader has left.

    Attributes:
        asked: the messages of each question.
        more: lets it say more.
        left: is released by each reader who has left.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.more = threading.Event()
        self.left = threading.Semaphore(0)

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        self.asked.append(messages)
        yield from ("one ", "two ")
        if messages[-1]["content"] != STAY:
            yield "three"
            return
        self.more.wait(PATIENCE)
        try:
            for _ in range(1000):
                yield "more "
                time.sleep(0.01)
        except GeneratorExit:
            self.left.release()
            raise


class LiteLLM(Peer):
    """LiteLLM's proxy as a process of its own, with a mock model and one that asks an embedded server.

    It gets no database, no telemetry and no price list, and proxies that lead nowhere for all but this machine.
    """

    def __init__(self, folder: Path, behind: str) -> None:
        super().__init__("LiteLLM's proxy", "/health/liveliness", START_UP, folder)
        self._config = folder / "config.yaml"
        # JSON is YAML.
        self._config.write_text(
            json.dumps(
                {
                    "model_list": [
                        {
                            "model_name": "mock",
                            "litellm_params": {**_backend("mock"), "mock_response": ANSWER},
                        },
                        {"model_name": "behind", "litellm_params": {**_backend("m-1"), "api_base": behind}},
                    ],
                    "general_settings": {"master_key": KEY},
                    "litellm_settings": {"telemetry": False, "num_retries": 0},
                },
                ensure_ascii=False,
            ),
            encoding="utf-8",
        )

    def command(self) -> list[str]:
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        return [str(_console_script()), "--config", str(self._config), *address, "--telemetry", "False"]

    def environment(self) -> dict[str, str]:
        kept = super().environment()
        for name in ("DATABASE_URL", "REDIS_URL", "REDIS_HOST", "PYTHONWARNINGS", "LITELLM_MASTER_KEY"):
            kept.pop(name, None)
        nowhere = "http://127.0.0.1:9"
        return {
            **kept,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_TELEMETRY": "False",
            "LITELLM_MODE": "PRODUCTION",  # reads no .env
            "DISABLE_ADMIN_UI": "True",
            "NO_DOCS": "True",
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONUTF8": "1",
        }


def _backend(model: str) -> dict[str, str]:
    # Nobody listens at port 9: a mock that were none would be noticed.
    return {"model": f"openai/{model}", "api_key": "none", "api_base": "http://127.0.0.1:9/v1"}


def _console_script() -> Path:
    folder = Path(sys.executable).parent
    script = next((path for path in (folder / "litellm", folder / "litellm.exe") if path.exists()), None)
    if script is None:
        pytest.fail(f"there is no litellm in {folder}: pip install 'litellm[proxy]'")
    return script


@pytest.fixture(scope="module")
def model() -> Storyteller:
    """What the embedded server behind LiteLLM says."""
    return Storyteller()


@pytest.fixture(scope="module")
def behind(model: Storyteller) -> Iterator[LocalServer]:
    """An embedded server that LiteLLM asks."""
    with LocalServer(upstream=model) as server:
        yield server


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory, behind: LocalServer) -> Iterator[LiteLLM]:
    proxy = LiteLLM(tmp_path_factory.mktemp("litellm"), f"{behind.url}/v1")
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.close()


@pytest.fixture
def ylokh(litellm: LiteLLM) -> Iterator[Ylokh]:
    """Our provider in front of LiteLLM's mock model."""
    with _ylokh(litellm) as provider:
        yield provider


def _ylokh(litellm: LiteLLM, **config: Any) -> Ylokh:
    known = {"base_url": litellm.url, "api_key": KEY, "model": "mock", "proxy": "", "retries": 0}
    return Ylokh(**{**known, "timeout": PATIENCE, **config})


@pytest.fixture
def in_front(ylokh: Ylokh) -> Iterator[LocalServer]:
    """An embedded server in front of LiteLLM."""
    with LocalServer(upstream=ylokh) as server:
        yield server


def test_ylokh_streams_from_litellm(ylokh: Ylokh) -> None:
    pieces = list(ylokh.stream(HI))
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 5, f"this is no stream: {pieces}"


def test_ylokh_learns_from_litellm_what_it_says_beside_the_text(ylokh: Ylokh) -> None:
    reply = ylokh.ask("Hi")
    assert (reply, reply.model, reply.finish_reason) == (ANSWER, "mock", "stop")


def test_ylokh_takes_litellms_address_with_v1_at_its_end(litellm: LiteLLM) -> None:
    with _ylokh(litellm, base_url=f"{litellm.url}/v1") as provider:
        assert provider.ask("Hi") == ANSWER


def test_ylokh_reads_litellms_reply_that_is_not_streamed(ylokh: Ylokh) -> None:
    reply = ylokh.ask("Hi", stream=False)
    assert (reply, reply.finish_reason) == (ANSWER, "stop")
    assert reply.usage is not None
    assert reply.usage["total_tokens"] > 0


def test_ylokh_reads_litellms_usage_chunk(ylokh: Ylokh) -> None:
    """It comes after the finish reason, in a choice whose delta is empty."""
    reply = ylokh.ask("Hi", stream_options={"include_usage": True})
    assert reply == ANSWER
    assert reply.usage is not None
    assert reply.usage["total_tokens"] > 0


def test_many_questions_to_litellm_use_one_connection(litellm: LiteLLM) -> None:
    with requests.Session() as session, _ylokh(litellm, session=session) as provider:
        assert [provider.ask("Hi") for _ in range(5)] == [ANSWER] * 5
        pools = session.get_adapter(litellm.url).poolmanager.pools
        assert [pools[key].num_connections for key in list(pools.keys())] == [1]


def test_litellm_does_not_know_a_model(ylokh: Ylokh) -> None:
    with pytest.raises(APIStatusError, match="nobodys-model") as caught:
        ylokh.ask("Hi", model="nobodys-model")
    assert caught.value.status in (400, 404)
    assert KEY not in str(caught.value)


def test_litellm_refuses_a_wrong_key(litellm: LiteLLM) -> None:
    # Without a database it cannot look the key up, and says so with 400; with one it would be a 401.
    wrong = "sk-somebody-elses"
    refused = pytest.raises((APIStatusError, AuthenticationError))
    with _ylokh(litellm, api_key=wrong) as provider, refused as caught:
        provider.ask("Hi")
    assert caught.value.status in (400, 401, 403)
    assert wrong not in str(caught.value) + str(caught.value.body)


def _through(server: LocalServer, name: str) -> Provider:
    return server.provider(name, retries=0, timeout=PATIENCE)


@pytest.mark.parametrize("name", NAMES)
def test_all_protocols_stream_from_litellm_through_the_server(name: str, in_front: LocalServer) -> None:
    with _through(in_front, name) as provider:
        pieces = list(provider.stream(HI))
    assert "".join(pieces) == ANSWER
    # Acytoo's pieces are whatever the network made of them.
    assert len(pieces) > (0 if name == "acytoo" else 5), f"this is no stream: {pieces}"
    assert in_front.conversations == []


@pytest.mark.parametrize("name", ["berlin", "ylokh", "h2o"])
def test_litellms_error_reaches_all_protocols_through_the_server(name: str, in_front: LocalServer) -> None:
    with _through(in_front, name) as provider, pytest.raises(APIStatusError, match="nobodys-model") as caught:
        provider.ask("Hi", model="nobodys-model")
    assert caught.value.status in (400, 404)
    assert KEY not in str(caught.value) + str(caught.value.body)


def test_openai_streams_from_litellm_through_the_server(in_front: LocalServer) -> None:
    with openai_client(in_front) as client:
        stream = client.chat.completions.create(model="mock", messages=HI, stream=True)  # type: ignore[call-overload]
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 5


def test_openai_asks_litellm_through_the_server_without_a_stream(in_front: LocalServer) -> None:
    with openai_client(in_front) as client:
        completion = client.chat.completions.create(model="mock", messages=HI)  # type: ignore[arg-type]
        assert client.models.list().data[0].id == "mock"
    assert completion.choices[0].message.content == ANSWER


def test_openai_gets_litellms_usage_through_the_server(in_front: LocalServer) -> None:
    with openai_client(in_front) as client:
        stream = client.chat.completions.create(  # type: ignore[call-overload]
            model="mock", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        *_, last = list(stream)
    assert last.choices == []
    assert last.usage.total_tokens > 0


def test_openai_gets_litellms_error_through_the_server(in_front: LocalServer) -> None:
    with openai_client(in_front) as client, pytest.raises(openai.BadRequestError, match="nobodys-model"):
        client.chat.completions.create(model="nobodys-model", messages=HI)  # type: ignore[arg-type]


# An embedded server behind LiteLLM


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_litellm_asks_the_embedded_server(stream: bool, litellm: LiteLLM, model: Storyteller) -> None:
    with _ylokh(litellm, model="behind") as provider:
        assert provider.ask("Hi there", stream=stream) == "one two three"
    assert model.asked[-1][-1]["content"] == "Hi there"


@contextlib.contextmanager
def in_the_middle(way: str, litellm: LiteLLM) -> Iterator[tuple[Provider, LiveReply]]:
    """A reply under way through LiteLLM, asked directly or through the embedded server; its first words have come."""
    with contextlib.ExitStack() as stack:
        provider: Provider = stack.enter_context(_ylokh(litellm, model="behind"))
        if way != "directly":
            in_front = stack.enter_context(LocalServer(upstream=provider))
            provider = stack.enter_context(_through(in_front, way))
        live = stack.enter_context(provider.open(STAY))
        while live.text != "one two ":
            next(live)
        yield provider, live


WAYS = ("directly", *NAMES)


@pytest.mark.parametrize("way", WAYS)
def test_a_cancel_goes_through_litellm_to_the_model_behind_it(way: str, litellm: LiteLLM, model: Storyteller) -> None:
    with in_the_middle(way, litellm) as (_, live):
        live.cancel()
        with pytest.raises(Cancelled) as caught:
            list(live)
        assert caught.value.partial == "one two "
        model.more.set()
        assert model.left.acquire(timeout=PATIENCE)
        model.more.clear()


#: What a reply ends in that was cut behind the embedded server: the error that the protocol has for it.
CUT = {"directly": StreamInterrupted, "acytoo": StreamInterrupted}


def test_a_killed_litellm_interrupts_each_protocols_reply_and_answers_when_it_is_back(
    litellm: LiteLLM, model: Storyteller
) -> None:
    with contextlib.ExitStack() as stack:
        under_way = [(way, *stack.enter_context(in_the_middle(way, litellm))) for way in WAYS]
        litellm.kill()
        model.more.set()
        for way, _, live in under_way:
            with pytest.raises(CUT.get(way, APIStatusError)) as caught:
                list(live)
            assert type(caught.value) is CUT.get(way, APIStatusError), way
            assert caught.value.partial == "one two "
        litellm.start()
        for _, provider, _ in under_way:
            assert provider.ask("Hi") == "one two three"
