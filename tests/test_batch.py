"""``berlin-chat batch``: its input, its output, going on after an interruption, and its bar."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from berlin_chat.batch.files import Prompts
from berlin_chat.server import LocalServer
from test_pool import prompt_of, repeating
from wire import PATIENCE, YLOKH, Connection, Recorded, Wire

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "berlin_chat", "batch", *arguments]


@pytest.fixture
def run(wire: Wire, here: Path) -> Run:
    """Runs the command against a server that says each prompt back."""
    wire.on(*YLOKH.route, repeating(YLOKH))

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        line = command(*arguments, "-p", "ylokh", "--base-url", wire.url)
        return subprocess.run(line, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    return run


def written(path: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return sorted(lines, key=lambda line: line.get("index", line.get("custom_id")))


def test_a_text_file_has_one_prompt_a_line(run: Run, here: Path) -> None:
    (here / "in.txt").write_text("one\n\n two ы \r\nthree", encoding="utf-8")
    result = run("in.txt", "-o", "out.jsonl")
    assert (result.returncode, result.stdout) == (0, "")
    assert "3 answers are in out.jsonl" in result.stderr
    assert [line["reply"] for line in written("out.jsonl")] == ["one", " two ы ", "three"]


@pytest.mark.parametrize(
    ("content", "arguments", "expected"),
    [
        ("prompt,id\nq0,1\nq1,2\n", [], ["q0", "q1"]),
        ("id,prompt\n1,q0\n2,q1\n", [], ["q0", "q1"]),
        ("text,id\nq0,1\n", [], ["q0"]),
        ('id,text\n1,"several\nlines, ""quoted"""\n', ["--column", "text"], ['several\nlines, "quoted"']),
        ("\ufeffprompt\nq0\n", [], ["q0"]),
    ],
)
def test_a_csv_file_has_a_column_of_prompts(
    content: str, arguments: list[str], expected: list[str], run: Run, here: Path
) -> None:
    (here / "in.csv").write_text(content, encoding="utf-8")
    assert run("in.csv", "-o", "out.jsonl", *arguments).returncode == 0
    assert [line["reply"] for line in written("out.jsonl")] == expected


def test_json_lines_may_be_strings_prompts_and_messages(run: Run, here: Path) -> None:
    lines: list[Any] = [
        "q0",
        {"prompt": "q1"},
        {"messages": [{"role": "user", "content": "q2"}]},
        {"role": "user", "content": "q3"},
        [{"role": "system", "content": "s"}, {"role": "user", "content": "q4"}],
    ]
    (here / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    assert run("in.jsonl", "-o", "out.jsonl").returncode == 0
    assert [line["reply"] for line in written("out.jsonl")] == ["q0", "q1", "q2", "q3", "q4"]


def request_line(name: str, **body: Any) -> str:
    body = {"messages": [{"role": "user", "content": name}], **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})


