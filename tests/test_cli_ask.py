"""``berlin-chat ask``: what is asked, how the reply is shown, and what is said of it."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from berlin_chat import ChatError, image
from berlin_chat.cli.words import in_the_commands_words
from command import COMMAND, ROOT, Ran, arrives, ended_by, environment, run, started
from wire import PATIENCE, YLOKH, Chunked, Connection, Recorded, Wire, speak, wait_for

#: What ``half_a_reply`` says.
HALF = "```\nhalf"
GIF = b"GIF89a\x01\x00\x01\x00"
Ask = Callable[..., Ran]


@pytest.fixture
def ask(wire: Wire) -> Ask:
    """Asks a server, which says "x" unless the test says otherwise."""
    wire.on(*YLOKH.route, speak(YLOKH, ["x"]))

    def ask(*arguments: str, stdin: bytes = b"", **more: str) -> Ran:
        return run("ask", "--base-url", wire.url, *arguments, stdin=stdin, **more)

    return ask


def messages(wire: Wire) -> Any:
    """Those of the last question."""
    return wire.requests[-1].json["messages"]


def content(wire: Wire) -> Any:
    return messages(wire)[-1]["content"]


# What is asked


@pytest.mark.parametrize(
    ("words", "stdin", "expected"),
    [
        (["Explain:"], b"a\nb\n", "Explain:\n\na\nb"),
        (["Explain:", "-"], b"a", "Explain:\n\na"),
        (["-", "Explain:"], b"a", "Explain:\n\na"),
        (["Explain:"], b"", "Explain:"),
        (["Explain:"], b" \n\n", "Explain:"),
        ([], b"a", "a"),
    ],
    ids=["both", "a dash", "a dash before", "empty", "blank", "alone"],
)
def test_standard_input_follows_the_words(words: list[str], stdin: bytes, expected: str, ask: Ask, wire: Wire) -> None:
    assert ask(*words, stdin=stdin) == Ran(0, "x\n", "")
    assert content(wire) == expected


def test_a_file_as_standard_input_is_sent_too(tmp_path: Path, ask: Ask, wire: Wire) -> None:
    (tmp_path / "notes.txt").write_text("a\nb\n")
    command = ["sh", "-c", 'exec "$@" <notes.txt', "sh", *COMMAND, "ask", "--base-url", wire.url, "Explain:"]
    subprocess.run(command, cwd=tmp_path, env=environment(), timeout=PATIENCE, check=True, capture_output=True)
    assert content(wire) == "Explain:\n\na\nb"


@pytest.mark.skipif(os.name == "nt", reason="needs /dev/null")
def test_a_standard_input_that_cannot_be_read_is_none(ask: Ask, wire: Wire) -> None:
    command = ["sh", "-c", 'exec "$@" 0>/dev/null', "sh", *COMMAND]  # as nohup leaves it
    assert run("ask", "--base-url", wire.url, "Hi", command=command) == Ran(0, "x\n", "")
    assert content(wire) == "Hi"


def test_a_pipe_from_which_nothing_comes_is_waited_for_and_the_command_says_so(ask: Ask, wire: Wire) -> None:
    with subprocess.Popen(
        [*COMMAND, "ask", "--base-url", wire.url, "Explain:"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        assert "waiting for the end of standard input" in said
        assert "</dev/null" in said
        assert process.communicate(b"late", timeout=PATIENCE) == (b"x\n", b"")
    assert content(wire) == "Explain:\n\nlate"


def test_the_system_message_and_the_options_are_sent(ask: Ask, wire: Wire) -> None:
    options = ["-o", "temperature=0.2", "-o", 'stop=["a", "b"]', "-o", "user=me", "--option", "seed=null"]
    assert ask("Hi", "-s", "Be brief.", *options).code == 0
    assert messages(wire) == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    sent = wire.requests[-1].json
    assert (sent["temperature"], sent["stop"], sent["user"]) == (0.2, ["a", "b"], "me")
    assert "seed" not in sent


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("temperature", "'temperature' is not NAME=VALUE, as in temperature=0.2"),
        ("=1", "'=1' is not NAME=VALUE"),
        ("timeout=5", "'timeout' is a setting of this program"),
        ("model=x", "'model' is no option of a question"),
    ],
)
def test_an_option_that_is_none_is_wrong_usage_and_nothing_is_sent(
    option: str, says: str, ask: Ask, wire: Wire
) -> None:
    ran = ask("Hi", "-o", option)
    assert (ran.code, ran.out) == (2, "")
    assert says in " ".join(ran.err.split())
    assert wire.requests == []


def test_images_and_texts_are_attached(tmp_path: Path, ask: Ask, wire: Wire) -> None:
    (tmp_path / "a.gif").write_bytes(GIF)
    (tmp_path / "notes.md").write_text("Some `code`:\n```\nx\n```\n")
    files = ["-a", str(tmp_path / "notes.md"), "--attach", str(tmp_path / "a.gif")]
    assert ask("Explain:", *files, stdin=b"piped").code == 0
    text = "Explain:\n\npiped\n\nnotes.md:\n````\nSome `code`:\n```\nx\n```\n````"
    assert content(wire) == [{"type": "text", "text": text}, image(GIF)]


def test_a_text_alone_is_sent_as_text_which_every_protocol_knows(tmp_path: Path, ask: Ask, wire: Wire) -> None:
    (tmp_path / "notes.txt").write_bytes("Grüße\n".encode("utf-16"))
    assert ask("-a", str(tmp_path / "notes.txt")).code == 0
    assert content(wire) == "notes.txt:\n```\nGrüße\n```"


def test_an_image_can_come_from_standard_input(ask: Ask, wire: Wire) -> None:
    assert ask("What is this?", "-a", "-", stdin=GIF).code == 0
    assert content(wire) == [{"type": "text", "text": "What is this?"}, image(GIF)]


def test_what_is_neither_image_nor_text_is_wrong_usage(tmp_path: Path, ask: Ask, wire: Wire) -> None:
    for data in (b"\x7fELF\0\0", b"caf\xe9"):
        (tmp_path / "file").write_bytes(data)
        ran = ask("Hi", "-a", str(tmp_path / "file"))
        assert ran.code == 2
        assert "neither an image nor text in UTF-8" in ran.err
    ran = ask("Hi", "-a", str(tmp_path / "none"))
    assert (ran.code, ran.complaint) == (1, f"berlin-chat: {tmp_path / 'none'}: No such file or directory\n")
    assert wire.requests == []


def test_a_protocol_without_images_says_so_in_the_commands_words(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(GIF)
    ran = run("ask", "-p", "h2o", "--base-url", "http://127.0.0.1:9", "Hi", "-a", str(tmp_path / "a.gif"))
    assert ran.code == 1
    assert "takes no image: see --attach" in ran.complaint


# How the reply is shown


def events(*deltas: dict[str, Any], finish: str = "stop") -> Any:
    """A script that streams these deltas, a usage, and the end."""

    def script(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, "text/event-stream", b"")
        for delta in (*deltas, {}):
            reason = None if delta else finish
            chunk = {"model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            body.part(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        body.part(b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\ndata: [DONE]\n\n')
        body.end()

    return script


CALL = {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]}


def test_json_is_one_object_with_all_that_is_known(ask: Ask, wire: Wire) -> None:
    wire.on(*YLOKH.route, events({"reasoning_content": "Hm."}, {"content": "Grüße "}, {"content": "**x**"}, CALL))
    ran = ask("Hi", "--json")
    assert ran.code == 0
    told = json.loads(ran.out)
    assert told["text"] == "Grüße **x**"
    assert "Grüße" in ran.out
    assert (told["provider"], told["model"], told["finish_reason"]) == ("openai", "m-1", "stop")
    assert (told["usage"], told["reasoning"]) == ({"total_tokens": 3}, "Hm.")
    assert told["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert 0 < told["first_piece_seconds"] <= told["seconds"]


def test_extract_prints_the_first_code_block_alone(ask: Ask, wire: Wire) -> None:
    code = "def f():\n    return 1\n"
    wire.on(*YLOKH.route, events({"content": f"Here:\n\n```python\n{code}```\n\nAnd:\n```\nno\n```\n"}))
    assert ask("Hi", "--extract") == Ran(0, code, "")
    nested = f"1. Like so:\n   ~~~\n   {code.replace(chr(10), chr(10) + '   ').rstrip()}\n   ~~~\n"
    wire.on(*YLOKH.route, events({"content": nested}))
    assert ask("Hi", "-x") == Ran(0, code, "")


def test_extract_without_a_code_block_fails_and_shows_the_reply_elsewhere(ask: Ask, wire: Wire) -> None:
    wire.on(*YLOKH.route, events({"content": "Only words."}))
    ran = ask("Hi", "--extract")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == ["Only words.", "berlin-chat: the reply has no code block: all of it stands above"]


def test_a_pipe_gets_the_text_as_it_is(ask: Ask, wire: Wire) -> None:
    wire.on(*YLOKH.route, events({"reasoning_content": "Hm."}, {"content": "# Title\n\n**bold**"}))
    assert ask("Hi") == Ran(0, "# Title\n\n**bold**\n", "")


# What is said of it


@pytest.mark.parametrize(
    ("deltas", "finish", "out", "says"),
    [
        ([{"content": "Half"}], "length", "Half\n", "the reply is cut off: it has reached the limit of tokens"),
        ([{"content": "Half"}], "content_filter", "Half\n", "cut off by the server's content filter"),
        ([CALL], "tool_calls", "", 'the model only calls tools: weather({"city": "Rome"})'),
        ([{"content": "I look."}, CALL], "tool_calls", "I look.\n", "the model calls tools: weather("),
        ([{"refusal": "I will not."}], "stop", "", "the model refused: I will not."),
        ([{"reasoning_content": "Hm."}], "stop", "", "the reply has no text, only reasoning"),
    ],
    ids=["length", "filter", "tools alone", "tools and text", "refusal", "reasoning"],
)
def test_what_cannot_be_seen_in_the_text_is_said_on_standard_error(
    deltas: list[dict[str, Any]], finish: str, out: str, says: str, ask: Ask, wire: Wire
) -> None:
    wire.on(*YLOKH.route, events(*deltas, finish=finish))
    ran = ask("Hi")
    assert (ran.code, ran.out) == (0, out)
    assert says in ran.complaint


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        (["--timeout", "0.2"], {}, "See --timeout"),
        (["--proxy", "http://127.0.0.1:1"], {}, "See --proxy and the environment"),
        (["-p", "ylokh"], {"BERLIN_CHAT_API_KEY": "ä"}, "BERLIN_CHAT_API_KEY holds"),
    ],
)
def test_errors_name_the_commands_options(
    arguments: list[str], variables: dict[str, str], says: str, ask: Ask, wire: Wire
) -> None:
    wire.on(*YLOKH.route, lambda request, connection: connection.wait_until_client_closes())
    ran = ask("Hi", *arguments, **variables)
    assert (ran.code, ran.out) == (1, "")
    assert says in ran.complaint


def test_a_wrong_address_is_said_in_the_commands_words() -> None:
    ran = run("ask", "Hi", "--base-url", "http://127.0.0.1:1")
    assert ran.complaint.endswith("Is the server running? Check --base-url\n")


def test_what_the_server_says_is_not_translated(ask: Ask, wire: Wire) -> None:
    said = {"error": {"message": "base_url= is bad"}}
    wire.on(*YLOKH.route, lambda request, connection: connection.respond(400, said))
    assert "base_url= is bad" in ask("Hi").complaint


@pytest.mark.skipif(os.name == "nt", reason="sends signals to another process")
def test_ctrl_c_with_json_prints_nothing(wire: Wire) -> None:
    wire.on(*YLOKH.route, lambda request, connection: connection.wait_until_client_closes())
    with started("ask", "--base-url", wire.url, "Hi", "--json") as process:
        wait_for(lambda: wire.requests)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert not arrives(process, "{")


def half_a_reply(request: Recorded, connection: Connection) -> None:
    """Says a half, and no more."""
    body = Chunked(connection, YLOKH.kind, b"")
    body.part(YLOKH.parts(["```\nhalf\n"])[0])
    connection.close()


@pytest.mark.parametrize(
    ("option", "out", "aside"),
    [("--no-stream", HALF, ""), ("--json", "", HALF), ("--extract", "", HALF)],
)
def test_what_came_of_a_reply_that_breaks_off_is_printed(
    option: str, out: str, aside: str, ask: Ask, wire: Wire
) -> None:
    wire.on(*YLOKH.route, half_a_reply)
    ran = ask("Hi", option)
    assert (ran.code, ran.out.rstrip()) == (1, out)
    assert ran.err.startswith(f"{aside}\n" if aside else "berlin-chat: openai at")
    assert "berlin-chat: openai at" in ran.err


@pytest.mark.skipif(os.name == "nt", reason="sends signals to another process")
@pytest.mark.parametrize(("option", "stream"), [("--no-stream", "out"), ("--json", "err"), ("--extract", "err")])
def test_what_came_before_ctrl_c_is_printed(option: str, stream: str, tmp_path: Path, wire: Wire) -> None:
    begun = threading.Event()

    def begin(request: Recorded, connection: Connection) -> None:
        Chunked(connection, YLOKH.kind, b"").part(YLOKH.parts(["half"])[0])
        begun.set()
        connection.wait_until_client_closes()

    wire.on(*YLOKH.route, begin)
    history = tmp_path / "chats.db"
    with started("ask", "--base-url", wire.url, "Hi", option, BERLIN_CHAT_HISTORY=str(history)) as process:
        assert begun.wait(PATIENCE)
        wait_for(lambda: "half" in run("history", "show", BERLIN_CHAT_HISTORY=str(history)).out)
        ran = ended_by(process, "SIGINT")
    assert ran.code == 130
    assert "half" in getattr(ran, stream)
    assert stream == "out" or ran.out == ""


def test_control_characters_of_a_server_are_made_visible(tmp_path: Path, ask: Ask, wire: Wire) -> None:
    bad = "a\x1b[31mb\x07\x9bc"
    shown = "a␛[31mb␇\ufffdc"
    wire.on(*YLOKH.route, lambda request, connection: connection.respond(400, {"error": {"message": bad}}))
    assert shown in ask("Hi").complaint
    wire.on(*YLOKH.route, events({"content": "x"}, {"refusal": bad}))
    assert f"the model refused: {shown}" in ask("Hi").complaint
    wire.on(*YLOKH.route, events({"content": bad}))
    assert ask("Hi", "--raw").out == f"{bad}\n", "the text itself, in a pipe"
    assert ask("Hi", "--extract").err.startswith(f"{shown}\n")
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, {"data": [{"id": bad}]}))
    assert run("models", "--base-url", wire.url).out == f"{shown}\n"
    kept = {"BERLIN_CHAT_HISTORY": str(tmp_path / "chats.db")}
    assert ask(bad, **kept).code == 0
    assert shown in run("history", "list", **kept).out


#: Arguments of the library, as its errors write them.
ARGUMENT = re.compile(r"\b(base_url|timeout|proxy|verify|api_key|token|account|password|headers|login_fields|end)=")


def advice_of_the_library() -> list[str]:
    """Every text in the library that names an argument as its callers write it."""
    found = []
    for folder in (".", "http", "providers", "conversations"):
        for path in sorted((ROOT / "berlin_chat" / folder).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            inside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
            for node in ast.walk(tree):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                texts = [part.value if isinstance(part, ast.Constant) else "some" for part in parts]
                if id(node) not in inside and all(isinstance(text, str) for text in texts):
                    inside.update(map(id, parts))
                    found += ["".join(texts)] if ARGUMENT.search("".join(texts)) else []
    return found


@pytest.mark.parametrize("text", advice_of_the_library())
def test_no_advice_names_an_argument_of_python(text: str) -> None:
    told = in_the_commands_words(ChatError("it failed", advice=text))
    assert not ARGUMENT.search(told) or "library" in told
