"""``berlin-chat batch`` with the files that people have, and the ways in which they want their answers."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from berlin_chat import Answer, Reply, ToolCall
from berlin_chat.batch.answers import as_line
from berlin_chat.batch.outputs import BatchFormat
from berlin_chat.server import LocalServer
from model_server import ModelServer
from test_pool import prompt_of, repeating
from wire import PATIENCE, YLOKH, Connection, Recorded, Wire

Run = Callable[..., "subprocess.CompletedProcess[str]"]
COMMAND = [sys.executable, "-m", "berlin_chat", "batch"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(wire: Wire, here: Path) -> Run:
    """Runs the command, with OpenAI's protocol, against a server that says each prompt back."""
    wire.on(*YLOKH.route, repeating(YLOKH))

    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        line = [*COMMAND, *arguments, "-p", "ylokh", "--base-url", wire.url]
        done = subprocess.run(line, input=stdin, capture_output=True, timeout=60, check=False)
        assert b"Traceback" not in done.stderr
        return subprocess.CompletedProcess(line, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


def lines_of(path: str) -> list[dict[str, Any]]:
    """The objects in a file, in its order."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def replies(path: str) -> list[str]:
    return [line["reply"] for line in sorted(lines_of(path), key=lambda line: line["index"])]


# Encodings

GRUSS = "Grüße aus Köln, für 5 €\nи ещё"


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [
        ("utf-8", []),
        ("utf-8-sig", []),
        ("utf-8-sig", ["--encoding", "utf-8"]),
        ("utf-16", []),
        ("utf-16-be-with-bom", []),
        ("utf-16-le", ["--encoding", "utf-16-le"]),
        ("cp1252", ["--encoding", "cp1252"]),
        ("koi8-r", ["--encoding", "koi8-r"]),
    ],
)
@pytest.mark.parametrize("source", ["in.txt", "-"])
def test_a_file_in_any_encoding_is_asked_as_it_reads(
    encoding: str, arguments: list[str], source: str, run: Run, here: Path
) -> None:
    text = {"cp1252": "Grüße für 5 €\nà bientôt", "koi8-r": "и\nещё"}.get(encoding, GRUSS)
    content = ("\ufeff" + text).encode("utf-16-be") if encoding == "utf-16-be-with-bom" else text.encode(encoding)
    (here / "in.txt").write_bytes(content)
    result = run(source, "-o", "out.jsonl", *arguments, stdin=content)
    assert (result.returncode, result.stdout) == (0, "")
    assert replies("out.jsonl") == text.split("\n")


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ("q0\nq1\nGrüße\n".encode("cp1252"), [], "in.txt, line 3, has bytes that are no utf-8"),
        ("q0\nq1".encode("utf-16-le"), [], "in.txt, line 1, holds a NUL byte"),
        (b"q0\n\x81\n", ["--encoding", "cp1252"], "in.txt, line 2, has bytes that are no cp1252"),
        ("q0\nq1\n".encode("utf-16") + b"x", [], "in.txt, line 3, has bytes that are no utf-16"),
        (b"q0\n" * 50_000 + b"\xff\n", [], "line 50001, has bytes"),
    ],
    ids=["cp1252", "utf-16 without its mark", "a hole in cp1252", "half a character", "far behind"],
)
def test_bytes_of_another_encoding_are_an_error_with_their_line_and_nothing_is_asked(
    content: bytes, arguments: list[str], said: str, run: Run, here: Path, wire: Wire
) -> None:
    (here / "in.txt").write_bytes(content)
    result = run("in.txt", "-o", "out.jsonl", *arguments)
    assert result.returncode == 1
    assert said in result.stderr
    assert "--encoding" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert wire.requests == []


@pytest.mark.parametrize("name", ["utf-99", "base64"])
def test_an_encoding_that_does_not_exist_is_wrong_usage(name: str, run: Run, here: Path) -> None:
    (here / "in.txt").write_text("q0\n")
    result = run("in.txt", "-o", "out.jsonl", "--encoding", name)
    assert result.returncode == 2
    assert name in result.stderr


# CSV files


@pytest.mark.parametrize(
    ("name", "content", "shown", "expected"),
    [
        ("in.csv", 'id;prompt\n1;"a, b; c"\n2;d, e\n', "';'", ["a, b; c", "d, e"]),
        ("in.csv", "id\tprompt\n1\ta, b; c\n", r"'\t'", ["a, b; c"]),
        ("in.csv", 'id,prompt\n1,"a\r\nb; ""c"""\n', "','", ['a\r\nb; "c"']),
        ("in.csv", '"id";"prompt"\n"1";"a"\n', "';'", ["a"]),
        ("in.csv", "prompt\nWhy; tell me\n", "','", ["Why; tell me"]),
        ("in.csv", "id,prompt,\n1,a,\n2,b,,\n", "','", ["a", "b"]),
        ("in.tsv", 'prompt\n"Why, and\nwhen?"\n', r"'\t'", ["Why, and\nwhen?"]),
        ("in.tsv", "id;prompt\n1;a\n", "';'", ["a"]),
        ("in.csv", "id;prompt\n1;" + "x" * 200_000 + "\n", "';'", ["x" * 200_000]),
    ],
)
def test_what_stands_between_the_columns_is_found_and_shown(
    name: str, content: str, shown: str, expected: list[str], run: Run, here: Path
) -> None:
    (here / name).write_bytes(content.encode())
    result = run(name, "-o", "out.jsonl")
    assert result.returncode == 0
    assert replies("out.jsonl") == expected
    assert f"{name} is read as utf-8 with {shown} between the columns; the prompts are in the column 'prompt'" in (
        result.stderr
    )


