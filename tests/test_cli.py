"""The command ``berlin-chat``, as a person and a shell meet it: real processes, signals, pipes and terminals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from berlin_chat import AuthenticationError, ChatError, H2o, Provider, Ylokh, __version__, get_provider
from berlin_chat.server import LocalServer
from berlin_chat.server.echo import PREFACE
from command import AT_ONCE, COMMAND, ROOT, Ran, arrives, ended, ended_by, environment, run, started, without
from wire import BERLIN, H2O, PATIENCE, YLOKH, Chunked, Connection, Recorded, Speech, Wire, speak, wait_for

NAMES = ["berlin", "ylokh", "h2o", "acytoo", "openai"]
#: What Berlin's login needs; a server without a password takes any.
ACCOUNT = {"BERLIN_CHAT_ACCOUNT": "me", "BERLIN_CHAT_PASSWORD": "hunter2-secret"}
NOTICE = "berlin-chat: no address is configured, so this process answers itself"

with_signals = pytest.mark.skipif(os.name == "nt", reason="sends signals to another process")
ENDINGS = [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)]


# Servers


class WordByWord:
    """An upstream that says each word only when the test lets it."""

    def __init__(self) -> None:
        self.words: tuple[str, ...] = ("one ", "two ", "three")
        self.asked = threading.Event()
        self.models: list[str | None] = []
        self._permits = threading.Semaphore(0)

    def stream(self, messages: Any, model: str | None = None, **options: Any) -> Iterator[str]:
        self.models.append(model)
        self.asked.set()
        for word in self.words:
            assert self._permits.acquire(timeout=PATIENCE)
            yield word

    def say(self, words: int = 1) -> None:
        for _ in range(words):
            self._permits.release()


@pytest.fixture
def upstream() -> WordByWord:
    return WordByWord()


@pytest.fixture
def server(upstream: WordByWord) -> Iterator[LocalServer]:
    """A server in the test's process, with ``upstream`` behind it."""
    with LocalServer(upstream=upstream) as running:
        yield running
        upstream.say(100)  # lest a reply that nobody reads keeps the end waiting


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port that refuses connections, for as long as the test lasts."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def serving(*arguments: str, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """``berlin-chat serve`` on a free port: the process, the address that it printed, and the line with it."""
    with started("serve", "--port", "0", *arguments, **more) as process:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        found = re.search(r"http://\S+", line)
        assert found, line + process.stderr.read().decode()
        yield process, found.group(), line


def client(name: str, url: str) -> Provider:
    config = {"account": "me", "password": "any"} if name == "berlin" else {}
    return get_provider(name, base_url=url, retries=0, **config)


def credentials(speech: Speech) -> dict[str, str]:
    return {f"BERLIN_CHAT_{name.upper()}": value for name, value in speech.config.items()}


def answers(wire: Wire, speech: Speech, pieces: list[str]) -> None:
    """Makes the wire a server that says the pieces."""
    wire.routes[:] = [*speech.before, (*speech.route, speak(speech, pieces))]


def silence(request: Recorded, connection: Connection) -> None:
    connection.wait_until_client_closes()


# ask, without any server


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("proxy", [False, True], ids=["", "a dead proxy in the environment"])
def test_without_an_address_the_process_answers_itself_and_says_so_in_one_line(
    name: str, proxy: bool, dead_port: int
) -> None:
    variables = ("HTTP_PROXY", "http_proxy", "ALL_PROXY") if proxy else ()
    address = f"http://127.0.0.1:{dead_port}"
    ran = run("ask", "-p", name, "Why is the sky blue?", **dict.fromkeys(variables, address))
    assert ran.code == 0
    assert ran.out == f"{PREFACE}Why is the sky blue?\n"
    assert ran.complaint.startswith(NOTICE)


def test_a_provider_of_another_package_is_known_but_not_answered_for(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "from berlin_chat import Provider\n"
        "class Theirs(Provider):\n"
        "    name = 'theirs'\n"
        "    needs = 'patience'\n"
        "    def payload(self, messages, model, options): return {}\n"
    )
    about = tmp_path / "theirs-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[berlin_chat.providers]\ntheirs = theirs:Theirs\n")
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    assert re.search(r"^theirs +none +no +patience$", run("providers", PYTHONPATH=path).out, re.MULTILINE)
    ran = run("ask", "-p", "theirs", "Hi", PYTHONPATH=path)
    assert (ran.code, ran.out) == (1, "")
    assert "BERLIN_CHAT_THEIRS_URL" in ran.complaint


# The prompt


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["Why is it so?"], b""),
        (["Why", "is", "it", "so?"], b""),
        ([], b"Why is it so?"),
        (["-"], b"Why is it so?\n"),
        ([], b"\xef\xbb\xbfWhy is it so?\r\n"),
    ],
    ids=["one word", "several words", "standard input", "a dash and a line end", "a BOM"],
)
def test_the_prompt_comes_from_the_arguments_or_from_standard_input(arguments: list[str], stdin: bytes) -> None:
    assert run("ask", *arguments, stdin=stdin).out == f"{PREFACE}Why is it so?\n"


def test_a_prompt_of_many_lines_arrives_as_it_is() -> None:
    assert run("ask", stdin=b"\n  two\n\n  lines\n").out == f"{PREFACE}\n  two\n\n  lines\n"


@pytest.mark.parametrize(
    ("settings", "encoding"),
    [
        ({"LC_ALL": "C"}, "utf-8"),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "ascii"),
        ({"PYTHONIOENCODING": "ascii:strict"}, "ascii"),
    ],
    ids=["the C locale", "ASCII alone", "ASCII on the pipes"],
)
def test_text_beyond_ascii_reaches_the_server_whatever_the_locale(
    settings: dict[str, str], encoding: str, wire: Wire
) -> None:
    text = "Почему небо синее? 😀"
    answers(wire, YLOKH, [text, " é"])
    for arguments, stdin in (([text.encode()], b""), ([], text.encode())):
        ran = run("ask", "-p", "ylokh", "--base-url", wire.url, *arguments, stdin=stdin, **settings)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out == f"{text} é\n".encode(encoding, "replace").decode(encoding)
        assert wire.requests.pop().json["messages"] == [{"role": "user", "content": text}]


def test_bytes_that_are_no_text_do_not_keep_the_rest_from_being_asked() -> None:
    assert run("ask", stdin=b"caf\xe9").out == f"{PREFACE}caf\N{REPLACEMENT CHARACTER}\n"
    if os.name != "nt":
        assert run("ask", b"caf\xe9").out == f"{PREFACE}caf\N{REPLACEMENT CHARACTER}\n"


# The reply


@pytest.mark.parametrize("name", NAMES)
def test_each_piece_reaches_the_pipe_before_the_next_one_is_said(
    name: str, upstream: WordByWord, server: LocalServer
) -> None:
    with started("ask", "-p", name, "--base-url", server.url, "Hi", **ACCOUNT) as process:
        for word in upstream.words:
            upstream.say()
            assert arrives(process, word)
        assert ended(process) == Ran(0, "\n", "")


def test_with_no_stream_the_reply_comes_at_its_end_as_far_as_it_came(wire: Wire) -> None:
    answers(wire, H2O, ["one ", "two"])
    arguments = ("ask", "-p", "h2o", "--base-url", wire.url, "--no-stream", "Hi")
    assert run(*arguments) == Ran(0, "one two\n", "")
    wire.on(*H2O.route, cut_after_two_pieces(H2O))
    ran = run(*arguments)
    assert (ran.code, ran.out) == (1, "one two\n")
    assert "cut in the middle" in ran.complaint


def test_a_reply_that_ends_its_line_gets_no_empty_line(wire: Wire) -> None:
    answers(wire, YLOKH, ["one\n", "two\n"])
    assert run("ask", "-p", "ylokh", "--base-url", wire.url, "Hi").out == "one\ntwo\n"


# What the options and the environment do to the request


@pytest.mark.parametrize("speech", [BERLIN, YLOKH, H2O], ids=lambda speech: speech.name)  # Acytoo has but one
def test_the_model_reaches_the_request(wire: Wire, speech: Speech) -> None:
    answers(wire, speech, ["x"])
    ran = run("ask", "-p", speech.name, "-m", "llama3", "--base-url", wire.url, "Hi", **credentials(speech))
    assert (ran.code, ran.out) == (0, "x\n")
    said = {
        "berlin": lambda: wire.asked(*speech.route)[0].json["options"]["model"],
        "ylokh": lambda: wire.asked(*speech.route)[0].json["model"],
        "h2o": lambda: wire.asked("POST", "/conversation")[0].json["model"],
    }
    assert said[speech.name]() == "llama3"


def test_the_proxy_gets_the_request(wire: Wire) -> None:
    wire.on("POST", "http://model.example:8080/v1/chat/completions", speak(YLOKH, ["x"]))
    arguments = ("ask", "-p", "ylokh", "--base-url", "http://model.example:8080", "Hi")
    assert run(*arguments, "--proxy", wire.url) == Ran(0, "x\n", "")
    assert run(*arguments, HTTP_PROXY=wire.url, http_proxy=wire.url) == Ran(0, "x\n", "")


def test_the_timeout_ends_a_silent_server(wire: Wire) -> None:
    wire.on(*YLOKH.route, silence)
    ran = run("ask", "-p", "ylokh", "--base-url", wire.url, "--timeout", "0.2", "Hi")
    assert (ran.code, ran.out) == (1, "")
    assert "no byte for 0.2 s" in ran.complaint


def test_the_address_is_the_option_then_the_providers_variable_then_the_common_one(wire: Wire) -> None:
    for place in ("option", "own", "common"):
        wire.on("POST", rf"/{place}(?:/v1)?/chat/completions", speak(YLOKH, [place]))
    variables: dict[str, str] = {"BERLIN_CHAT_URL": f"{wire.url}/common"}
    assert run("ask", "-p", "ylokh", "Hi", **variables) == Ran(0, "common\n", "")
    variables["BERLIN_CHAT_YLOKH_URL"] = f"{wire.url}/own"
    assert run("ask", "-p", "ylokh", "Hi", **variables) == Ran(0, "own\n", "")
    option = ("--base-url", f"{wire.url}/option/v1")
    assert run("ask", "-p", "ylokh", *option, "Hi", **variables) == Ran(0, "option\n", "")


def test_credentials_come_from_the_environment(wire: Wire, speech: Speech) -> None:
    answers(wire, speech, ["x"])
    variables = {**ACCOUNT, "BERLIN_CHAT_API_KEY": "key-secret", "BERLIN_CHAT_URL": wire.url}
    assert run("ask", "-p", speech.name, "Hi", **variables) == Ran(0, "x\n", "")
    sent = wire.asked(*speech.route)[0]
    if speech.name == "berlin":
        login = wire.asked("POST", "/api/login")[0]
        assert login.json == {"account": "me", "password": "hunter2-secret"}
    elif speech.name == "ylokh":
        assert sent.header("Authorization") == "Bearer key-secret"
    elif speech.name == "acytoo":
        assert sent.json["password"] == "hunter2-secret"
    else:
        assert b"secret" not in sent.body


def test_a_token_from_the_environment_spares_the_login(wire: Wire) -> None:
    wire.on("POST", "/api/chat/completions", lambda request, connection: connection.respond(200, {"content": "x"}))
    assert run("ask", "Hi", BERLIN_CHAT_URL=wire.url, BERLIN_CHAT_TOKEN="t-1") == Ran(0, "x\n", "")
    assert [request.header("token") for request in wire.requests] == ["t-1"]


# Signals


@with_signals
@pytest.mark.parametrize(("name", "code"), ENDINGS)
@pytest.mark.parametrize("after", [0, 1], ids=["before the first piece", "in mid-reply"])
def test_a_signal_ends_the_command_at_once_and_leaves_no_conversation(
    name: str, code: int, after: int, upstream: WordByWord, server: LocalServer
) -> None:
    with started("ask", "-p", "h2o", "--base-url", server.url, "Hi") as process:
        upstream.say(after)
        assert upstream.asked.wait(PATIENCE)
        assert arrives(process, "one " * after)
        assert len(server.conversations) == 1
        ran = ended_by(process, name)
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.strip() == ""
    assert server.conversations == []


@with_signals
@pytest.mark.parametrize("name", ["berlin", "ylokh", "acytoo"])
def test_ctrl_c_ends_each_provider_at_once(name: str, upstream: WordByWord, server: LocalServer) -> None:
    with started("ask", "-p", name, "--base-url", server.url, "Hi", **ACCOUNT) as process:
        upstream.say()
        assert arrives(process, "one ")
        assert ended_by(process, "SIGINT").code == 130


@with_signals
def test_ctrl_c_while_the_whole_reply_is_awaited_leaves_no_conversation(
    upstream: WordByWord, server: LocalServer
) -> None:
    with started("ask", "-p", "h2o", "--base-url", server.url, "--no-stream", "Hi") as process:
        upstream.say()
        assert upstream.asked.wait(PATIENCE)
        ran = ended_by(process, "SIGINT")
    assert (ran.code, ran.out) == (130, "")
    assert server.conversations == []


@with_signals
def test_ctrl_c_ends_the_command_with_its_own_server_at_once(wire: Wire) -> None:
    """The command's request to its own server is caught on the way, by a proxy that does not answer."""
    caught = threading.Event()

    def catch(request: Recorded, connection: Connection) -> None:
        caught.set()
        connection.wait_until_client_closes()

    wire.on("POST", "http://127.0.0.1:.*", catch)
    with started("ask", "-p", "h2o", "--proxy", wire.url, "Hi") as process:
        assert caught.wait(PATIENCE)
        ran = ended_by(process, "SIGINT")
    assert ran.code == 130
    assert ran.err.startswith(NOTICE)


