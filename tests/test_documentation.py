"""Every example in the README and in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import berlin_chat
from berlin_chat import ChatError, Provider
from berlin_chat.server import LocalServer
from wire import Wire

README = Path(__file__).parent.parent / "README.md"
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


@pytest.mark.parametrize(("line", "block"), [pytest.param(*found, id=f"line {found[0]}") for found in readme_blocks()])
def test_the_examples_of_the_readme_run(
    line: int, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalServer() as server:
        code = DOCUMENTED.sub(server.url, block)
        exec(compile("\n" * (line - 1) + code, str(README), "exec"), {"__name__": "__readme__"})


def test_the_readmes_own_provider_works(wire: Wire) -> None:
    (block,) = (code for _, code in readme_blocks() if "class Plain" in code)
    namespace: dict[str, type[Provider]] = {}
    exec(block, namespace)
    wire.on("POST", "/say", lambda request, connection: connection.respond(200, request.json["prompt"].encode()))
    with namespace["Plain"](base_url=wire.url) as provider:
        assert provider.ask("Hello!") == "Hello!"


def test_the_readme_names_every_error() -> None:
    text = README.read_text(encoding="utf-8")
    for name in berlin_chat.__all__:
        found = getattr(berlin_chat, name)
        if isinstance(found, type) and issubclass(found, ChatError):
            assert f"`{name}`" in text, f"the README does not name {name}"
