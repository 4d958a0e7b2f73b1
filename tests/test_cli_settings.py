"""Whom the command asks: options, environment, defaults, guesses; and what it says of them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from berlin_chat.server import LocalServer
from berlin_chat.server.echo import PREFACE
from command import ROOT, Ran, environment, run
from wire import BERLIN, PATIENCE, YLOKH, Wire, speak

Command = Callable[..., Ran]
ACCOUNT = {"BERLIN_CHAT_ACCOUNT": "me", "BERLIN_CHAT_PASSWORD": "hunter2-secret"}
DEAD = "http://127.0.0.1:1"


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs commands that share a folder of configurations."""

    def command(*arguments: str, **more: str) -> Ran:
        return run(*arguments, **{"XDG_CONFIG_HOME": str(tmp_path / "config"), **more})

    return command


def asked(wire: Wire) -> str:
    """Which protocol the last question was asked in, and of which model."""
    request = wire.requests[-1]
    return f"{request.path} {request.json.get('model')}"


# The provider


@pytest.mark.parametrize(
    ("variables", "provider"),
    [
        ({"BERLIN_CHAT_URL": DEAD}, "openai"),
        ({"BERLIN_CHAT_URL": DEAD, "BERLIN_CHAT_API_KEY": "k"}, "openai"),
        ({"BERLIN_CHAT_URL": DEAD, **ACCOUNT}, "berlin"),
        ({"BERLIN_CHAT_URL": DEAD, "BERLIN_CHAT_TOKEN": "secret-token"}, "berlin"),
        ({"BERLIN_CHAT_H2O_URL": DEAD}, "h2o"),
        ({"BERLIN_CHAT_H2O_URL": DEAD, "BERLIN_CHAT_PROVIDER": "openai", "BERLIN_CHAT_URL": DEAD}, "openai"),
        ({"BERLIN_CHAT_H2O_URL": DEAD, "BERLIN_CHAT_OPENAI_URL": DEAD, "BERLIN_CHAT_PROVIDER": "h2o"}, "h2o"),
    ],
)
def test_the_provider_is_the_one_that_is_configured(variables: dict[str, str], provider: str, command: Command) -> None:
    ran = command("ask", "Hi", **variables)
    assert ran.complaint.startswith(f"berlin-chat: {provider} at {DEAD}")


def test_an_address_without_a_provider_is_one_of_openai(command: Command) -> None:
    ran = command("ask", "Hi", "--base-url", DEAD, **ACCOUNT, BERLIN_CHAT_H2O_URL=DEAD)
    assert ran.complaint.startswith(f"berlin-chat: openai at {DEAD}")


def test_several_configured_providers_are_wrong_usage_until_one_is_named(command: Command) -> None:
    both = {"BERLIN_CHAT_H2O_URL": DEAD, "BERLIN_CHAT_YLOKH_URL": DEAD}
    ran = command("ask", "Hi", **both)
    assert ran.code == 2
    assert "BERLIN_CHAT_YLOKH_URL, BERLIN_CHAT_H2O_URL are set: say which provider is meant" in ran.err
    assert command("ask", "-p", "h2o", "Hi", **both).complaint.startswith("berlin-chat: h2o at")


def test_nothing_configured_is_answered_here(command: Command) -> None:
    ran = command("ask", "Hi")
    assert (ran.code, ran.out) == (0, f"{PREFACE}Hi\n")


def test_a_wrong_provider_in_the_environment_is_wrong_usage_and_is_named(command: Command) -> None:
    ran = command("ask", "Hi", BERLIN_CHAT_PROVIDER="nope")
    assert ran.code == 2
    assert "no provider 'nope'" in ran.err


# Defaults


def test_an_option_comes_before_the_environment_and_that_before_the_defaults(command: Command, wire: Wire) -> None:
    for place in ("option", "environment", "default"):
        wire.on("POST", f"/{place}/chat/completions", speak(YLOKH, [place]))
    default = ("set-default", "-p", "openai", "-m", "m-default", "--base-url", f"{wire.url}/default")
    assert command(*default).code == 0
    assert command("ask", "Hi").out == "default\n"
    assert asked(wire) == "/default/chat/completions m-default"
    variables = {"BERLIN_CHAT_MODEL": "m-environment", "BERLIN_CHAT_URL": f"{wire.url}/environment"}
    assert command("ask", "Hi", **variables).out == "environment\n"
    assert asked(wire) == "/environment/chat/completions m-environment"
    options = ("-m", "m-option", "--base-url", f"{wire.url}/option")
    assert command("ask", "Hi", *options, **variables).out == "option\n"
    assert asked(wire) == "/option/chat/completions m-option"