@with_signals
@pytest.mark.parametrize(("name", "code"), ENDINGS[:2])
def test_a_signal_ends_a_command_whose_reader_has_stopped_reading(
    name: str, code: int, upstream: WordByWord, server: LocalServer
) -> None:
    upstream.words = ("word " * 100_000,)  # more than a pipe holds
    with started("ask", "-p", "h2o", "--base-url", server.url, "Hi") as process:
        upstream.say()
        assert arrives(process, "word")
        sent = time.monotonic()
        process.send_signal(getattr(signal, name))
        assert process.wait(PATIENCE) == code
        assert time.monotonic() - sent < AT_ONCE
        assert server.conversations == []


# Standard output and standard input that are not what they should be


def test_a_reader_that_goes_away_ends_the_command_quietly_and_leaves_no_conversation(
    upstream: WordByWord, server: LocalServer
) -> None:
    with started("ask", "-p", "h2o", "--base-url", server.url, "Hi") as process:
        upstream.say()
        assert arrives(process, "o")
        assert process.stdout is not None
        process.stdout.close()
        upstream.say()
        ran = ended(process)
    assert (ran.code, ran.err) == (141, "")
    assert server.conversations == []


def test_a_reader_that_goes_away_ends_the_command_with_its_own_server() -> None:
    with started("ask", "-p", "h2o", "word " * 20_000) as process:  # more than a pipe holds
        assert arrives(process, PREFACE[:1])
        assert process.stdout is not None
        process.stdout.close()
        ran = ended(process)
    assert ran.code == 141
    assert ran.complaint.startswith(NOTICE)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(wire: Wire) -> None:
    answers(wire, YLOKH, ["x"])
    for arguments in ("ask", "-p", "ylokh", "--base-url", wire.url, "Hi"), ("providers",):
        ran = run(*arguments, command=["sh", "-c", 'exec "$@" >/dev/full', "sh", *COMMAND])
        assert ran == Ran(1, "", "berlin-chat: No space left on device\n")