def test_a_spreadsheets_unicode_text_is_read(run: Run, here: Path) -> None:
    (here / "in.csv").write_bytes("nr\tFrage\n1\tGrüße?\n".encode("utf-16"))
    result = run("in.csv", "-o", "out.jsonl", "--column", "Frage")
    assert (result.returncode, replies("out.jsonl")) == (0, ["Grüße?"])
    assert r"utf-16 with '\t' between the columns; the prompts are in the column 'Frage'" in result.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('prompt\nq0\n"q1\nq2\nq3\n', "in.csv, the row that begins in line 3: unexpected end of data"),
        (
            "prompt\nq0\nHello, world\n",
            "in.csv, line 3, has more columns than the first line: put a text that holds ','",
        ),
    ],
    ids=["a quote that never ends", "a comma without quotes"],
)
def test_a_csv_file_that_would_be_asked_otherwise_than_it_reads_is_refused(
    content: str, said: str, run: Run, here: Path, wire: Wire
) -> None:
    (here / "in.csv").write_text(content)
    result = run("in.csv", "-o", "out.jsonl")
    assert result.returncode == 1
    assert said in result.stderr
    assert wire.requests == []


# What a line and the command say of a question


def asked_in(wire: Wire) -> dict[str, Any]:
    """The JSON that was sent for each prompt."""
    return {prompt_of(request): request.json for request in wire.requests}


