"""What a provider is made from: arguments, environment, names, and the call of old g4f code."""

from __future__ import annotations

import configparser
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import berlin_chat
from berlin_chat import (
    Acytoo,
    Berlin,
    H2o,
    InvalidRequest,
    Provider,
    Reply,
    Ylokh,
    get_provider,
    provider_names,
    providers,
)
from wire import BERLIN, YLOKH, Speech, Wire, speak

Make = Callable[..., Provider]
ALL = [Berlin, Ylokh, H2o, Acytoo]


@pytest.mark.parametrize("cls", ALL)
def test_the_address_comes_from_the_argument_then_its_own_variable_then_the_common_one(
    cls: type[Provider], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cls().base_url is None
    monkeypatch.setenv("BERLIN_CHAT_URL", "http://127.0.0.1:1/")
    assert cls().base_url == "http://127.0.0.1:1"
    monkeypatch.setenv(f"BERLIN_CHAT_{cls.name.upper()}_URL", "http://127.0.0.1:2")
    assert cls().base_url == "http://127.0.0.1:2"
    assert cls("http://127.0.0.1:3").base_url == "http://127.0.0.1:3"


def test_the_hosted_address_is_used_only_by_a_class_that_works() -> None:
    class Working(Ylokh):
        working = True

    assert Working().base_url == Ylokh.url
    assert Ylokh().base_url is None


def test_a_wrong_address_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERLIN_CHAT_H2O_URL", "localhost")
    with pytest.raises(InvalidRequest, match="BERLIN_CHAT_H2O_URL"):
        H2o()


def test_credentials_come_from_the_environment_too(
    monkeypatch: pytest.MonkeyPatch, provider_for: Make, wire: Wire
) -> None:
    for name in ("ACCOUNT", "PASSWORD", "API_KEY"):
        monkeypatch.setenv(f"BERLIN_CHAT_{name}", f"env-{name.lower()}")
    provider_for(BERLIN, speak(BERLIN, ["a"]), account=None, password=None).ask("Hi")
    assert wire.requests[0].json == {"account": "env-account", "password": "env-password"}
    provider_for(YLOKH, speak(YLOKH, ["a"])).ask("Hi")
    assert wire.requests[-1].header("Authorization") == "Bearer env-api_key"
    provider_for(YLOKH, speak(YLOKH, ["a"]), api_key="argument").ask("Hi")
    assert wire.requests[-1].header("Authorization") == "Bearer argument"
    monkeypatch.setenv("BERLIN_CHAT_TOKEN", "env-token")
    provider_for(BERLIN, speak(BERLIN, ["a"])).ask("Hi")
    assert wire.requests[-1].header("token") == "env-token"


def test_the_model_comes_from_the_question_then_the_provider_then_the_class(provider_for: Make, wire: Wire) -> None:
    provider_for(YLOKH, speak(YLOKH, ["a"])).ask("Hi")
    provider = provider_for(YLOKH, speak(YLOKH, ["a"]), model="mine")
    provider.ask("Hi")
    provider.ask("Hi", "other")
    assert [request.json["model"] for request in wire.requests] == ["gpt-3.5-turbo", "mine", "other"]


def test_the_stream_is_a_plain_generator(speech: Speech, provider_for: Make) -> None:
    stream = provider_for(speech, speak(speech, ["a"])).stream("Hi")
    assert inspect.isgenerator(stream)
    stream.close()


def test_a_reply_is_a_str_and_knows_where_it_came_from(speech: Speech, provider_for: Make) -> None:
    reply = provider_for(speech, speak(speech, ["a", "b"])).ask([{"role": "user", "content": "Hi"}])
    assert isinstance(reply, Reply)
    assert isinstance(reply, str)
    assert reply + "!" == "ab!"
    assert reply.model == {"openai": "m-1", "ylokh": "m-1", "h2o": H2o.default_model}.get(speech.name, "gpt-3.5-turbo")
    assert reply.finish_reason == ("stop" if speech.name in ("openai", "ylokh") else None)


def test_one_mapping_is_one_message(speech: Speech, provider_for: Make, wire: Wire) -> None:
    provider = provider_for(speech, speak(speech, ["a"]))
    provider.ask({"role": "user", "content": "the prompt"})
    provider.ask(iter([{"role": "user", "content": "the prompt"}]))
    assert [b"the prompt" in request.body for request in wire.asked(*speech.route)] == [True, True]


# Names


def test_providers_are_found_by_name() -> None:
    assert provider_names()[:5] == ["berlin", "ylokh", "h2o", "acytoo", "openai"]
    for cls in ALL:
        assert type(get_provider(cls.name, base_url="http://127.0.0.1:1")) is cls


@pytest.mark.parametrize("name", ["nobody", "", 5])
def test_an_unknown_name_is_refused_with_the_known_ones(name: Any) -> None:
    with pytest.raises(InvalidRequest):
        get_provider(name)
    with pytest.raises(InvalidRequest, match="berlin, ylokh, h2o, acytoo"):
        get_provider("nobody")


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(InvalidRequest, match="api_kee"):
        get_provider("ylokh", api_kee="x")


class FromElsewhere(Ylokh):
    """A provider of another package."""

    name = "elsewhere"


def test_another_package_adds_a_provider_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        EntryPoint("elsewhere", f"{__name__}:FromElsewhere", "berlin_chat.providers"),
        EntryPoint("wrong", f"{__name__}:ALL", "berlin_chat.providers"),
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries if "berlin_chat" in group else [])
    assert provider_names()[5:] == ["elsewhere", "wrong"]
    assert type(get_provider("elsewhere", base_url="http://127.0.0.1:1")) is FromElsewhere
    with pytest.raises(InvalidRequest, match="no Provider class"):
        get_provider("wrong")


