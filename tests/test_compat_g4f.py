"""Scripts that were written for g4f in 2023 run when their import line is changed and a base URL is named."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import berlin_chat.compat.g4f as g4f
from berlin_chat import AllProvidersFailed, Cancelled, InvalidRequest, ProviderNotWorking, Reply, Ylokh
from berlin_chat.compat.g4f import ChatCompletion, Provider
from berlin_chat.compat.g4f.models import Model, gpt_4
from berlin_chat.compat.g4f.Provider import Acytoo, Berlin, H2o, OpenAICompatible, RetryProvider
from berlin_chat.server import LocalServer
from wire import BERLIN, H2O, OPENAI, YLOKH, Wire, speak

HI = [{"role": "user", "content": "Hi"}]
ECHO = "This is the echo of berlin_chat's own server: no model is behind it. You said: "
FOUR = ("Berlin", "Ylokh", "H2o", "Acytoo")

#: Scripts as they were, each with PROVIDER for a name.
SCRIPTS = {
    "create": """
import g4f

g4f.debug.logging = True
g4f.debug.version_check = False

response = g4f.ChatCompletion.create(
    model=g4f.models.gpt_35_turbo,
    provider=g4f.Provider.PROVIDER,
    messages=[{"role": "user", "content": "Hello world"}],
)
print(response.strip())
print(g4f.get_last_provider().__name__)
""",
    "create, streamed": """
import g4f
from g4f.Provider import PROVIDER

response = g4f.ChatCompletion.create(
    model="gpt-3.5-turbo", messages=[{"role": "user", "content": "Hello world"}], provider=PROVIDER, stream=True,
    ignore_working=True,
)
for message in response:
    print(message, flush=True, end="")
print()
""",
    "create_completion": """
from g4f.Provider import PROVIDER as provider

if provider.supports_gpt_35_turbo or provider.supports_stream:
    for token in provider.create_completion("gpt-3.5-turbo", [{"role": "user", "content": "Hello world"}], stream=True):
        print(token, end="", flush=True)
print(" ", provider.__name__, provider.working)
""",
    "create_completion of RetryProvider": """
from g4f import Provider

retry = Provider.RetryProvider([Provider.PROVIDER])
messages = [{"role": "user", "content": "Hello world"}]
print("".join(retry.create_completion(model="gpt-3.5-turbo", messages=messages, stream=False)))
""",
    "RetryProvider": """
import g4f

print(g4f.ChatCompletion.create(
    model=g4f.models.default,
    messages=[{"role": "user", "content": "Hello world"}],
    provider=g4f.Provider.RetryProvider([g4f.Provider.PROVIDER, g4f.Provider.Acytoo], shuffle=True),
    ignored=["Bing"],
    timeout=30,
))
""",
}


def moved(script: str, provider: str) -> str:
    """A script whose import lines were changed, and nothing else."""
    script = script.replace("PROVIDER", provider)
    script = re.sub(r"^import g4f$", "import berlin_chat.compat.g4f as g4f", script, flags=re.MULTILINE)
    return re.sub(r"^from g4f", "from berlin_chat.compat.g4f", script, flags=re.MULTILINE)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """A server that the environment names, with an account there."""
    with LocalServer() as server:
        monkeypatch.setenv("BERLIN_CHAT_URL", server.url)
        monkeypatch.setenv("BERLIN_CHAT_ACCOUNT", "me")
        monkeypatch.setenv("BERLIN_CHAT_PASSWORD", "sesame")
        yield server


@pytest.fixture(autouse=True)
def _a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a script leaves in its process is no other test's."""
    monkeypatch.setattr(g4f.debug, "logging", False)
    monkeypatch.setattr(g4f.debug, "last_provider", None)
    monkeypatch.setattr(g4f.debug, "last_model", None)


