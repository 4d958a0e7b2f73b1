"""Which tests run which line, and how long each takes: found by running them once, with nothing changed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from coverage import CoverageData

#: Seconds that the quick tests of one mutant may take together, as the survey has measured them.
BUDGET = 8.0
#: Seconds that one of each of the slow ones may take.
LAST_BUDGET = 30.0


class Survey:
    """What a run of the tests has shown.

    Args:
        folder: where a run has been recorded.
    """

    def __init__(self, folder: Path) -> None:
        self._data = CoverageData(basename=str(folder / "coverage"))
        self._data.read()
        self.seconds: dict[str, float] = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
        self._lines: dict[Path, dict[int, set[str]]] = {}
        running = {name.partition("|")[0] for name in self._data.measured_contexts()}
        self._looking = self.seconds.keys() - running

    def tests(self, path: Path, line: int, first: Iterable[str] = ()) -> list[str]:
        """Returns the tests that may notice a change of that line, in the order in which they are tried.

        Those in ``first`` that run the line come first, then those of the file with the name of the room, quick before
        slow, and one of each function before its next, until ``BUDGET`` is used up.
        """
        running = self._running(path, line)
        chosen = [test for test in first if test in running]
        left = BUDGET - sum(map(self.seconds.__getitem__, chosen))
        own, places, costs = f"/test_{path.stem}.py::", Counter[str](), {}
        for test in sorted(running - set(chosen), key=self.seconds.__getitem__):
            function = test.partition("[")[0]
            places[function] += 1
            near = test in self._looking or own in test
            costs[test] = (not near, self.seconds[test] * places[function])
        for test in sorted(costs, key=costs.__getitem__):
            left -= self.seconds[test]
            if left < 0:
                break
            chosen.append(test)
        return chosen

    def slow_tests(self, path: Path, line: int, tried: list[str]) -> list[str]:
        """Returns one test of each function that runs the line and was not tried, as far as ``LAST_BUDGET`` goes."""
        functions = {test.partition("[")[0] for test in tried}
        left, chosen = LAST_BUDGET, []
        for test in sorted(self._running(path, line), key=self.seconds.__getitem__):
            function = test.partition("[")[0]
            if function not in functions and self.seconds[test] <= left:
                functions.add(function)
                left -= self.seconds[test]
                chosen.append(test)
        return chosen

    def _running(self, path: Path, line: int) -> set[str]:
        """The tests that run a line, or another of its statement.

        Where only an import does, those that run the function whose head it is, else all that run anything of the
        module, or nothing and look at what is there.
        """
        if path not in self._lines:
            found = self._data.contexts_by_lineno(str(path.resolve()))
            tests = {number: {name.partition("|")[0] for name in names} for number, names in found.items()}
            self._lines[path] = {number: names & self.seconds.keys() for number, names in tests.items()}
        lines = self._lines[path]
        statement, in_function = _statement(path, line)
        for wanted in (range(line, line + 1), statement):
            if running := set().union(*(lines.get(number, ()) for number in wanted)):
                return running
        return set() if in_function else self._looking.union(*lines.values())


def _statement(path: Path, line: int) -> tuple[range, bool]:
    """The lines of the statement that a line belongs to, and whether it is one of a function's."""
    around = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.stmt) and _begin(node) <= line <= (node.end_lineno or 0)
    ]
    inner = max(around, key=_begin)
    end = inner.end_lineno or 0
    if not isinstance(inner, (ast.FunctionDef, ast.ClassDef)) and (body := getattr(inner, "body", None)):
        end = body[0].lineno - 1
    in_function = any(isinstance(node, ast.FunctionDef) for node in around if node is not inner)
    return range(_begin(inner), end + 1), in_function


def _begin(statement: ast.stmt) -> int:
    """Its first line, be it a decorator's."""
    return min(part.lineno for part in (statement, *getattr(statement, "decorator_list", ())))


def survey(tests: list[str], sources: list[str], folder: Path) -> Survey:
    """Runs tests, with nothing changed, and records what they show in a folder.

    Args:
        tests: files, as pytest takes them.
        sources: the modules to be changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "coveragerc"
    settings.write_text("[run]\nsource =\n" + "".join(f"    {name}\n" for name in sources), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "mutation.clock"]
    command += ["--cov", f"--cov-config={settings}", "--cov-context=test", "--cov-report="]
    environment = {"COVERAGE_FILE": str(folder / "coverage"), "SECONDS_FILE": str(folder / "seconds.json")}
    subprocess.run([*command, *tests], env={**os.environ, **environment}, check=False)
    return Survey(folder)