def request_line(name: str, url: str = "/v1/chat/completions", prompt: Any = None, **body: Any) -> str:
    whole = {"messages": [{"role": "user", "content": prompt or name}], **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": whole})


def test_a_line_of_json_has_a_model_and_options_of_its_own(run: Run, here: Path, wire: Wire) -> None:
    lines = [
        {"prompt": "q0", "model": "m-1", "options": {"temperature": 0.9, "stop": ["\n"]}, "note": "not sent"},
        {"messages": [{"role": "user", "content": "q1"}], "options": {"max_tokens": 5}},
        {"prompt": "q2"},
    ]
    (here / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ("in.jsonl", "-o", "out.jsonl", "-m", "m-0", "--option", "temperature=0.1", "--option", "seed=7")
    assert run(*arguments).returncode == 0
    asked = asked_in(wire)
    common = {"seed": 7, "temperature": 0.1, "model": "m-0"}
    assert asked["q0"].items() >= {**common, "model": "m-1", "temperature": 0.9, "stop": ["\n"]}.items()
    assert asked["q1"].items() >= {**common, "max_tokens": 5}.items()
    assert asked["q2"].items() >= common.items()
    assert "note" not in asked["q0"]
    # It goes on: the models of lines are no reason to refuse the file, and a line whose model changed is another.
    wire.requests.clear()
    assert run(*arguments).returncode == 0
    assert wire.requests == []
    (here / "in.jsonl").write_text("\n".join(map(json.dumps, lines)).replace("m-1", "m-2"))
    assert "belongs to other prompts" in run(*arguments).stderr


def test_options_are_json_or_else_text(run: Run, here: Path, wire: Wire) -> None:
    (here / "in.txt").write_text("q0\n")
    given = ["stop=a=b", "top_p=0.5", 'user="7"', 'response_format={"type": "json_object"}', "seed=null"]
    assert run("in.txt", "-o", "out.jsonl", *(part for one in given for part in ("--option", one))).returncode == 0
    sent = asked_in(wire)["q0"]
    assert [sent[name] for name in ("stop", "top_p", "user")] == ["a=b", 0.5, "7"]
    assert sent["response_format"] == {"type": "json_object"}
    assert "seed" not in sent


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("temperature", "is not NAME=VALUE"),
        ("=5", "is not NAME=VALUE"),
        *((f"{name}=5", f"'{name}' is a setting") for name in ("timeout", "headers", "retries", "deadline", "cancel")),
        ("extra_body={}", "'extra_body' is a setting"),
        ("model=m", "'model' is no option"),
        ("n=2", "one reply is kept"),
    ],
)
def test_an_option_that_is_none_is_wrong_usage(option: str, said: str, run: Run, here: Path, wire: Wire) -> None:
    (here / "in.txt").write_text("q0\n")
    result = run("in.txt", "-o", "out.jsonl", "--option", option)
    assert result.returncode == 2
    assert said in " ".join(result.stderr.split())
    assert wire.requests == []


def test_the_system_message_is_for_prompts_that_have_none(run: Run, here: Path, wire: Wire) -> None:
    own = {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "q1"}]}
    (here / "in.jsonl").write_text(f'"q0"\n{json.dumps(own)}\n')
    assert run("in.jsonl", "-o", "out.jsonl", "--system", "Be brief.").returncode == 0
    systems = {name: question["messages"][0] for name, question in asked_in(wire).items()}
    assert systems == {
        "q0": {"role": "system", "content": "Be brief."},
        "q1": {"role": "system", "content": "own"},
    }
    assert [line["prompt"] for line in lines_of("out.jsonl") if line["index"] == 0] == ["q0"]
    result = run("in.jsonl", "-o", "out.jsonl", "--system", "Be long.")
    assert result.returncode == 1
    assert "system: 'Be brief.' in the file, 'Be long.' now" in result.stderr


# Going on


def test_another_model_is_refused_until_told_to_ask_anew(run: Run, here: Path, wire: Wire) -> None:
    (here / "in.txt").write_text("q0\n")
    run("in.txt", "-o", "out.jsonl", "-m", "m-1")
    result = run("in.txt", "-o", "out.jsonl", "-m", "m-2")
    assert result.returncode == 1
    assert "model: 'm-1' in the file, 'm-2' now" in result.stderr
    assert "--ask-anew" in result.stderr
    assert "checkpoint" not in result.stderr
    assert run("in.txt", "-o", "out.jsonl", "-m", "m-2", "--ask-anew").returncode == 0
    assert [request.json["model"] for request in wire.requests] == ["m-1", "m-2"]