@pytest.mark.skipif(not shutil.which("sh"), reason="needs a shell")
def test_closed_standard_streams_are_no_catastrophe() -> None:
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND]
    assert run("ask", "Hi", command=shell).code == 0
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND]
    assert run("ask", "Hi", command=shell).out == f"{PREFACE}Hi\n"
    ran = run("ask", command=shell)
    assert ran.code == 2
    assert "there is no prompt" in ran.err


# A terminal


class Terminal:
    """A command on a terminal of its own, 80 columns wide."""

    def __init__(self, *arguments: str, **more: str) -> None:
        pty = pytest.importorskip("pty")
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environment(COLUMNS="80", **more),
        )
        os.close(theirs)
        self._watchdog = threading.Timer(PATIENCE, self.process.kill)
        self._watchdog.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self._watchdog.join()
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def read_to(self, text: str = "") -> str:
        """What is shown until a text has been shown, or else until the command has ended."""
        shown = ""
        while not text or text not in shown:
            try:
                data = os.read(self._ours, 4096)
            except OSError:  # how Linux says that nobody has the other side any more
                break
            if not data:
                break
            shown += data.decode()
        return shown.replace("\r\n", "\n")

    def code(self) -> int:
        return self.process.wait(PATIENCE)

    def modes(self) -> int:
        """The terminal's local modes, such as whether it shows what is typed."""
        termios = pytest.importorskip("termios")
        return int(termios.tcgetattr(self._ours)[3])