def test_the_defaults_model_and_address_are_those_of_its_provider_only(command: Command, wire: Wire) -> None:
    wire.on(*YLOKH.route, speak(YLOKH, ["x"]))
    command("set-default", "-p", "h2o", "-m", "m-h2o", "--base-url", DEAD)
    assert command("ask", "-p", "openai", "--base-url", wire.url, "Hi").out == "x\n"
    assert asked(wire) == "/v1/chat/completions gpt-3.5-turbo"
    assert command("ask", "Hi").complaint.startswith(f"berlin-chat: h2o at {DEAD}")
    assert command("ask", "Hi", BERLIN_CHAT_PROVIDER="openai").out == f"{PREFACE}Hi\n"


def test_defaults_are_shown_changed_and_cleared(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "config" / "berlin-chat" / "defaults.json"
    assert command("set-default", "--show") == Ran(0, "", f"berlin-chat: there are no defaults in {path}\n")
    assert command("set-default", "-p", "OpenAI", "-m", "a").err == f"berlin-chat: kept in {path}\n"
    assert command("set-default", "-m", "b", "--show").out == "provider: openai\nmodel: b\n"
    assert command("set-default", "-p", "h2o", "--show").out == "provider: h2o\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert command("set-default", "--clear", "--show").out == ""
    assert json.loads(path.read_text()) == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is nothing to set"),
        (["-p", "nope"], "no provider 'nope'"),
        (["--base-url", "nonsense"], "--base-url must look like http"),
        (["--base-url", "http://me:secret@127.0.0.1"], "--base-url holds a user name or password"),
    ],
)
def test_a_default_that_is_none_is_wrong_usage_and_nothing_is_kept(
    arguments: list[str], says: str, command: Command, tmp_path: Path
) -> None:
    ran = command("set-default", *arguments)
    assert ran.code == 2
    assert says in ran.err
    assert "secret" not in ran.err
    assert not (tmp_path / "config").exists()


def test_a_broken_file_of_defaults_is_one_line(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "config" / "berlin-chat" / "defaults.json"
    path.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"api_key": "k"}'):
        path.write_text(text)
        ran = command("ask", "Hi")
        assert ran.code == 1
        assert ran.complaint == f"berlin-chat: {path} does not hold what set-default writes: mend it or delete it\n"


def test_a_relative_folder_of_configurations_is_ignored(tmp_path: Path) -> None:
    run("set-default", "-m", "a", XDG_CONFIG_HOME="here", HOME=str(tmp_path))
    assert (tmp_path / ".config" / "berlin-chat" / "defaults.json").exists() or sys.platform != "linux"


def test_the_table_of_providers_knows_the_default(command: Command) -> None:
    command("set-default", "-p", "openai", "--base-url", DEAD)
    assert [line.split()[1] for line in command("providers").out.splitlines() if DEAD in line] == [DEAD]


# models and doctor


def test_models_are_listed_a_line_each(command: Command, wire: Wire) -> None:
    listed = {"data": [{"id": "a"}, {"id": "b"}]}
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, listed))
    assert command("models", "--base-url", wire.url) == Ran(0, "a\nb\n", "")


def test_a_protocol_without_a_list_of_models_is_one_line(command: Command) -> None:
    ran = command("models", "-p", "h2o", "--base-url", DEAD)
    assert (ran.code, ran.out) == (1, "")
    assert "the protocol has no list of models" in ran.complaint


def rows(ran: Ran) -> dict[str, list[str]]:
    """The doctor's table, by provider."""
    heading, *lines = ran.out.splitlines()
    assert heading.split()[:3] == ["provider", "address", "reachable"]
    return {line.split()[0]: line.split()[2:5] for line in lines}


def test_the_doctor_finds_all_well(command: Command) -> None:
    with LocalServer(password="hunter2-secret") as server:
        urls = {f"BERLIN_CHAT_{name}_URL": server.url for name in ("BERLIN", "OPENAI", "ACYTOO")}
        ran = command("doctor", **urls, **ACCOUNT, BERLIN_CHAT_API_KEY="hunter2-secret")
    assert (ran.code, ran.err) == (0, "")
    assert rows(ran) == {name: ["yes", "yes", "yes"] for name in ("berlin", "acytoo", "openai")}
    assert ran.out.count(" s\n") == 3


