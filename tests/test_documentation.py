"""Every example in the README and in a docstring runs, and what the documentation points at is there."""

from __future__ import annotations

import ast
import configparser
import doctest
import importlib
import inspect
import itertools
import json
import logging
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import berlin_chat
from berlin_chat import (
    Acytoo,
    Balance,
    Berlin,
    ChatError,
    Fallback,
    H2o,
    InvalidRequest,
    OpenAICompatible,
    Provider,
    Race,
    StreamInterrupted,
    Ylokh,
)
from berlin_chat.groups.group import Group
from berlin_chat.messages import as_list
from berlin_chat.server import LocalServer
from model_server import ModelServer
from wire import SPEECHES, Wire

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PACKAGE = Path(berlin_chat.__file__).parent
FIVE = (OpenAICompatible, Ylokh, Berlin, H2o, Acytoo)
#: What stands in for a package that is too heavy for the tests.
STAND_INS = Path(__file__).parent / "stand_ins"
#: How long an example may take in a process of its own, in seconds.
RUNNING = 60.0
MODULES = [
    name for _, name, _ in pkgutil.walk_packages(berlin_chat.__path__, "berlin_chat.") if not name.endswith("__main__")
]


@pytest.mark.parametrize("name", ["berlin_chat", *MODULES])
def test_the_examples_of_a_docstring_run(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert not failures


def readme_blocks() -> list[tuple[int, str]]:
    """The README's Python blocks, each with the line that it starts in."""
    text = README.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start()) + 2, match[1])
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


#: The addresses of other people's servers in the README, for which one of ours stands in: model servers, one that never
#: says why a reply ends, and those of the four other protocols.
MODELS = re.compile(r"http://127\.0\.0\.1:11434\b|https://my-resource\.openai\.azure\.com\b")
WITHOUT_REASON = re.compile(r"http://127\.0\.0\.1:5000\b")
OTHERS = re.compile(r"http://127\.0\.0\.1:(8080|3000|8090)\b")


@pytest.fixture
def models() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server
    assert not server.faults, f"the server's script failed: {server.faults!r}"


@pytest.fixture
def answered(models: ModelServer) -> Iterator[Callable[[str], str]]:
    """Puts the addresses of servers that are there into an example."""
    with LocalServer() as others, ModelServer(says_why=False) as terse:
        yield lambda code: OTHERS.sub(others.url, WITHOUT_REASON.sub(terse.url, MODELS.sub(models.url, code)))


each_block = pytest.mark.parametrize(
    ("line", "block"), [pytest.param(*found, id=f"line {found[0]}") for found in readme_blocks()]
)


