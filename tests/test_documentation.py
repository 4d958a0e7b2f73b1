"""Every example in the README and in a docstring runs, and what the documentation points at is there."""

from __future__ import annotations

import ast
import configparser
import doctest
import importlib
import inspect
import itertools
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import berlin_chat
from berlin_chat import Acytoo, Balance, Berlin, ChatError, Fallback, H2o, Provider, Race, Ylokh
from berlin_chat.groups.group import Group
from berlin_chat.server import LocalServer
from wire import Wire

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PACKAGE = Path(berlin_chat.__file__).parent
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


#: The addresses of other people's servers in the README, for which one of ours stands in.
DOCUMENTED = re.compile(r"http://127\.0\.0\.1:(11434|8080|3000|8090)\b")

each_block = pytest.mark.parametrize(
    ("line", "block"), [pytest.param(*found, id=f"line {found[0]}") for found in readme_blocks()]
)


@each_block
def test_the_examples_of_the_readme_run(
    line: int, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalServer() as server:
        code = DOCUMENTED.sub(server.url, block)
        exec(compile("\n" * (line - 1) + code, str(README), "exec"), {"__name__": "__main__"})


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
    return {**known, "PYTHONPATH": os.pathsep.join([str(first), str(PACKAGE.parent)])}


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
    line: int, block: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    with LocalServer() as server:
        code, output, errors = run_script(DOCUMENTED.sub(server.url, block), tmp_path, environment)
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
    "berlin_chat.server": "`berlin_chat[server]`",
    "dask": "`berlin_chat[dask]`",
    "distributed": "`berlin_chat[dask]`",
    "responses": "`pip install responses`",
    "pandas": "`pip install pandas`",
}


def imported(block: str) -> set[str]:
    """What an example imports, but for the standard library and the core."""
    names = set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            names.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{name.name}" for name in node.names)
    extras = {name for name in names if name.startswith("berlin_chat.server")}
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"berlin_chat"}
    return others | ({"berlin_chat.server"} if extras else set())


@each_block
def test_the_readme_names_the_packages_that_an_example_needs(line: int, block: str) -> None:
    before, _, after = README.read_text(encoding="utf-8").partition(block)
    section = re.split(r"^#+ ", before, flags=re.MULTILINE)[-1] + re.split(r"^#+ ", after, flags=re.MULTILINE)[0]
    for name in imported(block):
        needed = NAMED.get(name, f"`{name}`")
        assert needed in section, f"README.md, line {line}: the text does not name {needed}"


def test_the_readmes_own_provider_works(wire: Wire) -> None:
    (block,) = (code for _, code in readme_blocks() if "class Plain" in code)
    namespace: dict[str, type[Provider]] = {}
    exec(block, namespace)
    wire.on("POST", "/say", lambda request, connection: connection.respond(200, request.json["prompt"].encode()))
    with namespace["Plain"](base_url=wire.url) as provider:
        assert provider.ask("Hello!") == "Hello!"


def test_the_readmes_own_provider_is_short() -> None:
    (block,) = (code for _, code in readme_blocks() if "class Plain" in code)
    assert len(block.splitlines()) <= 15


def described_arguments() -> dict[tuple[str, str], str]:
    """The README's table of arguments: the default, by class and argument."""
    table = re.search(r"^\| argument \| class \|.*\n(?:\|.*\n)+", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert table is not None
    found = {}
    for row in table[0].splitlines()[2:]:
        arguments, classes, default, _ = re.split(r" \| ", row.strip("| "), maxsplit=3)
        classes = classes.replace("all four", "`Berlin`, `Ylokh`, `H2o`, `Acytoo`")
        for name, argument in itertools.product(re.findall("`(.+?)`", classes), re.findall("`(.+?)`", arguments)):
            found[name, argument] = default.strip("`")
    return found


def test_the_readme_describes_every_argument_of_every_provider() -> None:
    actual = {}
    for cls in (Berlin, Ylokh, H2o, Acytoo, Balance, Fallback, Race):
        bases = (cls,) if issubclass(cls, Group) else (cls, Provider)
        for parameters in (inspect.signature(base.__init__).parameters for base in bases):
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
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), f"README.md links to {target}"
