"""The search for changes that no test notices sees what is noticed, what is not, and what is explained."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mutation.mutants import mutants
from mutation.search import rooms
from mutation.survey import _statement

TESTS = Path(__file__).parent

MODULE = """\
from __future__ import annotations

LIMIT = 3


def more(given: int | None, *, other: int = 0) -> int | None:
    # pragma: no mutate - whatever is given
    if given is None:
        return None
    return given + other if given < LIMIT else 0  # pragma: no mutate - at the limit, too
"""


def test_what_runs_is_changed_and_what_is_explained_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(MODULE, encoding="utf-8")
    found = list(mutants(path))
    changed = {mutant.line: mutant.explained for mutant in found}
    assert changed == {3: False, 6: False, 8: True, 10: True}
    assert all(mutant.was != mutant.becomes for mutant in found)
    assert {"LIMIT = 4", "LIMIT = 2"} == {re.sub(r"\s+", " ", one.becomes) for one in found if one.line == 3}
    assert not any("int +" in mutant.becomes for mutant in found), "an annotation says nothing to those who run it"
    assert len({mutant.code for mutant in found}) == len(found)


def searched(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mutation.search", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment, check=False)


def row(output: str, room: str) -> dict[str, int]:
    """The last four numbers that the table has of a room."""
    found = re.search(rf"^{re.escape(room)} +\d+ +(\d+) +(\d+) +(\d+) +(\d+)$", output, re.MULTILINE)
    assert found, output
    return dict(zip(("mutants", "killed", "explained", "survived"), map(int, found.groups()), strict=True))


def test_a_room_is_told_of_whose_changes_nobody_notices() -> None:
    done = searched("http/sessions", "--tests", "tests/test_limits.py")
    told = row(done.stdout, "http/sessions")
    assert done.returncode == 1, done.stderr
    assert told["survived"] > 0
    assert len(re.findall(r"^\+ ", done.stdout, re.MULTILINE)) == told["survived"], "each is shown"


@pytest.mark.parametrize("room", ["http/connecting", "http/responses"])  # which have decorators
def test_each_mutant_stands_in_a_statement(room: str) -> None:
    path = TESTS.parent / rooms()[room]
    assert all(_statement(path, mutant.line) for mutant in mutants(path))


def test_a_room_that_does_not_exist_is_told() -> None:
    done = searched("http/cellar")
    assert (done.returncode, "there is no room http/cellar" in done.stderr) == (2, True)
