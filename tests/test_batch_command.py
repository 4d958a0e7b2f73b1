"""``berlin-chat batch`` with the files that people have, and the ways in which they want their answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from test_pool import prompt_of, repeating
from wire import YLOKH, Wire

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


def test_a_request_that_changed_under_its_custom_id_is_refused(run: Run, here: Path) -> None:
    (here / "in.jsonl").write_text(request_line("a"))
    run("in.jsonl", "-o", "out.jsonl")
    (here / "in.jsonl").write_text(request_line("a", prompt="other"))
    result = run("in.jsonl", "-o", "out.jsonl")
    assert result.returncode == 1
    assert "--ask-anew" in result.stderr