def test_no_prompt_on_a_terminal_is_wrong_usage() -> None:
    with Terminal("ask") as terminal:
        assert "there is no prompt: give one" in terminal.read_to()
        assert terminal.code() == 2


@with_signals
def test_ctrl_c_on_a_terminal_ends_the_line_and_adds_none(upstream: WordByWord, server: LocalServer) -> None:
    with Terminal("ask", "--raw", "-p", "h2o", "--base-url", server.url, "Hi") as terminal:
        upstream.say()
        assert terminal.read_to("one ") == "one "
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.read_to() == "\n"
        assert terminal.code() == 130
    with Terminal("ask", "--raw", "-p", "h2o", "--base-url", server.url, "Hi") as terminal:
        upstream.asked.clear()
        assert upstream.asked.wait(PATIENCE)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.read_to() == "\n"  # after the ^C that a terminal shows
        assert terminal.code() == 130
    assert server.conversations == []


@with_signals
def test_a_signal_at_the_prompt_of_a_chat_leaves_the_terminal_as_it_was(server: LocalServer) -> None:
    termios = pytest.importorskip("termios")
    with Terminal("chat", "--base-url", server.url) as terminal:
        before = terminal.modes()
        terminal.read_to("Ctrl-D leaves.")
        wait_for(lambda: terminal.modes() != before)
        terminal.process.send_signal(signal.SIGTERM)
        terminal.read_to()
        assert terminal.code() == 143
        assert terminal.modes() == before
    assert termios.ICANON & before


