"""The command: ``scripts/mutants``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from mutation.mutants import Mutant, mutants, unchanged
from mutation.survey import Survey, survey
from mutation.trial import LOST, SURVIVED, Trial, import_ahead

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "berlin_chat"
#: The files whose tests meet the mutants: those that ask in this very process.
TESTS = """
    berlin cancelling cleanup connecting connections conversations decoding deep_callers dialects errors every_provider
    fallback fault_matrix forks found_by_fuzzing fuzzing hostile_servers leaks limits live logging login messages
    mocking openai provider provider_life proxies rate_limit requests_on_the_wire resources retries sanitizer secrets
    streaming testing threads tls tools without_posix
"""
#: How many of the tests that have killed a room's mutants are tried first with the next one.
KILLERS = 6
#: How many tests are tried before the others: files that none of these is in need not be imported for most mutants.
FIRST = 10


def rooms() -> dict[str, Path]:
    """The modules that are changed, by the name that the command gives them: their paths in the package."""
    paths = [PACKAGE / "decoding.py", *(PACKAGE / "http").glob("*.py"), *(PACKAGE / "providers").glob("*.py")]
    return {str(path.relative_to(PACKAGE).with_suffix("")): path.relative_to(ROOT) for path in sorted(paths)}


def module_name(path: Path) -> str:
    """The name by which a file is imported.

    >>> module_name(Path("berlin_chat/http/__init__.py"))
    'berlin_chat.http'
    """
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


class _Running:
    """A mutant that meets its tests: a few, the other quick ones, and the slow ones where it is not explained."""

    def __init__(self, mutant: Mutant, tests: list[str], seen: Survey) -> None:
        self.mutant = mutant
        self._seen = seen
        slow = [] if mutant.explained else seen.slow_tests(mutant.path, mutant.line, tests)
        self._left = [part for part in (tests[:FIRST], tests[FIRST:], slow) if part]
        self._trial: Trial | None = None
        self.killer = SURVIVED

    @property
    def over(self) -> bool:
        if self._trial is not None:
            if not self._trial.over:
                return False
            self.killer = self._trial.killer
        if self.killer != SURVIVED or not self._left:
            return True
        tests, path = self._left.pop(0), self.mutant.path
        seconds = sum(map(self._seen.seconds.__getitem__, tests))
        self._trial = Trial(module_name(path), path, self.mutant.code, tests, seconds)
        return False


def search(path: Path, seen: Survey, at_once: int) -> Iterator[tuple[Mutant, str]]:
    """Yields a room's mutants and what has killed each, as ``Trial.killer``, in the order in which they end.

    Raises RuntimeError where the room, as it is, is killed as well, or where a test is not to be found.
    """
    killers: Counter[str] = Counter()
    running: list[_Running] = []
    left = chain([unchanged(path)], mutants(path))
    while True:
        while len(running) < at_once and (mutant := next(left, None)) is not None:
            tests = seen.tests(path, mutant.line, [test for test, _ in killers.most_common(KILLERS)])
            running.append(_Running(mutant, tests, seen))
        if not running:
            return
        time.sleep(0.01)
        for one in [one for one in running if one.over]:
            running.remove(one)
            if one.killer.startswith(LOST):
                raise RuntimeError(one.killer)
            if one.mutant.was != one.mutant.becomes:
                killers[one.killer] += 1
                yield one.mutant, one.killer
            elif one.killer != SURVIVED:
                raise RuntimeError(f"a test fails with nothing changed: {one.killer}")


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
    else:
        with TemporaryDirectory(prefix="mutants-") as made:
            yield Path(made)


def main(arguments: list[str] | None = None) -> int:
    """Changes rooms in one place after the other; returns 1 where no test notices, and no comment says why."""
    parser = argparse.ArgumentParser(
        prog="scripts/mutants", description="Changes one place after the other, by cosmic-ray, and runs its tests."
    )
    parser.add_argument("room", nargs="*", help=f"one of {', '.join(rooms())}; all of them unless one is named")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="the tests (default: all that ask in one process)")
    parser.add_argument("--survey", type=Path, metavar="DIR", help="where the tests' own run is, or will be, recorded")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="how many (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="tells what has killed each mutant")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.room if name not in rooms()]:
        parser.error(f"there is no room {unknown[0]}: {', '.join(rooms())}")
    os.chdir(ROOT)
    chosen = [rooms()[name] for name in given.room or rooms()]
    tests = given.tests or [f"tests/test_{name}.py" for name in TESTS.split()]
    import_ahead()
    survived = 0
    with _folder(given.survey) as folder:
        recorded = (folder / "seconds.json").exists()
        seen = Survey(folder) if recorded else survey(tests, [module_name(path) for path in chosen], folder)
        print(f"{'room':<24}{'seconds':>9}{'mutants':>9}{'killed':>9}{'explained':>11}{'survived':>10}", flush=True)
        for path in chosen:
            began, counted, left = time.monotonic(), Counter[str](), []
            for mutant, killer in search(path, seen, given.at_once):
                fate = "killed" if killer != SURVIVED else "explained" if mutant.explained else "survived"
                counted[fate] += 1
                if fate == "survived":
                    left.append(mutant)
                if given.verbose:
                    print(f"{mutant}\n= {killer}\n", flush=True)
            row = "".join(
                f"{counted[fate]:{width}}" for fate, width in (("killed", 9), ("explained", 11), ("survived", 10))
            )
            name = str(path.relative_to("berlin_chat").with_suffix(""))
            print(f"{name:<24}{time.monotonic() - began:9.0f}{counted.total():9}{row}", flush=True)
            for mutant in left:
                print(f"\n{mutant}", flush=True)
            survived += len(left)
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