def test_without_an_address_the_next_run_goes_on_with_another_echo(here: Path) -> None:
    (here / "in.txt").write_text("q0\nq1\n")
    for asked in (2, 0):
        line = [*COMMAND, "in.txt", "-o", "out.jsonl", "-p", "h2o"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert f"2 answered, 0 failed; in this run {asked} asked" in done.stderr
    assert lines_of("out.jsonl")[0]["asked"]["address"] == "echo"


def test_requests_go_on_by_their_custom_id_in_any_order(run: Run, here: Path, wire: Wire) -> None:
    lines = [request_line(f"r{n}") for n in range(6)]
    (here / "in.jsonl").write_text("\n".join(lines[:4]))
    run("in.jsonl", "-o", "out.jsonl")
    wire.requests.clear()
    (here / "in.jsonl").write_text("\n".join(reversed(lines)))
    assert run("in.jsonl", "-o", "out.jsonl").returncode == 0
    assert sorted(map(prompt_of, wire.requests)) == ["r4", "r5"]
    assert sorted(line["custom_id"] for line in lines_of("out.jsonl")) == [f"r{n}" for n in range(6)]


def test_an_output_of_an_older_version_is_gone_on_with(run: Run, here: Path, wire: Wire) -> None:
    lines = [request_line("a"), request_line("b")]
    digest = hashlib.sha256(json.dumps(json.loads(lines[0]), sort_keys=True).encode()).hexdigest()[:16]
    choice = {"index": 0, "message": {"role": "assistant", "content": "old"}, "finish_reason": "stop"}
    body = {"id": "chatcmpl-0", "object": "chat.completion", "model": "m", "choices": [choice], "usage": None}
    response = {"status_code": 200, "request_id": "req_0", "body": body}
    old = {"id": f"batch_req_0_{digest}", "custom_id": "a", "response": response, "error": None}
    (here / "in.jsonl").write_text("\n".join(lines))
    (here / "out.jsonl").write_text(json.dumps(old) + "\n")
    assert run("in.jsonl", "-o", "out.jsonl").returncode == 0
    assert [prompt_of(request) for request in wire.requests] == ["b"]


def test_a_request_that_changed_under_its_custom_id_is_refused(run: Run, here: Path) -> None:
    (here / "in.jsonl").write_text(request_line("a"))
    run("in.jsonl", "-o", "out.jsonl")
    (here / "in.jsonl").write_text(request_line("a", prompt="other"))
    result = run("in.jsonl", "-o", "out.jsonl")
    assert result.returncode == 1
    assert "--ask-anew" in result.stderr


# OpenAI's batch files

IMAGE = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def test_a_batch_of_a_thousand_lines_is_read_by_openais_own_package(here: Path) -> None:
    from openai.types import BatchError
    from openai.types.chat import ChatCompletion

    lines = [request_line(f"r{n}", prompt="Why?", temperature=0.5) for n in range(1000)]
    for n in range(0, 1000, 10):
        lines[n] = request_line(f"r{n}", prompt="Berlin or Rome?", tools=TOOLS, model="m-2")
        lines[n + 1] = request_line(f"r{n + 1}", prompt=IMAGE, max_tokens=9)
    lines[500] = '{"custom_id": "r500", "body": {"messages": [broken'
    lines[700] = request_line("r700", url="/v1/embeddings")
    (here / "in.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ["in.jsonl", "-o", "out.jsonl", "--errors", "errors.jsonl", "-w", "32", "-m", "m-1", "-p", "openai"]
    with ModelServer() as server:
        line = [*COMMAND, *arguments, "--base-url", server.url]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1
        assert {question["model"] for question in server.questions()} == {"m-1", "m-2"}
        assert "998 answered, 2 failed; in this run 998 asked, 11976 tokens" in done.stderr

        answered = {line["custom_id"]: line for line in lines_of("out.jsonl")}
        assert answered.keys() == {f"r{n}" for n in range(1000)} - {"r500", "r700"}
        for answer in answered.values():
            assert (answer["error"], answer["response"]["status_code"]) == (None, 200)
        completions = {name: ChatCompletion.model_validate(line["response"]["body"]) for name, line in answered.items()}
        assert {completion.usage.total_tokens for completion in completions.values() if completion.usage} == {12}
        called = completions["r0"].choices[0]
        assert (called.finish_reason, called.message.content) == ("tool_calls", None)
        calls = [call for call in called.message.tool_calls or () if call.type == "function"]
        assert [call.function.name for call in calls] == ["weather", "weather"]
        assert json.loads(calls[1].function.arguments) == {"city": "Rome"}
        assert len({call.id for call in calls}) == 2
        assert completions["r1"].choices[0].message.content == "I see data:image/png."
        assert completions["r2"].choices[0].message.content == "Because short waves scatter most."

        bad, elsewhere = lines_of("errors.jsonl")
        errors = [BatchError.model_validate(line["error"]) for line in (bad, elsewhere)]
        assert [error.code for error in errors] == ["invalid_request", "invalid_request"]
        assert (bad["custom_id"], elsewhere["custom_id"]) == (None, "r700")
        assert str(errors[0].message).startswith("line 501: ")
        assert errors[1].message == "line 701: only /v1/chat/completions is spoken here, not '/v1/embeddings'"

        again = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        assert "998 answered, 2 failed; in this run 0 asked" in again.stderr
        # The tool calls have come back from the file: it holds as many lines as before.
        assert (len(lines_of("out.jsonl")), len(lines_of("errors.jsonl"))) == (998, 2)


def test_what_is_known_of_a_reply_comes_back_from_openais_form() -> None:
    call = ToolCall("call_1", "weather", '{"city": "Rome"}', {"signature": "s"})
    facts = {"model": "m", "finish_reason": "tool_calls", "usage": {"total_tokens": 3}, "id": "chatcmpl-7"}
    more = {"reasoning": "r", "refusal": "no", "logprobs": {"content": []}, "citations": ["c"], "annotations": [{}]}
    reply = Reply("", tool_calls=(call,), **facts, **more)
    request = json.loads(request_line("a"))
    line = as_line(BatchFormat().encode(Answer(3, request, reply, None, 0.0, 1, "a"), None))
    match = BatchFormat.identity.match(line)
    assert match is not None
    assert (match[1], match[2]) == (b"3", b'"a"')
    recorded = BatchFormat().decode(json.loads(line))
    assert (recorded.index, recorded.key, recorded.reply) == (3, "a", "")
    assert recorded.reply.tool_calls == (call,)
    assert {name: getattr(recorded.reply, name) for name in (*facts, *more)} == {**facts, **more}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "b"}', 'a request must have a "custom_id"'),
        ("[5]", 'a request must have a "custom_id"'),
        ('{"custom_id": "b", "body": 5}', 'a request must have a "body"'),
        ('{"custom_id": "b", "body": {}}', "messages is empty"),
        ('{"custom_id": "\\ud800", "body": {}}', "no text that a file can hold"),
        (request_line("b", url="/v1/embeddings"), "not '/v1/embeddings'"),
        (request_line("b", model=5), "'model' is of type int"),
        (request_line("b", n=3), "one reply is kept"),
        (request_line("a"), "the custom_id 'a' came before"),
        *(
            (request_line("b", **{name: {}}), f"'{name}' is a setting")
            for name in ("timeout", "headers", "retries", "extra_body", "deadline", "cancel", "limiter")
        ),
    ],
)
def test_a_bad_request_fails_alone_with_its_line(line: str, said: str, run: Run, here: Path, wire: Wire) -> None:
    (here / "in.jsonl").write_text(f"{request_line('a')}\n\n{line}\n{request_line('c')}\n")
    result = run("in.jsonl", "-o", "out.jsonl", "--errors", "errors.jsonl")
    assert result.returncode == 1
    assert "1 failed: line 3: " in result.stderr
    assert said in result.stderr
    assert sorted(map(prompt_of, wire.requests)) == ["a", "c"]
    (error,) = lines_of("errors.jsonl")
    assert error["error"]["message"].startswith("line 3: ")
    assert error["error"]["code"] == "invalid_request"