@each_block
def test_the_examples_of_the_readme_run(
    line: int,
    block: str,
    answered: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(STAND_INS)
    try:
        exec(compile("\n" * (line - 1) + answered(block), str(README), "exec"), {"__name__": "__main__"})
    finally:
        logging.getLogger("berlin_chat").setLevel(logging.NOTSET)


#: The ``sitecustomize`` of each example, and of each process that it starts: they reach this machine only.
LOOPBACK_ONLY = """
import sys

def audit(event, args):
    if event == "socket.connect" and args[0].type.name == "SOCK_STREAM" and args[0].family.name != "AF_UNIX":
        if not args[1][0].startswith(("127.", "::1", "localhost")):
            raise PermissionError(f"an example connects to {args[1]}")
    if event == "socket.getaddrinfo" and args[0] not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
        raise PermissionError(f"an example looks up {args[0]!r}")

sys.addaudithook(audit)
"""


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of an example's process: without settings of ours, with this library, and without a way out."""
    first = tmp_path_factory.mktemp("loopback")
    (first / "sitecustomize.py").write_text(LOOPBACK_ONLY)
    known = {name: value for name, value in os.environ.items() if not name.startswith(("BERLIN_CHAT_", "PYTHON"))}
    return {**known, "PYTHONPATH": os.pathsep.join(map(str, [first, STAND_INS, PACKAGE.parent]))}


def run_script(code: str, folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """Runs it as ``python example.py``, in that folder; returns its exit code, output and errors."""
    (folder / "example.py").write_text(code, encoding="utf-8")
    paths = folder / "stdout", folder / "stderr"  # files, for a process that it leaves behind would keep pipes open
    with open(paths[0], "wb") as out, open(paths[1], "wb") as err:
        command = [sys.executable, "example.py"]
        done = subprocess.run(command, cwd=folder, env=environment, timeout=RUNNING, stdout=out, stderr=err)
    output, errors = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return done.returncode, output, errors


@each_block
def test_each_example_of_the_readme_runs_as_a_script(
    line: int, block: str, answered: Callable[[str], str], tmp_path: Path, environment: dict[str, str]
) -> None:
    code, output, errors = run_script(answered(block), tmp_path, environment)
    assert code == 0, f"README.md, line {line}:\n{errors}"
    # Dask has its say about how its workers end.
    assert "dask" in block or not errors, f"README.md, line {line}:\n{errors}"
    assert output or not prints(block), f"README.md, line {line}: nothing was printed"


def prints(block: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(ast.parse(block)))


@pytest.mark.parametrize(
    "outside",
    ["socket.create_connection(('192.0.2.1', 80), 1)", "socket.getaddrinfo('chat.example', 80)"],
    ids=["connect", "look up"],
)
def test_a_script_that_leaves_the_machine_would_fail(outside: str, tmp_path: Path, environment: dict[str, str]) -> None:
    code, _, errors = run_script(f"import socket\n{outside}", tmp_path, environment)
    assert code == 1
    assert "PermissionError: an example" in errors


#: What the text beside an example must say where the example imports this.
NAMED = {
    "berlin_chat.notebook": "`berlin_chat[notebook]`",
    "berlin_chat.server": "`berlin_chat[server]`",
    "berlin_chat.testing": "`berlin_chat[server]`",
    "dask": "`berlin_chat[dask]`",
    "distributed": "`berlin_chat[dask]`",
    "responses": "`pip install responses`",
    "pandas": "`pip install pandas`",
    "flask": "`pip install flask gunicorn`",
    "django": "`pip install django`",
    "celery": "`pip install celery`",
    "vcr": "`pip install vcrpy`",
    "ray": "`pip install ray`",
}


def imported(block: str) -> set[str]:
    """What an example imports, but for the standard library and the core."""
    names = set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            names.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{name.name}" for name in node.names)
    ours = ("berlin_chat.notebook", "berlin_chat.server", "berlin_chat.testing")
    extras = {extra for extra in ours if any(name.startswith(extra) for name in names)}
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"berlin_chat"}
    return others | extras


@each_block
def test_the_readme_names_the_packages_that_an_example_needs(line: int, block: str) -> None:
    before, _, after = README.read_text(encoding="utf-8").partition(block)
    section = re.split(r"^#+ ", before, flags=re.MULTILINE)[-1] + re.split(r"^#+ ", after, flags=re.MULTILINE)[0]
    for name in imported(block):
        needed = NAMED.get(name, f"`{name}`")
        assert needed in section, f"README.md, line {line}: the text does not name {needed}"


def example(word: str) -> str:
    """The README's one Python block that holds it."""
    (block,) = (block for _, block in readme_blocks() if word in block)
    return block


def test_the_readmes_first_example_asks_a_model_server_and_needs_none(answered: Callable[[str], str]) -> None:
    _, first = readme_blocks()[0]
    assert "OpenAICompatible(" in first
    assert answered(first) == first


def test_the_readmes_tools_make_a_round_trip(
    models: ModelServer, answered: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(answered(example("tool_calls")), {})
    assert capsys.readouterr().out == "rain in Berlin and rain in Rome\n"
    first, second = models.questions()
    assert first["tools"] == second["tools"]
    asked, called, *results = second["messages"]
    assert [asked] == first["messages"]
    assert [call["function"]["arguments"] for call in called["tool_calls"]] == ['{"city":"Berlin"}', '{"city":"Rome"}']
    assert [result["tool_call_id"] for result in results] == [call["id"] for call in called["tool_calls"]]


def test_the_readmes_example_of_open_shows_all_that_comes(
    answered: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(answered(example("live.events()")), {})
    *events, end = capsys.readouterr().out.splitlines()
    assert [event.split()[0] for event in events] == ["reasoning", "reasoning", "text", "text"]
    assert end.startswith("stop {")


def test_the_readmes_settings_for_one_question_arrive(models: ModelServer, answered: Callable[[str], str]) -> None:
    exec(answered(example("extra_body=")), {})
    (request,) = models.asked("POST", ".*")
    assert request.header("X-Request-Id") == "42"
    assert request.json.keys() == {"messages", "model", "stream", "seed", "top_k"}


def test_the_readmes_question_reaches_azure(models: ModelServer, answered: Callable[[str], str]) -> None:
    exec(answered(example("azure")), {})
    (request,) = models.asked("POST", ".*")
    assert request.path == "/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21"
    assert request.header("api-key") == "secret"


def test_the_readmes_example_of_end_needs_it(answered: Callable[[str], str]) -> None:
    code = answered(example('end="done"'))
    exec(code, {})
    with pytest.raises(StreamInterrupted, match='end="done"'):
        exec(code.replace(', end="done"', ""), {})


def test_the_readmes_own_provider_works(wire: Wire) -> None:
    namespace: dict[str, type[Provider]] = {}
    exec(example("class Plain"), namespace)
    wire.on("POST", "/say", lambda request, connection: connection.respond(200, request.json["prompt"].encode()))
    with namespace["Plain"](base_url=wire.url) as provider:
        assert provider.ask("Hello!") == "Hello!"


def test_the_readmes_own_provider_is_short() -> None:
    assert len(example("class Plain").splitlines()) <= 15


def rows(heading: str) -> list[list[str]]:
    """The cells of the README's table whose first row begins so, that row included."""
    table = re.search(rf"^\| {heading} \|.*\n(?:\|.*\n)+", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert table is not None
    first, _, *others = table[0].splitlines()
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in (first, *others)]


def kept(heading: str) -> dict[tuple[str, str], str]:
    """What one of the tables of what each provider keeps says, by class and thing."""
    (_, *classes), *others = rows(heading)
    return {
        (name, what): cell
        for what, *cells in others
        for named, cell in zip(classes, cells, strict=True)
        for name in re.findall("`(.+?)`", named)
    }


#: For each of the README's words about messages: such messages, and the one prompt of protocols that have one.
GIVEN: dict[str, list[tuple[list[dict[str, Any]], str]]] = {
    "text": [([{"role": "user", "content": "a"}], "a")],
    "several messages and their roles": [
        ([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "System: a\nUser: b\nAssistant:")
    ],
    "several parts of text": [
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab")
    ],
    "images, audio, files": [
        ([{"role": "user", "content": [{"type": kind, kind: {}}]}], "") for kind in ("image_url", "input_audio", "file")
    ],
    "calls of tools": [
        ([{"role": "assistant", "content": content, "tool_calls": [{"id": "1"}]}], "") for content in (None, "I look.")
    ],
    "the answers of tools": [
        (
            [{"role": "user", "content": "a"}, {"role": "tool", "tool_call_id": "1", "content": "b"}],
            "User: a\nTool: b\nAssistant:",
        )
    ],
    "other keys of a message": [([{"role": "user", "content": "a", "name": "me"}], "a")],
}


def test_the_readme_says_what_each_provider_keeps_of_a_message() -> None:
    described = kept("of a message")
    assert described.keys() == {(cls.__name__, what) for cls in FIVE for what in GIVEN}
    for (name, what), cell in described.items():
        provider = getattr(berlin_chat, name)(**({"account": "me", "password": "x"} if name == "Berlin" else {}))
        for messages, prompt in GIVEN[what]:
            if cell == "refused":
                with pytest.raises(InvalidRequest):
                    provider.payload(as_list(messages), "m", {})
                continue
            sent = provider.payload(as_list(messages), "m", {})
            if "messages" in sent:
                assert cell in ("as it is", "as they are", "joined"), (name, what)
                joined = [{**messages[0], "content": prompt}]
                assert sent["messages"] == (joined if cell == "joined" else messages), (name, what)
            else:
                assert sent.get("prompt", sent.get("inputs")) == prompt, (name, what)
                assert cell != "as they are", (name, what)


#: A reply that has all there is.
EVERYTHING = {
    "id": "1",
    "model": "m-1",
    "usage": {"total_tokens": 1},
    "citations": ["http://a.example"],
    "choices": [
        {
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "x", "logprob": 0.0}]},
            "delta": {
                "content": "x",
                "reasoning": "r",
                "refusal": "n",
                "annotations": [{"type": "url_citation"}],
                "tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}],
            },
        }
    ],
}


#: What cells mean that say neither yes nor no.
MEANT = {"as the server says": "m-1", "the one that was asked for": "asked", "`gpt-3.5-turbo`": "gpt-3.5-turbo"}


@pytest.mark.parametrize("cls", FIVE)
def test_the_readme_says_what_each_provider_keeps_of_a_reply(
    cls: type[Provider], provider_for: Callable[..., Provider], wire: Wire
) -> None:
    (speech,) = (speech for speech in SPEECHES if speech.name == cls.name)
    events = [b"data: " + json.dumps(EVERYTHING).encode() + b"\n\ndata: [DONE]\n\n"]
    body = b"".join(events if issubclass(cls, OpenAICompatible) else speech.parts(["x"]))
    provider = provider_for(
        speech, lambda request, connection: connection.respond(200, body, {"Content-Type": speech.kind}), model="asked"
    )
    wire.on("GET", "/v1/models", lambda request, connection: connection.respond(200, {"data": [{"id": "m-1"}]}))
    reply = provider.ask("Hi")
    described = {what: cell for (name, what), cell in kept("of a reply").items() if name == cls.__name__}
    with nullcontext() if described.pop("`models()`") == "yes" else pytest.raises(InvalidRequest):
        assert provider.models() == ["m-1"]
    assert described.pop("text") == "yes"
    assert reply == "x"
    for what, cell in described.items():
        for name in re.findall("`(.+?)`", what):
            found = getattr(reply, name)
            assert found == MEANT[cell] if cell in MEANT else bool(found) == (cell == "yes"), name


def described_arguments() -> dict[tuple[str, str], str]:
    """The README's table of arguments: the default, by class and argument."""
    found = {}
    for arguments, classes, default, _ in rows(r"argument \| class")[1:]:
        classes = classes.replace("all five", "`OpenAICompatible`, `Ylokh`, `Berlin`, `H2o`, `Acytoo`")
        for name, argument in itertools.product(re.findall("`(.+?)`", classes), re.findall("`(.+?)`", arguments)):
            found[name, argument] = default.strip("`")
    return found


def test_the_readme_describes_every_argument_of_every_provider() -> None:
    actual = {}
    for cls in (*FIVE, Balance, Fallback, Race):
        bases = (cls,) if issubclass(cls, Group) else cls.__mro__[-2::-1]
        for parameters in (inspect.signature(base.__init__).parameters for base in bases if "__init__" in vars(base)):
            for name, parameter in list(parameters.items())[1:]:
                if parameter.kind is not parameter.VAR_KEYWORD:
                    actual[cls.__name__, name] = parameter.default
    described = described_arguments()
    assert described.keys() == actual.keys()
    for argument, default in described.items():
        if default not in ("from the environment", "the class's `default_model", "must be given"):
            assert ast.literal_eval(default) == actual[argument], argument
        elif default == "must be given":
            assert actual[argument] is inspect.Parameter.empty, argument
        else:
            assert not actual[argument], argument


def test_the_readme_describes_every_argument_of_a_question() -> None:
    described = {name.strip("`"): default.strip("`") for name, default, _ in rows("argument \\| default")[1:]}
    assert described.pop("any other") == ""
    parameters = dict(inspect.signature(Provider.stream).parameters)
    for left_out in ("self", "limiter", "options"):  # ask_many gives the limiter
        del parameters[left_out]
    assert list(described) == list(parameters)
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty
        assert described[name] == ("must be given" if needed else repr(parameter.default)), name
        assert (parameter.kind is parameter.KEYWORD_ONLY) == (name not in ("messages", "model")), name


def test_the_readme_names_every_error() -> None:
    text = README.read_text(encoding="utf-8")
    for name in berlin_chat.__all__:
        found = getattr(berlin_chat, name)
        if isinstance(found, type) and issubclass(found, ChatError):
            assert f"`{name}`" in text, f"the README does not name {name}"


PROTOCOLS = PACKAGE / "PROTOCOLS.md"
#: How a docstring cites a section of it.
CITATION = re.compile(r'``PROTOCOLS\.md``,\s+(?:section\s+)?"([^"]+)"')


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def citing() -> list[Path]:
    """The files of the package that name ``PROTOCOLS.md``."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if PROTOCOLS.name in path.read_text(encoding="utf-8")]


def test_each_protocol_is_described_where_its_docstrings_say() -> None:
    headings = re.findall(r"^## (.+)$", PROTOCOLS.read_text(encoding="utf-8"), re.MULTILINE)
    cited = {name for path in citing() for text in docstrings(path) for name in CITATION.findall(text)}
    assert cited >= {"The flattened prompt", "Berlin", "Ylokh", "H2o", "Acytoo"}
    assert cited <= set(headings)


@pytest.mark.parametrize("path", citing(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_mention_of_the_protocols_is_a_citation(path: Path) -> None:
    mentions = path.read_text(encoding="utf-8").count(PROTOCOLS.name)
    assert mentions == sum(len(CITATION.findall(text)) for text in docstrings(path))


def test_the_protocols_are_installed_with_the_package() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = re.split(r"[,\s]+", settings["options.package_data"]["berlin_chat"].strip())
    for pattern in patterns:
        assert list(PACKAGE.glob(pattern)), f"there is no {pattern}"
    assert PROTOCOLS.name in patterns


def test_the_readme_links_to_what_exists() -> None:
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), f"README.md links to {target}"
    headings = {re.sub(r"[^a-z -]", "", name.lower()).replace(" ", "-") for name in re.findall("^#+ (.+)$", text, re.M)}
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert target in headings, f"README.md links to #{target}"
