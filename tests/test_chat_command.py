"""``berlin-chat chat`` in a real terminal, and from a pipe."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from berlin_chat.cli.talk import COMMANDS
from berlin_chat.server import LocalServer
from command import COMMAND, Ran, arrives, environment, run, without
from terminal import Terminal, needs_tmux
from wire import PATIENCE, YLOKH, Wire, speak, wait_for


class Upstream:
    """Says a reply in Markdown; the rest of one to "Wait" only when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        self.models: list[str | None] = []
        self.go_on = threading.Event()

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        self.asked.append([*messages])
        self.models.append(model)
        said = messages[-1]["content"]
        yield f"You said **{said}**"
        if said == "Wait":
            yield " and now"
            assert self.go_on.wait(PATIENCE)
        yield ", *turn* "
        yield f"{sum(message['role'] == 'user' for message in messages)}."

    def contents(self) -> list[str]:
        """What the last question said, message by message."""
        return [message["content"] for message in self.asked[-1]]


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def server(upstream: Upstream) -> Iterator[LocalServer]:
    with LocalServer(upstream=upstream) as running:
        yield running
        upstream.go_on.set()  # lest a reply that nobody reads keeps the end waiting


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, str]:
    """The environment that says where the history is."""
    return {"BERLIN_CHAT_HISTORY": "", "XDG_DATA_HOME": str(tmp_path / "data")}


def turns(kept: dict[str, str]) -> list[Any]:
    """What the history has of its conversation, message by message."""
    (line,) = run("history", "export", **kept).out.splitlines()
    return [message["content"] for message in json.loads(line)["messages"]]


@needs_tmux
def test_a_chat_in_a_terminal(upstream: Upstream, server: LocalServer, tmp_path: Path, kept: dict[str, str]) -> None:
    saved = tmp_path / "saved.md"
    with Terminal("chat", "--base-url", server.url, **kept) as terminal:
        terminal.wait_for("Ctrl-D leaves.")
        terminal.type("Hello")
        shown = terminal.wait_for("You said Hello, turn 1.")
        assert "*" not in shown, "it is drawn as Markdown"
        terminal.type("Wait")
        terminal.wait_for("You said Wait and now")
        terminal.press("C-c")
        terminal.wait_for("stopped; this part is kept: /retry asks again, /undo drops it")
        terminal.type("Another")
        terminal.wait_for("You said Another, turn 3.")
        before = ["Hello", "You said **Hello**, *turn* 1.", "Wait", "You said **Wait** and now"]
        assert upstream.contents() == [*before, "Another"]
        terminal.type("/undo")
        terminal.wait_for("taken back: Another")
        terminal.type("Once more")
        terminal.wait_for("You said Once more, turn 3.")
        terminal.type(f"/save {saved}")
        terminal.wait_for("saved in")
        terminal.type("/exit")
        assert terminal.code() == 0
    assert turns(kept) == [*before, "Once more", "You said **Once more**, *turn* 3."]
    text = saved.read_text()
    assert re.findall("^## User\n\n(.*)$", text, re.MULTILINE) == ["Hello", "Wait", "Once more"]
    assert "You said **Wait** and now\n\n*(The reply was cut off here.)*" in text
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600


@needs_tmux
def test_lines_are_edited_and_remembered_privately(
    upstream: Upstream, server: LocalServer, tmp_path: Path, kept: dict[str, str]
) -> None:
    with Terminal("chat", "--base-url", server.url, **kept) as terminal:
        terminal.wait_for("Ctrl-D leaves.")
        terminal.press("H", "i", "x", "BSpace", "Enter")
        terminal.wait_for("You said Hi, turn 1.")
        terminal.press("C-d")
        assert terminal.code() == 0
    typed = tmp_path / "data" / "berlin-chat" / "typed"
    assert stat.S_IMODE(typed.stat().st_mode) == 0o600
    with Terminal("chat", "--base-url", server.url, **kept) as terminal:
        terminal.wait_for("Ctrl-D leaves.")
        terminal.press("Up", "Enter")
        terminal.wait_for("You said Hi, turn 1.")
    assert upstream.contents() == ["Hi"]