def test_a_bad_first_line_does_not_hide_what_the_file_is(run: Run, here: Path) -> None:
    (here / "in.jsonl").write_text('{"custom_id": "a", broken\n' + request_line("b"))
    result = run("in.jsonl", "-o", "out.jsonl")
    assert "1 answered, 1 failed" in result.stderr
    assert [line["custom_id"] for line in lines_of("out.jsonl")] == ["b"]


# What has failed


def failing(wire: Wire, *prompts: str) -> None:
    """Lets the server refuse some prompts."""

    def answer(request: Recorded, connection: Connection) -> None:
        if prompt_of(request) in prompts:
            connection.respond(400, {"error": f"cannot say {prompt_of(request)}"})
        else:
            repeating(YLOKH)(request, connection)

    wire.on(*YLOKH.route, answer)


ERRORS = ("in.txt", "-o", "out.jsonl", "--errors", "errors.jsonl")


def test_what_has_failed_is_kept_and_asked_again_when_told_to(run: Run, here: Path, wire: Wire) -> None:
    (here / "in.txt").write_text("q0\nbad\nq2\nworse\n")
    failing(wire, "bad", "worse")
    assert run(*ERRORS).returncode == 1
    errors = sorted(lines_of("errors.jsonl"), key=lambda line: line["custom_id"])
    assert [line["custom_id"] for line in errors] == ["1", "3"]
    assert errors[0]["error"]["code"] == "api_status_error"
    assert "cannot say bad" in errors[0]["error"]["message"]
    assert errors[0]["response"]["status_code"] == 400
    assert (here / "errors.jsonl").stat().st_mode & 0o777 == 0o600

    wire.requests.clear()
    result = run(*ERRORS)
    assert (result.returncode, wire.requests) == (1, [])
    assert "failed before, and is asked again with --retry-errors" in result.stderr
    assert len(lines_of("errors.jsonl")) == 2

    failing(wire, "worse")
    assert run(*ERRORS, "--retry-errors").returncode == 1
    assert sorted(map(prompt_of, wire.requests)) == ["bad", "worse"]
    assert [line["custom_id"] for line in lines_of("errors.jsonl")] == ["3"]
    assert replies("out.jsonl") == ["q0", "bad", "q2"]


