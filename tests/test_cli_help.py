"""What the command's help says: every example runs, in the README's section too, and it fits a person's patience."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from berlin_chat.cli import COMMANDS
from berlin_chat.cli.history import history
from command import ROOT, environment, run
from wire import PATIENCE, YLOKH, Wire, speak

README = (ROOT / "README.md").read_text(encoding="utf-8")
#: The address of a model server in the examples, for which one of ours stands in.
MODELS = "http://127.0.0.1:11434"
#: Every command, those inside of another included.
EVERY = [*COMMANDS, *(f"history {name}" for name in history.commands)]
REPLY = "Like so:\n\n```python\nprint(1)\n```\n"


def examples(name: str) -> list[str]:
    """Those of a command's help, "" being the help of them all."""
    ran = run(*name.split(), "--help")
    _, _, after = ran.out.partition("Example")
    lines = after.partition("\n\n")[0].splitlines()[1:]
    return [line.strip() for line in lines]


def in_the_readme() -> list[str]:
    """The lines that the README's section about the command shows to be typed."""
    section = README.partition("\n## The command\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture
def shell(tmp_path: Path, wire: Wire) -> dict[str, str]:
    """The environment of a shell that has the command, the files that the examples name, and a model server."""
    wire.on(*YLOKH.route, speak(YLOKH, [REPLY]))
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, {"data": [{"id": "llama3"}]}))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "berlin-chat").write_text(f'#!/bin/sh\nexec {sys.executable} -m berlin_chat "$@"\n')
    (tmp_path / "bin" / "berlin-chat").chmod(0o755)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("notes.txt", "question.txt", "error.log"):
        (tmp_path / name).write_text("Why is it so?\n")
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "prompts.csv").write_text("question;answer\none;\ntwo;\n")
    variables = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "BERLIN_CHAT_HISTORY": "",
        "BERLIN_CHAT_OPENAI_URL": wire.url,
    }
    known = environment(**variables)
    question = ["berlin-chat", "ask", "Why is the sky blue?"]
    subprocess.run(question, env=known, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    return known


def runs(line: str, folder: Path, shell: dict[str, str], url: str) -> str:
    """Runs a line as it was typed; what it printed. A server is ended as by Ctrl-C when it serves."""
    line = line.replace(MODELS, url)
    if line.startswith("berlin-chat serve"):
        words = [word for word in shlex.split(re.sub(r"--port \d+", "", line)) if word != "berlin-chat"]
        command = [sys.executable, "-m", "berlin_chat", *words, "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=shell, cwd=folder, text=True) as process:
            assert process.stderr is not None
            said = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
        assert "serving" in said
        return said
    done = subprocess.run(
        ["sh", "-c", line], env=shell, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.skipif(os.name == "nt", reason="the examples are for a shell")
@pytest.mark.parametrize("name", ["", *EVERY])
def test_every_example_of_the_help_runs(name: str, tmp_path: Path, shell: dict[str, str], wire: Wire) -> None:
    lines = examples(name)
    assert lines, "the help has no example"
    for line in lines:
        assert re.match(rf"(cat \S+ \| )?berlin-chat {name}", line)
        runs(line, tmp_path, shell, wire.url)


@pytest.mark.skipif(os.name == "nt", reason="the examples are for a shell")
@pytest.mark.parametrize("line", in_the_readme())
def test_every_line_of_the_readmes_section_runs(line: str, tmp_path: Path, shell: dict[str, str], wire: Wire) -> None:
    assert "berlin-chat" in line
    runs(line, tmp_path, shell, wire.url)


def test_extract_in_an_example_makes_a_program_that_runs(tmp_path: Path, shell: dict[str, str], wire: Wire) -> None:
    (line,) = [line for line in examples("ask") if "--extract" in line]
    runs(line, tmp_path, shell, wire.url)
    path = tmp_path / line.rpartition("> ")[2]
    assert subprocess.run([sys.executable, path], capture_output=True, text=True).stdout == "1\n"


def test_the_help_fits_a_persons_patience() -> None:
    for group in ([], ["history"]):
        overview = run(*group, "--help").out.splitlines()
        assert len(overview) <= 40
        assert not [line for line in overview[1:] if line.endswith("...")], "the line about a command is cut off"
    for name in EVERY:
        lines = run(*name.split(), "--help").out.splitlines()
        assert len(lines) <= (100 if name == "batch" else 60), name
        assert max(map(len, lines)) <= 80, name


def test_the_help_names_every_command_in_the_order_of_its_table() -> None:
    listed = run("--help").out.partition("Commands:\n")[2]
    assert re.findall(r"^  (\S+)", listed, re.MULTILINE) == list(COMMANDS)


def test_scripts_chat_knows_every_command() -> None:
    script = (ROOT / "scripts" / "chat").read_text()
    (pattern,) = re.findall(r"^    (ask \|.*)\) ;;$", script, re.MULTILINE)
    assert set(pattern.split(" | ")) == {*COMMANDS, "-h", "--help", "--version"}


def test_asking_through_a_pipe_imports_nothing_that_only_a_terminal_needs(
    shell: dict[str, str], tmp_path: Path
) -> None:
    script = (
        "import sys; sys.argv[0] = 'berlin-chat'\nfrom berlin_chat.cli import main\n"
        "try:\n    main(['ask', 'Hi'])\nfinally:\n    print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=shell,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("Like so:"), done.stderr
    loaded = set(done.stdout.split("```\n")[-1].split())
    assert not loaded & {"rich", "markdown_it", "prompt_toolkit", "cheroot", "tqdm", "asyncio", "pygments"}