def test_the_doctor_says_what_is_wrong_with_each(command: Command, wire: Wire) -> None:
    wire.on("POST", "/api/login", lambda request, connection: connection.respond(200, {"msg": "wrong password"}))
    page = b"<html>Hello</html>", {"Content-Type": "text/html"}
    wire.on(*YLOKH.route, lambda request, connection: connection.respond(200, *page))
    urls = {"BERLIN": wire.url, "OPENAI": wire.url, "H2O": DEAD, "YLOKH": f"{wire.url}/nowhere"}
    ran = command("doctor", **{f"BERLIN_CHAT_{name}_URL": url for name, url in urls.items()}, **ACCOUNT)
    assert ran.code == 1
    assert rows(ran) == {
        "berlin": ["yes", "yes", "NO"],
        "openai": ["yes", "NO", "?"],
        "h2o": ["NO", "?", "?"],
        "ylokh": ["yes", "NO", "?"],
    }
    assert "the login was refused: wrong password. Check BERLIN_CHAT_ACCOUNT and BERLIN_CHAT_PASSWORD" in ran.err
    assert len(ran.err.splitlines()) == 4
    assert "secret" not in ran.err


def test_the_doctor_asks_a_silent_server_no_longer_than_its_deadline(command: Command, wire: Wire) -> None:
    wire.on(*YLOKH.route, lambda request, connection: connection.wait_until_client_closes())
    ran = command("doctor", "--base-url", wire.url, "--deadline", "0.3")
    assert ran.code == 1
    assert "no whole reply within the deadline of 0.3 s" in ran.complaint
    assert len(wire.requests) == 1, "it is not asked again"


def test_the_doctor_without_an_account_or_any_address_says_what_to_set(command: Command) -> None:
    ran = command("doctor", "-p", "berlin", "--base-url", DEAD)
    assert (ran.code, rows(ran)) == (1, {"berlin": ["?", "?", "NO"]})
    assert "set BERLIN_CHAT_ACCOUNT and BERLIN_CHAT_PASSWORD, or BERLIN_CHAT_TOKEN" in ran.complaint
    ran = command("doctor")
    assert ran.code == 1
    assert "Give --base-url, or set BERLIN_CHAT_URL or BERLIN_CHAT_OPENAI_URL" in ran.complaint


def test_the_doctor_asks_the_default_beside_those_of_the_environment(command: Command) -> None:
    ran = command("doctor", BERLIN_CHAT_PROVIDER="openai", BERLIN_CHAT_URL=DEAD, BERLIN_CHAT_H2O_URL=DEAD)
    assert list(rows(ran)) == ["openai", "h2o"]


def test_a_login_that_was_made_is_seen(command: Command, wire: Wire) -> None:
    wire.routes[:] = [*BERLIN.before, (*BERLIN.route, speak(BERLIN, ["OK"]))]
    assert command("doctor", "-p", "berlin", "--base-url", wire.url, **ACCOUNT).code == 0
    assert len(wire.asked("POST", "/api/login")) == 1


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_one_line(shell: str) -> None:
    ran = run("completion", shell)
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)
    assert f"_BERLIN_CHAT_COMPLETE={shell}_source berlin-chat" in ran.out


def completed(shell: str, words: str, tmp_path: Path) -> list[str]:
    """What a bash with the printed line completes."""
    (tmp_path / "berlin-chat").write_text(f'#!/bin/sh\nexec {sys.executable} -m berlin_chat "$@"\n')
    (tmp_path / "berlin-chat").chmod(0o755)
    asked = words.split(" ")
    script = f"""
{run("completion", shell).out}
COMP_WORDS=({" ".join(f"'{word}'" for word in asked)}); COMP_CWORD={len(asked) - 1}
_berlin_chat_completion berlin-chat
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    variables = environment(PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHONPATH=str(ROOT))
    done = subprocess.run([shell, "-c", script], env=variables, capture_output=True, text=True, timeout=3 * PATIENCE)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="needs bash")
def test_bash_completes_commands_options_and_providers(tmp_path: Path) -> None:
    assert completed("bash", "berlin-chat mo", tmp_path) == ["models"]
    assert completed("bash", "berlin-chat ask --ex", tmp_path) == ["--extract"]
    assert completed("bash", "berlin-chat ask -p y", tmp_path) == ["ylokh"]


def test_defaults_that_are_no_text_are_said(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "config" / "berlin-chat" / "defaults.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"model": "caf\xe9"}')
    ran = command("ask", "Hi")
    assert ran.code == 1
    assert ran.complaint == f"berlin-chat: {path} does not hold what set-default writes: mend it or delete it\n"


def test_a_wrong_default_address_is_said_in_the_commands_words(command: Command) -> None:
    ran = command("set-default", "--base-url", "http://me:hunter2-secret@127.0.0.1:1")
    assert ran.code == 2
    assert "--base-url holds a user name or password: set BERLIN_CHAT_API_KEY instead" in " ".join(ran.err.split())
    assert "hunter2" not in ran.err