@needs_tmux
def test_messages_of_several_lines_are_typed_in_each_of_the_ways(upstream: Upstream, server: LocalServer) -> None:
    with Terminal("chat", "--base-url", server.url) as terminal:
        terminal.wait_for("Ctrl-D leaves.")
        terminal.press("a", "M-Enter", "b", "Enter")
        terminal.wait_for("turn 1.")
        for line in ("c\\", "d"):
            terminal.type(line)
        terminal.wait_for("turn 2.")
        for line in ('"""e', "", 'f"""'):
            terminal.type(line)
        terminal.wait_for("turn 3.")
        for line in ("/multi", "g", "/undo", "/end"):
            terminal.type(line)
        terminal.wait_for("turn 4.")
    assert upstream.contents()[::2] == ["a\nb", "c\nd", "e\n\nf", "g\n/undo"]


@needs_tmux
def test_ctrl_c_at_the_prompt_drops_the_line_and_goes_on(upstream: Upstream, server: LocalServer) -> None:
    with Terminal("chat", "--base-url", server.url) as terminal:
        terminal.wait_for("Ctrl-D leaves.")
        terminal.press("x", "y", "C-c")
        terminal.wait_for("> xy\n>")
        terminal.type("Hi")
        terminal.wait_for("You said Hi, turn 1.")
    assert upstream.contents() == ["Hi"]


@needs_tmux
def test_a_stopped_reply_of_which_nothing_came_is_asked_again(wire: Wire) -> None:
    wire.on(*YLOKH.route, lambda request, connection: connection.wait_until_client_closes())
    with Terminal("chat", "--base-url", wire.url) as terminal:
        terminal.wait_for("Ctrl-D leaves.")
        terminal.type("Hi")
        wait_for(lambda: wire.requests)
        wire.on(*YLOKH.route, speak(YLOKH, ["Here."]))
        terminal.press("C-c")
        terminal.wait_for("> Hi\n^C\n>")
        terminal.type("/retry")
        terminal.wait_for("Here.")
    assert wire.requests[-1].json["messages"] == [{"role": "user", "content": "Hi"}]


# From a pipe


def chat(server: LocalServer, *lines: str, **more: str) -> Ran:
    return run("chat", "--base-url", server.url, stdin="\n".join(lines).encode(), **more)


def test_lines_from_a_pipe_are_turns_without_prompts(upstream: Upstream, server: LocalServer) -> None:
    assert chat(server, "One", "", "Two") == Ran(0, "You said **One**, *turn* 1.\nYou said **Two**, *turn* 2.\n", "")


def test_retry_undo_model_and_system(upstream: Upstream, server: LocalServer) -> None:
    lines = ["One", "Two", "/model other", "/retry", "/undo", "/system Be brief.", "/system", "Three", "//four"]
    ran = chat(server, *lines)
    assert ran.code == 0
    assert upstream.models == [None, None, "other", "other", "other"]
    assert [
        [message["content"] for message in asked if message["role"] != "assistant"] for asked in upstream.asked
    ] == [
        ["One"],
        ["One", "Two"],
        ["One", "Two"],
        ["Be brief.", "One", "Three"],
        ["Be brief.", "One", "Three", "/four"],
    ]
    assert ran.err.splitlines() == [
        "berlin-chat: the model is other",
        "berlin-chat: taken back: Two",
        *["berlin-chat: the system message is: Be brief."] * 2,
    ]


@pytest.mark.parametrize("log", [True, False])
def test_a_retry_that_fails_leaves_the_earlier_reply(log: bool, wire: Wire, kept: dict[str, str]) -> None:
    spoken = speak(YLOKH, ["Good."])
    scripts = iter(
        [spoken, spoken, *[lambda request, connection: connection.respond(400, {"error": "no"})] * 2, spoken]
    )
    wire.on(*YLOKH.route, lambda request, connection: next(scripts)(request, connection))
    options = ["--base-url", wire.url, *([] if log else ["--no-log"])]
    ran = run("chat", *options, stdin=b"One\nTwo\n/retry\n/retry\nThree\n", **kept)
    assert ran.out == "Good.\n" * 3
    assert ran.err.count("the earlier reply stays") == 2
    asked = [[message["content"] for message in request.json["messages"]] for request in wire.requests]
    assert asked[2] == asked[3] == ["One", "Good.", "Two"]
    assert asked[4] == ["One", "Good.", "Two", "Good.", "Three"]
    if log:
        assert turns(kept) == [*asked[4], "Good."]


