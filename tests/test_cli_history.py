"""What the command remembers: ``--continue``, ``berlin-chat history``, and where it is kept."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from berlin_chat.server.echo import PREFACE
from command import Ran, arrives, ended_by, run, started
from terminal import Terminal, needs_tmux
from wire import YLOKH, Chunked, Connection, Recorded, Wire, speak

Command = Callable[..., Ran]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "berlin-chat" / "chats.db"


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """The environment that says where the history is."""
    return {"BERLIN_CHAT_HISTORY": "", "XDG_DATA_HOME": str(tmp_path / "data")}


@pytest.fixture
def command(data: dict[str, str], wire: Wire) -> Command:
    """Runs commands that share a history, and the address of a server that says how many messages it was sent."""

    def count(request: Recorded, connection: Connection) -> None:
        speak(YLOKH, [f"**{len(request.json['messages'])}** messages"])(request, connection)

    wire.on(*YLOKH.route, count)

    def command(*arguments: str, **more: str) -> Ran:
        return run(*arguments, **{**data, "BERLIN_CHAT_OPENAI_URL": wire.url, **more})

    return command


def sent(wire: Wire) -> Any:
    return wire.requests[-1].json["messages"]


# Going on


def test_continue_sends_what_was_said_before(command: Command, wire: Wire) -> None:
    assert command("ask", "One", "-s", "Be brief.", "-m", "llama3").out == "**2** messages\n"
    assert command("ask", "-c", "Two").out == "**4** messages\n"
    assert sent(wire) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "**2** messages"},
        {"role": "user", "content": "Two"},
    ]
    assert wire.requests[-1].json["model"] == "llama3", "the model of the conversation"
    assert command("ask", "Three").out == "**1** messages\n", "another conversation"
    assert command("ask", "--continue", "Four", "-m", "other").out == "**3** messages\n"
    assert wire.requests[-1].json["model"] == "other"


def test_continue_asks_the_provider_of_the_conversation(command: Command, wire: Wire) -> None:
    command("ask", "-p", "ylokh", "--base-url", wire.url, "One")
    command("ask", "-c", "Two", BERLIN_CHAT_YLOKH_URL=wire.url, BERLIN_CHAT_OPENAI_URL="http://127.0.0.1:1")
    assert len(sent(wire)) == 3
    assert "allow_fallback" in wire.requests[-1].json, "which only ylokh sends"


def test_continue_without_a_conversation_or_a_history_is_wrong_usage(command: Command, wire: Wire) -> None:
    ran = command("ask", "-c", "Two")
    assert (ran.code, ran.out) == (2, "")
    assert "there is no conversation to go on with" in ran.err
    ran = command("ask", "-c", "Two", BERLIN_CHAT_HISTORY="off")
    assert ran.code == 2
    assert "BERLIN_CHAT_HISTORY is 'off'" in ran.err
    assert wire.requests == []


@pytest.mark.parametrize("name", ["ask", "chat"])
def test_the_echo_does_not_go_on_with_the_conversation_of_a_server(name: str, command: Command, wire: Wire) -> None:
    nowhere = {"BERLIN_CHAT_OPENAI_URL": ""}
    assert command("ask", "--base-url", wire.url, "-m", "llama3", "One", **nowhere).code == 0
    ran = command(name, "-c", "Two", **nowhere) if name == "ask" else command(name, "-c", **nowhere)
    assert (ran.code, ran.out) == (2, "")
    assert "the last conversation was with openai (llama3), and no address is configured: give --base-url again" in (
        " ".join(ran.err.split())
    )
    assert "Two" not in command("history", "export").out
    assert command("ask", "-c", "Two", "--base-url", wire.url, **nowhere).out == "**3** messages\n"


def test_the_echo_goes_on_with_its_own_conversation(command: Command) -> None:
    nowhere = {"BERLIN_CHAT_OPENAI_URL": ""}
    assert command("ask", "One", **nowhere).code == 0
    assert command("ask", "-c", "Two", **nowhere).out == f"{PREFACE}Two\n"


def test_a_reply_that_ctrl_c_has_stopped_is_kept_as_far_as_it_came(data: dict[str, str], wire: Wire) -> None:
    def begin(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, YLOKH.kind, b"")
        body.part(YLOKH.parts(["half "])[0])
        connection.wait_until_client_closes()

    wire.on(*YLOKH.route, begin)
    with started("ask", "--base-url", wire.url, "One", **data) as process:
        assert arrives(process, "half ")
        assert ended_by(process, "SIGINT").code == 130
    wire.on(*YLOKH.route, speak(YLOKH, ["whole"]))
    assert run("ask", "-c", "Two", "--base-url", wire.url, **data).out == "whole\n"
    assert [message["content"] for message in sent(wire)] == ["One", "half ", "Two"]
    assert "cut off here" in run("history", "show", **data).out


# Where it is kept


def test_the_history_is_for_nobody_else_to_read(command: Command, file: Path) -> None:
    assert command("ask", "One").code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_another_file_can_be_named(command: Command, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    assert command("ask", "One", BERLIN_CHAT_HISTORY=str(other)).code == 0
    with sqlite3.connect(other) as connection:
        assert connection.execute("SELECT content FROM messages").fetchall() == [("One",), ("**1** messages",)]
    connection.close()
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "variables"), [(["--no-log"], {}), ([], {"BERLIN_CHAT_HISTORY": "off"})], ids=["option", "variable"]
)
def test_nothing_is_kept_if_it_is_turned_off(
    arguments: list[str], variables: dict[str, str], command: Command, tmp_path: Path
) -> None:
    assert command("ask", "One", *arguments, **variables) == Ran(0, "**1** messages\n", "")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("off", ["OFF", "Off"])
def test_the_history_is_turned_off_in_capitals_too(off: str, command: Command) -> None:
    ran = command("history", "list", BERLIN_CHAT_HISTORY=off)
    assert (ran.code, "there is no history: BERLIN_CHAT_HISTORY is 'off'" in ran.err) == (2, True)


def test_what_goes_on_without_a_log_is_not_added(command: Command, wire: Wire) -> None:
    command("ask", "One")
    assert command("ask", "-c", "Two", "--no-log").out == "**3** messages\n"
    assert command("ask", "-c", "Three").out == "**3** messages\n"


def test_a_history_that_cannot_be_kept_is_said_and_the_question_answered_all_the_same(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("no folder")
    ran = command("ask", "One")
    assert (ran.code, ran.out) == (0, "**1** messages\n")
    assert ran.complaint.startswith("berlin-chat: this is not kept in the history: ")
    assert command("history", "list").code == 1


# berlin-chat history


def test_conversations_are_listed_the_last_one_first(command: Command) -> None:
    assert command("history", "list").complaint.startswith("berlin-chat: there are no conversations in /")
    for question in ("One", "Two " * 30):
        command("ask", question, "-m", "llama3")
    heading, last, first = command("history", "list").out.splitlines()
    assert heading.split() == ["id", "last", "used", "model", "messages", "began", "with"]
    assert [last.split()[0], first.split()[0]] == ["2", "1"]
    assert last.endswith("Two…")
    assert first.split()[-3:] == ["llama3", "2", "One"]
    assert len(command("history", "list", "-n", "1").out.splitlines()) == 2


def test_a_conversation_is_shown_in_markdown(command: Command) -> None:
    command("ask", "One")
    command("ask", "Two")
    shown = command("history", "show").out
    assert "## User\n\nTwo\n\n## Assistant\n\n**1** messages\n" in shown
    assert "One" in command("history", "show", "1").out
    ran = command("history", "show", "7")
    assert (ran.code, ran.out) == (1, "")
    assert "there is no conversation 7" in ran.complaint


@needs_tmux
def test_a_conversation_is_drawn_on_a_terminal(command: Command, data: dict[str, str]) -> None:
    command("ask", "One")
    with Terminal("history", "show", **data) as terminal:
        assert terminal.code() == 0
        assert "\nAssistant\n\n1 messages" in terminal.screen()


def test_messages_are_found(command: Command) -> None:
    command("ask", "Why is the sky blue?")
    command("ask", "Another question")
    found = command("history", "search", "sky", "BLUE")
    assert found.code == 0
    assert [line.split()[0] for line in found.out.splitlines()] == ["id", "1"]
    assert command("history", "search", "nowhere") == Ran(1, "", "berlin-chat: nothing was found\n")


def test_the_history_is_exported(command: Command, tmp_path: Path) -> None:
    command("ask", "One")
    command("ask", "Two")
    lines = [json.loads(line) for line in command("history", "export").out.splitlines()]
    assert [line["messages"][0]["content"] for line in lines] == ["One", "Two"]
    path = tmp_path / "out.md"
    assert command("history", "export", "2", "-o", str(path)) == Ran(0, "", "")
    assert path.read_text() == command("history", "export", "2", "--markdown").out
    assert "One" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ran = command("history", "export", "-o", str(path))
    assert (ran.code, ran.complaint) == (1, f"berlin-chat: {path}: File exists\n")


def test_a_conversation_is_deleted_after_a_yes(command: Command, data: dict[str, str]) -> None:
    for question in ("One", "Two", "Three"):
        command("ask", question)
    ran = command("history", "delete", "1")
    assert ran.code == 2
    assert "say --yes" in ran.err
    assert command("history", "delete", "1", "2", "--yes") == Ran(0, "", "berlin-chat: deleted 2 conversations\n")
    assert [line.split()[0] for line in command("history", "list").out.splitlines()[1:]] == ["3"]
    ran = command("history", "delete", "1", "--yes")
    assert (ran.code, "there is no conversation 1" in ran.complaint) == (1, True)


@needs_tmux
@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 1, 1)])
def test_on_a_terminal_deleting_asks(answer: str, code: int, left: int, command: Command, data: dict[str, str]) -> None:
    command("ask", "One")
    with Terminal("history", "delete", "1", **data) as terminal:
        terminal.wait_for("Delete conversation 1?")
        terminal.type(answer)
        assert terminal.code() == code
    assert command("history", "export").out.count("\n") == left


def test_nothing_is_deleted_unless_all_of_it_is_there(command: Command) -> None:
    for question in ("One", "Two"):
        command("ask", question)
    ran = command("history", "delete", "1", "77", "2", "--yes")
    assert ran.code == 1
    assert "there is no conversation 77 in the history: see berlin-chat history list" in ran.complaint
    assert command("history", "export").out.count("\n") == 2
    assert command("history", "delete", "1", "1", "--yes").err == "berlin-chat: deleted conversation 1\n"


@needs_tmux
def test_deleting_forgets_the_lines_typed_in_chat(command: Command, data: dict[str, str], file: Path) -> None:
    with Terminal("chat", **data) as terminal:
        terminal.wait_for("Ctrl-D leaves.")
        terminal.type("Secret")
        terminal.wait_for("Secret", times=2)
        terminal.press("C-d")
        assert terminal.code() == 0
    typed = file.with_name("typed")
    assert "Secret" in typed.read_text()
    ran = command("history", "delete", "1", "--yes")
    assert ran == Ran(0, "", "berlin-chat: deleted conversation 1, and the lines typed in chat\n")
    assert typed.read_bytes() == b""
    for name in ("chat", "history"):
        assert "typed in" in " ".join(command(name, "--help").out.split())


NUMBER = "9" * 23


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["list", "-n", NUMBER], 0),
        (["search", "One", "-n", NUMBER], 0),
        (["show", NUMBER], 2),
        (["export", NUMBER], 2),
        (["delete", NUMBER, "--yes"], 2),
    ],
)
def test_a_number_too_large_for_the_file_is_no_crash(arguments: list[str], code: int, command: Command) -> None:
    command("ask", "One")
    ran = command("history", *arguments)
    assert ran.code == code
    assert "Traceback" not in ran.err
    assert ("One" in ran.out) == (code == 0)


@pytest.mark.parametrize("arguments", [["ask", "One"], ["history", "list"]])
def test_a_history_of_nobodys_is_wrong_usage(arguments: list[str], command: Command, wire: Wire) -> None:
    ran = command(*arguments, BERLIN_CHAT_HISTORY="~nosuchuser/x.db")
    assert (ran.code, ran.out) == (2, "")
    assert "BERLIN_CHAT_HISTORY is '~nosuchuser/x.db', and there is no such user" in " ".join(ran.err.split())
    assert wire.requests == []