# create_completion


def test_create_completion_on_an_instance_streams(speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, speak(speech, ["a", "b"]))
    pieces = provider.create_completion("m", [{"role": "user", "content": "Hi"}])
    assert inspect.isgenerator(pieces)
    assert "".join(pieces) == "ab"


def test_create_completion_without_stream_is_one_piece(speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, speak(speech, ["a", "b"]))
    assert list(provider.create_completion("m", "Hi", stream=False)) == ["ab"]


def test_create_completion_on_the_class_shares_one_instance_a_configuration(
    monkeypatch: pytest.MonkeyPatch, wire: Wire
) -> None:
    wire.routes[:] = [*BERLIN.before, (*BERLIN.route, speak(BERLIN, ["a"]))]
    monkeypatch.setenv("BERLIN_CHAT_URL", wire.url)
    monkeypatch.setenv("BERLIN_CHAT_ACCOUNT", "me")
    monkeypatch.setenv("BERLIN_CHAT_PASSWORD", "secret")
    threads = [
        threading.Thread(target=lambda: list(Berlin.create_completion("m", "Hi", temperature=1))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wire.asked("POST", "/api/login")) == 1
    shared = len(Provider._shared)
    for number in range(20):
        list(Berlin.create_completion("m", "Hi", timeout=5 + number, headers={"X-Request-Id": str(number)}, retries=1))
    assert len(wire.asked("POST", "/api/login")) == 1, "settings of a question need no login of their own"
    assert len(Provider._shared) == shared, "settings of a question need no provider of their own"
    assert wire.asked(*BERLIN.route)[-1].header("X-Request-Id") == "19"
    list(Berlin.create_completion("m", "Hi", account="another"))
    assert len(wire.asked("POST", "/api/login")) == 2, "another account is another configuration"
    monkeypatch.setenv("BERLIN_CHAT_PASSWORD", "other")
    list(Berlin.create_completion("m", "Hi"))
    assert len(wire.asked("POST", "/api/login")) == 3, "another account is another configuration"


def test_create_completion_on_the_class_takes_the_constructors_arguments(wire: Wire) -> None:
    wire.routes[:] = [(*YLOKH.route, speak(YLOKH, ["a"]))]
    assert list(Ylokh.create_completion("m", "Hi", base_url=wire.url, api_key="sk-1", top_p=0.5)) == ["a"]
    (question,) = wire.requests
    assert question.header("Authorization") == "Bearer sk-1"
    assert question.json["top_p"] == 0.5
    assert "base_url" not in question.json


def test_create_completion_of_an_instance_keeps_its_configuration_with_another_timeout(
    provider_for: Make, wire: Wire
) -> None:
    provider = provider_for(YLOKH, speak(YLOKH, ["a"]), api_key="sk-1")
    assert list(provider.create_completion("m", "Hi", timeout=3)) == ["a"]
    assert wire.requests[0].header("Authorization") == "Bearer sk-1"


def test_create_completion_checks_at_the_call(speech: Speech) -> None:
    provider = get_provider(speech.name, base_url="http://127.0.0.1:1", **speech.config)
    with pytest.raises(InvalidRequest):
        provider.create_completion("m", [])


# The package


def test_the_core_imports_no_extra_and_no_event_loop() -> None:
    code = (
        "import sys, requests; before = set(sys.modules); import berlin_chat;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    extras = {"click", "rich", "tqdm", "cheroot", "distributed", "dask", "ipywidgets", "asyncio", "tornado"}
    assert "berlin_chat" in found
    assert extras.isdisjoint(found)
    costly = {"multiprocessing", "inspect", "dataclasses", "difflib", "subprocess", "sqlite3"}
    assert costly.isdisjoint(found), "the import costs more than it should"


def test_everything_public_is_there_and_documented() -> None:
    for name in berlin_chat.__all__:
        found = getattr(berlin_chat, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert inspect.getdoc(found), f"{name} has no docstring"


def test_the_provider_base_class_leaves_the_protocol_to_its_subclasses() -> None:
    class Half(Provider):
        name = "half"

    with pytest.raises(NotImplementedError):
        Half(base_url="http://127.0.0.1:1").stream("Hi")


def test_a_stream_can_be_left_to_another_thread(provider_for: Make) -> None:
    stream: Generator[str, None, Reply] = provider_for(YLOKH, speak(YLOKH, ["a", "b"])).stream("Hi")
    assert next(stream) == "a"
    rest: list[str] = []
    thread = threading.Thread(target=lambda: rest.extend(stream))
    thread.start()
    thread.join(10)
    assert rest == ["b"]


def test_the_faster_parser_is_one_that_survives_deep_input() -> None:
    """orjson below 3.9.15 ended the process."""
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parent.parent / "setup.cfg")
    (lowest,) = re.findall(r"orjson>=([\d.]+)", settings["options.extras_require"]["speed"])
    assert tuple(map(int, lowest.split("."))) >= (3, 9, 15)
    code = (
        "from berlin_chat.decoding import parse\n"
        "for text in (b'[' * 200_000, b'{\"a\":' * 200_000, b'[' * 200_000 + b']' * 200_000):\n"
        "    try: parse(text)\n"
        "    except ValueError: pass\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "openai"),
        ({"BERLIN_CHAT_URL": "http://127.0.0.1:9"}, "openai"),
        ({"BERLIN_CHAT_H2O_URL": "http://127.0.0.1:9"}, "h2o"),
        ({"BERLIN_CHAT_H2O_URL": "http://127.0.0.1:9", "BERLIN_CHAT_ACYTOO_URL": "http://127.0.0.1:9"}, None),
        ({"BERLIN_CHAT_URL": "http://127.0.0.1:9", "BERLIN_CHAT_ACCOUNT": "me"}, "berlin"),
        ({"BERLIN_CHAT_URL": "http://127.0.0.1:9", "BERLIN_CHAT_TOKEN": "t"}, "berlin"),
        ({"BERLIN_CHAT_ACCOUNT": "me"}, "openai"),
        (
            {
                "BERLIN_CHAT_URL": "http://127.0.0.1:9",
                "BERLIN_CHAT_YLOKH_URL": "http://127.0.0.1:8",
                "BERLIN_CHAT_TOKEN": "t",
            },
            "ylokh",
        ),
    ],
)
def test_the_environment_says_which_provider_is_meant(
    environment: dict[str, str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    if name is None:
        with pytest.raises(InvalidRequest, match="BERLIN_CHAT_H2O_URL, BERLIN_CHAT_ACYTOO_URL are set"):
            providers.guessed()
    else:
        assert providers.guessed() == name