def test_a_retry_that_is_answered_takes_the_earlier_reply_back(
    upstream: Upstream, server: LocalServer, kept: dict[str, str]
) -> None:
    assert chat(server, "One", "Two", "/model other", "/retry", "Three", "/retry", **kept).code == 0
    before = ["One", "You said **One**, *turn* 1.", "Two", "You said **Two**, *turn* 2."]
    assert upstream.models == [None, None, "other", "other", "other"]
    assert turns(kept) == [*before, "Three", "You said **Three**, *turn* 3."]
    assert chat(server, "/retry", **kept).err == "berlin-chat: there is no question to ask again\n"


def test_help_names_every_command_and_an_unknown_one_is_said(server: LocalServer) -> None:
    ran = chat(server, "/help", "/nope", "/undo", "/save /nowhere/x.md")
    for name in (*COMMANDS, "/exit", "Alt-Enter", '"""', "Ctrl-C"):
        assert name in ran.err
    assert "there is no command /nope: see /help" in ran.err
    assert "there is no turn to take back" in ran.err
    assert ran.code == 0


def test_save_writes_json_and_no_file_that_is_there(server: LocalServer, tmp_path: Path) -> None:
    path = tmp_path / "saved.jsonl"
    ran = chat(server, "One", f"/save {path}", f"/save {path}")
    assert ran.err.splitlines() == [f"berlin-chat: saved in {path}", f"berlin-chat: {path}: File exists"]
    messages = json.loads(path.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]


def test_an_error_ends_the_turn_and_not_the_chat(wire: Wire) -> None:
    wire.on(*YLOKH.route, lambda request, connection: connection.respond(401, {"error": "no such key"}))
    ran = run("chat", "--base-url", wire.url, stdin=b"One\nTwo\n")
    assert (ran.code, ran.out) == (1, "")
    assert [line.endswith("no such key. Check BERLIN_CHAT_API_KEY") for line in ran.err.splitlines()] == [True, True]


def test_continue_goes_on_with_the_last_conversation(
    upstream: Upstream, server: LocalServer, kept: dict[str, str]
) -> None:
    assert run("ask", "--base-url", server.url, "One", **kept).code == 0
    assert run("chat", "-c", "--base-url", server.url, stdin=b"Two\n", **kept).code == 0
    assert turns(kept)[::2] == ["One", "Two"]


def test_from_a_pipe_no_prompt_toolkit_is_needed(server: LocalServer) -> None:
    assert run("chat", "--base-url", server.url, stdin=b"One\n", command=without("prompt_toolkit")).code == 0


@pytest.mark.parametrize(
    ("typed", "asked"),
    [(b'"""One\ntwo', "One\ntwo"), (b"One\\\ntwo\\", "One\ntwo"), (b"/multi\nOne\ntwo\n", "One\ntwo")],
    ids=["quotes", "backslash", "multi"],
)
def test_a_message_that_a_pipe_does_not_finish_is_asked(
    typed: bytes, asked: str, upstream: Upstream, server: LocalServer
) -> None:
    ran = run("chat", "--base-url", server.url, stdin=typed)
    assert (ran.code, ran.err) == (0, "")
    assert upstream.contents() == [asked]


@pytest.mark.skipif(os.name == "nt", reason="sends signals to another process")
def test_ctrl_c_ends_a_chat_that_reads_a_pipe(server: LocalServer) -> None:
    command = [*COMMAND, "chat", "--base-url", server.url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, env=environment()) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(b"One\n")
            assert arrives(process, "You said **One**, *turn* 1.\n")
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130, "though the pipe is open"
        finally:
            process.kill()