def test_without_an_errors_file_what_has_failed_is_asked_again(run: Run, here: Path, wire: Wire) -> None:
    (here / "in.txt").write_text("bad\n")
    failing(wire, "bad")
    run("in.txt", "-o", "out.jsonl")
    run("in.txt", "-o", "out.jsonl")
    assert len(wire.requests) == 2


def test_the_errors_of_another_model_are_not_those_of_this_one(run: Run, here: Path, wire: Wire) -> None:
    (here / "in.txt").write_text("bad\n")
    failing(wire, "bad")
    run(*ERRORS, "-m", "missing")
    failing(wire)
    assert run(*ERRORS, "-m", "m-1").returncode == 0
    assert lines_of("errors.jsonl") == []


def test_a_torn_error_is_mended_and_another_file_refused(run: Run, here: Path, wire: Wire) -> None:
    (here / "in.txt").write_text("bad\nworse\n")
    failing(wire, "bad", "worse")
    run(*ERRORS, "--ordered")
    kept = (here / "errors.jsonl").read_text()
    (here / "errors.jsonl").write_text(kept[:-10])
    wire.requests.clear()
    run(*ERRORS)
    assert list(map(prompt_of, wire.requests)) == ["worse"]
    assert (here / "errors.jsonl").read_text() == kept
    (here / "notes.txt").write_text("mine\n")
    result = run("in.txt", "-o", "out.jsonl", "--errors", "notes.txt", "--retry-errors")
    assert result.returncode == 1
    assert "notes.txt, line 1, is no error of a batch" in result.stderr
    assert (here / "notes.txt").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--retry-errors"], "--errors FILE"),
        (["--errors", "./out.jsonl"], "--errors and --output name the same file"),
    ],
)
def test_errors_need_a_file_of_their_own(arguments: list[str], said: str, run: Run, here: Path) -> None:
    (here / "in.txt").write_text("q0\n")
    result = run("in.txt", "-o", "out.jsonl", *arguments)
    assert result.returncode == 2
    assert said in result.stderr


# Where the answers go


def test_answers_go_to_standard_output(run: Run, here: Path) -> None:
    (here / "in.txt").write_text("q0\nq1\nq2\n")
    result = run("in.txt", "-o", "-", "--ordered")
    assert result.returncode == 0
    assert [json.loads(line)["reply"] for line in result.stdout.splitlines()] == ["q0", "q1", "q2"]
    assert "3 answers were written" in result.stderr
    assert not (here / "-").exists()


def test_requests_are_answered_on_standard_output_in_openais_form(run: Run) -> None:
    result = run("-", "-o", "-", stdin=request_line("a").encode())
    (line,) = map(json.loads, result.stdout.splitlines())
    assert (line["custom_id"], line["response"]["body"]["object"]) == ("a", "chat.completion")


def test_a_reader_that_goes_away_ends_the_command_quietly(wire: Wire, here: Path) -> None:
    wire.on(*YLOKH.route, repeating(YLOKH))
    (here / "in.txt").write_text("".join(f"q{n}\n" for n in range(500)))
    line = [*COMMAND, "in.txt", "-o", "-", "-p", "ylokh", "--base-url", wire.url]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["reply"].startswith("q")
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert "Traceback" not in process.stderr.read()


