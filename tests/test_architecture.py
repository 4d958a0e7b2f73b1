"""The house is as the README draws it: imports point down, rooms are small, a question enters few of them."""

from __future__ import annotations

import ast
import io
import re
import sys
import threading
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import berlin_chat
from berlin_chat import Provider
from wire import Speech, speak

ROOT = Path(berlin_chat.__file__).parent
README = ROOT.parent / "README.md"
FILES = sorted(ROOT.rglob("*.py"))
Make = Callable[..., Provider]

# The picture


def rooms(readme: str) -> dict[str, tuple[int, int]]:
    """The place of each module in the README's picture: its row, and its place in the row."""
    found = re.search(r"## How it is built\n+```\n(.*?)```", readme, re.DOTALL)
    assert found, "the README has no picture"
    places = {}
    for row, line in enumerate(found[1].splitlines()):
        folder, inside, names = line.rpartition("/ ")
        for place, name in enumerate(re.split(r",\s*|\s*·\s*", names.strip())):
            places[f"{folder.replace('/', '.')}.{name}" if inside else name] = (row, place)
    return places


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that one of them imports, wherever in it that stands."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
        for alias in node.names:
            for parts in ([*base, alias.name], base):
                parts = [part for part in parts if part]
                if (ROOT.joinpath(*parts).with_suffix(".py")).exists() or (
                    ROOT.joinpath(*parts, "__init__.py")
                ).exists():
                    yield ".".join(parts)
                    break


def upward(places: dict[str, tuple[int, int]]) -> list[str]:
    """The imports that point up, or to a room that is not in the picture."""
    wrong = []
    for path in FILES:
        importer = name_of(path)
        if path.parent == ROOT and path.stem in ("__init__", "__main__"):
            continue  # the door, which shows all, and the way to the command
        for imported in imports(path):
            here, there = (_place(name, places) for name in (importer, imported))
            if here is None or there is None or here >= there:
                wrong.append(f"{importer} imports {imported}")
    return wrong


def _place(name: str, places: dict[str, tuple[int, int]]) -> tuple[int, int] | None:
    """A folder's ``__init__`` stands before all that is in it."""
    inside = [place for room, place in places.items() if room.startswith(f"{name}.")]
    return places.get(name) or ((inside[0][0], -1) if inside else None)


def test_every_module_is_in_the_picture() -> None:
    places = rooms(README.read_text(encoding="utf-8"))
    modules = {name_of(path) for path in FILES if path.stem not in ("__init__", "__main__")}
    assert places.keys() == modules


def test_imports_point_down_the_picture_only() -> None:
    assert upward(rooms(README.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [("provider", "http.transport"), ("http.transport", "http.connections"), ("groups.race", "groups.group")],
)
def test_an_import_that_is_turned_round_would_be_found(importer: str, imported: str) -> None:
    places = rooms(README.read_text(encoding="utf-8"))
    places[importer], places[imported] = places[imported], places[importer]
    assert f"{importer} imports {imported}" in upward(places)


def test_no_provider_imports_another() -> None:
    for path in (ROOT / "providers").glob("[a-z]*.py"):
        others = {name for name in imports(path) if name.startswith("providers.")}
        assert others == ({"providers.openai"} if path.stem == "ylokh" else set()), path.name


# The size of rooms


def code_lines(path: Path) -> tuple[set[int], ast.Module]:
    """The lines that hold code: no blank ones, no comments, no docstrings, nothing that only a type checker reads."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines, tree


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_is_small(path: Path) -> None:
    lines, tree = code_lines(path)
    assert len(lines) <= (110 if path.parent.name == "providers" else 300)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            inside = [line for line in lines if node.lineno <= line <= (node.end_lineno or 0)]
            assert len(inside) <= 150, node.name


# State at the level of modules

#: What a module may keep for all that use it, and where its comment says why.
STATE = {"process": {"_forkable", "_parting", "_ending", "importing"}, "decoding": {"_loads"}}
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*|__\w+__")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_has_no_state_but_what_forking_and_the_parser_need(path: Path) -> None:
    _, tree = code_lines(path)
    found = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        makes = (
            any(isinstance(part, (ast.Call, ast.Dict, ast.List, ast.Set)) for part in ast.walk(value))
            if value
            else False
        )
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        found |= {name for name in names if makes and not _CONSTANT.fullmatch(name)}
        found |= {name for part in ast.walk(node) if isinstance(part, ast.Global) for name in part.names}
    allowed = STATE.get(name_of(path), set()) | {"T", "P", "S", "log", "cli", "_decode_json"}
    assert found <= allowed, f"state at the level of the module: {found - allowed}"


# How far a question goes

WORDS = ("errors", "messages", "reply", "cancellation", "validation")


def test_a_question_enters_few_rooms(speech: Speech, provider_for: Make) -> None:
    provider = provider_for(speech, speak(speech, ["a", "b"]))
    provider.ask("Hi")
    entered = set()

    def note(frame: Any, event: str, arg: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in path.parents:
            entered.add(name_of(path))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        assert provider.ask("Hi") == "ab"
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    rooms = entered - set(WORDS)
    assert len(rooms) <= {"openai": 7, "ylokh": 7, "acytoo": 6, "berlin": 8, "h2o": 8}[speech.name], rooms