def test_openais_request_lines_are_answered_in_the_form_of_its_output(run: Run, here: Path, wire: Wire) -> None:
    lines = [request_line("a", model="m-7", temperature=0.3, stream=True), request_line("b")]
    (here / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert run("in.jsonl", "-o", "out.jsonl", "-m", "default-model").returncode == 0
    first, second = written("out.jsonl")
    assert first.keys() == {"id", "custom_id", "response", "error"}
    assert (first["custom_id"], first["error"], first["response"]["status_code"]) == ("a", None, 200)
    body = first["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]
    assert second["custom_id"] == "b"
    asked = {prompt_of(request): request.json for request in wire.requests}
    assert (asked["a"]["model"], asked["a"]["temperature"]) == ("m-7", 0.3)
    assert asked["b"]["model"] == "default-model"


def test_openais_own_package_reads_the_output(run: Run, here: Path) -> None:
    from openai.types.chat import ChatCompletion

    (here / "in.jsonl").write_text(request_line("a"), encoding="utf-8")
    run("in.jsonl", "-o", "out.jsonl")
    (line,) = written("out.jsonl")
    completion = ChatCompletion.model_validate(line["response"]["body"])
    assert completion.choices[0].message.content == "a"


@pytest.mark.parametrize("stdin", ["q0\nq1\n", '"q0"\n"q1"\n', '{"prompt": "q0"}\n{"prompt": "q1"}\n'])
def test_prompts_come_from_standard_input_too(stdin: str, run: Run) -> None:
    result = run("-", "-o", "out.jsonl", stdin=stdin)
    assert result.returncode == 0
    assert {line["reply"].strip('"') for line in written("out.jsonl")} == {"q0", "q1"}


def test_it_goes_on_by_itself(run: Run, here: Path, wire: Wire) -> None:
    (here / "in.jsonl").write_text("\n".join(request_line(f"r{n}") for n in range(6)), encoding="utf-8")
    run("in.jsonl", "-o", "out.jsonl")
    kept = (here / "out.jsonl").read_text().splitlines(keepends=True)
    (here / "out.jsonl").write_text("".join(kept[:4]) + kept[4][:50])
    wire.requests.clear()
    assert run("in.jsonl", "-o", "out.jsonl").returncode == 0
    assert len(wire.requests) == 2
    assert [line["custom_id"] for line in written("out.jsonl")] == [f"r{n}" for n in range(6)]


def test_what_has_failed_is_told_and_asked_again(run: Run, here: Path, wire: Wire) -> None:
    def some_fail(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "bad":
            connection.respond(400, {"error": "cannot say this"})
        else:
            repeating(YLOKH)(request, connection)

    wire.on(*YLOKH.route, some_fail)
    (here / "in.txt").write_text("good\nbad\n")
    result = run("in.txt", "-o", "out.jsonl")
    assert result.returncode == 1
    assert "1 answers are in out.jsonl" in result.stderr
    assert "1 failed" in result.stderr
    assert "cannot say this" in result.stderr
    wire.on(*YLOKH.route, repeating(YLOKH))
    assert run("in.txt", "-o", "out.jsonl").returncode == 0
    assert [line["reply"] for line in written("out.jsonl")] == ["good", "bad"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("in.jsonl", '{"prompt": "a"}\n{broken\n', "line 2"),
        ("in.jsonl", '{"question": "a"}\n', "line 1"),
        ("in.jsonl", "5\n", "line 1"),
        ("in.jsonl", '"a"\n{"prompt": "b", "options": {"timeout": 5}}\n', "line 2: 'timeout' is a setting"),
        ("in.jsonl", '{"prompt": "b", "options": 5}\n', "line 1: the options are of type int"),
        ("in.jsonl", '{"prompt": "b", "model": 5}\n', "line 1: 'model' is of type int"),
        ("in.csv", "id,prompt\n1,a\n2,\n", "line 3"),
        ("in.csv", "", "column"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_wrong_input_is_named_with_its_line_before_anything_is_asked(
    name: str, content: str | None, said: str, run: Run, here: Path, wire: Wire
) -> None:
    if content is not None:
        (here / name).write_text(content)
    result = run(name, "-o", "out.jsonl")
    assert result.returncode == 1
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert wire.requests == []


def test_a_column_that_does_not_exist_is_named(run: Run, here: Path) -> None:
    (here / "in.csv").write_text("a,b\n1,2\n")
    result = run("in.csv", "-o", "out.jsonl", "--column", "c")
    assert "no column 'c': it has 'a', 'b'" in result.stderr


def test_an_output_of_other_prompts_is_refused(run: Run, here: Path) -> None:
    (here / "in.txt").write_text("one\n")
    run("in.txt", "-o", "out.jsonl")
    (here / "in.txt").write_text("two\n")
    result = run("in.txt", "-o", "out.jsonl")
    assert result.returncode == 1
    assert "belongs to other prompts" in result.stderr


@pytest.mark.parametrize("arguments", [["in.txt"], ["-o", "out.jsonl"], ["in.txt", "-o", "x", "-w", "0"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], here: Path) -> None:
    assert subprocess.run(command(*arguments), capture_output=True, timeout=60, check=False).returncode == 2


def test_a_rate_is_kept(run: Run, here: Path) -> None:
    (here / "in.txt").write_text("a\nb\nc\nd\ne\n")
    started = time.monotonic()
    assert run("in.txt", "-o", "out.jsonl", "--rate", "10/s").returncode == 0
    assert time.monotonic() - started > 0.4
    assert run("in.txt", "-o", "out2.jsonl", "--rate", "quick").returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to another process")
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(here: Path) -> None:
    (here / "in.txt").write_text("".join(f"q{n}\n" for n in range(1000)))
    with LocalServer(delay=0.005) as server:
        line = command("in.txt", "-o", "out.jsonl", "-p", "h2o", "--base-url", server.url)
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not ((here / "out.jsonl").exists() and written("out.jsonl")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert "run the same command again to go on" in told
        assert "Traceback" not in told
        done = len(written("out.jsonl"))
        assert 0 < done < 1000
        assert server.conversations == []


def read_terminal(descriptor: int, process: subprocess.Popen[bytes]) -> str:
    """All that a program writes to its terminal, until it ends."""
    shown = b""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                data = os.read(descriptor, 65536)
            except OSError:
                break
            shown += data
        elif process.poll() is not None:
            break
    return shown.decode()


def test_on_a_terminal_there_is_a_bar_with_rate_errors_and_time_left(wire: Wire, here: Path) -> None:
    def some_fail(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) == "q7":
            connection.respond(400, {"error": "no"})
        else:
            repeating(YLOKH)(request, connection)

    wire.on(*YLOKH.route, some_fail)
    (here / "in.txt").write_text("".join(f"q{n}\n" for n in range(30)))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    line = command("in.txt", "-o", "out.jsonl", "-p", "ylokh", "--base-url", wire.url, "--rate", "40/s")
    process = subprocess.Popen(line, stderr=theirs)
    os.close(theirs)
    shown = read_terminal(ours, process)
    os.close(ours)
    assert process.wait(PATIENCE) == 1
    assert "30/30" in shown
    assert "errors=1" in shown
    assert re.search(r"\d\d:\d\d<\d\d:\d\d, .*answers/s", shown), shown


def test_without_a_terminal_there_is_no_bar(run: Run, here: Path) -> None:
    (here / "in.txt").write_text("a\n")
    assert "answers/s" not in run("in.txt", "-o", "out.jsonl").stderr


def test_the_number_of_workers_may_be_found(run: Run, here: Path) -> None:
    (here / "in.txt").write_text("".join(f"q{n}\n" for n in range(50)))
    result = run("in.txt", "-o", "out.jsonl", "-w", "auto")
    assert result.returncode == 0, result.stderr
    assert [line["reply"] for line in written("out.jsonl")] == [f"q{n}" for n in range(50)]


@pytest.mark.parametrize("wrong", ["0", "many", "1.5"])
def test_a_wrong_number_of_workers_is_wrong_usage(wrong: str, run: Run, here: Path) -> None:
    result = run("in.txt", "-o", "out.jsonl", "-w", wrong)
    assert result.returncode == 2
    assert "'--workers'" in result.stderr
    assert wrong in result.stderr


def test_a_files_prompts_are_counted_and_can_be_read_twice(here: Path) -> None:
    (here / "in.txt").write_text("a\nb\n")
    prompts = Prompts("in.txt")
    assert list(prompts) == list(prompts) == ["a", "b"]
    assert prompts.__length_hint__() == 2
