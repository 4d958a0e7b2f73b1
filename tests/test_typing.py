"""Type checkers tell right calls from wrong ones, and agree about them: those of ``typing_cases.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CASES = Path(__file__).parent / "typing_cases.py"
#: How each checker is asked. mypy reads setup.cfg; pyright cannot, so its settings stand in the file.
CHECKERS = {
    "mypy": ["mypy", "--strict", "--no-error-summary"],
    "pyright": ["pyright", "--pythonpath", sys.executable, "--pythonversion", "3.10"],
}

each_checker = pytest.mark.parametrize("checker", CHECKERS)


def complaints(checker: str, path: Path) -> list[str]:
    """The lines in which it complains about a file."""
    command = [sys.executable, "-m", *CHECKERS[checker], str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if "error" in line and path.name in line]
    assert bool(found) == bool(done.returncode), done.stdout + done.stderr
    return found


@each_checker
def test_a_checker_finds_each_wrong_call_and_no_other(checker: str) -> None:
    assert complaints(checker, CASES) == []


@each_checker
def test_an_ignore_that_a_checker_does_not_need_would_fail(checker: str, tmp_path: Path) -> None:
    text = CASES.read_text(encoding="utf-8")
    wrong, right = "Ylokh(timeut=3)  # type: ignore[call-arg]", "Ylokh(timeout=3)  # type: ignore[call-arg]"
    assert text.count(wrong) == 1
    changed = tmp_path / "changed.py"
    changed.write_text(text.replace(wrong, right), encoding="utf-8")
    (found,) = complaints(checker, changed)
    assert "type: ignore" in found
    assert f":{text[: text.index(wrong)].count(chr(10)) + 1}:" in found