def test_a_csv_output_has_a_row_for_each_question(here: Path) -> None:
    lines = [
        {"prompt": "Why;\nand when?"},
        {"prompt": "Berlin or Rome?", "options": {"tools": TOOLS}},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
    ]
    (here / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with ModelServer() as server:
        line = [*COMMAND, "in.jsonl", "-o", "out.csv", "--ordered", "-p", "openai", "--base-url", server.url, "-m", "m"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        again = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = {"prompt_tokens": "7", "completion_tokens": "5", "total_tokens": "12"}
    assert rows[0] == {
        "index": "0",
        "prompt": "Why;\nand when?",
        "reply": "Because short waves scatter most.",
        "error": "",
        "finish_reason": "stop",
        "tool_calls": "",
        **counts,
    }
    assert rows[1]["prompt"] == "Berlin or Rome?"
    assert (rows[1]["reply"], rows[1]["finish_reason"]) == ("", "tool_calls")
    assert [call["function"]["name"] for call in json.loads(rows[1]["tool_calls"])] == ["weather", "weather"]
    assert json.loads(rows[2]["prompt"]) == lines[2]["messages"]
    assert (here / "out.csv").stat().st_mode & 0o777 == 0o600
    assert again.returncode == 1
    assert "out.csv is there already, and a run cannot go on with a CSV file" in again.stderr


def test_a_csv_output_has_errors_and_keys(run: Run, here: Path, wire: Wire) -> None:
    failing(wire, "bad")
    (here / "in.jsonl").write_text("\n".join([request_line("a"), request_line("bad"), request_line("a")]))
    result = run("in.jsonl", "-o", "out.csv", "--ordered")
    assert result.returncode == 1
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["key"], row["reply"]) for row in rows] == [("a", "a"), ("bad", ""), ("a", "")]
    assert rows[0]["prompt"] == "a"
    assert "cannot say bad" in rows[1]["error"]
    assert "came before" in rows[2]["error"]


def test_a_run_that_asks_nothing_leaves_no_csv_file(run: Run, here: Path) -> None:
    (here / "in.txt").write_text("q0\n")
    assert run("in.txt", "-o", "out.csv", "--rate", "quick").returncode == 1
    assert not (here / "out.csv").exists()


def test_answers_stand_in_the_order_of_the_prompts_when_told_to(run: Run, here: Path, wire: Wire) -> None:
    def slow_first(request: Recorded, connection: Connection) -> None:
        time.sleep(0.5 if prompt_of(request) in ("q0", "q9") else 0)
        repeating(YLOKH)(request, connection)

    wire.on(*YLOKH.route, slow_first)
    (here / "in.txt").write_text("".join(f"q{n}\n" for n in range(20)))
    assert run("in.txt", "-o", "as it comes.jsonl").returncode == 0
    assert [line["index"] for line in lines_of("as it comes.jsonl")] != list(range(20))
    assert run("in.txt", "-o", "out.jsonl", "--ordered").returncode == 0
    assert [line["index"] for line in lines_of("out.jsonl")] == list(range(20))
    kept = (here / "out.jsonl").read_text().splitlines(keepends=True)
    (here / "out.jsonl").write_text("".join(kept[:12]))
    wire.requests.clear()
    assert run("in.txt", "-o", "out.jsonl", "--ordered").returncode == 0
    assert len(wire.requests) == 8
    assert [line["index"] for line in lines_of("out.jsonl")] == list(range(20))


def test_a_limit_asks_the_first_prompts_only_and_a_later_run_the_rest(run: Run, here: Path, wire: Wire) -> None:
    (here / "in.txt").write_text("q0\nq1\nq2\n")
    assert run("in.txt", "-o", "out.jsonl", "--limit", "2").returncode == 0
    assert replies("out.jsonl") == ["q0", "q1"]
    assert run("-", "-o", "-", "--limit", "1", stdin=b"s0\ns1\n").stdout.count("\n") == 1
    wire.requests.clear()
    assert run("in.txt", "-o", "out.jsonl").returncode == 0
    assert [prompt_of(request) for request in wire.requests] == ["q2"]
    assert run("in.txt", "-o", "out.jsonl", "--limit", "0").returncode == 2