def test_the_table_fits_a_terminal() -> None:
    with Terminal("providers", BERLIN_CHAT_URL="http://127.0.0.1:8080") as terminal:
        shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.read_to())
        assert terminal.code() == 0
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["name", *NAMES]


# What goes wrong


def cut_after_two_pieces(speech: Speech) -> Any:
    def script(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, speech.kind, b"")
        for part in speech.parts(["one ", "two", "never"])[:2]:
            body.part(part)
        connection.close()

    return script


def test_a_cut_reply_keeps_its_text_and_says_so_in_one_line(wire: Wire, speech: Speech) -> None:
    wire.routes[:] = [*speech.before, (*speech.route, cut_after_two_pieces(speech))]
    ran = run("ask", "-p", speech.name, "--base-url", wire.url, "Hi", **credentials(speech))
    assert (ran.code, ran.out) == (1, "one two\n")
    assert ran.complaint.startswith(f"berlin-chat: {speech.name} at {wire.url}")


def test_a_refused_connection_is_one_line(dead_port: int) -> None:
    ran = run("ask", "-p", "h2o", "--base-url", f"http://127.0.0.1:{dead_port}", "Hi")
    assert (ran.code, ran.out) == (1, "")
    assert "Is the server running?" in ran.complaint


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b'{"error": {"message": "no such key"}}', "no such key. Check BERLIN_CHAT_API_KEY"),
        (404, b"<html><p>Not\nfound</p></html>", "404 Status. Check --base-url and -m"),
        (400, b"first line\nsecond line\r\n\tthird", "first line second line third"),
    ],
)
def test_an_error_of_the_server_is_one_line(status: int, body: bytes, says: str, wire: Wire) -> None:
    wire.on(*YLOKH.route, lambda request, connection: connection.respond(status, body))
    ran = run("ask", "-p", "ylokh", "--base-url", wire.url, "Hi", BERLIN_CHAT_API_KEY="key-secret")
    assert (ran.code, ran.out) == (1, "")
    assert ran.complaint.endswith(f"{says}\n")
    assert "secret" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        (["ask", "--base-url", "localhost:8080", "Hi"], {}, "--base-url must look like http"),
        (["ask", "Hi"], {"BERLIN_CHAT_URL": "nonsense"}, "BERLIN_CHAT_URL must look like http"),
        (["ask", "--proxy", "nonsense", "Hi"], {}, "--proxy must look like http"),
        (["ask", "-p", "berlin", "--base-url", "http://127.0.0.1:9", "Hi"], {}, "no account: set BERLIN_CHAT_ACCOUNT"),
        (["providers"], {"BERLIN_CHAT_H2O_URL": "nonsense"}, "BERLIN_CHAT_H2O_URL must look like http"),
        (["serve", "--port", "0", "--upstream", "nonsense"], {}, "must look like http"),
        (["serve", "--port", "0", "--host", "0.0.0.0"], {}, "give a password"),
        (
            ["serve", "--port", "0", "--host", "192.0.2.1", "--password", "x"],
            {},
            "cannot listen on 192.0.2.1",
        ),
    ],
    ids=["address", "variable", "proxy", "account", "table", "upstream", "open host", "foreign host"],
)
def test_a_wrong_configuration_is_one_line(arguments: list[str], variables: dict[str, str], says: str) -> None:
    ran = run(*arguments, **variables)
    assert (ran.code, ran.out) == (1, "")
    assert ran.complaint.startswith("berlin-chat: ")
    assert says in ran.complaint


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask", "-p", "nope", "Hi"], "choose from berlin, ylokh, h2o, acytoo"),
        (["ask", "--nope", "Hi"], "--nope"),
        (["ask"], "there is no prompt"),
        (["ask", " "], "there is no prompt"),
        (["ask", "--timeout", "0", "Hi"], "--timeout"),
        (["serve", "--port", "65536"], "--port"),
        (["serve", "--delay", "-1"], "--delay"),
        (["nope"], "nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], says: str) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [("click", ["ask", "Hi"], "cli"), ("cheroot", ["ask", "Hi"], "server"), ("rich", ["providers"], "cli")],
    ids=["click", "cheroot", "rich"],
)
def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    module: str, arguments: list[str], extra: str
) -> None:
    ran = run(*arguments, command=without(module))
    assert (ran.code, ran.out) == (1, "")
    where = "berlin_chat" if module == "click" else ROOT  # in a copy of the repository it is that copy
    assert f"pip install '{where}[{extra}]'" in ran.complaint


