"""What must hold for any bytes holds for those that were found before, and for what a short search finds.

``scripts/fuzz`` searches longer; ``tests/fuzzing`` says what for.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from berlin_chat import ProtocolError, decoding
from berlin_chat.http import login, responses
from fuzzing import search
from fuzzing.findings import FINDINGS
from fuzzing.targets import PLANTED, TARGETS

#: Seconds of a search.
SECONDS = 6
#: Seconds of the processor's for an input.
BOUND = 5.0

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not there for this machine: see setup.cfg"
)


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else logs in here, so that a refused login is repeated at once."""
    monkeypatch.setattr(login, "uniform", lambda low, high: 0.0)


# Without atheris


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_of_a_target_hold(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].check(seed)


@pytest.mark.parametrize(("name", "data", "fault"), FINDINGS, ids=[fault for *_, fault in FINDINGS])
def test_what_was_found_before_holds(name: str, data: bytes, fault: str) -> None:
    before = process_time()
    TARGETS[name].check(data)
    assert process_time() - before < BOUND, fault


def broken_lines(decoder: decoding.Lines, data: bytes) -> list[bytes]:
    """Every line is torn where a read ends."""
    found = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return [line for line in found if line]


BREAK: dict[str, tuple[str, Any, str]] = {
    "lines that end where a read does": ("decoding.Lines.feed", broken_lines, "lines"),
    "events whose data keep their space": ("decoding.Lines.feed", lambda self, data: [b"data:  a", b""], "events"),
    "an encoding that nobody looks at": ("http.encodings._window_bits", lambda name, data: 31, "compressed"),
    "chunks of which one byte is lost": (
        "http.responses.ChunkedDecoder.feed",
        lambda self, data, feed=responses.ChunkedDecoder.feed: feed(self, data)[1:],
        "chunked",
    ),
    "a mark of byte order that is kept": ("decoding.without_bom", lambda chunks: chunks, "text"),
}


@pytest.mark.parametrize(("place", "broken", "name"), BREAK.values(), ids=BREAK.keys())
def test_a_decoder_that_is_broken_on_purpose_fails_with_the_seeds(
    place: str, broken: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"berlin_chat.{place}", broken)
    with pytest.raises(AssertionError):
        for seed in TARGETS[name].seeds:
            TARGETS[name].check(seed)


def test_a_fault_that_was_mended_and_comes_back_is_found_by_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def before(line: bytes) -> Iterator[Any]:
        value = decoding._object_or_none(line)
        if value is None and line.startswith(b"{"):
            raise ProtocolError("a line that is broken JSON", detail=line)
        yield line.decode() if value is None else value

    monkeypatch.setattr(decoding, "_object_or_text", before)
    for name, data, _ in FINDINGS[:2]:
        with pytest.raises(AssertionError):
            TARGETS[name].check(data)


# With it


@needs_atheris
def test_a_short_search_finds_nothing(tmp_path: Path) -> None:
    """All targets share a process, which costs seconds to begin with; ``scripts/fuzz`` gives each its own."""
    result = search.fuzz("each", SECONDS, tmp_path)
    assert not result.findings, f"{result.log}\n{result.findings!r}"
    assert result.executions > 50, result.log
    assert result.features > 500, "it sees which ways the code goes"


@needs_atheris
@pytest.mark.parametrize("name", ["planted-torn", "planted-endless"])
def test_a_fault_that_was_planted_is_found(name: str, tmp_path: Path) -> None:
    result = search.fuzz(name, 60, tmp_path, limit=1)
    (finding,) = result.findings
    if name == "planted-torn":  # with the other one this test would not end
        with pytest.raises(AssertionError):
            PLANTED[name].check(finding)


@needs_atheris
def test_the_command_tells_what_it_has_found_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuzzing.search", "planted-rude", "--seconds", "60", "--corpus", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(search.TESTS), str(search.TESTS.parent)])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^The input: b['\"]", done.stdout, re.MULTILINE), done.stdout
    assert "an undeclared error" in done.stdout


def test_a_target_that_does_not_exist_is_told_and_nothing_is_fuzzed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        search.main(["lines", "nothing"])
    assert "no target nothing" in capsys.readouterr().err