def test_a_limit_below_the_first_answer_is_no_other_batch(run: Run, here: Path, wire: Wire) -> None:
    (here / "in.txt").write_text("q0\nq1\nq2\n")
    failing(wire, "q0", "q1")
    run("in.txt", "-o", "out.jsonl")
    failing(wire)
    assert run("in.txt", "-o", "out.jsonl", "--limit", "1").returncode == 0
    assert sorted(replies("out.jsonl")) == ["q0", "q2"]


@pytest.mark.parametrize("arguments", [["-o", "missing/out.jsonl"], ["-o", "o.jsonl", "--errors", "missing/e.jsonl"]])
def test_a_file_that_cannot_be_written_is_named_before_anything_is_asked(
    arguments: list[str], run: Run, here: Path, wire: Wire
) -> None:
    (here / "in.txt").write_text("q0\n")
    result = run("in.txt", *arguments)
    assert result.returncode == 1
    assert "the file cannot be opened: " in result.stderr
    assert "missing/" in result.stderr
    assert wire.requests == []


@pytest.mark.parametrize("output", ["out.csv", "-"])
def test_ctrl_c_says_what_was_written_and_not_that_it_goes_on(output: str, here: Path) -> None:
    (here / "in.txt").write_text("".join(f"q{n}\n" for n in range(1000)))
    with LocalServer(delay=0.005) as server:
        line = [*COMMAND, "in.txt", "-o", output, "-p", "h2o", "--base-url", server.url]
        with (
            open("stdout", "wb") as stdout,
            subprocess.Popen(line, stdout=stdout, stderr=subprocess.PIPE, text=True) as process,
        ):
            written, until = here / ("stdout" if output == "-" else output), time.monotonic() + PATIENCE
            while time.monotonic() < until and not (written.exists() and written.stat().st_size > 1000):
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert re.search(r"stopped\. \d+ answers (are in out\.csv|were written)\.\n", told)
    assert "go on" not in told
    assert "Traceback" not in told


def test_a_run_ends_with_a_summary(run: Run, here: Path, wire: Wire) -> None:
    failing(wire, "bad")
    (here / "in.txt").write_text("q0\nbad\nq2\n")
    *_, last = run("in.txt", "-o", "out.jsonl").stderr.splitlines()
    said = r"berlin-chat: 2 answered, 1 failed; in this run 3 asked, 0 tokens, \d+\.\d s, \d+\.\d questions a second"
    assert re.fullmatch(said, last)


# Dry runs


def test_a_dry_run_says_what_would_be_asked_and_sends_nothing(run: Run, here: Path, wire: Wire) -> None:
    (here / "in.csv").write_text("id;prompt\n" + "".join(f"{n};question {n}\n" for n in range(30)))
    more = ("--system", "Be brief.", "--option", "temperature=0.2", "-m", "m-1", "--limit", "20")
    result = run("in.csv", "-o", "out.jsonl", "--dry-run", *more)
    assert (result.returncode, result.stdout) == (0, "")
    for said in (
        "20 questions",
        wire.url,
        "Ylokh",
        "'m-1'",
        "{'temperature': 0.2}",
        "'Be brief.'",
        "'question 0'",
        "';'",
    ):
        assert said in result.stderr
    assert "question 3" not in result.stderr
    assert wire.requests == []
    assert [path.name for path in here.iterdir()] == ["in.csv"]


def test_a_dry_run_names_the_lines_that_would_be_refused_and_an_echo(here: Path) -> None:
    (here / "in.jsonl").write_text(
        request_line("a", model="m-7", seed=5) + "\n" + request_line("b", url="/v1/embeddings")
    )
    line = [*COMMAND, "in.jsonl", "-o", "out.csv", "--dry-run"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "would not be asked: line 2: only /v1/chat/completions" in done.stderr
    assert "1 questions would be asked of OpenAICompatible at echo" in done.stderr
    assert """such as: [{'role': 'user', 'content': 'a'}], of the model 'm-7', with {'seed': 5}""" in done.stderr