def test_with_an_address_no_server_is_needed(wire: Wire) -> None:
    answers(wire, YLOKH, ["x"])
    arguments = ("ask", "-p", "ylokh", "--base-url", wire.url, "Hi")
    assert run(*arguments, command=without("cheroot")) == Ran(0, "x\n", "")


# providers


def table(**variables: str) -> list[list[str]]:
    """The table's rows below the heading."""
    ran = run("providers", **variables)
    assert (ran.code, ran.err) == (0, "")
    heading, *lines = ran.out.splitlines()
    assert re.split(" {2,}", heading) == ["name", "address in use", "working", "needs"]
    return [re.split(" {2,}", line) for line in lines]


def test_the_table_shows_what_each_provider_needs_a_line_each() -> None:
    rows = table()
    assert [row[0] for row in rows] == NAMES
    assert {tuple(row[1:3]) for row in rows} == {("none: ask answers itself", "no")}
    assert "account and password" in rows[0][3]
    assert "API key" in rows[1][3]


def test_the_table_shows_the_addresses_in_use() -> None:
    rows = table(BERLIN_CHAT_URL="http://[fe80::1]:8080", BERLIN_CHAT_H2O_URL="http://127.0.0.1:3000/")
    common = ["http://[fe80::1]:8080", "yes"]
    assert [row[1:3] for row in rows] == [common, common, ["http://127.0.0.1:3000", "yes"], common, common]


# serve


@with_signals
def test_serve_prints_its_address_answers_all_four_and_ends_with_ctrl_c() -> None:
    with serving() as (process, url, line):
        assert line.startswith("berlin-chat: serving openai, berlin, ylokh, h2o and acytoo at http://127.0.0.1:")
        assert "an echo answers, no model" in line
        for name in NAMES:
            with client(name, url) as provider:
                assert provider.ask("Hi") == f"{PREFACE}Hi"
        ran = ended_by(process, "SIGINT")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")


@with_signals
@pytest.mark.parametrize(("name", "code"), ENDINGS[:2])
def test_serve_ends_at_once_in_the_middle_of_a_reply(name: str, code: int) -> None:
    with serving("--delay", "0.2") as (process, url, _), H2o(base_url=url, retries=0) as provider:
        pieces = provider.stream("Hi")
        assert next(pieces) == "This"
        ran = ended_by(process, name)
        with pytest.raises(ChatError):
            list(pieces)
    assert (ran.code, ran.out, ran.err.strip()) == (code, "", "")


