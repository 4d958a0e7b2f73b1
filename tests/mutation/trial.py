"""One mutant in a process of its own, forked from one that has imported what the tests need beside the package."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

#: What costs the most to import, but for the package itself, which each process imports anew.
_AHEAD = [
    *("requests", "urllib3", "tenacity", "orjson", "responses", "hypothesis", "cheroot.wsgi", "trustme", "socks"),
    *("anyio", "trio", "requests_mock", "pytest_httpserver", "werkzeug.http", "platformdirs", "coverage"),
]
#: What has killed a mutant that nothing has killed, and one whose tests are not those of the survey any more.
SURVIVED, LOST = "-", "a test is not to be found"
#: The most memory that a mutant may take, in bytes.
_MEMORY = 6 * 2**30


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module with another code than its file's."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self._name:
            return None
        package = [str(self._path.parent)] if self._path.stem == "__init__" else None
        return importlib.util.spec_from_file_location(
            fullname, self._path, loader=self, submodule_search_locations=package
        )

    def exec_module(self, module: Any) -> None:
        exec(self._code, vars(module))

    def get_code(self, fullname: str) -> CodeType:
        return self._code


class _Killer:
    """A pytest plugin that changes the module, and notes the first test that has failed."""

    def __init__(self, changed: _Changed) -> None:
        self._changed = changed
        self.name = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self) -> None:
        """pytest has put its own way to import modules before all others by now, and has imported none of ours."""
        sys.meta_path.insert(0, self._changed)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = f"{report.nodeid}: it cannot be imported"


class Trial:
    """Tests that meet a changed module, in a process that was forked for them.

    Args:
        module: its name, such as ``"berlin_chat.decoding"``.
        path: its file.
        code: what it is with the change.
        tests: the names of the tests, in the order in which they are run.
        seconds: how long they take with nothing changed.
    """

    def __init__(self, module: str, path: Path, code: str, tests: Sequence[str], seconds: float) -> None:
        self._reading, writing = os.pipe()
        self._over = time.monotonic() + 20 + 5 * seconds
        self._killer: str | None = None
        self._output = tempfile.TemporaryDirectory(prefix="mutant-")
        self._pid = os.fork()
        if not self._pid:
            try:
                os.setsid()
                told = _meet(module, path, code, tests, seconds, Path(self._output.name))
                os.write(writing, told.encode())
            finally:
                os._exit(0)
        os.close(writing)

    @property
    def over(self) -> bool:
        """Whether it has ended; it is ended where it takes much too long."""
        if self._killer is None:
            late = time.monotonic() > self._over
            if late:
                os.kill(self._pid, signal.SIGKILL)
            if os.waitpid(self._pid, 0 if late else os.WNOHANG)[0]:
                with suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)  # what its tests have started
                with open(self._reading, "rb") as told:
                    self._killer = told.read().decode() or ("it takes much too long" if late else "the process died")
                self._output.cleanup()
        return self._killer is not None

    @property
    def killer(self) -> str:
        """The name of the test that has failed, or what else has killed the mutant; ``SURVIVED`` where nothing has."""
        assert self._killer is not None, "it is not over"
        return self._killer


def import_ahead() -> None:
    """Imports what the tests need beside the package; what is not installed is left out."""
    for name in _AHEAD:
        with suppress(ImportError):
            importlib.import_module(name)
    assert "berlin_chat" not in sys.modules, "it would not be changed"


def _meet(module: str, path: Path, code: str, tests: Sequence[str], seconds: float, folder: Path) -> str:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    sys.path[:0] = [str(Path.cwd()), str(Path(tests[0].partition("::")[0]).resolve().parent)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of "is" with a literal
        changed = _Changed(module, path, compile(code, str(path.resolve()), "exec"))
    killer = _Killer(changed)
    # What was imported ahead may be what pytest would have looked into first.
    options = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options += ["-p", "no:langsmith_plugin"]  # of a client in the tests, and it takes seconds to import
    options += ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}", f"--timeout={5 + 5 * seconds}"]
    try:
        status = pytest.main([*options, *tests], plugins=[killer])
    except BaseException:
        return f"pytest ended: {traceback.format_exc()}"
    if status == pytest.ExitCode.OK:
        return SURVIVED
    said = (folder / "output").read_text(errors="replace")
    return killer.name or f"{LOST if 'ERROR: not found: ' in said else f'pytest ended with {status}'}:\n{said}"