@pytest.mark.parametrize("provider", FOUR)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_of_2023_runs(
    name: str, provider: str, server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(moved(SCRIPTS[name], provider), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    if name == "create":
        assert lines == [f"Using {provider} provider", f"{ECHO}Hello world", provider]
    elif name == "create_completion":
        assert lines == [f"{ECHO}Hello world  {provider} False"]
    else:
        assert lines == [f"{ECHO}Hello world"]


def test_a_script_of_2023_runs_by_itself(server: LocalServer, tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_text(moved(SCRIPTS["create"], "Berlin"), encoding="utf-8")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.splitlines()[1:], done.stderr) == ([f"{ECHO}Hello world", "Berlin"], "")


# Whom to ask, and where


@pytest.mark.parametrize("provider", [Ylokh, "ylokh", "Ylokh"])
def test_a_provider_is_a_class_or_a_name_and_the_address_an_argument(provider: Any, wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a", "b"]))
    reply = ChatCompletion.create("m-1", HI, provider, base_url=wire.url, temperature=0.5)
    assert reply == "ab"
    assert isinstance(reply, Reply)
    (asked,) = wire.asked(*YLOKH.route)
    assert (asked.json["model"], asked.json["temperature"], asked.json["stream"]) == ("m-1", 0.5, False)
    assert not {"base_url", "proxy", "ignored", "auth"} & asked.json.keys()


def test_a_provider_is_an_instance(wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a", "b"]))
    with Ylokh(wire.url, model="m-2") as provider:
        assert list(ChatCompletion.create("", HI, provider, stream=True)) == ["a", "b"]
        assert wire.asked(*YLOKH.route)[0].json["model"] == "m-2"
        assert g4f.get_last_provider() is Ylokh


def test_an_address_is_named_for_an_instance_too(wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a"]))
    provider = Ylokh("http://127.0.0.1:9", api_key="sk-1", retries=0)
    assert ChatCompletion.create("m", HI, provider, base_url=wire.url) == "a"
    assert "".join(provider.create_completion("m", HI, base_url=wire.url)) == "a"
    for asked in wire.asked(*YLOKH.route):
        assert asked.header("Authorization") == "Bearer sk-1"
        assert "base_url" not in asked.json


def test_where_no_provider_is_named_an_address_is_enough(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.on(*OPENAI.route, speak(OPENAI, ["a"]))
    monkeypatch.setenv("BERLIN_CHAT_YLOKH_URL", "http://127.0.0.1:9")  # of another one
    assert ChatCompletion.create("gpt-4", HI, base_url=wire.url) == "a"
    assert g4f.get_last_provider() is OpenAICompatible


def test_where_no_provider_is_named_the_environments_own_are_asked_in_turn(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a"]))
    monkeypatch.setenv("BERLIN_CHAT_YLOKH_URL", wire.url)
    assert ChatCompletion.create("gpt-4", HI) == "a"
    assert g4f.get_last_provider() is Ylokh
    monkeypatch.setenv("BERLIN_CHAT_BERLIN_URL", "http://127.0.0.1:9")  # the first, without what it needs
    assert ChatCompletion.create("gpt-4", HI) == "a"
    assert g4f.get_last_provider(as_dict=True) == {"name": "Ylokh", "url": wire.url, "model": "gpt-4"}


def test_a_model_knows_whom_to_ask(wire: Wire) -> None:
    for method, path, script in H2O.before:
        wire.on(method, path, script)
    wire.on(*H2O.route, speak(H2O, ["a"]))
    assert ChatCompletion.create("falcon-40b", HI, base_url=wire.url) == "a"
    assert g4f.get_last_provider() is H2o
    assert g4f.debug.last_model == H2o.default_model == g4f.models.falcon_40b.name

    class Own:
        name = "my-model"
        best_provider = RetryProvider([H2o], base_url=wire.url)

    assert ChatCompletion.create(Own, HI) == "a"
    assert [asked.json["model"] for asked in wire.asked("POST", "/conversation")] == [H2o.default_model, "my-model"]


@pytest.mark.parametrize(
    ("name", "model"),
    [("gpt_35_turbo", "gpt-3.5-turbo"), ("gpt_4_32k", "gpt-4-32k"), ("text_davinci_003", "text-davinci-003")],
)
def test_models_have_the_names_of_2023(name: str, model: str) -> None:
    assert getattr(g4f.models, name).name == model
    assert g4f.ModelUtils.convert[model] == getattr(g4f.models, name)


def test_a_model_of_ones_own_can_be_made() -> None:
    assert Model(name="m", base_provider="me", best_provider=Ylokh).best_provider is Ylokh
    assert gpt_4.base_provider == "openai"


def test_a_prompt_is_completed(wire: Wire) -> None:
    wire.on(*OPENAI.route, speak(OPENAI, ["a", "b"]))
    assert g4f.Completion.create(model="text-davinci-003", prompt="Hi", base_url=wire.url) == "ab"
    assert list(g4f.Completion.create("code-davinci-002", "Hi", stream=True, base_url=wire.url)) == ["a", "b"]
    assert wire.asked(*OPENAI.route)[0].json["messages"] == HI


def test_the_text_arrives_while_the_model_writes(wire: Wire) -> None:
    goes_on = threading.Event()

    def script(request: Any, connection: Any) -> None:
        parts = OPENAI.parts(["a", "b"])
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + parts[0])
        assert goes_on.wait(10)
        connection.send(b"".join(parts[1:]))
        connection.close()

    wire.on(*OPENAI.route, script)
    pieces = ChatCompletion.create("m", HI, stream=True, base_url=wire.url)
    assert next(pieces) == "a"
    goes_on.set()
    assert list(pieces) == ["b"]


# Credentials


def test_auth_is_the_credential_that_a_provider_has(wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a"]))
    ChatCompletion.create("m", HI, Ylokh, base_url=wire.url, auth="sk-1")
    ChatCompletion.create("m", HI, Ylokh(wire.url, api_key="sk-0"), auth="sk-2")
    assert [asked.header("Authorization") for asked in wire.asked(*YLOKH.route)] == ["Bearer sk-1", "Bearer sk-2"]


def test_auth_is_berlins_token(wire: Wire) -> None:
    wire.on(*BERLIN.route, speak(BERLIN, ["a"]))
    assert ChatCompletion.create("m", HI, Berlin, base_url=wire.url, auth="tk-1", token="tk-0") == "a"
    assert wire.asked(*BERLIN.route)[0].header("token") == "tk-1"


def test_auth_is_acytoos_key(server: LocalServer) -> None:
    assert ChatCompletion.create("m", HI, Acytoo, auth="k-1") == f"{ECHO}Hi"


@pytest.mark.parametrize(
    ("provider", "said"),
    [(H2o, "auth is of no use to H2o"), (RetryProvider([Ylokh]), "auth is a setting of each provider")],
    ids=["h2o", "several"],
)
def test_auth_is_refused_where_it_has_no_meaning(provider: Any, said: str, wire: Wire) -> None:
    with pytest.raises(InvalidRequest, match=said):
        ChatCompletion.create("m", HI, provider, base_url=wire.url, auth="secret-1")
    assert wire.requests == []


# RetryProvider


def test_a_retry_provider_goes_on_to_the_next(wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a"]))
    gone = Ylokh("http://127.0.0.1:9", retries=0)
    retry = RetryProvider([gone, Ylokh(wire.url), gone], shuffle=False)
    assert "".join(retry.create_completion("m", HI, stream=True)) == "a"
    assert retry.last_provider is retry.providers[1]


def test_a_retry_provider_says_why_all_have_failed() -> None:
    retry = RetryProvider([Ylokh("http://127.0.0.1:9", retries=0), Berlin])
    with pytest.raises(AllProvidersFailed) as caught:
        ChatCompletion.create("m", HI, retry)
    assert {error.provider for error in caught.value.errors} == {"ylokh", "berlin"}
    assert isinstance(caught.value, RuntimeError)


def test_a_retry_provider_shuffles_for_each_question(wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a"]))
    providers = [Ylokh(wire.url, model=f"m-{number}") for number in range(4)]
    retry = RetryProvider(providers)
    for _ in range(40):  # the same one each time: once in 4 ** 39 runs
        ChatCompletion.create("", HI, retry)
    assert len({asked.json["model"] for asked in wire.asked(*YLOKH.route)}) > 1
    assert retry.providers == tuple(providers)
    before = len(wire.requests)
    for _ in range(8):
        ChatCompletion.create("", HI, RetryProvider(providers, shuffle=False))
    assert {asked.json["model"] for asked in wire.asked(*YLOKH.route)[before:]} == {"m-0"}


def test_retry_providers_share_the_login_of_a_class(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    logins = []

    def log_in(request: Any, connection: Any) -> None:
        logins.append(request)
        connection.respond(200, {"data": {"token": "tk-1"}})

    wire.on("POST", "/api/login", log_in)
    wire.on(*BERLIN.route, speak(BERLIN, ["a"]))
    monkeypatch.setenv("BERLIN_CHAT_ACCOUNT", "me")
    monkeypatch.setenv("BERLIN_CHAT_PASSWORD", "sesame")
    for _ in range(3):
        with RetryProvider([Berlin]) as retry:
            assert ChatCompletion.create("m", HI, retry, base_url=wire.url) == "a"
    assert ChatCompletion.create("m", HI, Berlin, base_url=wire.url) == "a"
    assert len(logins) == 1


def test_retry_providers_of_instances_are_told_apart(wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a"]))
    for key in ("sk-1", "sk-2"):
        ChatCompletion.create("m", HI, RetryProvider([Ylokh(wire.url, api_key=key)]), base_url="http://127.0.0.1:9")
    assert [asked.header("Authorization") for asked in wire.asked(*YLOKH.route)] == ["Bearer sk-1", "Bearer sk-2"]


def test_a_pickled_retry_provider_asks_the_same_servers(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a"]))
    monkeypatch.setenv("BERLIN_CHAT_ACYTOO_URL", "http://127.0.0.1:9")
    pickled = pickle.dumps(RetryProvider(["ylokh", Acytoo(retries=0)], shuffle=False, base_url=wire.url))
    monkeypatch.delenv("BERLIN_CHAT_ACYTOO_URL")
    with pickle.loads(pickled) as retry:
        assert [one.base_url for one in retry.providers] == [wire.url, "http://127.0.0.1:9"]
        assert ChatCompletion.create("m", HI, retry) == "a"
        assert not retry.shuffle


def test_a_retry_provider_closes_what_it_was_given_and_no_shared_one(wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a"]))
    own = Ylokh(wire.url)
    with RetryProvider([own, Ylokh], base_url=wire.url):
        pass
    with pytest.raises(Cancelled, match="closed"):
        own.ask("Hi")
    assert ChatCompletion.create("m", HI, Ylokh, base_url=wire.url) == "a"


def test_ignored_providers_are_left_out(wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["a"]))
    retry = RetryProvider([Berlin, Ylokh(wire.url), "acytoo"])
    for _ in range(5):
        assert ChatCompletion.create("m", HI, retry, ignored=["Berlin", "Acytoo", "Bing", ""]) == "a"
    with pytest.raises(InvalidRequest, match="ignored is of type str"):
        ChatCompletion.create("m", HI, retry, ignored="Berlin")
    with pytest.raises(InvalidRequest, match="ignored leaves none"):
        ChatCompletion.create("m", HI, retry, ignored=["Berlin", "ylokh", "acytoo"])


# What cannot be


@pytest.mark.parametrize("provider", [getattr(Provider, name) for name in FOUR])
def test_without_an_address_the_error_names_the_ways_out(provider: Any) -> None:
    options = {"auth": "token-123"} if provider is Berlin else {}
    with pytest.raises(ProviderNotWorking) as caught:
        ChatCompletion.create("m", HI, provider, **options)
    assert "base_url=" in str(caught.value)
    assert f"BERLIN_CHAT_{provider.name.upper()}_URL" in str(caught.value)


def test_without_an_address_or_a_provider_the_error_names_the_ways_out() -> None:
    with pytest.raises(ProviderNotWorking, match=r"base_url=.*BERLIN_CHAT_URL"):
        ChatCompletion.create("gpt-3.5-turbo", HI)


@pytest.mark.parametrize(
    ("awaited", "named"),
    [
        (lambda: ChatCompletion.create_async("m", HI), r"ChatCompletion\.create has the same arguments"),
        (lambda: Berlin.create_async("m", HI), "create_completion has the same arguments"),
        (lambda: Berlin.create_async_generator("m", HI), "create_completion has the same arguments"),
        (lambda: RetryProvider([Berlin]).create_async("m", HI), "create_completion has the same arguments"),
    ],
)
def test_what_old_code_awaits_is_refused_with_the_name_of_its_twin(awaited: Callable[[], Any], named: str) -> None:
    async def old() -> None:
        await awaited()

    with pytest.raises(InvalidRequest, match=f"no event loop here: {named}"):
        asyncio.run(old())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("m", HI, 3), "provider is of type int"),
        (("m", HI, "bing"), "there is no provider 'bing'"),
        ((3, HI, Ylokh), "model is of type int"),
        (("m", [], Ylokh), "messages is empty"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_sent(arguments: Any, said: str, wire: Wire) -> None:
    with pytest.raises(InvalidRequest, match=said):
        ChatCompletion.create(*arguments, base_url=wire.url)
    assert wire.requests == []


def test_a_provider_that_is_not_here_is_said_to_be_missing() -> None:
    with pytest.raises(AttributeError, match=r"no Bing here.*OpenAICompatible asks any server"):
        Provider.Bing  # noqa: B018
    assert getattr(Provider, "Bing", None) is None
    with pytest.raises(AttributeError, match="give its name as a string"):
        g4f.models.gpt_9  # noqa: B018


def test_the_providers_can_be_listed() -> None:
    assert {cls.__name__ for cls in Provider.__providers__} == {*FOUR, "OpenAICompatible"}
    assert all(issubclass(cls, Provider.BaseProvider) for cls in Provider.__providers__)
    assert all(hasattr(Provider, name) for name in Provider.__all__)


def test_nobody_was_asked_at_first() -> None:
    assert g4f.get_last_provider() is None
    assert g4f.get_last_provider(as_dict=True) is None