def test_serve_waits_before_each_piece_if_told_to() -> None:
    with serving("--delay", "0.02") as (_, url, _), client("acytoo", url) as provider:
        asked = time.monotonic()
        words = provider.ask("Hi").split()
        assert time.monotonic() - asked >= 0.02 * len(words)


@with_signals
def test_ask_and_serve_understand_each_other() -> None:
    with serving("--delay", "0.05") as (_, url, _):
        with started("ask", "-p", "h2o", "--base-url", url, "Hi") as process:
            assert arrives(process, "This is")
            assert ended_by(process, "SIGINT").code == 130
        assert run("ask", "-p", "h2o", "--base-url", url, "Hi") == Ran(0, f"{PREFACE}Hi\n", "")


def test_serve_on_a_port_in_use_is_one_line(wire: Wire) -> None:
    port = wire.url.rpartition(":")[2]
    ran = run("serve", "--port", port)
    assert (ran.code, ran.out) == (1, "")
    assert ran.complaint == f"berlin-chat: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize("way", ["option", "variable"])
def test_serve_for_other_machines_asks_each_client_for_the_password(way: str) -> None:
    arguments = ["--host", "0.0.0.0"] + (["--password", "open-sesame"] if way == "option" else [])
    variables = {"BERLIN_CHAT_SERVER_PASSWORD": "open-sesame"} if way == "variable" else {}
    with serving(*arguments, **variables) as (_, url, line):
        assert "open-sesame" not in line
        with Ylokh(base_url=url, api_key="open-sesame", retries=0) as let_in:
            assert let_in.ask("Hi") == f"{PREFACE}Hi"
        with Ylokh(base_url=url, api_key="wrong", retries=0) as stranger, pytest.raises(AuthenticationError):
            stranger.ask("Hi")


def test_serve_lets_another_server_answer(upstream: WordByWord, server: LocalServer) -> None:
    upstream.say(100)
    with ExitStack() as stack:
        arguments = ("--upstream", f"{server.url}/v1", "-m", "llama3")
        _, url, line = stack.enter_context(serving(*arguments, BERLIN_CHAT_API_KEY="key-secret"))
        assert f"{server.url}/v1 answers" in line
        for name in NAMES:
            provider = stack.enter_context(client(name, url))
            assert provider.ask("Hi") == "one two three"
    assert upstream.models == ["llama3"] * len(NAMES)


def test_serve_says_what_its_upstream_says(wire: Wire) -> None:
    wire.on(*YLOKH.route, lambda request, connection: connection.respond(401, {"error": "no such key"}))
    with serving("--upstream", wire.url, BERLIN_CHAT_API_KEY="key-secret") as (_, url, _):
        ran = run("ask", "-p", "h2o", "--base-url", url, "Hi")
    assert ran.code == 1
    assert "no such key" in ran.complaint
    assert wire.requests[0].header("Authorization") == "Bearer key-secret"
    assert "allow_fallback" not in wire.requests[0].json, "a server need not know it"


# Help


def test_without_a_command_there_is_help() -> None:
    ran = run()  # click 8.1 prints it on standard output, 8.2 on standard error
    assert "Usage: berlin-chat [OPTIONS] COMMAND" in ran.out + ran.err


def test_the_version() -> None:
    assert run("--version") == Ran(0, f"berlin-chat, version {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--help"], ["ask", "batch", "providers", "serve", "BERLIN_CHAT_ACCOUNT", "BERLIN_CHAT_API_KEY"]),
        (["ask", "-h"], ["--provider", "--model", "--base-url", "--proxy", "--timeout", "--no-stream"]),
        (["serve", "--help"], ["--host", "--port", "--upstream", "--model", "--delay", "--password"]),
        (["batch", "--help"], ["--output", "--encoding", "--option", "--errors", "--ask-anew", "--dry-run", "--model"]),
        (["providers", "--help"], ["List the providers"]),
    ],
    ids=["all", "ask", "serve", "batch", "providers"],
)
def test_help_names_every_option(arguments: list[str], says: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert [word for word in says if word not in ran.out] == []
    assert max(map(len, ran.out.splitlines())) <= 80
